"""Notebooks broken on purpose: each must fail, and what is harmless must pass."""

import subprocess
import sys
from pathlib import Path
from typing import NamedTuple
from xml.etree import ElementTree

import nbformat
import pytest
from nbformat.v4 import new_code_cell, new_markdown_cell, new_notebook, new_output

from tests import run_chapters
from tests.notebook_outputs import differences, text_differences
from tests.notebook_plugin import stored_problems

ROOT = Path(__file__).parents[1]
SETUP = """
import sys
import matplotlib as mpl
import numpy as np
from IPython.display import HTML, display
from matplotlib import pyplot as plt
from vae_lib import figures

figures.use_style()
x = np.linspace(0, 6, 300)
checks = np.indices((28, 28)).sum(0) % 2 * 1.0
def draw(y, label="y", **style):
    with mpl.rc_context(style):
        series = {label: (x, y)}
        figures.show(figures.curves(series, xlabel="x", ylabel="f", title="A curve"))
def white():
    fig, ax = plt.subplots()
    ax.plot(x, x, color="white")
    ax.axis("off")
    figures.show(fig)
def sheet(*images):
    figures.show(figures.image_sheet(np.stack(images)))
"""


class Case(NamedTuple):
    """A cell that was run with one source, stored, and is tested with another."""

    name: str
    stored: str
    tested: str
    passes: bool = False
    rtol: float | None = None
    raises: bool = False


CASES = [
    Case("the same text", "print('elbo -104.32')", "print('elbo -104.32')", passes=True),
    Case("third digit", "print('elbo -104.32')", "print('elbo -105.32')"),
    Case("seventh digit", "print(0.12345678)", "print(0.12345688)", passes=True),
    Case("last printed digit", "print('0.123')", "print('0.124')", passes=True),
    Case("another setting", "print('beta 0.5')", "print('beta 0.6')"),
    Case("another sign", "print(-1.5)", "print(1.5)"),
    Case("typographic minus", "print('-1.50')", r"print('\N{MINUS SIGN}1.50')", passes=True),
    Case("nan", "print(0.25)", "print(np.nan)"),
    Case("another integer", "print(60_000)", "print(60_001)"),
    Case("another grouped integer", "print('60,000 images')", "print('60,001 images')"),
    Case("another word", "print('nats 1.5')", "print('bits 1.5')"),
    Case("another line", "print('a', 1.5)", "print('a', 1.5)\nprint('b')"),
    Case("another result", "1.2345678", "1.2445678"),
    Case("another html", "HTML('<b>1.25</b>')", "HTML('<i>1.25</i>')"),
    Case("missing text", "print(1.5)", "pass"),
    Case("missing result", "1.5", "1.5;"),
    Case("extra text", "pass", "print(1.5)"),
    Case("extra result", "HTML('a')", "display(HTML('a'))\nHTML('a')"),
    Case("stderr in the new run", "pass", "print('careful', file=sys.stderr)"),
    Case("stderr in the file", "print('careful', file=sys.stderr)", "pass"),
    Case("stderr in both", "print('a', file=sys.stderr)", "print('a', file=sys.stderr)"),
    Case("wide tolerance", "print(100.001)", "print(100.901)", passes=True, rtol=1e-2),
    Case("beyond a wide tolerance", "print(100.001)", "print(102.001)", rtol=1e-2),
    Case("narrow tolerance", "print(100.001)", "print(100.011)", rtol=1e-6),
    Case("an error", "assert 0, 1.2345678", "assert 0, 1.2345679", passes=True, raises=True),
    Case("another error text", "raise ValueError('a')", "raise ValueError('b')", raises=True),
    Case("another error", "raise ValueError('a')", "raise TypeError('a')", raises=True),
    Case("no error any more", "raise ValueError('a')", "pass", raises=True),
    Case("a new error", "pass", "raise ValueError('a')"),
    Case("the same curve", "draw(np.sin(x))", "draw(np.sin(x))", passes=True),
    Case("last digit of a curve", "draw(np.sin(x))", "draw(np.sin(x) + 1e-6)", passes=True),
    Case(
        "another font and resolution",
        "draw(np.sin(x))",
        "draw(np.sin(x), **{'font.size': 17, 'font.family': 'monospace', 'figure.dpi': 60})",
        passes=True,
    ),
    Case("another curve", "draw(np.sin(x))", "draw(np.sin(1.1 * x))"),
    Case("a curve a little higher", "draw(np.sin(x))", "draw(np.sin(x) + 0.02)"),
    Case("wide tolerance of a curve", "draw(x)", "draw(x + 0.1)", passes=True, rtol=5e-2),
    Case("another label", "draw(x, 'a')", "draw(x, 'b')"),
    Case("another image", "sheet(checks, 0 * checks)", "sheet(0 * checks, checks)"),
    Case("last digit of an image", "sheet(checks)", "sheet(checks * 0.99999)", passes=True),
    Case("blank", "draw(np.sin(x))", "draw(np.full(300, np.nan))"),
    Case("blank twice", "draw(np.full(300, np.nan))", "draw(np.full(300, np.nan))"),
    Case("empty axes twice", "figures.show(plt.figure())", "figures.show(plt.figure())"),
    Case("white on white twice", "white()", "white()"),
    Case("missing figure", "draw(x)", "pass"),
    Case("text for a figure", "draw(x)", "print('<Figure with 1 plot>')"),
    Case("extra figure", "draw(x)", "draw(x)\ndraw(x)"),
    Case("figure without a fingerprint", "plt.plot(x); plt.show()", "plt.plot(x); plt.show()"),
]


