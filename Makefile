# Aliases of the Invoke tasks: `make dev-up` is `inv dev.up`, after setting up what is missing.
#
#   make backup ARGS="--schema-only"    flags go in ARGS
#
# A line with `##` is a target and what `make help` says of it. All but those of the project are the task of
# the same name (dev-up: dev.up) or the one named in TASK. Paths are relative: make splits them at spaces.

##@ Stack
dev-up:           ## Start the complete stack
dev-down:         ## Stop the complete stack
dev-status:       ## Show the state of all services
dev-logs:         ## Show the logs of all services
dev-restart:      ## Restart all services

##@ Services
db-start:         ## Start PostgreSQL
db-stop:          ## Stop PostgreSQL, and what depends on it
db-status:        ## Show PostgreSQL's state and its last log lines
db-stats:         ## Show sizes, connections and cache hits of the database
db-logs:          ## Show PostgreSQL's log
db-shell:         ## Open psql on the database
pgb-start:        ## Start PgBouncer, and what it depends on
pgb-stop:         ## Stop PgBouncer, and what depends on it
pgb-status:       ## Show PgBouncer's state and its last log lines
pgb-stats:        ## Show the use of the connection pools
pgb-reload:       ## Let PgBouncer read its configuration again
pgb-logs:         ## Show PgBouncer's log
api-start:        ## Start the API, and what it depends on
api-stop:         ## Stop the API
api-status:       ## Show the API's state and its last log lines
api-logs:         ## Show the API's log

##@ Health
health:           ## Show a health summary of everything
metrics:          ## Show performance metrics
dev-bundle:       ## Collect a zip for a bug report, without secrets
system-info:      ## Show what the stack needs and what this machine has

##@ Data
backup:           ## Create a backup of the database
restore:          ## Restore the database from a backup
cleanup-backups:  ## Remove old backups

##@ Project
setup:            ## Set up what is missing on this machine; everything else does it too
test:             ## Lint, then run each feature's tests, in minutes (ARGS goes to pytest)
test-all:         ## Lint, then run all tests: faults, hosts, container engines too
campaign:         ## Run all rounds of the random tests
lint:             ## Check style and types
bench:            ## Run the benchmarks
lock:             ## Renew the locks of Python packages (ARGS=--upgrade takes newer ones)
docs:             ## Renew the pages of docs/ that are made from the source (ARGS=--check only looks)
help:             ## Show this help

TASK = $(subst -,.,$@)
system-info:      TASK = system-info
backup:           TASK = data.backup
restore:          TASK = data.restore
cleanup-backups:  TASK = data.cleanup

# a number sign in a function call is written differently before GNU make 4.3 and since
HASH    := \#
TARGETS := $(shell sed -n 's/^\([a-z-]*\): *$(HASH)$(HASH).*/\1/p' Makefile)
PROJECT := setup setup-dev test test-all campaign lint bench lock docs help
PYTHON  := .venv/bin/python

MAKEFLAGS += --no-print-directory
.DEFAULT_GOAL := help
.PHONY: $(TARGETS) $(PROJECT)
# `make -j dev-down dev-up` is still one after the other
.NOTPARALLEL:

$(filter-out $(PROJECT),$(TARGETS)): setup
	@$(PYTHON) -m invoke $(TASK) $(ARGS)

setup:
	@scripts/bootstrap.sh run

setup-dev:
	@scripts/bootstrap.sh dev

lint: setup-dev
	@$(PYTHON) -m ruff check
	@$(PYTHON) -m ruff format --check
	@$(PYTHON) -m mypy

# the markers are explained in pyproject.toml
test: setup-dev lint
	@$(PYTHON) -m pytest -m "not (faults or hosts or engines or campaign or slow)" $(ARGS)

test-all: setup-dev lint
	@$(PYTHON) -m pytest $(ARGS)

campaign: setup-dev
	@$(PYTHON) -m pytest -m "campaign or hypothesis" --campaign $(ARGS)

bench: setup-dev
	@$(PYTHON) -m benchmarks $(ARGS)

lock:
	@scripts/lock.sh $(ARGS)

docs: setup-dev
	@$(PYTHON) -m docs $(ARGS)

help:
	@echo 'Usage: make TARGET [ARGS="flags of the task"]'
	@awk -F ': *## ' '/^##@ / {print "\n" substr($$0, 5)} \
	    /^[a-z-]+:/ && NF == 2 {printf "  %-17s%s\n", $$1, $$2}' Makefile
