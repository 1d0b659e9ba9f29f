# Every target installs what it needs; a fresh Debian with rustup, git, make
# and python3 needs nothing else typed.
.DEFAULT_GOAL := help
SHELL := /bin/bash
.SHELLFLAGS := -euo pipefail -c

CARGO ?= cargo

.PHONY: help run test lint clean

help: ## Show this list
	@grep -hE '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed -E 's/:[^#]*##/:/' | column -t -s:

lint: ## rustfmt, clippy and the dependency policy
	$(CARGO) fmt --all --check
	$(CARGO) clippy --locked --workspace --all-targets -- -D warnings
	@if command -v cargo-deny >/dev/null; then \
	  cargo deny --locked check licenses bans sources || exit 1; \
	else echo "cargo-deny is not installed: dependency policy not checked."; fi

run: ## Build glmctl and describe the checkpoints of the test suite
	$(CARGO) build --locked -p glmctl
	@for d in tests/fixtures/checkpoints/*/; do \
	  echo "== glmctl inspect $$d"; ./target/debug/glmctl inspect "$$d"; \
	done

test: ## Every fast test
	$(CARGO) test --locked --workspace

clean: ## Remove what was built
	$(CARGO) clean
