"""Images, and how they become data: loading, binarising, quantising, splitting, batching.

Images are rows: a tensor of shape (n, 784) holds n pictures of 28 x 28 pixels, row by row.
"""

import hashlib
import zipfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from vae_lib.arguments import tensor, whole
from vae_lib.noise import Rows, Share, Source, known, uniform

MNIST = Path(__file__).with_name("assets") / "mnist.npz"

# The sha256 that the original, decompressed IDX files are known by. They are checked at each
# load: it costs a fraction of a second, and a book of numbers is worth no more than its data.
MNIST_SHA256 = {
    "x_train": "ba891046e6505d7aadcbbe25680a0738ad16aec93bde7f9b65e87a2fc25776db",
    "y_train": "65a50cbbf4e906d70832878ad85ccda5333a97f0f4c3dd2ef09a8a9eef7101c5",
    "x_test": "0fa7898d509279e482958e8ce81c8e77db3f2f8254e26661ceb7762c4d494ce7",
    "y_test": "ff7bcfd416de33731a308c3f266cc351222c34898ecbeaf847f06e48f7ec33f2",
}


# Tensors have no single truth of being equal, so what holds some is equal to itself alone.
@dataclass(frozen=True, eq=False)
class Mnist:
    """The two halves of MNIST, in grey: images uint8 (n, 784), labels uint8 (n,)."""

    train_images: Tensor
    train_labels: Tensor
    test_images: Tensor
    test_labels: Tensor


def load_mnist(path: str | Path = MNIST) -> Mnist:
    """Load all of MNIST and check that it is MNIST, byte for byte.

    Arguments:
        path: An .npz file with the arrays `x_train`, `y_train`, `x_test`, `y_test` as uint8.
            The default is the copy inside the package; no network is used.

    Returns:
        60,000 training and 10,000 test images with their labels; grey levels 0 to 255,
        where 0 is paper and 255 is ink.

    Raises:
        FileNotFoundError: There is no file at `path`.
        ValueError: The file is no readable .npz, lacks an array, or holds other bytes.

    Example:
        >>> mnist = load_mnist()
        >>> mnist.train_images.shape, mnist.test_images.shape
        (torch.Size([60000, 784]), torch.Size([10000, 784]))
    """
    path = Path(path)
    if not path.exists():
        raise FileNotFoundError(
            f"path: expected the MNIST file, found nothing at {path}. "
            "It ships with the package; install vae-book again, or give the path of a mnist.npz."
        )
    try:
        with path.open("rb") as stream, np.load(stream) as archive:
            arrays = {name: archive[name] for name in MNIST_SHA256}
    except (OSError, ValueError, KeyError, EOFError, zipfile.BadZipFile) as error:
        raise ValueError(
            f"path: expected an .npz with the arrays {', '.join(MNIST_SHA256)}, but reading "
            f"{path} failed with: {error}. Replace the file with an intact copy."
        ) from error
    for name, array in arrays.items():
        found = hashlib.sha256(idx_bytes(array)).hexdigest()
        if found != MNIST_SHA256[name]:
            raise ValueError(
                f"path: {name} in {path} is {array.dtype} {array.shape} with sha256 {found[:12]}…, "
                f"expected the {name} of MNIST with sha256 {MNIST_SHA256[name][:12]}…. "
                "Replace the file with an intact copy."
            )
    return Mnist(
        torch.from_numpy(arrays["x_train"]).flatten(1),
        torch.from_numpy(arrays["y_train"]),
        torch.from_numpy(arrays["x_test"]).flatten(1),
        torch.from_numpy(arrays["y_test"]),
    )


def idx_bytes(array: np.ndarray) -> bytes:
    """Return a uint8 array in IDX, the format in which MNIST was first published.

    Arguments:
        array: uint8, of any shape with at most 255 axes.

    Returns:
        Two zero bytes, 8 (the code of unsigned bytes), the number of axes, each length as a
        big-endian 32-bit integer, then the values row by row.

    Example:
        >>> idx_bytes(np.array([7, 9], dtype=np.uint8)).hex(" ")
        '00 00 08 01 00 00 00 02 07 09'
    """
    header = bytes([0, 0, 8, array.ndim])
    return header + np.array(array.shape, dtype=">u4").tobytes() + array.tobytes()