def notebook(*sources):
    """Write a notebook down as if it had been run, each cell printing 1.5."""
    cells = []
    for count, source in enumerate(sources, start=1):
        outputs = [new_output("stream", name="stdout", text="1.5\n")]
        cells.append(new_code_cell(source, execution_count=count, outputs=outputs))
    return new_notebook(cells=[new_markdown_cell("# A notebook"), *cells])


def stripped(nb):
    for cell in nb.cells[1:]:
        cell.update(execution_count=None, outputs=[])
    return nb


def edited(nb, cell, **changes):
    nb.cells[cell].update(changes)
    return nb


def tagged(nb, **metadata):
    nb.cells[1].metadata.update(metadata)
    return nb


def good():
    return notebook("a = 1.5\nprint(a)", "print(a)")


NOT_RUN = {
    "no code": new_notebook(cells=[new_markdown_cell("# A notebook")]),
    "stripped": stripped(good()),
    "run in part": edited(good(), 2, execution_count=None, outputs=[]),
    "run in another order": edited(edited(good(), 1, execution_count=2), 2, execution_count=1),
    "run twice": edited(edited(good(), 1, execution_count=3), 2, execution_count=4),
    "no output": edited(edited(good(), 1, outputs=[]), 2, outputs=[]),
    "tag nbval-skip": tagged(good(), tags=["nbval-skip"]),
    "tag nbval-ignore-output": tagged(good(), tags=["nbval-ignore-output"]),
    "comment that skips": edited(good(), 1, source="# NBVAL_SKIP\nprint(1.5)"),
    "comment that ignores": edited(good(), 1, source="#NBVAL_IGNORE_OUTPUT\nprint(1.5)"),
    "a tolerance of everything": tagged(good(), vae_book={"rtol": 10}),
}


def run_pytest(folder, *options, asked=(), env=None):
    """Test the notebooks in a folder; return `{"file, item": (outcome, text, seconds)}`.

    `asked` names what to test instead of the whole folder.
    """
    report = folder / "report.xml"
    command = [sys.executable, "-m", "pytest", "-p", "tests.notebook_plugin", "-q"]
    command += ["-c", str(ROOT / "pyproject.toml"), f"--rootdir={folder}", "-o", "cache_dir=.cache"]
    command += [f"--junitxml={report}", *options, *map(str, asked or [folder])]
    done = subprocess.run(
        command, cwd=ROOT, env=env, capture_output=True, encoding="utf-8", timeout=200
    )
    assert done.returncode in (0, 1), done.stdout + done.stderr
    results = {}
    for case in ElementTree.parse(report).iter("testcase"):
        outcome, text = "passed", ""
        for child in case:
            if child.tag in ("failure", "error", "skipped"):
                outcome, text = child.tag, f"{child.get('message')}\n{child.text}"
        name = f"{case.get('classname').removesuffix('.ipynb')}, {case.get('name')}"
        results[name] = (outcome, text, float(case.get("time")))
    return results


@pytest.fixture(scope="module")
def cases(tmp_path_factory):
    """Store all cases with one source, exchange the sources, test."""
    path = tmp_path_factory.mktemp("cases") / "cases.ipynb"
    cells = [new_code_cell(SETUP)]
    for case in CASES:
        metadata = {"vae_book": {"rtol": case.rtol}} if case.rtol else {}
        if "raise" in case.stored or case.raises:
            metadata["tags"] = ["raises-exception"]
        cells.append(new_code_cell(case.stored, metadata=metadata))
    nbformat.write(new_notebook(cells=cells), path)
    assert run_chapters.main([str(path)]) == 0
    nb = nbformat.read(path, as_version=4)
    for case, cell in zip(CASES, nb.cells[1:], strict=True):
        cell.source = case.tested
    nbformat.write(nb, path)
    return run_pytest(path.parent, "--all-cells")


