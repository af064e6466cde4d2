# The lab: a local fleet of GPU hosts in containers (tests/lab/README.md). Included by the Makefile at the root.
HOSTS ?= 3

.PHONY: lab-up lab-down lab-status
lab-up: deps ## start a lab of HOSTS=n hosts (default 3), see tests/lab/README.md
	python3 tests/lab/lab.py up --hosts $(HOSTS)

lab-down: ## remove the hosts, keys and inventory of the lab
	python3 tests/lab/lab.py down

lab-status: ## list the hosts of the lab
	python3 tests/lab/lab.py status
