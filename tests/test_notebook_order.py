"""A cell is judged in a kernel that has run the cells above it, whatever deals out the tests."""

import json
import os
import sys

import nbformat
import pytest
from nbformat.v4 import new_code_cell, new_notebook, new_output

from tests.test_notebook_plugin import run_pytest

# Every cell adds one and prints the sum: a cell that is missing, early or run twice changes it.
FIRST, NEXT = "n = 1\nprint('sum', n)", "n += 1\nprint('sum', n)"


def counting(length=6, **changed):
    """A notebook that counts its cells; `cell_3="..."` gives its third cell another source."""
    sources = [FIRST, *[NEXT] * (length - 1)]
    for name, source in changed.items():
        sources[int(name.removeprefix("cell_")) - 1] = source
    cells = [
        new_code_cell(
            source,
            execution_count=number,
            outputs=[new_output("stream", name="stdout", text=f"sum {number}\n")],
        )
        for number, source in enumerate(sources, start=1)
    ]
    return new_notebook(cells=cells)


def stored(folder, **notebooks):
    for name, nb in notebooks.items():
        nbformat.write(nb, folder / f"{name}.ipynb")
    return folder


def outcomes(results, name, cells):
    return [results[f"{name}, Cell {number}"][0] for number in cells]


# What other people's plugins do with tests: mix and reverse them; run each again.
SHUFFLE = """
def pytest_collection_modifyitems(items):
    items.sort(key=lambda item: item.name, reverse=True)
"""
RERUN = """
from _pytest.runner import runtestprotocol
def pytest_runtest_protocol(item):
    runtestprotocol(item, nextitem=item, log=False)
"""


def plugin(folder, source):
    """Write a plugin and return the options and the environment that load it."""
    (folder / "theirs.py").write_text(source, encoding="utf-8")
    path = os.pathsep.join([str(folder), os.environ["PYTHONPATH"]])
    return ["-p", "theirs"], os.environ | {"PYTHONPATH": path}


@pytest.mark.parametrize("options", [[], ["-n2"]], ids=str)
def test_a_notebook_stays_together_and_in_order(tmp_path, options):
    started = str(tmp_path / "started")
    once = f"{FIRST}\nwith open({started!r}, 'a') as file:\n    print(n, file=file)"
    stored(tmp_path, one=counting(cell_1=once), two=counting(cell_1=once))
    shuffle, env = plugin(tmp_path, SHUFFLE)
    results = run_pytest(tmp_path, *shuffle, *options, env=env)
    assert {name: text for name, (outcome, text, _) in results.items() if outcome != "passed"} == {}
    assert len(results) == 14
    assert (tmp_path / "started").read_text(encoding="utf-8") == "1\n1\n"  # nothing was run again


def test_a_rerun_has_a_kernel_of_its_own(tmp_path):
    stored(tmp_path, one=counting(3))
    rerun, env = plugin(tmp_path, RERUN)
    results = run_pytest(tmp_path, *rerun, env=env)
    assert outcomes(results, "one", [1, 2, 3]) == ["passed"] * 3


def test_a_cell_asked_for_by_its_id_has_those_above_it_run(tmp_path):
    notebook = stored(tmp_path, one=counting()) / "one.ipynb"
    results = run_pytest(tmp_path, asked=[f"{notebook}::Cell 5", f"{notebook}::Cell 3"])
    assert list(results) == ["one, Cell 3", "one, Cell 5"]
    assert outcomes(results, "one", [3, 5]) == ["passed", "passed"]


def test_the_last_failure_is_judged_on_its_own(tmp_path):
    stored(tmp_path, one=counting(cell_4="n += 7\nprint('sum', n)"))
    for options in ([], ["--lf"]):
        results = run_pytest(tmp_path, *options)
        assert "sum 10" in results["one, Cell 4"][1]
    assert list(results) == ["one, Cell 4"]


def test_cells_below_a_failure_are_not_run(tmp_path):
    changed = counting(cell_3="print('sum', n)")
    raising = counting(cell_3="raise ValueError(n)")
    stored(tmp_path, changed=changed, raising=raising, good=counting())
    results = run_pytest(tmp_path)
    for name in ("changed", "raising"):
        assert outcomes(results, name, range(1, 7)) == [
            *["passed"] * 2,
            "failure",
            *["skipped"] * 3,
        ]
        assert "not run: cell 3 failed" in results[f"{name}, Cell 6"][1]
    assert outcomes(results, "good", range(1, 7)) == ["passed"] * 6


def test_all_cells_are_run_if_asked_for(tmp_path):
    stored(tmp_path, one=counting(cell_2="raise ValueError(n)"))
    results = run_pytest(tmp_path, "--all-cells")
    assert outcomes(results, "one", range(1, 7)) == ["passed", *["failure"] * 5]
    assert "sum 5" in results["one, Cell 6"][1]


def test_a_cell_that_needs_one_that_raises_says_so(tmp_path):
    notebook = stored(tmp_path, one=counting(cell_2="raise ValueError(n)")) / "one.ipynb"
    results = run_pytest(tmp_path, asked=[f"{notebook}::Cell 4", f"{notebook}::Cell 5"])
    outcome, text, _ = results["one, Cell 4"]
    assert outcome == "failure"
    assert "cell 2, which comes first, failed" in text
    assert "ValueError" in text
    assert results["one, Cell 5"][0] == "skipped"


def test_a_kernel_with_another_library_is_refused(tmp_path):
    """What such a kernel computes says nothing of this checkout."""
    stored(tmp_path, one=counting())
    (tmp_path / "elsewhere" / "vae_lib").mkdir(parents=True)
    (tmp_path / "elsewhere" / "vae_lib" / "__init__.py").touch()
    spec = {
        "argv": [sys.executable, "-m", "ipykernel_launcher", "-f", "{connection_file}"],
        "display_name": "Theirs",
        "language": "python",
        "env": {"PYTHONPATH": str(tmp_path / "elsewhere")},
    }
    kernel = tmp_path / "kernels" / "theirs" / "kernel.json"
    kernel.parent.mkdir(parents=True)
    kernel.write_text(json.dumps(spec), encoding="utf-8")
    env = os.environ | {"JUPYTER_PATH": str(tmp_path)}
    results = run_pytest(tmp_path, "--nbval-kernel-name=theirs", env=env)
    outcome, text, _ = results["one, Cell 1"]
    assert outcome == "failure"
    assert f"The kernel theirs imports vae_lib from {tmp_path / 'elsewhere'}, not from" in text
    assert set(outcomes(results, "one", range(2, 7))) == {"skipped"}
