"""A folder of pictures in one compressed file, and back: each pixel, name and mode, in order.

An archive holds a folder or is not made: what would not come back exactly is refused by name. It
is unpacked into a folder that is new, whole or not at all. What a PNG holds besides its pixels
(colour profile, EXIF, text, how it was packed) does not come back.
"""

import hashlib
import io
import os
import re
import tempfile
import unicodedata
import warnings
import zlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from vae_lib import checkpoints, coding
from vae_lib.coding import Archive
from vae_lib.integers import IntegerModel, integer_model, store, stored
from vae_lib.picture_files import Unread, exactly, opened
from vae_lib.runs import Run

MODES = {1: ("L", "1"), 3: ("RGB",), 4: ("RGBA",)}  # Pillow's, by the number of channels
LONGEST = 255  # bytes of a part of a name
MOST_NAMES = 2**26  # bytes of all names together
# Windows writes to a device, whatever the ending.
DEVICES = r"(con|prn|aux|nul|conin\$|conout\$|com[0-9¹²³]|lpt[0-9¹²³]) *(\..*)?"


@dataclass(frozen=True)
class Size:
    """How large a file is, and what is in it.

    Arguments:
        count: How many pictures.
        shape: Channels, height, width.
        size: Of the file, in bytes.
        initial: How many bits the chain began with; they are in the file.
    """

    count: int
    shape: tuple[int, int, int]
    size: int
    initial: int

    @classmethod
    def of(cls, data: bytes) -> "Size":
        """Return what a file says of itself."""
        archive = Archive.unpack(data)
        return cls(archive.count, archive.shape, len(data), 32 * archive.initial)

    def __str__(self) -> str:
        """Pictures, bytes, and bits a pixel, all that is in the file counted."""
        _, height, width = self.shape
        each = 8 * self.size / (self.count * height * width)
        pictures = f"{self.count:,} picture{'s' * (self.count > 1)}, {height} x {width}"
        said = f"{pictures}; {self.size:,} bytes, {each:.4f} bits per pixel"
        return f"{said}, with {self.initial} initial bits"


def compress(source: str | Path, file: str | Path, run: Run) -> Size:
    """Compress a folder or a zip of pictures into a new file.

    Arguments:
        source: All in it must be PNG of the height, the width and the channels of the run. What
            begins with a full stop is passed over, as in training.
        file: Where to write; it is written whole or not at all.
        run: Its model; made into integers and kept beside its weights, if it is not there yet.

    Raises:
        ValueError: A run of densities; something in the folder that would not come back exactly;
            a name that would not fit on every system; a file that exists.
        OSError: It cannot be written.
    """
    source, file = Path(source).expanduser(), Path(file).expanduser()
    run.check_output(file)
    if os.path.lexists(file):
        raise ValueError(f"output: expected a new file, but {file} exists. Give another with -o.")
    if source.is_dir() and file.resolve().is_relative_to(source.resolve()):
        raise ValueError(f"output: expected a file outside of {source}, got {file}. Give another.")
    levels = _levels(run)
    names, modes, images = _read(source, run.recipe.shape, levels)
    data = coding.compress(images, _codec(run), note=_note(names, modes))
    checkpoints.write({file: data})
    return Size.of(data)


def decompress(file: str | Path, folder: str | Path, run: Run) -> Size:
    """Write the pictures of a file into a new or empty folder.

    Arguments:
        file: What `compress` wrote.
        folder: Where; it appears when all pictures are in it.
        run: The run that it was compressed with, or a copy of its folder.

    Raises:
        ValueError: Another file, a damaged one, another run; a folder that holds something; a
            name that leads out of it or that could be another's.
        OSError: It cannot be written; nothing is left of it.
    """
    file, folder = Path(file).expanduser(), Path(folder).expanduser()
    data = file.read_bytes()
    archive = Archive.unpack(data)
    names, modes = _listed(archive)
    _check_new(folder)
    images = coding.decompress(data, _kept(run, archive)).numpy()
    _write(folder, names, _pictures(images, archive, modes))
    return Size.of(data)


