"""The book as one PDF: `python book/pdf.py [--site DIR] [--output FILE]`, or `make pdf`.

Chromium prints each built page, in the order of `_toc.yml`, as it looks on paper: light, folded
parts open, code wrapped. What is to be touched in a page stays the picture that it is without its
script. pypdf joins the prints, with a bookmark for each page and section, and makes the links from
page to page lead to the page in the PDF.
"""

import argparse
import base64
import io
import json
import re
import sys
import tempfile
from pathlib import Path
from urllib.parse import unquote, urlsplit

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))  # for who calls this file and not `make`

from tests import browser  # noqa: E402

INCH = 25.4
PAPER = {"paperWidth": 210 / INCH, "paperHeight": 297 / INCH}  # A4
MARGIN = 10  # mm
# The widgets of the pages, which without their scripts are pictures.
SCRIPTS_LEFT_OUT = ["*/_static/widgets/*"]
# Chromium keeps those places of a page that a link on the page itself leads to. So each place that
# any page leads to gets one, which cannot be seen. And a picture must not wait for being seen.
PREPARE = """(async places => {
    for (const place of places) {
        const link = document.createElement("a");
        link.href = "#" + place;
        document.querySelector("article").append(link);
    }
    const pictures = [...document.querySelectorAll("article img")];
    pictures.forEach(picture => { picture.loading = "eager"; });
    await Promise.all(pictures.map(picture => picture.decode()));
    return pictures.length;
})"""
NUMBERS = """
@page { margin: %dmm; @bottom-center { content: counter(page); font: 9pt sans-serif; } }
@page :first { counter-increment: page %d; }
"""


def order(toc):
    """Return the names of the pages, as `_toc.yml` has them."""
    return re.findall(r"^ *(?:root|- file): *(\S+)", toc, re.MULTILINE)


def places(site, names):
    """Return for each page the places on it that some page leads to."""
    found = {name: set() for name in names}
    for name in names:
        page = site / f"{name}.html"
        for link in re.findall(r'<a [^>]*?href="([^"]*)"', page.read_text(encoding="utf-8")):
            address = urlsplit(link)
            if address.scheme or not address.fragment:
                continue
            there = (page.parent / unquote(address.path)).resolve() if address.path else page
            there = there.relative_to(site).with_suffix("").as_posix()
            if there in found:
                found[there].add(address.fragment)
    return found


def printed(tab, page, places, before):
    """Return the PDF of a page whose places are kept, numbered from the count of those before."""
    tab.open(page.as_uri())
    tab.run(f"{PREPARE}({json.dumps(sorted(places))})")
    style = json.dumps(f"<style>{NUMBERS % (MARGIN, before + 1)}</style>")
    tab.run(f'document.head.insertAdjacentHTML("beforeend", {style})')
    answer = tab.call(
        "Page.printToPDF", **PAPER, preferCSSPageSize=False, printBackground=True,
        generateTaggedPDF=True, generateDocumentOutline=True,
        **{f"margin{side}": MARGIN / INCH for side in ("Top", "Bottom", "Left", "Right")},
    )  # fmt: skip
    return base64.b64decode(answer["data"])


