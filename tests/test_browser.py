"""The built pages in a real browser: opened from the disk, as a reader may."""

import json
import os
import re
import time

import pytest

from book import build
from tests import book_pages, browser

pytest.importorskip("jupyter_book", reason="the book is built with the extra [book]")

PHONE = 390  # CSS pixels

LOOK = """(() => {
    const all = selector => [...document.querySelectorAll(selector)];
    const plain = all(".math").filter(f => !f.querySelector("mjx-container"));
    document.documentElement.dataset.theme = "dark";
    return {
        formulas: all(".math").length,
        not_typeset: [...plain, ...all("mjx-merror")].map(e => e.textContent),
        filters: all(".bd-content .cell_output img").map(i => getComputedStyle(i).filter),
    };
})()"""


@pytest.fixture(scope="module")
def site(tmp_path_factory):
    return book_pages.build(tmp_path_factory)


@pytest.fixture(scope="module")
def chromium(tmp_path_factory):
    program = browser.find()
    if program is None:
        assert "CI" not in os.environ, "no Chromium to test the pages with"
        pytest.skip("no Chromium found")
    with browser.Browser(program, tmp_path_factory.mktemp("profile")) as tab:
        yield tab


@pytest.fixture(scope="module")
def visits(site, chromium):
    """What each page holds, asked for and complained of, and how wide it is on a telephone."""
    found = {}
    moved = {site / f"{former}.html" for former in build.MOVED}  # they lead away at once
    for page in sorted({*book_pages.pages(site)} - moved):
        chromium.size(1300, 900)
        chromium.open(page.as_uri())
        visit = chromium.run(LOOK)
        chromium.size(PHONE, 844, phone=True)
        # A telephone zooms out of a page that is too wide, so its window grows with it.
        width = chromium.run("Math.max(innerWidth, document.documentElement.scrollWidth)")
        noted = {"requests": chromium.requests, "errors": chromium.errors}
        found[page.relative_to(site).as_posix()] = {**visit, **noted, "width": width}
    return found


def test_mathematics_is_typeset(visits):
    assert sum(visit["formulas"] for visit in visits.values()) > 0
    assert {name: v["not_typeset"] for name, v in visits.items() if v["not_typeset"]} == {}


def test_nothing_leaves_the_machine(visits):
    local = ("file:", "data:", "blob:")
    outside = {n: [u for u in v["requests"] if not u.startswith(local)] for n, v in visits.items()}
    assert all(visit["requests"] for visit in visits.values())
    assert {name: addresses for name, addresses in outside.items() if addresses} == {}


def test_the_console_is_clean(visits):
    assert {name: visit["errors"] for name, visit in visits.items() if visit["errors"]} == {}


def test_pages_fit_a_phone(visits):
    assert {name: v["width"] for name, v in visits.items() if v["width"] > PHONE} == {}


def test_pictures_keep_their_grey_levels_in_the_dark(visits):
    filters = [used for visit in visits.values() for used in visit["filters"]]
    assert set(filters) == {"none"}


def wait_for(chromium, script):
    """Run a script until its value is true, for five seconds at most; return whether it was."""
    for _ in range(50):
        try:
            if chromium.run(script):
                return True
        except RuntimeError:  # the page it ran in has gone
            pass
        time.sleep(0.1)
    return False


def test_the_first_page_leads_into_the_book(site, chromium):
    chromium.call("Page.navigate", url=(site / "index.html").as_uri())
    assert wait_for(chromium, "location.pathname.endsWith('/book/index.html')")


@pytest.mark.parametrize("former", build.MOVED)
def test_a_former_address_leads_on_with_its_fragment(site, chromium, former):
    target = site / f"{build.MOVED[former]}.html"
    section = re.search(r'<section id="([^"]+)">\s*<h2', target.read_text(encoding="utf-8"))[1]
    chromium.call("Page.navigate", url=f"{(site / f'{former}.html').as_uri()}#{section}")
    arrived = f"{target.as_uri()}#{section}"
    assert wait_for(chromium, f"location.href === {json.dumps(arrived)}")
    assert wait_for(chromium, f"document.getElementById({json.dumps(section)}) !== null")


def test_a_former_address_leads_on_without_scripts(site, chromium):
    former, now = next(iter(build.MOVED.items()))
    chromium.call("Emulation.setScriptExecutionDisabled", value=True)
    try:
        chromium.call("Page.navigate", url=(site / f"{former}.html").as_uri())
        arrived = (site / f"{now}.html").as_uri()
        assert wait_for(chromium, f"location.href === {json.dumps(arrived)}")
    finally:
        chromium.call("Emulation.setScriptExecutionDisabled", value=False)


def test_search_works_from_a_disk(site, chromium):
    chromium.open(f"{(site / 'search.html').as_uri()}?q=encoder")
    assert wait_for(chromium, "document.querySelector('#search-results li a') !== null")
    assert chromium.errors == []
