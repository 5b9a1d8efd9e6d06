"""The page for teachers: its minutes are those of the chapters, and solutions can be left out."""

import json
import re

import pytest

from book import build
from tests.book_pages import ROOT

PAGE = (ROOT / "book" / "teachers.md").read_text(encoding="utf-8")
ROW = re.compile(r"^\| \{ref\}`([\w-]+)` \| (\d+) min \| (\d+) s \|(.*?)\|(.*?)\|(.*?)\|$", re.M)
ROWS = {label: (int(read), int(run), routes) for label, read, run, *routes in ROW.findall(PAGE)}
WORDS_A_MINUTE = 200
TIME = re.compile(r"\*\*It takes\*\* about (\d+) seconds")


def chapters():
    """Return the cells of each chapter that has a label."""
    found = {}
    for path in sorted(ROOT.glob("chapters/*.ipynb")):
        cells = json.loads(path.read_text(encoding="utf-8"))["cells"]
        found[re.match(r"\(([\w-]+)\)=", "".join(cells[0]["source"]))[1]] = cells
    return found


CHAPTERS = chapters()


def minutes(label, until=None):
    """Return how long the prose takes to read, up to and with a section."""
    cells = [c for c in CHAPTERS[label] if c["cell_type"] == "markdown"]
    text = "\n\n".join("".join(cell["source"]) for cell in cells)
    sections = re.split(r"^(?=## )", text, flags=re.MULTILINE)
    if until:
        (last,) = (i for i, section in enumerate(sections) if section.startswith(f"## {until}"))
        sections = sections[: last + 1]
    text = re.sub(r"<[^>]*>|\$[^$]*\$", "", "".join(sections))
    return len(text.split()) / WORDS_A_MINUTE


def test_the_minutes_and_seconds_are_those_of_the_chapters():
    assert len(ROWS) == 13
    for label, (read, run, _) in ROWS.items():
        assert read == pytest.approx(minutes(label), abs=2), label
        text = "".join("".join(cell["source"]) for cell in CHAPTERS[label])
        assert run == int(TIME.search(text)[1]), label


def test_a_route_takes_a_third_of_its_hours_to_read_and_run():
    for column, hours in enumerate((2, 6, 12)):
        takes = 0
        for label, (read, run, routes) in ROWS.items():
            part = routes[column].strip()
            until = re.fullmatch(r"to \*(.*)\*", part)
            if until:
                takes += minutes(label, until[1]) + run / 60
            elif part:
                assert part == "all"
                takes += read + run / 60
        assert takes == pytest.approx(hours * 20, rel=0.1), hours


def exercises(cells):
    """Return what stands below the heading of the exercises, up to the next of its rank."""
    found, among = [], False
    for cell in cells:
        headings = re.findall(r"^## +(.*)", "".join(cell["source"]), re.MULTILINE)
        if cell["cell_type"] == "markdown" and headings:
            among = headings[-1].strip() == "Exercises"
        found += [cell] if among else []
    return found


def test_the_solutions_can_be_left_out(tmp_path):
    build.copy_sources(tmp_path, "", solutions=False)
    left_out = 0
    for label, cells in CHAPTERS.items():
        (path,) = (
            p
            for p in tmp_path.glob("chapters/*.ipynb")
            if f"({label})=" in p.read_text(encoding="utf-8")
        )
        kept = json.loads(path.read_text(encoding="utf-8"))["cells"]
        among = exercises(cells)
        solved = [c for c in among if "hide-cell" in c["metadata"].get("tags", [])]
        in_words = json.dumps(cells).count("<summary>The solution</summary>")
        left_out += len(solved) + in_words
        # All else is there, and each exercise in code is without its own.
        assert len(kept) == len(cells) - len(solved)
        assert "<summary>The solution" not in path.read_text(encoding="utf-8")
        assert [c for c in exercises(kept) if c["cell_type"] == "code" and c not in among] == []
        assert [c for c in exercises(kept) if "hide-cell" in c["metadata"].get("tags", [])] == []
        if among:
            assert exercises(kept)
    assert left_out > 20
    # What is left out is not referred to.
    build.copy_sources(tmp_path / "whole", "")
    names = re.compile(r'"name": "(fig-[\w-]+)"')
    for whole in (tmp_path / "whole").glob("chapters/*.ipynb"):
        text = (tmp_path / "chapters" / whole.name).read_text(encoding="utf-8")
        gone = set(names.findall(whole.read_text(encoding="utf-8"))) - set(names.findall(text))
        assert [name for name in gone if f"`{name}`" in text] == []
