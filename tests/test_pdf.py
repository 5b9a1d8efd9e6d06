"""The book as one PDF: sheets in order and numbered, links and bookmarks that lead somewhere."""

import re

import pytest

from book import pdf
from tests.book_pages import ROOT

pytest.importorskip("jupyter_book", reason="the book is built with the extra [book]")
pypdf = pytest.importorskip("pypdf", reason="it comes with the extra [book]")

# A figure and links among them; the cheat sheet is one sheet.
NAMES = ["book/index", "book/cheat-sheet", "chapters/01-first-vae", "book/glossary"]


@pytest.fixture(scope="module")
def printed(chromium_program, site, tmp_path_factory):
    output = tmp_path_factory.mktemp("pdf") / "book.pdf"
    sheets = pdf.make(site, output, NAMES)
    reader = pypdf.PdfReader(output)
    assert len(reader.pages) == sheets
    return reader


def starts(reader):
    """Return the sheet on which each page begins, by its bookmarks of the first rank."""
    marks = [mark for mark in reader.outline if not isinstance(mark, list)]
    return [reader.get_destination_page_number(mark) for mark in marks]


def test_the_order_is_that_of_the_contents():
    names = pdf.order((ROOT / "_toc.yml").read_text(encoding="utf-8"))
    assert names[:2] == ["book/index", "chapters/01-first-vae"]
    assert len(names) == len(set(names)) > 25


def test_each_page_begins_a_sheet_and_has_a_bookmark(printed):
    first = starts(printed)
    assert first[0] == 0
    assert first == sorted(first)
    assert len(first) == len(NAMES)
    assert first[2] - first[1] == 1  # the cheat sheet
    titles = [str(mark.title) for mark in printed.outline if not isinstance(mark, list)]
    assert titles[:2] == ["The VAE book", "A VAE on one page"]
    sections = [
        mark.title for group in printed.outline if isinstance(group, list) for mark in group
    ]
    assert "The loop" in sections
    assert "Contents" not in sections


def test_sheets_are_numbered_through(printed):
    for sheet in starts(printed):
        assert str(sheet + 1) in printed.pages[sheet].extract_text().split()


def test_links_lead_into_the_book_or_to_the_network(printed):
    inner, first = set(), starts(printed)
    for page in printed.pages:
        for note in page.get("/Annots", ()):
            note = note.get_object()
            if "/Dest" in note:
                inner.add(printed.get_page_number(note["/Dest"][0].get_object()))
            else:
                assert re.match("https?:", note["/A"]["/URI"])
    # Terms of the glossary are led to where they stand, not where the glossary begins.
    assert first[2] in inner
    assert len({sheet for sheet in inner if sheet > first[3]}) > 2


def test_figures_are_there(printed):
    drawn = [page["/Resources"].get("/XObject", {}).values() for page in printed.pages]
    pictures = [o for group in drawn for o in group if o.get_object()["/Subtype"] == "/Image"]
    assert len(pictures) >= 6
