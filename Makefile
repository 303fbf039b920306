# RushKV's commands. `make help` lists them.
#
# Building and `make test` need a Rust toolchain and nothing else. Packages and system tests need
# what `make test-deps` installs.

CARGO ?= cargo
# release: optimised, what is packaged. dev: builds faster, runs slower.
MODE  ?= release
# Tools built from source and the Debian root of the system tests are kept here, outside the clone.
CACHE ?= $(or $(XDG_CACHE_HOME),$(HOME)/.cache)/rushkv

CARGO_DEB_VERSION          := 3.8.0
CARGO_GENERATE_RPM_VERSION := 0.21.1
CARGO_FUZZ_VERSION         := 0.13.1

# The tests that Cargo.toml names need the feature system-tests, and more than the toolchain. With
# FEATURES=system-tests the others are built with it, too, so that both share one build of the crate.
SYSTEM_TESTS  := $(shell sed -n '/^\[\[test\]\]/{n;s/^name = "\(.*\)"/\1/p}' Cargo.toml)
TEST_TARGETS  := --lib --bins --examples $(patsubst tests/%.rs,--test %,\
	$(filter-out $(SYSTEM_TESTS:%=tests/%.rs),$(sort $(wildcard tests/*.rs))))
TEST_FEATURES := $(if $(FEATURES),--features $(FEATURES))

BINARIES := rushkv rushkvctl rushkv-cli
TARGET   := $(or $(CARGO_TARGET_DIR),target)
PACKAGES := target/packages
BUILT    := $(TARGET)/$(if $(filter dev,$(MODE)),debug,$(MODE))
PROFILE  := --profile $(MODE)
FUZZ_TARGET := $(abspath $(TARGET))/fuzz

CARGO_DEB          := $(CACHE)/tools/cargo-deb-$(CARGO_DEB_VERSION)/bin/cargo-deb
CARGO_GENERATE_RPM := $(CACHE)/tools/cargo-generate-rpm-$(CARGO_GENERATE_RPM_VERSION)/bin/cargo-generate-rpm
CARGO_FUZZ         := $(CACHE)/tools/cargo-fuzz-$(CARGO_FUZZ_VERSION)/bin/cargo-fuzz

# Debian packages that packaging and the system tests use; and Node.js with npm, which come in one package
# elsewhere.
DEBS := binutils cpio debootstrap dpkg-dev iproute2 lintian mandoc nftables procps prometheus python3 \
        python3-venv rpm rpmlint shellcheck systemd systemd-container util-linux e2fsprogs libfaketime

.DEFAULT_GOAL := build
.SUFFIXES:
.PHONY: help run build server cli proto test test-deps test-system torture ledger bench-peers simulate fuzz lint fmt deb rpm stage
.PHONY: clean

help: ## list the commands
	@sed -n 's/^\([a-z-]*\):.*## \(.*\)/  make \1|\2/p' $(MAKEFILE_LIST) | awk -F'|' '{ printf "%-20s %s\n", $$1, $$2 }'
	@echo "  MODE=dev builds unoptimised, MODE=release (the default of build) as packaged"

run: ## build (dev, a few minutes the first time) and run one node on localhost:8080, data in ./data/node1
	@$(MAKE) --no-print-directory build MODE=dev
	@echo "Starting on localhost:8080, data in ./data/node1; 'ready' below means that it serves, Ctrl-C stops it."
	@echo "In another terminal: ./rushkv-cli put greeting hello && ./rushkv-cli get greeting"
	@exec ./rushkv -id=node1 -addr=localhost -port=8080 -data=./data/node1

build: ## build ./rushkv ./rushkvctl ./rushkv-cli
	$(CARGO) build --locked $(PROFILE) --bins
	@$(call place,$(BINARIES))

server: ## build ./rushkv only
	$(CARGO) build --locked $(PROFILE) --bin rushkv
	@$(call place,rushkv)

cli: ## build ./rushkv-cli only
	$(CARGO) build --locked $(PROFILE) --bin rushkv-cli
	@$(call place,rushkv-cli)

# A hard link where the file system allows it: dev binaries are large.
place = for name in $(1); do ln -f $(BUILT)/$$name ./$$name 2>/dev/null || cp -f $(BUILT)/$$name ./$$name; done

proto: ## write proto/rushkv.pb, the descriptor set that grpcurl -protoset takes
	$(CARGO) run --locked --quiet --bin rushkv -- --generate protoset > proto/rushkv.pb.part
	@mv -f proto/rushkv.pb.part proto/rushkv.pb
	@echo "proto/rushkv.pb: grpcurl -plaintext -protoset proto/rushkv.pb localhost:8080 list"

test: ## run the tests that need the toolchain only
	@status=0; say() { echo "$$*"; "$$@" || status=1; }; \
	if $(CARGO) nextest --version >/dev/null 2>&1; then \
		say $(CARGO) nextest run --locked $(TEST_FEATURES) $(TEST_TARGETS); \
	else \
		say $(CARGO) test --locked --no-fail-fast $(TEST_FEATURES) $(TEST_TARGETS); \
	fi; \
	say $(CARGO) test --locked $(TEST_FEATURES) --doc; exit $$status

lint: ## formatting and clippy, warnings denied
	$(CARGO) fmt --check
	$(CARGO) clippy --locked --all-targets --all-features -- -D warnings

fmt: ## format the code
	$(CARGO) fmt

test-deps: ## install the Debian packages of the packaging and system tests (as root)
	@set -eu; missing=; for p in $(DEBS); do \
		dpkg-query -W -f='$${Status}' $$p 2>/dev/null | grep -q 'ok installed' || missing="$$missing $$p"; done; \
	for c in node npm; do command -v $$c >/dev/null || missing="$$missing nodejs npm"; done; \
	if [ -z "$$missing" ]; then echo "test-deps: all there"; else \
		export DEBIAN_FRONTEND=noninteractive RUNLEVEL=1; \
		echo "test-deps: installing$$missing"; apt-get -qq update; \
		apt-get -qq install -y --no-install-recommends -o DPkg::Lock::Timeout=120 $$missing >/dev/null; fi

test-system: deb rpm ## run the system tests (as root, after make test-deps)
	CACHE=$(CACHE) CARGO=$(CARGO) tests/system/run

LEDGER ?= $(CURDIR)/target/ledger.jsonl

torture: ## faults by the dice and checked histories, for MINUTES (as root, after make test-deps)
	RUSHKV_COMMIT=$$(git rev-parse --short HEAD) RUSHKV_TORTURE_MINUTES=$(or $(MINUTES),10) RUSHKV_LEDGER=$(LEDGER) \
		$(CARGO) test --locked --features system-tests --test torture under_faults -- --nocapture --test-threads=2; \
		code=$$?; tests/ledger_summary.py $(LEDGER); exit $$code

ledger: ## what make torture has tried so far, as a table
	@tests/ledger_summary.py $(LEDGER)

bench-peers: build ## measure beside ETCD and REDIS (paths of their binaries) and a gRPC echo
	ETCD=$(ETCD) REDIS=$(REDIS) benches/compare

simulate: ## run SEEDS simulated clusters (500), from seed FROM (1) on
	RUSHKV_SIM_SEEDS=$(or $(SEEDS),500) RUSHKV_SIM_FROM=$(or $(FROM),1) \
		$(CARGO) test --locked --profile simulate $(TEST_FEATURES) --lib simulation::tests::seeds -- --nocapture

# Coverage needs flags that a stable compiler takes only so. Without a sanitizer: the crate has no unsafe code,
# and is three times as fast.
fuzz: $(CARGO_FUZZ) ## run each decoder under libFuzzer for SECONDS, or those of NAMES (needs a C++ compiler)
	cd fuzz && RUSTC_BOOTSTRAP=1 $(CARGO_FUZZ) build --fuzz-dir . --sanitizer none --target-dir $(FUZZ_TARGET)
	RUSHKV_FUZZER=$$(ls $(FUZZ_TARGET)/*/release/decoder) fuzz/run $(or $(SECONDS),60) $(NAMES)

stage: build
	packaging/stage $(BUILT) $(PACKAGES)/stage

deb: stage $(CARGO_DEB) ## build the .deb into target/packages
	$(CARGO_DEB) --no-build --no-strip --quiet --output $(PACKAGES)/
	@ls $(PACKAGES)/*.deb

rpm: stage $(CARGO_GENERATE_RPM) ## build the .rpm into target/packages
	$(CARGO_GENERATE_RPM) --auto-req builtin --output $(PACKAGES)/
	@ls $(PACKAGES)/*.rpm

# Built from the registry at an exact version, once: some minutes each.
$(CACHE)/tools/%/bin/cargo-deb $(CACHE)/tools/%/bin/cargo-generate-rpm $(CACHE)/tools/%/bin/cargo-fuzz:
	$(CARGO) install --locked --quiet --root $(CACHE)/tools/$* $(shell echo $* | sed 's/-\([0-9.]*\)$$/@\1/')

clean: ## remove what was built (./data stays)
	$(CARGO) clean
	rm -f $(BINARIES) proto/rushkv.pb proto/rushkv.pb.part
