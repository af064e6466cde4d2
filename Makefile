# All commands of a checkout. On a Debian machine with git and make, `make demo` and `make test` install what they need.
SHELL := /bin/bash
.SHELLFLAGS := -euo pipefail -c
.DEFAULT_GOAL := help
MAKEFLAGS += --no-print-directory
export PATH := $(CURDIR)/.venv/bin:$(PATH)
export ANSIBLE_CONFIG := $(CURDIR)/ansible.cfg
# Gives the test labs of two checkouts on one machine different names.
CHECKOUT := $(shell pwd | sha256sum | cut -c1-4)
# What is built outside of the checkout.
CACHE := $(or $(GPUFLEET_CACHE),$(HOME)/.cache/gpufleet-inference)
# Tests often wait: two processors have time for three. Each takes whole files: what the tests of a file share is made once.
THREE := -n 3 --dist loadfile
# Each process of the fleet tests has a lab. The longest files come first.
FLEET ?= $(THREE) --no-loadscope-reorder
STAGES := lint sanity unit lowest fleet molecule

include $(wildcard tests/lab/lab.mk)

.PHONY: help link deps generate wheel-table docs $(STAGES) platforms test demo bench clean

help: ## list all targets
	@awk -F ':.*## ' '/^[a-z-]+:.*## / {printf "  make %-12s %s\n", $$1, $$2}' $(MAKEFILE_LIST)

link: ## link the collection into .collections, where Ansible finds it in this checkout (installs nothing)
	@mkdir -p .collections/ansible_collections/gpufleet
	@[ -e .collections/ansible_collections/gpufleet/inference/galaxy.yml ] || \
	ln -sfn ../../.. .collections/ansible_collections/gpufleet/inference

deps: link ## install missing Debian packages, the tools in .venv, and the link to the collection
	@.ci/deps cores $(BROWSER)

generate: deps ## write documentation, role specs, tasks, defaults and README tables from the option tables
	python tests/generate.py

wheel-table: deps ## write the table of the engines' wheels from the package index that pip is configured for
	python tests/wheel_table.py

docs: deps ## build the documentation site; any warning is an error
	python docs/site/build.py $(CACHE)/docs-$(CHECKOUT)

lint: deps docs ## check formatting, style and types of Python, YAML, playbooks, roles, changelog fragments; build the docs
	ruff format --check --output-format concise .
	ruff check .
	mypy
	yamllint --strict .
	ansible-lint --offline --profile production
	reuse lint --quiet
	ansible-builder introspect .collections
	ansible-builder create --file docs/execution-environment.yml --context $(CACHE)/ee-$(CHECKOUT)
	antsibull-changelog lint
	antsibull-docs lint-collection-docs --plugin-docs --validate-collection-refs self .

unit: BROWSER = browser
unit: deps ## run the unit tests on the newest ansible-core, with coverage of plugins/, and pages in a browser
	@newest=.venv-next/bin/pytest; [ -x $$newest ] || newest=pytest; set -x; $$newest -q $(THREE) --cov --cov-fail-under=93
	pytest -q tests/browser

# The tests that reach Ansible. The others, of module_utils and of the lab, cannot fail on one ansible-core alone.
LOWEST = $(filter-out %/module_utils/,$(wildcard tests/unit/test_*.py tests/unit/plugins/*/)) \
$(shell grep -rlE '(from|import) ansible[. ]|toolbox\.entry' --include='test_*.py' tests/unit/plugins/module_utils)
lowest: deps ## run the unit tests that reach Ansible on the lowest ansible-core
	@if [ -d .venv-floor ]; then set -x; nice .venv-floor/bin/pytest -q $(THREE) $(LOWEST); \
	else echo "0 passed, 0 failed, 1 skipped (lowest ansible-core: no Python 3.10 to 3.12 here)"; fi

sanity: deps ## run ansible-test sanity
	python tests/sanity/run.py

fleet: deps ## test modules, roles and playbooks on lab hosts, over SSH (KEEP_LAB=1 keeps the lab running)
	GPUFLEET_LAB=test-$(CHECKOUT) pytest -v $(FLEET) --durations=15 tests/fleet

# Ollama's server is built here, and a program of this machine does not start on the older glibc of Debian 11.
SERVICES := tests/fleet/test_systemd_override.py::test_the_ladder tests/fleet/test_systemd_override_faults.py::test_port_taken
ENGINES := tests/fleet/test_ollama_life.py::test_uninstalling_brings_back_what_a_person_had_installed \
tests/fleet/test_site.py::test_before_and_after
platforms: deps ## run some fleet tests on Debian 11 and 13: install, change, verify, roll back, uninstall
	GPUFLEET_RELEASE=bullseye GPUFLEET_LAB=debian11-$(CHECKOUT) FLEET_HOSTS=1 pytest -v $(SERVICES)
	GPUFLEET_RELEASE=trixie GPUFLEET_LAB=debian13-$(CHECKOUT) FLEET_HOSTS=2 pytest -v $(SERVICES) $(ENGINES)

molecule: deps ## run the molecule scenarios of the roles on a lab of their own
	python tests/scenarios.py molecule-$(CHECKOUT)

# Fleet tests and scenarios mostly wait for services, so their four labs work at the same time. What they leave is for the
# lowest ansible-core.
test: deps ## run all stages above, the fastest first; stop at the first failure
	@python tests/run.py lint+sanity unit fleet+molecule+lowest

demo: deps ## boot a local fleet of three GPU hosts, configure it with site.yml, print the results
	@$(MAKE) lab-up HOSTS=3
	@python tests/lab/demo.py

# The tools that site.yml is compared with stay out of .venv.
RIVALS = $(CACHE)/rivals
BENCH ?=
bench: deps ## compare site.yml with other tools on four lab hosts, and write docs/benchmarks.md (BENCH="--hosts 16 --jobs change first")
	@[ -x $(RIVALS)/bin/pyinfra ] || { python -m venv $(RIVALS) && $(RIVALS)/bin/pip install -q pyinfra mitogen; }
	GPUFLEET_LAB=bench-$(CHECKOUT) python benchmarks/converge.py --write --pyinfra $(RIVALS)/bin/pyinfra \
	--mitogen $$($(RIVALS)/bin/python -c 'import ansible_mitogen.plugins.strategy as s; print(s.__path__[0])') $(BENCH)

clean: ## remove the files that tests and tools left in the checkout (keeps .venv and the cache)
	rm -rf .pytest_cache .ruff_cache .mypy_cache .hypothesis .ansible .coverage* htmlcov tests/output ./*.tar.gz
	find . -name __pycache__ -not -path './.venv*' -prune -exec rm -rf {} +
