# Everything a checkout can do. On a Debian machine with git and make, `make demo` and `make test` install what they need.
SHELL := /bin/bash
.SHELLFLAGS := -euo pipefail -c
.DEFAULT_GOAL := help
MAKEFLAGS += --no-print-directory
export PATH := $(CURDIR)/.venv/bin:$(PATH)
export ANSIBLE_CONFIG := $(CURDIR)/ansible.cfg
# Test labs of two checkouts on one machine have different names.
CHECKOUT := $(shell pwd | sha256sum | cut -c1-4)
# Further words for the fleet tests: two labs at a time, as they mostly wait.
FLEET ?= -n 2 --dist loadfile
STAGES := lint unit sanity fleet molecule

include $(wildcard tests/lab/lab.mk)

.PHONY: help deps generate $(STAGES) molecule-vllm molecule-rest test demo clean

help: ## list the targets
	@awk -F ':.*## ' '/^[a-z-]+:.*## / {printf "  make %-12s %s\n", $$1, $$2}' $(MAKEFILE_LIST)

deps: ## install what is missing: Debian packages, the tools in .venv, the collection's link
	@.ci/deps next

generate: deps ## documentation, role specs, tasks, defaults and README tables, from the tables of options
	python tests/generate.py

lint: deps ## formatting, style and types of Python, YAML, playbooks, roles and change notes
	ruff format --check --output-format concise .
	ruff check .
	mypy
	yamllint --strict .
	ansible-lint --offline --profile production
	antsibull-changelog lint

unit: deps ## unit tests with coverage of plugins/, on both ansible-cores where there is a Python for the second
	pytest -q -n 2 --cov --cov-fail-under=90
	@if [ -d .venv-next ]; then set -x; .venv-next/bin/pytest -q -n 2; \
	else echo "0 passed, 0 failed, 1 skipped (second ansible-core: no Python >= 3.12 here)"; fi

sanity: deps ## ansible-test sanity
	python tests/sanity/run.py

fleet: deps ## modules, roles and playbooks on the hosts of a test lab, over SSH (KEEP_LAB=1 leaves it up)
	GPUFLEET_LAB=test-$(CHECKOUT) pytest -v $(FLEET) --durations=15 tests/fleet

molecule: deps ## the roles' molecule scenarios, on two test labs at a time
	python tests/scenarios.py molecule-$(CHECKOUT)-

# The one with a real vLLM waits for most of its minutes, and so runs beside the fleet tests.
molecule-vllm: deps
	python tests/scenarios.py molecule-$(CHECKOUT)-v vllm_real

molecule-rest: deps
	python tests/scenarios.py molecule-$(CHECKOUT)- --without vllm_real

test: deps ## everything above, the fastest first; stops at the first stage that fails
	@python tests/run.py lint+sanity unit fleet+molecule-vllm molecule-rest

demo: deps ## a local fleet of three GPU hosts, configured by site.yml, and what was proven
	@$(MAKE) lab-up HOSTS=3
	@python tests/lab/demo.py

clean: ## remove what the tests and tools left in the checkout (not .venv, not the cache)
	rm -rf .pytest_cache .ruff_cache .mypy_cache .hypothesis .ansible .coverage* htmlcov tests/output ./*.tar.gz
	find . -name __pycache__ -not -path './.venv*' -prune -exec rm -rf {} +
