"""A folder through train, compress and decompress: is it the same, and is all else refused?"""

import os
import re
import shutil
import subprocess
import sys
import unicodedata
import zipfile
import zlib
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image, PngImagePlugin

from tests import matrix
from tests.surroundings import ROOT
from tests.test_main import contents, refused
from vae_lib import archives, coding
from vae_lib.__main__ import main
from vae_lib.archives import check_names
from vae_lib.coding import Archive
from vae_lib.runs import Run

pytest.importorskip("constriction")

SIDE = 16
QUICK = ["--size", SIDE, "--latents", 2, "--width", 4, "--batch-size", 4, "--held-out", 0.25]
CHANNELS = {"L": 1, "1": 1, "RGB": 3, "RGBA": 4}


def paint(folder, mode, names, seed=0):
    """Fill a folder with pictures that no network can foresee."""
    random = np.random.default_rng(seed)
    for name in names:
        shape = (SIDE, SIDE, CHANNELS[mode])
        pixels = random.integers(0, 256, shape, dtype=np.uint8)
        if mode == "1":
            pixels = np.where(pixels > 127, 255, 0).astype(np.uint8)
        picture = Image.fromarray(pixels[..., 0] if shape[2] == 1 else pixels)
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        picture.convert(mode).save(folder / name)
    return folder


def trained(folder, mode, *more):
    """Return the folder of a run of one epoch on pictures of a mode."""
    source = paint(folder / "pictures", mode, [f"{n:02}.png" for n in range(12)])
    options = [*QUICK, "--channels", CHANNELS[mode], "--epochs", 1, *more]
    assert main([str(a) for a in ["train", source, "-o", folder / "run", *options]]) == 0
    return folder / "run"


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """A run of pictures in colour; tests that write into it copy it."""
    return trained(tmp_path_factory.mktemp("colour"), "RGB")


@pytest.fixture(scope="module")
def bits(tmp_path_factory):
    """A run of black and white."""
    return trained(tmp_path_factory.mktemp("bits"), "1", "--likelihood", "bits")


def shell(*arguments):
    return main([str(argument) for argument in arguments])


def alike(folder, other):
    """Whether two folders hold the same pictures: names, modes, sizes and every pixel."""
    files = {p.relative_to(folder) for p in folder.rglob("*") if p.is_file()}
    if not files or files != {p.relative_to(other) for p in other.rglob("*") if p.is_file()}:
        return False
    for file in files:
        with Image.open(folder / file) as a, Image.open(other / file) as b:
            if (a.mode, a.size, a.tobytes()) != (b.mode, b.size, b.tobytes()):
                return False
    return True


# ------------------------------------------------------------------------------ what it does


@pytest.mark.parametrize("mode", ["L", "RGB", "RGBA"])
def test_an_own_folder_comes_back_bit_for_bit(mode, tmp_path, capsys):
    run, names = trained(tmp_path, mode), ["b.png", "été/10.png", "été/9.PNG", "cats/of 2024/a.png"]
    source, file = paint(tmp_path / "own", mode, names, seed=1), tmp_path / "new" / "own.vae"
    capsys.readouterr()
    assert shell("compress", source, "-o", file, "--model", run) == 0
    size = file.stat().st_size
    each = 8 * size / (4 * SIDE * SIDE)
    said = f"4 pictures, 16 x 16; {size:,} bytes, {each:.4f} bits per pixel, with "
    said += f"{32 * Archive.unpack(file.read_bytes()).initial} initial bits\n"
    assert capsys.readouterr().out == f"wrote {file}: {said}"
    copy = shutil.copytree(run, tmp_path / "elsewhere")  # all that another machine needs
    shutil.rmtree(run)
    shutil.rmtree(tmp_path / "pictures")
    back = tmp_path / "deep" / "back"
    assert shell("decompress", file, "-o", back, "--model", copy) == 0
    assert capsys.readouterr().out == f"wrote {back}: {said}"
    assert alike(back, source)
    assert [p.name for p in back.parent.iterdir()] == ["back"]  # nothing half-written is left


def test_black_and_white_comes_back_in_both_modes(bits, tmp_path):
    source = paint(tmp_path / "own", "1", ["a.png", "b.png"])
    with Image.open(source / "b.png") as picture:
        picture.convert("L").save(source / "c.png")  # the same pixels in another mode
    assert shell("compress", source, "-o", tmp_path / "own.vae", "--model", bits) == 0
    assert shell("decompress", tmp_path / "own.vae", "-o", tmp_path / "b", "--model", bits) == 0
    assert alike(tmp_path / "b", source)
    with Image.open(tmp_path / "b" / "c.png") as picture:
        assert picture.mode == "L"


