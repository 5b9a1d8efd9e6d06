"""What a codec asks of a model: masses of latents and of pixels, in integers.

A codec needs the one who packs and the one who unpacks to compute the same probabilities, to the
last digit. `IntegerModel` computes with integers alone, by the steps of `vae_lib.exact`, where it
is shown why they are exact. It says what it knows as a `Cumulative`.

A latent becomes the index of a cell of an even grid over [-8, 8): the networks are evaluated at the
cell's centre, and the mass of a cell is a difference of the distribution function. With bits-back
coding a fine grid costs hardly more than a coarse one, since what it adds to the cost of a latent
comes back when the latent is chosen; only the first image of a file has to pay for it. A latent
beyond the ends is in the first or last cell, and an activation beyond 32 counts as 32. That costs
bits, if it happens, and never an image.
"""

import hashlib
import json
import math
from functools import cache

import numpy as np

from vae_lib.exact import (
    BITS,
    ONE,
    RANGE,
    UNIT,
    Chain,
    Cumulative,
    Table,
    clipped,
    exactly,
    exp,
    logistic,
    normal,
    shares,
)

FORMAT = "vae_lib integers 1"
LIMIT = 8  # latents lie between minus and plus this
AT_ONCE = 2**19  # numbers: what a step holds should stay in the processor's cache
HELD = {"latent": (-6, 6), "level": (-8, 3)}  # the logarithms of scales that a tanh holds
SCALES = 5  # a table has 2^5 scales for each unit of their logarithm