def binarize(images: Tensor, method: str, *, seed: int = 0, generator: Source = None) -> Tensor:
    """Turn grey images into images of zeros and ones.

    Three methods, three different tasks, whose scores cannot be compared:

    - "threshold": a pixel is 1 if its grey is above one half (on bytes: at least 128).
    - "static": a pixel is 1 with a probability equal to its grey, drawn once and for all from
      the stream "static" of `seed`, and on the CPU, so that it is the same on every device. One
      fixed draw, as in the data of Larochelle and Murray (2011), but not theirs.
    - "dynamic": such a draw, made anew at every call with `generator`. The protocol of
      Burda, Grosse and Salakhutdinov (2016).

    Arguments:
        images: uint8 greys 0 to 255, or floats 0 to 1; any shape.
        method: "threshold", "static" or "dynamic".
        seed: Of the one static draw.
        generator: The source of the dynamic draws, which are made on its device. A CPU and a
            GPU draw other numbers from the same seed.

    Returns:
        float32 zeros and ones, of the shape and on the device of `images`.

    Raises:
        ValueError: Unknown method, greys out of range, or "dynamic" without a generator.

    Example:
        >>> binarize(torch.tensor([0, 127, 128, 255], dtype=torch.uint8), "threshold")
        tensor([0., 0., 1., 1.])
    """
    if method not in ("threshold", "static", "dynamic"):
        raise ValueError(f'method: expected "threshold", "static" or "dynamic", got {method!r}.')
    grey, generator = _unit_grey(images), known(generator)
    if method == "threshold":
        return (grey > 0.5).float()
    if method == "static":
        generator = seeded(seed, stream="static")
    elif generator is None:
        raise ValueError(
            "generator: dynamic binarisation draws anew at every call and needs a torch.Generator, "
            'got None. Give one, or use method="static".'
        )
    like = torch.empty(0, device=generator.device, dtype=torch.float32)
    return (uniform(grey.shape, generator, like=like, axis=0).to(grey.device) < grey).float()


