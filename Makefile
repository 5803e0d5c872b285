# Everything a user needs is `make run` and `make test`; both work on a fresh
# machine, as root, with no terminal.

CARGO ?= cargo
# Where cargo puts the binary; cargo itself reads the same variable, and the
# target's name is in .cargo/config.toml.
TARGET := $(or $(CARGO_TARGET_DIR),target)
NEAP := $(TARGET)/x86_64-unknown-linux-gnu/release/neap

.PHONY: help build setup run test check

help:
	@echo 'make run    set up what is missing, then run the kernel hmm-tests in a guest'
	@echo 'make test   set up what is missing, then run every test'
	@echo 'make check  formatting and lints'
	@echo 'make setup  only the set-up: packages, guest kernel, initramfs'
	@echo 'make build  only the binary, $(NEAP)'

build:
	$(CARGO) build --release --locked

setup: build
	$(NEAP) setup

run: setup
	$(NEAP) hmm-tests

test: setup
	$(CARGO) test --workspace --release --locked
	$(CARGO) test -p neap-memory --features loom --test loom --release --locked

check:
	$(CARGO) fmt --all -- --check
	$(CARGO) clippy --workspace --all-targets --locked -- -D warnings
