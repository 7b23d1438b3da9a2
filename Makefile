# make demo | test | test-numeric | test-slow | test-app | test-app-slow | test-wheel | lint | docs | train-demo | study | install | clean; each installs first.
PYTHON ?= python3
VENV   := .venv
BIN    := $(VENV)/bin
STAMP  := $(VENV)/.installed

.PHONY: install demo test test-numeric test-slow test-app test-app-slow test-wheel lint docs train-demo study clean
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

# A worker for each core, with one thread each; the tests of a file share its fixtures, so they stay together.
PYTEST := $(BIN)/python -m pytest --numprocesses auto --dist loadfile
test: $(STAMP)
	OMP_NUM_THREADS=1 $(PYTEST) -m "not slow"

test-slow: $(STAMP)
	$(BIN)/python -m pytest -m slow

# The tests that compare numbers, with the instructions of five processors that this one isn't (docs/numerics.md).
NUMERIC := $(PYTEST) --quiet -m "numeric and not slow"
test-numeric: $(STAMP)
	OMP_NUM_THREADS=1 ATEN_CPU_CAPABILITY=default $(NUMERIC)
	OMP_NUM_THREADS=1 ATEN_CPU_CAPABILITY=avx2 $(NUMERIC)
	OMP_NUM_THREADS=1 MKL_CBWR=COMPATIBLE $(NUMERIC)
	OMP_NUM_THREADS=1 ONEDNN_MAX_CPU_ISA=AVX2 $(NUMERIC)
	OMP_NUM_THREADS=2 PYTEST_XDIST_AUTO_NUM_WORKERS=1 $(NUMERIC)

# Gradio asks for an older Pillow than constraints.txt names, so the app's tests have an environment laid over the pinned one.
APP := .venv-app
$(APP)/.installed: $(STAMP)
	$(PYTHON) -m venv $(APP)
	echo "import site; site.addsitedir('$$($(BIN)/python -c 'import site; print(site.getsitepackages()[0])')')" \
	  > "$$($(APP)/bin/python -c 'import site; print(site.getsitepackages()[0])')/pinned.pth"
	$(APP)/bin/pip install --quiet gradio==6.31.0 playwright==1.65.2
	touch $@

test-app: $(APP)/.installed
	OMP_NUM_THREADS=1 $(APP)/bin/python -m pytest -m "not slow" tests/app tests/publishing/test_space.py

# In a Chromium of this machine, and with fifty visitors at a time.
test-app-slow: $(APP)/.installed
	OMP_NUM_THREADS=1 $(APP)/bin/python -m pytest -m slow tests/app

# Sdist and wheel: what is in them, and a picture drawn by the wheel in an environment that holds nothing else of ours.
test-wheel: $(STAMP)
	$(BIN)/python -m pytest -m slow tests/test_wheel.py -k "not anew"

lint: $(STAMP)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/python -m pytest --quiet tests/test_architecture.py

# The site, in site/; warnings are errors.
docs: $(STAMP)
	$(BIN)/pip install --quiet --constraint constraints.txt --editable ".[docs]"
	$(BIN)/mkdocs build --strict --quiet

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
	rm -rf $(VENV) $(APP) build dist .pytest_cache .ruff_cache src/*.egg-info
