# `make` lists the targets. Each one that needs the environment makes it first, from constraints.txt.
SHELL := /bin/bash
STUDY ?= demo
# taken as it is: neither make nor a shell looks for commands in it
override STUDY := $(value STUDY)
export STUDY
PYTHON ?= python3
VENV := .venv
PY := $(VENV)/bin/python
# pip runs again only when this changes
PINS = $$( (cat constraints.txt; grep -E '^([a-z]+_)?requirements|^console_scripts|^min_python|^lib_' settings.ini) | cksum | tr ' ' -)

.DEFAULT_GOAL := help
.PHONY: help env report site test check export clean-notebooks readme release bench rehearsal rehearsal-files rehearsal-motion rehearsal-kinetics rehearsal-outside clean

help: ## list the targets
	@echo "usage: make TARGET [STUDY=demo] [PYTHON=python3]"; echo
	@awk -F ':.*## ' '/^[a-z-]+:.*## / { printf "  %-18s %s\n", $$1, $$2 }' $(MAKEFILE_LIST)

env: ## make .venv from constraints.txt (again only when the pins changed; then no network is needed)
	@set -e; if [ "$$(cat $(VENV)/.stamp 2>/dev/null)" != "$(PINS)" ]; then \
	  $(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null || \
	    { echo "error: $(PYTHON) is not Python 3.11 or later: name one with make PYTHON=python3.12" >&2; exit 2; }; \
	  rm -f $(VENV)/.stamp; \
	  echo "environment: installing into $(VENV) (the first time about 3 minutes, 5.5 GB)"; \
	  if ! [ -x $(PY) ] || ! $(PY) -m pip --version >/dev/null 2>&1; then $(PYTHON) -m venv --clear $(VENV); fi; \
	  $(PY) -m pip install -q --disable-pip-version-check -c constraints.txt -e '.[dev]'; \
	  echo "$(PINS)" > $(VENV)/.stamp; \
	  echo "environment: done in $$SECONDS s"; \
	fi

report: env ## run a study and build its site: make report STUDY=demo (ARGS="--force", "--only 05", …)
	@$(PY) -m report.run "studies/$$STUDY.yaml" $(ARGS)
	@$(PY) -m report.site "$$STUDY"

site: env ## build the site of a study that has been run
	@$(PY) -m report.site "$$STUDY"

test: env ## every notebook's cells, the end-to-end tests, the checks (CHANGED=1: what a change can affect; PYTEST_ARGS="-k runner")
	@$(PY) -m $(if $(filter-out 0,$(CHANGED)),report.changed,pytest tests) -q -n 2 $(PYTEST_ARGS)

check: env ## the quick checks alone: library exported, notebooks clean, README as index.ipynb has it, pins complete
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

bench: env ## run the benchmarks
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

clean: ## delete the results of a study and the site: runs/STUDY and _site, nothing else
	@[[ "$$STUDY" =~ ^[A-Za-z0-9_-]+$$ ]] || { echo "error: STUDY must be a name" >&2; exit 2; }
	@echo "deleting runs/$$STUDY and _site"; rm -rf "runs/$$STUDY" _site
