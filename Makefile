# `make` lists the targets. Each one sets up what it needs, in .venv, and only once.

# The Python that .venv is made from (3.11 or newer).
PYTHON ?= python3
# A torch that is already in .venv is kept if its version is the one below.
# The build of PyTorch that a new .venv gets, named as on PyTorch's install page: cpu, cu126, ...
TORCH ?= cpu
TORCH_VERSION := 2.13.0
# Test workers. Each takes one core.
JOBS ?= 2
# More arguments for pytest: make test ARGS="tests/test_data.py -v"
ARGS ?=
# The most minutes that one call of `make mutate` or `make matrix` takes; the next goes on.
MINUTES ?= 60
# The port of `make serve`.
PORT ?= 8000
# The address of the book's repository. If set, pages get repository and Binder buttons.
REPOSITORY ?=

VENV := .venv
PY := $(VENV)/bin/python
PIP := $(PY) -m pip --require-virtualenv --disable-pip-version-check --no-input
# Installing what a lock pins: hashes checked, nothing resolved.
LOCKED := install --no-compile --no-deps --require-hashes
LOG := $(VENV)/set-up.log
QUIETLY = >>$(LOG) 2>&1 || { tail -n 40 $(LOG) >&2; echo "set-up failed; all of it: $(LOG)" >&2; exit 1; }

# What the user has set for Python and pytest stays out, and this folder comes first on the path.
unexport $(filter PYTHON% PYTEST%,$(.VARIABLES))
export PYTHONPATH := $(CURDIR)
export PYTHONNOUSERSITE := 1

# The folder in which $(VENV) was last used; after a move or a copy it is another.
MOVED = $(if $(wildcard $(PY)),$(shell [ "$$(cat $(VENV)/place 2>/dev/null)" = "$$(pwd -P)" ] || echo moved))

.DEFAULT_GOAL := help
.PHONY: moved help book test run lab diffs serve bench mutate matrix lint lock clean

help: ## list the targets
	@echo "make TARGET, where TARGET is"
	@sed -n 's/^\([a-z]*\):.*## /\1 /p' Makefile | awk '{t = $$1; $$1 = ""; printf "  %-6s%s\n", t, $$0}'
	@echo "Variables, set as in make book TORCH=cu126:"
	@sed -n '/^# /{h;d;};/^[A-Z]* ?=/{s/ ?=.*//;G;s/\n# / /p;}' Makefile | awk '{t = $$1; $$1 = ""; printf "  %-11s%s\n", t, $$0}'

book: $(VENV)/ready ## build the pages from the stored outputs, warnings being errors
	@REPOSITORY='$(REPOSITORY)' $(PY) book/build.py

# One thread a process: JOBS processes then share the cores without fighting for them.
test run mutate: export OMP_NUM_THREADS := 1

test: $(VENV)/ready ## run every test: units, doctests, notebooks against their outputs, pages
	@$(PY) -m pytest -W error -n $(JOBS) --dist loadscope $(ARGS)

run: $(VENV)/ready ## run the chapters and store what they print and draw
	@$(PY) -m tests.run_chapters $(ARGS)

diffs: $(VENV)/lab-ready ## make git diff show notebooks as text

lab: $(VENV)/lab-ready ## open the chapters in JupyterLab
	@$(PY) -m jupyterlab chapters

serve: book ## build the pages and serve them on this machine
	@$(PY) -m http.server --bind 127.0.0.1 --directory _build/html $(PORT)

bench: $(VENV)/ready .venv-jax/ready ## time an epoch, beside the same in JAX
	@$(PY) -m tests.bench $(ARGS)

# Some ten minutes of one core. mutmut keeps what it has done in mutants/, and ends with an error
# if it is stopped; what it found is printed either way.
mutate: $(VENV)/mutation-ready ## break the library on purpose and list what no unit test notices
	@timeout $(MINUTES)m $(PY) -m mutmut run --max-children $(JOBS) $(ARGS) || echo "not finished: make mutate goes on" >&2
	@$(PY) -m mutmut results

matrix: $(VENV)/ready ## run the tests on older instruction sets, with one thread and with two
	@$(PY) -m tests.matrix --minutes $(MINUTES) --jobs $(JOBS) $(ARGS)

lint: $(VENV)/ready ## check the code with ruff
	@$(PY) -m ruff check .

clean: ## remove what was built and what the chapters wrote (not .venv)
	@rm -rf _build outputs mutants book/_static/mathjax .pytest_cache .ruff_cache

# Set-up -----------------------------------------------------------------------------------------

