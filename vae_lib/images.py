"""Pictures from a folder, a zip or a list of files, as rows of bytes, and back onto a sheet.

What a network learns from is an array of bytes, all pictures of one shape. Files are not like
that: they are turned, laid on a colour, cropped, shrunk, and what is left out is named.
"""

import hashlib
import io
import json
import math
import os
import time
import warnings
from collections import Counter
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from itertools import takewhile
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
import torch
from PIL import Image, ImageColor
from PIL import __version__ as pillow
from torch import Tensor
from torch.nn.functional import adaptive_avg_pool2d
from tqdm import tqdm

from vae_lib import checkpoints
from vae_lib.arguments import kind, real, tensor, whole
from vae_lib.data import seeded
from vae_lib.picture_files import Decoder, File, Unread, opened, size_of
from vae_lib.training import watched

EMOJI = Path(__file__).with_name("assets") / "emoji.zip"
IN_MEMORY = 2**30  # bytes
FORMAT = "vae_lib pictures 1"
A_STEP = 8  # levels of 255, between the means of two regions


@dataclass(frozen=True, eq=False)
class Pictures:
    """Pictures of one shape, with their names and what folder each was in.

    `pictures[rows]` are some of them, by a slice or by a tensor of indices.

    Attributes:
        images: uint8 (n, channels * height * width): channel by channel, row by row.
        shape: Channels, height, width.
        names: Of each, the path inside the folder or zip, with "/" between its parts.
        labels: int64 (n,), an index into `classes`.
        classes: The subfolders, sorted; "" is the class of what lies in none.
        skipped: What was left out: its name, and why.

    Example:
        >>> pictures = load_images(EMOJI)
        >>> pictures[torch.tensor([0, -1])].names
        ['body-parts/anatomical_heart.webp', 'person/woman_with_beard.webp']
    """

    images: Tensor
    shape: tuple[int, int, int]
    names: list[str]
    labels: Tensor
    classes: list[str]
    skipped: list[tuple[str, str]]

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, rows: slice | Tensor) -> "Pictures":
        index = torch.arange(len(self))[rows].reshape(-1)
        images = self.images[rows if isinstance(rows, slice) else index]
        names = [self.names[row] for row in index.tolist()]
        return Pictures(images, self.shape, names, self.labels[index], self.classes, self.skipped)


