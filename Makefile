# Everything works from a fresh clone with Python 3.11 and make; each target makes the environment where it is missing.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.installed
DEV := $(VENV)/.installed-dev
# Compiled when first imported: most of what is installed never is.
PIP := $(BIN)/python -m pip install --quiet --disable-pip-version-check --no-compile -c constraints.txt
TORCH_FROM := $(if $(TORCH_INDEX),--index-url "$(TORCH_INDEX)")
DEMO := $(if $(DATA),--data "$(DATA)") $(if $(VIDEO),--video "$(VIDEO)") $(if $(MINUTES),--minutes $(MINUTES))

.PHONY: help install demo wheelhouse test test-long test-gpu check-tensorrt check-pycuda lint clean

help:  ## this list
	@grep -E '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed 's/:.*## /\t/' | expand -t 12

install: $(STAMP)  ## the environment in .venv; TORCH_INDEX=URL: where torch comes from

# torch first and by itself: an index that offers a CPU build under the same version then serves it alone.
$(STAMP): pyproject.toml constraints.txt
	$(PYTHON) -m venv $(VENV)
	@echo "Installing torch ... this takes a minute or two"
	@$(PIP) $(TORCH_FROM) $$(grep '^torch==' constraints.txt)
	@echo "Installing everything else ... another minute or two"
	@$(PIP) -e '.[edge,host,modbus,mqtt,webhook,opcua,train,calibrate]'
	@touch $(STAMP)

$(DEV): $(STAMP)
	@echo "Installing what the tests need ... half a minute"
	@$(PIP) -e '.[edge,codes,gentl,host,modbus,mqtt,webhook,opcua,postgresql,s3,train,calibrate,dev]'
	@touch $(DEV)

demo: $(STAMP)  ## train, calibrate and run a whole line; DATA=DIR VIDEO=FILE for your own
	$(BIN)/flawline demo $(DEMO)

wheelhouse: $(STAMP)  ## all that a box without a network needs; EXTRAS=edge,host OUT=wheelhouse
	$(BIN)/python deploy/wheelhouse.py --extras "$(or $(EXTRAS),edge)" --out "$(or $(OUT),wheelhouse)"

test: $(DEV)  ## the tests
	$(BIN)/python -m pytest -m "not long and not gpu"

test-long: $(DEV)  ## the tests that take long
	$(BIN)/python -m pytest -m "long and not gpu" --timeout 3600

test-gpu: $(DEV)  ## the tests that need a graphics card; each is skipped with its reason where there is none
	$(BIN)/python -m pytest -m gpu

check-tensorrt: $(DEV)  ## types against NVIDIA's own bindings of 10.3 and 11.4, which are downloaded
	$(BIN)/python -m pytest -m long tests/edge_runtime/test_tensorrt_types.py

check-pycuda: $(DEV)  ## compiles pycuda, without a card, and runs the adapter through it; takes minutes
	$(BIN)/python -m pytest -m long tests/edge_runtime/test_cuda_adapters.py

lint: $(DEV)  ## style, types, imports
	$(BIN)/ruff check . && $(BIN)/ruff format --check . && $(BIN)/mypy && $(BIN)/lint-imports

clean:  ## remove what was made, the environment too
	rm -rf $(VENV) runs build dist *.egg-info
