# `make help` lists the targets. Each sets up what it needs, and can be repeated.
#
# Nothing is written outside this folder, except by `install`, `agent`, `uninstall` and apt-get, and except for the cache: what
# took long to make and is the same for every checkout is in CNIKIT_CACHE, which is `cnikit` in the user's cache folder unless
# it is set, below names that are hashes of what it is made of. `make clean-cache` removes it.

# Where things are on the node. With DESTDIR they are put below that folder instead, to make a package or an image.
DESTDIR ?=
PREFIX ?= /usr/local
CNI_BIN_DIR ?= /opt/cni/bin
BIN_DIR ?= $(PREFIX)/bin
UNIT_DIR ?= /etc/systemd/system

PYTHON_VENV := .venv
python := $(PYTHON_VENV)/bin/python
# Before the next line, which is about this folder's own cache.
ifndef CNIKIT_CACHE
CNIKIT_CACHE := $(or $(XDG_CACHE_HOME),$(HOME)/.cache)/cnikit
endif
export CNIKIT_CACHE
export XDG_CACHE_HOME := $(CURDIR)/.cache
export MPLCONFIGDIR := $(CURDIR)/.cache/matplotlib
export PYTHONDONTWRITEBYTECODE := 1
export PYTHONPATH := $(CURDIR)

sources := $(shell find cni plugins ipam launcher -name '*.py' -o -name '*.[ch]') cli/bundle.py cli/identity.py cli/registry.py requirements.lock
cli_sources := $(shell find cni plugins ipam agent cli conf launcher -type f -not -name '*.pyc' -not -path 'cli/image/*') requirements.lock
image_sources := $(shell find cli/image -name '*.py')
# The image is for both; the one that this machine has not is emulated.
other_architecture := $(if $(filter aarch64,$(shell uname -m)),amd64,arm64)

.DEFAULT_GOAL := help
.PHONY: help demo test check format dist image bench install agent uninstall clean clean-cache lock manifests setup test-setup peers clusters

help: ## list the targets
	@sed -n 's/^\([a-z-]*\):.*## /\1\t/p' $(MAKEFILE_LIST) | while IFS="$$(printf '\t')" read -r name text; do printf '  make %-11s %s\n' "$$name" "$$text"; done

demo: dist ## two pods on one node, from ADD to DEL, then three nodes joined by VXLAN (needs root)
	@[ "$$(id -u)" -eq 0 ] || { echo "make demo makes network namespaces: call it as root" >&2; exit 1; }
	dist/cnikit demo

test: test-setup ## everything: unit, kernel and end-to-end tests (needs root)
	tests/run $(PYTEST_ARGS)

test-setup: setup dist image peers clusters
	@tests/setup/unpack-debian-peers .cache/peers/debian

check: setup ## lint, types and unit tests, in seconds
	$(PYTHON_VENV)/bin/ruff check --quiet .
	$(PYTHON_VENV)/bin/ruff format --check --quiet .
	$(PYTHON_VENV)/bin/mypy
	$(python) -m pytest -q tests/unit

format: setup ## format the Python code
	$(PYTHON_VENV)/bin/ruff format .

dist: setup dist/bin/.made dist/.made ## build the executables: dist/bin/* and dist/cnikit

image: dist dist/$(other_architecture)/.made ## write dist/image/cnikit-VERSION.tar, a container image for amd64 and arm64
	$(python) -m cli.image --output dist/image

bench: dist peers ## measure against the Go plugins; writes the tables and plots of README.md and docs/
	@tests/setup/install-debian-packages test
	CNIKIT_TEST_BIN="$(CURDIR)/dist/bin" CNIKIT_TEST_PEERS="$(CURDIR)/.cache/peers" $(python) tests/bench/run.py

install: dist ## put the plugins into CNI_BIN_DIR (default /opt/cni/bin), safely on a running node
	$(python) -m cli.install --root "$(DESTDIR)" dist/bin "$(CNI_BIN_DIR)"

agent: dist ## put cnikit into BIN_DIR (default PREFIX/bin, /usr/local/bin), and its systemd units into UNIT_DIR
	$(python) -m cli.install --root "$(DESTDIR)" --command --units "$(UNIT_DIR)" dist "$(BIN_DIR)"

uninstall: setup ## take plugins, cnikit and units off again; not while pods are attached, but with FORCE=1 (docs/uninstall.md)
	$(python) -m cli.uninstall --root "$(DESTDIR)" --plugins "$(CNI_BIN_DIR)" --command "$(BIN_DIR)" --units "$(UNIT_DIR)" $(if $(FORCE),--force)

clean: ## remove everything that make has created here
	[ ! -d .cache/go ] || chmod -R u+w .cache/go
	rm -rf build cnikit.egg-info dist .cache .venv

clean-cache: ## remove what is ours in CNIKIT_CACHE, which all checkouts of this user share
	[ -n "$(CNIKIT_CACHE)" ] && cd "$(CNIKIT_CACHE)" 2>/dev/null || exit 0; rm -rf image debian-* kubernetes-* node-programs-* node-image-* *.lock; rmdir "$(CNIKIT_CACHE)" 2>/dev/null || true

lock: setup ## rewrite requirements.lock with the newest versions of what pyproject.toml names
	tests/setup/write-lock

manifests: setup ## rewrite conf/kubernetes/cnikit*.yaml from the folders beside them
	$(python) -m tests.artefacts.manifests

setup:
	@tests/setup/install-debian-packages build
	@tests/setup/install-python-packages $(PYTHON_VENV)

peers: setup
	@tests/setup/install-go-peers .cache/peers

clusters: setup
	@[ "$$(id -u)" -eq 0 ] || { echo "make test makes network namespaces: call it as root" >&2; exit 1; }
	@tests/setup/install-debian-packages test
	@$(python) -m tests.artefacts

# A source that changes during a build is newer than what was built.
dist/bin/.made: $(sources) | setup
	began=$$(date +%s.%N) && $(python) -m cli.bundle --output dist/bin && touch -d "@$$began" $@

dist/.made: $(cli_sources) | setup
	began=$$(date +%s.%N) && $(python) -m cli.bundle --command --output dist && touch -d "@$$began" $@

dist/$(other_architecture)/.made: $(sources) $(cli_sources) $(image_sources) | setup
	@tests/setup/install-debian-packages image
	began=$$(date +%s.%N) && $(python) -m cli.image.foreign --platform linux/$(other_architecture) --output $(@D) && touch -d "@$$began" $@
