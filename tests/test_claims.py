"""The page of claims: each has a verdict and a place, and its numbers are printed there."""

import re

import pytest

from tests.test_chapters import NOTEBOOKS, ROOT, outputs, prose, texts

PAGE = (ROOT / "book" / "claims.md").read_text(encoding="utf-8")
VERDICTS = ("right", "partly", "wrong", "absent")
PRINTED = {n: "".join(t for o in outputs(nb) for t in texts(o)) for n, nb in NOTEBOOKS.items()}


def rows(heading):
    """Return the cells of the rows of the table under a heading."""
    section = PAGE.partition(f"## {heading}\n")[2].partition("\n## ")[0]
    lines = [line for line in section.splitlines() if line.startswith("|")]
    return [[cell.strip() for cell in line.strip("|").split("|")] for line in lines[2:]]


NUMBERS, MEANING = rows("What changes numbers"), rows("What changes meaning")


def chapters_of(links):
    """Return the notebooks in which the labels of some links stand."""
    labels = re.findall(r"\{ref\}`([a-z-]+)`", links)
    assert labels, links
    return {name for name, nb in NOTEBOOKS.items() for x in labels if f"({x})=" in prose(nb)}


def numbers(text):
    return re.findall(r"(?<![\w.,])\d[\d,]*(?:\.\d+)?", text)


@pytest.mark.parametrize("row", [*NUMBERS, *MEANING], ids=lambda row: row[0][:40])
def test_a_claim_has_a_verdict_and_a_place(row):
    claim, verdict, links = row
    assert claim
    assert verdict.startswith(tuple(f"**{word}**" for word in VERDICTS))
    assert chapters_of(links)


@pytest.mark.parametrize("row", NUMBERS, ids=lambda row: row[0][:40])
def test_the_numbers_of_a_claim_are_printed_where_it_says(row):
    printed = {n for name in chapters_of(row[2]) for n in numbers(PRINTED[name])}
    missing = [n for n in numbers(re.sub(r"\$.*?\$", "", row[1])) if n not in printed]
    assert missing == []


def test_the_tables_are_found():
    assert len(NUMBERS) >= 12
    assert len(MEANING) >= 20
    assert len(rows("Heading by heading")) == 10