class Joined:
    """Prints of pages, one after the other."""

    def __init__(self, site):
        import pypdf

        self._site, self.writer = site, pypdf.PdfWriter()
        self.first, self._places = {}, {}

    def add(self, name, title, pdf):
        """Append the print of a page."""
        import pypdf

        reader = pypdf.PdfReader(io.BytesIO(pdf))
        start = self.first[name] = len(self.writer.pages)
        for place, where in reader.named_destinations.items():
            number = reader.get_destination_page_number(where)
            self._places[name, unquote(place.lstrip("/"))] = (start + number, where.left, where.top)
        for page in reader.pages:
            self.writer.add_page(page)
        above = self.writer.add_outline_item(title=title, page_number=start)
        sections = [entry for entry in reader.outline if isinstance(entry, list)]
        self._mark(reader, sections[0] if sections else [], start, above)

    def _mark(self, reader, outline, start, parent):
        """Copy the bookmarks of a print below that of its page, but for its table of contents."""
        above = parent
        for entry in outline:
            if isinstance(entry, list):
                self._mark(reader, entry, start, above)
            elif entry.title != "Contents":
                number = start + reader.get_destination_page_number(entry)
                above = self.writer.add_outline_item(
                    title=entry.title, page_number=number, parent=parent
                )

    def target(self, name, address):
        """Return (page, left, top) of what a link on a page leads to, or None if it is outside."""
        link = urlsplit(address)
        if link.scheme not in ("", "file"):
            return None
        there = name
        if link.path:
            path = Path(unquote(link.path))
            if not path.is_relative_to(self._site):
                return None
            there = path.relative_to(self._site).with_suffix("").as_posix()
        if there not in self.first:
            return None
        return self._places.get((there, unquote(link.fragment)), (self.first[there], 0, None))

    def lead(self):
        """Make every link of the prints lead to its page in the PDF; drop those to other files."""
        from pypdf.generic import ArrayObject, FloatObject, NameObject, NullObject

        names = {start: name for name, start in self.first.items()}
        name = None
        for number, page in enumerate(self.writer.pages):
            name = names.get(number, name)
            kept = ArrayObject()
            for entry in page.get("/Annots", ()):
                note = entry.get_object()
                address = self._address(note)
                found = self.target(name, address) if address is not None else None
                if found:
                    there, left, top = found
                    spot = [NullObject() if v is None else FloatObject(v) for v in (left, top)]
                    where = [self.writer.pages[there].indirect_reference, NameObject("/XYZ"), *spot]
                    note[NameObject("/Dest")] = ArrayObject([*where, NullObject()])
                    note.pop("/A", None)
                if found or (address or "").startswith("http"):
                    kept.append(entry)
            if kept:
                page[NameObject("/Annots")] = kept
            else:
                page.pop("/Annots", None)

    @staticmethod
    def _address(note):
        """Return where a link leads: an address, or # and a name on its own page."""
        if "/Dest" in note:
            return f"#{note['/Dest']}".replace("#/", "#")
        action = note.get("/A", {}).get_object() if "/A" in note else {}
        return action.get("/URI")


def make(site, output, names=None):
    """Print pages of a built book into one PDF; return how many sheets it has.

    Args:
        site: the folder of the built pages.
        output: the file to write.
        names: the pages, as `_toc.yml` names them; all of them by default.

    Raises:
        RuntimeError: there is no Chromium.
    """
    program = browser.find()
    if program is None:
        raise RuntimeError("printing takes Chromium or Chrome, and neither was found")
    names = names or order((ROOT / "_toc.yml").read_text(encoding="utf-8"))
    leads = places(site, names)
    joined = Joined(site)
    with tempfile.TemporaryDirectory() as profile, browser.Browser(program, profile) as tab:
        tab.call("Network.setBlockedURLs", urls=SCRIPTS_LEFT_OUT)
        tab.call("Emulation.setEmulatedMedia", media="print")
        for name in names:
            pdf = printed(tab, site / f"{name}.html", leads[name], len(joined.writer.pages))
            title = tab.run("document.querySelector('h1').firstChild.textContent")
            joined.add(name, title, pdf)
    joined.lead()
    joined.writer.add_metadata({"/Title": "The VAE book", "/Author": "The VAE book contributors"})
    joined.writer.compress_identical_objects()
    joined.writer.write(output)
    return len(joined.writer.pages)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--site", type=Path, default=ROOT / "_build" / "html")
    parser.add_argument("--output", type=Path, default=ROOT / "_build" / "vae-book.pdf")
    arguments = parser.parse_args()
    try:
        sheets = make(arguments.site.resolve(), arguments.output)
    except RuntimeError as error:
        sys.exit(str(error))
    print(f"{sheets} sheets are in {arguments.output}")
