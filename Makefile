SHELL := bash
.SHELLFLAGS := -euo pipefail -c
.DEFAULT_GOAL := help
MAKEFLAGS += --no-print-directory

NAME := vault-plugin-secrets-autopay
PLUGIN := $(CURDIR)/bin/$(NAME)
SIM := $(CURDIR)/bin/autopaysim
LINT := go tool -modfile=tools/go.mod golangci-lint
SCRIPTS := .ci/run $(wildcard scripts/*.sh examples/*/*.sh)

# No cgo and no paths: one file that runs on any host of its kind. No VCS stamp: the
# checksum registered in Vault depends on the source and on nothing else.
# Nor may the builder's own settings matter. Stripped (-s -w): stack traces keep their lines.
BUILD := CGO_ENABLED=0 GOAMD64=v1 GOARM64=v8.0 GOWORK=off GOFLAGS=-mod=readonly \
  go build -trimpath -buildvcs=false -ldflags '-s -w'

.PHONY: help
help: ## list these targets
	@echo "$(NAME): a Vault secrets engine for Autopay. Needs Go, git and make."
	@echo
	@sed -n 's/^\([a-z-]*\):.*## \(.*\)/\1|\2/p' Makefile | \
	  while IFS='|' read -r target what; do printf '  make %-12s %s\n' "$$target" "$$what"; done

.PHONY: build
build: ## the plugin, bin/vault-plugin-secrets-autopay
	@echo "build: the plugin, into bin/$(NAME)"
	@$(BUILD) -o "$(PLUGIN)" .

.PHONY: sim
sim: ## the stand-in for Autopay, bin/autopaysim
	@echo "sim: the stand-in for Autopay, into bin/autopaysim"
	@$(BUILD) -o "$(SIM)" ./cmd/autopaysim

.PHONY: release
release: ## what a release consists of, into dist/: make release PLATFORMS="linux/amd64"
	@scripts/release.sh

.PHONY: reproduce
reproduce: ## a release built twice, from two clones: the same checksums?
	@scripts/reproduce.sh

.PHONY: demo
demo: build sim ## a token read from a real Vault, start to finish, in about a minute
	@scripts/demo.sh

.PHONY: dev
dev: build sim ## the same, left running for you to try
	@scripts/demo.sh --dev

.PHONY: test
test: ## all tests: unit, model check, then acceptance in real Vault servers
	@echo "test: unit tests, the model check, then acceptance tests in real Vault servers."
	@echo "      The first run builds Vault (about 4 minutes on 2 cores) and what checks the examples (6 more), cached afterwards."
	@$(MAKE) unit
	@$(MAKE) model
	@$(MAKE) acceptance

# The race detector needs a C compiler. Where there is none the tests still run.
.PHONY: unit
unit: ## unit tests with the race detector
	@cc=$$(go env CC); race=(-race); export CGO_ENABLED=1; \
	if ! type -P "$${cc%% *}" >/dev/null; then \
	  echo "unit: no C compiler ($$cc), so no race detector; install gcc to have it" >&2; \
	  if [ -n "$${CI-}" ]; then exit 1; fi; \
	  race=(); CGO_ENABLED=0; \
	fi; \
	echo "unit: go test $${race[*]-} ./..."; \
	go test $${race[@]+"$${race[@]}"} ./...

MODEL_RUNS := 500
.PHONY: model
model: ## random lives of a mount, held against the ten rules: make model MODEL_RUNS=2000
	@echo "model: $(MODEL_RUNS) random runs of 30 days each, about 10 a second on 2 cores"
	@go test -count=1 -v -timeout 30m -run '^TestModel$$' . -model.runs=$(MODEL_RUNS) | grep -vE '^ *(=== |--- PASS)'

# More tests at a time than processors, for the long ones mostly wait.
ACCEPTANCE := go test -tags acceptance -count=1 -parallel 4 -timeout 30m -v
# Of what passed, what was measured; where something failed, all that was said.
SHOW = >"$(CURDIR)/bin/acceptance.log" 2>&1 && grep -E 'FIGURE|^ok' "$(CURDIR)/bin/acceptance.log" || \
  { grep -vE '^ *(=== |--- PASS)' "$(CURDIR)/bin/acceptance.log"; exit 1; }

# go test shows nothing of what a test skips.
define SAY_MISSING
for tool in node python3 curl jq; do \
  type -P $$tool >/dev/null || echo "$$tool is missing: its example is NOT RUN (Debian: apt-get install nodejs python3 curl jq)" >&2; \
