"""The built pages, read as files: what they load, where they lead, what they say of pictures."""

import json
import re
import shutil
import subprocess
from html.parser import HTMLParser
from urllib.parse import unquote, urlsplit

import pytest

from book import build
from tests import book_pages
from tests.book_pages import ROOT

pytest.importorskip("jupyter_book", reason="the book is built with the extra [book]")
yaml = pytest.importorskip("yaml")  # comes with jupyter-book

# The attributes by which a page loads something; a link (<a href>) only offers it.
LOADS = {
    "script": "src",
    "img": "src",
    "iframe": "src",
    "source": "src",
    "video": "src",
    "audio": "src",
    "embed": "src",
    "object": "data",
    "link": "href",
}
REMOTE_IN_CSS = re.compile(r"""(?:url\(\s*|@import\s+)["']?(?:https?:)?//[^"')\s]*""")


class Page(HTMLParser):
    """What the tests want to know of a page."""

    def __init__(self, path):
        super().__init__()
        self.language, self.title = None, ""
        self._in_title = self._in_style = False
        self.loads, self.links, self.alts, self.anchors, self.styles = [], [], [], set(), []
        self.feed(path.read_text(encoding="utf-8"))

    def handle_starttag(self, tag, attributes):
        given = dict(attributes)
        if tag == "html":
            self.language = given.get("lang")
        if given.get(LOADS.get(tag)):
            self.loads.append(given[LOADS[tag]])
        if tag == "a" and "href" in given:
            self.links.append(given["href"])
        if tag == "img":
            self.alts.append(given.get("alt") or "")
        self.anchors |= {given[name] for name in ("id", "name") if given.get(name)}
        self.styles.append(given.get("style") or "")
        # The drawings inside a page have titles too.
        self._in_title = self._in_title or (tag == "title" and not self.title)
        self._in_style = tag == "style"

    def handle_endtag(self, tag):
        self._in_title = self._in_title and tag != "title"
        self._in_style = False

    def handle_data(self, text):
        if self._in_title:
            self.title += text
        if self._in_style:
            self.styles.append(text)


@pytest.fixture(scope="module")
def pages(site):
    return {path: Page(path) for path in [site / "index.html", *book_pages.pages(site)]}


def toc_files():
    toc = yaml.safe_load((ROOT / "_toc.yml").read_text(encoding="utf-8"))
    chapters = [chapter["file"] for part in toc["parts"] for chapter in part["chapters"]]
    return [toc["root"], *chapters]


def test_the_contents_name_every_page_and_no_other():
    written = [*ROOT.glob("book/*.md"), *ROOT.glob("chapters/*.ipynb")]
    names = [path.relative_to(ROOT).with_suffix("").as_posix() for path in written]
    assert sorted(toc_files()) == sorted(names)


def test_the_book_builds_without_a_warning(site):
    assert [name for name in toc_files() if not (site / f"{name}.html").exists()] == []


def test_pages_say_what_they_are_and_in_which_language(pages):
    nameless = [path.name for path, page in pages.items() if not page.title.strip()]
    assert nameless == []
    assert {page.language for page in pages.values()} == {"en"}


def test_pages_load_nothing_from_elsewhere(site, pages):
    remote = re.compile(r"(https?:)?//")
    outside = {
        path.name: [u for u in page.loads if remote.match(u)] for path, page in pages.items()
    }
    assert {name: addresses for name, addresses in outside.items() if addresses} == {}
    styles = [path.read_text(encoding="utf-8") for path in site.rglob("*.css")]
    styles += [style for page in pages.values() for style in page.styles]
    assert REMOTE_IN_CSS.findall("\n".join(styles)) == []


def test_links_land(site, pages):
    lost = []
    for path, page in pages.items():
        for link in [*page.links, *page.loads]:
            address = urlsplit(link)
            if address.scheme or address.netloc:
                continue
            target = (path.parent / unquote(address.path)).resolve() if address.path else path
            anchor = unquote(address.fragment)
            if not target.is_file() or (anchor and anchor not in pages[target].anchors):
                lost.append(f"{path.name}: {link}")
    assert lost == []


def test_pictures_are_put_in_words(pages):
    bare = [
        f"{path.name}: {alt!r}"
        for path, page in pages.items()
        for alt in page.alts
        if not alt.strip() or re.search(r"\.(png|svg|jpe?g|gif)$", alt.strip())
    ]
    assert bare == []
    assert sum(len(page.alts) for page in pages.values()) > 0


def test_every_reference_is_cited():
    """The other way round, a key that is cited and not there stops the build."""
    entries = (ROOT / "book" / "references.bib").read_text(encoding="utf-8")
    sources = [*ROOT.glob("book/*.md"), *ROOT.glob("chapters/*.ipynb"), *ROOT.glob("vae_lib/*.py")]
    text = "\n".join(path.read_text(encoding="utf-8") for path in sources)
    cited = ",".join(re.findall(r"[{:]cite[\w:]*[}:]`([^`]*)`", text))
    keys = re.findall(r"^@\w+\{\s*([^,\s]+)\s*,", entries, flags=re.MULTILINE)
    assert keys
    assert set(keys) - {key.strip() for key in cited.split(",")} == set()


def test_pages_do_not_know_where_they_were_built(site):
    assert [
        p.name for p in book_pages.pages(site) if str(ROOT) in p.read_text(encoding="utf-8")
    ] == []


