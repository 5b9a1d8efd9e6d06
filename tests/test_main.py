"""The command line, as a person at a shell meets it."""

import csv
import errno
import os
import re
import shlex
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

import numpy as np
import pytest
import torch
from filelock import FileLock
from PIL import Image

from tests.surroundings import ROOT
from tests.test_runs import paint, same
from tests.test_surroundings import needs_powerless, powerless, read_only
from vae_lib import runs
from vae_lib.__main__ import main
from vae_lib.training import Interrupted

QUICK = ["--size", "8", "--latents", "2", "--width", "4", "--batch-size", "2", "--held-out", "0.25"]


def train(source, *more):
    return main(["train", str(source), *QUICK, *map(str, more)])


@pytest.fixture(scope="module")
def source(tmp_path_factory):
    folder = paint(tmp_path_factory.mktemp("pictures") / "own")
    for name in ("cats", "dogs"):
        (folder / name).mkdir()
    for number in range(6):
        (folder / f"{number:02}.png").rename(folder / "cats" / f"{number:02}.png")
    for number in range(6, 12):
        (folder / f"{number:02}.png").rename(folder / "dogs" / f"{number:02}.png")
    (folder / "notes.txt").write_text("no picture", encoding="utf-8")
    return folder


@pytest.fixture(scope="module")
def trained(source, tmp_path_factory):
    """A run of two epochs, which tests only read, or copy."""
    folder = tmp_path_factory.mktemp("run") / "own"
    assert train(source, "-o", folder, "--epochs", 2) == 0
    return folder


def contents(folder):
    """Everything that a folder holds, by name."""
    return {str(p.relative_to(folder)): p.read_bytes() for p in folder.rglob("*") if p.is_file()}


def size(file):
    """Return width and height of a sheet."""
    with Image.open(file) as sheet:
        return sheet.size


def refused(capsys, arguments):
    """Run what must be refused, and return the one line that says why."""
    assert main([str(argument) for argument in arguments]) == 2
    streams = capsys.readouterr()
    assert re.fullmatch(r"vae: error: [^\n]+\n", streams.err), streams.err
    return streams.err


# --------------------------------------------------------------------------------- what it does


def commands():
    """Return the commands that the README shows, without the name of the program."""
    text = (ROOT / "README.md").read_text(encoding="utf-8")
    return re.findall(r"^vae (.+)$", text, re.MULTILINE)


def untidy(folder):
    """Make a folder that was not made for this, of 24 pictures and four files that are none."""
    paint(folder, 12)
    colours = np.random.default_rng(1).integers(0, 256, (12, 8, 8, 3), dtype=np.uint8)
    formats = ["jpg", "webp", "gif", "tif"]
    (folder / "of 2024" / "été").mkdir(parents=True)
    for number, pixels in enumerate(colours):
        where = folder / ("of 2024" if number % 2 else "of 2024/été")
        picture = Image.fromarray(pixels).resize((30 + 20 * number, 90), Image.Resampling.NEAREST)
        picture.save(where / f"{number}.{formats[number % 4]}")
    (folder / "cut.jpg").write_bytes((folder / "of 2024" / "été" / "0.jpg").read_bytes()[:900])
    (folder / "notes.txt").write_text("no picture", encoding="utf-8")
    (folder / "false.png").write_text("no picture", encoding="utf-8")
    (folder / ".hidden.png").write_bytes((folder / "00.png").read_bytes())


def test_the_readme_s_commands_do_what_it_says(tmp_path, monkeypatch, capsys):
    untidy(tmp_path / "pictures")
    for name in ("cat.jpg", "dog.webp"):
        Image.new("RGB", (40, 30), "brown").save(tmp_path / name)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("USERPROFILE", str(tmp_path))
    shown = commands()
    assert len(shown) == 7
    for line in shown:
        words = shlex.split(line, comments=True)
        first = ["--epochs", "1"] if words[0] == "train" and "--epochs" not in words else []
        if "100" in words:
            words[words.index("100")] = "2"
        assert main([*words, *first]) == 0, capsys.readouterr().err
    said = capsys.readouterr().out
    assert said.startswith("24 pictures, 32 x 32, 3 channels; ")
    for name in ("cut.jpg: damaged", "notes.txt: no picture", "false.png: no picture"):
        assert f"skipped {name}" in said
    assert ".hidden" not in said
    written = {"samples.png", "back.png", "walk.png", "latents.npz", "runs/pictures/worst.png"}
    assert all((tmp_path / name).stat().st_size > 0 for name in written)
    history = (tmp_path / "runs/pictures/history.csv").read_text(encoding="utf-8")
    assert len(history.splitlines()) == 3