done; \
type -P terraform >/dev/null || echo "terraform is missing: its example is NOT RUN, only the calls that it makes" >&2
endef

.PHONY: acceptance
acceptance: build ## the built plugin in real Vault servers
	@echo "acceptance: the built plugin in real Vault servers on loopback"
	@$(SAY_MISSING)
	@vault=$$(scripts/vault.sh); VAULT_BIN="$$vault" PLUGIN_BIN="$(PLUGIN)" $(ACCEPTANCE) ./acceptance/ $(SHOW)
	@$(MAKE) formats

.PHONY: examples
examples: build ## the examples alone, each in real Vault servers
	@echo "examples: each with its consumer, in real Vault servers on loopback"
	@$(SAY_MISSING)
	@vault=$$(scripts/vault.sh); VAULT_BIN="$$vault" PLUGIN_BIN="$(PLUGIN)" $(ACCEPTANCE) -run '^TestExample' ./acceptance/ $(SHOW)
	@$(MAKE) formats

# In modules of their own, for their dependencies meet nobody else's.
.PHONY: formats
formats: ## the examples for Kubernetes and Prometheus, held to the formats of those
	@echo "formats: Kubernetes manifests, Prometheus configuration, alerts and dashboard (their first build takes a few minutes)"
	@go -C acceptance/manifests test -count=1 ./...
	@go -C acceptance/prometheus test -count=1 ./...

# On Linux only: it reads /proc. A machine with anything else to do spoils it.
BENCH := full
BENCH_SOAK :=
.PHONY: bench
bench: build ## reads side by side in a real Vault, into docs/benchmarks.md (25 minutes); BENCH=quick tries it (3 minutes)
	@out=$(CURDIR)/docs; [ "$(BENCH)" = full ] || out=$(CURDIR)/bin/bench; \
	echo "bench: $(BENCH), into $$out"; \
	vault=$$(scripts/vault.sh); \
	VAULT_BIN="$$vault" PLUGIN_BIN="$(PLUGIN)" BENCH=$(BENCH) BENCH_SOAK=$(BENCH_SOAK) BENCH_OUT="$$out" \
	  go test -tags 'acceptance bench' -count=1 -v -timeout 2h -run '^TestBench$$' ./acceptance/

.PHONY: gobench
gobench: ## the engine's own part of a read, in process
	@go test -run '^$$' -bench . -benchmem .

# An input that fails is kept in testdata/fuzz, and from then on is a unit test. Inputs that
# only cover something new are hardly made smaller: that takes longer than it is worth.
FUZZTIME := 2m
.PHONY: fuzz
fuzz: ## each fuzz test in turn for FUZZTIME (2m): make fuzz FUZZTIME=1h
	@targets=$$(go test -list '^Fuzz' . | grep '^Fuzz'); \
	for target in $$targets; do \
	  echo "fuzz: $$target for $(FUZZTIME)"; \
	  go test -run '^$$' -fuzz "^$$target$$" -fuzztime $(FUZZTIME) -fuzzminimizetime 10x .; \
	done

.PHONY: check
check: lint test reproduce ## what CI runs: lint, test, a release built twice, then a short fuzz
	@$(MAKE) fuzz FUZZTIME=10s

.PHONY: lint
lint: ## go vet, golangci-lint, gofumpt, shellcheck, actionlint, tidy go.mod
	@echo "lint: golangci-lint, with go vet and gofumpt (its own first build takes a minute or two)"
	@$(LINT) run ./...
	@echo "lint: shellcheck"
	@if ! type -P shellcheck >/dev/null; then echo "lint: shellcheck is missing: apt-get install shellcheck" >&2; exit 1; fi
	@shellcheck $(SCRIPTS)
	@echo "lint: actionlint"
	@go tool -modfile=tools/release/go.mod actionlint
	@echo "lint: go.mod is tidy"
	@go mod tidy -diff
	@go -C tools mod tidy -diff
	@go -C tools/release mod tidy -diff
	@for module in manifests prometheus terraform consultemplate; do go -C acceptance/$$module mod tidy -diff; done
	@go -C acceptance/consultemplate mod tidy -diff -modfile=newest.mod

.PHONY: fmt
fmt: ## format the Go code
	@echo "fmt: gofumpt and goimports"
	@$(LINT) fmt ./...

.PHONY: clean
clean: ## remove bin/ and dist/ (the cached Vault stays)
	@echo "clean: removing bin/ and dist/; the Vault built for tests stays in $${XDG_CACHE_HOME:-$$HOME/.cache}/$(NAME)"
	@rm -rf bin dist
