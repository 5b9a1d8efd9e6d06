"""The page of claims: each has a verdict and a place, and its numbers are printed there."""

import re

import pytest
from nbformat.v4 import new_code_cell, new_markdown_cell, new_notebook, new_output

from tests.test_chapters import NOTEBOOKS, ROOT, prose, texts

PAGE = (ROOT / "book" / "claims.md").read_text(encoding="utf-8")
VERDICTS = ("right", "partly", "wrong", "absent")


def rows(heading):
    """Return the cells of the rows of the table under a heading."""
    section = PAGE.partition(f"## {heading}\n")[2].partition("\n## ")[0]
    lines = [line for line in section.splitlines() if line.startswith("|")]
    return [[cell.strip() for cell in line.strip("|").split("|")] for line in lines[2:]]


NUMBERS = rows("What changes numbers")
MEANING, NATS = rows("What changes meaning"), rows("Five numbers of nats")


LABELS = {x for nb in NOTEBOOKS.values() for x in re.findall(r"(?m)^\(([a-z-]+)\)=$", prose(nb))}
# A heading of a chapter, and the label above it.
HEADING = re.compile(r"(?:^\(([a-z-]+)\)=\n+)?^(#+) ", re.MULTILINE)


def labels(links):
    return re.findall(r"\{ref\}`([a-z-]+)`", links)


def printed_under(nb, label):
    """Return all that the cells under a labelled heading print, those of its subsections too."""
    level, printed = 0, []
    for cell in nb.cells:
        if cell.cell_type == "code":
            printed += [text for output in cell.outputs if level for text in texts(output)]
            continue
        for above, hashes in HEADING.findall(cell.source):
            if level and len(hashes) <= level:
                return "\n".join(printed)
            if above == label:
                level = len(hashes)
    return "\n".join(printed)


def numbers(text):
    """Return the numbers in a text as they stand there, with their minus signs."""
    found = re.findall(r"(?<![\w.,])[-−]?\d+(?:,\d{3})*(?:\.\d+)?", text)
    return [number.replace("−", "-") for number in found]


@pytest.mark.parametrize("row", [*NUMBERS, *MEANING], ids=lambda row: row[0][:40])
def test_a_claim_has_a_verdict_and_a_place(row):
    claim, verdict, links = row
    assert claim
    assert verdict.startswith(tuple(f"**{word}**" for word in VERDICTS))
    assert labels(links)
    assert set(labels(links)) <= LABELS


@pytest.mark.parametrize("row", [*NUMBERS, *NATS], ids=lambda row: row[0][:40])
def test_the_numbers_of_a_claim_are_printed_in_the_sections_that_it_names(row):
    under = (printed_under(nb, label) for label in labels(row[2]) for nb in NOTEBOOKS.values())
    printed = {number for text in under for number in numbers(text)}
    said = numbers(re.sub(r"\$.*?\$", "", row[1]))
    assert [number for number in said if number not in printed] == []


def test_the_tables_are_found():
    assert len(NUMBERS) >= 12
    assert len(MEANING) >= 20
    assert len(NATS) == 5
    assert len(rows("Heading by heading")) == 10


def test_what_is_printed_under_a_heading_is_found():
    def says(text):
        return new_code_cell(outputs=[new_output("stream", text=text)])

    cells = [new_markdown_cell("(a)=\n# A"), says("1"), new_markdown_cell("x\n\n(b)=\n## B")]
    cells += [says("-2"), new_markdown_cell("### C"), says("3")]
    cells += [new_markdown_cell("## D"), says("4")]
    nb = new_notebook(cells=cells)
    assert printed_under(nb, "b").split() == ["-2", "3"]
    assert printed_under(nb, "a").split() == ["1", "-2", "3", "4"]
    assert printed_under(nb, "c") == ""
    assert numbers("−2.5 of 1,200, not 0.6 ± 0.5") == ["-2.5", "1,200", "0.6", "0.5"]