def test_the_order_comes_back(run, tmp_path):
    names = [f"{number}.png" for number in range(12)]
    source = paint(tmp_path / "own", "RGB", names)
    archives.compress(source, tmp_path / "own.vae", Run.open(run))
    found, modes = archives._listed(Archive.unpack((tmp_path / "own.vae").read_bytes()))
    assert found == sorted(names)
    assert modes == ["RGB"] * 12


def test_a_zip_is_a_source_and_an_empty_folder_a_place(run, tmp_path):
    source = paint(tmp_path / "own", "RGB", ["a.png", "cats/b.png"])
    shutil.make_archive(str(tmp_path / "own"), "zip", source)
    (source / ".hidden").write_text("passed over", encoding="utf-8")
    (tmp_path / "back").mkdir()
    for place in (tmp_path / "own.zip", source):
        file = tmp_path / f"{place.name}.vae"
        assert shell("compress", place, "-o", file, "--model", run) == 0
    assert (tmp_path / "own.zip.vae").read_bytes() == file.read_bytes()
    assert shell("decompress", file, "-o", tmp_path / "back", "--model", run) == 0
    (source / ".hidden").unlink()
    assert alike(tmp_path / "back", source)


def test_a_run_that_goes_on_keeps_the_models_of_its_archives(run, tmp_path):
    run = shutil.copytree(run, tmp_path / "run")
    pictures = paint(tmp_path / "pictures", "RGB", [f"{n:02}.png" for n in range(12)])
    source = paint(tmp_path / "own", "RGB", ["a.png"])
    for number in (1, 2):
        assert shell("train", pictures, "-o", run, "--epochs", number) == 0
        for again in ("", "again"):
            file = tmp_path / f"{number}{again}.vae"
            assert shell("compress", source, "-o", file, "--model", run) == 0
    assert len(list(run.glob("codec-*.safetensors"))) == 2
    assert (tmp_path / "1.vae").read_bytes() == (tmp_path / "1again.vae").read_bytes()
    for number in (1, 2):
        assert (
            shell(
                "decompress",
                f"{tmp_path}/{number}.vae",
                "-o",
                tmp_path / f"{number}",
                "--model",
                run,
            )
            == 0
        )
        assert alike(tmp_path / f"{number}", source)


def other_process(environment, *arguments):
    """Run a command in a process with an environment of its own."""
    command = [sys.executable, "-m", "vae_lib", *map(str, arguments)]
    subprocess.run(command, env=environment, cwd=ROOT, check=True)


def test_what_the_oldest_instructions_wrote_others_read(run, tmp_path):
    """With one thread and with two; the pictures are enough for a second one to be used."""
    here = shutil.copytree(run, tmp_path / "run")
    source = paint(tmp_path / "own", "RGB", [f"{number:03}.png" for number in range(80)])
    file, old = tmp_path / "own.vae", matrix.environment("default", 1)
    other_process(old, "compress", source, "-o", file, "--model", here)
    assert shell("compress", source, "-o", tmp_path / "same.vae", "--model", here) == 0
    assert file.read_bytes() == (tmp_path / "same.vae").read_bytes()
    for threads in (1, 2):
        back, native = tmp_path / f"back{threads}", os.environ | {"OMP_NUM_THREADS": str(threads)}
        other_process(native, "decompress", file, "-o", back, "--model", here)
        assert alike(back, source)


# --------------------------------------------------------------------------- what it refuses


@pytest.fixture
def own(tmp_path):
    return paint(tmp_path / "own", "RGB", ["a.png", "b.png"])


