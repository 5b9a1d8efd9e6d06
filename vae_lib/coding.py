"""Lossless compression with a VAE: images in, a smaller file out, the same images back.

Three layers. A *stack* keeps answers to yes-or-no questions, each with its chance, in about as
many bits as they carry (asymmetric numeral systems): `BigStack` to be read, `Stack` to be used.
*Symbols* are told by such questions: is it in the upper half? *Bits-back coding* makes a chain of
images out of them. To add an image, the encoder pops latents from the stack by q(z given x), which
shortens it, and pushes the image by p(x given z) and the latents by p(z). So an image costs

    -log2 p(x given z) - log2 p(z) + log2 q(z given x)

bits, whose mean is the negative ELBO (Frey and Hinton 1997; Townsend, Bird and Barber 2019). The
decoder does the same backwards, and gives back the bits that chose the latents.

The model must give both of them the same integers, on whatever machines they are:
`vae_lib.integers` makes such a model of a trained VAE.
"""

import hashlib
import struct
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from math import prod
from typing import Protocol

import numpy as np
import torch
from torch import Tensor

from vae_lib.arguments import tensor

CHANCES = 2**20  # a chance is a whole number of parts of this, at least one and not all
MOST_AT_ONCE = 512  # images of a batch, which is also of at most so many pixels:
MOST_PIXELS = 2**20
SPARE = 64  # bits that a batch leaves on the stack, so that what it popped was as good as random

# The file, little-endian: this, sizes of batches, note, words of the stack, sha256 of all that.
MAGIC = b"\x89VAE\r\n\x1a\n"  # as in PNG: a transfer as text would change it
VERSION = 1
HEADER = struct.Struct("<8sH16s3HHQIHI")
DIGEST = 16  # bytes of a sha256 that are kept
MOST_NUMBERS = 2**33  # of all pixels of a file


class Cumulative(Protocol):
    """How likely symbols are, an array of distributions: `vae_lib.exact.Cumulative`."""

    total: int  # the mass of all symbols, below 2^43

    def __call__(self, edges: np.ndarray) -> np.ndarray:
        """Return the mass of the symbols below some, each; it grows with every symbol."""


class Coder(Protocol):
    """What answers are pushed on: `BigStack` or `Stack`."""

    def push(self, answers: np.ndarray, chances: np.ndarray) -> None:
        """Put answers on top, the last one first."""

    def pop(self, chances: np.ndarray) -> np.ndarray:
        """Take as many answers from the top, the first one first."""


class BigStack:
    """A stack of answers in one big integer, to be read; its time grows with its length.

    Of the numbers below `CHANCES`, the upper `chance` ones stand for yes, the others for no. To
    push an answer is to write a last digit in base `CHANCES` that stands for it; the number itself
    chooses which of them, by its remainder, so that nothing is wasted: the range variant of Duda
    (2013).

    Arguments:
        number: What is on the stack.

    Example:
        >>> stack, chances = BigStack(), np.array([900_000, 900_000, 1_000])
        >>> stack.push(np.array([True, True, False]), chances)
        >>> stack.number, stack.pop(chances)
        (297152, array([ True,  True, False]))
    """

    def __init__(self, number: int = 0):
        self.number = number

    @property
    def bits(self) -> int:
        """How many bits are on the stack."""
        return self.number.bit_length()

    def push(self, answers: np.ndarray, chances: np.ndarray) -> None:
        """Put answers on top, the last one first.

        Arguments:
            answers: Yes or no, of any shape.
            chances: Of yes, from 1 to `CHANCES` - 1; whole numbers of the same shape.
        """
        both = zip(answers.ravel().tolist(), chances.ravel().tolist(), strict=True)
        for yes, chance in reversed(list(both)):
            start, width = (CHANCES - chance, chance) if yes else (0, CHANCES - chance)
            self.number = self.number // width * CHANCES + start + self.number % width

    def pop(self, chances: np.ndarray) -> np.ndarray:
        """Take answers from the top, the first one first; an empty stack says no for ever.

        Arguments:
            chances: Those that the answers were pushed with.
        """
        answers = []
        for chance in chances.ravel().tolist():
            rest = self.number % CHANCES
            answers.append(rest >= CHANCES - chance)
            start, width = (CHANCES - chance, chance) if answers[-1] else (0, CHANCES - chance)
            self.number = self.number // CHANCES * width + rest - start
        return np.array(answers, bool).reshape(chances.shape)


