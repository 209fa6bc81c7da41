# deffi_lab: two commands do everything on a fresh machine: `make lab` and `make test`.
# `make` alone explains the rest.
PYTHON ?= python3
VENV   ?= .venv
BIN    := $(VENV)/bin
LESSON ?= lessons/01_selection_boosting.ipynb
PORT   ?= 8888
JOBS   ?= 2
# CPU=1 installs torch without CUDA (TORCH_CPU_INDEX: where from)
export CPU TORCH_CPU_INDEX
# One thread a process: tests and notebooks run side by side, and two busy pools of threads hinder each other.
test nb bench mutants: export OMP_NUM_THREADS ?= 1

LINTED := nbs tests bench tools setup.py

.PHONY: results help setup hooks lab app test lint bench mutants nb weights film clean

help:            ## what each command does
	@grep -hE '^[a-z]+: .*##|^[a-z]+:  +##' $(MAKEFILE_LIST) | sed -E 's/:[^#]*##/\t/' | expand -t 14

setup: $(VENV)/.ready   ## make the environment .venv (CPU=1: torch without CUDA; PYTHON=python3.13: another Python)

$(VENV)/.ready: settings.ini constraints.txt setup.py
	@$(PYTHON) tools/python.py
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python tools/setup_env.py
	@touch $@

lab: setup       ## set up, then open JupyterLab on the first lesson
	$(BIN)/python tools/lab.py --port $(PORT) $(LESSON)

app: setup       ## set up, then open the same lesson as a page without code (Voila)
	$(BIN)/python tools/lab.py --voila --port $(PORT) $(LESSON)

hooks: setup     ## check each commit as `make lint` does (pre-commit)
	$(BIN)/pre-commit install

lint: setup      ## set up, then check style and types, and that notebooks and modules agree
	$(BIN)/ruff check -q $(LINTED)
	$(BIN)/ruff format -q --check $(LINTED)
	$(BIN)/mypy
	$(BIN)/python tools/check.py

test: lint       ## all of `make lint`, then run the notebooks and the tests (JOBS=2 at once)
	$(BIN)/nbdev_test --n_workers $(JOBS) --timing --pause 0.2
	$(BIN)/python -m pytest -n $(JOBS) --dist loadgroup --no-loadscope-reorder --durations 20 $(PYTEST)

bench: setup     ## measure side by side; writes bench/results/<machine>.json (BENCH=neighbours: one of them)
	$(BIN)/python bench/run.py $(BENCH)

mutants: setup   ## take mechanisms out of the methods one by one; count those that the tests notice (ROW=1: keep it)
	$(BIN)/python tools/mutants.py --jobs $(JOBS) $(if $(ROW),--row) $(MUTANTS)

results: setup   ## write docs/RESULTS.md from the ledgers that ship and the rows of the benches
	$(BIN)/python tools/results.py

nb: setup        ## NB=nbs/...: text -> notebook, run, clean, export (TEXT=1: notebook -> text; REFRESH=1: run again)
	$(BIN)/python tools/nb.py $(if $(TEXT),--text) $(if $(REFRESH),--refresh) $(NB)

weights: setup   ## make the shipped weights and landmarks again
	$(BIN)/python tools/reference_weights.py
	$(BIN)/python tools/landmarks.py

film: setup      ## film and photograph the labs for README: docs/film.gif, docs/lab_<name>.png
	$(BIN)/python tools/film.py
	$(BIN)/python tools/picture.py

clean:           ## remove the environment and what was built
	rm -rf $(VENV) build dist *.egg-info .pytest_cache .hypothesis .ruff_cache .mypy_cache
