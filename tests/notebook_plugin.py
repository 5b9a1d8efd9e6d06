"""Run the notebooks as tests: strict nbval, with a tolerance for floats and with figures compared.

A cell fails when an output differs (tests/notebook_outputs.py says what counts as the same), when
it raises, and when it outlives its kernel or the time limit. The cells below it are then not run,
and skipped; `--all-cells` goes on as long as there is a kernel. A notebook fails when it holds no
outputs or was run in part, or when a cell asks not to be checked.

A cell is only ever run in a kernel that has run the cells before it, once each and in order. So
a notebook stays in one worker and in order, whatever a plugin or an option makes of its cells; and
where cells before it are missing, they are run first and not compared.

`{"vae_book": {"rtol": 1e-2}}` in the metadata of a cell gives it another tolerance.
"""

import ast
import math
import os
import subprocess
import sys
import tempfile
import time
from importlib.metadata import version
from pathlib import Path
from queue import Empty

import nbformat
import pytest
from jupyter_client.kernelspec import KernelSpecManager
from jupyter_client.manager import KernelManager
from nbval.kernel import RunningKernel
from nbval.plugin import IPyNbCell, IPyNbFile, NbCellError

from tests import report, surroundings
from tests.notebook_outputs import RTOL, is_number, moves

RTOL_MOST = 0.5  # more would compare nothing
SKIPPING = {"nbval-skip", "nbval-ignore-output", "pytest-validate-ignore-output"}
KERNEL = "vae-book"


class Kernels(KernelSpecManager):
    """The kernels of this machine, and the one without configuration in this environment."""

    def get_kernel_spec(self, kernel_name):
        if kernel_name != KERNEL:
            return super().get_kernel_spec(kernel_name)
        argv = [sys.executable, str(surroundings.ROOT / "tests" / "kernel.py")]
        return self.kernel_spec_class(argv=[*argv, "-f", "{connection_file}"], language="python")


