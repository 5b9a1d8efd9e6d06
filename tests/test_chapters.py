"""What every chapter must be, apart from what it computes; tests/notebook_plugin.py runs it."""

import ast
import functools
import itertools
import re
import symtable
from collections import Counter
from pathlib import Path

import nbformat
import pytest
from nbformat.v4 import new_code_cell, new_markdown_cell, new_notebook, new_output

from book import build
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
# What a chapter may take, and the book, in seconds of one processor core.
MOST_SECONDS = {"04-code.ipynb": 150}
MOST_SECONDS_OF_THE_OTHERS = 90
MOST_SECONDS_OF_ALL = 21 * 60
MOST_BYTES_OF_ASSETS = 60_000_000
# What a beginner reads before the second part: words, lines of code, the median cell.
PART_ONE = [name for name in NOTEBOOKS if name < "07"]
MOST_WORDS, MOST_LINES, MEDIAN_LINES = 16_000, 1_400, 7
TIME = re.compile(r"^\*\*It takes\*\* about (\d+) seconds of one processor core\b", re.MULTILINE)
EACH = pytest.mark.parametrize("name", list(NOTEBOOKS))

WIDGET = re.compile(r'<div class="vae-widget".*?</div>', re.DOTALL)
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


def seconds(nb):
    """Return the time that a chapter states in its first cell."""
    stated = TIME.findall(nb.cells[0].source)
    assert len(stated) == 1, "say: **It takes** about 20 seconds of one processor core"
    return int(stated[0])


def form_problems(nb):
    """Say where a chapter does not fold and print as CONTRIBUTING.md has it."""
    problems, asked = [], False
    cells = [cell for cell in nb.cells if cell.get("id") != "library-check"]
    for index, cell in enumerate(cells):
        if cell.cell_type == "markdown":
            question = cell.source.rfind("**Predict.**")
            asked = (asked or question >= 0) and "<details>" not in cell.source[question + 1 :]
            continue
        if cell.cell_type != "code" or not cell.source.strip():
            continue
        tags = set(cell.metadata.get("tags", []))
        later = [c.source for c in cells[index + 1 :] if c.cell_type == "code"]
        wanted = {}
        if not hands_on(cell.source, later):
            kinds = {kind for o in cell.outputs for kind in o.get("data", {o.output_type: 0})}
            checks = re.search(r"^ *assert\b", cell.source, re.MULTILINE)
            if "image/png" in kinds and "stream" not in kinds and not checks:
                wanted["only draws"] = {"hide-input", "hide-cell"}
            if checks and not cell.outputs:
                wanted["only checks"] = {"hide-cell"}
        if asked and cell.outputs:
            wanted["answers a prediction"], asked = {"hide-output", "hide-cell"}, False
        for what, fitting in wanted.items():
            if not tags & fitting:
                which = " or ".join(sorted(fitting))
                problems.append(f"cell {cell.execution_count} {what}: give it the tag {which}")
        printed = "".join(o.text for o in cell.outputs if o.output_type == "stream")
        if printed.count("\n") > 2 or re.search(r"\S  +\S|^ +\S", printed, re.MULTILINE):
            problems.append(f"cell {cell.execution_count} prints rows or columns: results.table")
    return problems


def hands_on(source, later):
    """Tell whether a later cell reads a name that a cell sets."""
    given = set().union(*(written for _, written in statements(source)))
    for read, written in itertools.chain.from_iterable(map(statements, later)):
        if given & read:
            return True
        given = given - written
    return False


@functools.cache
def statements(source):
    """Return what each statement of a cell reads and sets."""
    return [names(statement) for statement in ast.parse(source).body]


