# Each target sets up what it needs. `make help` lists them.
.DEFAULT_GOAL := help
PY := .venv/bin/python

help: ## what there is
	@grep -E '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed -E 's/:.*## /\t/' | expand -t 16
.PHONY: help