class Stack:
    """A stack of answers in an array of words, by the package `constriction`: fast.

    Its number has 64 bits at most, for what is below is moved out in words of 32. An answer has
    2^24 / `CHANCES` times its chance of 2^24, exactly: `constriction` is told to find the nearest
    frequencies, and these are ones.

    Arguments:
        words: What is on the stack, the top last; uint32, and the last one not zero.

    Raises:
        ValueError: `constriction` is not installed.

    Example:
        >>> stack, chances = Stack(), np.array([900_000, 900_000, 1_000])
        >>> stack.push(np.array([True, True, False]), chances)
        >>> stack.bits, stack.pop(chances)
        (22, array([ True,  True, False]))
    """

    def __init__(self, words: np.ndarray | None = None):
        stream = _constriction().stream
        start = np.zeros(0, np.uint32) if words is None else np.ascontiguousarray(words, np.uint32)
        self._coder = stream.stack.AnsCoder(start)
        self._answer = stream.model.Bernoulli(perfect=True)

    @property
    def bits(self) -> int:
        """How many bits are on the stack."""
        return self._coder.num_valid_bits()

    @property
    def words(self) -> np.ndarray:
        """What is on the stack, as it was given to the constructor."""
        return self._coder.get_compressed()

    def push(self, answers: np.ndarray, chances: np.ndarray) -> None:
        """Put answers on top, as `BigStack.push` does."""
        numbers = answers.ravel().astype(np.int32)
        self._coder.encode_reverse(numbers, self._answer, chances.ravel() / CHANCES)

    def pop(self, chances: np.ndarray) -> np.ndarray:
        """Take answers from the top, as `BigStack.pop` does."""
        numbers = self._coder.decode(self._answer, chances.ravel() / CHANCES)
        return numbers.astype(bool).reshape(chances.shape)


def _constriction():
    """Import what is only needed here."""
    try:
        import constriction
    except ImportError as error:
        raise ValueError(
            "coding: expected the package constriction, which is not installed. Install it with "
            "pip install constriction~=0.5.0, which has builds for Linux on x86-64, macOS and "
            "Windows."
        ) from error
    return constriction


class _Tally:
    """What is pushed here is not kept: only the bits that it takes are, a number for each row."""

    def __init__(self, rows: int):
        self.bits = np.zeros(rows)

    def push(self, answers: np.ndarray, chances: np.ndarray) -> None:
        taken = np.where(answers, chances, CHANCES - chances) / CHANCES
        self.bits -= np.log2(taken).sum(axis=1)


# ----------------------------------------------------------------------------------- symbols


def push(
    stack: Coder,
    cumulative: Cumulative,
    symbols: np.ndarray,
    count: int,
    blocks: Sequence = (slice(None),),
) -> None:
    """Push symbols, each by its distribution.

    Arguments:
        stack: Where.
        cumulative: Their distributions.
        symbols: From 0 to `count` - 1, an array of two dimensions.
        count: How many symbols there are, a power of two.
        blocks: Columns, in the order in which they will be popped, a block at a time.

    Example:
        >>> from vae_lib.exact import ONE, Cumulative, logistic
        >>> one = np.array([2**20])
        >>> kind = Cumulative(logistic(), np.zeros((1, 3, 1), int), one, 4, -2 * ONE, ONE)
        >>> stack = BigStack()
        >>> push(stack, kind, np.array([[3, 0, 2]]), 4)
        >>> pop(stack, kind, (1, 3), 4)
        array([[3, 0, 2]])
    """
    asked = []

    def answer(middle, chances):
        asked.append((symbols >= middle, chances))
        return asked[-1][0]

    _ask(answer, cumulative, symbols.shape, count)
    for block in reversed(blocks):
        for answers, chances in reversed(asked):
            stack.push(answers[:, block], chances[:, block])