def spoil(folder, how):
    """Put into a folder what would not come back exactly; return what is said about it."""
    with Image.open(folder / "a.png") as picture:
        picture.load()
    place = folder / "odd.png"
    if how == "size":
        picture.resize((SIDE, SIDE + 1)).save(place)
        return "odd.png would not: it is 17 x 16, expected 16 x 16"
    if how in ("L", "LA", "P", "RGBA", "1"):
        picture.convert(how).save(place)
        return f"odd.png would not: its mode is {how}, expected RGB"
    if how == "sixteen":
        grey = np.zeros((SIDE, SIDE), np.uint16)
        Image.fromarray(grey).save(place)
        return "odd.png would not: it has 16 bits a channel"
    if how == "deep":
        raw = (np.arange(SIDE * SIDE * 3, dtype=">u2")).reshape(SIDE, -1)
        lines = b"".join(b"\0" + line.tobytes() for line in raw)
        with place.open("wb") as stream:
            stream.write(b"\x89PNG\r\n\x1a\n")
            header = SIDE.to_bytes(4, "big") * 2 + bytes([16, 2, 0, 0, 0])
            PngImagePlugin.putchunk(stream, b"IHDR", header)
            PngImagePlugin.putchunk(stream, b"IDAT", zlib.compress(lines))
            PngImagePlugin.putchunk(stream, b"IEND")
        return "odd.png would not: it has 16 bits a channel"
    if how == "transparent":
        picture.save(place, transparency=(1, 2, 3))
        return "odd.png would not: one of its colours is transparent"
    if how == "frames":
        picture.save(place, save_all=True, append_images=[picture.rotate(90)])
        return "odd.png would not: it has several frames"
    if how == "jpeg":
        picture.save(place, format="JPEG")
        return "odd.png would not: a JPEG, and only PNG comes back"
    if how == "ending":
        picture.save(folder / "odd.bmp")
        return "got 'odd.bmp', which does not end in .png"
    if how == "cut":
        place.write_bytes((folder / "a.png").read_bytes()[:-40])
        return "odd.png would not: damaged"
    if how == "words":
        place.write_text("no picture", encoding="utf-8")
        return "odd.png would not: no picture"
    place.symlink_to(folder / "a.png" if how == "link" else folder.parent)
    return "odd.png would not: a link"


WAYS = ["size", "L", "LA", "P", "RGBA", "1", "sixteen", "deep", "transparent", "frames", "jpeg"]
WAYS += ["ending", "cut", "words"] + ["link", "linked folder"] * (os.name == "posix")


@pytest.mark.parametrize("how", WAYS)
def test_what_would_not_come_back_is_named(how, own, run, tmp_path, capsys):
    said, file = spoil(own, how), tmp_path / "own.vae"
    before = contents(run)
    assert said in refused(capsys, ["compress", own, "-o", file, "--model", run])
    assert not file.exists()
    assert contents(run) == before


def test_shades_of_grey_are_no_bits(bits, tmp_path, capsys):
    source = paint(tmp_path / "own", "L", ["a.png"])
    said = refused(capsys, ["compress", source, "-o", tmp_path / "a.vae", "--model", bits])
    assert "a.png would not: it has shades between 0 and 255" in said


def test_densities_are_refused(own, tmp_path, capsys):
    run = trained(tmp_path, "RGB", "--likelihood", "gaussian")
    said = refused(capsys, ["compress", own, "-o", tmp_path / "a.vae", "--model", run])
    assert "model: expected a run whose pixels have levels, got one of densities" in said
    assert said.count(". ") == 1


def test_places_that_are_taken(own, run, tmp_path, capsys):
    file, back = tmp_path / "own.vae", tmp_path / "back"
    command = ["compress", own, "-o", file, "--model", run]
    assert shell(*command) == 0
    before = contents(tmp_path)
    assert f"expected a new file, but {file} exists" in refused(capsys, command)
    if os.name == "posix":
        (tmp_path / "nowhere.vae").symlink_to(tmp_path / "other.vae")
        dangling = ["compress", own, "-o", tmp_path / "nowhere.vae", "--model", run]
        assert "nowhere.vae exists" in refused(capsys, dangling)
    inside = ["compress", own, "-o", own / "own.vae", "--model", run]
    assert "expected a file outside of" in refused(capsys, inside)
    among = ["compress", own, "-o", run.parent / "pictures" / "own.vae", "--model", run]
    assert "none of the pictures and not among them" in refused(capsys, among)
    assert contents(tmp_path) == before
    back.mkdir()
    (back / "mine.txt").write_text("mine", encoding="utf-8")
    unpack = ["decompress", file, "--model", run, "-o"]
    assert "new or empty folder, but" in refused(capsys, [*unpack, back])
    assert "expected a new folder" in refused(capsys, [*unpack, file])
    if os.name == "posix":
        (tmp_path / "link").symlink_to(tmp_path / "nowhere")
        assert "expected a new folder" in refused(capsys, [*unpack, tmp_path / "link"])
        (tmp_path / "other").symlink_to(tmp_path)
        assert "expected a new folder" in refused(capsys, [*unpack, tmp_path / "other"])
    assert contents(back) == {"mine.txt": b"mine"}


