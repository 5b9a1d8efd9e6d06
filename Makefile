# `make` lists the targets. Each one sets up what it needs, in .venv, and only once.

# The Python that .venv is made from (3.11 or newer).
PYTHON ?= python3
# A torch that is already in .venv is kept if its version is the one below.
# The build of PyTorch that a new .venv gets, named as on PyTorch's install page: cpu, cu126, ...
TORCH ?= cpu
TORCH_VERSION := 2.13.0
# Where that build is fetched from: another address for who is behind a mirror.
TORCH_INDEX ?= https://download.pytorch.org/whl/$(TORCH)
# What installs faster than pip, where it is there; UV=none for pip alone.
UV ?= uv
# Test workers. Each takes one core.
JOBS ?= 2
# More arguments for pytest: make test ARGS="tests/test_data.py -v"
ARGS ?=
# The most minutes that one call of `make mutate` or `make matrix` takes; the next goes on.
MINUTES ?= 60
# What `make lab` opens. It is made from the chapters; what is in it already is left alone.
FOLDER ?= my-chapters
# The port of `make serve`.
PORT ?= 8000
# The address of the book's repository. If set, pages get repository and Binder buttons.
REPOSITORY ?=
# 0 leaves the solutions of the exercises out of the pages: make book SOLUTIONS=0
SOLUTIONS ?=

VENV := .venv
PY := $(VENV)/bin/python
PIP := $(PY) -m pip --require-virtualenv --disable-pip-version-check --no-input
# Installing what a lock pins: hashes checked, nothing resolved.
LOCKED := install --no-user --no-compile --no-deps --require-hashes
# The same by uv, where there is one: it takes seconds. It knows nothing of pip's mirrors and proxies,
# so what it cannot fetch is left to pip.
UV_LOCKED := --no-config pip install --python $(PY) --no-deps --require-hashes
LOG := $(VENV)/set-up.log
QUIETLY = >>$(LOG) 2>&1 || { tail -n 40 $(LOG) >&2; echo "set-up failed; all of it: $(LOG)" >&2; exit 1; }

install = { command -v $(UV) >/dev/null && $(UV) $(UV_LOCKED) -r $(1) >>$(LOG) 2>&1; } || $(PIP) $(LOCKED) -r $(1) $(QUIETLY)

# What the user has set for Python, pytest and git stays out, and this folder comes first on the path.
# Of pip's settings those stay that say where and how to fetch, not those that say what and whither.
FETCHING := INDEX_URL EXTRA_INDEX_URL NO_INDEX FIND_LINKS TRUSTED_HOST PROXY CERT CLIENT_CERT \
	TIMEOUT DEFAULT_TIMEOUT RETRIES CACHE_DIR NO_CACHE_DIR CONFIG_FILE KEYRING_PROVIDER
unexport $(filter PYTHON% PYTEST% GIT_%,$(.VARIABLES))
unexport $(filter-out $(FETCHING:%=PIP_%),$(filter PIP_%,$(.VARIABLES)))
export PYTHONPATH := $(CURDIR)
export PYTHONNOUSERSITE := 1

# The folder in which $(VENV) was last used; after a move or a copy it is another.
MOVED = $(if $(wildcard $(VENV)/ready),$(shell [ "$$(cat $(VENV)/place 2>/dev/null)" = "$$(pwd -P)" ] || echo moved))

# All targets but the list of them write here.
ifneq ($(filter-out help,$(MAKECMDGOALS)),)
ifneq ($(shell test -w . && echo yes),yes)
$(error $(CURDIR) cannot be written; test it by pytest from an environment elsewhere, as the README says, or copy it)
endif
endif

.DEFAULT_GOAL := help
.PHONY: set-up moved help book pdf zip test run lab diffs serve bench mutate matrix elsewhere lint lock clean

help: ## list the targets
	@echo "make TARGET, where TARGET is"
	@sed -n 's/^\([a-z]*\):.*## /\1 /p' Makefile | awk '{t = $$1; $$1 = ""; printf "  %-10s%s\n", t, $$0}'
	@echo "Variables, set as in make book TORCH=cu126:"
	@sed -n '/^# /{h;d;};/^[A-Z_]* ?=/{s/ ?=.*//;G;s/\n# / /p;}' Makefile | awk '{t = $$1; $$1 = ""; printf "  %-13s%s\n", t, $$0}'

book: $(VENV)/ready ## build the pages from the stored outputs, warnings being errors
	@REPOSITORY='$(REPOSITORY)' SOLUTIONS='$(SOLUTIONS)' $(PY) book/build.py

pdf: book ## print the book into one file, _build/vae-book.pdf, by Chromium
	@$(PY) book/pdf.py