def kernel_options(folder, strict=True):
    """Return how a kernel starts, both here and for `make run`.

    A warning that a kernel shows is output on stderr, which fails a cell. Unless `strict`, only
    those of the library and of the cells are shown.
    """
    # The first import of matplotlib may spend seconds on its fonts and say so on stderr; do it now.
    import matplotlib.font_manager  # noqa: F401

    settings = {"MPLBACKEND": "module://matplotlib_inline.backend_inline"}
    if not strict:
        settings["VAE_BOOK_WARNINGS"] = "ours"  # read by tests/kernel.py
    return {
        "cwd": str(folder),
        "env": os.environ | settings,
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
    problems = [] if cells else ["there is no code"]
    if None in counts:
        problems.append(f"not run: cells {[i for i, n in enumerate(counts, 1) if n is None]}")
    elif counts != list(range(1, len(counts) + 1)):
        problems.append(f"not run once from top to bottom: execution counts {counts}")
    if cells and not any(cell.outputs for cell in cells):
        problems.append("no cell has an output")
    said = [i for i, c in enumerate(cells, 1) if any(o.get("name") == "stderr" for o in c.outputs)]
    if said:
        problems.append(f"text on stderr, as a bar or a warning leaves it, in cells {said}")
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

    def __init__(self, name, startup_timeout, options):
        self.km = KernelManager(kernel_name=name, kernel_spec_manager=Kernels())
        self.km.start_kernel(**options)
        self.kc = self.km.client()
        self.kc.start_channels()
        try:
            self.kc.wait_for_ready(timeout=startup_timeout)
            self._ensure_iopub_up()
            surroundings.check_library(f"The kernel {name}", self._library(startup_timeout))
        except BaseException:
            self.stop()
            raise

    def _library(self, timeout):
        """Return the file of the library that the kernel would import, or None."""
        asked = {"file": "__import__('importlib.util').util.find_spec('vae_lib').origin"}
        reply = self.kc.execute_interactive(
            "", silent=True, user_expressions=asked, timeout=timeout
        )
        answer = reply["content"].get("user_expressions", {}).get("file", {})
        return ast.literal_eval(answer["data"]["text/plain"]) if "data" in answer else None

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

    kernel = None
    ran = 0  # how many cells the kernel has run
    failed = None  # the number of the cell that failed
    # nbval's own `timed_out`: the kernel is gone or was interrupted, and runs no more cells

    def setup(self):
        """Leave the kernel to the first cell, which may be none."""

    def teardown(self):
        if hasattr(self.kernel, "km"):  # nbval deletes it when it stops a kernel
            self.kernel.stop()
        if self.kernel is not None:
            self.place.cleanup()
        self.kernel = None

    def collect(self):
        self.nb = nbformat.read(self.path, as_version=4)
        self.cells = []
        for number, cell in enumerate(code_cells(self.nb), start=1):
            raises = "raises-exception" in _tags(cell)
            options = {"check": True, "skip": False, "check_exception": raises}
            self.cells.append(
                NotebookCell.from_parent(
                    self, name=f"Cell {number}", cell_num=number, cell=cell, options=options
                )
            )
        return [StoredOutputs.from_parent(self, name="stored outputs"), *self.cells]

    def run_up_to(self, cell):
        """Have a kernel that has run the cells before one, and nothing else."""
        if self.timed_out or self.ran >= cell.cell_num:
            self.teardown()
        if self.kernel is None:
            options = self.config.option
            strict = "error" in (options.pythonwarnings or [])
            self.ran, self.timed_out = 0, False
            # What a chapter writes goes to ../outputs, and a test leaves nothing in a checkout.
            self.place = tempfile.TemporaryDirectory(prefix="vae-book-", ignore_cleanup_errors=True)
            folder = Path(self.place.name, "chapters")
            folder.mkdir()
            self.kernel = Kernel(
                options.nbval_kernel_name or KERNEL,
                options.nbval_kernel_startup_timeout,
                kernel_options(folder, strict),
            )
        for earlier in self.cells[self.ran : cell.cell_num - 1]:
            try:
                earlier.execute(compare=False)
            except (NbCellError, KernelDied) as error:
                said = f"{error or 'the kernel died'}\n{getattr(error, 'inner_traceback', '')}"
                cell.raise_cell_error(
                    f"Not run, because cell {earlier.cell_num}, which comes first, failed", said
                )


class StoredOutputs(pytest.Item):
    """Are the stored outputs those of one full run?"""

    cell_num = 0  # it comes before the cells

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

    def setup(self):
        # One failure is one failure: what builds on it is not judged. A rerun of it is.
        notebook = self.parent
        goes_on = self.config.option.all_cells and not notebook.timed_out
        if (notebook.failed or self.cell_num) < self.cell_num and not goes_on:
            pytest.skip(f"not run: cell {notebook.failed} failed")

    def runtest(self):
        notebook = self.parent
        try:
            notebook.run_up_to(self)
            self.execute(compare=True)
        except BaseException as error:
            notebook.failed = self.cell_num
            if isinstance(error, KernelDied):
                self.raise_cell_error("The kernel died while it ran this cell")
            raise
        if notebook.failed == self.cell_num:
            notebook.failed = None

    def execute(self, compare):
        """Run the cell in the kernel of its notebook; raise if it fails."""
        self.parent.ran = self.cell_num
        self.options["check"] = compare
        try:
            super().runtest()
        except KernelDied:
            self.parent.timed_out = True
            raise

    def compare_outputs(self, test, ref, skip_compare=None):
        found = list(moves(ref, test, cell_rtol(self.cell)))
        report.keep(
            self, max((share for share, _ in found), default=0.0), test, cell_rtol(self.cell)
        )
        problems = [problem for share, problem in found if share > 1]
        # Another figure differs in everything: its first few lines say enough.
        more = [f"... and {len(problems) - 8} more"] if len(problems) > 8 else []
        self.comparison_traceback = problems[:8] + more
        return not problems

    def reportinfo(self):
        return self.path, 0, f"{self.path.name}: Cell {self.cell_num}"


def pytest_addoption(parser):
    parser.addoption(
        "--all-cells",
        action="store_true",
        help="go on with a notebook after a cell that fails, as long as its kernel lives",
    )
    parser.addoption(
        "--vae-report",
        metavar="FILE",
        help="write what was tested, where, and how far each number moved, as JSON",
    )


def pytest_configure(config):
    if not version("nbval").startswith("0.11."):
        found = version("nbval")
        raise pytest.UsageError(f"the notebook tests need nbval 0.11, found {found}: install it")
    if config.option.nbval_lax:
        raise pytest.UsageError("--nbval-lax: here notebooks are always checked in full")
    config.option.nbval = False  # they are collected below; nbval would collect them again
    # A scheduler that deals out single cells would have every worker run the ones before them.
    if getattr(config.option, "dist", None) in ("load", "loadgroup", "worksteal"):
        config.option.dist = "loadscope"
    if config.option.vae_report and not hasattr(config, "workerinput"):
        config.pluginmanager.register(report.Reporter(Path(config.option.vae_report)))
    try:
        surroundings.prepare()
    except RuntimeError as error:
        raise pytest.UsageError(str(error)) from None


def pytest_sessionstart():
    surroundings.forget_this_call()


def pytest_collect_file(file_path, parent):
    if file_path.suffix == ".ipynb":
        return NotebookFile.from_parent(parent, path=file_path)


@pytest.hookimpl(wrapper=True, tryfirst=True)
def pytest_collection_modifyitems(items):
    """Put notebooks together and in order again, after whoever shuffled the tests."""
    yield
    whole = {}  # the place of a notebook is that of its first cell

    def place(item):
        return item.parent if isinstance(item, StoredOutputs | NotebookCell) else item

    for index, item in enumerate(items):
        whole.setdefault(place(item), index)
    items.sort(key=lambda item: (whole[place(item)], getattr(item, "cell_num", 0)))
