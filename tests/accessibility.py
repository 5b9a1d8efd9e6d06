"""axe-core, run in a page: all of its rules, those that look at colours in both themes.

axe looks at every element, and most of a page of this book is the coloured words of its code and
the pieces of its formulas, thousands of them and all alike. So `THIN` leaves one of each kind, and
of what the page of the library describes, five functions, five classes and so on. A colour depends
on the kinds of an element and of those around it, so a text is looked at for its colours twice and
not on every page again. One rule, css-orientation-lock, would read the style sheets, which the
browser refuses for files on a disk; it runs and can say nothing.
"""

import importlib.util
import json
from pathlib import Path

# The rules that look at colours; the others do not know of themes.
COLOURS = ["color-contrast", "color-contrast-enhanced", "link-in-text-block"]

# Opens what is folded, stops what moves, and leaves one formula and one coloured word of a kind.
THIN = """(() => {
    const all = selector => [...document.querySelectorAll(selector)];
    document.head.insertAdjacentHTML("beforeend",
        "<style>* { animation: none !important; transition: none !important; }</style>");
    all("details").forEach(fold => { fold.open = true; });
    all("mjx-container").slice(1).forEach(formula => formula.replaceWith("formula"));
    const seen = new Set();
    all("pre span, dt.sig :is(span, em)").forEach(word => {
        const kind = word.parentElement.className + ">" + word.className;
        if (word.isConnected && seen.has(kind)) { word.replaceWith(word.textContent); }
        seen.add(kind);
    });
    const counts = {};
    all("dl.py").forEach(entry => {
        counts[entry.className] = (counts[entry.className] ?? 0) + 1;
        if (counts[entry.className] > 5) { entry.remove(); }
    });
    all("pre, dt.sig").forEach(text => text.normalize());
})()"""

# Takes the text out of every element of a kind that was seen twice, on this page or earlier ones.
TWO_OF_A_KIND = """(earlier => {
    const seen = new Map(earlier);
    const called = e => `${e.tagName}.${e.className}[${e.getAttribute("style") ?? ""}]`;
    [...document.body.querySelectorAll("*")].forEach(element => {
        const texts = [...element.childNodes].filter(n => n.nodeType === 3 && n.data.trim());
        if (!texts.length) { return; }
        let kind = "";
        for (let e = element; e !== document.body; e = e.parentElement) {
            kind += e.tagName === "SECTION" ? "" : called(e);
        }
        const count = seen.get(kind) ?? 0;
        if (count > 1) { texts.forEach(text => { text.data = ""; }); }
        seen.set(kind, count + 1);
    });
    const empty = [...document.body.querySelectorAll("*")].filter(e => !e.textContent.trim());
    empty.forEach(element => { element.style.display = "none"; });
    return [...seen];
})"""

RUN = """(async (theme, wanted, rules) => {
    document.documentElement.dataset.theme = document.documentElement.dataset.mode = theme;
    const every = axe.getRules().map(rule => rule.ruleId);
    const values = every.filter(rule => rules.includes(rule) === wanted);
    const found = await axe.run(
        {runOnly: {type: "rule", values}, resultTypes: ["violations"], preload: false});
    return found.violations.flatMap(rule => rule.nodes.map(node => [rule.id, theme,
        node.target.join(" "), [...node.any, ...node.all, ...node.none].map(a => a.message)[0]]));
})"""


def script():
    """Return the text of axe-core, or None if the package that brings it is not installed."""
    package = importlib.util.find_spec("axe_playwright_python")
    if package is None:
        return None
    path = Path(package.submodule_search_locations[0], "axe.min.js")
    return path.read_text(encoding="utf-8")


class Axe:
    """Finds what is wrong with the pages of a browser; what it returns should be empty."""

    def __init__(self, text):
        self._text = text
        self._seen = []

    def violations(self, browser):
        """Look at the page that is open, which is of no other use afterwards."""
        browser.run(THIN)
        browser.run(f"{self._text}; null")
        found = self._run(browser, "light", False)
        self._seen = browser.run(f"{TWO_OF_A_KIND}({json.dumps(self._seen)})")
        for theme in ("light", "dark"):
            found += self._run(browser, theme, True)
        return found

    def _run(self, browser, theme, colours):
        arguments = json.dumps([theme, colours, COLOURS])[1:-1]
        return browser.run(f"{RUN}({arguments})")
