# The lab; included by the Makefile at the root.
#   make lab-up [HOSTS=n]    make lab-status    make lab-down
HOSTS ?= 3

.PHONY: lab-up lab-down lab-status
lab-up:
	python3 tests/lab/lab.py up --hosts $(HOSTS)

lab-down:
	python3 tests/lab/lab.py down

lab-status:
	python3 tests/lab/lab.py status
