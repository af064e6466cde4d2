# The lab: a local fleet of GPU hosts in containers (tests/lab/README.md). Included by the Makefile at the root.
HOSTS ?= 3

.PHONY: lab-up lab-down lab-status
lab-up: deps ## bring up the lab: HOSTS=n hosts (3), see tests/lab/README.md
	python3 tests/lab/lab.py up --hosts $(HOSTS)

lab-down: ## remove the lab's hosts, keys and inventory
	python3 tests/lab/lab.py down

lab-status: ## show the lab's hosts
	python3 tests/lab/lab.py status
