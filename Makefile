# make demo | test | test-slow | lint | train-demo | study | install | clean. Each installs what it needs into .venv first.
PYTHON ?= python3
VENV   := .venv
BIN    := $(VENV)/bin
STAMP  := $(VENV)/.installed

.PHONY: install demo test test-slow lint train-demo study clean
.DEFAULT_GOAL := install

install: $(STAMP)

# torch first and alone: whichever build of the pinned version pip's own configuration prefers (a CPU wheel where one is
# offered) is then kept by everything that follows.
$(STAMP): setup.cfg pyproject.toml constraints.txt
	$(PYTHON) -m venv $(VENV)
	$(BIN)/pip install --quiet --constraint constraints.txt torch
	$(BIN)/pip install --quiet --constraint constraints.txt --editable ".[train,avatars,dev]"
	touch $@

demo: $(STAMP)
	$(BIN)/profusion demo --out demo_grid.png --force

test: $(STAMP)
	$(BIN)/python -m pytest -m "not slow"

test-slow: $(STAMP)
	$(BIN)/python -m pytest -m slow

lint: $(STAMP)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/python -m pytest --quiet tests/test_architecture.py

# The whole demo model from nothing: hours on two CPU cores, minutes on a GPU. Run it again after a stop and it goes on.
train-demo: $(STAMP)
	$(BIN)/python examples/avatars/make_demo_model.py

# The comparison of docs/study.md, after the pre-training of the rivals: two to three hours on two CPU cores, eight minutes with
# `make study QUICK=--quick`. Run it again after a stop and it goes on.
STUDY := examples/avatars/study.py --weights outputs/avatars$(if $(QUICK),/quick)/rivals $(QUICK)
study: $(STAMP)
	for which in e4t l2 plain; do $(BIN)/python examples/avatars/train_rivals.py --which $$which $(QUICK) || exit 1; done
	OMP_NUM_THREADS=1 $(BIN)/torchrun --standalone --nproc-per-node 2 $(STUDY)
	$(BIN)/python $(STUDY) --questions 6
	$(BIN)/python $(STUDY) --redraw

clean:
	rm -rf $(VENV) build dist .pytest_cache .ruff_cache src/*.egg-info