def test_train_says_what_it_found(source, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    assert train(source, "--epochs", 1) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[0] == "12 pictures, 8 x 8, 3 channels; 3 held out"
    assert lines[1].startswith("skipped notes.txt: ")
    number = r"-?\d+\.\d+"
    epoch = f"epoch 1 of 1: learnt from {number}, held out {number} ± {number} nats, {number} bits"
    assert "the higher the better" in lines[2]
    assert re.match(epoch, lines[3])
    assert lines[4].startswith(f"the run is in {Path('runs', 'own')}. ")
    assert (tmp_path / "runs" / "own" / "weights.safetensors").exists()


def test_a_size_that_was_chosen_for_you_is_said(source, tmp_path, capsys):
    more = ["--epochs", "1", "--latents", "2", "--width", "2", "--held-out", "0.25"]
    assert main(["train", str(source), "-o", str(tmp_path / "run"), *more]) == 0
    assert "each brought to 32 x 32; --size chooses another size\n" in capsys.readouterr().out


def test_the_same_command_goes_on(source, trained, tmp_path, capsys):
    run = shutil.copytree(trained, tmp_path / "run")
    assert train(source, "-o", run, "--epochs", 2) == 0
    assert f"{run} has all its 2 epochs; a greater --epochs prolongs it" in capsys.readouterr().out
    assert same(run, trained)
    assert main(["train", str(source), "-o", str(run), "--epochs", "3"]) == 0
    out = capsys.readouterr().out
    assert f"going on with {run}, which has 2 of 3" in out
    assert "epoch 3 of 3" in out
    assert contents(run).keys() == contents(trained).keys()  # no lock is left


def test_a_reader_that_goes_away_is_no_error(source, trained):
    command = [sys.executable, "-m", "vae_lib", "train", str(source), "-o", str(trained)]
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE}
    with subprocess.Popen([*command, "--epochs", "2"], **pipes) as process:
        process.stdout.close()
        assert (process.stderr.read(), process.wait(100)) == (b"", 1)


