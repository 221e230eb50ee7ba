.DEFAULT_GOAL := help
.PHONY: help setup lint test

help: ## Show this list
	@awk -F ':.*## ' '/^[a-z-]+:.*## / { printf "%-12s %s\n", $$1, $$2 }' $(MAKEFILE_LIST)

setup: ## Install what building and testing needs (Debian 12)
	@scripts/setup

lint: setup ## Check formatting and lints
	cargo fmt --all --check
	cargo clippy --workspace --all-targets --all-features -- -D warnings

test: setup ## Run every test on real servers of its own
	cargo test --workspace --all-features --doc --quiet
	cargo nextest run --workspace --all-features
