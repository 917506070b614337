# The commands of this project; CI uses the same. `make help` lists them.

export GOFLAGS := -tags=goolm,nolibopusfile
export CGO_ENABLED := 1

SHELL := /bin/bash
VERSION := $(shell git describe --tags --always --dirty 2>/dev/null || echo development)
LDFLAGS := -s -w -X main.version=$(VERSION)
# PACKAGES is every folder with Go code; node_modules may hold some, too.
PACKAGES := ./bridge/... ./cmd/... ./db/... ./internal/... ./matrixcall/... ./sip/... ./sockets/... ./test/... ./transcode/...

.PHONY: help
help: ## list the commands
	@grep -hE '^[a-z0-9-]+:.*##' $(MAKEFILE_LIST) | sed -E 's/:.*## /\t/' | expand -t 16

.PHONY: build
build: need-build ## build the bridge into build/bridge
	@mkdir -p build
	@scripts/make-sounds.sh
	@echo "compiling the bridge (some minutes the first time)"
	go build -ldflags "$(LDFLAGS)" -o build/bridge ./cmd/bridge

.PHONY: demo
demo: need-demo build ## a phone and a room member talk through the real bridge; OFFLINE=1 without a real homeserver
	go build -o build/demo ./internal/testbed/demo
	timeout 500 build/demo -bridge build/bridge $(if $(OFFLINE),-offline)

# Packages with goroutines run with the race detector; pure ones have none. Those on real sockets and real time judge sound,
# so nothing else runs beside them.
PURE  := trunkline/bridge/leg trunkline/bridge/menu trunkline/bridge/quota trunkline/bridge/number trunkline/matrixcall/mesh
RACED = $(filter-out trunkline/bridge $(PURE),$(shell go list ./bridge/... ./cmd/... ./db/... ./matrixcall/... ./sockets/...))
ALONE := ./bridge ./sip
# Not watched for races, since nothing in them is shared and all of them compute a lot: SQLite (C made Go by a program, and used under its
# own locks) and the arithmetic of curves and tones. It would cost a third more processor time.
UNSHARED := modernc.org/... filippo.io/edwards25519/... crypto/internal/fips140/edwards25519/... crypto/internal/fips140/nistec/... math trunkline/internal/testbed/listen
RACE  := -race $(foreach package,$(UNSHARED),-gcflags='$(package)=-race=false')
PLAIN = $(PURE) ./transcode/... ./internal/... ./test/...

.PHONY: test
test: need-test ## everything that needs no lab, with the race detector
	@echo "compiling the tests (some minutes the first time)"
	@scripts/make-sounds.sh
	@failed=0; \
	go test -timeout 280s $(PLAIN) & plain=$$!; \
	go test $(RACE) -timeout 280s $(RACED) || failed=1; \
	wait $$plain || failed=1; \
	go test $(RACE) -parallel 6 -timeout 420s $(ALONE) || failed=1; \
	exit $$failed

.PHONY: e2e
e2e: need-lab build ## real clients, real homeserver, real phone; RUN=regexp picks cases
	TRUNKLINE_BRIDGE=$(CURDIR)/build/bridge go test -tags "goolm,nolibopusfile,e2e" -count=1 -timeout 1800s -v $(if $(RUN),-run '$(RUN)') ./test/e2e
	$(if $(RUN),,TRUNKLINE_LAB=1 go test -count=1 -timeout 280s -p 1 -run 'Baresip|Sipp|Sipsak|Kamailio|Scanner|Flood|BackAtOnce|PauseOfAPlannedRestart' -v ./sip ./bridge)
	$(if $(RUN),,TRUNKLINE_SYNAPSE=1 go test -p 1 -timeout 280s ./matrixcall ./internal/testbed/...)

.PHONY: chaos
chaos: need-lab build ## kills (ROUNDS=100, SEED=1, PHASE=regexp), session timers, outages (AWAY=60 seconds) and two nodes (needs root) in the lab, with the gaps
	TRUNKLINE_BRIDGE=$(CURDIR)/build/bridge TRUNKLINE_CHAOS_ROUNDS=$(or $(ROUNDS),100) TRUNKLINE_CHAOS_SEED=$(or $(SEED),1) \
	TRUNKLINE_CHAOS_PHASE='$(PHASE)' TRUNKLINE_CHAOS_AWAY=$(or $(AWAY),60) \
	go test -tags "goolm,nolibopusfile,e2e,chaos" -count=1 -timeout 3000s -v -run '$(or $(RUN),^Test(CallsSurvive|CallsOutlive|NodesTakeOver))' ./test/e2e

.PHONY: lab
lab: need-lab build ## the same lab, kept running for you; Ctrl-C ends it
	go build -o build/lab ./test/lab/cmd/lab
	build/lab -bridge build/bridge

.PHONY: lint
lint: need-build ## vet, staticcheck, gofumpt, import table
	go vet $(PACKAGES)
	go vet -tags "goolm,nolibopusfile,e2e,chaos" ./test/...
	go tool staticcheck -tags "goolm,nolibopusfile,e2e,chaos" $(PACKAGES)
	@bad=$$(git ls-files -co --exclude-standard '*.go' | xargs go tool gofumpt -l); [ -z "$$bad" ] || { echo "not gofumpt'ed:"; echo "$$bad"; exit 1; }
	@git ls-files -co --exclude-standard '*.sh' .ci/run | xargs -n1 bash -n
	go test ./internal/archtest
	@scripts/check-unit.sh deploy/trunkline.service

.PHONY: vuln
vuln: need-build ## known vulnerabilities that our code can reach, of modules and of Go; VULNDB=file:///folder of a copy instead of vuln.go.dev
	@VULNDB='$(VULNDB)' scripts/vuln.sh $(PACKAGES)

.PHONY: bench
bench: need-build ## costs per frame, as ratios
	go test -run '^$$' -bench . -benchmem ./transcode/... ./matrixcall/... ./bridge/...

.PHONY: fuzz
fuzz: need-build ## every fuzz target for FUZZTIME (10s)
	scripts/fuzz.sh $(or $(FUZZTIME),10s)

.PHONY: docker-test
docker-test: ## build the images from nothing, compose up, a call through them (needs root)
	scripts/docker-test.sh

.PHONY: clean
clean: ## remove what was built
	rm -rf build demo-*.wav lab.json

.PHONY: need-build need-test need-demo need-lab
need-build need-test need-demo: need-%:
	@scripts/need.sh $*
need-lab: need-build
	@scripts/install-lab.sh
