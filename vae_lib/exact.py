r"""Networks in integers: the same numbers on every processor, thread count and batch.

An activation is an integer :math:`a` that stands for :math:`a / 2^{12}`, and a weight an integer of
a few bits, with a power of two for each layer. Both are kept in 64-bit floats, because processors
multiply matrices of these fast.

**Why that is exact.** A 64-bit float holds every integer up to :math:`2^{53}` in size, and where
the true value of a sum or a product is such an integer, the processor returns it: IEEE 754 leaves
no choice. Take one number of a product of matrices, :math:`\sum_i a_i w_i + b`. Every term is an
integer, and so is every sum of some of the terms, in whatever order they are added, on however many
threads, with multiplication and addition fused or not. None is larger than :math:`\sum_i |a_i|
|w_i| + |b|`. If that is below :math:`2^{53}`, nothing is ever rounded, and every order gives the
one true value. (This takes it that a library for matrices adds up those products, as they do.
Strassen's method would form other sums.) A factor of a power of two changes the exponent of a float
alone, so weights may be stored divided by the :math:`2^s` that the result is to be divided by. The
floor that follows is exact too.

A nonlinearity is a table of integers. It clips its argument, so what leaves it is bounded, whatever
came in. Hence there is a bound for each step, from the largest input, the sums of the sizes of the
weights and the largest entry of a table, and `Chain.bound` computes it without any image. It
refuses a network that might reach :math:`2^{53}` anywhere.

What follows the network, `Cumulative`, computes in 64-bit integers, and checks that they suffice.

No step takes a function of a mathematical library, whose last digit differs between processors.
The tables are made of Python's integers, which have no last digit, and of the exponential of its
`decimal`, which promises to be rounded correctly. A convolution is a product of matrices too, since
a library's own may go by way of fractions.
"""

import math
from collections.abc import Sequence
from decimal import Context, Decimal, localcontext
from functools import cache

import numpy as np

BITS = 12  # of the fraction of an activation
ONE = 2**BITS
RANGE = 32  # a nonlinearity's argument is clipped to plus and minus this
TOTAL_BITS = 30  # of a probability
TOTAL = 2**TOTAL_BITS
EXACT = 2**53
MEANS = 2**24  # those of distributions are clipped to plus and minus this, in units of 2^-12

GUARD = 128  # bits of a fraction while a table is made
STEPS = 8  # a distribution function has 2^8 entries for each unit of its argument
FINE = 12  # and between two entries 2^12 places on a straight line
UNIT = 2 ** (STEPS + FINE)  # of an argument of such a function, and of one over a scale
DECIMAL = Context(prec=60)


def exp(numerator: int, denominator: int = 1, bits: int = GUARD) -> int:
    """Return the exponential of a fraction, times 2^bits and rounded down.

    Example:
        >>> exp(1, 1, 8) / 2**8
        2.71484375
    """
    with localcontext(DECIMAL):  # whatever the reader's own context is
        return int((Decimal(numerator) / denominator).exp() * 2**bits)


def powers(factor: int, count: int) -> list[int]:
    """List the powers 0 to count - 1 of factor / 2^128, times 2^128; each is rounded down."""
    found = [1 << GUARD]
    while len(found) < count:
        found.append(found[-1] * factor >> GUARD)
    return found


