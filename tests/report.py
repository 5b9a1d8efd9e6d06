"""What was tested here, and how far each number moved: `pytest --vae-report FILE`.

The report holds the versions, the processor and its instruction set, the outcome of each test, and
for each cell of a notebook how much of its tolerance the number that moved most has used (none if
words differ). The outputs are in it too, without their words and pixels, so that
`python -m tests.compare` can hold two environments against each other. No path, host or user name
is in it, whatever a cell printed.
"""

import hashlib
import json
import math
import os
import platform
from importlib.metadata import PackageNotFoundError, version

import pytest

from tests.notebook_outputs import reduced
from tests.surroundings import ROOT

FORMAT = 1
PACKAGES = ("torch", "numpy", "matplotlib", "safetensors", "pytest", "nbval", "ipykernel")
PROPERTY = "vae-report"


def keep(item, share, outputs, rtol):
    """Note how far a cell moved, where the report is asked for; pytest carries it to there."""
    if item.config.getoption("vae_report", None):
        found = {
            "source": _digest(item.cell.source),
            "rtol": rtol,
            "moved": share if math.isfinite(share) else None,
            "outputs": reduced(outputs),
        }
        item.user_properties.append((PROPERTY, found))


class Reporter:
    """Gathers from all workers, and writes once, at the end."""

    def __init__(self, path):
        if not path.parent.is_dir() or path.is_dir():
            raise pytest.UsageError(
                f"--vae-report {path}: expected a file in a folder that exists; make the folder, "
                "or name another"
            )
        self.path = path.resolve()
        self.tests, self.cells = {}, {}

    def pytest_runtest_logreport(self, report):
        if report.when == "call" or not report.passed:
            self.tests[report.nodeid] = report.outcome
        if found := dict(report.user_properties).get(PROPERTY):
            self.cells[report.nodeid] = found

    def pytest_sessionfinish(self):
        whole = {
            "format": FORMAT,
            "book": book(),
            "environment": environment(),
            "tests": dict(sorted(self.tests.items())),
            "cells": dict(sorted(self.cells.items())),
        }
        partial = self.path.with_name(self.path.name + ".partial")
        partial.write_text(json.dumps(whole, allow_nan=False), encoding="utf-8")
        os.replace(partial, self.path)

    def pytest_terminal_summary(self, terminalreporter):
        terminalreporter.write_line(f"report: {self.path.name}")


def book():
    """Say which version of the library was tested."""
    sources = sorted((ROOT / "vae_lib").rglob("*.py"))
    return _digest("".join(path.read_text(encoding="utf-8") for path in sources))


def environment():
    """Describe the software and the arithmetic, and nothing that belongs to a person."""
    import torch

    from vae_lib.records import processor

    versions = {}
    for name in PACKAGES:
        try:
            versions[name] = version(name)
        except PackageNotFoundError:
            versions[name] = None
    return {
        "python": platform.python_version(),
        **versions,
        "system": platform.system(),
        "machine": platform.machine(),
        "processor": processor(),
        "instruction set": torch.backends.cpu.get_cpu_capability(),
        "threads": torch.get_num_threads(),
    }


def _digest(text):
    return hashlib.sha256(text.encode()).hexdigest()[:16]
