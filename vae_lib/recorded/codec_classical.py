"""Record what compressors without a network make of the test digits, in codec-classical.json.

    apt-get install zpaq jbigkit-bin libjxl-tools webp optipng bzip2 xz-utils
    python -m vae_lib.recorded.codec_classical

Three kinds of digits: binarised dynamically by one draw, by a threshold, and in 256 greys. General
compressors get a stream of bytes, in whichever of some layouts is shortest; those of pictures get
all digits as one sheet. What they wrote is read back and compared. Beside that, the first 500
digits are written to a file each, which shows what headers cost.

The last row has no program: `Counts` are learned on the training images, by the context of a pixel,
the 14 nearest of those before it, and its coarse place. Its length is the ideal one.
"""

import bz2
import io
import lzma
import os
import re
import shutil
import subprocess
import zlib
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
import torch
from PIL import Image

from vae_lib.data import binarize, load_mnist, quantize, seeded
from vae_lib.records import Record

SIDE, PIXELS = 28, 784
KINDS = ("dynamic", "threshold", "grey")
SINGLE = 500  # digits that get a file each
# Of each coder: the program that decodes, and the package of Debian that it is in.
PROGRAMS = {
    "bz2": ("bzip2", "bzip2"),
    "lzma": ("xz", "xz-utils"),
    "zpaq": ("zpaq", "zpaq"),
    "JBIG1": ("jbgtopbm", "jbigkit-bin"),
    "JPEG XL": ("djxl", "libjxl-tools"),
    "WebP": ("dwebp", "webp"),
    "PNG": ("optipng", "optipng"),
}
PACKAGES = " ".join(sorted(package for _, package in PROGRAMS.values()))
COMMON = r"lib(c|m|stdc\+\+|gcc_s|pthread|dl|rt)\.so"  # libraries that every system has


def digits(kind, images, stream="test images", seed=0):
    """Return digits as whole numbers from 0: uint8, shape (n, 28, 28)."""
    if kind == "grey":
        found = quantize(images, 256) * 255
    else:
        found = binarize(images, kind, generator=seeded(seed, stream=stream))
    return found.round().to(torch.uint8).numpy().reshape(-1, SIDE, SIDE)


def run(*command):
    """Run a program; return what it says."""
    try:
        done = subprocess.run([str(part) for part in command], check=True, capture_output=True)
    except FileNotFoundError as error:
        raise ValueError(
            f"programs: expected {command[0]}, which is not installed. On Debian: apt-get install "
            f"{PACKAGES}."
        ) from error
    return (done.stdout + done.stderr).decode("utf-8", "replace")


def spent():
    """Return seconds of a processor, of this process and of programs that it ran."""
    return sum(os.times()[:4])


# ---------------------------------------------------------------- streams of bytes


def layouts(pictures):
    """Return ways to write digits one after the other: bytes by the name of the layout."""
    if pictures.max() > 1:
        return {"a byte a pixel": pictures.tobytes()}
    rows = np.pad(pictures, ((0, 0), (0, 0), (0, 4)))
    return {
        "bits": np.packbits(pictures).tobytes(),
        "rows of four bytes": np.packbits(rows).tobytes(),
        "a byte a pixel": pictures.tobytes(),
    }


def zpaq(stream):
    """Return how long the archive is, and what comes out of it."""
    with TemporaryDirectory() as folder:
        folder = Path(folder)
        (folder / "digits").write_bytes(stream)
        archive, back = folder / "digits.zpaq", folder / "back"
        run("zpaq", "add", archive, folder / "digits", "-method", "5", "-threads", "1")
        run("zpaq", "extract", archive, folder / "digits", "-to", back, "-threads", "1")
        return archive.stat().st_size, back.read_bytes()


def own(compress, decompress):
    """Make the same of two functions of Python."""

    def coder(stream):
        data = compress(stream)
        return len(data), decompress(data)

    return coder


STREAMS = {
    "zlib": own(lambda stream: zlib.compress(stream, 9), zlib.decompress),
    "bz2": own(bz2.compress, bz2.decompress),
    "lzma": own(
        lambda stream: lzma.compress(stream, preset=9 | lzma.PRESET_EXTREME), lzma.decompress
    ),
    "zpaq": zpaq,
}


def streamed(coder, pictures):
    """Return the best size of all layouts, with its name."""
    forms, found = layouts(pictures), []
    if len(forms) > 1 and coder in ("lzma", "zpaq"):
        # They look far back: a byte a pixel takes them minutes, and was longer in a trial.
        del forms["a byte a pixel"]
    for name, stream in forms.items():
        size, back = STREAMS[coder](stream)
        if back != stream:
            raise RuntimeError(f"{coder}: expected the bytes back, got others.")
        found.append((size, name))
    size, name = min(found)
    return {"bytes": size, "layout": name}