@pytest.mark.parametrize(("number", "case"), [*enumerate(CASES, 2)], ids=[c.name for c in CASES])
def test_what_passes_and_what_fails(cases, number, case):
    outcome, text, _ = cases[f"cases, Cell {number}"]
    assert outcome == ("passed" if case.passes else "failure"), text


STORED_ON_STDERR = ("stderr in the file", "stderr in both")


def test_the_unbroken_cells_are_a_fair_background(cases):
    assert cases["cases, Cell 1"][0] == "passed"
    outcome, text, _ = cases["cases, stored outputs"]
    stored = [number for number, case in enumerate(CASES, 2) if case.name in STORED_ON_STDERR]
    assert outcome == "failure"
    said = f"text on stderr, as a bar or a warning leaves it, in cells {stored}; `make run` stores "
    assert set(text.removeprefix("Failed: ").splitlines()) == {f"{said}outputs"}
    assert len(cases) == len(CASES) + 2


def test_a_failure_names_both_numbers_and_the_tolerance(cases):
    number = 2 + [case.name for case in CASES].index("third digit")
    _, text, _ = cases[f"cases, Cell {number}"]
    said = "stdout 1: number 1 was -104.32 and is now -105.32: relative difference 9.5e-03, "
    assert said + "allowed 1.0e-03" in text


@pytest.fixture(scope="module")
def small(tmp_path_factory):
    """Test several small notebooks in two workers, as `make test` does."""
    folder = tmp_path_factory.mktemp("small")
    kill = "import os, signal\nos.kill(os.getpid(), signal.SIGKILL)"
    notebooks = {
        "good": notebook("a = 1.5\nprint(a)", *["print(a)"] * 5),
        "stripped": stripped(good()),
        "killed": notebook("print(1.5)", kill, "print(1.5)"),
    }
    for name, nb in notebooks.items():
        nbformat.write(nb, folder / f"{name}.ipynb")
    return run_pytest(folder, "-n2", "--dist=loadscope")


def test_one_worker_runs_a_notebook_in_order(small):
    names = [f"good, Cell {number}" for number in range(1, 7)]
    assert [small[name][0] for name in names] == ["passed"] * 6


def test_a_stripped_notebook_fails(small):
    outcome, text, _ = small["stripped, stored outputs"]
    assert outcome == "failure"
    assert "not run: cells [1, 2]" in text


def test_a_dead_kernel_fails_at_once(small):
    outcome, text, seconds = small["killed, Cell 2"]
    assert outcome == "failure"
    assert "The kernel died" in text
    assert seconds < 30
    assert small["killed, Cell 3"][0] != "passed"
    assert small["killed, Cell 3"][2] < 30


def test_a_cell_beyond_the_time_limit_fails(tmp_path):
    endless = notebook("print(1.5)", "import time\ntime.sleep(100)")
    nbformat.write(endless, tmp_path / "endless.ipynb")
    outcome, text, seconds = run_pytest(tmp_path, "--nbval-cell-timeout=3")["endless, Cell 2"]
    assert outcome == "failure"
    assert "Timeout of 3 seconds" in text
    assert seconds < 30


@pytest.mark.parametrize("nb", [*NOT_RUN.values()], ids=list(NOT_RUN))
def test_outputs_that_no_full_run_left(nb):
    assert stored_problems(nb)


def test_a_stored_bar_is_said_once_with_what_repairs_it():
    nb = good()
    for cell in [cell for cell in nb.cells if cell.cell_type == "code"][:2]:
        cell.outputs.append(new_output("stream", name="stderr", text="100%"))
    (said,) = stored_problems(nb)
    assert said.startswith("text on stderr, as a bar or a warning leaves it, in cells [1, 2]")
    assert said.endswith("`make run` stores outputs")


def test_outputs_of_a_full_run():
    assert stored_problems(good()) == []
    # A cell without code is not run, and has no count.
    nb = good()
    nb.cells.append(new_code_cell(" \n"))
    assert stored_problems(nb) == []


@pytest.mark.parametrize(
    ("stored", "now", "same"),
    [
        ("3.", "4.", False),  # an integer at the end of a sentence
        ("torch 2.13.0", "torch 2.13.1", False),
        ("#009e734d", "#009e734d", True),
        ("#009e734d", "#009e734f", False),
        ("conv1.weight", "conv2.weight", False),
        ("1,234.5", "1,234.6", True),
        ("1,234.5", "1,334.5", False),
        ("1.000e-07", "1.001e-07", True),
        ("1.000e-07", "1.000e-06", False),
        ("1e-07", "2e-07", False),
        ("inf 1.5", "nan 1.5", False),
        ("gap  -0.0000", "gap   0.0000", True),
        ("98.76%", "98.77%", True),
        ("98.76%", "97.76%", False),
        ("2.31x faster", "2.41x faster", False),
        ("[0.1234, 0.5678]", "[0.1234, 0.5878]", False),
        ("[0.1234, 0.5678]", "[0.1234, 0.5678, 0.1]", False),
    ],
)
def test_text(stored, now, same):
    assert (text_differences(stored, now) == []) is same
    assert (text_differences(now, stored) == []) is same