class IntegerModel:
    """A VAE in integers; made by `integer_model`, or by `from_tensors` of what was stored.

    Images are integers from 0 to levels - 1, shape (n, pixels), and latents are cells, integers
    from 0 to cells - 1, shape (n, latents).

    Attributes:
        shape: Channels, height and width of an image.
        levels: 2 or more.
        pixels, latents: How many there are.
        cells: How many values a latent has.
        prior_blocks: Slices of latents, in the order in which they are decoded. Those of a block do
            not depend on one another given those before.
        pixel_blocks: The same for pixels: arrays of indices.

    Raises:
        ValueError: A description of another format, or weights so large that a product might not
            be exact.
    """

    def __init__(self, tensors: dict[str, np.ndarray], description: dict):
        if description.get("format") != FORMAT:
            raise ValueError(f'description: expected one of "{FORMAT}". Make the model anew.')
        self._tensors, self._description = tensors, description
        self.shape = tuple(description["shape"])
        self.levels, self.latents = description["levels"], description["latents"]
        self.pixels, self.cells = math.prod(self.shape), 2 ** description["grid"]
        self._encoder = Chain(description["encoder"], tensors)
        self._encoder.bound(self.levels)
        self._decoder = Chain(description["decoder"], tensors)
        features = self._decoder.bound(self.cells)
        self._prior = PRIORS[description["prior"]["kind"]](self, tensors, description["prior"])
        self._head = HEADS[description["head"]["kind"]](
            self, tensors, description["head"], features
        )
        self.prior_blocks, self.pixel_blocks = self._prior.blocks, self._head.blocks
        self._some = {
            chain: max(1, AT_ONCE // chain.widest(np.zeros((1, length))))
            for chain, length in ((self._encoder, self.pixels), (self._decoder, self.latents))
        }

    @classmethod
    def from_tensors(cls, tensors: dict[str, np.ndarray], description: dict) -> "IntegerModel":
        """Make the model of what `tensors` returned."""
        return cls(tensors, description)

    def tensors(self) -> tuple[dict[str, np.ndarray], dict]:
        """Return what is to be stored: arrays of integers, and a description of JSON types."""
        return self._tensors, self._description

    @property
    def sha256(self) -> str:
        """A digest, in hexadecimal digits, of the arrays and the description."""
        found = hashlib.sha256(json.dumps(self._description, sort_keys=True).encode())
        for name, array in sorted(self._tensors.items()):
            found.update(f"{name} {array.dtype.name} {array.shape}".encode())
            found.update(np.ascontiguousarray(array, array.dtype.newbyteorder("<")).tobytes())
        return found.hexdigest()

    def posterior(self, images: np.ndarray) -> Cumulative:
        """Return q(z given x) of images, of shape (n, latents).

        Raises:
            ValueError: Images that are no rows of levels.
        """
        factor, offset = self._description["centre"]
        numbers = self._through(self._encoder, factor * self._checked(images) - offset)
        mean, log_std = np.split(clipped(numbers)[..., None], 2, -2)
        return self.masses(mean, scaled("plain", log_std))

    def prior(self, cells: np.ndarray, block: slice) -> Cumulative:
        """Return p(z_j given z_<j) for a block of latents, of shape (n, length of the block).

        Of each, the cells of the latents before it are looked at, and no others. To encode, where
        all are known, ask for slice(0, latents) at once: the numbers are the same.
        """
        return self._prior(np.asarray(cells, dtype=np.int64), block)

    def likelihood(self, cells: np.ndarray) -> np.ndarray:
        """Return what the decoder's network says of latents, for `pixel`: an array of n rows.

        It holds a few numbers for each pixel of each image, in 64 bits: for `residual_vae` as it
        is 200 kB an image.
        """
        return self._through(self._decoder, self.centres(cells))

    def pixel(self, state: np.ndarray, images: np.ndarray, block: np.ndarray) -> Cumulative:
        """Return p(x_i given z, x_<i) for a block of pixels, of shape (n, length of the block).

        Of each, pixels of earlier blocks are looked at, and no others. To encode, ask for
        np.arange(pixels) at once: the numbers are the same.
        """
        return self._head(state, images, block)

    def centres(self, cells: np.ndarray) -> np.ndarray:
        """Return the centres of cells, in halves of a cell: odd numbers, 0 in the middle."""
        return 2.0 * np.asarray(cells) + (1 - self.cells)

    def masses(self, mean, inverse, weights=None) -> Cumulative:
        """Return the masses of cells under mixtures of normals; see `Cumulative`."""
        step = 2 * LIMIT * ONE // self.cells
        return Cumulative(normal(), mean, inverse, self.cells, -LIMIT * ONE, step, weights)

    def _through(self, chain: Chain, x: np.ndarray) -> np.ndarray:
        """Let rows through a chain, some at a time: which are together makes no difference."""
        some = self._some[chain]
        starts = range(0, max(1, len(x)), some)
        return np.concatenate([chain(x[start : start + some]) for start in starts])

    def _checked(self, images: np.ndarray) -> np.ndarray:
        """Return images in 64-bit floats, refusing what are none."""
        images = np.asarray(images)
        if images.shape[1:] != (self.pixels,) or images.dtype.kind not in "iu":
            raise ValueError(
                f"images: expected integers of shape (n, {self.pixels}), got {images.dtype} "
                f"{images.shape}. Flatten pictures to rows of levels."
            )
        if images.size and not 0 <= images.min() <= images.max() < self.levels:
            raise ValueError(
                f"images: expected levels from 0 to {self.levels - 1}, got {images.min()} to "
                f"{images.max()}. Reduce them to as many levels."
            )
        return images.astype(np.float64)


def scaled(name: str, raw: np.ndarray, levels: int = 2) -> np.ndarray:
    """Return one over the scale, in units of 2^-20, for what a network says of its logarithm.

    Arguments:
        name: How that is read; see `inverses`.
        raw: int64, in units of 2^-12.
        levels: See `inverses`.
    """
    shift = BITS - SCALES
    index = (raw + (1 << shift - 1) >> shift) + (RANGE << SCALES)
    return inverses(name, levels).take(index, mode="clip")


@cache
def inverses(name: str, levels: int = 2) -> np.ndarray:
    """Return a table of one over the scale, for numbers from -32 to 32 in steps of 2^-5.

    Arguments:
        name: "plain": the number is the scale's logarithm, and counts as -10 or 10 beyond these.
            "latent": a tanh holds it between -6 and 6, as `AutoregressiveMixture` does. "level": a
            tanh holds it between -8 and 3, as the decoder of `conv_vae` does.
        levels: The scale is multiplied by one less, from greys of 0 to 1 to levels.
    """
    count, bits = RANGE << SCALES, 40
    found = (exp(-_log_scale(name, i), 2**bits, bits) for i in range(-count, count + 1))
    return np.array([inverse * UNIT // (levels - 1) + (1 << bits - 1) >> bits for inverse in found])


def _log_scale(name: str, raw: int) -> int:
    """Return the logarithm of a scale times 2^40, of a number in units of 2^-5."""
    one = 1 << 40
    if name == "plain":
        return min(10 * one, max(-10 * one, raw * one >> SCALES))
    low, high = HELD[name]
    decay = exp(-4 * abs(raw), (high - low) << SCALES, 40)  # exp(-2 x) of the tanh's argument x
    tanh = (one - decay) * one // (one + decay) * (1 if raw > 0 else -1)
    return ((low + high) * one + (high - low) * tanh) // 2


# Priors: each says its blocks, and is called with cells and a block.


class _Normal:
    """N(0, I): all latents at once."""

    def __init__(self, model: IntegerModel, tensors: dict, told: dict):
        self.model, self.blocks = model, [slice(0, model.latents)]

    def __call__(self, cells: np.ndarray, block: slice) -> Cumulative:
        mean = np.zeros((*cells[:, block].shape, 1), dtype=np.int64)
        return self.model.masses(mean, np.array([UNIT]))


class _Mixture:
    """A mixture of K diagonal normals: what is known of a vector says which of them it is from."""

    def __init__(self, model: IntegerModel, tensors: dict, told: dict):
        self.model, self.blocks = model, [slice(j, j + 1) for j in range(model.latents)]
        self.logits, self.means = tensors["prior.logits"], clipped(tensors["prior.means"])
        self.log_stds = np.clip(tensors["prior.log_stds"], -10 * ONE, 10 * ONE)
        self.inverses = scaled("plain", self.log_stds)

    def __call__(self, cells: np.ndarray, block: slice) -> Cumulative:
        z = self.model.centres(cells[:, : block.stop]).astype(np.int64)
        z = z[..., None] * (LIMIT * ONE // self.model.cells)
        means, inverses = self.means[: block.stop], self.inverses[: block.stop]
        u = np.clip((z - means) * inverses >> BITS, -(2**26), 2**26)
        each = -(u * u >> 2 * 20 + 1 - BITS) - self.log_stds[: block.stop]
        before = self.logits + np.cumsum(each, 1) - each
        weights = shares(before[:, block])
        mean = np.broadcast_to(means[block], weights.shape)
        return self.model.masses(mean, inverses[block], weights)


class _Autoregressive:
    """Each latent a mixture given those before it, by a network with masked weights.

    The hidden units are sorted by their places, so for the first latents the first units suffice.
    """

    def __init__(self, model: IntegerModel, tensors: dict, told: dict):
        self.model, self.blocks = model, [slice(j, j + 1) for j in range(model.latents)]
        first, *layers, last = (Chain([step], tensors).steps[0] for step in told["affine"])
        self.first, self.layers, self.last = first, layers, last
        self.silu, self.places = Table("silu"), tensors["prior.places"]
        self.components = len(last.rows) // (3 * model.latents)
        largest = first.bound(model.cells)
        for layer in layers:
            largest = exactly(largest + layer.bound(self.silu.largest))
        last.bound(self.silu.largest)

    def __call__(self, cells: np.ndarray, block: slice) -> Cumulative:
        seen = block.stop - 1
        units = slice(0, int(np.searchsorted(self.places, seen)))
        h = self.first(self.model.centres(cells[:, :seen]), units)
        for layer in self.layers:
            h = h + layer(self.silu(h), units)
        each = 3 * self.components
        numbers = self.last(self.silu(h), slice(block.start * each, block.stop * each))
        numbers = clipped(numbers).reshape(len(cells), block.stop - block.start, 3, self.components)
        logits, means, raw = (numbers[:, :, i] for i in range(3))
        return self.model.masses(means, scaled("latent", raw), shares(logits))


PRIORS = {"normal": _Normal, "mixture": _Mixture, "autoregressive": _Autoregressive}


# Heads: each says its blocks, and is called with the decoder's numbers, images and a block.


def coins(logits: np.ndarray) -> Cumulative:
    """Return the masses of zero and one: a logistic variable about the logit is below 0 or not."""
    return Cumulative(logistic(), clipped(logits)[..., None], np.array([UNIT]), 2, -ONE, ONE)


class _Coins:
    """Zeros and ones that depend on the latents alone."""

    def __init__(self, model: IntegerModel, tensors: dict, told: dict, features: int):
        self.blocks = [np.arange(model.pixels)]

    def __call__(self, state, images, block) -> Cumulative:
        return coins(state[:, block])


class _Levels:
    """Levels that depend on the latents alone, each the bin that a logistic variable falls in."""

    def __init__(self, model: IntegerModel, tensors: dict, told: dict, features: int):
        self.blocks, self.pixels, self.levels = (
            [np.arange(model.pixels)],
            model.pixels,
            model.levels,
        )
        self.middle, self.scale = told["middle"], told["scale"]

    def __call__(self, state, images, block) -> Cumulative:
        # In levels, the borders of level l lie at l - 1/2 and l + 1/2.
        location = (clipped(state[:, block]) + self.middle) * (self.levels - 1)
        raw = clipped(state[:, self.pixels + block])[..., None]
        inverse = scaled(self.scale, raw, self.levels)
        return Cumulative(
            logistic(), clipped(location)[..., None], inverse, self.levels, -ONE // 2, ONE
        )


class _Local:
    """Zeros and ones that also depend on pixels nearby, coded along slanted fronts.

    A pixel at (row, column) sees pixels to its left and pixels of the rows above, those up to r
    columns to the right. All of these have a smaller number column + (r + 1) row, so pixels that
    have this number in common can be coded at once.
    """

    def __init__(self, model: IntegerModel, tensors: dict, told: dict, features: int):
        width, reach = model.shape[-1], told["reach"]
        row, column = np.divmod(np.arange(model.pixels), width)
        front = (column + (reach + 1) * row) * (reach > 0)
        self.blocks = [np.flatnonzero(front == number) for number in np.unique(front)]
        steps = [(a, b) for a in range(-reach, 1) for b in range(-reach, reach + 1)]
        down, right = np.array(steps[: -reach - 1], dtype=np.int64).reshape(-1, 2).T
        rows, columns = row[:, None] + down, column[:, None] + right
        self.there = (rows >= 0) & (columns >= 0) & (columns < width)
        self.before = np.where(self.there, rows * width + columns, 0)
        self.seen = Chain([told["seen"]], tensors)
        self.layers = Chain(told["layers"], tensors)
        self.layers.bound(features + self.seen.bound(model.levels - 1))
        self.width = self.layers.widest(np.zeros((1, len(self.seen.steps[0].rows))))

    def __call__(self, state, images, block) -> Cumulative:
        some = max(1, AT_ONCE // (len(block) * self.width))
        starts = range(0, max(1, len(state)), some)
        parts = [slice(start, start + some) for start in starts]
        return self._said(
            np.concatenate([self._numbers(state[p], images[p], block) for p in parts])
        )

    def _numbers(self, state, images, block) -> np.ndarray:
        pixels = images.take(self.before[block], 1) * self.there[block].astype(np.float64)
        h = state.take(block, 1) + self.seen(self._shown(pixels))
        numbers = self.layers(h.reshape(-1, h.shape[-1]))
        return numbers.reshape(*h.shape[:-1], numbers.shape[-1])

    def _shown(self, pixels: np.ndarray) -> np.ndarray:
        """Return what is seen of the pixels nearby."""
        return pixels

    def _said(self, numbers: np.ndarray) -> Cumulative:
        """Return the masses that a pixel's numbers stand for."""
        return coins(numbers[..., 0])


class _LocalLevels(_Local):
    """Levels that also depend on pixels nearby: mixtures of logistics, on the same fronts."""

    def __init__(self, model: IntegerModel, tensors: dict, told: dict, features: int):
        super().__init__(model, tensors, told, features)
        self.levels = model.levels

    def _shown(self, pixels: np.ndarray) -> np.ndarray:
        return np.concatenate([pixels, (self.levels - 1) * (pixels > 0)], -1)

    def _said(self, numbers: np.ndarray) -> Cumulative:
        logits, means, raw = np.split(clipped(numbers), 3, -1)
        location = clipped(means * (self.levels - 1))
        inverse = scaled("level", raw, self.levels)
        edges = self.levels, -ONE // 2, ONE
        return Cumulative(logistic(), location, inverse, *edges, shares(logits))


HEADS = {"coins": _Coins, "levels": _Levels, "local": _Local, "local levels": _LocalLevels}
