"""What would break on Windows or a Mac, as far as it can be seen from here."""

import ast
import os
import re
from collections import Counter
from pathlib import Path

import nbformat
import pytest

from tests.run_chapters import canonical
from tests.test_chapters import CHAPTERS, NOTEBOOKS
from tests.test_surroundings import ROOT, chapter, checkout, python
from vae_lib.records import checksums

PYTHON = [ROOT / "conftest.py"]
for folder in ("book", "tests", "vae_lib"):
    PYTHON += sorted((ROOT / folder).rglob("*.py"))
TREES = {str(path.relative_to(ROOT)): ast.parse(path.read_bytes()) for path in PYTHON}
for name, nb in NOTEBOOKS.items():
    TREES[name] = ast.parse("\n".join(c.source for c in nb.cells if c.cell_type == "code"))
IGNORED = {".git", "outputs", "_build", "mutants", "my-chapters", "__pycache__"}
RESERVED = {
    "con",
    "prn",
    "aux",
    "nul",
    *(f"{port}{n}" for port in ("com", "lpt") for n in range(10)),
}


def _name(node):
    return getattr(node, "id", "")


def calls(tree):
    """Yield the calls of a tree: each with what is called, and the keywords given."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Call):
            name = getattr(node.func, "attr", _name(node.func))
            yield node, name, {keyword.arg: keyword.value for keyword in node.keywords}


def without_encoding(tree):
    """Return the lines that read or write text in the encoding of the machine."""
    found = []
    for node, name, given in calls(tree):
        mode = ast.unparse(node.args[1]) if len(node.args) > 1 else "'r'"
        text = (
            name in ("read_text", "write_text")
            or (isinstance(node.func, ast.Name) and name == "open" and "b" not in mode)
            or (name in ("run", "Popen", "check_output") and {"text"} & given.keys())
        )
        if text and "encoding" not in given:
            found.append(node.lineno)
    return found


@pytest.mark.parametrize("name", list(TREES))
def test_text_has_an_encoding(name):
    assert without_encoding(TREES[name]) == []


def test_text_without_an_encoding_is_found():
    for line in ("p.read_text()", "open('a')", "open('a', 'w')", "run(x, text=True)"):
        assert without_encoding(ast.parse(line)) == [1], line
    for line in ("p.read_text(encoding='utf-8')", "open('a', 'rb')", "gzip.open('a')"):
        assert without_encoding(ast.parse(line)) == [], line


def files():
    for folder, folders, names in os.walk(ROOT):
        folders[:] = [f for f in folders if f not in IGNORED and not f.startswith(".venv")]
        yield from (Path(folder, name).relative_to(ROOT) for name in [*folders, *names])


def test_names_are_fit_for_every_file_system():
    paths = list(files())
    assert len(paths) > 100
    lowered = Counter(str(path).lower() for path in paths)
    assert [name for name, count in lowered.items() if count > 1] == []
    for path in paths:
        assert not re.search(r'[<>:"|?*\\\x00-\x1f]|[ .]$', path.name), path
        assert path.name.lower().partition(".")[0] not in RESERVED, path
        assert len(str(path)) < 150, path  # Windows has 260 for the whole path


@pytest.mark.parametrize("path", CHAPTERS, ids=lambda path: path.stem)
def test_a_notebook_with_line_ends_of_windows_is_the_same(path, tmp_path):
    text = path.read_text(encoding="utf-8")
    other = tmp_path / path.name
    other.write_bytes(text.replace("\n", "\r\n").encode())
    assert canonical(nbformat.read(other, as_version=4)) == canonical(NOTEBOOKS[path.name])


def test_a_script_with_line_ends_of_windows_keeps_its_record(tmp_path):
    script = ROOT / "vae_lib" / "recorded" / "code_seeds.py"
    other = tmp_path / script.name
    other.write_bytes(script.read_text(encoding="utf-8").replace("\n", "\r\n").encode())
    assert checksums([other]) == checksums([script])


def test_processes_are_spawned():
    for name, tree in TREES.items():
        for node, called, given in calls(tree):
            if called == "ProcessPoolExecutor":
                arguments = [ast.unparse(a) for a in (*node.args, *given.values())]
                assert any("get_context('spawn')" in argument for argument in arguments), name
            assert called not in ("fork", "forkserver"), name


# What Windows lacks, or has with another meaning: its os.kill ends a process, whatever it sends.
UNIX = {"SIGKILL", "fcntl", "fork", "geteuid", "getuid", "os.kill", "mkfifo", "resource"}


@pytest.mark.parametrize("name", list(TREES))
def test_nothing_is_asked_that_windows_lacks(name):
    found = set()
    for node in ast.walk(TREES[name]):
        if isinstance(node, ast.Attribute):
            found.add("os.kill" if (node.attr, _name(node.value)) == ("kill", "os") else node.attr)
        elif isinstance(node, ast.alias):
            found.add(node.name)
    assert found & UNIX <= ONLY_ON_UNIX.get(Path(name).name, set())


# These ask for it on Unix only.
ONLY_ON_UNIX = {
    "test_make.py": {"geteuid"},
    "test_surroundings.py": {"geteuid"},
    "test_picture_files.py": {"mkfifo"},
}


def test_a_path_with_a_space_and_an_accent(tmp_path):
    folder = checkout(tmp_path / "mes pages d'été")
    chapter(folder, [("import vae_lib, pathlib\nprint(1.5)", "1.5")])
    done = python("-m", "pytest", "-q", "-p", "no:cacheprovider", "chapters", cwd=folder)
    assert done.returncode == 0, done.stdout
    assert "2 passed" in done.stdout
    assert Path(folder, "chapters").exists()
