"""Run the notebooks as tests: strict nbval, with a tolerance for floats and with figures compared.

A cell fails when an output differs (tests/notebook_outputs.py says what counts as the same), when
it raises, and when it outlives its kernel or the time limit. A notebook fails when it holds no
outputs or was run in part, or when a cell asks not to be checked.

`{"vae_book": {"rtol": 1e-2}}` in the metadata of a cell gives it another tolerance.
"""

import math
import os
import subprocess
import time
from importlib.metadata import version
from queue import Empty

import nbformat
import pytest
from nbval.kernel import CURRENT_ENV_KERNEL_NAME, RunningKernel, start_new_kernel
from nbval.plugin import IPyNbCell, IPyNbFile

from tests.notebook_outputs import RTOL, differences, is_number

RTOL_MOST = 0.5  # more would compare nothing
# One thread a kernel, and none that spins: several kernels share the processors.
THREADS = {"OMP_NUM_THREADS": "1", "MKL_NUM_THREADS": "1", "OMP_WAIT_POLICY": "PASSIVE"}
SKIPPING = {"nbval-skip", "nbval-ignore-output", "pytest-validate-ignore-output"}


def prepare_environment():
    """Set what kernels inherit; call it before torch is imported."""
    for name, value in THREADS.items():
        os.environ.setdefault(name, value)
    os.environ["VAE_LIB_PROGRESS"] = "0"


def kernel_options(folder):
    """Return how a kernel starts, both here and for `make run`."""
    # The first import of matplotlib may spend seconds on its fonts and say so on stderr; do it now.
    import matplotlib.font_manager  # noqa: F401

    return {
        "cwd": str(folder),
        "extra_arguments": [
            # Each kernel keeps its history to itself: a shared file can be locked.
            "--HistoryManager.hist_file=:memory:",
            # What C libraries say about a processor is no output of the book.
            "--IPKernelApp.capture_fd_output=False",
        ],
        "stdout": subprocess.DEVNULL,
        "stderr": subprocess.DEVNULL,
    }


# ---------------------------------------------------------------------------- stored outputs


def stored_problems(nb):
    """Say why the outputs stored in a notebook cannot be what a full run left there."""
    cells = code_cells(nb)
    counts = [cell.execution_count for cell in cells]
    problems = []
    if None in counts:
        problems.append(f"not run: cells {[i for i, n in enumerate(counts, 1) if n is None]}")
    elif counts != list(range(1, len(counts) + 1)):
        problems.append(f"not run once from top to bottom: execution counts {counts}")
    if cells and not any(cell.outputs for cell in cells):
        problems.append("no cell has an output")
    for number, cell in enumerate(cells, start=1):
        comments = (line.strip().lstrip("# ") for line in cell.source.splitlines() if "#" in line)
        marks = {mark.lower().replace("_", "-") for mark in [*comments, *_tags(cell)]}
        if marks & SKIPPING:
            problems.append(f"cell {number} asks not to be checked: {sorted(marks & SKIPPING)}")
        if not (is_number(cell_rtol(cell)) and 0 <= cell_rtol(cell) <= RTOL_MOST):
            problems.append(f"cell {number}: rtol is not a number from 0 to {RTOL_MOST}")
    return [f"{problem}; `make run` stores outputs" for problem in problems]


def code_cells(nb):
    return [cell for cell in nb.cells if cell.cell_type == "code" and cell.source.strip()]


def _tags(cell):
    return cell.metadata.get("tags", [])


def cell_rtol(cell):
    return cell.metadata.get("vae_book", {}).get("rtol", RTOL)


# ---------------------------------------------------------------------------- pytest


class KernelDied(Exception):
    """The process that ran the cell is gone."""


class Kernel(RunningKernel):
    """A kernel whose death is noticed within a second."""

    def __init__(self, name, folder, startup_timeout):
        self.km, self.kc = start_new_kernel(startup_timeout, name, **kernel_options(folder))
        self._ensure_iopub_up()

    def execute_cell_input(self, cell_input, allow_stdin=None):
        # nbval keeps no history; but then `value;` shows its value, as it does not in Jupyter.
        return self.kc.execute(cell_input, allow_stdin=allow_stdin, stop_on_error=False)

    def await_reply(self, msg_id, timeout=None):
        end = math.inf if timeout is None else time.monotonic() + timeout
        while True:
            try:
                return super().await_reply(msg_id, timeout=max(0, min(1, end - time.monotonic())))
            except Empty:
                if not self.is_alive():
                    raise KernelDied from None
                if time.monotonic() >= end:
                    raise


class NotebookFile(IPyNbFile):
    """A notebook: one test for what it stores, and one for each code cell."""

    def setup(self):
        options = self.config.option
        name = options.nbval_kernel_name or CURRENT_ENV_KERNEL_NAME
        self.kernel = Kernel(name, self.path.parent, options.nbval_kernel_startup_timeout)

    def teardown(self):
        if hasattr(self.kernel, "km"):  # nbval deletes it when it stops a kernel
            self.kernel.stop()

    def collect(self):
        self.nb = nbformat.read(self.path, as_version=4)
        yield StoredOutputs.from_parent(self, name="stored outputs")
        for number, cell in enumerate(code_cells(self.nb), start=1):
            raises = "raises-exception" in _tags(cell)
            options = {"check": True, "skip": False, "check_exception": raises}
            yield NotebookCell.from_parent(
                self, name=f"Cell {number}", cell_num=number, cell=cell, options=options
            )


class StoredOutputs(pytest.Item):
    """Are the stored outputs those of one full run?"""

    def runtest(self):
        if problems := stored_problems(self.parent.nb):
            pytest.fail("\n".join(problems), pytrace=False)

    def reportinfo(self):
        return self.path, 0, f"{self.path.name}: stored outputs"


class NotebookCell(IPyNbCell):
    """A code cell: does it run, and does it leave the outputs that are stored?"""

    def __init__(self, *args, **kwargs):
        super().__init__(*args, **kwargs)
        self.output_timeout = 20  # between two messages of a cell that has run

    def runtest(self):
        try:
            super().runtest()
        except KernelDied:
            self.parent.timed_out = True  # nbval expects the cells that follow to fail
            self.raise_cell_error("The kernel died while it ran this cell")

    def compare_outputs(self, test, ref, skip_compare=None):
        problems = differences(ref, test, cell_rtol(self.cell))
        # Another figure differs in everything: its first few lines say enough.
        more = [f"... and {len(problems) - 8} more"] if len(problems) > 8 else []
        self.comparison_traceback = problems[:8] + more
        return not problems

    def reportinfo(self):
        return self.path, 0, f"{self.path.name}: Cell {self.cell_num}"


def pytest_configure(config):
    if not version("nbval").startswith("0.11."):
        found = version("nbval")
        raise pytest.UsageError(f"the notebook tests need nbval 0.11, found {found}: install it")
    if config.option.nbval_lax:
        raise pytest.UsageError("--nbval-lax: here notebooks are always checked in full")
    config.option.nbval = False  # they are collected below; nbval would collect them again
    prepare_environment()


def pytest_collect_file(file_path, parent):
    if file_path.suffix == ".ipynb":
        return NotebookFile.from_parent(parent, path=file_path)