# ---------------------------------------------------------------- pictures


def sheets(pictures):
    """Return digits as one picture, in two forms: uint8 arrays by the name of the layout."""
    many = int(len(pictures) ** 0.5)
    square = pictures[: many * many].reshape(many, many, SIDE, SIDE).swapaxes(1, 2)
    return {
        f"a sheet of {many} x {many}": square.reshape(many * SIDE, many * SIDE),
        "one column": pictures.reshape(-1, SIDE),
    }


def image(picture):
    """Return a picture as Pillow has it; ink is white."""
    if picture.max() > 1:
        return Image.fromarray(picture)
    return Image.fromarray(255 * picture).convert("1")


def png(picture, folder):
    return ("optipng", "-quiet", "-o2", folder / "in.png", "-out", folder / "coded"), None


def jbig(picture, folder):
    image(picture).convert("1").save(folder / "in.pbm")
    # Without -q its default is a series of ever finer pictures, which is longer.
    return (
        ("pbmtojbg", "-q", folder / "in.pbm", folder / "coded"),
        ("jbgtopbm", folder / "coded", folder / "out.pbm"),
    )


def jxl(picture, folder):
    return (
        ("cjxl", folder / "in.png", folder / "coded.jxl", "-d", "0", "-e", "9", "--num_threads=0"),
        ("djxl", folder / "coded.jxl", folder / "out.png"),
    )


def webp(picture, folder):
    command = ("cwebp", "-quiet", "-lossless", "-z", "9", folder / "in.png")
    return (
        (*command, "-o", folder / "coded"),
        ("dwebp", "-quiet", folder / "coded", "-o", folder / "out.png"),
    )


PICTURES = {"PNG": png, "JBIG1": jbig, "JPEG XL": jxl, "WebP": webp}


def drawn(coder, picture):
    """Return the size of one picture's file, read back."""
    with TemporaryDirectory() as folder:
        folder = Path(folder)
        image(picture).save(folder / "in.png")
        to, back = PICTURES[coder](picture, folder)
        run(*to)
        if back is not None:
            run(*back)
        coded = next(folder.glob("coded*"))
        again = next(folder.glob("out.*"), coded)
        with Image.open(io.BytesIO(again.read_bytes())) as found:
            levels = np.asarray(found.convert("L"))
        # Of one bit, djxl writes ink as 1 and the others as 255.
        levels = levels if picture.max() > 1 else levels > 0
        if not np.array_equal(levels, picture):
            raise RuntimeError(f"{coder}: expected the picture back, got another.")
        return coded.stat().st_size


def pictured(coder, pictures):
    """Return the best size of all sheets, with its name."""
    forms = sheets(pictures)
    if coder != "JBIG1":  # others refuse so high a picture, or take an hour
        forms.pop("one column")
    size, name = min((drawn(coder, picture), name) for name, picture in forms.items())
    return {"bytes": size, "layout": name}


def singly(coder, pictures):
    """Return the sum of the sizes of a file each."""
    some = pictures[:SINGLE]
    return {"bytes": sum(drawn(coder, picture) for picture in some), "layout": "a file each"}


# ---------------------------------------------------------------- counts


