"""What is done to the pages after Jupyter Book: mends, links, sizes, weights, cards."""

import re
import shutil
import struct

import pytest

from book import build, finish, links
from tests.book_pages import ROOT

pytest.importorskip("jupyter_book", reason="the book is built with the extra [book]")

LIBRARY = """<dt class="sig sig-object py" id="vae_lib.data.seeded"><span>data.seeded</span></dt>
<dd><p>Return a <em>generator</em> for "this".</p><p>More.</p></dd>"""
GLOSSARY = r"""<dt id="term-prior">prior<a class="headerlink" href="#term-prior">#</a></dt>
<dd><p>What \(p_\theta(z)\) is. <a class="reference x"><span>Loss</span></a></p></dd>
<dt id="term-gap">gap<a class="headerlink" href="#term-gap">#</a></dt><dd><p>A gap.</p></dd>"""
KNOWN, TERMS = links.names(LIBRARY), links.terms(GLOSSARY)


def code(*lines):
    """Return lines as the highlighter writes them: names in spans, dots as operators."""
    imports = (
        '<span class="kn">from</span> <span class="nn">vae_lib.data</span> '
        '<span class="kn">import</span> <span class="n">seeded</span> <span class="k">as</span> '
        '<span class="n">noise</span>\n'
    )
    return "<pre>" + imports + "\n".join(lines) + "</pre>"


def linked(page):
    return re.findall(r'<a class="\w+" href="([^"]*)"[^>]*>(.*?)</a>', page)


def test_names_of_the_library_in_code_lead_to_it():
    line = '<span class="n">noise</span><span class="p">(</span>'
    page = links.link_names(code(line), KNOWN, "library.html")
    name = '<span class="n">noise</span>'
    assert linked(page) == [("library.html#vae_lib.data.seeded", name)] * 2
    assert 'title="vae_lib.data.seeded: Return a generator for &quot;this&quot;."' in page


@pytest.mark.parametrize(
    "line",
    [
        '<span class="n">other</span><span class="o">.</span><span class="n">noise</span>',
        '<span class="p">(</span><span class="n">noise</span><span class="o">=</span>',
        '<span class="n">noises</span>',
    ],
    ids=["an attribute", "a keyword", "another name"],
)
def test_what_only_looks_like_a_name_of_the_library_does_not(line):
    assert len(linked(links.link_names(code(line), KNOWN, "library.html"))) == 1


def test_a_name_that_the_page_defines_itself_does_not():
    page = code('<span class="k">def</span> <span class="nf">noise</span>')
    assert links.link_names(page, KNOWN, "library.html") == page


def test_prose_leads_to_names_and_to_the_first_use_of_a_term():
    text = (
        '<article class="bd-article"><h1>A prior</h1><p>The <a href="x">prior</a>, this '
        "<em>prior</em> and that prior have a gap. <code><span>data.seeded(0)</span></code></p>"
        '<p class="math">prior</p></article>prior'
    )
    page = links.link_prose(text, KNOWN, "l.html", TERMS, "g.html")
    assert linked(page) == [
        ("g.html#term-prior", "prior"),
        ("l.html#vae_lib.data.seeded", "data.seeded(0)"),
    ]
    assert '<em><a class="term" href="g.html#term-prior" title="What p_θ(z) is.">' in page
    assert re.sub('<a class="(term|name)".*?>(.*?)</a>', r"\2", page) == text


def test_pages_lead_to_names_and_terms(site):
    for chapter in ROOT.glob("chapters/*.ipynb"):
        page = (site / "chapters" / f"{chapter.stem}.html").read_text(encoding="utf-8")
        kinds = re.findall('<a class="(term|name)"', page)
        assert kinds.count("term") > 5
        assert "name" in kinds


def png(width, height):
    return b"\x89PNG\r\n\x1a\n" + b"\0\0\0\rIHDR" + struct.pack(">II", width, height)


def test_pictures_have_their_size_and_all_but_the_first_wait(tmp_path):
    (tmp_path / "a b.png").write_bytes(png(30, 20))
    (tmp_path / "c.svg").write_text("<svg/>", encoding="utf-8")
    page = '<img alt="A" src="a%20b.png" /><img alt="B" src="c.svg"/><img src="data:,"/>'
    assert finish.size_pictures(page, tmp_path) == (
        '<img alt="A" src="a%20b.png" width="30" height="20"/>'
        '<img alt="B" src="c.svg" loading="lazy"/><img src="data:,"/>'
    )


def test_tables_have_heads_and_names():
    row = '<tr><td style="text-align: left">VAE</td>\n<td>1</td></tr>'
    corner = '<table class="dataframe"><thead><tr><th style="text-align: left"></th><th>ELBO</th>'
    page = f'<div class="output text_html">{corner}</tr></thead><tbody>{row}</tbody></table></div>'
    named = finish.name_boxes(finish.name_rows(page))
    assert "<tr><td></td><th>ELBO</th>" in named
    assert '<tr><th scope="row" style="text-align: left">VAE</th>\n<td>1</td></tr>' in named
    assert '<div class="output text_html" role="region" aria-label="Table 1">' in named
    full = page.replace("></th>", ">network</th>")
    assert finish.name_rows(full) == full


def test_a_page_says_what_it_weighs_and_where_its_source_is(site):
    path = site / "chapters" / "01-first-vae.html"
    page = path.read_text(encoding="utf-8")
    said = re.search('<p class="weight">(.*?)</p>', page)[1]
    own, pictures, shared = map(float, re.findall(r"([\d.]+) MB", said))
    assert own == pytest.approx(len(page.encode()) / 1e6, rel=0.06)
    files = {path.parent / source for source in re.findall(r'<img [^>]*?src="([^"]+)"', page)}
    assert pictures == pytest.approx(sum(f.stat().st_size for f in files) / 1e6, rel=0.06)
    assert 1 < shared < 6
    assert 'href="../_sources/chapters/01-first-vae.ipynb">Source of the page</a>' in said
    assert "CC BY 4.0" in said


def test_a_link_to_a_page_shows_a_card_where_the_address_is_known(site):
    page = (site / "chapters" / "01-first-vae.html").read_text(encoding="utf-8")
    assert ("og:title" in page) == bool(build.site_address(build.repository({})))
    address = "https://example.org/book/chapters/01-first-vae.html"
    card = dict(
        re.findall(r'<meta property="og:(\w+)" content="([^"]*)"', finish.add_card(page, address))
    )
    assert card["title"].startswith("A first VAE")
    assert card["url"] == address
    assert card["image"].startswith("https://example.org/book/_images/")
    assert len(card["description"]) > 50


def test_the_address_of_the_pages():
    settings = 'html:\n  baseurl: "{}"\n'
    assert build.site_address("", settings.format("")) == ""
    assert build.site_address("https://example.org/a/b", settings.format("")) == ""
    on_pages = build.site_address("https://github.com/Some/fork", settings.format(""))
    assert on_pages == "https://Some.github.io/fork"
    assert build.site_address("", settings.format("https://vae.example")) == "https://vae.example"


def test_a_mend_that_mends_nothing_is_noticed(site, tmp_path, monkeypatch):
    (tmp_path / "book").mkdir()
    for name in ("library", "glossary"):
        shutil.copy(site / "book" / f"{name}.html", tmp_path / "book")
    monkeypatch.setattr(finish, "MENDED", [("nothing of the kind", "")])
    with pytest.raises(RuntimeError, match="MENDED: no page holds nothing of the kind any more"):
        finish.finish(tmp_path)
