"""What a long run leaves: its figures, and how they came to be.

A script in `vae_lib.recorded` says what to measure and calls a `Record`, which runs it,
resumes it, and writes `assets/recorded/NAME.json`. A record is tied to the code of its script and
to its data by their sha256, comments and docstrings aside.
"""

import ast
import hashlib
import io
import json
import platform
import shutil
import time
import tokenize
from collections.abc import Callable, Iterable
from concurrent.futures import ProcessPoolExecutor, as_completed
from multiprocessing import get_context
from pathlib import Path

import numpy as np
import torch

from vae_lib import checkpoints, states
from vae_lib.data import MNIST


class Record:
    """A JSON file of runs, each a choice, what was measured for it, and what that took.

    Arguments:
        script: The script's `__file__`; its name, with hyphens, is that of the record.
        recipe: What all runs have in common, in words.
        unit: Of the figures.
        data: Files that the figures depend on.
        folder: Where the record is written.
        kept: Where unfinished runs keep their states.

    Raises:
        ValueError: There is a record of other code or other data.
    """

    def __init__(
        self,
        script: str | Path,
        *,
        recipe: str,
        unit: str,
        data: Iterable[Path] = (MNIST,),
        folder: Path = checkpoints.RECORDED,
        kept: Path = Path("outputs") / "recorded",
    ):
        script = Path(script)
        self.name = script.stem.replace("_", "-")
        self.file = Path(folder) / f"{self.name}.json"
        self.kept = Path(kept) / self.name
        self.head = {"recipe": recipe, "unit": unit, "sha256": checksums([script, *data])}
        self.runs()

    def runs(self) -> list[dict]:
        """Return the runs that are recorded by now.

        Raises:
            ValueError: They are of other code or other data.
        """
        if not self.file.exists():
            return []
        record = json.loads(self.file.read_text(encoding="utf-8"))
        if record["sha256"] != self.head["sha256"]:
            raise ValueError(
                f"{self.file}: it was made by other code or of other data than are here now. "
                "Delete it to record anew, or restore what it was made by."
            )
        return record["runs"]

    def run(
        self,
        measure: Callable[[dict, Path], dict],
        choices: Iterable[dict],
        *,
        workers: int = 1,
    ) -> None:
        """Measure what is not recorded yet, one process and one thread a run.

        Stop it at any time, by Ctrl-C or otherwise, and start it again: what is recorded stays, and
        a run that keeps its `states.State` files in its folder goes on from them.

        Arguments:
            measure: A function of a module, (choice, folder), that returns what was measured, JSON
                types only. The names of states in the folder end in .state.
            choices: Dictionaries of JSON types, each different: a seed, a variant, a size.
            workers: How many runs at a time.

        Raises:
            RuntimeError: Runs failed; the others were recorded. The first error is its cause.
        """
        recorded = self.runs()
        open_ = [c for c in choices if not any(c.items() <= run.items() for run in recorded)]
        failed = []
        with ProcessPoolExecutor(workers, get_context("spawn")) as pool:
            try:
                tasks = [pool.submit(_measured, measure, c, self._folder(c)) for c in open_]
                for task in as_completed(tasks):
                    if error := task.exception():
                        failed.append(error)
                    else:
                        self._add(*task.result())
            except BaseException:  # Ctrl-C: what runs keeps its state, what waits does not start
                pool.shutdown(cancel_futures=True)
                raise
        if failed:
            raise RuntimeError(f"{len(failed)} of {len(open_)} runs failed") from failed[0]

    def _folder(self, choice: dict) -> Path:
        """Return where a run keeps its states: named after its choice."""
        text = json.dumps(choice, sort_keys=True)
        return self.kept / hashlib.sha256(text.encode()).hexdigest()[:12]

    def _add(self, choice: dict, found: dict) -> None:
        """Write the record with one more run, whole, then remove what the run kept."""
        text = json.dumps({**self.head, "runs": [*self.runs(), {**choice, **found}]}, indent=1)
        checkpoints.write({self.file: (text + "\n").encode()})
        shutil.rmtree(self._folder(choice), ignore_errors=True)
        print(f"{self.name}: {choice} in {found['wall_seconds']} s", flush=True)


def _measured(measure, choice: dict, folder: Path) -> tuple[dict, dict]:
    """Do one run; return its choice, and its figures with what they took and on what."""
    torch.set_num_threads(1)
    folder.mkdir(parents=True, exist_ok=True)
    before, wall, cpu = _spent(folder), time.perf_counter(), time.process_time()
    figures = measure(choice, folder)
    wall, cpu = time.perf_counter() - wall, time.process_time() - cpu
    # What was spent on steps before an interruption counts too, and stands in the states.
    return choice, {**figures, "wall_seconds": round(wall + before[0]), **_machine(cpu + before[1])}


def _spent(folder: Path) -> tuple[float, float]:
    """Return the seconds that the states in a folder tell of: by the wall, and of a processor."""
    told = [checkpoints.unpack(file, states.FORMAT)[1] for file in folder.glob("*.state")]
    return sum(s["wall_seconds"] for s in told), sum(s["cpu_seconds"] for s in told)


def _machine(cpu_seconds: float) -> dict:
    return {
        "cpu_seconds": round(cpu_seconds),
        "processor": processor(),
        "threads": torch.get_num_threads(),
        "python": platform.python_version(),
        "torch": torch.__version__,
        "numpy": np.__version__,
    }


def processor() -> str:
    """Return the name of the processor, or of its kind where the system does not tell.

    Example:
        >>> len(processor()) > 0
        True
    """
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except OSError:
        lines = []
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.processor() or platform.machine()


def checksums(files: Iterable[Path]) -> dict[str, str]:
    """Return the sha256 of files by their names; of Python files, that of their code.

    Example:
        >>> list(checksums([MNIST]))
        ['mnist.npz']
    """
    contents = {
        file.name: code(file.read_text(encoding="utf-8")).encode()
        if file.suffix == ".py"
        else file.read_bytes()
        for file in map(Path, files)
    }
    return {name: hashlib.sha256(content).hexdigest() for name, content in contents.items()}


def code(source: str) -> str:
    """Return Python source without its comments, docstrings and empty lines.

    Arguments:
        source: Of a module.

    Returns:
        Text to compare and not to run, since a body that was only a docstring is empty.

    Raises:
        SyntaxError: It is not Python.

    Example:
        >>> code('a = 1  # one' + chr(10) + chr(10) + 'b = "#"')
        'a = 1\\nb = "#"'
    """
    lines = source.splitlines()
    for token in tokenize.generate_tokens(io.StringIO(source).readline):
        if token.type == tokenize.COMMENT:
            row, column = token.start
            lines[row - 1] = lines[row - 1][:column]
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef):
            first = node.body[0] if node.body else None
            if isinstance(first, ast.Expr) and isinstance(getattr(first.value, "value", 0), str):
                lines[first.lineno - 1 : first.end_lineno] = [""] * (
                    first.end_lineno - first.lineno + 1
                )
    return "\n".join(line.rstrip() for line in lines if line.strip())