def test_pieces_of_a_stream_are_joined():
    whole = [new_output("stream", name="stdout", text="a 1.5\nb\n")]
    pieces = [new_output("stream", name="stdout", text=text) for text in ("a 1.5\n", "b\n")]
    assert differences(whole, pieces) == []
    assert pieces[0].text == "a 1.5\n"  # the outputs of the caller are left alone


def collected(*arguments):
    command = [sys.executable, "-m", "pytest", "--collect-only", "-q", *map(str, arguments)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, encoding="utf-8", timeout=100)
    return [line for line in done.stdout.splitlines() if "::" in line], done.stderr


def test_plain_pytest_collects_every_chapter_once():
    chapters = sorted(path.name for path in (ROOT / "chapters").glob("*.ipynb"))
    items, _ = collected("--nbval", "chapters")
    stored = [item for item in items if item.endswith("::stored outputs")]
    assert [Path(item.partition("::")[0]).name for item in stored] == chapters
    assert len(set(items)) == len(items)


def test_the_lax_mode_is_refused():
    items, error = collected("--nbval-lax", "chapters")
    assert items == []
    assert "--nbval-lax" in error


# ------------------------------------------------------------------------------------ `make run`


NOISY = """
import numpy as np
from vae_lib import figures
noise = 1e-8 * np.random.default_rng().random()
figures.show(figures.curves({"y": ([0, 1], [1, 2 + noise])}, xlabel="x", ylabel="y"))
print(f"{0.5 + noise:.12f}")
"""


def test_running_again_changes_nothing(tmp_path):
    path = tmp_path / "01-noisy.ipynb"
    nb = new_notebook(cells=[new_markdown_cell("# Noise"), new_code_cell(NOISY)])
    nb.cells[1].metadata = {"execution": {"iopub.status.busy": "now"}, "scrolled": True}
    nb.metadata = {"widgets": {}, "language_info": {"name": "python", "version": "3.99"}}
    nbformat.write(nb, path)
    assert run_chapters.main([str(path)]) == 0
    first = path.read_bytes()
    assert run_chapters.main([str(path)]) == 0
    assert path.read_bytes() == first
    stored = nbformat.read(path, as_version=4)
    assert run_chapters.canonical(stored).encode() == first
    assert stored.cells[1].execution_count == 1
    assert not stored.cells[1].metadata
    assert stored.metadata == run_chapters.NOTEBOOK_METADATA
    assert list(tmp_path.iterdir()) == [path]


def test_running_keeps_only_what_is_the_same(tmp_path, capsys):
    path = tmp_path / "01-changed.ipynb"
    nbformat.write(notebook("print(1.5000001)", "print(1.6)"), path)
    assert run_chapters.main([str(path)]) == 0
    outputs = [cell.outputs[0].text for cell in nbformat.read(path, as_version=4).cells[1:]]
    assert outputs == ["1.5\n", "1.6\n"]
    assert "1 cell has changed" in capsys.readouterr().out
    assert run_chapters.main(["--fresh", str(path)]) == 0
    outputs = [cell.outputs[0].text for cell in nbformat.read(path, as_version=4).cells[1:]]
    assert outputs == ["1.5000001\n", "1.6\n"]


def test_a_chapter_that_raises_is_left_as_it_was(tmp_path, capsys):
    path = tmp_path / "01-raises.ipynb"
    nbformat.write(new_notebook(cells=[new_code_cell("a = 0"), new_code_cell("1 / a")]), path)
    before = path.read_bytes()
    assert run_chapters.main([str(path)]) == 1
    assert path.read_bytes() == before
    message = capsys.readouterr().err
    assert "01-raises.ipynb" in message
    assert "1 / a" in message
    assert "ZeroDivisionError" in message


def test_a_chapter_saved_while_it_runs_is_left_as_it_was_saved(tmp_path, capsys):
    path = tmp_path / "01-saved.ipynb"
    save = "with open('01-saved.ipynb', 'a') as file:\n    _ = file.write('\\n')"
    nbformat.write(new_notebook(cells=[new_code_cell(save)]), path)
    before = path.read_bytes()
    assert run_chapters.main([str(path)]) == 1
    assert path.read_bytes() == before + b"\n"
    assert "saved while it ran" in capsys.readouterr().err
