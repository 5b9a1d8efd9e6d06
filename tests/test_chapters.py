"""What every chapter must be, apart from what it computes; tests/notebook_plugin.py runs it."""

import re
from collections import Counter
from pathlib import Path

import nbformat
import pytest

from tests.notebook_plugin import code_cells, stored_problems
from tests.run_chapters import PICTURES, canonical, picture

ROOT = Path(__file__).parents[1]
CHAPTERS = sorted((ROOT / "chapters").glob("*.ipynb"))
NOTEBOOKS = {path.name: nbformat.read(path, as_version=4) for path in CHAPTERS}
LARGEST = 1_500_000  # bytes
# Every chapter of the book, written or not: a number once given stays, and so does its address.
CONTENTS = [
    "01-first-vae",
    "02-architecture",
    "03-loss",
    "04-code",
    "05-output",
    "06-issues",
    "07-exact-models",
    "08-reparameterization",
    "09-likelihoods",
    "10-which-beta",
    "11-how-good-is-it",
    "12-bug-museum",
    "13-latent-space",
    "14-rate-and-distortion",
    "15-convolutions",
    "16-sharper",
    "17-compression",
    "18-your-own-data",
]
EACH = pytest.mark.parametrize("name", list(NOTEBOOKS))

SCRIPT = re.compile(r"<script|<iframe|\son\w+\s*=|javascript:", re.IGNORECASE)
# What one machine or one moment leaves behind.
VOLATILE = {
    "path": re.compile(r"(?<![\w.:/])/(?:home|work|tmp|root|Users|mnt|opt|usr)/|\b[A-Z]:\\"),
    "address": re.compile(r"0x[0-9a-fA-F]{6,}"),
    "clock": re.compile(
        r"\d\.?\d* ?(?:ms|µs|us|ns|sec|secs|seconds|minutes|it/s|s/it)\b"
        r"|\d\.\d+ ?s\b|\b\d\d?:\d\d:\d\d\b"
    ),
}
UNWANTED = {
    "hidden warnings": re.compile(r"filterwarnings|simplefilter|catch_warnings"),
    "magic": re.compile(r"^\s*[%!]|get_ipython\(", re.MULTILINE),
    "a progress bar": re.compile(r"\btqdm\b"),
}


def outputs(nb):
    return [output for cell in code_cells(nb) for output in cell.outputs]


def texts(output):
    """Return all the text of an output, pictures left out."""
    if output.output_type == "stream":
        return [output.text]
    if output.output_type == "error":
        return [output.ename, output.evalue, *output.traceback]
    return [str(value) for kind, value in output.data.items() if not kind.startswith("image/")]


def prose(nb):
    return "\n".join(cell.source for cell in nb.cells if cell.cell_type == "markdown")


def pictures(cell):
    return [o for o in cell.outputs if "image/png" in o.get("data", {})]


def figure_names(nb):
    figures = [cell.metadata.mystnb.figure for cell in code_cells(nb) if pictures(cell)]
    return [figure.name for figure in figures]


def found(patterns, text):
    """Name what a text holds of what it should not, with the piece that shows it."""
    hits = {what: pattern.search(text) for what, pattern in patterns.items()}
    return {what: hit.group() for what, hit in hits.items() if hit}


def test_chapters_have_their_final_numbers():
    assert NOTEBOOKS, "there is no chapter"
    assert set(NOTEBOOKS) <= {f"{name}.ipynb" for name in CONTENTS}
    # `chapters` holds chapters and nothing else; what they write goes to an ignored folder.
    others = {path.name for path in (ROOT / "chapters").iterdir()} - set(NOTEBOOKS)
    assert others <= {".ipynb_checkpoints"}


@EACH
def test_a_chapter_opens_with_its_label_and_title(name):
    first = NOTEBOOKS[name].cells[0]
    assert first.cell_type == "markdown"
    assert re.match(r"\([a-z0-9-]+\)=\n+# \S", first.source)


@EACH
def test_a_chapter_is_stored_in_canonical_form(name):
    path = ROOT / "chapters" / name
    assert path.read_bytes() == canonical(NOTEBOOKS[name]).encode(), "`make run` writes it"
    assert path.stat().st_size < LARGEST


@EACH
def test_a_chapter_was_run_whole(name):
    assert stored_problems(NOTEBOOKS[name]) == []


@EACH
def test_every_figure_has_alt_text_a_caption_and_a_name(name):
    for cell in code_cells(NOTEBOOKS[name]):
        if not pictures(cell):
            continue
        where = f"cell {cell.execution_count}"
        assert len(pictures(cell)) == 1, f"{where}: one caption cannot serve two figures"
        options = cell.metadata.get("mystnb", {})
        assert len(options.get("image", {}).get("alt", "")) >= 20, where
        assert options.get("figure", {}).get("caption"), where
        assert re.fullmatch(r"[a-z0-9-]+", options.get("figure", {}).get("name", "")), where


@EACH
def test_the_prose_refers_to_every_figure(name):
    text = prose(NOTEBOOKS[name])
    for figure in figure_names(NOTEBOOKS[name]):
        reference = rf"\{{(?:numref|ref)\}}`(?:[^`<]*<)?{re.escape(figure)}>?`"
        assert re.search(reference, text), f"no sentence refers to {figure}"


