# Each target sets up what it needs: a virtual environment in .venv with pinned versions (constraints.txt).
PYTHON ?= python3
BIN := .venv/bin

.PHONY: demo test lint clean
.DELETE_ON_ERROR:

.venv/ready: pyproject.toml constraints.txt
	$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "piat_hub needs Python 3.11 or newer: make PYTHON=python3.11 …")'
	test -x $(BIN)/python || $(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --quiet --constraint constraints.txt uv
	$(BIN)/uv pip install --quiet --python $(BIN)/python --constraint constraints.txt --editable '.[dev]'
	touch $@

demo: .venv/ready  ## train the default recipe and evaluate it; starts anew each time
	rm -rf runs/demo
	$(BIN)/accelerate launch --num_processes 1 --num_machines 1 --mixed_precision no --dynamo_backend no train.py digits --output runs/demo
	$(BIN)/python evaluate.py runs/demo --attacks clean pgd20 aa

test: .venv/ready lint  ## lint, then the whole suite
	$(BIN)/python -m pytest -n 2 --dist loadfile

lint: .venv/ready
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

clean:
	rm -rf .venv runs results
