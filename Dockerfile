# The library and the study, CPU only and without root:
#   docker build -t kinetics-dance .
#   docker run --rm -v "$PWD:/home/dancer/project/videos:ro" kinetics-dance predict videos/v.mp4 --model-path hf:OWNER/NAME
# With CUDA: docker build --build-arg TORCH=default -t kinetics-dance:cuda .
FROM python:3.11-slim-bookworm
ARG TORCH=cpu
RUN useradd --create-home --uid 1000 dancer
USER dancer
WORKDIR /home/dancer/project
COPY --chown=dancer:dancer . .
# versions and hashes are those of locks/report.txt
RUN TORCH=${TORCH} python report/environment.py report && rm -rf /home/dancer/.cache
ENV PATH=/home/dancer/project/.venv/bin:$PATH
ENTRYPOINT ["kinetics-dance"]
CMD ["--help"]
