# Every verb a developer or CI needs. `make` alone lists them.
PYTHON ?= $(shell command -v python3.11 || command -v python3)
BIN := .venv/bin
COMPILE := $(BIN)/uv pip compile --quiet --upgrade --no-header --no-annotate --no-emit-index-url --python-version 3.11
PIP := $(BIN)/uv pip install --quiet --python $(BIN)/python --constraint constraints.txt

.DEFAULT_GOAL := help
.PHONY: help run check test chaos format bench-gateway bench-admission bench-metering bench-priority bench-vision bench-export sample train constraints clean

help: ## List the verbs
	@grep -hE '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed -E 's/:.*## /\t/' | expand -t 18

run: .venv/.local ## Start the whole stack here, send a first picture, serve until Ctrl-C
	@exec $(BIN)/visiongate up

check: .venv/.dev ## Lint, types and import rules: the fast ones
	$(BIN)/ruff check
	$(BIN)/ruff format --check
	$(BIN)/mypy
	$(BIN)/lint-imports --no-cache

test: check .venv-export/.dev ## Everything: check, then unit, contract, parity, integration and end-to-end tests
	$(BIN)/pytest
	.venv-export/bin/python -m pytest --confcutdir tests/torch tests/torch

chaos: .venv/.dev ## The long form of tests/chaos: 200 rounds of kill -9 under load, outages of half a minute
	VISIONGATE_TEST_CHAOS=long $(BIN)/pytest tests/chaos

format: .venv/.dev ## Bring the code into shape
	$(BIN)/ruff check --fix
	$(BIN)/ruff format

bench-gateway: .venv/.dev ## Pictures a second through HTTP over ONNX Runtime alone
	$(BIN)/python -m bench.gateway

bench-admission: .venv/.dev ## What limits and bills cost of a gateway's time, and of what Redis can do
	$(BIN)/python -m bench.admission

bench-metering: .venv/.dev ## The ledger's consumer over the gateways' peak; a million events
	$(BIN)/python -m bench.metering

bench-priority: .venv/.dev ## What an urgent picture waits beside a flood of others, over alone
	$(BIN)/python -m bench.priority

bench-vision: .venv-export/.export ## Letterbox and NMS over Ultralytics' own
	.venv-export/bin/python -m bench.vision

bench-export: .venv-export/.export .venv/.dev ## Size, latency and accuracy of every form of the sample detector
	$(BIN)/python -m bench.export

sample: .venv-export/.export ## Export the committed checkpoint into model_repo/shapes again
	rm -rf .cache/sample && mkdir -p .cache/sample/model_repo
	.venv-export/bin/python -m export_pipeline.sample.dataset .cache/sample/held-out-scenes
	$(BIN)/visiongate-export run --checkpoint export_pipeline/sample/shapes.pt --name shapes --imgsz 320 \
		--pictures tests/golden/pictures --dataset .cache/sample/held-out-scenes \
		--out .cache/sample/job --publish .cache/sample/model_repo
	cp -r .cache/sample/model_repo/shapes/. model_repo/shapes/

train: .venv-export/.export ## Train the sample detector from its seed (about ten minutes on two cores)
	.venv-export/bin/python -m export_pipeline.sample.train

constraints: .venv/.dev ## Pin today's versions of everything again
	$(COMPILE) --extra dev pyproject.toml -o constraints.txt
	$(BIN)/python -c 'from export_pipeline.environment import own_recipe; print(*own_recipe().requirements, sep="\n")' | \
		$(COMPILE) - -o export_pipeline/constraints.txt

clean: ## Remove what the verbs above have made
	rm -rf .venv .venv-export .venv-export.lock .run .cache .hypothesis .*_cache build dist runs *.egg-info

.venv/.uv:
	@$(PYTHON) -c 'import ensurepip, sys; sys.exit(sys.version_info < (3, 11))' || \
		{ echo "Python 3.11 with its venv module is needed (Debian: apt install python3-venv libpython3.11)."; exit 1; }
	$(PYTHON) -m venv .venv
	$(BIN)/pip install --quiet --disable-pip-version-check --constraint constraints.txt uv
	@touch $@

.venv/.local: .venv/.uv pyproject.toml constraints.txt
	@echo "Installing the gateway with its local extras into .venv …"
	$(PIP) --editable '.[local]'
	@touch $@

.venv/.dev: .venv/.uv pyproject.toml constraints.txt
	@echo "Installing what the tests need into .venv …"
	$(PIP) --editable '.[dev]'
	@touch $@ .venv/.local

.venv-export/.export: .venv/.local export_pipeline/constraints.txt
	$(BIN)/visiongate-export environment
	@touch $@

.venv-export/.dev: .venv-export/.export
	$(BIN)/uv pip install --quiet --python .venv-export/bin/python --constraint constraints.txt \
		pytest pytest-asyncio pytest-timeout
	@touch $@