def names(statement):
    """Return the names that a statement reads from outside it, and those that it sets."""
    top = symtable.symtable(ast.unparse(statement), "cell", "exec")
    tables = [top]
    for table in tables:
        tables += table.get_children()
    read = {
        symbol.get_name()
        for table in tables
        for symbol in table.get_symbols()
        if symbol.is_referenced() and (table is top or symbol.is_global())
    }
    if isinstance(statement, ast.For):  # it sets its own names before it reads them
        read -= {n.id for n in ast.walk(statement.target) if isinstance(n, ast.Name)}
    symbols = top.get_symbols()
    return read, {s.get_name() for s in symbols if s.is_assigned() or s.is_imported()}


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
def test_a_chapter_says_how_to_get_its_library(name):
    wanted = build.library_cells(build.repository({}))
    found = NOTEBOOKS[name].cells[1:3]
    assert [(cell.id, cell.source) for cell in found] == [(c["id"], c["source"]) for c in wanted]


@EACH
def test_a_chapter_states_a_time_within_its_limit(name):
    most = MOST_SECONDS.get(name, MOST_SECONDS_OF_THE_OTHERS)
    assert seconds(NOTEBOOKS[name]) <= most


def test_the_book_stays_within_its_time():
    assert sum(map(seconds, NOTEBOOKS.values())) <= MOST_SECONDS_OF_ALL


def test_the_package_stays_small():
    files = [path for path in (ROOT / "vae_lib" / "assets").rglob("*") if path.is_file()]
    assert files
    assert sum(path.stat().st_size for path in files) <= MOST_BYTES_OF_ASSETS


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


@EACH
def test_a_chapter_folds_and_prints_as_the_others(name):
    assert form_problems(NOTEBOOKS[name]) == []


def lines(cell):
    """Return the lines of a code cell that are not empty, apart from what `make run` writes."""
    return [] if cell.id == "library-check" else [x for x in cell.source.splitlines() if x.strip()]


def test_the_first_part_is_no_longer_than_a_beginner_reads():
    # A widget, its question and its picture are for the hands, and take no reading.
    words = sum(len(WIDGET.sub("", prose(NOTEBOOKS[name])).split()) for name in PART_ONE)
    assert words <= MOST_WORDS
    cells = [cell for name in PART_ONE for cell in code_cells(NOTEBOOKS[name])]
    assert sum(len(lines(cell)) for cell in cells) <= MOST_LINES