$(PY):
	@command -v $(PYTHON) >/dev/null || { echo "$(PYTHON) not found: name a Python of 3.11 or newer, as in make PYTHON=/usr/bin/python3.11" >&2; exit 1; }
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || { echo "$$($(PYTHON) --version) is too old: the book needs 3.11 or newer, as in make PYTHON=python3.12" >&2; exit 1; }
	@$(PYTHON) -c 'import ensurepip, venv' 2>/dev/null || { echo "$(PYTHON) cannot make environments: on Debian and Ubuntu, apt install python3-venv" >&2; exit 1; }
	@echo "set-up: creating $(VENV)"
	@$(PYTHON) -m venv $(VENV)

# This folder on the path, as seen from the packages, so that a move or a copy leaves it right; and
# the folder's name in scripts, which hold it. None of the targets uses these scripts.
define PLACE
import os, pathlib, sysconfig
packages = pathlib.Path(sysconfig.get_path("purelib"))
(packages / "vae_book.pth").write_text(os.path.relpath(".", packages))
place, here = pathlib.Path("$(VENV)/place"), os.fsencode(os.getcwd())
old = place.read_bytes().strip() if place.exists() else here
for script in pathlib.Path("$(VENV)/bin").iterdir():
    text = b"" if script.is_symlink() else script.read_bytes()
    if old != here and old in text and b"\0" not in text:
        script.write_bytes(text.replace(old + b"/$(VENV)", here + b"/$(VENV)"))
place.write_bytes(here)
endef
export PLACE

moved:
	@$(PY) -c "$$PLACE"

# Only the CPU build stands alone; the others bring their libraries along.
$(VENV)/ready: requirements/book.txt pyproject.toml | $(PY) $(MOVED)
	@: >$(LOG)
	@$(PY) -c 'from importlib.metadata import version as v; assert v("torch").split("+")[0] == "$(TORCH_VERSION)"' 2>/dev/null || { echo "set-up: installing torch $(TORCH_VERSION) ($(TORCH))"; \
	$(PIP) install --no-compile $(if $(filter cpu,$(TORCH)),--no-deps) --retries 2 --index-url https://download.pytorch.org/whl/$(TORCH) torch==$(TORCH_VERSION) $(QUIETLY); }
	@echo "set-up: installing what requirements/book.txt pins"
	@$(PIP) $(LOCKED) -r requirements/book.txt $(QUIETLY)
	@$(PY) -c "$$PLACE"
	@touch $@

# How git turns a notebook into text. nbdime colours it, and offers no way not to.
# Ids, counts and the numbers of cells would differ below every cell that is added.
TEXTCONV = f() { $(PY) -m nbdime.nbshowapp --ignore-id --ignore-details "$$1" | sed -E "s/$$(printf "\033")\[[0-9;]*m//g; s/^(code|markdown) cell [0-9]+:/\1 cell:/"; }; f

$(VENV)/lab-ready: requirements/lab.txt $(VENV)/ready
	@echo "set-up: installing what requirements/lab.txt pins"
	@$(PIP) $(LOCKED) -r requirements/lab.txt $(QUIETLY)
	@if git rev-parse --git-dir >/dev/null 2>&1; then git config diff.ipynb.textconv '$(TEXTCONV)'; fi
	@touch $@

$(VENV)/mutation-ready: requirements/mutation.txt $(VENV)/ready
	@echo "set-up: installing what requirements/mutation.txt pins"
	@$(PIP) $(LOCKED) -r requirements/mutation.txt $(QUIETLY)
	@touch $@

.venv-jax/ready: requirements/bench.txt $(VENV)/ready
	@echo "set-up: installing what requirements/bench.txt pins, in .venv-jax"
	@$(PYTHON) -m venv .venv-jax
	@.venv-jax/bin/python -m pip --disable-pip-version-check --no-input $(LOCKED) -r requirements/bench.txt $(QUIETLY)
	@touch $@

# Pinning anew. lab.txt and mutation.txt agree with book.txt and repeat only what
# that one pins for some platforms alone.
UV := $(VENV)/bin/uv
COMPILE := $(UV) pip compile --quiet --upgrade --universal --python-version 3.11 --generate-hashes \
	--no-annotate --no-emit-index-url --custom-compile-command "make lock"
WITHOUT_TORCH := --override requirements/no-torch.in pyproject.toml requirements/torch.in

lock: $(VENV)/ready ## pin the newest versions that fit pyproject.toml, in requirements/
	@test -x $(UV) || { echo "set-up: installing uv"; $(PIP) install uv $(QUIETLY); }
	@$(COMPILE) --extra book --extra lint $(WITHOUT_TORCH) -o requirements/book.txt
	@for extra in lab mutation; do \
	$(COMPILE) --extra $$extra --constraint requirements/book.txt $(WITHOUT_TORCH) -o requirements/$$extra.txt \
	$$(sed -n 's/^\([a-z0-9.-]*\)==[^;]*$$/--no-emit-package \1/p' requirements/book.txt) || exit 1; done
	@$(COMPILE) requirements/bench.in -o requirements/bench.txt
