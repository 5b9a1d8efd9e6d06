"""One file of a picture, whatever its format: found, looked at and decoded.

Files lie in a folder, in a zip or in a list. What cannot be used is an `Unread`, with the reason.
"""

import io
import os
import re
import threading
import zipfile
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

import numpy as np
from PIL import Image, ImageOps, UnidentifiedImageError

from vae_lib.arguments import kind

# Pillow reads more, and for some of that it starts other programs.
FORMATS = ("PNG", "JPEG", "WEBP", "GIF", "TIFF", "BMP")
MODES = ("1", "L", "LA", "P", "PA", "RGB", "RGBA", "RGBX", "CMYK", "YCbCr", "HSV")
# What systems leave in folders, besides what begins with a full stop.
JUNK = ("__MACOSX", "Thumbs.db", "desktop.ini")
LARGEST = 2**30  # bytes of one file, unpacked
ORIENTATION = 0x0112  # a tag of EXIF
TURNS = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}


class Unread(Exception):
    """A file is no picture that can be used; the message says why."""


@dataclass(frozen=True)
class File:
    """A file: its name inside the folder or zip, and how to open it."""

    name: str
    open: Callable[[], BinaryIO]


Found = tuple[list[File], list[tuple[str, str]]]


@contextmanager
def opened(source: str | Path | Sequence[str | Path]) -> Iterator[Found]:
    """Find the files of a folder, a zip or a list, and keep them within reach.

    Returns:
        A context that gives the files, and what is none, with the reason.

    Raises:
        FileNotFoundError: There is nothing at `source`.
        ValueError: It is none of the three, or a zip that is refused.

    Example:
        >>> from vae_lib.images import EMOJI
        >>> with opened(EMOJI) as (files, skipped):
        ...     files[0].name, len(skipped)
        ('body-parts/anatomical_heart.webp', 0)
    """
    if isinstance(source, list | tuple):
        yield _listed(source)
        return
    if not isinstance(source, str | os.PathLike):
        raise ValueError(
            f"source: expected a folder, a .zip or a list of files, got {kind(source)}."
        )
    path = Path(source).expanduser()
    if path.is_dir():
        yield _in_folder(path)
    elif not path.exists():
        raise FileNotFoundError(
            f"source: expected a folder, a .zip or a list of files, found nothing at {path}. "
            "Correct the path."
        )
    elif zipfile.is_zipfile(path):
        with zipfile.ZipFile(path) as archive:
            yield _in_zip(path, archive)
    else:
        raise ValueError(
            f"source: expected a folder, a .zip or a list of files, got the file {path}, which "
            "is no zip. Give the folder that it is in, or a list: [path]."
        )


def _listed(paths: Sequence[str | Path]) -> Found:
    """Return the files of a list, named by what their paths do not share."""
    paths = [Path(path).expanduser() for path in paths]
    parents = [path.absolute().parent for path in paths]
    try:
        common = os.path.commonpath(parents) if parents else ""
    except ValueError:  # two drives
        common = ""
    names = [
        (parent / path.name).relative_to(common).as_posix() if common else path.as_posix()
        for parent, path in zip(parents, paths, strict=True)
    ]
    return _regular(zip(names, paths, strict=True))


def _in_folder(folder: Path) -> Found:
    """Return the files of a folder and of all folders in it, sorted by name."""
    paths, skipped = {}, []

    def named(path):
        return Path(path).relative_to(folder).as_posix()

    def unreadable(error):
        skipped.append((named(error.filename), f"cannot be read: {error.strerror}"))

    for where, folders, names in os.walk(folder, onerror=unreadable):
        links = [Path(where, name) for name in folders if Path(where, name).is_symlink()]
        skipped += [(named(link), "a link to a folder") for link in links if not _junk(link.name)]
        folders[:] = [name for name in folders if not _junk(name)]
        paths |= {named(Path(where, name)): Path(where, name) for name in names if not _junk(name)}
    files, others = _regular(sorted(paths.items()))
    return files, skipped + others


