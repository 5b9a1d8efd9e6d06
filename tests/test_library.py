"""Can the library be read in an evening, and from the top down?"""

import ast
import io
import re
import tokenize
from pathlib import Path

import pytest

import vae_lib

ROOT = Path(vae_lib.__file__).parent
FILES = {
    ".".join(path.relative_to(ROOT).with_suffix("").parts): path
    for path in ROOT.rglob("*.py")
    if "assets" not in path.parts
}
TREES = {name: ast.parse(path.read_text(encoding="utf-8")) for name, path in FILES.items()}

# The order in which modules import one another, and the rooms around them, as the library says.
CORE, ROOMS = (
    re.findall(r"`(\w+)`", paragraph.split("`import", 1)[0])
    for paragraph in vae_lib.__doc__.split("\n\n")[1:]
)
ROOMS = sorted(set(ROOMS) - set(CORE))
FEW = {"core": 1500, "training": 200, "a module": 400}


def code(source):
    """Count the lines of a source that are neither blank nor comment nor docstring."""
    nothing = (tokenize.COMMENT, tokenize.NL, tokenize.NEWLINE, tokenize.INDENT, tokenize.DEDENT)
    nothing += (tokenize.ENCODING, tokenize.ENDMARKER)
    lines = set()
    for token in tokenize.generate_tokens(io.StringIO(source).readline):
        if token.type not in nothing:
            lines.update(range(token.start[0], token.end[0] + 1))
    for node in ast.walk(ast.parse(source)):
        documented = isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef)
        if documented and ast.get_docstring(node) is not None:
            lines.difference_update(range(node.body[0].lineno, node.body[0].end_lineno + 1))
    return len(lines)


def room(name):
    """Return the room that a module is in: its own name, or that of its folder."""
    return name.partition(".")[0]


def imported(tree):
    """Return the modules of the library that a tree imports, wherever in it."""
    found = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            # `import vae_lib` is an import of all that its __init__ names.
            found.update(f"{alias.name}.__init__" for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, "an import of the library names it in full"
            found.add(node.module)
            found.update(f"{node.module}.{alias.name}" for alias in node.names)
    names = [name.removeprefix("vae_lib.") for name in found if name.startswith("vae_lib.")]
    return {room(name) for name in names} & {room(name) for name in FILES}


def test_lines_of_code_are_what_is_left_without_words():
    assert code('"""One\n\ntwo."""\n\n# three\n\n\nx = 4\n') == 1
    assert code('def f(x):\n    """Four."""\n\n    return (\n        x  # five\n    )\n') == 4
    assert code('class A:\n    """Six."""\n\n    x = """text\nof two lines"""\n') == 3


def test_the_library_says_which_modules_it_has():
    assert len(CORE) == len(set(CORE)) > 8
    assert {room(name) for name in FILES} - {"__init__"} == {*CORE, *ROOMS}


def test_the_core_is_read_in_an_evening():
    core = {name: code(FILES[name].read_text(encoding="utf-8")) for name in [*CORE, "__init__"]}
    assert sum(core.values()) <= FEW["core"], core
    assert core["training"] <= FEW["training"]


@pytest.mark.parametrize("name", FILES)
def test_no_module_is_long(name):
    assert code(FILES[name].read_text(encoding="utf-8")) <= FEW["a module"]


@pytest.mark.parametrize("name", CORE)
def test_the_core_is_imported_from_the_top_down(name):
    above = set(CORE[: CORE.index(name)])
    assert imported(TREES[name]) <= above


@pytest.mark.parametrize("name", [name for name in FILES if name not in CORE])
def test_rooms_do_not_import_one_another_in_a_circle(name):
    seen, waiting = set(), [name]
    while waiting:
        one = waiting.pop()
        new = imported(TREES.get(one, TREES.get(f"{one}.__init__"))) - seen
        if "." in one:
            new.discard(room(one))  # one script of a long run may use another's parts
        seen |= new
        waiting += new
    assert room(name) not in seen


def public(tree, prefix=""):
    """Yield the public functions and classes of a tree, methods among them, with their names."""
    for node in tree.body:
        if isinstance(node, ast.FunctionDef | ast.ClassDef) and not node.name.startswith("_"):
            yield f"{prefix}{node.name}", node
            if isinstance(node, ast.ClassDef):
                yield from public(node, f"{prefix}{node.name}.")


@pytest.mark.parametrize("name", FILES)
def test_every_public_name_has_a_docstring(name):
    assert ast.get_docstring(TREES[name])
    silent = [title for title, node in public(TREES[name]) if not ast.get_docstring(node)]
    # A script has one for itself; its functions are for nobody else.
    assert silent == [] or room(name) == "recorded"