def load_images(
    source: str | Path | Sequence[str | Path],
    *,
    size: int | tuple[int, int] | None = None,
    channels: int | None = None,
    background: str | tuple[int, int, int] = "white",
    cache: str | Path | None = None,
    least: int = 2,
    in_memory: int = IN_MEMORY,
    threads: int | None = None,
) -> Pictures:
    """Load all pictures of a folder, a zip or a list of files, and make them alike.

    PNG, JPEG, WebP, GIF, TIFF and BMP are read; of several frames or pages, the first. A picture
    is turned as its EXIF says. 16 bits are scaled to 8; 32 are skipped, since nothing says which
    value is white. Colour profiles are not applied.

    What begins with a full stop, `__MACOSX`, `Thumbs.db` and `desktop.ini` are passed over in
    silence. Everything else that yields no picture is in `Pictures.skipped` with the reason. A
    link to a file is followed, wherever it leads; a link to a folder is skipped.

    Arguments:
        source: A folder, with all folders in it; a .zip; or a list of files. The pictures of the
            first two are sorted by name, those of a list stay in its order.
        size: The side of a square, or (height, width), in pixels. The middle of a picture, as
            much of it as has these proportions, is resampled by Lanczos' filter: widened when it
            shrinks, so every pixel counts, and applied to colours times alpha, so what is
            transparent lends no colour. A smaller picture is enlarged. None changes nothing
            and demands that all are of one size.
        channels: 1 for grey, 3 for colour, 4 for colour and alpha, where the colour of what is
            wholly transparent is set to 0. None takes 1 if all pictures are grey, otherwise 3.
        background: What transparent pixels lie on, unless alpha is kept: a name that Pillow
            knows, "#rrggbb", or three numbers from 0 to 255.
        cache: A folder, made if need be, in which the bytes are kept and from which they are
            mapped. The same files with the same settings are read from there, known by their
            contents. None keeps nothing, unless the bytes are more than `in_memory`: then the
            folder is `vae-book` in the user's folder of caches. Nothing is ever deleted there.
        least: How many pictures there must be; 1 for a single one.
        in_memory: How many bytes are held in memory at most; 1 GiB is room for 87,381 pictures
            of 64 x 64 in colour.
        threads: How many decode at the same time. None takes one for each core.

    Returns:
        The pictures, their names, and as labels the folder that each is in, which is the first
        one in which their names differ.

    Raises:
        FileNotFoundError: There is nothing at `source`.
        OSError: The cache cannot be written.
        ValueError: An argument out of range; fewer than `least` pictures; sizes that differ
            without `size`; a picture of more pixels than Pillow takes for harmless; a zip that
            is encrypted, or has a name that leads out of it.

    Example:
        >>> emoji = load_images(EMOJI, size=16, background="black")
        >>> emoji.images.shape, emoji.shape
        (torch.Size([2430, 768]), (3, 16, 16))
        >>> emoji.classes[emoji.labels[0]], emoji.skipped
        ('body-parts', [])
    """
    if channels not in (None, 1, 3, 4):
        raise ValueError(f"channels: expected 1, 3, 4 or None, got {channels!r}.")
    wanted, colour = _height_and_width(size), _colour(background)
    least, threads = whole("least", least), whole("threads", threads or _cores())
    with opened(source) as (files, skipped), warnings.catch_warnings():
        # Pictures are odd in many ways, of which the one that fills the memory must be refused.
        # Threads share the filters, so they are set here, around all of them.
        warnings.filterwarnings("ignore", module=r"PIL\.")
        warnings.simplefilter("error", Image.DecompressionBombWarning)
        sizes = _each(size_of, files, threads, "looking")
        files, sizes = _usable(files, sizes, skipped)
        _check_number(len(files), least, source, skipped)
        decode = Decoder(*(wanted or _common_size(files, sizes)), channels or 3, colour)
        one = decode.channels * decode.height * decode.width
        if cache is None and len(files) * one <= whole("in_memory", in_memory):
            images = np.empty((len(files), one), np.uint8)
            found = _decoded(images, decode, channels, files, threads)
        else:
            found = _kept(Path(cache or _caches()), decode, channels, files, threads)
    skipped += found.skipped
    _check_number(len(found.names), least, source, skipped)
    labels, classes = _classes(found.names)
    images = torch.from_numpy(found.images)
    return Pictures(images, found.shape, found.names, labels, classes, sorted(skipped))


def _height_and_width(size: Any) -> tuple[int, int] | None:
    if size is None:
        return None
    sides = size if isinstance(size, list | tuple) else (size, size)
    if len(sides) != 2:
        raise ValueError(f"size: expected a number or (height, width), got {size!r}.")
    return whole("size", sides[0]), whole("size", sides[1])


def _colour(background: Any) -> tuple[int, int, int]:
    """Return a colour as three numbers."""
    try:
        if isinstance(background, str):
            return ImageColor.getrgb(background)[:3]
        red, green, blue = (whole("background", part, 0) for part in background)
        if max(red, green, blue) > 255:
            raise ValueError
    except (TypeError, ValueError):
        raise ValueError(
            'background: expected a colour such as "white", "#ff8800" or (255, 136, 0), got '
            f"{background!r}."
        ) from None
    return red, green, blue


def _cores() -> int:
    """Return how many cores this process may use."""
    allowed = getattr(os, "sched_getaffinity", None)
    return len(allowed(0)) if allowed else os.cpu_count() or 1