class Counts:
    """How often a pixel is ink, by the pixels before it and by its coarse place.

    To what was counted of a context at its place come `PRIOR` pixels more, shared as those of this
    context anywhere, which have half a pixel more of each kind. The chance is rounded to one of 255
    logits, so that a table of bytes is all that a decoder needs.
    """

    #: Down and right: the 14 nearest of the pixels before.
    NEAR = sorted(
        ((r, c) for r in range(-3, 1) for c in range(-3, 4) if r < 0 or c < 0),
        key=lambda step: (step[0] ** 2 + step[1] ** 2, step),
    )[:14]
    CELL = 4  # a place is a square of so many pixels
    PRIOR = 8.0
    STEP = 1 / 12  # from one logit to the next

    def __init__(self):
        self.places = (SIDE // self.CELL) ** 2
        self.seen = np.zeros((2, self.places << len(self.NEAR)), np.int64)

    def contexts(self, pictures):
        """Return the number of each pixel's context, shape (n, 28, 28)."""
        n = len(pictures)
        framed = np.zeros((n, SIDE + 3, SIDE + 6), np.int32)
        framed[:, 3:, 3:-3] = pictures
        row, column = np.divmod(np.arange(PIXELS).reshape(SIDE, SIDE), SIDE)
        place = row // self.CELL * (SIDE // self.CELL) + column // self.CELL
        found = np.broadcast_to(place, pictures.shape).astype(np.int32)
        for down, right in self.NEAR:
            near = framed[:, 3 + down : 3 + down + SIDE, 3 + right : 3 + right + SIDE]
            found = 2 * found + near
        return found

    def learn(self, pictures):
        """Count pixels."""
        contexts = self.contexts(pictures)
        for value in (0, 1):
            chosen = contexts[pictures == value]
            self.seen[value] += np.bincount(chosen, minlength=self.seen.shape[1])

    def table(self):
        """Return the logit of each context: bytes, in steps of `STEP`."""
        paper, ink = self.seen.reshape(2, self.places, -1).astype(float)
        anywhere = (ink.sum(0) + 0.5) / (ink.sum(0) + paper.sum(0) + 1)
        chance = (ink + self.PRIOR * anywhere) / (ink + paper + self.PRIOR)
        logits = np.log(chance) - np.log1p(-chance)
        return np.rint(logits / self.STEP).clip(-127, 127).astype(np.int8).ravel()

    def bits(self, pictures, table):
        """Return the ideal code length of each picture."""
        logits = self.STEP * table[self.contexts(pictures)].astype(float)
        surprise = np.logaddexp(0, np.where(pictures == 1, -logits, logits))
        return surprise.sum((1, 2)) / np.log(2)


def learned(kind, images, draws):
    """Return counts of training images; of those that are drawn, of some draws each."""
    counts = Counts()
    for draw in range(draws if kind == "dynamic" else 1):
        for part, some in enumerate(images.split(5000)):
            counts.learn(digits(kind, some, f"training images {part}", draw))
    return counts


def counted(kind, pictures):
    counts = learned(kind, load_mnist().train_images, draws=4)
    table = counts.table()
    total = sum(counts.bits(some, table).sum() for some in np.array_split(pictures, 10))
    packed = len(lzma.compress(table.tobytes(), preset=9))
    return {
        "bytes": int(np.ceil(total / 8)),
        "layout": "no file: ideal length",
        "decoder_bytes": packed,
    }


# ---------------------------------------------------------------- the record


def decoder(coder):
    """Return what decodes: the bytes of program and libraries of its own, and the version."""
    if coder not in PROGRAMS:
        return (
            {"version": f"of Python, zlib {zlib.ZLIB_RUNTIME_VERSION}"} if coder == "zlib" else {}
        )
    name, package = PROGRAMS[coder]
    program = shutil.which(name)
    if program is None:
        run(name)  # says what to install
    libraries = re.findall(r"=> (/\S+)", run("ldd", program))
    files = [program, *(file for file in libraries if not re.search(COMMON, file))]
    return {
        "decoder_bytes": sum(Path(file).resolve().stat().st_size for file in files),
        "version": run("dpkg-query", "-W", "-f", "${Version}", package).strip(),
    }


def measure(choice, folder):
    kind, coder = choice["digits"], choice["coder"]
    pictures, before = digits(kind, load_mnist().test_images), spent()
    if coder == "counts":
        found = counted(kind, pictures)
    elif choice["files"] == "one each":
        found = singly(coder, pictures)
    else:
        found = (streamed if coder in STREAMS else pictured)(coder, pictures)
    count = SINGLE if choice["files"] == "one each" else len(pictures)
    seconds = spent() - before
    return {
        "images": count,
        **found,
        "bits": round(8 * found["bytes"] / count / PIXELS, 5),
        **{key: value for key, value in decoder(coder).items() if key not in found},
        "both_ways_cpu_seconds": round(seconds, 1),
    }


def choices():
    for files, coders in (
        ("one", ("JBIG1", "counts", "bz2", "lzma", "zlib", "PNG", "WebP", "JPEG XL", "zpaq")),
        ("one each", ("JBIG1", "PNG", "WebP", "JPEG XL")),
    ):
        for coder in coders:
            for kind in KINDS:
                if kind != "grey" or coder not in ("JBIG1", "counts"):
                    yield {"digits": kind, "coder": coder, "files": files}


def main():
    record = Record(
        __file__,
        recipe="MNIST test digits: one draw of seed 0, a threshold, 256 greys; streams in the "
        "shortest of their layouts, pictures as one sheet, or a file for each of 500 digits; "
        "counts of 14 neighbours and 49 places, learned on the training images",
        unit="bytes, and bits per pixel",
    )
    record.run(measure, choices())


if __name__ == "__main__":
    main()
