# Each target sets up what it needs: a virtual environment in .venv with pinned versions (constraints.txt).
PYTHON ?= python3
BIN := .venv/bin

.PHONY: demo dist docs test test-fast test-demo test-robustbench faults lint bench clean
.DELETE_ON_ERROR:

.venv/ready: pyproject.toml constraints.txt
	$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "piat_hub needs Python 3.11 or newer: make PYTHON=python3.11 …")'
	test -x $(BIN)/python || $(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --quiet --constraint constraints.txt uv
	$(BIN)/uv pip install --quiet --compile-bytecode --python $(BIN)/python --constraint constraints.txt \
	  --config-setting editable_mode=compat --editable '.[dev]'
	touch $@

demo: .venv/ready  ## train the default recipe and evaluate it; starts anew each time
	rm -rf runs/demo
	$(BIN)/accelerate launch --num_processes 1 --num_machines 1 --mixed_precision no --dynamo_backend no train.py digits --output runs/demo
	$(BIN)/python evaluate.py runs/demo --attacks clean pgd20 aa

test: .venv/ready lint  ## lint, then the whole suite
	$(BIN)/python -m pytest -n 2 --dist worksteal

test-fast: .venv/ready  ## what is not marked slow, for the loop between two edits
	$(BIN)/python -m pytest -n 2 --dist worksteal -m "not slow"

docs: .venv/ready  ## the site in docs/_build/html; every warning is an error
	$(BIN)/python -m sphinx -E -W --keep-going -q -b html docs docs/_build/html

dist: .venv/ready  ## wheel and sdist, installed into an empty environment and tried there, outside the checkout
	rm -rf dist .venv-dist
	$(BIN)/uv build --quiet --out-dir dist
	$(PYTHON) -m venv .venv-dist
	$(BIN)/uv pip install --quiet --compile-bytecode --python .venv-dist/bin/python --constraint constraints.txt dist/*.whl
	bash tests/smoke.sh $(abspath .venv-dist/bin)
	du -sh .venv-dist/lib

# RobustBench pins an old timm and calls packages it does not install: docs/robustbench.md says how it runs all the same
RB := .venv-robustbench
$(RB)/ready: .venv/ready
	test -x $(RB)/bin/python || $(PYTHON) -m venv $(RB)
	grep -v '^setuptools==' constraints.txt > $(RB)/constraints.txt
	$(BIN)/uv pip install --quiet --compile-bytecode --python $(RB)/bin/python --constraint $(RB)/constraints.txt --editable . pytest \
	  'setuptools<81' torchdiffeq geotorch requests pandas gdown pyyaml
	$(BIN)/uv pip install --quiet --python $(RB)/bin/python --no-deps robustbench==1.1.1
	touch $@

test-robustbench: $(RB)/ready  ## our models in the real RobustBench, in an environment of its own
	$(RB)/bin/python -m pytest -W ignore tests/with_robustbench.py

PAGE := .venv-demo
$(PAGE)/ready: .venv/ready
	test -x $(PAGE)/bin/python || $(PYTHON) -m venv $(PAGE)
	$(BIN)/uv pip install --quiet --compile-bytecode --python $(PAGE)/bin/python --constraint constraints.txt --editable '.[dev,demo]' playwright
	touch $@

test-demo: $(PAGE)/ready  ## the page of `piat demo` in a Chromium, which must be installed: chromium, as Debian's package is called
	$(PAGE)/bin/python -m pytest tests/test_demo.py

faults: .venv/ready  ## the fault campaign of docs/faults.md: runs killed, files damaged, a failing Hub, hostile files; under an hour
	$(BIN)/python tests/campaign.py --output docs/results/faults.json
	$(BIN)/python docs/tables.py faults

lint: .venv/ready
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

# bench measures speed and prints the tables that README and docs/scaling.md quote. For the comparisons give
# PEERS=DIR (checkouts TRADES, MART and GAIRAT), DATASET=DIR (32x32 images) and MODEL=RUN (a trained ResNet-20)
TAKE := benchmarks/results
bench: .venv/ready
	mkdir -p $(TAKE) && rm -f $(TAKE)/step.new
	set -e; for precision in no bf16; do \
	  for pair in trades:TRADES mart:MART gairat:GAIRAT pgd_at:GAIRAT; do \
	    $(BIN)/python benchmarks/step.py --method $${pair%:*} --mixed-precision $$precision \
	      $(if $(PEERS),--peer $(PEERS)/$${pair#*:}) --output $(TAKE)/step.new; done; \
	  $(BIN)/python benchmarks/step.py --method trades --backbone resnet18 --batch-size 32 --mixed-precision $$precision \
	    $(if $(PEERS),--peer $(PEERS)/TRADES) --output $(TAKE)/step.new; done
	mv $(TAKE)/step.new $(TAKE)/step.jsonl
	$(BIN)/python benchmarks/methods.py --output $(TAKE)/methods.json
	$(BIN)/python benchmarks/scaling.py --output $(TAKE)/scaling.json
	$(BIN)/python benchmarks/data.py --mapped 50000 1000000 --threads 1 --output $(TAKE)/extra-feed.json
	$(BIN)/python benchmarks/costs.py --output $(TAKE)/costs.json
	$(BIN)/python benchmarks/costs.py --backbones resnet50 --methods nmse --output $(TAKE)/costs-imagenet.json
ifdef DATASET
	$(BIN)/python benchmarks/data.py --dataset $(DATASET) --output $(TAKE)/data.json
	$(if $(PHOTOGRAPHS),$(BIN)/python benchmarks/photographs.py --dataset $(PHOTOGRAPHS) --output $(TAKE)/photographs.json)
endif
ifdef MODEL
	$(BIN)/python benchmarks/evaluate.py $(MODEL) --n 500 --torchattacks --eps 4/255 --seeds 0 1 2 --output $(TAKE)/evaluate-torchattacks.json
	$(BIN)/python benchmarks/evaluate.py $(MODEL) --n 64 --seeds 0 1 --output $(TAKE)/evaluate-autoattack.json
endif
	$(BIN)/python docs/tables.py step evaluation_speed data extra_feed costs scaling

clean:
	rm -rf .venv .venv-dist $(PAGE) $(RB) dist runs results docs/_build
