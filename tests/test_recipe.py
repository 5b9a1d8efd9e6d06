"""The page with the bare recipe, and the commands in its chapter: do they run as they stand?"""

import re
import shlex
from pathlib import Path

import nbformat
import numpy as np
import pytest
from PIL import Image
from torch.distributed.run import get_args_parser

from vae_lib import runs
from vae_lib.__main__ import main, parser

ROOT = Path(__file__).parents[1]
PAGE = (ROOT / "book" / "recipe.md").read_text(encoding="utf-8")
NAMES = ["train", "score", "reconstruct", "sample", "walk", "encode"]
CHAPTER = "\n".join(
    cell.source
    for cell in nbformat.read(ROOT / "chapters" / "18-your-own-data.ipynb", as_version=4).cells
    if cell.cell_type == "markdown"
)


def blocks(text, language):
    return re.findall(rf"^```{language}\n(.*?)^```$", text, re.DOTALL | re.MULTILINE)


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """A folder with pictures of two sizes, and with what is none."""
    (tmp_path / "pictures").mkdir()
    draw = np.random.default_rng(0)
    names = ["pictures/one.png", "pictures/two.png", "cat.png", "dog.png"]
    for name in [*names, *(f"pictures/{number}.webp" for number in range(38))]:
        size = (40, 36) if name.endswith("png") else (32, 32)
        patches = Image.fromarray(draw.integers(0, 256, (4, 4, 3), np.uint8))
        patches.resize(size, Image.Resampling.NEAREST).save(tmp_path / name, lossless=True)
    (tmp_path / "pictures" / "notes.txt").write_text("no picture", encoding="utf-8")
    monkeypatch.chdir(tmp_path)
    return tmp_path


def commands(text):
    block, *_ = blocks(text, "sh")
    found = [shlex.split(line, comments=True) for line in block.splitlines()]
    assert {program for program, *_ in found} == {"vae"}
    return [arguments for _, *arguments in found]


def torchruns():
    """Return the commands of the chapter that start several processes."""
    lines = [block.replace("\\\n", " ") for block in blocks(CHAPTER, "sh")[1:]]
    return [re.sub(r"^[A-Z_]+=1 ", "", line) for line in lines]


def test_the_commands_run(folder, monkeypatch):
    monkeypatch.setattr(runs, "enough", lambda *_: 2)  # epochs
    assert [name for name, *_ in commands(PAGE)] == NAMES
    for arguments in commands(PAGE):
        assert main(arguments) == 0, arguments
    written = {"back.png", "samples.png", "walk.png", "latents.npz", "runs"}
    assert written <= {path.name for path in folder.iterdir()}


def test_the_commands_of_the_chapter_are_understood():
    assert [parser().parse_args(line).command.__name__ for line in commands(CHAPTER)] == NAMES


def test_the_commands_for_several_processes_are_understood():
    for line in torchruns():
        program, *arguments = shlex.split(line)
        assert program == "torchrun"
        launch = get_args_parser().parse_args(arguments)
        assert launch.module
        assert launch.training_script == "vae_lib"
        assert parser().parse_args(launch.training_script_args).command.__name__ == "train"
    assert len(torchruns()) == 2


def test_the_python_runs_as_it_stands(folder, capsys):
    (block,) = blocks(PAGE, "python")
    exec(compile(block, "book/recipe.md", "exec"), {})
    said = capsys.readouterr().out
    assert "skipped notes.txt" in said
    assert re.search(r"ELBO: -\d+\.\d\d ± \d+\.\d\d nats", said)
    assert {"pictures.safetensors", "samples.png"} <= {path.name for path in folder.iterdir()}