def test_figure_names_are_unique_in_the_book():
    names = Counter(figure for nb in NOTEBOOKS.values() for figure in figure_names(nb))
    assert [figure for figure, count in names.items() if count > 1] == []


@pytest.mark.parametrize("name", PICTURES)
def test_a_page_shows_the_picture_that_a_chapter_drew(name):
    drawn = [png for nb in NOTEBOOKS.values() if (png := picture(nb, name))]
    assert [PICTURES[name].read_bytes()] == drawn, "`make run` copies it"


@EACH
def test_code_fits_the_page(name):
    for cell in code_cells(NOTEBOOKS[name]):
        assert [line for line in cell.source.splitlines() if len(line) > 88] == []


@EACH
def test_outputs_hold_no_script_and_no_stderr(name):
    for output in outputs(NOTEBOOKS[name]):
        assert output.get("name") != "stderr"
        kinds = set(output.get("data", {}))
        assert not kinds & {"application/javascript", "image/svg+xml", "image/jpeg"}
        assert not any("widget" in kind for kind in kinds)
        for text in texts(output):
            assert not SCRIPT.search(text), text[:200]


@EACH
def test_outputs_do_not_name_a_machine_or_a_moment(name):
    for output in outputs(NOTEBOOKS[name]):
        for text in texts(output):
            assert not found(VOLATILE, text), text[:500]


@EACH
def test_sources_hide_nothing_and_need_no_magic(name):
    for cell in code_cells(NOTEBOOKS[name]):
        assert not found(UNWANTED, cell.source), cell.source


# Decimals in the prose that no cell prints: given or exact, and why.
GIVEN = {
    "1.44": "bits in a nat",
    "0.368": "1 / e",
    "2.5": "half a nat for each of five latents",
    "0.653": "where the post's form is smallest, printed by the loss chapter",
    "0.135": "where the two forms agree, printed by the loss chapter",
    "1.2": "the post's constant, in units of 1e-7",
    "0.01": "the post's penalty",
    "0.05": "nats by which a training and its record may differ",
    "0.2": "an error of a pixel, for example",
    "0.02": "half the square of that",
}


def decimals(text):
    return re.findall(r"(?<![\w.,-])\d+\.\d+(?!\w|\.\d)", text.replace("−", " "))


def printed(decimal, numbers):
    """Tell whether a number was printed, as it is or with more digits."""
    places = len(decimal.partition(".")[2])
    half = 0.5000001 * 10**-places
    return any(abs(float(decimal) - float(number)) <= half for number in numbers)


@EACH
def test_a_decimal_in_the_prose_is_one_that_a_cell_prints(name):
    numbers = [
        number
        for output in outputs(NOTEBOOKS[name])
        for text in texts(output)
        for number in re.findall(r"\d+\.\d+", text)
    ]
    said = [number for number in decimals(prose(NOTEBOOKS[name])) if number not in GIVEN]
    assert [number for number in said if not printed(number, numbers)] == []


# The patterns above find what they are for, and nothing besides.


@pytest.mark.parametrize(
    ("what", "text"),
    [
        ("path", "saved to /home/me/sample.png"),
        ("path", "saved to C:\\book"),
        ("path", "'/tmp/x'"),
        ("address", "<object at 0x7f3f61fe2c10>"),
        ("clock", "took 12.3 s"),
        ("clock", "12.3s"),
        ("clock", "15 ms per batch"),
        ("clock", "3 minutes"),
        ("clock", "at 12:34:56"),
        ("clock", "118.2it/s"),
    ],
)
def test_what_is_volatile_is_found(what, text):
    assert list(found(VOLATILE, text)) == [what]


@pytest.mark.parametrize(
    "text",
    ["outputs/sample.png", "5 seeds", "0.653 sigma", "0x1f", "epoch 3: 12.3 nats", "nats/image"],
)
def test_what_lasts_is_left_alone(text):
    assert found(VOLATILE, text) == {}


@pytest.mark.parametrize(
    ("what", "source"),
    [
        ("hidden warnings", "warnings.filterwarnings('ignore')"),
        ("magic", "%matplotlib inline"),
        ("magic", "a = 1\n!ls"),
        ("a progress bar", "from tqdm import trange"),
    ],
)
def test_what_is_unwanted_is_found(what, source):
    assert list(found(UNWANTED, source)) == [what]
    assert found(UNWANTED, "print(7 % 2, a != b)") == {}


def test_decimals_are_found_and_compared_as_they_are_rounded():
    assert decimals("gains 3.7, costs −0.54. Then 45.2. See version 1.2.3, x1.5") == [
        "3.7",
        "0.54",
        "45.2",
    ]
    assert printed("3.7", ["3.74"])
    assert not printed("3.7", ["3.76"])
    assert not printed("3.74", ["3.7"])


@pytest.mark.parametrize("text", ["<script>", "<b onclick='f()'>", "<a href='javascript:f()'>"])
def test_scripts_are_found(text):
    assert SCRIPT.search(text)
