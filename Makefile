# `make test` installs what is missing and runs everything that a change must pass.

CARGO ?= cargo
.DEFAULT_GOAL := help

.PHONY: help
help: ## Show this list
	@grep -hE '^[a-z-]+:.*## ' $(MAKEFILE_LIST) | sed -E 's/^([a-z-]+):.*## (.*)/  make \1\t\2/' | expand -t 18

.PHONY: run
run: ## Start a broker on 127.0.0.1:8080 with an embedded log in ./headwater-data
	$(CARGO) run --locked --release -- serve

.PHONY: setup
setup: ## Install what the tests need beside Rust
	@bash tests/setup.sh

.PHONY: test
test: setup lint ## Install what is missing, then run every check and test
	@echo "== unit, property and integration tests"
	$(CARGO) test --locked --no-fail-fast

.PHONY: lint
lint: ## Check format and lints; warnings are errors
	@echo "== format"
	$(CARGO) fmt --all --check
	@echo "== lints"
	$(CARGO) clippy --locked --all-targets -- -D warnings

.PHONY: audit
audit: ## Check licences, sources and advisories of the dependencies
	@bash tests/audit.sh

.PHONY: fuzz
fuzz: ## Feed random bytes to everything that reads those of strangers, FUZZ_SECONDS each (20)
	@bash fuzz/run.sh

.PHONY: fmt
fmt: ## Format the code
	$(CARGO) fmt --all

.PHONY: chaos
chaos: setup ## Break things for a long time: two nodes, their networks and their Redis
	HEADWATER_CHAOS_FAULTS=$${HEADWATER_CHAOS_FAULTS:-200} $(CARGO) test --locked --test it chaos:: -- --nocapture

.PHONY: soak
soak: setup ## Connect, subscribe, publish and leave 200,000 times, and look at the memory
	HEADWATER_SOAK_CYCLES=$${HEADWATER_SOAK_CYCLES:-200000} $(CARGO) test --locked --release --test it soak:: -- --nocapture --test-threads 1

.PHONY: flood
flood: setup ## Open 2,000 connections a second for nothing for 20 s, and look at the others' latency
	HEADWATER_FLOOD_SECONDS=$${HEADWATER_FLOOD_SECONDS:-20} $(CARGO) test --locked --release --test it flood:: -- --nocapture

.PHONY: bench
bench: ## Measure the hot functions, and the function library in Redis
	$(CARGO) bench --locked --bench hot
	$(CARGO) bench --locked --bench functions

.PHONY: compare
compare: ## Put the broker beside other servers and write docs/performance.md
	bash benches/compare.sh
