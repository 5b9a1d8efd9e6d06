"""Reports of an environment, and two of them held against each other."""

import copy
import getpass
import json
import platform
import re
import subprocess
import sys
from pathlib import Path

import nbformat
import pytest
from nbformat.v4 import new_notebook

from tests import run_chapters
from tests.compare import ALIKE, MOVED, NOT_COMPARABLE, main
from tests.notebook_outputs import apart, reduced
from tests.test_notebook_plugin import ROOT, SETUP, new_code_cell, new_output

CELLS = {
    "a number": "print('elbo -104.32')",
    "a path": "import os; print(os.getcwd(), '/home/run-315e0.5/9.75', 'C:\\\\a-2.5', 1.25)",
    "a table": "from vae_lib import results\nresults.table({'a': [1.25, 2.5], 'b': [3, 4]})",
    "a figure": "draw(np.sin(x))",
}


def run(folder, *options):
    """Test the notebook in a folder."""
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider"]
    command += ["-c", str(ROOT / "pyproject.toml"), f"--rootdir={folder}", str(folder)]
    command += ["-p", "tests.notebook_plugin", "--all-cells", *options]
    return subprocess.run(command, cwd=ROOT, capture_output=True, encoding="utf-8", timeout=200)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A notebook that was run, and then changed in one cell."""
    folder = tmp_path_factory.mktemp("reported")
    path = folder / "nb.ipynb"
    nbformat.write(new_notebook(cells=[*map(new_code_cell, [SETUP, *CELLS.values()])]), path)
    assert run_chapters.main([str(path)]) == 0
    nb = nbformat.read(path, as_version=4)
    nb.cells[1].outputs = [new_output("stream", name="stdout", text="elbo -104.33\n")]
    nb.cells[2].outputs = [new_output("stream", name="stdout", text="/elsewhere 1.25\n")]
    nbformat.write(nb, path)
    return folder


@pytest.fixture(scope="module")
def report(folder):
    """The report of two workers."""
    file = folder / "A.json"
    done = run(folder, "-n2", f"--vae-report={file}")
    assert done.returncode == 1, done.stdout + done.stderr
    assert "report: A.json" in done.stdout
    return json.loads(file.read_text(encoding="utf-8"))


def cell(report, name):
    return report["cells"][f"nb.ipynb::Cell {2 + list(CELLS).index(name)}"]


def test_a_report_says_what_was_tested(report):
    assert report["tests"]["nb.ipynb::stored outputs"] == "passed"
    assert report["tests"]["nb.ipynb::Cell 2"] == "passed"
    assert report["tests"]["nb.ipynb::Cell 3"] == "failed"
    assert report["environment"]["torch"]
    assert report["environment"]["threads"] >= 1
    assert len(report["cells"]) == len(CELLS) + 1


def test_a_report_says_how_far_each_number_moved(report):
    # One unit of the last digit is allowed, or a part in a thousand: here 0.104.
    assert cell(report, "a number")["moved"] == pytest.approx(0.01 / 0.10433, rel=1e-3)
    assert cell(report, "a path")["moved"] is None
    assert cell(report, "a figure")["moved"] == 0


def test_a_report_holds_no_path_host_or_user(report):
    text = json.dumps(report)
    assert cell(report, "a path")["outputs"]["texts"]["stdout"][0]["floats"] == ["1.25"]
    assert not re.search(r"(?<![\w.:])/\w|[A-Z]:\\\\", text)
    for name in (platform.node(), getpass.getuser(), Path.home().name):
        assert not re.search(rf"\b{re.escape(name)}\b", text.replace("Cell", "")), name


@pytest.mark.parametrize("where", ["missing/A.json", "."])
def test_a_report_that_cannot_be_written_is_refused_before_anything_runs(folder, where):
    done = run(folder, f"--vae-report={folder / where}")
    assert done.returncode == 4
    assert "expected a file in a folder that exists" in done.stderr
    assert "passed" not in done.stdout


def changed(report, name, number, into):
    """Return a report in which a number of a cell is another."""
    text = json.dumps(cell(report, name))
    assert number in text
    other = copy.deepcopy(report)
    key = f"nb.ipynb::Cell {2 + list(CELLS).index(name)}"
    other["cells"][key] = json.loads(text.replace(number, into, 1))
    return other


def compared(tmp_path, one, other, *options):
    paths = [tmp_path / "A.json", tmp_path / "B.json"]
    for path, report in zip(paths, (one, other), strict=True):
        path.write_text(json.dumps(report), encoding="utf-8")
    return main([*map(str, paths), *options])


def test_a_report_is_alike_to_itself(tmp_path, report, capsys):
    assert compared(tmp_path, report, report, "--within=0") == ALIKE
    assert "alike" in capsys.readouterr().out


def test_what_moved_is_named_with_its_share(tmp_path, report, capsys):
    other = changed(report, "a number", '"-104.32"', '"-104.37"')
    assert compared(tmp_path, report, other) == ALIKE
    assert "Cell 2: 0.48 of the tolerance" in capsys.readouterr().out
    assert compared(tmp_path, report, other, "--within=0.4") == MOVED
    other = changed(report, "a number", '"-104.32"', '"-105.32"')
    assert compared(tmp_path, report, other) == MOVED
    assert "Cell 2: 9.49 of the tolerance" in capsys.readouterr().out


def test_other_words_have_moved(tmp_path, report, capsys):
    words = cell(report, "a table")["outputs"]["texts"]["text/plain"][0]["words"]
    assert compared(tmp_path, report, changed(report, "a table", words, "#0")) == MOVED
    assert "Cell 4: other words" in capsys.readouterr().out


def test_another_outcome_has_moved(tmp_path, report, capsys):
    other = copy.deepcopy(report)
    other["tests"]["nb.ipynb::Cell 3"] = "passed"
    assert compared(tmp_path, report, other) == MOVED
    assert "nb.ipynb::Cell 3: failed in A, passed in B" in capsys.readouterr().out


def other_book(report):
    return report | {"book": "0"}


def other_source(report):
    other = copy.deepcopy(report)
    cell(other, "a number")["source"] = "0"
    return other


def other_tests(report):
    return report | {"tests": {"tests/test_data.py::test_a": "passed"}}


def other_format(report):
    return report | {"format": 0}


@pytest.mark.parametrize("change", [other_book, other_source, other_tests, other_format])
def test_not_everything_can_be_compared(tmp_path, report, change, capsys):
    assert compared(tmp_path, report, change(report)) == NOT_COMPARABLE
    assert "not comparable" in capsys.readouterr().err


@pytest.mark.parametrize("text", [None, "", "[]", "elbo"])
def test_what_is_no_report_is_refused(tmp_path, text, capsys):
    path = tmp_path / "A.json"
    if text is not None:
        path.write_text(text, encoding="utf-8")
    assert main([str(path), str(path)]) == NOT_COMPARABLE
    assert "pytest --vae-report" in capsys.readouterr().err


def test_reduced_outputs_are_compared_like_whole_ones():
    def printed(text):
        return reduced([new_output("stream", name="stdout", text=text)])

    assert apart(printed("a 1.50"), printed("a 1.50")) == 0
    assert (
        0
        < apart(printed("a 150.02"), printed("a 150.03"))
        < 1
        < apart(printed("a 150.0"), printed("a 151.0"))
    )
    assert apart(printed("a 1.5"), printed("b 1.5")) == float("inf")
    assert apart(printed("a 1"), printed("a 2")) == float("inf")