zip: book ## pack the pages into _build/vae-book.zip, to be read without a network
	@$(PY) -c 'import shutil; print(shutil.make_archive("_build/vae-book", "zip", "_build", "html"))'

# One thread a process: JOBS processes then share the cores without fighting for them.
test run mutate: export OMP_NUM_THREADS := 1

test: $(VENV)/ready ## run every test: units, doctests, notebooks against their outputs, pages
	@$(PY) -m pytest -W error -n $(JOBS) --dist loadscope $(ARGS)

run: $(VENV)/ready ## run the chapters and store what they print and draw
	@$(PY) -m tests.run_chapters $(ARGS)

diffs: $(VENV)/lab-ready ## make git diff show notebooks as text

lab: $(VENV)/lab-ready ## open a copy of the chapters in JupyterLab, which an update leaves alone
	@mkdir -p '$(FOLDER)'
	@for chapter in chapters/*.ipynb; do test -e "$(FOLDER)/$${chapter##*/}" || cp "$$chapter" '$(FOLDER)'; done
	@$(PY) -m jupyterlab $(if $(filter 0,$(shell id -u)),--allow-root) $(ARGS) '$(FOLDER)'

serve: book ## build the pages and serve them on this machine
	@$(PY) -m http.server --bind 127.0.0.1 --directory _build/html $(PORT)

bench: $(VENV)/ready .venv-jax/ready ## time training beside the usual loop, JAX and bare matrix products
	@$(PY) -m tests.bench $(ARGS)

# Some ten minutes of one core. mutmut keeps what it has done in mutants/, and ends with an error
# if it is stopped; what it found is printed either way.
mutate: $(VENV)/mutation-ready ## break the library on purpose and list what no unit test notices
	@timeout $(MINUTES)m $(PY) -m mutmut run --max-children $(JOBS) $(ARGS) || echo "not finished: make mutate goes on" >&2
	@$(PY) -m mutmut results

matrix: $(VENV)/ready ## run the tests on older instruction sets, with one thread and with two
	@$(PY) -m tests.matrix --minutes $(MINUTES) --jobs $(JOBS) $(ARGS)

elsewhere: $(VENV)/ready ## test the oldest and the newest versions that pyproject.toml allows
	@OMP_NUM_THREADS=1 $(PY) -m tests.elsewhere --torch $(TORCH_VERSION) $(ARGS)

lint: $(VENV)/ready ## check the code with ruff
	@$(PY) -m ruff check .

clean: ## remove what was built and what the chapters wrote (not .venv)
	@rm -rf _build outputs mutants .pytest_cache .ruff_cache

# Set-up -----------------------------------------------------------------------------------------

# This folder on the path, as seen from the packages, so that a move or a copy leaves it right; and
# the folder's name in scripts, which hold it. None of the targets uses these scripts.
define PLACE
import os, pathlib, sysconfig
packages = pathlib.Path(sysconfig.get_path("purelib"))
(packages / "vae_book.pth").write_text(os.path.relpath(".", packages))
# The command line: such a script would come with an installed package, and hold the folder's name.
vae = pathlib.Path("$(VENV)/bin/vae")
# Ctrl-C in the seconds of the imports ends it without a word.
start = "import signal; signal.signal(2, signal.SIG_DFL); from vae_lib.__main__ import main; "
start += "signal.signal(2, signal.default_int_handler); raise SystemExit(main())"
vae.write_text(f"""#!/bin/sh\nPYTHONPATH= exec "$${{0%/*}}/python" -P -c '{start}' "$$@"\n""")
vae.chmod(0o755)
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

# One `make` at a time sets up; another waits until it has.
define ALONE
import fcntl, subprocess, sys
with open("Makefile") as file:
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        print("set-up: another make is at it; waiting", flush=True)
        fcntl.flock(file, fcntl.LOCK_EX)
    sys.exit(subprocess.call(sys.argv[1:]))
endef
export ALONE

# The other has made $(VENV)/ready, perhaps; then there is nothing to do.
$(VENV)/ready: requirements/book.txt pyproject.toml | $(MOVED)
	@command -v $(PYTHON) >/dev/null || { echo "$(PYTHON) not found: name a Python of 3.11 or newer, as in make PYTHON=/usr/bin/python3.11" >&2; exit 1; }
	@$(PYTHON) -c "$$ALONE" sh -c 'for file in $^; do test $(VENV)/ready -nt $$file || exec $(MAKE) --no-print-directory set-up; done'

# What stands in $(VENV) may be anybody's: of an old Python, without pip, broken.
OLD_ENOUGH := -c 'import sys; sys.exit(sys.version_info < (3, 11))'
AGAIN := remove it (rm -rf $(VENV)) and call make again
HAS_TORCH := -c 'from importlib.metadata import version as v; assert v("torch").split("+")[0] == "$(TORCH_VERSION)"'