def sigmoids(count: int, bits: int) -> list[int]:
    """List 1 / (1 + exp(-i / 2^bits)) times 2^128 for i from 0 to count - 1."""
    one = 1 << GUARD
    falling = powers(exp(-1, 2**bits), count)
    return [(one << GUARD) // (one + decay) for decay in falling]


def _rounded(numerator: int, bits: int) -> int:
    """Divide by 2^bits and round."""
    return (numerator + (1 << bits - 1)) >> bits


@cache
def nonlinearity(name: str) -> np.ndarray:
    """Return a table of integers for arguments from -32 to 32 in steps of 2^-12, its end included.

    Arguments:
        name: "silu", "tanh", "sigmoid" or "relu".

    Example:
        >>> nonlinearity("tanh")[[0, 32 * 4096, 33 * 4096]].tolist(), 0.76159 * 4096
        ([-4096.0, 0.0, 3119.0], 3119.47264)
    """
    argument = np.arange(RANGE * ONE + 1)
    if name == "relu":
        return _whole(0 * argument, argument)
    if name == "tanh":  # 2 sigmoid(2 x) - 1
        half = sigmoids(2 * len(argument), BITS)[::2]
        upper = np.array([_rounded(s, GUARD - BITS - 1) for s in half]) - ONE
        return _whole(-upper, upper)
    half = sigmoids(len(argument), BITS)
    if name == "sigmoid":
        upper = np.array([_rounded(s, GUARD - BITS) for s in half])
        return _whole(ONE - upper, upper)
    upper = np.array([_rounded(i * s, GUARD) for i, s in enumerate(half)])
    return _whole(upper - argument, upper)


def _whole(lower: np.ndarray, upper: np.ndarray) -> np.ndarray:
    """Join the values at 0, -1, -2 ... and at 0, 1, 2 ... to one table."""
    return np.concatenate([lower[:0:-1], upper]).astype(np.float64)


@cache
def logistic() -> np.ndarray:
    """Return the logistic's distribution function times 2^30, for arguments from -24 to 24."""
    upper = sigmoids(24 * 2**STEPS + 1, STEPS)
    upper = np.array([_rounded(s, GUARD - TOTAL_BITS) for s in upper])
    return np.concatenate([TOTAL - upper[:0:-1], upper])


@cache
def normal() -> np.ndarray:
    """Return the standard normal's distribution function times 2^30, from -8 to 8.

    It is the integral of the density by Simpson's rule, whose error here is below 1e-12.
    """
    half = 8 * 2**STEPS
    # exp(-x^2 / 2) at every half step: the quotient of neighbours falls by a constant factor.
    quotients = powers(exp(-1, 2 ** (2 * STEPS + 3)), 4 * half + 1)[1::2]
    density = [1 << GUARD]
    for quotient in quotients:
        density.append(density[-1] * quotient >> GUARD)
    area = [0]
    for i in range(0, 2 * half, 2):
        area.append(area[-1] + density[i] + 4 * density[i + 1] + density[i + 2])
    upper = np.array([TOTAL // 2 + a * (TOTAL // 2) // area[-1] for a in area])
    return np.concatenate([TOTAL - upper[:0:-1], upper])


@cache
def decays() -> np.ndarray:
    """Return exp(-x) times 2^30 for x from -24 to 24; below zero it is held at one."""
    upper = powers(exp(-1, 2**STEPS), 24 * 2**STEPS + 1)
    upper = np.array([_rounded(e, GUARD - TOTAL_BITS) for e in upper])
    return np.concatenate([np.full(len(upper) - 1, TOTAL), upper])


def clipped(numbers: np.ndarray) -> np.ndarray:
    """Return integers of any type as int64, held between -2^24 and 2^24.

    Example:
        >>> clipped(np.array([-1e15, 3.0])).tolist()
        [-16777216, 3]
    """
    return np.clip(numbers, -MEANS, MEANS).astype(np.int64)


def between(table: np.ndarray, u: np.ndarray) -> np.ndarray:
    """Read a table at integers u, which stand for u / 2^20, along straight lines.

    Arguments:
        table: Of `logistic`, `normal` or `decays`.
        u: int64, of any shape; beyond the ends of the table its ends count.

    Returns:
        int64, of the shape of u. Where the table does not fall, neither does this.

    Example:
        >>> (between(logistic(), np.array([-(10**9), 0, 2**20])) / TOTAL).tolist()
        [0.0, 0.5, 0.73105...]
    """
    last = len(table) - 1
    place = np.clip(u + (last // 2 << FINE), 0, last << FINE)
    index, rest = place >> FINE, place & ((1 << FINE) - 1)
    low = table.take(index)
    return low + ((table.take(index + 1, mode="clip") - low) * rest >> FINE)


def shares(logits: np.ndarray) -> np.ndarray:
    """Return a softmax over the last axis, as integers that sum to 2^24.

    Arguments:
        logits: int64, in units of 2^-12.

    Example:
        >>> shares(np.array([0, 0, 4096])) / 2**24
        array([0.2119..., 0.2119..., 0.5761...])
    """
    best = logits.argmax(-1)[..., None]
    behind = np.take_along_axis(logits, best, -1) - logits
    each = between(decays(), np.minimum(behind, 24 << BITS) << STEPS + FINE - BITS)
    parts = (each << 24) // each.sum(-1, keepdims=True)
    rest = (1 << 24) - parts.sum(-1, keepdims=True)
    np.put_along_axis(parts, best, np.take_along_axis(parts, best, -1) + rest, -1)
    return parts


def exactly(largest: int) -> int:
    """Return how large a number may be, if it is exact at that size.

    Raises:
        ValueError: It is not below 2^53.
    """
    if largest >= EXACT:
        raise ValueError(
            f"model: expected integers below 2^53, got a layer whose numbers may reach "
            f"2^{largest.bit_length()}, which would not be exact. Train with smaller weights."
        )
    return largest


class Affine:
    """A product with integer weights, plus a bias, over 2^shift and rounded down.

    Arguments:
        weight: Integers, shape (outputs, inputs).
        bias: Integers, shape (outputs,), in units of the product; half of 2^shift is among them
            where the result is to be rounded to the nearest.
        shift: Of either sign.
    """

    def __init__(self, weight: np.ndarray, bias: np.ndarray, shift: int):
        self.rows = np.abs(weight.astype(np.int64)).sum(-1).tolist()
        self.bias = bias.tolist()
        self.shift = shift
        factor = math.ldexp(1.0, -shift)
        self.scaled = np.ascontiguousarray(weight.T).astype(np.float64) * factor
        self.start = bias.astype(np.float64) * factor

    def bound(self, largest: int) -> int:
        """Return how large a result may be, of inputs of a size; refuse what would be inexact."""
        sizes = (largest * row + abs(b) for row, b in zip(self.rows, self.bias, strict=True))
        found = exactly(max(sizes))
        # One more, because rounding down makes a negative number larger.
        return (found >> self.shift if self.shift > 0 else found << -self.shift) + 1

    def __call__(self, x: np.ndarray, outputs: slice = slice(None)) -> np.ndarray:
        """Map (..., inputs) to (..., outputs); inputs that are left out count as zeros."""
        rows = x.reshape(math.prod(x.shape[:-1]), x.shape[-1])  # also where there is none
        found = rows @ self.scaled[: x.shape[-1], outputs]
        found += self.start[outputs]
        np.floor(found, out=found)
        return found.reshape(*x.shape[:-1], found.shape[-1])


class Table:
    """A nonlinearity, by its name."""

    def __init__(self, name: str):
        self.values = nonlinearity(name)
        self.largest = int(np.abs(self.values).max())

    def bound(self, largest: int) -> int:
        """Return the largest entry."""
        return self.largest

    def __call__(self, x: np.ndarray) -> np.ndarray:
        """Look up each number."""
        return self.values.take((x + RANGE * ONE).astype(np.intp), mode="clip")


class Add:
    """A constant for each place of the last axis."""

    def __init__(self, values: np.ndarray):
        self.values = values.astype(np.float64)

    def bound(self, largest: int) -> int:
        """Return the largest sum."""
        return largest + int(np.abs(self.values).max())

    def __call__(self, x: np.ndarray) -> np.ndarray:
        """Add it."""
        return x + self.values


class Arrange:
    """The same numbers in another order: reshaped, axes exchanged, reshaped again.

    Arguments:
        shape, axes, to: Without the axis of the images, which stays in front.
    """

    def __init__(self, shape: Sequence[int], axes: Sequence[int], to: Sequence[int]):
        self.shape, self.to = shape, to
        self.axes = (0, *(axis + 1 for axis in axes))

    def bound(self, largest: int) -> int:
        """Return what it is given."""
        return largest

    def __call__(self, x: np.ndarray) -> np.ndarray:
        """Map (n, ...) to (n, *to)."""
        return x.reshape(-1, *self.shape).transpose(self.axes).reshape(-1, *self.to)


class Unfold:
    """The neighbours of each place side by side, so that a convolution is a product.

    Arguments:
        kernel, stride, padding: For height and width.
    """

    def __init__(self, kernel: Sequence[int], stride: Sequence[int], padding: Sequence[int]):
        self.kernel, self.stride, self.padding = kernel, stride, padding

    def bound(self, largest: int) -> int:
        """Return what it is given."""
        return largest

    def __call__(self, x: np.ndarray) -> np.ndarray:
        """Map (n, height, width, channels) to (n, rows, columns, kernel x channels)."""
        (a, b), (down, right) = self.padding, self.stride
        n, height, width, channels = x.shape
        framed = np.zeros((n, height + 2 * a, width + 2 * b, channels))
        framed[:, a : a + height, b : b + width] = x
        seen = np.lib.stride_tricks.sliding_window_view(framed, tuple(self.kernel), (1, 2))
        seen = seen[:, ::down, ::right].transpose(0, 1, 2, 4, 5, 3)
        return seen.reshape(*seen.shape[:3], math.prod(seen.shape[3:]))


class Fold:
    """What each place gives to its neighbours, added up: the second half of a transposed product.

    Arguments:
        kernel, stride, padding: For height and width.
        sides: Height and width of the result.
    """

    def __init__(self, kernel, stride, padding, sides):
        self.kernel, self.stride, self.padding, self.sides = kernel, stride, padding, sides

    def bound(self, largest: int) -> int:
        """Return the largest sum of so many numbers as meet at a place."""
        meet = (-(-k // s) for k, s in zip(self.kernel, self.stride, strict=True))
        return largest * math.prod(meet)

    def __call__(self, x: np.ndarray) -> np.ndarray:
        """Map (n, rows, columns, kernel x channels) to (n, height, width, channels)."""
        (high, wide), (down, right), (a, b) = self.kernel, self.stride, self.padding
        n, rows, columns, numbers = x.shape
        x = x.reshape(n, rows, columns, high, wide, numbers // (high * wide))
        tall, broad = (rows - 1) * down + high, (columns - 1) * right + wide
        found = np.zeros((n, tall, broad, x.shape[-1]))
        for i in range(high):
            for j in range(wide):
                reached = found[:, i : i + rows * down : down, j : j + columns * right : right]
                reached += x[:, :, :, i, j]
        return found[:, a : a + self.sides[0], b : b + self.sides[1]]


class Residual:
    """What some steps make of the numbers, added to them."""

    def __init__(self, steps: "Chain"):
        self.steps = steps

    def bound(self, largest: int) -> int:
        """Return the largest sum."""
        return largest + self.steps.bound(largest)

    def __call__(self, x: np.ndarray) -> np.ndarray:
        """Add."""
        return x + self.steps(x)


class Chain:
    """Steps one after the other, made of their description.

    Arguments:
        steps: A list of lists: the name of a step, then its arguments as JSON has them. Arrays are
            given by their names.
        arrays: Integers, by name.

    Example:
        >>> arrays = {"w": np.array([[3, -2]]), "b": np.array([1])}
        >>> twice = Chain([["affine", "w", "b", 1]], arrays)
        >>> twice(np.array([[4.0, 2.0]])), twice.bound(largest=4)
        (array([[4.]]), 11)
    """

    def __init__(self, steps: list, arrays: dict[str, np.ndarray]):
        makers = {
            "affine": lambda weight, bias, shift: Affine(arrays[weight], arrays[bias], shift),
            "add": lambda values: Add(arrays[values]),
            "residual": lambda inner: Residual(Chain(inner, arrays)),
            "table": Table,
            "arrange": Arrange,
            "unfold": Unfold,
            "fold": Fold,
        }
        self.steps = [makers[name](*given) for name, *given in steps]

    def bound(self, largest: int) -> int:
        """Return how large a result may be, of inputs of a size.

        Raises:
            ValueError: Somewhere on the way a number may be too large to be exact.
        """
        exactly(largest)
        for step in self.steps:
            largest = exactly(step.bound(largest))
        return largest

    def widest(self, x: np.ndarray) -> int:
        """Return how many numbers there are at most at a time on the way of x."""
        found = x.size
        for step in self.steps:
            inner = step.steps.widest(x) if isinstance(step, Residual) else 0
            x = step(x)
            found = max(found, inner, x.size)
        return found

    def __call__(self, x: np.ndarray) -> np.ndarray:
        """Take all the steps; the first axis is that of the images."""
        for step in self.steps:
            x = step(x)
        return x


class Cumulative:
    """Probabilities of the symbols 0, 1, ... as integers: how much of 2^30 lies below each edge.

    A symbol is the bin of a line that a variable falls in, whose distribution is a mixture of
    shifted and scaled ones of the same kind. Every symbol gets a mass of 1, and what is left of
    2^30 is shared as the distribution says, rounded down at each edge. The distribution function
    does not fall from one edge to the next, so the masses below the edges rise by at least 1.

    Arguments:
        table: The distribution function, of `normal` or `logistic`.
        mean: int64, shape (..., K), in units of 2^-12; at most 2^24 in size.
        inverse: One over the scale, int64 in units of 2^-20, of a shape that broadcasts; above 0.
        symbols: How many there are.
        first, step: Where edge 0 would lie, and how far apart edges are, in units of 2^-12. The
            first and the last symbol reach to infinity.
        weights: int64, shape (..., K), summing to 2^24; None for K = 1.

    Attributes:
        shape: Of what is coded, (...).
        total: 2^30.

    Raises:
        ValueError: A product might not fit into 64 bits.

    Example:
        >>> even = Cumulative(logistic(), np.zeros((2, 1), int), np.array([UNIT]), 2, -ONE, ONE)
        >>> [(even(edge) / even.total).tolist() for edge in (0, 1, 2)]
        [[0.0, 0.0], [0.5, 0.5], [1.0, 1.0]]
    """

    total = TOTAL

    def __init__(self, table, mean, inverse, symbols, first, step, weights=None):
        self.table, self.mean, self.inverse, self.weights = table, mean, inverse, weights
        self.symbols, self.first, self.step = symbols, first, step
        self.shape = mean.shape[:-1]
        # The other products are bounded by their tables: 2^30 times 2^30, or times 2^24.
        farthest = MEANS + max(abs(first), abs(first + symbols * step))
        if farthest * int(inverse.max(initial=1)) >= 2**63:
            raise ValueError("inverse: expected products below 2^63, got a scale too small.")

    def __call__(self, edges: np.ndarray) -> np.ndarray:
        """Return the mass below edges, integers from 0 to `symbols` that broadcast to the shape.

        It is 0 below the first symbol and 2^30 below the last edge, and rises at each.
        """
        edges = np.broadcast_to(np.asarray(edges, dtype=np.int64), self.shape)
        away = (edges * self.step + self.first)[..., None] - self.mean
        below = between(self.table, away * self.inverse >> BITS)
        mixed = self.weights is not None
        below = (below * self.weights).sum(-1) >> 24 if mixed else below[..., 0]
        inner = (below * (TOTAL - self.symbols) >> TOTAL_BITS) + edges
        return np.where(edges <= 0, 0, np.where(edges >= self.symbols, TOTAL, inner))