def _regular(paths) -> Found:
    """Part names and paths into files and what is none, such as a pipe, which never ends."""
    files, skipped = [], []
    for name, path in paths:
        if not path.exists():
            skipped.append((name, "there is no such file"))
        elif not path.is_file():
            skipped.append((name, "not a file"))
        elif path.stat().st_size > LARGEST:
            skipped.append((name, "larger than 1 GiB"))
        else:
            files.append(File(name, lambda path=path: path.open("rb")))
    return files, skipped


def _in_zip(path: Path, archive: zipfile.ZipFile) -> Found:
    """Return the files of a zip, sorted by name; what is dangerous or locked refuses it all."""
    files, skipped, lock = [], [], threading.Lock()

    def open_entry(entry):
        with lock:  # one stream under all
            return io.BytesIO(archive.read(entry))

    for entry in sorted(archive.infolist(), key=lambda entry: entry.filename):
        name = entry.filename.replace("\\", "/")
        parts = name.split("/")
        if ".." in parts or name.startswith("/") or re.match("[A-Za-z]:", name):
            raise ValueError(
                f"source: expected names that stay inside {path}, got {entry.filename!r}. Zips "
                "that are what they seem have none like it: do not unpack this one either."
            )
        if entry.is_dir() or any(_junk(part) for part in parts):
            continue
        if entry.flag_bits & 1:
            raise ValueError(
                f"source: expected a zip without a password, but {name} in {path} is encrypted. "
                "Unpack it and give the folder."
            )
        if entry.file_size > LARGEST:
            skipped.append((name, "larger than 1 GiB"))
        else:
            files.append(File(name, lambda entry=entry: open_entry(entry)))
    return files, skipped


def _junk(name: str) -> bool:
    return name.startswith(".") or name in JUNK


@contextmanager
def _reading(file: File) -> Iterator[Image.Image]:
    """Open a picture; whatever goes wrong inside is the reason why it is unread."""
    try:
        with file.open() as stream, Image.open(stream, formats=FORMATS) as image:
            if image.mode not in MODES and not _sixteen_bits(image):
                raise Unread(f"pixels of a kind that is not read ({image.mode})")
            yield image
    except (Image.DecompressionBombWarning, Image.DecompressionBombError) as error:
        raise ValueError(
            f"source: expected pictures that fit into memory, but {file.name} has too many "
            f"pixels ({error}). Remove it or make it smaller; if you trust it, set "
            "PIL.Image.MAX_IMAGE_PIXELS to None."
        ) from error
    except (Unread, MemoryError):
        raise
    except UnidentifiedImageError:
        formats = "PNG, JPEG, WebP, GIF, TIFF or BMP"
        raise Unread(f"no picture in {formats}, or damaged at its beginning") from None
    # What a damaged file raises in Pillow is any of a dozen, and another one in every version.
    except Exception as error:
        if isinstance(error, OSError) and error.strerror:
            raise Unread(f"cannot be read: {error.strerror}") from error
        raise Unread(
            f"damaged: {str(error).splitlines()[0] if str(error) else kind(error)}"
        ) from error


def size_of(file: File) -> tuple[int, int]:
    """Return the height and width of a picture once it is turned as it says.

    Raises:
        Unread: It is none, as far as its first bytes show.
        ValueError: It has more pixels than Pillow takes for harmless, and Pillow's warning of
            that is an error, as the caller must see to.
    """
    with _reading(file) as image:
        if image.format == "TIFF" and image.tag_v2.get(ORIENTATION, 1) >= 5:
            image.load()  # older versions of Pillow say only then how a turned one is shown
        width, height = image.size
        return (width, height) if _orientation(image) >= 5 else (height, width)