# Only the CPU build of PyTorch stands alone; the others bring their libraries along.
set-up:
	@test ! -L $(PY) || test -e $(PY) || { echo "$(VENV) is broken, its Python is gone: $(AGAIN)" >&2; exit 1; }
	@test -e $(PY) || { \
	$(PYTHON) $(OLD_ENOUGH) || { echo "$$($(PYTHON) --version) is too old: the book needs 3.11 or newer, as in make PYTHON=python3.12" >&2; exit 1; }; \
	$(PYTHON) -c 'import ensurepip, venv' 2>/dev/null || { echo "$(PYTHON) cannot make environments: on Debian and Ubuntu, apt install python3-venv" >&2; exit 1; }; \
	echo "set-up: creating $(VENV)"; $(PYTHON) -m venv $(VENV); }
	@$(PY) $(OLD_ENOUGH) || { echo "$(VENV) is of $$($(PY) --version), and the book needs 3.11 or newer: $(AGAIN)" >&2; exit 1; }
	@: >$(LOG)
	@$(PY) -m pip --version >/dev/null 2>&1 || { echo "set-up: giving $(VENV) a pip"; $(PY) -m ensurepip >>$(LOG) 2>&1; } || { echo "$(VENV) has no pip: $(AGAIN)" >&2; exit 1; }
	@$(PY) $(HAS_TORCH) 2>/dev/null || { echo "set-up: installing torch $(TORCH_VERSION) ($(TORCH))"; \
	$(PIP) install --no-user --no-compile $(if $(filter cpu,$(TORCH)),--no-deps) --retries 2 --index-url $(TORCH_INDEX) torch==$(TORCH_VERSION) $(QUIETLY); }
	@echo "set-up: installing what requirements/book.txt pins"
	@$(call install,requirements/book.txt)
	@$(PY) $(HAS_TORCH) 2>/dev/null || { echo "pip put the packages elsewhere than in $(VENV): look for target, prefix or root in pip config list" >&2; exit 1; }
	@$(PY) -c "$$PLACE"
	@touch $(VENV)/ready

# How git turns a notebook into text. nbdime colours it, and offers no way not to.
# Ids, counts and the numbers of cells would differ below every cell that is added.
TEXTCONV = f() { test -x $(PY) || exec cat "$$1"; $(PY) -m nbdime.nbshowapp --ignore-id --ignore-details "$$1" | sed -E "s/$$(printf "\033")\[[0-9;]*m//g; s/^(code|markdown) cell [0-9]+:/\1 cell:/"; }; f

$(VENV)/lab-ready: requirements/lab.txt $(VENV)/ready
	@echo "set-up: installing what requirements/lab.txt pins"
	@$(call install,requirements/lab.txt)
	@if [ "$$(git rev-parse --show-toplevel 2>/dev/null)" = "$$(pwd -P)" ]; then git config diff.ipynb.textconv '$(TEXTCONV)'; fi
	@touch $@

$(VENV)/mutation-ready: requirements/mutation.txt $(VENV)/ready
	@echo "set-up: installing what requirements/mutation.txt pins"
	@$(call install,requirements/mutation.txt)
	@touch $@

.venv-jax/ready: requirements/bench.txt $(VENV)/ready
	@echo "set-up: installing what requirements/bench.txt pins, in .venv-jax"
	@$(PYTHON) -m venv .venv-jax
	@.venv-jax/bin/python -m pip --disable-pip-version-check --no-input $(LOCKED) -r requirements/bench.txt $(QUIETLY)
	@touch $@

# Pinning anew. lab.txt and mutation.txt agree with book.txt and repeat only what
# that one pins for some platforms alone.
UV_OF_LOCK := $(VENV)/bin/uv
COMPILE := $(UV_OF_LOCK) pip compile --quiet --upgrade --universal --python-version 3.11 --generate-hashes \
	--no-annotate --no-emit-index-url --custom-compile-command "make lock"
WITHOUT_TORCH := --override requirements/no-torch.in pyproject.toml requirements/torch.in

lock: $(VENV)/ready ## pin the newest versions that fit pyproject.toml, in requirements/
	@test -x $(UV_OF_LOCK) || { echo "set-up: installing uv"; $(PIP) install uv $(QUIETLY); }
	@$(COMPILE) --extra book --extra lint $(WITHOUT_TORCH) -o requirements/book.txt
	@for extra in lab mutation; do \
	$(COMPILE) --extra $$extra --constraint requirements/book.txt $(WITHOUT_TORCH) -o requirements/$$extra.txt \
	$$(sed -n 's/^\([a-z0-9.-]*\)==[^;]*$$/--no-emit-package \1/p' requirements/book.txt) || exit 1; done
	@$(COMPILE) requirements/bench.in -o requirements/bench.txt
