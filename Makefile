# Everything runs in .venv, which is made on first use and reused afterwards.
PYTHON ?= python3
BIN := .venv/bin
STAMP := .venv/.densekit-installed
export NO_ALBUMENTATIONS_UPDATE = 1
WORKERS = $(shell $(PYTHON) -c 'import os; print(1 + (os.cpu_count() or 1))')  # one more than cores: some tests wait
PIP = $(BIN)/python -m pip install --quiet --no-compile --disable-pip-version-check
UNUSED := [/\\](tests?|testing[/\\]_internal|pip|setuptools|mypy|mypyc|pygments|networkx)[/\\]

.PHONY: help install demo test lint suite bench clean

help: ## show these targets
	@grep -E '^[a-z]+:.*##' $(MAKEFILE_LIST) | sed 's/:.*##/:/' | column -t -s ':'

install: $(STAMP) ## make .venv and install densekit with its test tools

$(STAMP): pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || \
		{ echo "densekit needs Python 3.11 or newer, $(PYTHON) is $$($(PYTHON) --version); use make PYTHON=python3.12"; exit 1; }
	test -x $(BIN)/python || $(PYTHON) -m venv .venv
	@# pip takes one package after the other; where a GPU's libraries come along, half of all bytes, they come beside the rest
	@if [ "$$(uname -sm)" = "Linux x86_64" ]; then \
		grep -E '^nvidia' constraints.txt | xargs $(PIP) --no-deps & \
		grep -vE '^(nvidia|#)' constraints.txt | xargs $(PIP) --no-deps; wait; fi
	$(PIP) --constraint constraints.txt --editable '.[dev,parquet]'
	@# what pip would do on one core, on all; some packages hold files that are no Python yet, some are never imported
	$(BIN)/python -m compileall -q -j 0 -x '$(UNUSED)' $$($(BIN)/python -c 'import site; print(site.getsitepackages()[0])') > /dev/null || true
	touch $@

demo: install ## train, evaluate and draw a detector on a generated data set (7 minutes on 2 cores)
	$(BIN)/python tools/generate_shapes.py data/shapes
	rm -rf runs/demo
	$(BIN)/python tools/train.py configs/detection/faster_rcnn_r18_shapes.yaml --out runs/demo
	$(BIN)/python tools/evaluate.py runs/demo/best.pt --data test --json runs/demo/test.json
	$(BIN)/python tools/predict.py runs/demo/best.pt data/shapes/images/test --out runs/demo/test_predictions
	@echo "Look at the pictures in runs/demo/test_predictions/pictures"

lint: install ## format, lint and types
	$(BIN)/ruff format --check densekit tools tests benchmarks
	$(BIN)/ruff check densekit tools tests benchmarks
	$(BIN)/mypy densekit

test: install ## the whole test suite, with lint and types
	@$(MAKE) --no-print-directory --jobs 2 lint suite  # types take a minute of one core

suite: install
	@# else every process that a test starts compiles them for itself
	$(BIN)/python -m compileall -q densekit tools
	@# pytest's own compiling of every assertion, in each process, waits until one has failed
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n $(WORKERS) --dist loadfile --no-loadscope-reorder --assert=plain -m "not long" || \
		{ OMP_NUM_THREADS=1 $(BIN)/python -m pytest --last-failed --last-failed-no-failures=none -m "not long"; exit 1; }

bench: install ## the benchmarks against the peers, in a short form
	$(BIN)/python benchmarks/run_all.py --short

clean: ## remove .venv and caches
	rm -rf .venv .pytest_cache .mypy_cache .ruff_cache .hypothesis
