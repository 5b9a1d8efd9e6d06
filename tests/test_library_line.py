"""The line that gets the library: tried in a kernel that runs already and lacks the library.

Colab itself was not tried. As there, the kernel has the packages that the library needs, and pip.
Nothing is downloaded: the address is this repository's, and what is missing stays missing.
"""

import importlib.util
import os
import re
import shutil
import subprocess
import sys
import sysconfig
import venv
from importlib.metadata import version
from pathlib import Path

import pytest
from jupyter_client.kernelspec import KernelSpecManager
from jupyter_client.manager import AsyncKernelManager
from nbclient import NotebookClient
from nbformat.v4 import new_code_cell, new_notebook

from book import build
from tests.surroundings import ROOT

USE = """from pathlib import Path
import vae_lib
from vae_lib.data import load_mnist
print(len(load_mnist().train_images), Path(vae_lib.__file__).parents[1])"""
PIP = {
    "PIP_CONFIG_FILE": os.devnull,
    "PIP_NO_INDEX": "1",
    "PIP_NO_DEPS": "1",
    "PIP_NO_BUILD_ISOLATION": "0",  # so it is spelt: build with the setuptools that is here
    "PIP_DISABLE_PIP_VERSION_CHECK": "1",
}


def python_without_the_library(folder):
    """Make an environment with all packages of this one but the library; return its two paths."""
    venv.EnvBuilder(with_pip=False, symlinks=os.name != "nt").create(folder)
    base = {"base": str(folder), "platbase": str(folder)}
    packages = Path(sysconfig.get_path("purelib", "venv", base))
    for here in map(Path, sys.path):
        if here.name in {"site-packages", "dist-packages"} and here.is_dir():
            for entry in here.iterdir():
                link = packages / entry.name
                wanted = "vae" not in entry.name.lower() and entry.suffix != ".pth"
                if wanted and not link.exists():
                    link.symlink_to(entry, target_is_directory=entry.is_dir())
    scripts = Path(sysconfig.get_path("scripts", "venv", base))
    return scripts / Path(sys.executable).name, packages


def run(cells, python, folder):
    """Run cells in one kernel of a Python and return the outputs of each."""

    class Kernels(KernelSpecManager):
        def get_kernel_spec(self, kernel_name):
            argv = [str(python), "-m", "ipykernel_launcher", "-f", "{connection_file}"]
            return self.kernel_spec_class(argv=argv, language="python")

    mine = ("PYTHONPATH", "PIP_")
    environment = {k: v for k, v in os.environ.items() if not k.startswith(mine)} | PIP
    nb = new_notebook(cells=[new_code_cell(source) for source in cells])
    kernel = AsyncKernelManager(kernel_name="bare", kernel_spec_manager=Kernels())
    client = NotebookClient(nb, km=kernel, timeout=300, allow_errors=True)
    client.execute(cleanup_kc=True, env=environment, cwd=str(folder))
    return [cell.outputs for cell in nb.cells]


def requirements():
    """Say what is missing for the trial, or nothing."""
    if os.name == "nt":
        return "links need rights there"
    if importlib.util.find_spec("pip") is None:
        return "there is no pip"
    if importlib.util.find_spec("setuptools") is None or int(version("setuptools")[:2]) < 77:
        return "there is no setuptools of 77 or newer"
    if shutil.which("git") is None:
        return "there is no git"
    return "" if git("rev-parse", "--git-dir").strip() == ".git" else "this is no clone"


def git(*command):
    run = subprocess.run(["git", "-C", str(ROOT), *command], capture_output=True, encoding="utf-8")
    return run.stdout


def test_the_line_works_in_a_running_kernel(tmp_path):
    if missing := requirements():
        pytest.skip(missing)
    note, check = (cell["source"] for cell in build.library_cells(ROOT.as_uri()))
    line = re.search(r"`(%pip install git\+\S+)`", note).group(1)
    python, packages = python_without_the_library(tmp_path / "environment")
    before, got, after, used = run([check, line, check, USE], python, tmp_path)
    assert [(o.ename, o.evalue) for o in before] == [
        (
            "ModuleNotFoundError",
            "vae_lib is not installed here. " + build.how_to_get_the_library(ROOT.as_uri()),
        )
    ]
    assert [o for o in got if o.output_type == "error"] == [], got
    assert after == []
    assert [o.get("text", o) for o in used] == [f"60000 {packages}\n"]
    files = git("ls-tree", "-r", "--name-only", "HEAD", "vae_lib").splitlines()
    assert [file for file in files if not (packages / file).is_file()] == []


@pytest.mark.parametrize("address", ["", "https://example.org/a/book"])
def test_the_note_and_the_error_say_the_same(address, monkeypatch):
    note, check = (cell["source"] for cell in build.library_cells(address))
    exec(check, {})
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(ModuleNotFoundError) as error:
        exec(check, {})
    assert str(error.value).removeprefix("vae_lib is not installed here. ") in note
    assert ("git+" + address in note) == bool(address)
    assert "make lab" in note
    assert max(map(len, check.splitlines())) <= 88
