"""The built pages in a real browser: opened from the disk, as a reader may."""

import base64
import json
import re
import time

import pytest

from book import build
from tests import accessibility, book_pages

pytest.importorskip("jupyter_book", reason="the book is built with the extra [book]")

PHONE = 360  # CSS pixels, the narrowest that is common
PAPER = 690  # A4 without margins of 14 mm

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


# Pictures that do not come, though nearer than they wait for, or that are not in their shape.
PICTURES = """(async () => {
    const pictures = [...document.querySelectorAll("main img")];
    pictures.forEach(picture => { picture.loading = "eager"; });
    const whole = await Promise.all(pictures.map(p => p.decode().then(() => true, () => false)));
    const shape = p => {
        const style = getComputedStyle(p);
        const [x, y] = [["Left", "Right"], ["Top", "Bottom"]].map(
            sides => sides.reduce((sum, side) => sum + parseFloat(style[`padding${side}`]), 0));
        return (p.clientWidth - x) / (p.clientHeight - y) * p.naturalHeight / p.naturalWidth;
    };
    const wrong = pictures.filter((picture, i) => !whole[i] || !picture.naturalWidth ||
        picture.clientWidth && Math.abs(shape(picture) - 1) > 0.03);
    return wrong.map(picture => picture.src);
})()"""


# With everything unfolded: code whose lines go on beyond its box.
CUT = """(() => {
    const all = selector => [...document.querySelectorAll(selector)];
    all("details").forEach(fold => { fold.open = true; });
    const cut = all("pre").filter(pre => pre.scrollWidth > pre.clientWidth);
    all("details").forEach(fold => { fold.open = false; });
    return cut.map(pre => pre.textContent);
})()"""

# Formulas that run into their own number, or out of the page.
COVERED = """[...document.querySelectorAll("div.math")].filter(formula => {
    const signs = [...formula.querySelectorAll("mjx-mi, mjx-mo, mjx-mn, mjx-mtext")];
    const number = formula.querySelector(".eqno, mjx-labels");
    const end = Math.max(...signs.filter(sign => !sign.closest("mjx-labels")).map(
        sign => sign.getBoundingClientRect().right));
    return end > (number || formula).getBoundingClientRect()[number ? "left" : "right"] + 1;
}).map(formula => formula.id || formula.textContent)"""

# With everything folded, and a folded admonition besides, which no page has yet: what paper shows.
PRINTED = """(() => {
    const all = selector => [...document.querySelectorAll(selector)];
    document.querySelector(".bd-content").insertAdjacentHTML("beforeend", `
        <div class="admonition toggle toggle-hidden">
        <p class="admonition-title">A title</p><p>Folded</p></div>`);
    const folded = all("details > :not(summary), .toggle-hidden > p");
    const seen = element => element.checkVisibility({opacityProperty: true,
        visibilityProperty: true}) && element.getBoundingClientRect().height > 0;
    const colours = element => {
        const style = getComputedStyle(element);
        return [style.backgroundColor, style.color].map(c => c.match(/[\\d.]+/g).map(Number));
    };
    const furniture = "button, .bd-sidebar-primary, .bd-sidebar-secondary, .bd-header-article";
    return {
        folded: folded.length,
        shut: folded.filter(element => !seen(element)).map(element => element.textContent),
        furniture: all(furniture).filter(seen).map(element => element.className),
        paper: colours(document.body)[0],
        pale: all("p, pre span, td, h1, h2").filter(seen).filter(
            element => Math.max(...colours(element)[1].slice(0, 3)) > 150
        ).map(element => element.textContent),
    };
})()"""


# The film of a page, held at three seconds: the sixth of its frames, in row 1 and column 1.
FILM = """(() => {
    const picture = document.querySelector(".tag_film img");
    picture.getAnimations().forEach(part => { part.pause(); part.currentTime = 3000; });
    const figure = picture.closest("figure").getBoundingClientRect();
    const sheet = picture.getBoundingClientRect();
    const caption = document.querySelector(".tag_film figcaption").getBoundingClientRect();
    const times = length => Math.round(100 * length / figure.width) / 100;
    return {parts: picture.getAnimations().length, wide: times(sheet.width),
        left: times(figure.left - sheet.left), up: times(figure.top - sheet.top),
        caption: times(caption.top - figure.top)};
})()"""


@pytest.fixture(scope="module")
def axe():
    script = accessibility.script()
    return script and accessibility.Axe(script)


@pytest.fixture(scope="module")
def visits(site, chromium, axe):
    """What each page holds, asked for and complained of, and how wide it is on a telephone."""
    found = {}
    moved = {site / f"{former}.html" for former in build.MOVED}  # they lead away at once
    for page in sorted({*book_pages.pages(site)} - moved):
        chromium.size(1300, 900)
        chromium.open(page.as_uri())
        visit = chromium.run(LOOK) | {"pictures": chromium.run(PICTURES)}
        chromium.size(PHONE, 844, phone=True)
        # A telephone zooms out of a page that is too wide, so its window grows with it.
        width = chromium.run("Math.max(innerWidth, document.documentElement.scrollWidth)")
        noted = {"requests": chromium.requests, "errors": chromium.errors}
        visit |= {**noted, "width": width, "cut on a phone": chromium.run(CUT)}
        visit["covered"] = chromium.run(COVERED)
        chromium.size(PAPER, 1000)
        chromium.call("Emulation.setEmulatedMedia", media="print")
        visit |= {"cut on paper": chromium.run(CUT), **chromium.run(PRINTED)}
        chromium.call("Emulation.setEmulatedMedia", media="")
        chromium.size(1300, 900)
        chromium.run("new Promise(after => setTimeout(after, 500))")  # the theme's answer to a size
        visit["violations"] = axe and axe.violations(chromium)  # of no use afterwards
        found[page.relative_to(site).as_posix()] = visit
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