def exactly(file: File, size: tuple[int, int], modes: Sequence[str]) -> tuple[str, np.ndarray]:
    """Return Pillow's mode of a PNG, and its pixels as bytes, where these are all there is to see.

    Arguments:
        file: Of which nothing may be lost.
        size: The height and width that it must have.
        modes: Those that it may have.

    Returns:
        The mode, and uint8 of shape (height, width) or (height, width, channels); 0 and 255 of
        mode "1".

    Raises:
        Unread: It is no PNG or a damaged one, of another size or mode, or has what bytes of that
            mode do not say: 16 bits, a transparent colour, several frames.
    """
    with _reading(file) as image:
        width, height = image.size
        if image.format != "PNG":
            raise Unread(f"a {image.format}, and only PNG comes back as it was")
        if (height, width) != size:
            raise Unread("it is {} x {}, expected {} x {}".format(height, width, *size))
        if any("16" in str(tile[3]) for tile in image.tile):  # how the file has them
            raise Unread("it has 16 bits a channel, and 8 would come back")
        if image.mode not in modes:
            raise Unread(f"its mode is {image.mode}, expected {' or '.join(modes)}")
        if "transparency" in image.info:
            raise Unread("one of its colours is transparent, which would be lost")
        if getattr(image, "n_frames", 1) > 1:
            raise Unread("it has several frames, and one would come back")
        return image.mode, np.asarray(image).astype(np.uint8) * (255 if image.mode == "1" else 1)


@dataclass(frozen=True)
class Decoder:
    """How a picture becomes bytes: an array of (channels, height, width), uint8.

    Arguments:
        height, width: In pixels; see `size` of `vae_lib.images.load_images`.
        channels: 1, 3 or 4.
        background: What transparent pixels lie on, unless there are 4 channels; 0 to 255.

    Raises:
        Unread: When called: the file is no picture or damaged.
        ValueError: When called: as `size_of`.
    """

    height: int
    width: int
    channels: int
    background: tuple[int, int, int]

    def __call__(self, file: File) -> np.ndarray:
        """Decode one file."""
        with _reading(file) as image:
            orientation = _orientation(image)
            # A JPEG that is much too large is decoded at a half, a quarter or an eighth, never
            # below twice what is needed; the filter below does the rest.
            image.draft(None, [2 * max(self.height, self.width)] * 2)
            picture = self._in_colour(_eight_bits(image))
            if orientation in TURNS:
                picture = picture.transpose(TURNS[orientation])
            if picture.size != (self.width, self.height):
                size = (self.width, self.height)
                # It multiplies by alpha before and divides after.
                picture = ImageOps.fit(picture, size, Image.Resampling.LANCZOS)
            if self.channels == 1:
                picture = picture.convert("L")
            pixels = np.array(picture).reshape(self.height, self.width, self.channels)
            if self.channels == 4:
                pixels[pixels[..., 3] == 0] = 0
            return pixels.transpose(2, 0, 1)

    def _in_colour(self, picture: Image.Image) -> Image.Image:
        """Return a picture in RGBA if alpha is wanted, otherwise in RGB on the background."""
        transparent = "A" in picture.mode or "transparency" in picture.info
        if self.channels == 4:
            return picture.convert("RGBA")
        if not transparent:
            return picture.convert("RGB")
        below = Image.new("RGBA", picture.size, (*self.background, 255))
        return Image.alpha_composite(below, picture.convert("RGBA")).convert("RGB")


def _orientation(image: Image.Image) -> int:
    """Return how a picture is to be turned, 1 to 8: to be called before it is decoded."""
    # Pillow turns a TIFF itself, and decodes a PNG to look for what is seldom in it.
    if image.format == "TIFF" or (image.format == "PNG" and "exif" not in image.info):
        return 1
    found = image.getexif().get(ORIENTATION, 1)
    return found if found in TURNS else 1


def _sixteen_bits(image: Image.Image) -> bool:
    # Before its version 11, Pillow gave a PNG of 16 bits 32 of them.
    return image.mode.startswith("I;16") or (image.mode == "I" and image.format == "PNG")


def _eight_bits(image: Image.Image) -> Image.Image:
    """Scale 16 bits of grey to 8; of 16 bits of colour, Pillow has kept the upper 8."""
    if not _sixteen_bits(image):
        return image
    grey = np.asarray(image).astype(np.uint32)
    return Image.fromarray(((grey * 255 + 32767) // 65535).astype(np.uint8))