def _each(work: Callable[[Any], Any], files: list, threads: int, title: str) -> list:
    """Return what work makes of each file, or the reason, a string, why it makes nothing.

    Threads are enough: Pillow lets go of the interpreter while it decodes and resamples.
    """

    def safely(file):
        try:
            return work(file)
        except Unread as error:
            return str(error)

    with ThreadPoolExecutor(threads) as pool:
        waiting = pool.map(safely, files)
        bar = {"total": len(files), "desc": title, "disable": not watched(), "leave": False}
        try:
            return list(tqdm(waiting, **bar))
        except BaseException:
            pool.shutdown(wait=False, cancel_futures=True)
            raise


def _usable(files: list[File], found: list, skipped: list) -> tuple[list[File], list]:
    """Leave out the files for which a reason was found, and note it."""
    pairs = list(zip(files, found, strict=True))
    skipped += [(file.name, why) for file, why in pairs if isinstance(why, str)]
    kept = [(file, one) for file, one in pairs if not isinstance(one, str)]
    return [file for file, _ in kept], [one for _, one in kept]


def _check_number(count: int, least: int, source: Any, skipped: list) -> None:
    """Refuse fewer pictures than are needed."""
    if count >= least:
        return
    where = f"a list of {len(source)}" if isinstance(source, list | tuple) else source
    reasons = "; ".join(f"{name}: {why}" for name, why in skipped[:3])
    more = ", and so on" if len(skipped) > 3 else ""
    raise ValueError(
        f"source: expected at least {least} picture{'s' * (least > 1)}, got {count} in {where}. "
        + (f"{len(skipped)} skipped ({reasons}{more}). " if skipped else "")
        + "Give a folder, a .zip or a list of pictures in PNG, JPEG, WebP, GIF, TIFF or BMP."
    )


def _common_size(files: list[File], sizes: list[tuple[int, int]]) -> tuple[int, int]:
    """Return the one size of all, or refuse that there are several."""
    (usual, count), *others = Counter(sizes).most_common()
    if others:
        shown = [
            f"{files[sizes.index(size)].name} of {size[0]} x {size[1]}"
            for size in (usual, others[0][0])
        ]
        raise ValueError(
            f"size: expected pictures of one height and width, got {' and '.join(shown)}; "
            f"{count} of {len(files)} are {usual[0]} x {usual[1]}. Give size=64, or another side, "
            "to crop and resample all of them."
        )
    return usual


@dataclass
class _Found:
    """What came of files: rows of bytes, the shape of one, the names, and what was skipped."""

    images: np.ndarray
    shape: tuple[int, int, int]
    names: list[str]
    skipped: list[tuple[str, str]]


def _decoded(images: np.ndarray, decode: Decoder, channels, files: list, threads: int) -> _Found:
    """Decode files into the rows of an array, then close the gaps that damaged ones leave."""
    shape = (decode.channels, decode.height, decode.width)

    def work(row):
        pixels = decode(files[row])
        images[row] = pixels.reshape(-1)
        return bool((pixels == pixels[:1]).all())

    greys, skipped = _each(work, list(range(len(files))), threads, "decoding"), []
    kept = [row for row, grey in enumerate(greys) if not isinstance(grey, str)]
    files, greys = _usable(files, greys, skipped)
    if channels is None and all(greys):
        shape = (1, decode.height, decode.width)
    if skipped or shape[0] < decode.channels:
        size = shape[0] * decode.height * decode.width
        flat = images.reshape(-1)
        for new, old in enumerate(kept):  # forwards, so nothing is overwritten before it is moved
            flat[new * size : (new + 1) * size] = images[old, :size]
        images = flat[: len(kept) * size].reshape(len(kept), size)
    return _Found(images, shape, [file.name for file in files], skipped)


