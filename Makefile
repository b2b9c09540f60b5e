# VENV=DIR     virtual environment to create and use (default: .venv)
# PYTHON=EXE   Python to create it with (default: python3)
# CUDA=VERSION PyTorch and mmcv for auto (what this machine's GPUs can run), cpu, or a version such as 12.6
# If neither VENV nor PYTHON is set, an active environment with a working OpenMMLab stack is used unchanged.

# The interpreter that `setup` selected.
PY = "$$(cat build/python)"
# pytest's options for two processes, if pytest-xdist is installed.
PARALLEL = $$($(PY) -c 'import xdist' 2> /dev/null && echo --numprocesses 2 --dist worksteal)
DEMO = work_dirs/demo
PRETRAINING = work_dirs/demo_pretraining

# .venv has the package installed; an environment of the user's own finds it here.
export PYTHONPATH := $(CURDIR)$(if $(PYTHONPATH),:$(PYTHONPATH))

.DEFAULT_GOAL := help
.PHONY: help setup demo demo-pretraining test test-crash test-fuzz test-load test-slurm test-soak test-upstream test-gpu check bench bench-gpu format clean

help:  ## list the targets
	@awk -F ':.*## ' '/^[a-z-]+:.*## / {printf "  make %-16s %s\n", $$1, $$2}' $(firstword $(MAKEFILE_LIST))
	@sed -n '/^# VENV/,/^$$/s/^# /  /p' $(firstword $(MAKEFILE_LIST))

setup:  ## install the exact versions of requirements/ if they are missing
	@mkdir -p build
	@python=$$(VENV='$(VENV)' PYTHON='$(PYTHON)' CUDA='$(CUDA)' tools/install.sh) && \
	    echo "$$python" > build/python.$$$$ && mv build/python.$$$$ build/python

demo: setup  ## train and evaluate a PVT RetinaNet on generated shapes and plot the results: about 5 minutes on two cores
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

demo-pretraining: setup  ## train a classifier on shapes, then RetinaNet from its weights and from scratch: about 10 minutes
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

test: setup  ## run the tests: 7 to 13 minutes on two cores
	$(PY) -m pytest $(PARALLEL)

test-fuzz: setup  ## test the backbone, readers, checks and tools on thousands of random inputs (SEED=0): about 10 minutes
	PVT_MM_FUZZ=full $(PY) -m pytest tests/fuzz --timeout=1200 --hypothesis-seed=$(or $(SEED),0) $(PARALLEL)

test-slurm: setup  ## install and start a Slurm of two nodes, both this machine, and test training and sweeps: as root, about 15 minutes
	PYTHON=$(PY) tests/slurm/run.sh

test-crash: setup  ## kill trainings 50 times, resume them and compare the weights bit by bit: about 10 minutes
	$(PY) tests/crash/crash.py

test-load: setup  ## serve MODEL=file.onnx and send the images of IMAGES=folder and broken ones, 2,200 requests: some minutes
	$(if $(and $(MODEL),$(IMAGES)),,$(error name an exported model and a folder of images: make test-load MODEL=model.onnx IMAGES=folder))
	$(PY) -m tests.load.load '$(MODEL)' '$(IMAGES)'

test-soak: setup  ## train for 2,000 steps and check that memory, open files and threads do not grow: about 4 minutes
	$(PY) tests/soak/soak.py

test-upstream:  ## run the tests with upstream's OpenMMLab on torch 2.1.2, or TORCH=2.4.1: compiles mmcv once, about 30 minutes
	@TORCH='$(TORCH)' VENV='$(VENV)' PYTHON='$(PYTHON)' tests/upstream/run.sh

test-gpu: setup  ## test parity with the CPU, kernels, training and NCCL on the GPUs there are: written for under 5 minutes
	$(PY) -m pytest tests/gpu --device cuda

check: setup  ## lint, and check formatting, imports between packages and types: about 15 s
	$(PY) -m ruff check
	$(PY) -m ruff format --check
	"$$(dirname $(PY))/lint-imports" --no-logo --no-cache
	$(PY) -m mypy

bench: setup  ## measure and write docs/benchmarks.md and README's paragraph: about 15 minutes on two idle cores
	$(PY) tools/benchmark_report.py

bench-gpu: setup  ## measure training on a GPU and write docs/benchmarks_gpu.md: written for under 5 minutes
	$(PY) tools/benchmark_gpu.py

format: setup  ## format, and apply the linter's fixes
	$(PY) -m ruff check --fix
	$(PY) -m ruff format

clean:  ## remove caches and builds, but no environments, data or results
	rm -rf build dist .mypy_cache .pytest_cache .ruff_cache
	find configs pvt_mm tests tools -name __pycache__ -prune -exec rm -rf {} +