def test_wrong_files_and_runs(own, run, bits, tmp_path, capsys):
    file, back = tmp_path / "own.vae", tmp_path / "back"
    assert shell("compress", own, "-o", file, "--model", run) == 0
    assert "codec-" in refused(capsys, ["decompress", file, "-o", back, "--model", bits])
    (tmp_path / "empty.vae").touch()
    (tmp_path / "zip.vae").write_bytes(b"PK\3\4" * 99)
    (tmp_path / "cut.vae").write_bytes(file.read_bytes()[:-1])
    for name, said in (
        ("empty.vae", "got 0 bytes"),
        ("zip.vae", "got 396 bytes"),
        ("cut.vae", "its checksum does not fit"),
        ("nothing.vae", "No such file"),
    ):
        command = ["decompress", tmp_path / name, "-o", back, "--model", run]
        assert said in refused(capsys, command)
    without = refused(capsys, ["decompress", file, "-o", back])
    assert "the following arguments are required: --model" in without
    assert "expected a name in .vae" in refused(
        capsys, ["compress", own, "-o", tmp_path / "own.zip", "--model", run]
    )
    empty = tmp_path / "nothing"
    empty.mkdir()
    assert "expected pictures, found none" in refused(
        capsys, ["compress", empty, "-o", tmp_path / "new.vae", "--model", run]
    )
    assert not back.exists()


@pytest.mark.parametrize("change", [lambda b: b[:-9], lambda b: b[:-9] + b"x" * 9, lambda b: b""])
def test_a_damaged_model_is_refused(change, own, run, tmp_path, capsys):
    run, file = shutil.copytree(run, tmp_path / "run"), tmp_path / "own.vae"
    assert shell("compress", own, "-o", file, "--model", run) == 0
    (codec,) = run.glob("codec-*.safetensors")
    codec.write_bytes(change(codec.read_bytes()))
    for command in (["compress", own, "-o", tmp_path / "b.vae"], ["decompress", file, "-o", "b"]):
        assert codec.name in refused(capsys, [*command, "--model", run])
    assert not (tmp_path / "b.vae").exists()


def test_every_damaged_byte_of_a_folder_is_refused(own, run, tmp_path):
    archives.compress(own, tmp_path / "own.vae", Run.open(run))
    data = (tmp_path / "own.vae").read_bytes()
    opened, file, back = Run.open(run), tmp_path / "damaged.vae", tmp_path / "back"
    for place in range(0, len(data), 7):
        file.write_bytes(data[:place] + bytes([data[place] ^ 1]) + data[place + 1 :])
        with pytest.raises(ValueError, match="data: expected"):
            archives.decompress(file, back, opened)
    assert not back.exists()


@pytest.mark.parametrize("count", [1, 2])
def test_a_full_disk_leaves_nothing(count, own, run, tmp_path, monkeypatch, capsys):
    assert shell("compress", own, "-o", tmp_path / "own.vae", "--model", run) == 0
    write, calls = Path.open, []

    def full(path, mode="r", *more, **others):
        calls.append(mode)
        if mode == "xb" and calls.count("xb") == count:
            raise OSError(28, "No space left on device")
        return write(path, mode, *more, **others)

    before = contents(tmp_path)
    with monkeypatch.context() as patched:
        patched.setattr(Path, "open", full)
        command = ["decompress", tmp_path / "own.vae", "-o", tmp_path / "back", "--model", run]
        assert "the disk is full" in refused(capsys, command)
    assert contents(tmp_path) == before
    assert not (tmp_path / "back").exists()


# --------------------------------------------------------------------------------- the names


@pytest.mark.parametrize(
    "name",
    [
        *("/etc/a.png", "../a.png", "a/../../b.png", "./a.png", "a//b.png", "a/", "", "."),
        *("C:a.png", "c:/a.png", "a\\b.png", "..\\a.png", "\\\\host\\a.png", "a:b.png"),
        *("a\0.png", "a\n.png", "a?.png", "a*.png", 'a".png', "a|b.png", "<a>.png", "\x7f.png"),
        *(
            "con.png",
            "nul .png",
            "a/NUL.png",
            "Com1.png",
            "lpt9.x.png",
            "aux/a.png",
            "conin$.png",
            "com¹.png",
        ),
        *("a .png/b.png ", "a./b.png", "a /b.png", ".a.png", "a/.ssh/b.png", "a.exe", "a.png.lnk"),
        *("\udcff.png", "é" * 126 + ".png"),
    ],
)
def test_names_that_lead_elsewhere(name):
    with pytest.raises(ValueError, match="names: expected ones that fit in a folder"):
        check_names(["fine.png", name])


