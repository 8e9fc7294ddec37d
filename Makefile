# One habit, one command. `make serve` and `make test` set the environment up when they must.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
CONFIG ?= serve_config.yaml
FUZZ_CASES ?= 200

# Ray's own ports listen on every interface, and who may connect to them may run code: they ask for a token, also
# on a laptop. It is this folder's own, so that it neither needs nor changes the one in the home folder.
# (Another shell's `serve status` or `ray status` needs the same two variables.)
export RAY_AUTH_MODE ?= token
export RAY_AUTH_TOKEN_PATH ?= $(CURDIR)/.ray/auth_token
# A laptop start: no usage pings, no second environment for the workers.
export RAY_USAGE_STATS_ENABLED ?= 0
export RAY_ENABLE_UV_RUN_RUNTIME_ENV ?= 0
# Ray runs its workers at nice 15. Here they are the work: as nice as anything else on the machine.
export RAY_worker_niceness ?= 0
# Serve's controller looks at everything ten times a second; on two cores that is felt in every image.
export RAY_SERVE_CONTROL_LOOP_INTERVAL_S ?= 0.5
# A busy machine is slow, not broken: Ray gives its dashboard 60 s and its HTTP proxy 3 x 5 s to start, and then gives up.
export RAY_DASHBOARD_STARTUP_TIMEOUT_S ?= 180
export RAY_SERVE_PROXY_READY_CHECK_TIMEOUT_S ?= 60

.PHONY: serve test fuzz chaos check format clean

serve: $(VENV)/.ready .ray/auth_token
	@$(BIN)/python -m serve_app.config_check --start $(CONFIG)
	@echo "Starting $(CONFIG): Ray first (about 10 s), then one process per stage loads its checkpoints."
	@echo "http://127.0.0.1:8000/ready answers 200 when every stage can serve; Ctrl-C stops it all."
	$(BIN)/serve run $(CONFIG)

# Two processes: most tests keep one core busy, or wait.
test: $(VENV)/.ready
	$(BIN)/python -m pytest -n 2 --no-loadscope-reorder $(ARGS)

fuzz: $(VENV)/.ready
	FUZZ_CASES=$(FUZZ_CASES) $(BIN)/python -m pytest -s tests/serve_app/api/test_document.py

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

format: $(VENV)/.ready
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

$(VENV)/.ready: pyproject.toml constraints.txt
	@echo "Setting up $(VENV) (once; two to five minutes, most of it PyTorch) ..."
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt torch
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -e '.[dev]'
	touch $@

.ray/auth_token:
	@mkdir -p .ray
	@umask 077 && $(BIN)/python -c 'import secrets; print(secrets.token_hex(32))' > $@

clean:
	rm -rf $(VENV) darkroom-data .ray
