# Two commands matter: `make reproduce` and `make test`. `make help` lists the rest.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
PIP := $(BIN)/python -m pip install --disable-pip-version-check --quiet --constraint constraints.txt
SOURCES := settings.ini setup.py constraints.txt
export OMP_NUM_THREADS ?= 1
export MKL_NUM_THREADS ?= 1

.PHONY: help install reproduce test bench check-notebooks notebooks figures readme docs lab clean
.DEFAULT_GOAL := help

help:  ## list the targets
	@grep -E '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed -E 's/:[^#]*## /\t/' | expand -t 18

$(VENV)/.installed: $(SOURCES)
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "mser needs Python 3.11 or newer, this is " + sys.version.split()[0] + ". Name a newer one: make PYTHON=python3.12 ...")'
	@test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	@echo "Installing mser and its requirements into $(VENV) (a few minutes, once)"
	@$(PIP) --editable .
	@touch $@

$(VENV)/.installed-dev: $(VENV)/.installed
	@echo "Installing what the tests need"
	@$(PIP) --editable '.[dev]'
	@touch $@

install: $(VENV)/.installed  ## make .venv and install mser into it

reproduce: $(VENV)/.installed  ## run the experiments on the simulated corpora and write the report
	@$(BIN)/mser reproduce $(ARGS)

test: check-notebooks  ## notebooks clean and in sync, nbdev_test, pytest
	$(BIN)/nbdev_test --n_workers 2 --do_print --timing
	$(BIN)/python -m pytest tests --quiet --durations 5 --ignore tests/test_notebooks.py

bench: $(VENV)/.installed-dev  ## time training beside a plain PyTorch trainer, on two cores
	$(BIN)/python tests/benchmarks/engine.py $(ARGS)

check-notebooks: $(VENV)/.installed-dev
	$(BIN)/python -m pytest tests/test_notebooks.py --quiet

notebooks: $(VENV)/.installed-dev  ## export the package, then run every notebook top to bottom, in place
	$(BIN)/nbdev_export
	$(BIN)/jupyter nbconvert --to notebook --execute --inplace --log-level WARN --ExecutePreprocessor.extra_arguments="['--IPKernelApp.log_level=40']" nbs/*.ipynb $(filter-out nbs/experiments/presets.ipynb,$(wildcard nbs/experiments/*.ipynb))
	$(BIN)/nbdev_clean

figures: reproduce  ## keep what the default run rendered in figures/, for the README
	cp data/reproduce-simulated/tables/*.md data/reproduce-simulated/figures/*.png data/reproduce-simulated/figures/*.svg figures/

readme: $(VENV)/.installed-dev  ## write README.md from nbs/index.ipynb
	$(BIN)/python -c "from mser.publish import keep_picture; keep_picture('nbs/10_attention.ipynb', 'by_case = ', 'figures/attention.png')"
	$(BIN)/python -c "from mser.publish import write_readme; write_readme()"

docs: $(VENV)/.installed-dev  ## build the site, every notebook as a page, into _docs/
	$(BIN)/python -c "from mser.site import build_site; print('Open', build_site())"

lab: $(VENV)/.installed  ## open the notebooks in JupyterLab
	$(BIN)/jupyter lab nbs

clean:  ## remove what can be made again (results in data/ stay)
	rm -rf $(VENV) build dist *.egg-info _docs _proc .pytest_cache .hypothesis
