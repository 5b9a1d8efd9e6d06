"""The glossary: each term stands in the chapters that it is said to come from."""

import re

import pytest

from tests.test_chapters import NOTEBOOKS, ROOT, prose

PAGE = (ROOT / "book" / "glossary.md").read_text(encoding="utf-8")
ENTRIES = re.findall(r"^(\S[^\n]*)\n  ([^\n]+)$", PAGE, flags=re.MULTILINE)


def pages(label):
    """Return the prose of the page that opens with a label."""
    texts = [prose(nb) for nb in NOTEBOOKS.values()]
    texts += [path.read_text(encoding="utf-8") for path in ROOT.glob("book/*.md")]
    return [" ".join(text.split()).lower() for text in texts if text.startswith(f"({label})=")]


def words(term):
    """Return what to look for: the term without what follows "of", or its two halves."""
    return re.sub(r" of \$.*", "", term).lower().split(" and ")


@pytest.mark.parametrize(("term", "meaning"), ENTRIES, ids=[term for term, _ in ENTRIES])
def test_a_term_stands_in_its_chapter(term, meaning):
    labels = re.findall(r"\{ref\}`([a-z-]+)`", meaning)
    assert labels
    for label in labels:
        (page,) = pages(label)
        page = page.replace("*", "").replace("- ", "-")
        assert [word for word in words(term) if word.rstrip("s") not in page] == []


def test_the_entries_are_found():
    assert len(ENTRIES) > 40
    assert len({term for term, _ in ENTRIES}) == len(ENTRIES)