def _kept(folder: Path, decode: Decoder, channels, files: list, threads: int) -> _Found:
    """Return the pictures from the cache, after decoding them into it if they are not there."""
    digests = _each(_digest, files, threads, "comparing")
    names = [file.name for file in files]
    key = json.dumps([FORMAT, pillow, repr(decode), channels, names, digests])
    stem = hashlib.sha256(key.encode()).hexdigest()[:32]
    pixels, described = folder / f"{stem}.pixels", folder / f"{stem}.json"
    if not _complete(pixels, described):
        try:
            _keep(pixels, described, decode, channels, files, threads)
        except OSError as error:
            need = len(files) * decode.channels * decode.height * decode.width
            raise OSError(
                error.errno,
                f"cache: {need / 1e6:,.1f} MB cannot be written to {folder}: {error.strerror}. "
                "Free that much, give another folder as cache, or ask for a smaller size",
            ) from error
    description = json.loads(described.read_text(encoding="utf-8"))
    names, shape = description["names"], tuple(description["shape"])
    rows = len(names), math.prod(shape)
    # Changes to this mapping stay in memory, so that the file remains what it was.
    images = np.memmap(pixels, np.uint8, "c", shape=rows) if names else np.empty(rows, np.uint8)
    return _Found(images, shape, names, [tuple(pair) for pair in description["skipped"]])


def _digest(file: File) -> str:
    """Return the sha256 of a file's content, or a word if it cannot be read any more."""
    try:
        with file.open() as stream:
            return hashlib.file_digest(stream, "sha256").hexdigest()
    except Exception:  # decoding it will say what it is
        return "unreadable"


def _complete(pixels: Path, described: Path) -> bool:
    """Whether both files of the cache are there, and the pixels are as many as they should be."""
    if not (pixels.exists() and described.exists()):
        return False
    description = json.loads(described.read_text(encoding="utf-8"))
    return pixels.stat().st_size == len(description["names"]) * math.prod(description["shape"])


def _keep(pixels: Path, described: Path, decode: Decoder, channels, files, threads: int) -> None:
    """Decode files into the cache; the description comes last and says that all is there."""
    folder, one = pixels.parent, decode.channels * decode.height * decode.width
    folder.mkdir(parents=True, exist_ok=True)
    for left in folder.glob(".*.partial"):
        if time.time() - left.stat().st_mtime > 86400:  # of a process that was killed
            left.unlink(missing_ok=True)
    partial = folder / f".{pixels.name}.{os.getpid()}.partial"
    try:
        with partial.open("wb") as stream:
            _reserve(stream, len(files) * one)
        images = np.memmap(partial, np.uint8, "r+", shape=(len(files), one))
        found = _decoded(images, decode, channels, files, threads)
        images.flush()
        size = found.images.size
        found.images = images = None  # Windows renames no file that is mapped
        os.truncate(partial, size)
        partial.replace(pixels)
    finally:
        partial.unlink(missing_ok=True)
    parts = {"shape": found.shape, "names": found.names, "skipped": found.skipped}
    checkpoints.write({described: json.dumps(parts).encode()})


def _reserve(stream: BinaryIO, size: int) -> None:
    """Fill a file with zeros: when the disk is full, a mapping of less would end the process."""
    zeros = bytes(2**24)
    for start in range(0, size, len(zeros)):
        stream.write(zeros[: size - start])


def _caches() -> Path:
    """Return the book's folder among those that the user's programs may fill and users empty."""
    named = os.environ.get("XDG_CACHE_HOME") or os.environ.get("LOCALAPPDATA")
    return (Path(named) if named else Path.home() / ".cache") / "vae-book"


def _classes(names: list[str]) -> tuple[Tensor, list[str]]:
    """Return for each name the first folder that not all share, as an index, and those folders."""
    parents = [name.split("/")[:-1] for name in names]
    both = zip(min(parents), max(parents), strict=False)  # what these share, all share
    shared = len(list(takewhile(lambda pair: pair[0] == pair[1], both)))
    firsts = [parent[shared] if parent[shared:] else "" for parent in parents]
    classes = sorted(set(firsts))
    index = {name: number for number, name in enumerate(classes)}
    return torch.tensor([index[first] for first in firsts], dtype=torch.int64), classes


