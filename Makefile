# Short targets only: what they do is in the script beside what it serves.

.DEFAULT_GOAL := help
.PHONY: help demo test test-kubernetes check fmt bench tools

help: ## What there is to make
	@sed -n 's/^\([a-z-]*\):.*## /\1\t/p' $(MAKEFILE_LIST) | expand -t 16

demo: ## Build dbtcloud and watch it run a real dbt project (KEEP=1 leaves it running)
	@tests/setup --demo
	cargo build --release --locked -p dbtcloud-server
	PATH="$(CURDIR)/.cache/bin:$$PATH" target/release/dbtcloud demo $(if $(KEEP),--keep)

test: ## Everything that must hold before a change lands
	@tests/run

test-kubernetes: ## The part of it on a Kubernetes cluster; with KUBECONFIG set, on that one
	@tests/run setup kubernetes

check: ## The quick part of it: format, clippy, dependencies
	@tests/run setup fmt clippy deny

fmt: ## Format the code
	cargo fmt --all

bench: ## Benchmarks, each beside its yardstick
	cargo bench --locked -p dbtcloud-benches

tools: ## Install what building and testing need
	@tests/setup