# The chapters had these names once (commit 333c973), and a link to one must not be lost.
FORMER = [
    "01-architecture",
    "02-loss",
    "03-code",
    "04-output",
    "05-issues",
    "06-exact-models",
    "07-reparameterization",
    "08-likelihoods",
    "09-how-good-is-it",
    "10-bug-museum",
]


def test_every_former_address_leads_to_the_present_one(site, pages):
    assert {f"chapters/{name}" for name in FORMER} <= set(build.MOVED)
    present = set(toc_files())
    for former, now in build.MOVED.items():
        assert former not in present
        assert now in present
        path, target = site / f"{former}.html", site / f"{now}.html"
        (link,) = pages[path].links
        assert (path.parent / link).resolve() == target
        assert pages[path].title == pages[target].title
        text = path.read_text(encoding="utf-8")
        assert f'location.replace("{link}" + location.search + location.hash)' in text
        assert f'<noscript><meta http-equiv="refresh" content="0; url={link}"></noscript>' in text


def test_the_address_comes_from_the_configuration_or_the_environment(tmp_path, monkeypatch):
    settings = yaml.safe_load((ROOT / "_config.yml").read_text(encoding="utf-8"))
    assert build.repository({}) == settings["repository"]["url"].rstrip("/")
    assert build.repository({"REPOSITORY": "https://example.org/a/book/"}).endswith("/a/book")
    fork = {"REPOSITORY": "", "GITHUB_REPOSITORY": "someone/fork"}
    assert build.repository(fork) == "https://github.com/someone/fork"

    monkeypatch.setattr(build, "ROOT", tmp_path)
    text = 'a: 1\nrepository:\n  url: "https://example.org/set/"\n  branch: main\n'
    (tmp_path / "_config.yml").write_text(text, encoding="utf-8")
    assert build.repository({}) == "https://example.org/set"


def test_an_address_turns_the_buttons_on(site):
    html = (site / "book" / "index.html").read_text(encoding="utf-8")
    assert ("source-repository-button" in html) == bool(build.repository({}))
    config = yaml.safe_load(build.configuration("https://example.org/a/book"))
    assert config["repository"] == {"url": "https://example.org/a/book", "branch": "main"}
    assert config["html"]["use_repository_button"]
    assert config["launch_buttons"]["binderhub_url"]


@pytest.mark.parametrize("address", ["", "https://example.org/a/book"])
def test_the_sources_of_a_build_hold_its_address(tmp_path, address):
    """The pages are made from them, and the notebooks for downloading are copies of them."""
    build.copy_sources(tmp_path, address)
    notebooks = sorted(tmp_path.glob("chapters/*.ipynb"))
    assert [path.name for path in notebooks] == [p.name for p in chapters()]
    for path, original in zip(notebooks, chapters(), strict=True):
        cells, stored = (
            json.loads(p.read_text(encoding="utf-8"))["cells"] for p in (path, original)
        )
        for cell, wanted in zip(cells[1:3], build.library_cells(address), strict=True):
            assert "".join(cell["source"]) == wanted["source"]
        assert cells[:1] + cells[3:] == stored[:1] + stored[3:]
        if address == build.repository({}):
            assert path.read_bytes() == original.read_bytes()


def chapters():
    return sorted(ROOT.glob("chapters/*.ipynb"))


def test_each_chapter_says_how_to_get_its_library(site):
    for chapter in chapters():
        html = (site / "chapters" / f"{chapter.stem}.html").read_text(encoding="utf-8")
        folded = re.search(r"<details>\s*<summary>To run this page.*?</details>", html, re.DOTALL)
        assert "<p>The code imports <code" in folded.group()
        assert html.index("<h1>") < folded.start() < html.index("cell_input")
        assert "find_spec" not in html  # it is for those who run the page
        downloaded = site / "_sources" / "chapters" / chapter.name
        assert downloaded.read_bytes() == chapter.read_bytes()


def test_files_name_no_machine():
    """No file of the project holds a path of the machine that it was written on."""
    listing = ["git", "ls-files", "-co", "--exclude-standard", "-z"]
    run = subprocess.run(listing, cwd=ROOT, capture_output=True, encoding="utf-8")
    if run.returncode:
        pytest.skip("not a git repository")
    machine = re.compile(rb"/wor[k]/|\.\./share[d]")
    files = [ROOT / name for name in filter(None, run.stdout.split("\0"))]
    found = {path.name: machine.findall(path.read_bytes()) for path in files if path.is_file()}
    assert {name: paths for name, paths in found.items() if paths} == {}


def test_a_stored_bar_stops_the_build_with_what_repairs_it(tmp_path, monkeypatch):
    for name in ("book", "tests", "chapters"):
        (tmp_path / name).mkdir()
    for name in ("_toc.yml", "_config.yml"):
        shutil.copy(ROOT / name, tmp_path)
    bar = {"output_type": "stream", "name": "stderr", "text": "100%"}
    nb = {"cells": [{"cell_type": "code", "source": "", "outputs": [bar, bar]}]}
    (tmp_path / "chapters" / "01-a.ipynb").write_text(json.dumps(nb), encoding="utf-8")
    monkeypatch.setattr(build, "ROOT", tmp_path)
    with pytest.raises(RuntimeError, match=r"01-a.* 2 texts .*: make run ARGS=chapters/01-a.ipynb"):
        build.copy_sources(tmp_path / "source", "")