def _levels(run: Run) -> int:
    """Return how many levels a pixel of a run has; a density has none."""
    if run.recipe.likelihood == "gaussian":
        raise ValueError(
            "model: expected a run whose pixels have levels, got one of densities, which give no "
            "value a probability and so no length in a file. Train with --likelihood levels."
        )
    return 2 if run.recipe.likelihood == "bits" else 256


# ------------------------------------------------------------------------------ the pictures


def _read(source: Path, shape: tuple[int, int, int], levels: int) -> tuple[list, list, Tensor]:
    """Read a folder: names, modes and numbers from 0 to levels - 1, or say what is in the way."""
    with opened(source) as (files, others), warnings.catch_warnings():
        warnings.filterwarnings("ignore", module=r"PIL\.")
        if others:
            raise _unfit(*others[0])
        if not files:
            raise ValueError(f"source: expected pictures, found none in {source}. Give a folder.")
        check_names([file.name for file in files])
        modes, rows = [], np.empty((len(files), np.prod(shape)), np.uint8)
        for row, file in enumerate(files):
            if (source / file.name).is_symlink():
                raise _unfit(file.name, "a link, which would come back as a file")
            try:
                mode, pixels = exactly(file, shape[1:], MODES[shape[0]])
                rows[row] = _numbers(pixels.reshape(*shape[1:], shape[0]), levels)
            except Unread as error:
                raise _unfit(file.name, str(error)) from error
            modes.append(mode)
    return [file.name for file in files], modes, torch.from_numpy(rows)


def _unfit(name: str, why: str) -> ValueError:
    """Return the error about a picture because of which there is no archive."""
    return ValueError(
        f"source: expected pictures that come back exactly, but {name} would not: {why}. Take it "
        "out, or convert it yourself."
    )


def _numbers(pixels: np.ndarray, levels: int) -> np.ndarray:
    """Return the numbers of a picture, channel by channel."""
    numbers = pixels.transpose(2, 0, 1).reshape(-1)
    if levels == 256:
        return numbers
    if not np.isin(numbers, (0, 255)).all():
        raise Unread("it has shades between 0 and 255, and the model is of black and white only")
    return numbers // 255


