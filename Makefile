# `make` lists the targets. Each one that needs the environment makes it first, from locks/ (see report/environment.py).
SHELL := /bin/bash
STUDY ?= demo
# taken as it is: neither make nor a shell looks for commands in it
override STUDY := $(value STUDY)
export STUDY
# the first of these that is new enough makes the environment
PYTHON ?= python3 python3.13 python3.12 python3.11
# cpu: CPU-only torch, from TORCH_INDEX; default: the one of the registry; unset: as it is in the environment
TORCH ?=
TORCH_INDEX ?=
VENV := .venv
export TORCH TORCH_INDEX VENV
PY := $(VENV)/bin/python

# $(call environment,NAME): nothing where all is there as locked; else the first suitable Python makes it so
define environment
@[ -x "$(PY)" ] && "$(PY)" report/environment.py $(1) --check 2>/dev/null && exit 0; \
version() { sed -n "s/^$$1 *= *//p" settings.ini | tr . ,; }; \
for python in $(PYTHON) "$(PY)"; do \
  "$$python" -c "import sys; sys.exit(not ($$(version min_python)) <= sys.version_info[:2] <= ($$(version max_python)))" 2>/dev/null && \
    exec "$$python" report/environment.py $(1); \
  found="$$found, $$python ($$("$$python" -V 2>/dev/null || echo absent))"; \
done; \
echo "error: Python $$(version min_python | tr , .) to $$(version max_python | tr , .) is needed; found$${found#,}: name one with make PYTHON=/path/to/python3.12" >&2; exit 2
endef

.DEFAULT_GOAL := help
.PHONY: help env env-test lock report site test check export clean-notebooks readme release bench rehearsal rehearsal-files rehearsal-motion rehearsal-kinetics rehearsal-outside clean

help: ## list the targets
	@echo "usage: make TARGET [STUDY=demo] [TORCH=cpu] [PYTHON=python3]"; echo
	@awk -F ':.*## ' '/^[a-z-]+:.*## / { printf "  %-18s %s\n", $$1, $$2 }' $(MAKEFILE_LIST)

env: ## make .venv for `report` (nothing to do while locks/ stays; TORCH=cpu for CPU-only torch)
	$(call environment,report)

env-test: ## make .venv for `test`: all that the tests and the cluster need on top
	$(call environment,test)

lock: env ## write locks/ from settings.ini (UPGRADE=1: the newest versions that it allows)
	@$(PY) -m report.lock $(if $(UPGRADE),--upgrade)

report: env ## run a study and build its site: make report STUDY=demo (ARGS="--force", "--only 05", …)
	@$(PY) -m report.run "studies/$$STUDY.yaml" --site $(ARGS)

site: env ## build the site of a study that has been run
	@$(PY) -m report.site "$$STUDY"

test: env-test ## every notebook's cells, the end-to-end tests, the checks (CHANGED=1: what a change can affect; PYTEST_ARGS="-k runner")
	@$(PY) -m $(if $(filter-out 0,$(CHANGED)),report.changed,pytest tests) -q -n 2 $(PYTEST_ARGS)

check: env-test ## the quick checks alone: library exported, notebooks clean, README as index.ipynb has it, locks complete
	@$(PY) -m pytest -q tests/test_checks.py $(PYTEST_ARGS)

export: env ## write the library from the notebooks
	@$(VENV)/bin/nbdev_export
	@$(PY) -m report.schema

clean-notebooks: env ## take outputs and needless metadata out of the notebooks
	@$(VENV)/bin/nbdev_clean

readme: env ## write README.md from nbs/index.ipynb
	@$(PY) -m report.readme

release: env ## pack wheel, demo model and checksums into dist/ (after make report)
	@$(PY) -m report.release --study "$$STUDY"

bench: env-test ## run the benchmarks
	@set -e; for f in bench/*.py; do echo "== $$f"; $(PY) $$f; done

rehearsal: rehearsal-motion rehearsal-files rehearsal-kinetics rehearsal-outside ## all on real input, where ../shared/data is: hours

rehearsal-files: env ## real files through frames and the newest model: nbs/pages/real_files.md
	@$(PY) -m rehearsal.files

rehearsal-motion: env ## real human motion: results/motion and results/motion_transfer
	@$(PY) -m rehearsal.motion

rehearsal-kinetics: env ## the real lists at full size, with a loopback server in the place of YouTube and of the mirror
	@$(PY) -m rehearsal.kinetics cvdf youtube laptop summary

rehearsal-outside: env ## README followed in a fresh clone
	@$(PY) -m rehearsal.outside $${TMPDIR:-/tmp}/kinetics-dance-outside

clean: ## delete what was made in runs/STUDY, and the site; what somebody put there stays
	@[[ "$$STUDY" =~ ^[A-Za-z0-9_-]+$$ ]] || { echo "error: STUDY must be a name" >&2; exit 2; }
	@$(firstword $(wildcard $(PY)) python3) -m report.clean "$$STUDY"
