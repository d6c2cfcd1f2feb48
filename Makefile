# Targets that users and CI share. `make test` runs everything that must hold.
GO          ?= go
STATICCHECK ?= honnef.co/go/tools/cmd/staticcheck@v0.8.2
FUZZTIME    ?= 30s
BENCHTIME   ?= 300ms
VERSION     ?= $(shell git describe --tags --always --dirty 2>/dev/null || echo unknown)

.PHONY: build install test unit lint fuzz fuzz-short bench deps clean

build: ## build ./bin/weir
	CGO_ENABLED=0 $(GO) build -trimpath -ldflags "-X main.version=$(VERSION)" -o bin/weir ./cmd/weir

install: build ## binary, units and configuration below DESTDIR
	install -D -m 0755 bin/weir $(DESTDIR)/usr/bin/weir
	install -D -m 0644 deploy/weir.service $(DESTDIR)/usr/lib/systemd/system/weir.service
	install -D -m 0644 deploy/weir.socket $(DESTDIR)/usr/lib/systemd/system/weir.socket
	test -e $(DESTDIR)/etc/weir/weir.conf || install -D -m 0644 deploy/weir.conf $(DESTDIR)/etc/weir/weir.conf

test: deps lint unit fuzz-short ## everything: linters, race detector, real senders, short fuzzing

unit: ## all tests with the race detector, real senders included
	$(GO) test -race -timeout 10m ./...

lint: ## gofmt, go vet, staticcheck
	@out=$$(gofmt -l cmd forward buffer netopt internal); if [ -n "$$out" ]; then echo "gofmt -w these files:"; echo "$$out"; exit 1; fi
	$(GO) vet ./...
	$(GO) run $(STATICCHECK) ./...

fuzz: ## each fuzz target for FUZZTIME
	@set -e; for pkg in $$($(GO) list ./...); do \
		for target in $$($(GO) test -list '^Fuzz' $$pkg | grep '^Fuzz' || true); do \
			echo "fuzzing $$pkg $$target for $(FUZZTIME)"; \
			$(GO) test -run '^$$' -fuzz "^$$target\$$" -fuzztime $(FUZZTIME) $$pkg; \
		done; \
	done

fuzz-short: ## each fuzz target for a few seconds
	@$(MAKE) --no-print-directory fuzz FUZZTIME=3s

# About five minutes on two cores. The peer is a module of its own.
bench: build ## microbenchmarks, then the end-to-end table of docs/performance.md
	$(GO) test -run '^$$' -bench 'Scan|Session|Commit|JSON|Patch' -benchmem -benchtime $(BENCHTIME) ./forward ./buffer ./internal/eventjson ./internal/load
	cd internal/bench/otel && $(GO) build -o ../../../bin/otel .
	$(GO) build -o bin/bench ./internal/bench
	bin/bench -weir bin/weir -otel bin/otel

deps: ## what the tests need beside Go, by name from Debian and npm
	@./internal/e2e/deps.sh

clean:
	rm -rf bin weir-data
