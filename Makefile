# Targets that users and CI share. `make test` runs everything that must hold.
GO          ?= go
STATICCHECK ?= honnef.co/go/tools/cmd/staticcheck@v0.8.2
FUZZTIME    ?= 30s
BENCHTIME   ?= 300ms
VERSION     ?= $(shell git describe --tags --always --dirty 2>/dev/null || echo unknown)

# Newer ones want modules that are not all on the public proxy.
NFPM        ?= github.com/goreleaser/nfpm/v2/cmd/nfpm@v2.43.0
# Packages want a number first, and no hyphen.
PACKAGE_VERSION ?= $(shell echo '$(VERSION)' | sed -E 's/^v//; /^[0-9]+\.[0-9]/!s/^/0.0.0~/; s/-/./g')

.PHONY: share packages build install test unit lint fuzz fuzz-short bench deps clean

build: ## build ./bin/weir
	CGO_ENABLED=0 $(GO) build -trimpath -ldflags "-X main.version=$(VERSION)" -o bin/weir ./cmd/weir

share: build ## man pages and completions in ./bin/share
	rm -rf bin/share
	bin/weir man bin/share/man/man1
	mkdir -p bin/share/bash-completion/completions bin/share/zsh/site-functions bin/share/fish/vendor_completions.d
	bin/weir completion bash >bin/share/bash-completion/completions/weir
	bin/weir completion zsh >bin/share/zsh/site-functions/_weir
	bin/weir completion fish >bin/share/fish/vendor_completions.d/weir.fish

packages: share ## deb and rpm in ./bin
	for kind in deb rpm; do \
		ARCH=$$($(GO) env GOARCH) PACKAGE_VERSION='$(PACKAGE_VERSION)' CGO_ENABLED=0 $(GO) run -trimpath $(NFPM) package -f deploy/nfpm.yaml -p $$kind -t bin/ || exit 1; \
	done

install: share ## binary, man pages, completions, units and configuration below DESTDIR
	install -D -m 0755 bin/weir $(DESTDIR)/usr/bin/weir
	install -D -m 0644 deploy/weir.service $(DESTDIR)/usr/lib/systemd/system/weir.service
	install -D -m 0644 deploy/weir.socket $(DESTDIR)/usr/lib/systemd/system/weir.socket
	cd bin/share && find . -type f -exec install -D -m 0644 {} $(abspath $(DESTDIR)/usr/share)/{} \;
	test -e $(DESTDIR)/etc/weir/weir.conf || install -D -m 0644 deploy/weir.conf $(DESTDIR)/etc/weir/weir.conf

test: deps lint unit fuzz-short ## everything: linters, race detector, real senders, short fuzzing

unit: ## all tests with the race detector, real senders included
	$(GO) test -race -timeout 14m ./...

lint: ## gofmt, go vet, staticcheck
	@out=$$(gofmt -l cmd forward buffer netopt internal); if [ -n "$$out" ]; then echo "gofmt -w these files:"; echo "$$out"; exit 1; fi
	$(GO) vet ./...
	$(GO) run $(STATICCHECK) ./...

# Go's fuzzer now and then takes the end of its own time for a failure: "context
# deadline exceeded", without an input that failed. That alone is no failure.
fuzz: ## each fuzz target for FUZZTIME
	@set -e; log=$$(mktemp); trap 'rm -f $$log' EXIT; for pkg in $$($(GO) list ./...); do \
		for target in $$($(GO) test -list '^Fuzz' $$pkg | grep '^Fuzz' || true); do \
			echo "fuzzing $$pkg $$target for $(FUZZTIME)"; \
			$(GO) test -run '^$$' -fuzz "^$$target\$$" -fuzztime $(FUZZTIME) $$pkg 2>&1 | tee $$log; \
			grep -q '^ok' $$log || { grep -q '^    context deadline exceeded' $$log && ! grep -q 'Failing input' $$log; } || exit 1; \
		done; \
	done

fuzz-short: ## each fuzz target for a few seconds
	@$(MAKE) --no-print-directory fuzz FUZZTIME=3s

# Peers of the table, if they are installed; nothing fetches them.
FLUENTD     ?= $(shell command -v fluentd)
FLUENTBIT   ?= $(shell command -v fluent-bit)

# About six minutes on two cores, a good minute more for each of these peers.
# The other one is a module of its own.
bench: build ## microbenchmarks, then the end-to-end table of docs/performance.md
	$(GO) test -run '^$$' -bench 'Scan|Session|Commit|AppendValue|Patch|Gunzip|^BenchmarkFile$$' -benchmem -benchtime $(BENCHTIME) ./forward ./buffer ./internal/eventjson ./internal/output ./internal/load ./internal/bench
	cd internal/bench/otel && $(GO) build -o ../../../bin/otel .
	$(GO) build -o bin/bench ./internal/bench
	bin/bench -weir bin/weir -otel bin/otel -fluentd '$(FLUENTD)' -fluentbit '$(FLUENTBIT)'

deps: ## what the tests need beside Go, by name from Debian and npm, and Go's modules
	@GO='$(GO)' STATICCHECK='$(STATICCHECK)' NFPM='$(NFPM)' ./internal/e2e/deps.sh

clean:
	rm -rf bin weir-data
