SHELL := bash
.SHELLFLAGS := -euo pipefail -c
.DEFAULT_GOAL := help
MAKEFLAGS += --no-print-directory

NAME := vault-plugin-secrets-autopay
PLUGIN := $(CURDIR)/bin/$(NAME)
SIM := $(CURDIR)/bin/autopaysim

# No cgo and no paths: one file that runs on any host of its kind. No VCS stamp: the
# checksum registered in Vault depends on the source and on nothing else.
# Nor may the builder's own settings matter. Stripped (-s -w): stack traces keep their lines.
# The words after BUILD are what to call it, the file to write and the package.
BUILD := CGO_ENABLED=0 GOAMD64=v1 GOARM64=v8.0 GOWORK=off GOFLAGS=-mod=readonly scripts/gobuild.sh
FLAGS := -trimpath -buildvcs=false -ldflags '-s -w'

.PHONY: help
help: ## list these targets
	@echo "$(NAME): a Vault secrets engine for Autopay. Needs Go, git and make."
	@echo
	@sed -n 's/^\([a-z-]*\):.*## \(.*\)/\1|\2/p' Makefile | \
	  while IFS='|' read -r target what; do printf '  make %-12s %s\n' "$$target" "$$what"; done

.PHONY: build
build: ## the plugin, bin/vault-plugin-secrets-autopay
	@echo "build: the plugin, into bin/$(NAME)"
	@$(BUILD) plugin "$(PLUGIN)" . $(FLAGS)

.PHONY: sim
sim: ## the simulator of Autopay, bin/autopaysim
	@echo "sim: the simulator of Autopay, into bin/autopaysim"
	@$(BUILD) sim "$(SIM)" ./cmd/autopaysim $(FLAGS)

.PHONY: release
release: ## what a release consists of, into dist/: make release PLATFORMS="linux/amd64"
	@scripts/release.sh

.PHONY: reproduce
reproduce: ## build a release twice, from two clones, and compare the checksums
	@scripts/reproduce.sh

.PHONY: demo
demo: build sim ## a token read from a real Vault, start to finish
	@scripts/demo.sh

.PHONY: recording
recording: ## docs/demo.svg for the README, from a real run of the demo
	@scripts/recording.sh

.PHONY: dev
dev: build sim ## the same, left running for you to try
	@scripts/demo.sh --dev

.PHONY: test
test: build ## all tests: unit, model, then acceptance in real Vault servers (README has the times)
	@scripts/test.sh

.PHONY: fresh
fresh: ## what a new user does, demo and test, in a clone with empty caches; prints their times
	@scripts/fresh.sh

.PHONY: unit
unit: ## unit tests with the race detector
	@scripts/test.sh unit

MODEL_RUNS := 500
.PHONY: model
model: ## randomized model test, against the ten rules: make model MODEL_RUNS=2000
	@MODEL_RUNS=$(MODEL_RUNS) scripts/test.sh model

SUITE := acceptance
RUN :=
TESTFLAGS :=
.PHONY: acceptance
acceptance: build ## the built plugin in real Vault servers; one suite of acceptance/: make acceptance SUITE=storms RUN=TestSeal
	@RUN='$(RUN)' TESTFLAGS='$(TESTFLAGS)' scripts/test.sh $(SUITE)

.PHONY: examples
examples: build ## the examples alone, each with its consumer in real Vault servers
	@scripts/test.sh examples formats

.PHONY: formats
formats: ## the examples for Kubernetes and Prometheus, checked against the formats they are written in
	@scripts/test.sh formats

BENCH := full
.PHONY: bench
bench: build ## reads side by side in a real Vault, into docs/benchmarks.md (6 minutes); BENCH=quick tries it (2 minutes)
	@BENCH=$(BENCH) scripts/bench.sh

.PHONY: gobench
gobench: ## the engine's own part of a read, in process
	@go test -run '^$$' -bench . -benchmem .

FUZZTIME := 2m
.PHONY: fuzz
fuzz: ## each fuzz test in turn for FUZZTIME (2m): make fuzz FUZZTIME=1h
	@scripts/fuzz.sh $(FUZZTIME)

.PHONY: check
check: lint test reproduce ## lint, test, a release built twice, then a short fuzz
	@$(MAKE) fuzz FUZZTIME=10s

.PHONY: lint
lint: ## go vet, golangci-lint, gofumpt, shellcheck, actionlint, tidy go.mod
	@scripts/lint.sh

.PHONY: fmt
fmt: ## format the Go code
	@echo "fmt: gofumpt and goimports"
	@go tool -modfile=tools/go.mod golangci-lint fmt ./...

.PHONY: clean
clean: ## remove bin/ and dist/ (the cached Vault stays)
	@echo "clean: removing bin/ and dist/; the Vault built for tests stays in $${XDG_CACHE_HOME:-$$HOME/.cache}/$(NAME)"
	@rm -rf bin dist
