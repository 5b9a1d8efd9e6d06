"""The book, built once for all the tests that look at its pages."""

import os
import subprocess
import sys
from pathlib import Path

from filelock import FileLock

ROOT = Path(__file__).parents[1]


def build(tmp_path_factory):
    """Build the book with warnings as errors, or wait for the worker that does; return its folder.

    A failed build raises with what Jupyter Book said.
    """
    base = tmp_path_factory.getbasetemp()
    # The workers of one run share the folder above their own.
    shared = base.parent if "PYTEST_XDIST_WORKER" in os.environ else base
    output = shared / "book"
    built = output / "built"
    # A repository's buttons are no part of what is tested here.
    environment = {k: v for k, v in os.environ.items() if not k.endswith("REPOSITORY")}
    with FileLock(shared / "book.lock"):
        if not built.exists():
            command = [sys.executable, ROOT / "book" / "build.py", "--output", output]
            run = subprocess.run(command, env=environment, capture_output=True, encoding="utf-8")
            if run.returncode:
                raise RuntimeError(run.stderr)
            built.touch()
    return output / "_build" / "html"


def pages(folder):
    """Return the pages of a built book, without index.html, which only leads on to the first.

    The snippets that the theme leaves in _static are no pages either.
    """
    found = [path for path in folder.rglob("*.html") if "_static" not in path.parts]
    return sorted(path for path in found if path != folder / "index.html")
