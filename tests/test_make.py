"""`make` in folders that were moved or cannot be written, beside what users have set and made."""

import os
import shutil
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor

import pytest

from tests.surroundings import ROOT
from tests.test_surroundings import needs_powerless, powerless, read_only, write

MAKE = shutil.which("make")
pytestmark = pytest.mark.skipif(not MAKE, reason="there is no make")


@pytest.fixture
def made(tmp_path):
    """A folder that `make` takes to be set up, its environment empty."""
    folder = tmp_path / "original"
    (folder / "requirements").mkdir(parents=True)
    for name in ("Makefile", "pyproject.toml", "requirements/book.txt"):
        shutil.copy(ROOT / name, folder / name)
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", folder / ".venv"], check=True)
    (folder / ".venv" / "ready").touch()
    make(folder)
    return folder


def make(folder, *arguments):
    command = [MAKE, "-C", str(folder), *(arguments or [".venv/ready"])]
    return subprocess.run(
        command, capture_output=True, encoding="utf-8", check=True, env=os.environ
    )


def test_make_is_strict_and_keeps_settings_out(made):
    shown = make(made, "--dry-run", "test").stdout
    assert " -m pytest -W error " in shown
    (made / "tests").mkdir()
    code = "import os, sys; print(sys.path[0], sorted(n for n in os.environ if n[:3] == 'PYT'))"
    write(made / "tests" / "run_chapters.py", code)
    theirs = {"PYTHONOPTIMIZE": "1", "PYTEST_ADDOPTS": "--lf", "PYTHONSAFEPATH": "1"}
    command = [MAKE, "-C", str(made), "run"]
    done = subprocess.run(command, capture_output=True, encoding="utf-8", env=os.environ | theirs)
    assert f"{made} ['PYTHONNOUSERSITE', 'PYTHONPATH']" in done.stdout


@pytest.mark.parametrize("move", [shutil.move, shutil.copytree], ids=["renamed", "copied"])
def test_make_mends_a_folder_that_is_another(made, move, tmp_path):
    other = tmp_path / "an other"
    move(made, other, **({"symlinks": True} if move is shutil.copytree else {}))
    make(other)
    activate = other / ".venv" / "bin" / "activate"
    assert str(other / ".venv") in activate.read_text(encoding="utf-8")
    assert str(made) not in activate.read_text(encoding="utf-8")
    code = "import sys; print(sys.path)"
    env = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    command = [other / ".venv" / "bin" / "python", "-P", "-c", code]
    shown = subprocess.run(
        command, capture_output=True, encoding="utf-8", check=True, env=env
    ).stdout
    assert repr(str(other)) in shown
    assert repr(str(made)) not in shown
    before = activate.stat().st_mtime_ns
    assert make(other).stdout.count("\n") <= 3  # nothing is left to do
    assert activate.stat().st_mtime_ns == before


# ---------------------------------------------------------- an environment that was there before

NOTHING_TO_INSTALL = ("PIP=true", "HAS_TORCH=--version", "UV=none")


@pytest.fixture
def unmade(made):
    """A folder with an environment that `make` has not set up."""
    (made / ".venv" / "ready").unlink()
    write(made / "pip.py", "")  # it takes seconds to have a real one
    return made


def tried(folder, *arguments, **options):
    """Call make; return what it says on both streams, and its exit status."""
    command = [MAKE, "-C", str(folder), *arguments]
    options = {"env": os.environ} | options
    done = subprocess.run(
        command,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        encoding="utf-8",
        timeout=100,
        **options,
    )
    return done.stdout, done.returncode


def test_make_gives_an_environment_a_pip(unmade):
    (unmade / "pip.py").unlink()
    said, status = tried(unmade, ".venv/ready", *NOTHING_TO_INSTALL)
    assert status == 0, said
    subprocess.run([unmade / ".venv/bin/python", "-m", "pip", "--version"], check=True)


def of_python_3_9(environment):
    interpreter = environment / "bin" / "python"
    interpreter.unlink()
    write(
        interpreter, '#!/bin/sh\nif [ "$1" = --version ]; then echo Python 3.9.2; else exit 1; fi'
    )
    interpreter.chmod(0o755)


def without_its_python(environment):
    interpreter = environment / "bin" / "python"
    interpreter.unlink()
    interpreter.symlink_to(environment / "gone")


@pytest.mark.parametrize(
    ("spoil", "word"), [(of_python_3_9, "is of Python 3.9.2"), (without_its_python, "is broken")]
)
def test_make_says_what_is_wrong_with_an_environment(unmade, spoil, word):
    spoil(unmade / ".venv")
    said, status = tried(unmade, ".venv/ready", *NOTHING_TO_INSTALL)
    assert status == 2
    assert word in said
    assert "remove it (rm -rf .venv) and call make again" in said
    assert (unmade / ".venv" / "pyvenv.cfg").exists()  # nothing of theirs is gone


def test_make_notices_that_pip_installs_elsewhere(unmade):
    said, status = tried(unmade, ".venv/ready", "PIP=true", "UV=none")
    assert status == 2
    assert "look for target, prefix or root in pip config list" in said
    assert not (unmade / ".venv" / "ready").exists()