def near_duplicates(pictures: Pictures, *, bits: int = 12, levels: float = 16) -> Tensor:
    """Group the pictures that look nearly alike.

    Two pictures are near if both of two rough sketches agree. One is a difference hash: in grey,
    averaged over 8 x 9 and over 9 x 8 regions, is the next region, to the right or below, clearly
    brighter, and is it clearly darker? That makes 256 bits. The other is the colour of 8 x 8
    regions. A group is all that is connected by near ones, be it through others.

    A copy in another format or size, or a little darker, is found; one that is mirrored, turned
    or cropped is not. Pictures that differ in fine detail only count as copies, as do drawings of
    little else than one stroke: of the first 5,000 test digits of MNIST, 535 are in one group. So
    look at the groups before you trust them. Every two pictures are compared: thousands take
    seconds, 100,000 take minutes, and about 4 kB of memory for each.

    Arguments:
        pictures: Of any shape; where there is alpha, what is seen on white.
        bits: How many of the 256 may differ, at least 0.
        levels: How far the colours may differ, as the root of the mean square; 0 to 255.

    Returns:
        For each picture the number of its group, counted from 0, int64 of shape (n,).

    Example:
        >>> rows = torch.tensor([[0, 0, 9, 9], [0, 0, 9, 8], [200, 0, 9, 9]], dtype=torch.uint8)
        >>> labels = torch.zeros(3, dtype=torch.int64)
        >>> near_duplicates(Pictures(rows, (1, 2, 2), ["a", "b", "c"], labels, [""], []))
        tensor([0, 0, 1])
    """
    if not isinstance(pictures, Pictures):
        raise ValueError(f"pictures: expected Pictures, got {kind(pictures)}. Use load_images.")
    least = 256 - 2 * whole("bits", bits, 0)  # agreeing bits less differing ones
    sketches = [_sketches(part, pictures.shape) for part in pictures.images.split(1024)]
    steps, colours = (torch.cat(parts) for parts in zip(*sketches, strict=True))
    lengths, most = colours.square().sum(1), colours.shape[1] * real("levels", levels) ** 2
    groups = torch.arange(len(pictures))
    for rows in groups.clone().split(128):
        distances = lengths[rows, None] + lengths - 2 * colours[rows] @ colours.T
        near = (steps[rows] @ steps.T >= least) & (distances <= most)
        for row in torch.where(near.sum(1) > 1)[0]:
            found = groups[near[row]].unique()
            if len(found) > 1:
                groups[torch.isin(groups, found)] = found[0]
    return groups.unique(return_inverse=True)[1]


def _sketches(images: Tensor, shape: tuple[int, int, int]) -> tuple[Tensor, Tensor]:
    """Return 256 bits of each picture as -1 and 1, and the colours of its 8 x 8 regions."""
    pixels = images.reshape(-1, *shape).float()
    if shape[0] == 4:
        pixels = 255 + (pixels[:, :3] - 255) * pixels[:, 3:] / 255
    grey = pixels.mean(1)
    right = adaptive_avg_pool2d(grey, (8, 9)).diff(dim=-1).flatten(1)
    down = adaptive_avg_pool2d(grey, (9, 8)).diff(dim=-2).flatten(1)
    steps = torch.cat([right, down], 1)
    signs = torch.cat([steps > A_STEP, steps < -A_STEP], 1).float() * 2 - 1
    return signs, adaptive_avg_pool2d(pixels, 8).flatten(1)


