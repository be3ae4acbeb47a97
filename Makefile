# The two commands of the README are demo and test; the others are parts of them.
.PHONY: demo test build setup lint race fuzz-smoke soak bench docs check-docs

GO ?= go
FUZZTIME ?= 5s

demo: build ## recover a damaged embedded cluster, for real, and show it
	@./bin/cbdemo --cbrecovery bin/cbrecovery

test: export CBPUMP_NODESDK = required
test: setup ## install what tests need and run everything
	$(GO) build ./...
	$(GO) vet ./...
	cd examples/sink-plugin && $(GO) vet ./... && $(GO) test ./...
	$(GO) test ./...

build: ## the commands into bin/
	@mkdir -p bin
	$(GO) build -o bin/ ./cmd/...

setup:
	@./scripts/setup.sh

lint: ## formatting, vet, static checks, layer rules, tidy modules
	@./scripts/lint.sh

race: setup ## the tests under the race detector
	@./scripts/race.sh

fuzz-smoke: ## every fuzz target for FUZZTIME
	@./scripts/fuzz-smoke.sh $(FUZZTIME)

bench: build ## each pair against its limit, into docs/performance.md; BENCH holds flags
	$(GO) run ./bench --out docs $(BENCH)
