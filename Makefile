# make demo    personalize the embedded model from five pictures       make test   all tests
# make lint    ruff, formatting, pyright                               make docs   the documentation into site/
# make clean   remove what the above made (runs stay)
PYTHON ?= python3
VENV   := .venv
PY     := $(VENV)/bin/python
PIP    := $(PY) -m pip install -qq --disable-pip-version-check -c constraints.txt
WORKERS ?= 2

.PHONY: demo test lint docs clean install dev
.DEFAULT_GOAL := demo

demo: $(VENV)/.installed
	$(VENV)/bin/visionpeft demo

test: $(VENV)/.dev
	OMP_NUM_THREADS=1 MKL_NUM_THREADS=1 $(PY) -m pytest -n $(WORKERS) --dist loadfile

lint: $(VENV)/.dev
	$(PY) -m ruff check .
	$(PY) -m ruff format --check .
	$(PY) -m pyright --pythonpath $(PY)

docs: $(VENV)/.dev
	$(PY) -m mkdocs build --strict --quiet

install: $(VENV)/.installed
dev: $(VENV)/.dev

# pip is put in by hand where Python came without ensurepip (Debian's does, unless python3-venv is installed).
$(PY):
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || \
	  { echo "visionpeft needs Python 3.11 or newer; $(PYTHON) is older or missing. Try: make PYTHON=python3.11" >&2; exit 1; }
	@$(PYTHON) -m venv --clear $(VENV) >/dev/null 2>&1 || { \
	  $(PYTHON) -m venv --clear --without-pip $(VENV) && $(PYTHON) -m pip --python $(PY) install --quiet pip; } || \
	  { echo "cannot make $(VENV): install your system's package for Python's venv (Debian: apt install python3-venv)" >&2; exit 1; }

$(VENV)/.installed: $(PY) pyproject.toml constraints.txt
	@echo "installing into $(VENV): about 1.5 GB on disk, once"
	@$(PIP) -e .
	@touch $@

$(VENV)/.dev: $(VENV)/.installed
	@$(PIP) -e ".[dev]"
	@touch $@

clean:
	rm -rf $(VENV) build dist site demo .ruff_cache .pytest_cache *.egg-info
	find . -name __pycache__ -type d -prune -exec rm -rf {} +
