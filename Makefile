# VENV=DIR     the environment to make and use (.venv)
# PYTHON=EXE   the Python to make it with (python3)
# An active virtualenv or conda environment in which the OpenMMLab stack works is used as it is, unless one of these is given.

# The interpreter that `setup` settled on.
PY = "$$(cat build/python)"
DEMO = work_dirs/demo
PRETRAINING = work_dirs/demo_pretraining

# What an environment of the user's own needs to find the package; .venv has it installed.
export PYTHONPATH := $(CURDIR)$(if $(PYTHONPATH),:$(PYTHONPATH))

.DEFAULT_GOAL := help
.PHONY: help setup demo demo-pretraining test test-crash test-fuzz test-slurm test-soak check bench format clean

help:  ## list the targets
	@awk -F ':.*## ' '/^[a-z-]+:.*## / {printf "  make %-16s %s\n", $$1, $$2}' $(firstword $(MAKEFILE_LIST))
	@sed -n '/^# VENV/,/^$$/s/^# /  /p' $(firstword $(MAKEFILE_LIST))

setup:  ## install the exact versions of requirements/ where they are missing
	@mkdir -p build
	@VENV='$(VENV)' PYTHON='$(PYTHON)' tools/install.sh > build/python

demo: setup  ## train, evaluate and draw a PVT RetinaNet on generated shapes: about 4 minutes on two cores
	$(PY) tools/make_shapes.py data/shapes
	$(PY) tools/train.py configs/demo/retinanet_shapes.py --work-dir $(DEMO)
	$(PY) tools/plot.py curves $(DEMO) --out $(DEMO)/curves.png > $(DEMO)/curves.txt
	$(PY) tools/plot.py predictions configs/demo/retinanet_shapes.py "$$(cat $(DEMO)/last_checkpoint)" --out $(DEMO)/predictions.png
	@echo
	@echo "checkpoint   $(DEMO)/$$(basename "$$(cat $(DEMO)/last_checkpoint)")"
	@echo "log          $$(ls -t $(DEMO)/*/*.log | head -n 1)"
	@echo "curves       $(DEMO)/curves.png"
	@echo "predictions  $(DEMO)/predictions.png"
	@sed -n 's/.*bbox_mAP": \([-0-9.]*\).*/bbox AP      \1/p' $(DEMO)/curves.txt

demo-pretraining: setup  ## train a classifier of shapes, and RetinaNet from it and from scratch: about 10 minutes
	$(PY) tools/make_shapes.py data/shapes
	$(PY) tools/train.py configs/demo/classifier_shapes.py --work-dir $(PRETRAINING)/classifier
	$(PY) tools/train.py configs/demo/retinanet_shapes_pretrained.py --work-dir $(PRETRAINING)/pretrained
	$(PY) tools/train.py configs/demo/retinanet_shapes_scratch.py --work-dir $(PRETRAINING)/scratch
	$(PY) tools/plot.py curves $(PRETRAINING)/pretrained $(PRETRAINING)/scratch --out $(PRETRAINING)/pretraining.png \
	    > $(PRETRAINING)/curves.txt
	@echo
	@for run in pretrained scratch; do \
	    sed -n "s/.*$$run\": {[^}]*bbox_mAP\": \([-0-9.]*\).*/bbox AP, $$run  \1/p" $(PRETRAINING)/curves.txt; \
	done

test: setup  ## run the tests: about 20 minutes on two cores
	$(PY) -m pytest $$($(PY) -c 'import xdist' 2> /dev/null && echo --numprocesses 2 --dist worksteal)

test-fuzz: setup  ## try thousands of made-up inputs (SEED=0) on the backbone, reader, checks and tools: about 10 minutes
	PVT_MM_FUZZ=full $(PY) -m pytest tests/fuzz --timeout=1200 --hypothesis-seed=$(or $(SEED),0) \
	    $$($(PY) -c 'import xdist' 2> /dev/null && echo --numprocesses 2 --dist worksteal)

test-slurm: setup  ## test what runs under Slurm on a real one, which it installs and starts: as root, 10 minutes
	PYTHON=$(PY) tests/slurm/run.sh

test-crash: setup  ## kill trainings 50 times, resume them and compare the weights bit for bit: about 10 minutes
	$(PY) tests/crash/crash.py

test-soak: setup  ## train for 2,000 steps, and see that memory, open files and threads stay: about 4 minutes
	$(PY) tests/soak/soak.py

check: setup  ## lint, and check the formatting
	$(PY) -m ruff check
	$(PY) -m ruff format --check

bench: setup  ## measure what docs/benchmarks.md claims, and write it: 20 to 40 minutes, with nothing else running
	$(PY) tools/benchmark_report.py

format: setup  ## format, and mend what the linter can mend
	$(PY) -m ruff check --fix
	$(PY) -m ruff format

clean:  ## remove caches and what was built, but no environment, data or results
	rm -rf build dist .pytest_cache .ruff_cache
	find configs pvt_mm tests tools -name __pycache__ -prune -exec rm -rf {} +
