# Every target sets itself up: the first one creates .venv and installs what constraints.txt pins.
#   make test DATA_DIR=path/to/data   also runs the tests that need data sets
#   make demo PYTHON=python3.13       chooses the interpreter that .venv is made from

SHELL := bash
.SHELLFLAGS := -euo pipefail -c

PYTHON ?= python3
DATA_DIR ?=
BIN := .venv/bin
INSTALLED := .venv/.installed
MAPPED := protocols instruments mock_hw data
# With "=": pytest would take a separate word for a test folder and look for its settings above it.
DATA_OPTION := $(if $(DATA_DIR),--data-dir="$(DATA_DIR)")

.PHONY: demo test lint types bench bench-peers torture clean install

demo: install
	$(BIN)/hil train digits --out runs/demo.h5 --overwrite
	$(BIN)/hil info runs/demo.h5
	$(BIN)/hil report runs/demo.h5

test: lint types
	$(BIN)/pytest $(DATA_OPTION)

lint: install
	$(BIN)/ruff check
	$(BIN)/ruff format --check

# The checkers see the folders as hil.* through links; without them mypy reads two files and reports success.
types: install
	rm -rf .typing && mkdir -p .typing/hil
	ln -s $(addprefix ../../,$(MAPPED) $(wildcard hil/*.py)) .typing/hil/
	$(BIN)/mypy | tee .typing/report
	expected=$$(find hil $(MAPPED) tests -name '*.py' | wc -l); \
	grep -q "in $$((expected)) source files" .typing/report || { echo "mypy did not check all $$((expected)) files"; exit 1; }

bench: install
	$(BIN)/python tests/benchmarks/bench.py $(DATA_OPTION)

# IBM's aihwkit gets an environment of its own; where it cannot be installed, one line says why and that is all.
bench-peers: install
	if tests/benchmarks/install_aihwkit.sh .peers $(BIN)/python constraints.txt; then \
		OMP_NUM_THREADS=1 $(BIN)/python tests/benchmarks/peers_bench.py .peers/bin/python $(DATA_OPTION); \
	fi

torture: install
	$(BIN)/pytest -m torture $(DATA_OPTION)

clean:
	rm -rf build dist *.egg-info .typing .coverage .pytest_cache .mypy_cache .ruff_cache .hypothesis

install: $(INSTALLED)

$(INSTALLED): pyproject.toml constraints.txt
	$(PYTHON) -c 'import sys; sys.exit("Python 3.11 or later is needed; try: make PYTHON=python3.11" if sys.version_info < (3, 11) else 0)'
	test -x $(BIN)/python || $(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -e '.[dev]'
	touch $@
