.DEFAULT_GOAL := help
.PHONY: help setup lint test demo chaos simulate
tools := $(or $(PILLARBOX_TOOLS),$(if $(filter 0,$(shell id -u)),/var/cache/pillarbox,$(or $(XDG_CACHE_HOME),$(HOME)/.cache)/pillarbox))

help: ## Show this list
	@awk -F ':.*## ' '/^[a-z-]+:.*## / { printf "%-12s %s\n", $$1, $$2 }' $(MAKEFILE_LIST)

setup: ## Install what building and testing needs (Debian 12)
	@scripts/setup

lint: setup ## Check formatting and lints
	cargo fmt --all --check
	cargo clippy --workspace --all-targets --all-features -- -D warnings

test: setup ## Run every test on real servers of its own
	cargo test --workspace --all-features --doc --quiet
	cargo nextest run --workspace --all-features --no-run
	@$(MAKE) --no-print-directory pytest
	cargo nextest run --workspace --all-features

demo: setup ## Kill and restart under traffic, then compare every event (DEMO_SECONDS, DEMO_ENGINE=26, DEMO_KEEP=1)
# The dev profile: optimising every crate takes longer than it would save in one run.
	@cargo build --locked --bins -p pillarbox-cli -p pillarbox-example-users -p pillarbox-example-demo
	@"$${CARGO_TARGET_DIR:-target}/debug/demo"

chaos: setup ## Break everything at random under load, then compare every event (CHAOS_SECONDS, CHAOS_SEED, CHAOS_ENGINE=18, CHAOS_LOGS)
	@cargo build --locked --bins -p pillarbox-testkit
	@"$${CARGO_TARGET_DIR:-target}/debug/chaos"

simulate: setup ## Run ten thousand random worlds in memory and in virtual time (SIM_RUNS, SIM_SEED, SIM_WITHOUT='cut rule')
	@cargo build --locked --profile simulate --features simulate --bin simulate -p pillarbox-testkit
	@"$${CARGO_TARGET_DIR:-target}/simulate/simulate"

pillarbox = cargo run --quiet --release --locked -p pillarbox-cli --

.PHONY: lint-packaging run stop logs install dist

lint: lint-packaging
# compose.yaml and the CI workflow against their schemas.
lint-packaging: setup
	$(tools)/venv/bin/check-jsonschema --builtin-schema vendor.compose-spec compose.yaml
	$(tools)/venv/bin/check-jsonschema --builtin-schema vendor.github-workflows .github/workflows/*.yml

run: ## Start PostgreSQL, ClickHouse, the relay and the sample application in containers
	docker compose up --build --detach --wait
	@echo 'The sample application is on http://127.0.0.1:8080/users. Next: make logs, make stop'

stop: ## Stop the containers; their data stays
	docker compose down

logs: ## Follow the logs of the containers
	docker compose logs --follow --tail 100

install: ## Install schema and table at DATABASE_URL and CLICKHOUSE_URL
	$(pillarbox) migrate
	$(pillarbox) sink create

dist: ## Build the release binary and its checksum into dist/
	cargo build --release --locked -p pillarbox-cli
	install -D -t dist target/release/pillarbox
	cd dist && sha256sum pillarbox > pillarbox.sha256 && cat pillarbox.sha256

.PHONY: lint-python test-python pytest python-schema

python = $(tools)/clients/bin/python

lint: lint-python
lint-python: setup
	cd clients/python && $(python) -m ruff format --check . ../../examples/django ../../examples/migrate
	cd clients/python && $(python) -m ruff check --quiet . ../../examples/django ../../examples/migrate
	cd clients/python && $(python) -m mypy
	cd examples/django && $(python) -m mypy
	cd examples/migrate && $(python) -m mypy

test-python: setup ## Run the tests of the Python package, the Django sample, the recipes and the migration guides only
	cargo build --locked --bin servers --bin pillarbox -p pillarbox-testkit -p pillarbox-cli
	@$(MAKE) --no-print-directory pytest

# On programs that are built.
pytest:
	cd clients/python && $(python) -m pytest -q
	cd examples/django && $(python) -m pytest -q
	cd examples/migrate && $(python) -m pytest -q

.PHONY: demo-django
demo-django: setup ## Publish by the Django sample, kill the Celery worker that delivers, then compare every event (DEMO_SECONDS, DEMO_ENGINE=26)
	@cargo build --locked --quiet --bin servers --bin pillarbox -p pillarbox-testkit -p pillarbox-cli
	@cd examples/django && PYTHONPATH=tests:../../clients/python/tests:../../clients/python/src $(python) demo.py

python-schema: ## Make the SQL and the migrations that the Python package ships from those of the program
	@cargo build --locked -p pillarbox-cli
	@scripts/python-schema

.PHONY: fuzz

fuzz: setup ## Fuzz what reads foreign bytes, FUZZ_SECONDS for each target (60); see fuzz/README.md
	@scripts/fuzz "$(or $(FUZZ_SECONDS),60)"

.PHONY: digest-cost

digest-cost: setup ## Measure what the digest takes of a drain, and fail above 5 % (DIGEST_EVENTS, DIGEST_ROUNDS, DIGEST_ENGINE=26); needs valgrind
	@cargo build --locked --release --features measure --bin digest_cost --bin relay_under_test -p pillarbox-testkit
	@"$${CARGO_TARGET_DIR:-target}/release/digest_cost"

.PHONY: bench bench-full bench-micro build-bench

# Not in one command: the test kit would build its fail points into the program that is measured.
build-bench: setup
	@cargo build --locked --release -p pillarbox-cli
	@cargo build --locked --release -p pillarbox-bench

bench: build-bench ## Measure what the targets of docs/BENCHMARKS.md need, in 20 minutes (BENCH_SHARE=0.1, BENCH_ONLY=drain,growth)
	@"$${CARGO_TARGET_DIR:-target}/release/bench" $(if $(BENCH_ONLY),--only $(BENCH_ONLY))

bench-micro: setup ## Time and count what the relay does with each row (criterion; callgrind, which needs valgrind)
	@cargo bench --locked -p pillarbox-bench
	@cargo build --locked --release --features measure --bin digest_cost --bin relay_under_test -p pillarbox-testkit
	@DIGEST_ROUNDS=0 "$${CARGO_TARGET_DIR:-target}/release/digest_cost"

bench-full: build-bench ## Measure everything, in about an hour
	@"$${CARGO_TARGET_DIR:-target}/release/bench" --full $(if $(BENCH_ONLY),--only $(BENCH_ONLY))
