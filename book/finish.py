"""What is done to the pages after Jupyter Book has written them.

- What the theme and its extensions write against the rules of accessible pages is put right.
- A picture has its size, and all but the first wait until the reader comes near.
- Names of `vae_lib` and terms of the glossary are links (`book/links.py`).
- Each page says what it weighs and where its source is.
- If the address of the book is known, a link to a page shows a card: title, sentence, picture.
"""

import html
import itertools
import os
import re
import struct
from urllib.parse import unquote, urljoin, urlsplit

from book import links

# What is wrong and what takes its place; what is found nowhere need not stand here any longer.
# The names are those of axe's rules.
MENDED = [
    # label-content-name-mismatch: the name that is read out is another than the one that is seen.
    (r'<summary aria-label="Toggle hidden content">', "<summary>"),
    (r'(<button class="btn search-button-field[^>]*?) title="Search" aria-label="Search"', r"\1"),
    (r'(<i class="theme-switch [^>]*?) *title="[\w ]+"', r"\1"),
    # region: the title of the book and the search button stood outside of all landmarks.
    (r'(<div id="pst-primary-sidebar")', r'\1 role="region" aria-label="The book"'),
    # aria-allowed-role, aria-deprecated-role, aria-required-children: a bibliography's entries.
    (r' role="doc-biblioentry"', ""),
    (r'<div role="list" class="citation-list">', '<div class="citation-list">'),
]
# A table whose corner is empty: its first column names the rows.
CORNER = re.compile(r'<th(?: class="[\w ]*")?(?: style="[^"]*")?>\s*(?:<p>\s*</p>)?\s*</th>')
ROW = re.compile(r"(<tr[^>]*>\s*)<td(.*?)</td>", re.DOTALL)
# focus-order-semantics: a box that scrolls.
BOX = re.compile(r'(<div class="(?:output text_html|pst-scrollable-table-container)")(?=>)')
PICTURE = re.compile(r'<img (?P<rest>[^>]*?src="(?P<source>[^":]+)"[^>]*?) ?/?>')
LOADED = re.compile(r'<(?:script|link)[^>]*? (?:src|href)="(?P<source>[^":]+\.(?:js|css)[^"]*)"')
LICENCE = (
    'Text and figures: <a href="https://creativecommons.org/licenses/by/4.0/" rel="license">CC BY '
    "4.0</a>."
)
FOOT = '<div class="bd-footer-content__inner container">'


def finish(site, address=""):
    """Finish all pages of a built book.

    Args:
        site: the folder of the pages.
        address: where the book will be found, or "" if nobody knows.

    Raises:
        RuntimeError: nothing is there to mend where something was once.
    """
    paths = [path for path in sorted(site.rglob("*.html")) if "_static" not in path.parts]
    pages = {path: path.read_text(encoding="utf-8") for path in paths}
    for wrong, right in MENDED:
        if not any(re.search(wrong, page) for page in pages.values()):
            raise RuntimeError(f"book/finish.py, MENDED: no page holds {wrong} any more")
        pages = {path: re.sub(wrong, right, page) for path, page in pages.items()}
    library, glossary = site / "book" / "library.html", site / "book" / "glossary.html"
    known, defined = links.names(pages[library]), links.terms(pages[glossary])
    for path, page in pages.items():
        to_library, to_glossary = (
            "" if path == there else relative(there, path) for there in (library, glossary)
        )
        if to_library:
            page = links.link_names(page, known, to_library)
        page = links.link_prose(page, known, to_library, defined, to_glossary)
        page = size_pictures(name_boxes(name_rows(page)), path.parent)
        page = add_foot(page, path)
        if address:
            page = add_card(page, f"{address.rstrip('/')}/{relative(path, site / 'x')}")
        path.write_text(page, encoding="utf-8")


def relative(target, page):
    """Return the address of a file as seen from a page."""
    return os.path.relpath(target, page.parent).replace(os.sep, "/")


def name_rows(page):
    """Make the first cell of each row a head where that of the column is empty.

    These are axe's empty-table-header and td-has-header.
    """

    def named(match):
        table, empty = CORNER.subn("<td></td>", match[0])
        head, body, rest = table.partition("<tbody")
        return head + body + (ROW.sub(r'\1<th scope="row"\2</th>', rest) if empty else rest)

    return re.sub(r"<table.*?</table>", named, page, flags=re.DOTALL)


def name_boxes(page):
    """Give the box of each table a name: where a table is wide, the keyboard can reach its box."""
    numbers = itertools.count(1)
    name = r'\1 role="region" aria-label="Table {}"'
    return BOX.sub(lambda box: box.expand(name.format(next(numbers))), page)


def png_size(path):
    """Return the width and height of a PNG in pixels, or None for another file."""
    head = path.read_bytes()[:24]
    return struct.unpack(">II", head[16:]) if head.startswith(b"\x89PNG") else None


def size_pictures(page, folder):
    """Write each picture's size into a page, and let all but the first wait.

    With the size a page keeps its place while pictures arrive, so that links to sections land.
    """
    count = 0

    def sized(match):
        nonlocal count
        count += 1
        rest = match["rest"]
        size = png_size(folder / unquote(match["source"]))
        if size and "width" not in rest:
            rest += f' width="{size[0]}" height="{size[1]}"'
        if count > 1 and "loading=" not in rest:
            rest += ' loading="lazy"'
        return f"<img {rest}/>"

    return PICTURE.sub(sized, page)


def size_of(page, folder, pattern):
    """Return the bytes of the files that a page loads, found by a pattern, each once."""
    found = {match["source"] for match in pattern.finditer(page)}
    files = {folder / unquote(urlsplit(source).path) for source in found}
    return sum(path.stat().st_size for path in files if path.is_file())


def megabytes(size):
    """Say a number of bytes in megabytes, to two digits."""
    return f"{float(f'{size / 1e6:.2g}'):g} MB"


def add_foot(page, path):
    """Say at the end of a page what it weighs and where its source is."""
    pictures = size_of(page, path.parent, PICTURE)
    said = f"This page: {megabytes(len(page.encode()))}"
    if pictures:
        said += f", and {megabytes(pictures)} of pictures, which load as you come near"
    shared = size_of(page, path.parent, LOADED)
    said += f". Styles and scripts, once for all pages: {megabytes(shared)}. {LICENCE}"
    if source := re.search(r'<a href="([^"]*_sources/[^"]+)"', page):
        said += f' <a href="{source[1]}">Source of the page</a>'
    return page.replace(
        FOOT, f'{FOOT}\n<div class="footer-item"><p class="weight">{said}</p></div>'
    )


def add_card(page, address):
    """Add to a page what a link to it shows elsewhere, by the Open Graph protocol."""
    title = re.search(r"<title>\s*(.*?)\s*</title>", page, re.DOTALL)
    first = re.search(r"<article.*?<p>(.*?)</p>", page, re.DOTALL)
    picture = re.search(r'<article.*?<img [^>]*?src="([^"]+)"', page, re.DOTALL)
    if not (title and first):
        return page  # a page that only leads to another, or the one of the search
    sentence = links.plain(first[1])
    card = {"og:type": "article", "og:site_name": "The VAE book", "og:title": title[1]}
    card |= {"og:url": address, "og:description": html.escape(sentence[:300])}
    if picture:
        card["og:image"] = urljoin(address, picture[1])
    lines = [f'<meta property="{name}" content="{value}"/>' for name, value in card.items()]
    lines.append('<meta name="twitter:card" content="summary_large_image"/>')
    return page.replace("</head>", "\n".join([*lines, "</head>"]), 1)
