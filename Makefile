# One habit, one command. `make serve` and `make test` set the environment up when they must.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
CONFIG ?= serve_config.yaml
FUZZ_CASES ?= 200
GPU_PACKAGES := .gpu-packages

.PHONY: serve test fuzz chaos cluster peers gpu check format clean

serve: $(VENV)/.ready
	$(BIN)/darkroom serve $(CONFIG)

# Three processes for two cores: those on the Ray cluster wait for its processes half of the time.
test: $(VENV)/.ready
	$(BIN)/python -m pytest -n 3 --no-loadscope-reorder --durations=25 $(ARGS)

fuzz: $(VENV)/.ready
	FUZZ_CASES=$(FUZZ_CASES) $(BIN)/python -m pytest -s tests/serve_app/api/test_openapi.py

check: $(VENV)/.ready
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/lint-imports
	$(BIN)/mypy

# Not in `make test`: an hour of killed processes, outages and steady load.
chaos: $(VENV)/.ready
	$(BIN)/python -m tests.chaos kills
	$(BIN)/python -m tests.chaos outages
	$(BIN)/python -m tests.chaos soak

# A Ray cluster of simulated nodes on this machine: its tests (about ten minutes), then how a burst spreads over new replicas.
# It needs Linux, and root or user namespaces.
cluster: $(VENV)/.ready
	$(BIN)/python -m pytest -m cluster tests/cluster $(ARGS)
	$(BIN)/python -m tests.cluster.burst

# Darkroom and what else one could take, each in an environment of its own, on a quiet machine: about an hour. What is measured
# already isn't measured again. ARGS: contenders, parts and options, `make peers ARGS="darkroom litserve throughput"`.
peers: $(VENV)/.ready
	$(BIN)/python -m benchmarks.peers $(ARGS)

# On any machine with CUDA and a Python that has torch (PYTHON=...): no Ray, and no environment of ours. What that Python
# lacks goes into a folder of its own. ARGS: parts and options, `make gpu ARGS="sd15 sdxl --resume"`.
gpu: export PYTHONPATH := $(CURDIR):$(CURDIR)/$(GPU_PACKAGES):$(PYTHONPATH)
gpu:
	$(PYTHON) -m benchmarks.missing_packages $(GPU_PACKAGES)
	$(PYTHON) -m benchmarks.gpu $(ARGS)

format: $(VENV)/.ready
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

$(VENV)/.ready: pyproject.toml constraints.txt
	@echo "Setting up $(VENV) (once; two to five minutes, most of it PyTorch) ..."
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt torch
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -e '.[dev]'
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt --no-deps spandrel einops k-diffusion invisible-watermark PyWavelets lycoris-lora
	touch $@

clean:
	rm -rf $(VENV) $(GPU_PACKAGES) darkroom-data .ray