@pytest.mark.parametrize(
    ("one", "two"),
    [
        ("a.png", "a.png"),
        ("a.png", "A.PNG"),
        ("x/a.png", "X/A.png"),
        ("é.png", unicodedata.normalize("NFD", "é") + ".png"),
        ("straße.png", "STRASSE.png"),
        ("ﬁ.png", "fi.png"),
        ("ϓ.png", "Ύ.png"),
        ("a.png", "a.png/b.png"),
        ("a.png/b.png", "A.png"),
    ],
)
def test_names_that_collide(one, two):
    for names in ([one, two], [two, one]):
        with pytest.raises(ValueError, match="names: expected ones that every system tells apart"):
            check_names(names)


def test_names_that_are_fine():
    check_names(
        ["a.png", "b/a.png", "b/c/a.png", "B.png", "été/ё 猫 🐈.png", "console.png", "a.b.PNG"]
    )


@settings(derandomize=True, database=None, deadline=None, max_examples=100)
@given(st.lists(st.text(max_size=12).map(lambda t: t + ".png"), min_size=1, max_size=5))
def test_names_that_pass_are_files_of_their_folder(names):
    """Whatever passes leads into the folder and to a file of its own, on this system too."""
    try:
        check_names(names)
    except ValueError:
        return
    root = Path("/root").absolute()
    places = [Path(os.path.normpath(root / name)) for name in names]
    assert all(place.is_relative_to(root) and place != root for place in places)
    assert len(set(places)) == len(names)


def attack(run, tmp_path, capsys, note):
    """Make an archive whose note is an attacker's, and see that nothing of it is written."""
    opened = Run.open(run)
    model = archives._codec(opened)
    images = torch.zeros(2, model.pixels, dtype=torch.uint8)
    file = tmp_path / "attack.vae"
    file.write_bytes(coding.compress(images, model, note=note))
    before = contents(tmp_path)
    command = ["decompress", file, "-o", tmp_path / "in" / "back", "--model", run]
    said = refused(capsys, command)
    assert contents(tmp_path) == before
    assert not (tmp_path / "in").exists()
    return said


@pytest.mark.parametrize(
    ("lines", "said"),
    [
        (["RGB a.png", "RGB ../b.png"], "names: expected ones that fit"),
        (["RGB a.png", "RGB /tmp/b.png"], "names: expected ones that fit"),
        (["RGB a.png", "RGB A.png"], "every system tells apart"),
        (["RGB a.png"], "a name and a mode for each of 2 pictures, got 1"),
        (["RGB a.png", "L b.png"], "a name and a mode for each"),
        (["RGB a.png", "PA b.png"], "a name and a mode for each"),
        (["RGB a.png", "b"], "got images without names"),
    ],
)
def test_names_of_an_attacker(lines, said, run, tmp_path, capsys):
    note = zlib.compress("\n".join(lines).encode())
    assert said in attack(run, tmp_path, capsys, note)


@pytest.mark.parametrize(
    "note",
    [
        b"",
        b"no zlib",
        zlib.compress(b"RGB \xff.png\nRGB b.png"),
        zlib.compress(b"RGB a.png\nRGB b.png")[:-1],
        zlib.compress(b"RGB a.png\nRGB b.png") + b"x",
        zlib.compress(bytes(2**27)),  # a bomb
    ],
)
def test_notes_of_an_attacker(note, run, tmp_path, capsys):
    assert "got images without names" in attack(run, tmp_path, capsys, note)


def test_a_zip_whose_names_lead_out_is_refused(run, own, tmp_path, capsys):
    with zipfile.ZipFile(tmp_path / "own.zip", "w") as archive:
        archive.write(own / "a.png", "a.png")
        archive.write(own / "b.png", "../b.png")
    command = ["compress", tmp_path / "own.zip", "-o", tmp_path / "a.vae", "--model", run]
    assert re.search("stay inside", refused(capsys, command))