def split_groups(
    groups: Tensor | Sequence, share: float = 0.1, *, seed: int = 0
) -> tuple[Tensor, Tensor]:
    """Split pictures so that no group has some on both sides.

    Copies of one picture, or frames of one film, on both sides make a held-out score that says
    nothing about new pictures.

    Arguments:
        groups: For each picture a number or a text; equal ones stay together.
        share: Of all pictures, how many to hold out: above 0, below 1. Whole groups are taken in
            a random order up to where their number is nearest to it, and at least one group is
            left on each side.
        seed: Of that order.

    Returns:
        The rows to learn from and those held out, both int64 and in order.

    Raises:
        ValueError: Fewer than two groups, or `share` out of range.

    Example:
        >>> split_groups(["santa", "santa", "surfer", "surfer"], 0.5)
        (tensor([2, 3]), tensor([0, 1]))
    """
    if not 0 < real("share", share) < 1:
        raise ValueError(f"share: expected a number above 0 and below 1, got {share}.")
    names, numbers = np.unique(np.asarray(groups), return_inverse=True)
    if np.ndim(groups) != 1 or len(names) < 2:
        raise ValueError(
            f"groups: expected a number or a text for each picture, of at least two groups, got "
            f"{len(names)} in an array of shape {np.shape(groups)}. Pictures that are all alike "
            "cannot be split."
        )
    numbers = torch.from_numpy(numbers)
    generator = seeded(seed, stream="split_groups")
    order = torch.randperm(len(names), generator=generator, device="cpu")
    taken = torch.bincount(numbers)[order].cumsum(0)
    count = int((taken[:-1] - share * len(numbers)).abs().argmin()) + 1
    held_out = torch.isin(numbers, order[:count])
    return torch.where(~held_out)[0], torch.where(held_out)[0]


def save_sheet(
    path: str | Path,
    images: Tensor,
    shape: tuple[int, int, int],
    columns: int = 10,
    *,
    gap: int = 2,
    zoom: int = 1,
) -> Path:
    """Write pictures side by side, row by row, as one PNG.

    Arguments:
        path: Of the file, which is written whole or not at all; missing folders are made.
        images: uint8, or floats from 0 to 1; shape (n, channels * height * width).
        shape: Channels (1, 3 or 4), height, width.
        columns: Pictures in a row.
        gap: Pixels of white between them; in a sheet with alpha, of nothing.
        zoom: How many pixels wide and high a pixel becomes.

    Returns:
        The path.

    Raises:
        ValueError: No picture, another shape, or floats out of range.

    Example:
        >>> import tempfile
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     sheet = save_sheet(f"{folder}/sheet.png", torch.zeros(12, 9), (1, 3, 3), columns=6)
        ...     with Image.open(sheet) as picture:
        ...         picture.size
        (28, 8)
    """
    channels, height, width = shape
    if tensor("images", images).ndim != 2 or not len(images) or channels not in (1, 3, 4):
        raise ValueError(
            "images: expected rows of pictures with 1, 3 or 4 channels, got shape "
            f"{tuple(images.shape)} and {channels} channels."
        )
    if images.shape[1] != channels * height * width:
        raise ValueError(
            f"shape: expected channels x height x width to be {images.shape[1]}, got {shape}."
        )
    if images.dtype != torch.uint8:
        images = (_unit(images) * 255).round().to(torch.uint8)
    columns, rows = min(whole("columns", columns), len(images)), -(-len(images) // columns)
    pixels = images.cpu().reshape(-1, channels, height, width).permute(0, 2, 3, 1).numpy()
    pixels = pixels.repeat(whole("zoom", zoom), 1).repeat(zoom, 2)
    down, right = height * zoom + whole("gap", gap, 0), width * zoom + gap
    nothing = 0 if channels == 4 else 255
    sheet = np.full((rows * down - gap, columns * right - gap, channels), nothing, np.uint8)
    for number, picture in enumerate(pixels):
        top, left = number // columns * down, number % columns * right
        sheet[top : top + height * zoom, left : left + width * zoom] = picture
    stream = io.BytesIO()
    Image.fromarray(sheet[..., 0] if channels == 1 else sheet).save(stream, "PNG")
    checkpoints.write({Path(path): stream.getvalue()})
    return Path(path)


def _unit(images: Tensor) -> Tensor:
    """Return floats from 0 to 1 as they are."""
    low, high = (x.item() for x in images.aminmax())
    if not (images.is_floating_point() and low >= 0 and high <= 1):
        raise ValueError(
            f"images: expected uint8 or floats from 0 to 1, got {images.dtype} from {low:g} to "
            f"{high:g}. Divide bytes by 255, or clamp them."
        )
    return images