def pop(stack: Coder, cumulative: Cumulative, shape: tuple[int, int], count: int) -> np.ndarray:
    """Pop an array of symbols; see `push`."""
    return _ask(lambda _, chances: stack.pop(chances), cumulative, shape, count)


def _ask(answer: Callable, cumulative: Cumulative, shape: tuple[int, int], count: int):
    """Find symbols by halving: is it `middle` or above? The answer has a chance by the masses."""
    low, below = np.zeros(shape, np.int64), np.zeros(shape, np.int64)
    above, width = np.full(shape, cumulative.total), count
    while width > 1:
        width //= 2
        middle = low + width
        between = cumulative(middle)
        chances = (above - between) * CHANCES // (above - below)
        yes = answer(middle, chances.clip(1, CHANCES - 1))
        low = np.where(yes, middle, low)
        below, above = np.where(yes, between, below), np.where(yes, above, between)
    return low


# ---------------------------------------------------------------------------------- the chain


def _encoded(stack: Stack, images: np.ndarray, model) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """Put images on a stack, as many at a time as it can pay the latents of, and yield them.

    The first comes alone. What it adds to the stack pays for more of them, and so on.
    """
    start, size = 0, 1
    while start < len(images):
        batch, before = images[start : start + size].astype(np.int64), stack.bits
        posterior = model.posterior(batch)
        cells = pop(stack, posterior, (len(batch), model.latents), model.cells)
        price = max(1, (before - stack.bits) // len(batch))
        if stack.bits < SPARE and size > 1:
            push(stack, posterior, cells, model.cells)  # as if nothing had been popped
            size //= 2
            continue
        # Images first, so that the decoder finds their latents first.
        _push_pixels(stack, batch, cells, model)
        _push_latents(stack, cells, model)
        yield batch, cells
        start += len(batch)
        # A tenth is left for images that cost more than these.
        size = max(1, min((stack.bits - SPARE) * 9 // (10 * price), _most(model.pixels)))


def _most(pixels: int) -> int:
    """Return how many images a batch may have."""
    return max(1, min(MOST_AT_ONCE, MOST_PIXELS // pixels))


def _push_pixels(stack: Coder, images: np.ndarray, cells: np.ndarray, model) -> None:
    """Push images by the likelihood."""
    pixels = model.pixel(model.likelihood(cells), images, np.arange(model.pixels))
    push(stack, pixels, images, model.levels, model.pixel_blocks)


def _push_latents(stack: Coder, cells: np.ndarray, model) -> None:
    """Push latents by the prior."""
    prior = model.prior(cells, slice(0, model.latents))
    push(stack, prior, cells, model.cells, model.prior_blocks)


def _decoded(stack: Stack, size: int, model) -> np.ndarray:
    """Take a batch of images from a stack, and give back the bits that chose its latents."""
    cells = np.zeros((size, model.latents), np.int64)
    for block in model.prior_blocks:
        shape = cells[:, block].shape
        cells[:, block] = pop(stack, model.prior(cells, block), shape, model.cells)
    images, state = np.zeros((size, model.pixels), np.int64), model.likelihood(cells)
    for block in model.pixel_blocks:
        shape = images[:, block].shape
        images[:, block] = pop(stack, model.pixel(state, images, block), shape, model.levels)
    push(stack, model.posterior(images), cells, model.cells)
    return images


def _initial(words: int) -> np.ndarray:
    """Return what lies on the stack at first, and again when all images have been taken off.

    Words that look random, of which the top ones are the same however many there are.
    """
    drawn = hashlib.shake_256(b"vae_lib initial bits").digest(4 * words)
    found = np.frombuffer(drawn, "<u4").astype(np.uint32)[::-1].copy()
    found[-1:] |= 2**31  # the top one is not zero
    return found


def _begun(images: np.ndarray, model) -> np.ndarray:
    """Return initial words that pay for the latents of the first image."""
    plenty = Stack(_initial(3 * model.latents))
    before = plenty.bits
    posterior = model.posterior(images[:1].astype(np.int64))
    pop(plenty, posterior, (1, model.latents), model.cells)
    return _initial(-(-(before - plenty.bits + 2 * SPARE) // 32))


# ----------------------------------------------------------------------------------- the file


@dataclass(frozen=True)
class Archive:
    """What a compressed file says, before any image is decoded.

    Arguments:
        model: The first half of the sha256 of the model that it was made with, in hexadecimal.
        shape: Of an image: channels, height, width.
        levels: Of a pixel: 2 or 256.
        count: How many images there are.
        sizes: How many are in each batch, in the order of the images.
        initial: How many words lay on the stack before the first.
        note: Bytes that were given to `compress`.
        words: The stack.
    """

    model: str
    shape: tuple[int, int, int]
    levels: int
    count: int
    sizes: tuple[int, ...]
    initial: int
    note: bytes
    words: np.ndarray

    def pack(self) -> bytes:
        """Return the bytes of the file."""
        numbers = [*self.shape, self.levels, self.count, len(self.sizes), self.initial]
        header = HEADER.pack(MAGIC, VERSION, bytes.fromhex(self.model), *numbers, len(self.note))
        sizes = np.array(self.sizes, "<u2").tobytes()
        content = header + sizes + self.note + self.words.astype("<u4").tobytes()
        return content + hashlib.sha256(content).digest()[:DIGEST]

    @classmethod
    def unpack(cls, data: bytes) -> "Archive":
        """Read a file, and check all that can be checked without the model.

        Raises:
            ValueError: It is no such file, of another version, damaged, or claims what cannot be.
        """
        if len(data) < HEADER.size + DIGEST or not data.startswith(MAGIC):
            raise ValueError(
                f"data: expected a file that vae compress wrote, got {len(data):,} bytes that are "
                "none or not all of it. Give the whole file."
            )
        found = HEADER.unpack_from(data)
        if hashlib.sha256(data[:-DIGEST]).digest()[:DIGEST] != data[-DIGEST:]:
            raise ValueError(
                "data: expected a file as it was written, but its checksum does not fit: it was "
                "damaged or cut short. Get it again."
            )
        if found[1] != VERSION:
            raise ValueError(
                f"data: expected version {VERSION} of the format, got {found[1]}. Use the version "
                "of vae_lib that wrote it."
            )
        model, shape, (levels, count, batches, initial, note) = found[2], found[3:6], found[6:]
        rest = len(data) - HEADER.size - DIGEST - 2 * batches - note
        if rest < 0 or rest % 4:
            raise _impossible(f"{batches:,} batches and a note of {note:,} bytes in {len(data):,}")
        sizes = np.frombuffer(data, "<u2", batches, HEADER.size)
        pixels = prod(shape)
        if not 0 < count * pixels <= MOST_NUMBERS:
            raise _impossible(f"{count:,} images of {pixels:,} numbers each")
        if count != sizes.sum() or not (sizes.clip(1, _most(pixels)) == sizes).all():
            raise _impossible(f"{count:,} images in {batches:,} batches of odd sizes")
        start = HEADER.size + 2 * batches
        words = np.frombuffer(data, "<u4", rest // 4, start + note).astype(np.uint32)
        if not len(words) or not words[-1]:
            raise _impossible("a stack without a top")
        sizes, note = tuple(sizes.tolist()), bytes(data[start : start + note])
        return cls(model.hex(), shape, levels, count, sizes, initial, note, words)

    def check(self, model) -> None:
        """Refuse another model than that which the images were compressed with."""
        if self.model != model.sha256[: 2 * DIGEST]:
            raise ValueError(
                f"model: expected the one with sha256 {self.model}..., with which the file was "
                f"made, got {model.sha256[: 2 * DIGEST]}... Give that model."
            )
        if (self.shape, self.levels) != (tuple(model.shape), model.levels):
            raise _impossible(f"images of {self.shape} with {self.levels} levels")


def _impossible(what: str) -> ValueError:
    """Return the error about a file whose checksum fits and which claims what cannot be."""
    return ValueError(
        f"data: expected what vae compress writes, got a claim of {what}. It comes from elsewhere: "
        "do not trust it."
    )


def compress(images: Tensor, model, *, note: bytes = b"") -> bytes:
    """Compress images without loss.

    Arguments:
        images: Whole numbers from 0 to `model.levels` - 1, shape (n, pixels), at least one.
        model: A `vae_lib.integers.IntegerModel`.
        note: Bytes to keep beside them, not compressed.

    Returns:
        The bytes of a file, which are a header of 52, two for each batch, the note, the stack with
        the initial bits at its bottom, and a checksum of 16.

    Raises:
        ValueError: Images that the model is not of; `constriction` is not installed.

    Example:
        >>> from vae_lib.integers import integer_model
        >>> from vae_lib.model import dense_vae
        >>> model = integer_model(dense_vae(pixels=16, hidden=8, latents=2))
        >>> images = torch.eye(16, dtype=torch.uint8)
        >>> data = compress(images, model)
        >>> torch.equal(decompress(data, model), images)
        True
    """
    numbers = _checked(images, model)
    initial = _begun(numbers, model)
    stack = Stack(initial)
    sizes = tuple(len(batch) for batch, _ in _encoded(stack, numbers, model))
    known = (model.sha256[: 2 * DIGEST], tuple(model.shape), model.levels, len(numbers), sizes)
    return Archive(*known, len(initial), note, stack.words).pack()


def decompress(data: bytes, model) -> Tensor:
    """Return the images of a compressed file, in their order.

    Arguments:
        data: What `compress` returned.
        model: The one that it was given.

    Returns:
        uint8, shape (n, pixels).

    Raises:
        ValueError: Another file, a damaged one, another model, or a processor on which the model
            gives other numbers; there is no image then.
    """
    archive = Archive.unpack(data)
    archive.check(model)
    stack, batches = Stack(archive.words), []
    for size in reversed(archive.sizes):
        batches.append(_decoded(stack, size, model).astype(np.uint8))
    # Whatever goes wrong on the way, the stack does not end as the encoder's began.
    if not np.array_equal(stack.words, _initial(archive.initial)):
        raise ValueError(
            "data: expected to be left with the bits that the encoder began with, got others: the "
            "file was not made by vae compress, or the model gives other numbers here than there. "
            "Nothing of it can be trusted."
        )
    return torch.from_numpy(np.concatenate(batches[::-1]))


def _checked(images: Tensor, model) -> np.ndarray:
    """Return images as an array of integers, if they are such as the model is of."""
    found = tensor("images", images)
    if found.is_floating_point() or found.is_complex():
        raise ValueError(
            f"images: expected whole numbers from 0 to {model.levels - 1}, got {found.dtype}."
        )
    if found.ndim != 2 or found.shape[1] != model.pixels or not len(found):
        raise ValueError(
            f"images: expected shape (n, {model.pixels}), at least one, got {tuple(found.shape)}."
        )
    low, high = (int(value) for value in found.aminmax())
    if low < 0 or high >= model.levels:
        raise ValueError(
            f"images: expected whole numbers from 0 to {model.levels - 1}, got {low} to {high}."
        )
    return found.cpu().numpy()


@dataclass(frozen=True, eq=False)
class Lengths:
    """What images cost in a chain, in bits, an array of shape (n,) each.

    Arguments:
        pixels: -log2 p(x given z), with the latents that the chain popped.
        latents: -log2 p(z).
        back: -log2 q(z given x): the bits that come back.
    """

    pixels: np.ndarray
    latents: np.ndarray
    back: np.ndarray

    @property
    def net(self) -> np.ndarray:
        """By how much each image makes the stack longer."""
        return self.pixels + self.latents - self.back


def code_lengths(images: Tensor, model) -> Lengths:
    """Return what each image costs in the chain that `compress` makes of them.

    Arguments:
        images: As `compress` takes them.
        model: As well.

    Raises:
        ValueError: As `compress`.
    """
    numbers, parts = _checked(images, model), []
    for batch, cells in _encoded(Stack(_begun(numbers, model)), numbers, model):
        pixels, latents, back = (_Tally(len(batch)) for _ in range(3))
        _push_pixels(pixels, batch, cells, model)
        _push_latents(latents, cells, model)
        push(back, model.posterior(batch), cells, model.cells)
        parts.append((pixels.bits, latents.bits, back.bits))
    return Lengths(*(np.concatenate(part) for part in zip(*parts, strict=True)))