def test_a_zip_is_a_source(source, trained, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    with zipfile.ZipFile("own.v2.zip", "w") as archive:
        for file in sorted(source.rglob("*.png")):
            archive.write(file, str(file.relative_to(source)))
    assert train("own.v2.zip", "--epochs", 1) == 0
    assert (tmp_path / "runs" / "own.v2" / "weights.safetensors").exists()


# Killed while it writes for the n-th time, with a state after every step.
KILLED = """
import os, sys
import torch
torch.set_num_threads(int(sys.argv[1]))
from vae_lib import __main__, runs
runs.EVERY, calls, fsync = 0, [], os.fsync
def dying(descriptor):
    calls.append(1)
    if len(calls) == int(sys.argv[2]):
        os._exit(9)  # without a farewell
    fsync(descriptor)
os.fsync = dying
__main__.main(sys.argv[3:])
"""


@pytest.mark.skipif(os.name != "posix", reason="no kill -9")
def test_killed_and_resumed_it_ends_with_the_same_bits(source, trained, tmp_path):
    run = tmp_path / "run"
    command = ["train", str(source), "-o", str(run), *QUICK, "--epochs", "2"]
    threads = str(torch.get_num_threads())
    done = subprocess.run([sys.executable, "-c", KILLED, threads, "5", *command], check=False)
    assert done.returncode == 9
    assert (run / "state.safetensors").exists()
    assert not (run / "weights.safetensors").exists()  # in the middle of the first epoch
    assert main(command) == 0
    assert contents(run).keys() == contents(trained).keys()  # nothing half-written is left
    assert same(run, trained)


def test_a_lost_state_begins_nothing_anew(source, trained, tmp_path, capsys):
    run = shutil.copytree(trained, tmp_path / "run")
    (run / "state.safetensors").unlink()
    before = contents(run)
    said = refused(capsys, ["train", source, "-o", run, *QUICK])
    assert "from which to go on, is gone" in said
    assert contents(run) == before


def test_one_training_at_a_time(source, trained, tmp_path, capsys):
    run = shutil.copytree(trained, tmp_path / "run")
    with FileLock(run / ".lock"):
        said = refused(capsys, ["train", source, "-o", run, *QUICK, "--epochs", "3"])
    assert "another training is at work in" in said


def test_pictures_that_changed_are_named(source, trained, tmp_path, capsys):
    run = shutil.copytree(trained, tmp_path / "run")
    other = shutil.copytree(source, tmp_path / "other")
    (other / "cats" / "00.png").rename(other / "dogs" / "new.png")
    said = refused(capsys, ["train", other, "-o", run])
    assert "differs from them: dogs/new.png is new, cats/00.png is missing. Give" in said
    (other / "dogs" / "new.png").rename(other / "cats" / "00.png")
    shutil.copy(other / "cats" / "01.png", other / "cats" / "00.png")
    assert "differs from them: a picture was changed. Give" in refused(
        capsys, ["train", other, "-o", run]
    )


def test_no_picture_is_written_over(source, trained, tmp_path, capsys):
    own = source / "cats" / "00.png"
    mine = shutil.copy(own, tmp_path / "mine.png")
    before = own.read_bytes()
    for command in (["reconstruct", trained, mine], ["walk", trained, own, mine]):
        for output in (mine, own, source / "new.png"):
            said = refused(capsys, [*command, "-o", output])
            assert "expected a file that is none of the pictures and not among them" in said
    assert own.read_bytes() == before == (tmp_path / "mine.png").read_bytes()
    assert not (source / "new.png").exists()


def test_ctrl_c_says_how_to_go_on(source, trained, tmp_path, monkeypatch, capsys):
    run = shutil.copytree(trained, tmp_path / "run")

    def stopped(*_, **__):
        raise Interrupted("in the library's words")

    monkeypatch.setattr(runs, "train", stopped)
    assert train(source, "-o", run, "--epochs", 3) == 130
    assert capsys.readouterr().err == "vae: stopped. The same command goes on from there.\n"


def test_score(source, trained, tmp_path, capsys):
    sheet, listed = tmp_path / "worst.png", tmp_path / "scores.csv"
    more = ["--samples", "5", "--csv", str(listed), "--worst", str(sheet)]
    assert main(["score", str(trained), *more]) == 0
    out = capsys.readouterr().out
    assert out.startswith("3 pictures, 8 x 8, 3 channels, held out\n")
    scores = {
        name: [float(value) for value in re.findall(r"-?\d+\.\d+", line)]
        for name, line in zip(("elbo", "log p", "bits"), out.splitlines()[1:4], strict=True)
    }
    with listed.open(encoding="utf-8", newline="") as stream:
        rows = list(csv.DictReader(stream))
    assert len(rows) == 3
    worst = [row["name"] for row in sorted(rows, key=lambda row: float(row["elbo_nats"]))]
    said = f"wrote {sheet}: the worst, below each what comes back: {', '.join(worst)}"
    assert out.splitlines()[4] == said
    elbos = torch.tensor([float(row["elbo_nats"]) for row in rows])
    mean_and_error = [elbos.mean().item(), elbos.std().item() / 3**0.5]
    assert scores["elbo"] == pytest.approx(mean_and_error, abs=0.01)
    bits = torch.tensor([float(row["bits_per_dimension"]) for row in rows])
    mean_and_error = [bits.mean().item(), bits.std().item() / 3**0.5]
    assert scores["bits"] == pytest.approx(mean_and_error, abs=1e-4)
    assert size(sheet) == (3 * 64 + 2 * 2, 2 * 64 + 2)
    assert main(["score", str(trained), str(source), "--samples", "2"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[0].startswith("12 pictures, 8 x 8, 3 channels, of ")
    assert lines[1].startswith("skipped notes.txt: ")
    (trained / "worst.png").unlink()


def test_a_density_has_no_bits(source, tmp_path, capsys):
    more = ["--likelihood", "gaussian", "--epochs", 1]
    assert train(source, "-o", tmp_path / "run", *more) == 0
    assert main(["score", str(tmp_path / "run"), "--samples", "2"]) == 0
    out = capsys.readouterr().out
    assert "\nbits per dimension" not in out
    assert "a density: its nats may be above zero" in out


def test_sample(trained, tmp_path):
    files = [tmp_path / name for name in ("a.png", "b.png", "c.png", "d.png")]
    more = [[], [], ["--mean"], ["--seed", "1"]]
    for file, options in zip(files, more, strict=True):
        assert main(["sample", str(trained), "-n", "12", "-o", str(file), *options]) == 0
    a, b, c, d = (file.read_bytes() for file in files)
    assert a == b
    assert len({a, c, d}) == 3
    assert size(files[0]) == (10 * 66 - 2, 2 * 66 - 2)


def test_reconstruct_takes_any_size(trained, tmp_path, capsys):
    Image.new("L", (300, 200), 90).save(tmp_path / "grey.jpg")
    Image.new("RGBA", (5, 7)).save(tmp_path / "glass.webp")
    files = [str(tmp_path / name) for name in ("grey.jpg", "glass.webp")]
    assert main(["reconstruct", str(trained), *files, "-o", str(tmp_path / "back.png")]) == 0
    lines = capsys.readouterr().out.splitlines()
    pattern = r"\S+: ELBO -?\d+\.\d\d nats, \d+\.\d{4} bits per dimension"
    assert lines.pop() == f"wrote {tmp_path / 'back.png'}: below each picture what comes back"
    assert len(lines) == 2
    assert all(re.fullmatch(pattern, line) for line in lines), lines
    sheet = np.asarray(Image.open(tmp_path / "back.png"))
    assert sheet.shape == (2 * 66 - 2, 2 * 66 - 2, 3)
    assert (sheet[:64, :64] == 90).all()
    assert (sheet[:64, 66:] == 255).all()  # transparency lies on white


def test_walk(source, trained, tmp_path):
    ends = [str(source / "cats" / "00.png"), str(source / "dogs" / "07.png")]
    file = tmp_path / "walk.png"
    assert main(["walk", str(trained), *ends, "-o", str(file), "--steps", "5"]) == 0
    assert size(file) == (7 * 66 - 2, 64)


def test_encode(source, trained, tmp_path):
    arrays, listed = tmp_path / "latents.npz", tmp_path / "new" / "latents.csv"
    for file in (arrays, listed):
        assert main(["encode", str(trained), str(source), "-o", str(file)]) == 0
    with np.load(arrays, allow_pickle=False) as found:
        assert found["mean"].shape == found["log_std"].shape == (12, 2)
        names, classes = found["names"].tolist(), found["classes"].tolist()
        labels = [classes[label] for label in found["labels"]]
        mean = found["mean"]
    assert labels == ["cats"] * 6 + ["dogs"] * 6
    with listed.open(encoding="utf-8", newline="") as stream:
        rows = list(csv.DictReader(stream))
    assert [row["name"] for row in rows] == names
    assert [row["label"] for row in rows] == labels
    assert np.allclose([[float(row["mean_0"]), float(row["mean_1"])] for row in rows], mean)


COMMANDS = ["train", "score", "sample", "reconstruct", "walk", "encode", "compress", "decompress"]


@pytest.mark.parametrize("command", COMMANDS)
def test_help_has_an_example_that_is_parsed(command, capsys):
    assert main([command, "--help"]) == 0
    shown = capsys.readouterr().out
    examples = re.findall(rf"^  vae ({command} .*?)(?:  +#.*)?$", shown, re.M)
    assert examples
    from vae_lib.__main__ import parser

    for example in examples:
        assert parser().parse_args(example.split()).command.__name__ == command


def test_it_is_run_as_a_module():
    done = subprocess.run(
        [sys.executable, "-m", "vae_lib", "score"], capture_output=True, encoding="utf-8"
    )
    expected = "vae: error: the following arguments are required: RUN (see vae score --help)\n"
    assert (done.returncode, done.stdout, done.stderr) == (2, "", expected)


# ------------------------------------------------------------------------------- what it refuses


@pytest.mark.parametrize(
    ("more", "said"),
    [
        (["--epochs", "0"], "--epochs: expected a whole number from 1 on, got 0"),
        (["--epochs", "two"], "--epochs: expected a whole number from 1 on, got two"),
        (["--device", "abacus"], "device: expected one that this machine has, got abacus"),
        (["--size", "7"], "shape: expected 1, 3 or 4 channels, and height and width from 8"),
        (["--size", "8x8x8"], "--size: expected a size such as 32 or 24x48"),
        (["--background", "#12"], "background: expected"),
        (["--held-out", "1"], "held_out: expected a number from 0.001 to 0.9, got 1.0"),
        (["--learning-rate", "nan"], "learning_rate: expected"),
        (["--likelihood", "poisson"], "--likelihood: invalid choice"),
        (["--threads", "0"], "--threads: expected a whole number from 1 on"),
        (["--epoch", "3"], "unrecognized arguments: --epoch 3"),
    ],
)
def test_a_wrong_setting(source, tmp_path, capsys, more, said):
    run = tmp_path / "new" / "run"
    assert said in refused(capsys, ["train", source, "-o", run, *more])
    assert list(tmp_path.iterdir()) == []


def test_wrong_sources(tmp_path, capsys):
    (tmp_path / "empty").mkdir()
    (tmp_path / "words").mkdir()
    (tmp_path / "words" / "a.txt").write_text("no picture", encoding="utf-8")
    (tmp_path / "broken.zip").write_bytes(b"PK, but no more")
    for name in ("nothing", "empty", "words", "words/a.txt", "broken.zip"):
        said = refused(capsys, ["train", tmp_path / name, "-o", tmp_path / "run"])
        assert "source" in said or name in said, said
        assert not (tmp_path / "run").exists()


def test_wrong_folders_to_write_to(source, tmp_path, capsys):
    (tmp_path / "file").write_text("mine", encoding="utf-8")
    assert "expected a folder, got the file" in refused(
        capsys, ["train", source, "-o", tmp_path / "file"]
    )
    assert "cannot be written to" in refused(
        capsys, ["train", source, "-o", tmp_path / "file" / "run"]
    )
    assert "holds other files and no recipe.json" in refused(
        capsys, ["train", source, "-o", tmp_path]
    )
    assert "outside of the pictures" in refused(
        capsys, ["train", source, "-o", source / "runs" / "own"]
    )
    assert contents(tmp_path) == {"file": b"mine"}
    assert not (source / "runs").exists()


def test_other_settings_than_the_runs(source, trained, tmp_path, capsys):
    before = contents(trained)
    said = refused(capsys, ["train", source, "-o", trained, "--latents", "3"])
    assert f"latents: the run in {trained} was begun with 2, got 3. Leave it out" in said
    said = refused(capsys, ["train", paint(tmp_path / "b", seed=5), "-o", trained])
    assert "Give the same pictures, or begin another run elsewhere with -o." in said
    assert "has 2 already, got 1" in refused(
        capsys, ["train", source, "-o", trained, "--epochs", "1"]
    )
    assert contents(trained) == before


def test_the_digits_have_fixed_settings(tmp_path, capsys):
    said = refused(capsys, ["train", "mnist", "-o", tmp_path / "run", "--size", "32"])
    assert "size: expected none for mnist, whose pictures and split are fixed, got 32x32" in said
    assert list(tmp_path.iterdir()) == []


def test_wrong_runs(source, trained, tmp_path, capsys):
    (tmp_path / "file").touch()
    begun = tmp_path / "begun"
    begun.mkdir()
    shutil.copy(trained / "recipe.json", begun)
    cases = {
        "nothing": "found nothing at",
        "file": "holds no recipe.json",
        "": "holds no recipe.json",
        "begun": "has no weights yet",
    }
    for name, said in cases.items():
        for command, more in (("score", []), ("sample", ["-o", tmp_path / "a.png"])):
            assert said in refused(capsys, [command, tmp_path / name, *more])
    assert not (tmp_path / "a.png").exists()


@pytest.mark.parametrize("name", ["weights.safetensors", "weights.json", "state.safetensors"])
@pytest.mark.parametrize("change", [lambda b: b[:-9], lambda b: b[:-9] + b"x" * 9, lambda b: b""])
def test_damaged_files_of_a_run(source, trained, tmp_path, capsys, name, change):
    run = shutil.copytree(trained, tmp_path / "run")
    (run / name).write_bytes(change((run / name).read_bytes()))
    before = contents(run)
    wanted = ["sample", run, "-o", tmp_path / "a.png"]
    if name.startswith("state"):
        wanted = ["train", source, "-o", run, "--epochs", "3"]
    assert name in refused(capsys, wanted)
    assert contents(run) == before
    assert not (tmp_path / "a.png").exists()


def test_weights_of_another_run(source, trained, tmp_path, capsys):
    run = shutil.copytree(trained, tmp_path / "run")
    recipe = (run / "recipe.json").read_text(encoding="utf-8")
    recipe = recipe.replace('"latents": 2', '"latents": 3')
    (run / "recipe.json").write_text(recipe, encoding="utf-8")
    assert "does not fit it in" in refused(capsys, ["sample", run, "-o", tmp_path / "a.png"])
    assert not (tmp_path / "a.png").exists()


def test_pictures_that_are_none(source, trained, tmp_path, capsys):
    good, bad = source / "cats" / "00.png", tmp_path / "bad.png"
    bad.write_bytes(good.read_bytes()[:60])
    out = tmp_path / "out.png"
    for command in (["reconstruct", trained, good, bad], ["walk", trained, bad, good]):
        assert "bad.png" in refused(capsys, [*command, "-o", out])
    assert not out.exists()
    assert "mnist" in refused(capsys, ["encode", trained, "mnist", "-o", tmp_path / "a.npz"])


@pytest.mark.parametrize(
    ("command", "name", "said"),
    [
        ("sample", "a.jpg", "expected a name in .png, got"),
        ("encode", "a.txt", "expected a name in .npz or .csv, got"),
    ],
)
def test_endings_that_it_does_not_write(source, trained, tmp_path, capsys, command, name, said):
    more = [source] if command == "encode" else []
    assert said in refused(capsys, [command, trained, *more, "-o", tmp_path / name])


@pytest.mark.parametrize("count", [1, 2, 4, 5, 8])
def test_a_full_disk(source, trained, tmp_path, monkeypatch, capsys, count):
    """Wherever it fills up, there is a line that says so, no half file, and a way on."""
    run, calls, fsync = tmp_path / "run", [], os.fsync

    def full(descriptor):
        calls.append(1)
        if len(calls) >= count:
            raise OSError(errno.ENOSPC, "No space left on device")
        fsync(descriptor)

    command = ["train", source, "-o", run, *QUICK, "--epochs", "2"]
    with monkeypatch.context() as patched:
        patched.setattr(os, "fsync", full)
        assert "the disk is full" in refused(capsys, command)
    assert [name for name in contents(run) if "partial" in name] == []
    assert main([str(argument) for argument in command]) == 0
    assert same(run, trained)


UNWRITABLE = """
import sys
from vae_lib.__main__ import main
source, new, run = sys.argv[1:]
print(main(["train", source, "-o", new]), main(["sample", run, "-o", f"{run}/new.png"]))
"""


@needs_powerless
def test_folders_that_cannot_be_written(source, trained, tmp_path):
    run = shutil.copytree(trained, tmp_path / "run")
    with read_only(tmp_path):
        done = powerless([sys.executable, "-c", UNWRITABLE, source, tmp_path / "new" / "run", run])
    *said, statuses = done.stdout.splitlines()
    assert statuses == "2 2", done.stdout
    assert len(said) == 2
    assert all(line.startswith("vae: error: ") for line in said), said
    assert not (tmp_path / "new").exists()