def test_of_pip_s_settings_only_those_of_fetching_are_used(unmade):
    theirs = {"PIP_USER": "1", "PIP_TARGET": "/elsewhere", "PIP_REQUIRE_HASHES": "1"}
    kept = {"PIP_INDEX_URL": "https://mirror.example", "PIP_PROXY": "http://proxy.example:1"}
    settings = "PIP=sh -c env", "HAS_TORCH=--version", "UV=none"
    said, status = tried(
        unmade, ".venv/ready", *settings, env=os.environ | theirs | kept | {"HTTPS_PROXY": "p"}
    )
    assert status == 0, said
    log = (unmade / ".venv" / "set-up.log").read_text(encoding="utf-8")
    assert all(f"{name}={value}\n" in log for name, value in kept.items())
    assert "HTTPS_PROXY=p\n" in log
    assert not [name for name in theirs if f"{name}=" in log]


@pytest.mark.parametrize("status", [0, 1])
def test_uv_installs_where_it_is_there_and_pip_where_it_fails(unmade, tmp_path, status):
    uv = write(tmp_path / "bin" / "uv", f'#!/bin/sh\necho "uv $*"\nexit {status}\n')
    uv.chmod(0o755)
    env = os.environ | {"PATH": f"{uv.parent}{os.pathsep}{os.environ['PATH']}"}
    arguments = [".venv/ready", "PIP=echo pip", "HAS_TORCH=--version", "UV=uv"]
    said, failed = tried(unmade, *arguments, env=env)
    assert not failed, said
    log = (unmade / ".venv" / "set-up.log").read_text(encoding="utf-8").splitlines()
    locked = "--no-deps --require-hashes -r requirements/book.txt"
    assert f"uv --no-config pip install --python .venv/bin/python {locked}" in log
    assert any(line.startswith("pip") and line.endswith(locked) for line in log) is bool(status)


def test_two_calls_of_make_set_up_once(unmade):
    slow = ["PIP=sh -c 'echo installed >>installed; sleep 2'", "HAS_TORCH=--version", "UV=none"]
    with ThreadPoolExecutor() as pool:
        both = [pool.submit(tried, unmade, ".venv/ready", *slow) for _ in range(2)]
    said = [call.result() for call in both]
    assert [status for _, status in said] == [0, 0], said
    assert "another make is at it; waiting" in said[0][0] + said[1][0]
    assert (unmade / "installed").read_text(encoding="utf-8") == "installed\n"


@needs_powerless
def test_make_says_in_a_line_that_a_folder_cannot_be_written(made):
    with read_only(made):
        refused = powerless([MAKE, "-C", made, "book"])
        listed = powerless([MAKE, "-C", made])
    assert refused.returncode == 2
    assert "cannot be written; test it by pytest from an environment elsewhere" in refused.stdout
    assert len([line for line in refused.stdout.splitlines() if "***" in line]) == 1
    assert listed.returncode == 0


@pytest.fixture
def with_lab(made):
    """A folder that is ready for `make lab`, with a JupyterLab that says how it was called."""
    (made / ".venv" / "lab-ready").touch()
    (made / "requirements" / "lab.txt").touch()
    (made / "chapters").mkdir()
    write(made / "chapters" / "01-a.ipynb", "the book's")
    write(made / "jupyterlab.py", "import sys; print(sys.argv[1:])")
    os.utime(made / "requirements" / "lab.txt", (0, 0))
    return made


def test_lab_opens_a_copy_that_stays_the_reader_s(with_lab):
    said, status = tried(with_lab, "lab", "ARGS=--port 99")
    assert status == 0, said
    root = ["--allow-root"] if os.geteuid() == 0 else []
    assert str([*root, "--port", "99", "my-chapters"]) in said
    copy = with_lab / "my-chapters" / "01-a.ipynb"
    assert copy.read_text(encoding="utf-8") == "the book's"
    write(copy, "mine")
    write(with_lab / "chapters" / "02-b.ipynb", "a new one")
    tried(with_lab, "lab")
    assert copy.read_text(encoding="utf-8") == "mine"
    assert (with_lab / "my-chapters" / "02-b.ipynb").exists()
    said, _ = tried(with_lab, "lab", "FOLDER=chapters")
    assert "'chapters'" in said


needs_git = pytest.mark.skipif(not shutil.which("git"), reason="there is no git")


def git(folder, *arguments):
    command = ["git", "-C", str(folder), *arguments]
    return subprocess.run(command, capture_output=True, encoding="utf-8", check=False).stdout


@needs_git
def test_git_shows_notebooks_as_text_in_the_book_s_own_repository_alone(with_lab):
    git(with_lab.parent, "init")
    (with_lab / ".venv" / "lab-ready").unlink()
    said, status = tried(with_lab, ".venv/lab-ready", *NOTHING_TO_INSTALL)
    assert status == 0, said
    assert git(with_lab.parent, "config", "diff.ipynb.textconv") == ""
    git(with_lab, "init")
    (with_lab / ".venv" / "lab-ready").unlink()
    tried(with_lab, ".venv/lab-ready", *NOTHING_TO_INSTALL)
    assert "nbshowapp" in git(with_lab, "config", "diff.ipynb.textconv")


@needs_git
def test_a_diff_falls_back_when_the_environment_is_gone(with_lab):
    git(with_lab, "init")
    (with_lab / ".venv" / "lab-ready").unlink()
    tried(with_lab, ".venv/lab-ready", *NOTHING_TO_INSTALL)
    write(with_lab / ".gitattributes", "*.ipynb diff=ipynb")
    git(with_lab, "add", "chapters")
    write(with_lab / "chapters" / "01-a.ipynb", "another")
    shutil.rmtree(with_lab / ".venv")
    shown = git(with_lab, "diff", "chapters")
    assert "-the book's" in shown
    assert "+another" in shown