needs_axe = pytest.mark.skipif(
    accessibility.script() is None, reason="axe-core comes with the extra [book]"
)


@needs_axe
def test_axe_finds_nothing_in_either_theme(visits):
    assert {name: v["violations"] for name, v in visits.items() if v["violations"]} == {}


@needs_axe
def test_axe_finds_what_is_wrong(site, chromium, axe):
    """Of each sort of rule one: of structure, of words, of colours in one theme alone."""
    chromium.open((site / "search.html").as_uri())
    chromium.run("""document.querySelector("main").insertAdjacentHTML("beforeend", `
        <h5 id="too-deep">A title</h5><img src="data:,"><button></button>
        <style>html[data-theme=dark] .pale { color: #444; }</style><p class="pale">Pale</p>`)""")
    found = {(rule, theme) for rule, theme, *_ in axe.violations(chromium)}
    assert {("heading-order", "light"), ("image-alt", "light"), ("button-name", "light")} <= found
    assert ("color-contrast", "dark") in found
    assert ("color-contrast", "light") not in found


def test_every_picture_is_there_and_in_its_shape(visits):
    assert {name: v["pictures"] for name, v in visits.items() if v["pictures"]} == {}


def test_no_picture_is_blank(site):
    image = pytest.importorskip("PIL.Image")
    shown = set()
    for page in book_pages.pages(site):
        text = page.read_text(encoding="utf-8")
        sources = re.findall(r'<img [^>]*?src="([^":]+\.png)"', text)
        shown |= {(page.parent / source).resolve() for source in sources}
    assert len(shown) > 50
    blank = []
    for path in shown:
        low, high = image.open(path).convert("L").getextrema()
        if high - low < 50:
            blank.append(path.name)
    assert blank == []


def test_the_theme_can_be_switched(site, chromium):
    chromium.open((site / "book" / "conventions.html").as_uri())
    seen = {}
    for _ in range(3):
        chromium.run("document.querySelector('.theme-switch-button').click()")
        mode = chromium.run("document.documentElement.dataset.mode")
        seen[mode] = chromium.run("getComputedStyle(document.body).backgroundColor")
    assert set(seen) == {"auto", "light", "dark"}
    assert seen["light"] == "rgb(255, 255, 255)" != seen["dark"]


def test_pages_fit_a_phone(visits):
    assert {name: v["width"] for name, v in visits.items() if v["width"] > PHONE} == {}


def test_no_line_of_code_is_cut_off_on_a_phone_or_on_paper(visits):
    for where in ("cut on a phone", "cut on paper"):
        assert {name: v[where] for name, v in visits.items() if v[where]} == {}


def test_formulas_do_not_run_into_their_numbers_on_a_phone(visits):
    # The equations of docstrings are written for the source; on the page they scroll.
    covered = {name: v["covered"] for name, v in visits.items() if v["covered"]}
    assert list(covered) in ([], ["book/library.html"])


def test_what_is_folded_is_open_on_paper(visits):
    assert sum(visit["folded"] for visit in visits.values()) > 100
    assert {name: v["shut"] for name, v in visits.items() if v["shut"]} == {}


def test_paper_is_white_and_shows_no_buttons(visits):
    """`LOOK` has turned each page dark."""
    assert {name: v["furniture"] for name, v in visits.items() if v["furniture"]} == {}
    assert {name: v["pale"] for name, v in visits.items() if v["pale"]} == {}
    assert {tuple(visit["paper"]) for visit in visits.values()} == {(255, 255, 255)}


def test_the_cheat_sheet_is_printed_on_one_page(site, chromium):
    chromium.open((site / "book/cheat-sheet.html").as_uri())
    a4 = {"paperWidth": 8.27, "paperHeight": 11.69}
    pdf = base64.b64decode(chromium.call("Page.printToPDF", **a4)["data"])
    assert len(re.findall(rb"/Type\s*/Page\b", pdf)) == 1


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


def test_a_film_plays_on_a_screen_and_stands_still_where_motion_is_unwanted(site, chromium):
    def look(motion="no-preference", media="screen"):
        features = [{"name": "prefers-reduced-motion", "value": motion}]
        chromium.call("Emulation.setEmulatedMedia", media=media, features=features)
        return chromium.run(FILM)

    chromium.size(1300, 900)
    chromium.open((site / "chapters" / "13-latent-space.html").as_uri())
    try:
        plays = look()
        still = look(motion="reduce")
        on_paper = look(media="print")
        chromium.run("document.querySelector('.film-still').click()")
        ticked = look()
    finally:
        chromium.call("Emulation.setEmulatedMedia", media="", features=[])
    # Four times as wide as what is seen of it, moved by one frame, and the caption below one.
    assert (plays["parts"], plays["wide"], plays["left"], plays["up"]) == (2, 4, 1, 1)
    assert 1 <= plays["caption"] < 1.1
    for sheet in (still, on_paper, ticked):
        assert sheet["parts"] == 0
        assert sheet["wide"] < 1.05
        assert sheet["caption"] > 0.95


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
    found = chromium.run("[...document.querySelectorAll('#search-results li a')].map(a => a.href)")
    assert any("/chapters/02-architecture.html" in address for address in found)