@pytest.mark.parametrize("name", PART_ONE)
def test_cells_are_short(name):
    sizes = sorted(len(lines(cell)) for cell in code_cells(NOTEBOOKS[name]) if lines(cell))
    assert sizes[len(sizes) // 2] <= MEDIAN_LINES


@EACH
def test_five_questions_at_the_end_have_answers_that_say_where_to_read(name):
    _, _, section = prose(NOTEBOOKS[name]).partition("\n## Check yourself\n")
    section = section.partition("\n## ")[0]
    questions, _, answers = section.partition("<details>")
    found = [re.findall(r"^(\d)\. (.*)$", part, re.MULTILINE) for part in (questions, answers)]
    for part in found:
        assert [number for number, _ in part] == list("12345")
    assert [text for _, text in found[1] if "{ref}" not in text] == []


def test_the_first_chapter_is_whole_in_sixty_lines():
    *cells, last = code_cells(NOTEBOOKS["01-first-vae.ipynb"])
    code = "\n".join("\n".join(lines(cell)) for cell in cells)
    assert len(code.splitlines()) <= 60
    imported = re.findall(r"^from (vae_lib\S*) import (.*)$", code, flags=re.MULTILINE)
    assert imported == [("vae_lib", "figures"), ("vae_lib.data", "binarize, load_mnist")]
    assert set(re.findall(r"figures\.(\w+)", code)) == {"show"}
    for step in ("zero_grad()", "backward()", "step()", "lr="):
        assert step in code
    assert "elbo(" in last.source
    assert last.source.count("assert ") >= 2


# Decimals in the prose that no cell prints: given or exact, and why.
GIVEN = {
    "1.44": "bits in a nat",
    "2.5": "half a nat for each of five latents",
    "0.135": "where the two forms agree, printed by the loss chapter",
    "0.01": "the post's penalty",
}


NUMBER = re.compile(r"(?<![\w.,])[-−]?\d+\.\d+(?!\w|\.\d)")


def decimals(text):
    return [number.replace("−", "-") for number in NUMBER.findall(text)]


def printed(decimal, numbers):
    """Tell whether a number was printed, as it is or with more digits; a minus sign must agree.

    Without one it may be the size of a number below zero, as in "it falls by 2.3".
    """
    places = len(decimal.partition(".")[2])
    half = 0.5000001 * 10**-places
    seen = map(float, numbers) if decimal[0] == "-" else (abs(float(n)) for n in numbers)
    return any(abs(float(decimal) - number) <= half for number in seen)


def sections(nb):
    """Split a notebook at its headings of the second level."""
    found = [[]]
    for cell in nb.cells:
        if cell.cell_type == "code":
            found[-1].append(cell)
            continue
        first, *others = re.split(r"^(?=## )", cell.source, flags=re.MULTILINE)
        found[-1].append(new_markdown_cell(first))
        found += [[new_markdown_cell(text)] for text in others]
    return found


@EACH
def test_a_decimal_in_the_prose_is_one_that_its_section_or_one_above_prints(name):
    numbers, missing = [], []
    for section in (new_notebook(cells=cells) for cells in sections(NOTEBOOKS[name])):
        numbers += [n for o in outputs(section) for text in texts(o) for n in decimals(text)]
        said = [n for n in decimals(prose(section)) if n.lstrip("-") not in GIVEN]
        missing += [number for number in said if not printed(number, numbers)]
    assert missing == []


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
    assert decimals("gains 3.7, costs −0.54. Then -45.2. See version 1.2.3, x1.5, 0.5-0.7") == [
        "3.7",
        "-0.54",
        "-45.2",
        "0.5",
        "0.7",
    ]
    assert printed("3.7", ["3.74"])
    assert printed("3.7", ["-3.74"])
    assert not printed("-3.7", ["3.74"])
    assert not printed("3.7", ["3.76"])
    assert not printed("3.74", ["3.7"])


def test_a_chapter_is_split_at_its_sections():
    cells = [new_markdown_cell("# A\n\n## B"), code("c"), new_markdown_cell("d\n## E\nf\n### G")]
    split = [[cell.source for cell in section] for section in sections(new_notebook(cells=cells))]
    assert split == [["# A\n\n"], ["## B", "c", "d\n"], ["## E\nf\n### G"]]


SETTING = new_code_cell("a = 1\nb = 2")
PICTURE = new_output("display_data", data={"image/png": "", "text/plain": ""})
PREDICT = new_markdown_cell("It grows.\n\n**Predict.** How far?")
ANSWER = new_markdown_cell("<details>\n<summary>The answer</summary>\n\nFar.\n\n</details>")


def code(source, *outputs, tag=None):
    outputs = [new_output("stream", text=o) if isinstance(o, str) else o for o in outputs]
    return new_code_cell(source, outputs=outputs, metadata={"tags": [tag]} if tag else {})


@pytest.mark.parametrize(
    ("cells", "problems"),
    [
        # a cell that only draws
        ([code("fig = draw(a)\nshow(fig)", PICTURE)], ["only draws"]),
        ([code("fig = draw(a)\nshow(fig)", PICTURE, tag="hide-input")], []),
        ([code("c = 1\nshow(c)", PICTURE), code("c = 2\nprint(c)", "2\n")], ["only draws"]),
        ([code("c = 1\nshow(c)", PICTURE), code("print(c)", "1\n")], []),
        ([code("c = 1\nshow(c)", PICTURE), code("c = c + 1")], []),
        ([code("c = 1\nshow(c)", PICTURE), code("def f():\n    return c")], []),
        ([code("c = 1\nshow(c)", PICTURE), code("[c for c in a]\nf(lambda c: c)")], ["only draws"]),
        ([code("c = 1\nshow(c)", PICTURE), code("for c in a:\n    f(c)")], ["only draws"]),
        ([code("print(a)\nshow(a)", "1\n", PICTURE)], []),
        # one that only checks
        ([code("assert a == 1")], ["only checks"]),
        ([code("record = read()\nfor key in record:\n    assert a")], ["only checks"]),
        ([code("assert a == 1", tag="hide-cell")], []),
        ([code("assert a == 1", tag="hide-input")], ["only checks"]),
        ([code("c = 1\nassert a == c"), code("print(c)", "1\n")], []),
        ([code("assert a\nprint(a)", "1\n")], []),
        # the answer to a prediction
        ([PREDICT, code("print(a)", "1\n")], ["answers a prediction"]),
        ([PREDICT, code("c = 3"), code("print(a)", "1\n")], ["answers a prediction"]),
        ([PREDICT, code("print(a)", "1\n", tag="hide-output"), code("print(b)", "2\n")], []),
        ([PREDICT, code("show(a)", PICTURE, tag="hide-cell")], []),
        ([PREDICT, code("show(a)", PICTURE, tag="hide-input")], ["answers a prediction"]),
        ([PREDICT, ANSWER, code("print(a)", "1\n")], []),
        ([ANSWER, PREDICT, code("print(a)", "1\n")], ["answers a prediction"]),
        # results
        ([code("print(a)", "1\n2\n")], []),
        ([code("print(a)", "1\n2\n3\n")], ["prints rows or columns"]),
        ([code("print(a)", "a:   1\n")], ["prints rows or columns"]),
        ([code("print(a)", " 1\n")], ["prints rows or columns"]),
    ],
)
def test_form_is_judged(cells, problems):
    found = form_problems(new_notebook(cells=[SETTING, *cells]))
    assert [re.sub(r"cell \w+ ([^:]*):.*", r"\1", problem) for problem in found] == problems


def test_jupyterlab_folds_what_pages_fold():
    sides = {"source_hidden": {"hide-input", "remove-cell"}, "outputs_hidden": {"hide-output"}}
    for cell in (cell for nb in NOTEBOOKS.values() for cell in code_cells(nb)):
        tags, folded = set(cell.metadata.get("tags", [])), cell.metadata.get("jupyter", {})
        for side, fitting in sides.items():
            assert bool(folded.get(side)) == bool(tags & {"hide-cell", *fitting})


def test_a_chapter_gets_the_cells_of_the_library():
    chapter = new_notebook(cells=[new_markdown_cell("(a)=\n# A"), code("a = 1"), code("a", "1")])
    for count, cell in enumerate(chapter.cells[1:], 1):
        cell.execution_count = count
    written = nbformat.reads(canonical(chapter), as_version=4)
    assert [cell.id for cell in written.cells[1:3]] == list(build.LIBRARY_CELLS)
    assert [cell.execution_count for cell in code_cells(written)] == [1, 2, 3]
    assert [cell.source for cell in written.cells[3:]] == ["a = 1", "a"]
    assert stored_problems(written) == []
    # Written again, and with a text that has been edited, they are the same.
    for cell in written.cells[1:3]:
        cell.source += "!"
    assert canonical(written) == canonical(chapter)


def test_a_chapter_that_was_not_run_is_not_said_to_be():
    chapter = new_notebook(cells=[new_markdown_cell("(a)=\n# A"), code("a = 1")])
    written = nbformat.reads(canonical(chapter), as_version=4)
    assert [cell.execution_count for cell in code_cells(written)] == [None, None]


@pytest.mark.parametrize(
    "text",
    [
        "**It takes** less than a minute of one processor core.",
        "**It takes** about a minute.",
        "**It takes** about 20 seconds.",
    ],
)
def test_a_time_has_a_number_and_a_unit(text):
    with pytest.raises(AssertionError, match="say"):
        seconds(new_notebook(cells=[new_markdown_cell(text)]))


@pytest.mark.parametrize("text", ["<script>", "<b onclick='f()'>", "<a href='javascript:f()'>"])
def test_scripts_are_found(text):
    assert SCRIPT.search(text)