def _pictures(images: np.ndarray, archive: Archive, modes: list[str]) -> Iterator[bytes]:
    """Yield the pictures of an archive as PNG."""
    channels, height, width = archive.shape
    pixels = images.reshape(-1, channels, height, width) * np.uint8(255 // (archive.levels - 1))
    for rows, mode in zip(pixels.transpose(0, 2, 3, 1), modes, strict=True):
        picture = Image.fromarray(np.ascontiguousarray(rows[..., 0] if channels == 1 else rows))
        stream = io.BytesIO()
        picture.convert(mode, dither=Image.Dither.NONE).save(stream, "PNG")
        yield stream.getvalue()


# --------------------------------------------------------------------------------- the names


def check_names(names: Sequence[str]) -> None:
    """Refuse names that do not stay in their folder, or mean another file on some system.

    Arguments:
        names: Paths inside a folder, with "/" between their parts.

    Raises:
        ValueError: It says which, and why.

    Example:
        >>> check_names(["a.png", "A.png"])
        Traceback (most recent call last):
        ValueError: names: expected ones that every system tells apart, got 'a.png' and 'A.png'...
    """
    taken: dict[str, str] = {}
    for name in names:
        if why := _odd(name):
            raise ValueError(
                f"names: expected ones that fit in a folder on every system, got {name!r}, {why}."
            )
        parts = _same(name).split("/")
        for length in range(1, len(parts) + 1):
            path = "/".join(parts[:length])
            kind = name if length == len(parts) else ""  # a file, or a folder of many
            if path in taken and (kind or taken[path]):
                raise ValueError(
                    f"names: expected ones that every system tells apart, got {taken[path]!r} and "
                    f"{name!r}. Rename one of them."
                )
            taken[path] = kind


def _odd(name: str) -> str | None:
    """Say what is wrong with a name by itself."""
    if name.startswith("/") or re.match("[A-Za-z]:", name):
        return "which is no path inside a folder"
    for part in name.split("/"):
        if part in ("", ".", ".."):
            return "which leads elsewhere"
        if part.startswith("."):
            return "of which a part is hidden"
        if re.search(r'[\\<>:"|?*\x00-\x1f\x7f]', part) or part[-1] in " .":
            return "which has a character that not every system takes"
        if re.fullmatch(DEVICES, part, re.IGNORECASE):
            return "which is a device on Windows"
        try:
            if len(part.encode()) > LONGEST:
                return f"of which a part has more than {LONGEST} bytes"
        except UnicodeEncodeError:
            return "which is no text"
    return None if name.lower().endswith(".png") else "which does not end in .png"


def _same(name: str) -> str:
    """Return what two names share if some system takes them for the same, as ZFS may ² and 2."""
    return unicodedata.normalize("NFKC", unicodedata.normalize("NFKC", name).casefold())


def _note(names: list[str], modes: list[str]) -> bytes:
    """Return names and modes as an archive keeps them."""
    lines = [f"{mode} {name}" for name, mode in zip(names, modes, strict=True)]
    return zlib.compress("\n".join(lines).encode(), 9)


def _listed(archive: Archive) -> tuple[list[str], list[str]]:
    """Return names and modes of an archive, checked: it may be an attacker's."""
    try:
        unpacking = zlib.decompressobj()
        text = unpacking.decompress(archive.note, MOST_NAMES).decode()
        if not unpacking.eof or unpacking.unused_data:
            raise ValueError
        modes, names = zip(*(line.split(" ", 1) for line in text.split("\n")), strict=True)
    except (zlib.error, ValueError) as error:
        raise ValueError(
            "data: expected an archive of a folder, got images without names. Decode it with "
            "vae_lib.coding.decompress."
        ) from error
    if len(names) != archive.count or not set(modes) <= set(MODES.get(archive.shape[0], ())):
        raise ValueError(
            f"data: expected a name and a mode for each of {archive.count:,} pictures, got "
            f"{len(names):,} of {sorted(set(modes))[:3]}. It comes from elsewhere: do not trust it."
        )
    check_names(names)
    return list(names), list(modes)


# ------------------------------------------------------------------------------- the folders


def _check_new(folder: Path) -> None:
    """Refuse a place where something is."""
    if folder.is_symlink() or (folder.exists() and not folder.is_dir()):
        raise ValueError(f"output: expected a new folder, but {folder} is none. Give another.")
    if folder.is_dir() and any(folder.iterdir()):
        raise ValueError(
            f"output: expected a new or empty folder, but {folder} holds files. Give another "
            "with -o."
        )


def _write(folder: Path, names: list[str], contents: Iterator[bytes]) -> None:
    """Write files into a folder that appears when they are all there."""
    folder = folder.absolute()
    folder.parent.mkdir(parents=True, exist_ok=True)
    partial = tempfile.TemporaryDirectory(prefix=f".{folder.name[:100]}.", dir=folder.parent)
    with partial as place:
        inside = Path(place) / "whole"  # with the permissions that a new folder has here
        inside.mkdir()
        for name, content in zip(names, contents, strict=True):
            file = inside / name
            file.parent.mkdir(parents=True, exist_ok=True)
            with file.open("xb") as stream:
                stream.write(content)
        if folder.exists():
            folder.rmdir()  # it is empty, or this fails
        inside.rename(folder)


# --------------------------------------------------------------------------------- the model


def _codec(run: Run) -> IntegerModel:
    """Return the model of a run in integers, from its folder or made of its weights."""
    weights = hashlib.sha256((run.folder / "weights.safetensors").read_bytes()).hexdigest()
    for file in sorted(run.folder.glob("codec-*.safetensors")):
        model, told = stored(file)
        if told["weights"] == weights:
            return model
    model = integer_model(run.model, run.recipe.shape)
    store(_place(run, model.sha256), model, weights=weights)
    return model


def _kept(run: Run, archive: Archive) -> IntegerModel:
    """Return the model that an archive was made with: a run that went on has several."""
    file = _place(run, archive.model)
    if not file.exists():
        raise ValueError(
            f"model: expected the run that the file was compressed with, but {run.folder} has no "
            f"{file.name}. Give that run with --model."
        )
    return stored(file)[0]


def _place(run: Run, sha256: str) -> Path:
    """Return where a model of that hash is kept."""
    return run.folder / f"codec-{sha256[:16]}.safetensors"
