"""Names of `vae_lib` and terms of the glossary, made links on the built pages.

The mouse over a link says what it leads to: the first sentence of the docstring, or the definition.
"""

import html
import re

OBJECT = re.compile(
    r'<dt class="sig sig-object py" id="(vae_lib[\w.]+)">.*?</dt>\s*<dd>(.*?)</p>', re.DOTALL
)
TERM = re.compile(
    r'<dt id="(term-[^"]+)">(.*?)<a class="headerlink".*?</dt>\s*<dd>(.*?)</dd>', re.DOTALL
)
# To these the glossary gives a meaning of its own beside that of every day, so that a link from
# each page that uses the word would mislead.
EVERYDAY = """
    baseline bound channel context density design entropy evidence feature filter gap grey
    hierarchy hole loss objective padding precision rate reconstruction score seed step surrogate
    threshold unbiased variational
"""
# Inside these, and inside what has one of the classes, no text is made a link.
CLOSED = {"a", "pre", "h1", "h2", "h3", "h4", "h5", "h6", "summary", "button", "th", "dt", "nav"}
CLOSED |= {"script", "style", "label", "figcaption", "caption"}
CLOSED_CLASSES = re.compile(r'class="[^"]*\b(?:math|cell_output|admonition-title)\b')
VOID = {"img", "br", "hr", "input", "meta", "link", "source", "wbr", "col"}
IMPORT = re.compile(r"^\s*from (vae_lib[\w.]*) import (\([^)]*\)|[^\n]*)", re.MULTILINE)
# A name with its attributes, as the highlighter writes it; no attribute of something else, and no
# keyword of a call.
CODE = re.compile(
    r'(?<!<span class="o">\.</span>)<span class="n">\w+</span>'
    r'(?:<span class="o">\.</span><span class="n">\w+</span>)*(?!<span class="o">=</span>)'
)
# The chapters that a definition ends with.
WHERE = re.compile(r'(?<=[.)])(?:[\s,]*<a class="reference [^>]*>.*?</a>)+\s*(?=</p>)', re.DOTALL)
DEFINED = re.compile(r'<span class="n[fc]">(\w+)</span>')
# The TeX of the definitions, as one writes it in a line.
TEX = {r"\phi": "φ", r"\theta": "θ", r"\mid": "|", r"\log": "log ", r"\sigma": "σ", r"\mu": "μ"}
TEX |= {r"\beta": "β", r"\ ": " ", r"\,": " ", r"\times": "×", "{": "", "}": ""}


def plain(text):
    """Return HTML as text in one line, its TeX written out, or "" where some TeX is left."""
    text = html.unescape(re.sub("<[^>]*>", "", text)).replace(r"\(", "").replace(r"\)", "")
    for tex, sign in TEX.items():
        text = text.replace(tex, sign)
    return "" if "\\" in text else " ".join(text.split())


def names(library):
    """Return what the page of the library describes: each full name with its first sentence."""
    return {name: plain(said) for name, said in OBJECT.findall(library)}


def terms(glossary):
    """Return the terms of the glossary that are linked: each with its anchor and definition."""
    found = {
        plain(term): (anchor, plain(WHERE.sub("", said)))
        for anchor, term, said in TERM.findall(glossary)
    }
    return {term: entry for term, entry in found.items() if term and term not in EVERYDAY.split()}


def link(text, target, kind, said):
    """Return the HTML of a link with a sentence that the mouse shows."""
    said = f' title="{html.escape(said)}"' if said else ""
    return f'<a class="{kind}" href="{html.escape(target)}"{said}>{text}</a>'


def imported(code):
    """Return the full name of each name that some code imports from the library."""
    found = {}
    for module, group in IMPORT.findall(code):
        for part in group.strip("()").split("#")[0].replace("\n", " ").split(","):
            name, _, other = part.strip().partition(" as ")
            found[other or name] = f"{module}.{name}"
    return found


def link_names(page, known, library):
    """Make each name of the library in the code of a page a link.

    Args:
        page: the HTML.
        known: what `names` returned.
        library: the address of the library's page, seen from this one.
    """
    cells = re.findall(r"<pre>(.*?)</pre>", page, re.DOTALL)
    local = imported("\n".join(html.unescape(re.sub("<[^>]*>", "", cell)) for cell in cells))
    # What the page defines itself is not the library's, though it may have the same name.
    local = {name: full for name, full in local.items() if name not in DEFINED.findall(page)}

    def linked(match):
        words = re.findall(r">(\w+)</span>", match[0])
        full = ".".join([local.get(words[0], words[0]), *words[1:]])
        for count in range(len(words), 0, -1):
            if words[0] in local and full in known:
                parts = match[0].split('<span class="o">.</span>')
                kept, rest = (
                    '<span class="o">.</span>'.join(p) for p in (parts[:count], parts[count:])
                )
                dot = '<span class="o">.</span>' if rest else ""
                return (
                    link(kept, f"{library}#{full}", "name", f"{full}: {known[full]}") + dot + rest
                )
            full = full.rpartition(".")[0]
        return match[0]

    return re.sub(r"<pre>.*?</pre>", lambda cell: CODE.sub(linked, cell[0]), page, flags=re.DOTALL)


def link_prose(page, known, library, defined, glossary):
    """Make names of the library in prose links, and the first use of each term on a page.

    Args:
        page: the HTML.
        known: what `names` returned.
        library: the address of the library's page, seen from this one; "" links no name.
        defined: what `terms` returned.
        glossary: the address of the glossary, seen from this page; "" links no term.
    """
    start, end = page.find('<article class="bd-article">'), page.find("</article>")
    waiting = dict(defined) if glossary else {}
    done, closed = [], []  # what is open where nothing is linked
    for piece in re.split(r"(<[^>]*>)", page[start:end]):
        tag = re.match(r"</?(\w+)", piece)
        if not tag:
            within = [name for name, _ in closed]
            if closed and not any(shut for _, shut in closed):
                piece = (
                    link_code(piece, known, library)
                    if "code" in within
                    else link_terms(piece, waiting, glossary)
                )
        elif piece.startswith("</"):
            while closed and closed.pop()[0] != tag[1]:
                pass
        elif tag[1] not in VOID and not piece.endswith("/>"):
            closed.append((tag[1], tag[1] in CLOSED or bool(CLOSED_CLASSES.search(piece))))
        done.append(piece)
    return page[:start] + "".join(done) + page[end:]


def link_code(text, known, library):
    """Make a name with its module, as in `data.load_mnist(...)`, a link."""
    called = re.fullmatch(r"(?:vae_lib\.)?(\w+(?:\.\w+)+)(\(.*\))?", text)
    full = f"vae_lib.{called[1]}" if called else ""
    if not library or full not in known:
        return text
    return link(text, f"{library}#{full}", "name", f"{full}: {known[full]}")


def link_terms(text, waiting, glossary):
    """Make the first use of each waiting term in a text a link, and take it off the list."""
    words = sorted(waiting, key=len, reverse=True)
    if not words or not text.strip():
        return text
    pattern = re.compile(rf"(?<![\w-])({'|'.join(map(re.escape, words))})(?![\w-])")

    def linked(match):
        if match[1] not in waiting:  # it came twice in this text
            return match[0]
        anchor, said = waiting.pop(match[1])
        return link(match[0], f"{glossary}#{anchor}", "term", said)

    return pattern.sub(linked, text)