def quantize(images: Tensor, levels: int) -> Tensor:
    """Reduce 8-bit greys to fewer levels, each from the same number of the 256, give or take one.

    Arguments:
        images: uint8 greys 0 to 255; any shape.
        levels: How many to keep, L, from 2 to 256.

    Returns:
        float32 multiples of 1 / (L - 1), from 0 to 1, of the shape of `images`. With two levels
        they are those of `binarize` by threshold.

    Raises:
        ValueError: Other than bytes, or `levels` out of range.

    Example:
        >>> quantize(torch.tensor([0, 63, 64, 255], dtype=torch.uint8), 4)
        tensor([0.0000, 0.0000, 0.3333, 1.0000])
    """
    if tensor("images", images).dtype != torch.uint8:
        raise ValueError(f"images: expected uint8 greys 0 to 255, got {images.dtype}.")
    if not 2 <= whole("levels", levels) <= 256:
        raise ValueError(f"levels: expected 2 to 256, got {levels}.")
    return (images.int() * levels // 256).float() / (levels - 1)


def _unit_grey(images: Tensor) -> Tensor:
    """Return greys as floats in [0, 1], refusing anything else."""
    if tensor("images", images).dtype == torch.uint8:
        return images.float() / 255
    if not images.is_floating_point():
        raise ValueError(
            f"images: expected uint8 greys 0 to 255 or floats 0 to 1, got {images.dtype}."
        )
    low, high = images.aminmax() if images.numel() else (torch.zeros(()), torch.zeros(()))
    if not (low >= 0 and high <= 1):  # written so that NaN is refused too
        raise ValueError(
            f"images: expected floats from 0 to 1, got values from {low:g} to {high:g}. "
            "Divide bytes by 255."
        )
    return images


def hold_out(images: Tensor, count: int = 10_000, *, seed: int = 0) -> tuple[Tensor, Tensor]:
    """Split training images into a part to learn from and a part to choose by.

    Every choice (a weight, a number of epochs) is made on the second part, so that the test
    images are looked at once.

    Arguments:
        images: Any tensor; its rows are split. Split labels with the same `seed`.
        count: How many rows to hold out; at least 1, fewer than there are.
        seed: Of the shuffle that decides which.

    Returns:
        The remaining rows, then the held-out rows; together each row exactly once.

    Raises:
        ValueError: `count` out of range.

    Example:
        >>> rest, validation = hold_out(torch.arange(10), 3)
        >>> len(rest), len(validation), sorted([*rest.tolist(), *validation.tolist()])
        (7, 3, [0, 1, 2, 3, 4, 5, 6, 7, 8, 9])
    """
    if not 0 < whole("count", count, None) < len(tensor("images", images)):
        raise ValueError(f"count: expected 1 to {len(images) - 1} of {len(images)}, got {count}.")
    generator = seeded(seed, stream="hold_out")
    order = torch.randperm(len(images), generator=generator, device="cpu").to(images.device)
    return images[order[count:]], images[order[:count]]


def seeded(seed: int, epoch: int = 0, *, stream: str, device="cpu") -> torch.Generator:
    """Make the generator that belongs to a seed, an epoch and a use.

    What takes a seed in this library draws from a stream of its own, so that a change in one use
    (another batch size, say) leaves the others as they were. The one exception is
    `vae_lib.model.dense_vae`: its first weights come from `torch.Generator().manual_seed(seed)`,
    which is no stream of that seed.

    Arguments:
        seed: A non-negative integer.
        epoch: A non-negative integer.
        stream: The name of the use: "order", "noise" and so on.
        device: Where the numbers are to be drawn. A CPU and a GPU draw other numbers.

    Returns:
        A new generator, whose numbers depend on the four arguments alone.

    Example:
        >>> draw = lambda epoch: torch.rand(1, generator=seeded(0, epoch, stream="noise")).item()
        >>> draw(1) == draw(1), draw(1) == draw(2)
        (True, False)
    """
    # SeedSequence mixes its entries well and is promised to stay as it is across versions.
    name = int.from_bytes(hashlib.sha256(stream.encode()).digest()[:4], "big")
    seed, epoch = whole("seed", seed, 0), whole("epoch", epoch, 0)
    state = np.random.SeedSequence([seed, epoch, name]).generate_state(1, np.uint64)[0]
    return torch.Generator(device).manual_seed(int(state) >> 1)


@dataclass(frozen=True, eq=False)
class Batches:
    """Shuffled batches of images that depend on the seed and the epoch alone.

    Arguments:
        images: Rows to draw from, shape (n, ...), on any device. They may be a file larger than
            the memory, of which only the rows of a batch are read:
            `torch.from_numpy(np.load("rows.npy", mmap_mode="c"))`.
        batch_size: Rows in a batch; the last one of an epoch may be smaller.
        seed: With the epoch's number it decides the order, which is the same on every device,
            and the generator of `transform`.
        shuffle: False gives the rows in their own order, the same in every epoch.
        transform: What to do to a batch, given the batch and a generator on its device: dynamic
            binarisation, for example. Batches take from that generator in turn, so another
            batch size gives an image other draws, and so does another kind of device. The
            default does nothing.

    Raises:
        ValueError: No images, or a batch size below 1.

    Example:
        >>> batches = Batches(torch.arange(5), batch_size=2, seed=1)
        >>> [batch.tolist() for batch in batches.epoch(1)] == [
        ...     batch.tolist() for batch in batches.epoch(1)]
        True
        >>> len(batches), sorted(torch.cat(list(batches.epoch(2))).tolist())
        (3, [0, 1, 2, 3, 4])
    """

    images: Tensor
    batch_size: int = 100
    seed: int = 0
    shuffle: bool = True
    transform: Callable[[Tensor, torch.Generator], Tensor] | None = None

    def __post_init__(self):
        """Refuse what cannot be batched."""
        if len(tensor("images", self.images)) == 0:
            raise ValueError("images: expected at least one row, got none.")
        whole("batch_size", self.batch_size)
        whole("seed", self.seed, 0)

    def __len__(self) -> int:
        """The number of batches in an epoch."""
        return -(-len(self.images) // self.batch_size)

    def size(self, step: int) -> int:
        """How many rows the batch of a step has, which is counted from 0."""
        return min(self.batch_size, len(self.images) - step * self.batch_size)

    def epoch(self, number: int, share: Share = Share()) -> Iterator[Tensor]:  # noqa: B008
        """Yield the batches of one epoch, each of shape (at most batch_size, ...).

        Arguments:
            number: Of the epoch, which the order depends on.
            share: Where several processes share each batch: which rows of it to yield. The other
                rows are not read; `transform` gets a `vae_lib.noise.Rows` as its generator.
        """
        device = self.images.device
        draws = seeded(self.seed, number, stream="transform", device=device)
        order = None
        if self.shuffle:
            # Drawn on the CPU, so that the order is the same on every device.
            generator = seeded(self.seed, number, stream="order")
            order = torch.randperm(len(self.images), generator=generator, device="cpu")
            order = order.to(device)
        for step in range(len(self)):
            total, start = self.size(step), step * self.batch_size
            own = share.rows(total)
            rows = slice(start + own.start, start + own.stop)
            batch = self.images[rows] if order is None else self.images[order[rows]]
            noise = draws if share.of == 1 else Rows(draws, total, own)
            yield batch if self.transform is None else self.transform(batch, noise)
