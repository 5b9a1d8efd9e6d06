"""Networks for pictures: convolutions down to about 4 x 4, and back up by their mirror.

Images stay rows, as everywhere in the library: a row of channels x height x width numbers is one
picture, channel by channel, each row by row. The networks make pictures of rows and rows of
pictures themselves, so objectives, training and evaluation need to know nothing of them.
"""

import math
from collections.abc import Sequence
from itertools import pairwise

import torch
from torch import Tensor, nn

from vae_lib.arguments import whole
from vae_lib.data import seeded
from vae_lib.model import (
    VAE,
    BernoulliDecoder,
    DiscretizedLogisticDecoder,
    GaussianDecoder,
    GaussianEncoder,
    StandardNormal,
)
from vae_lib.networks import TwoHeads, check_rows, linear

SMALLEST = 4  # a side that is no longer is not halved
WIDEST = 4  # channels double with each halving, up to this many times the width
SIDES = (8, 128)
HOW = "Make greys of bytes with vae_lib.data.quantize"
LIKELIHOODS = ("levels", "bits", "gaussian")

# Between these a log scale is held. At the lower end a location at a level gives it a probability
# of 0.99; the upper end is far broader than all 256. Half-way, where training starts, the standard
# deviation is 0.15 of the way from black to white.
LOG_SCALES = (-8.0, 3.0)
# Of normal numbers x, x sigmoid(x) has a mean square of 0.356. Weights that are longer by this
# make up for it, so that what differs between pictures still does many layers later.
GAIN = 1 / math.sqrt(0.356)
# Where the learned sigma of "gaussian" starts: about as much as greys vary within a picture.
FIRST_STD = 0.25


class ConvEncoder(nn.Module):
    """The way down: rows of pixels to rows of features, by convolutions that halve the sides.

    A side of n becomes one of n / 2, rounded up, until it is at most 4; the channels double each
    time, up to four times the width. Between two convolutions stands a SiLU, x sigmoid(x).

    Arguments:
        shape: Channels, height and width of a picture.
        width: Channels after the first convolution, at least 1.
        generator: The source of the weights; None takes PyTorch's global one.

    Example:
        >>> ConvEncoder((3, 32, 32), width=32)(torch.zeros(5, 3 * 32 * 32)).shape
        torch.Size([5, 2048])
    """

    def __init__(self, shape: Sequence[int], width: int, generator: torch.Generator | None = None):
        super().__init__()
        self.shape = _checked(shape)
        shapes = feature_shapes(shape, width)
        self.steps = nn.ModuleList(_Down(*pair, generator) for pair in pairwise(shapes))
        self.features = math.prod(shapes[-1])

    def forward(self, x: Tensor) -> Tensor:
        """Map images (..., channels x height x width), from 0 to 1, to rows (..., features)."""
        pixels = math.prod(self.shape)
        check_rows("x", x, pixels, next(self.parameters()), HOW)
        h = (2 * x - 1).reshape(-1, *self.shape)  # centred, so that black is not silence
        for step in self.steps:
            h = nn.functional.silu(step(h))
        return h.reshape(*x.shape[:-1], self.features)


class ConvDecoder(nn.Module):
    """The way up, the mirror of a `ConvEncoder`: rows of latents to rows of pixels.

    Transposed convolutions double the sides. Where the stride is 2 the kernel is 4 long, a
    multiple of it, so that each pixel is reached by as many weights as its neighbours; otherwise
    checkerboards show (Odena, Dumoulin and Olah, 2016). Enlarging before a convolution avoids
    them too, but an epoch took 1.8 times as long. A side that was odd loses the last of its
    doubled pixels.

    Arguments:
        shape: Channels, height and width of a picture.
        latents: Length of z, at least 1.
        width: As the encoder's.
        outputs: How many numbers to give for each pixel and channel, at least 1.
        generator: The source of the weights; None takes PyTorch's global one.

    Example:
        >>> ConvDecoder((3, 32, 32), latents=64, width=32)(torch.zeros(5, 64)).shape
        torch.Size([5, 3072])
    """

    def __init__(
        self,
        shape: Sequence[int],
        latents: int,
        width: int,
        outputs: int = 1,
        generator: torch.Generator | None = None,
    ):
        super().__init__()
        channels, *sides = _checked(shape)
        shapes = feature_shapes(shape, width)
        shapes[0] = (whole("outputs", outputs) * channels, *sides)
        self.smallest, self.numbers = shapes[-1], math.prod(shapes[0])
        self.first = linear(latents, math.prod(self.smallest), generator)
        pairs = pairwise(reversed(shapes))
        self.steps = nn.ModuleList(_Up(*pair, generator) for pair in pairs)

    def forward(self, z: Tensor) -> Tensor:
        """Map latents (..., latents) to rows (..., outputs x channels x height x width)."""
        check_rows("z", z, self.first.in_features, self.first.weight, HOW)
        h = self.first(z).reshape(-1, *self.smallest)
        for step in self.steps:
            h = step(nn.functional.silu(h))
        return h.reshape(*z.shape[:-1], self.numbers)


def feature_shapes(shape: Sequence[int], width: int) -> list[tuple[int, int, int]]:
    """List what a picture becomes on the way down: channels, height and width at each stage.

    Arguments:
        shape: Channels, height and width of the picture, which come first in the list.
        width: Channels after the first convolution, at least 1.

    Raises:
        ValueError: A shape that `conv_vae` refuses, or a width below 1.

    Example:
        >>> feature_shapes((3, 32, 32), width=32)
        [(3, 32, 32), (32, 16, 16), (64, 8, 8), (128, 4, 4)]
    """
    shapes, width = [_checked(shape)], whole("width", width)
    while max(shapes[-1][1:]) > SMALLEST:
        channels = width * min(2 ** (len(shapes) - 1), WIDEST)
        height, breadth = (-(-n // 2) if n > SMALLEST else n for n in shapes[-1][1:])
        shapes.append((channels, height, breadth))
    return shapes


class _Down(nn.Module):
    """A convolution from one stage to the next smaller one."""

    def __init__(self, before, after, generator):
        super().__init__()
        strides = _strides(before, after)
        self.convolution = convolution(before[0], after[0], 3, strides, generator)

    def forward(self, h: Tensor) -> Tensor:
        return self.convolution(h)


class _Up(nn.Module):
    """A transposed convolution from one stage to the next larger one."""

    def __init__(self, before, after, generator):
        super().__init__()
        self.sides = after[1:]
        strides = _strides(after, before)
        kernel = tuple(2 + stride for stride in strides)
        layer = nn.utils.skip_init(
            nn.ConvTranspose2d, before[0], after[0], kernel, stride=strides, padding=1
        )
        reached = before[0] * math.prod(kernel) // math.prod(strides)
        self.convolution = _initialised(layer, reached, generator)

    def forward(self, h: Tensor) -> Tensor:
        height, breadth = self.sides
        return self.convolution(h)[..., :height, :breadth]


def _strides(large, small) -> tuple[int, ...]:
    """Return for each side 2 where it is halved and 1 where it stays."""
    return tuple(2 if a > b else 1 for a, b in zip(large[1:], small[1:], strict=True))


def convolution(
    before: int,
    after: int,
    kernel: int,
    stride: int | tuple[int, int],
    generator: torch.Generator | None = None,
) -> nn.Conv2d:
    """Make a convolution whose outputs are as long as its inputs; a stride of 2 halves the side.

    Arguments:
        before, after: Channels of what goes in and of what comes out.
        kernel: Side of the filters, an odd number.
        stride: For both sides, or for height and width.
        generator: The source of the weights; None takes PyTorch's global one.

    Example:
        >>> convolution(3, 16, 5, 2)(torch.zeros(1, 3, 28, 28)).shape
        torch.Size([1, 16, 14, 14])
    """
    layer = nn.utils.skip_init(nn.Conv2d, before, after, kernel, stride=stride, padding=kernel // 2)
    return _initialised(layer, before * kernel**2, generator)


def _initialised(layer: nn.Module, inputs: int, generator: torch.Generator | None) -> nn.Module:
    """Draw weights by the count of inputs that each sum is over, and set biases to zero."""
    # The default of PyTorch takes the global generator, and for a transposed convolution a count
    # that is not the one of its sums.
    bound = GAIN * math.sqrt(3 / inputs)
    nn.init.uniform_(layer.weight, -bound, bound, generator=generator)
    nn.init.zeros_(layer.bias)
    return layer


class _Grey(nn.Module):
    """A decoder's numbers as greys: zero is the middle grey."""

    def __init__(self, network: nn.Module):
        super().__init__()
        self.network = network

    def forward(self, z: Tensor) -> Tensor:
        return 0.5 + self.network(z)


class _GreyAndScale(nn.Module):
    """A decoder's two numbers for each grey, as location and as log scale within its limits."""

    def __init__(self, network: nn.Module):
        super().__init__()
        self.network = network

    def forward(self, z: Tensor) -> tuple[Tensor, Tensor]:
        grey, scale = self.network(z).chunk(2, -1)
        low, high = LOG_SCALES
        half = (high - low) / 2
        return 0.5 + grey, low + half + half * torch.tanh(scale / half)


def conv_vae(
    shape: Sequence[int],
    latents: int = 64,
    *,
    width: int = 32,
    likelihood: str = "levels",
    seed: int = 0,
) -> VAE:
    """Make a convolutional VAE for pictures of one size.

    The gradients of "levels" are long at first, since a wrong grey costs more the narrower the
    scale: train with `clip`.

    Arguments:
        shape: Channels (1 to 4), height and width (each from 8 to 128) of a picture.
        latents: Length of z.
        width: Channels of the first convolution; the others have up to four times as many.
        likelihood: What the decoder gives. "levels": a probability of the 256 greys of each pixel
            and channel, a discretised logistic. "bits": that of zeros and ones. "gaussian": a
            density, with one learned spread for all pixels; its score is no number of bits.
        seed: Of the initial weights, from the stream "conv_vae"; see `vae_lib.data.seeded`.

    Returns:
        A model of rows of channels x height x width numbers from 0 to 1, with a Gaussian encoder
        and a standard normal prior; on the CPU, whatever PyTorch's default device is.

    Raises:
        ValueError: A shape, a size or a likelihood that is none of these.

    Example:
        >>> model = conv_vae((3, 32, 32), latents=16)
        >>> q = model.encoder(torch.zeros(5, 3 * 32 * 32))
        >>> q.mean.shape, model.decoder(q.mean).mean.shape
        (torch.Size([5, 16]), torch.Size([5, 3072]))
    """
    if likelihood not in LIKELIHOODS:
        names = ", ".join(f'"{name}"' for name in LIKELIHOODS)
        raise ValueError(f"likelihood: expected one of {names}, got {likelihood!r}.")
    shape, latents = _checked(shape), whole("latents", latents)
    generator = seeded(seed, stream="conv_vae")
    with torch.device(generator.device):
        trunk = ConvEncoder(shape, width, generator)
        encoder = GaussianEncoder(TwoHeads(trunk, trunk.features, latents, generator))
        outputs = 2 if likelihood == "levels" else 1
        network = ConvDecoder(shape, latents, width, outputs, generator)
        if likelihood == "levels":
            decoder = DiscretizedLogisticDecoder(_GreyAndScale(network), levels=256)
        elif likelihood == "bits":
            decoder = BernoulliDecoder(network)
        else:
            decoder = GaussianDecoder(_Grey(network))
            nn.init.constant_(decoder.log_std, math.log(FIRST_STD))
        return VAE(encoder, StandardNormal(latents), decoder)


def _checked(shape: Sequence[int]) -> tuple[int, int, int]:
    """Return a shape as three numbers, refusing one that no network is made for."""
    if not isinstance(shape, Sequence) or isinstance(shape, str) or len(shape) != 3:
        raise ValueError(f"shape: expected (channels, height, width), got {shape!r}.")
    channels, height, breadth = (whole("shape", number) for number in shape)
    low, high = SIDES
    if channels > 4 or not (low <= height <= high and low <= breadth <= high):
        raise ValueError(
            f"shape: expected 1 to 4 channels and sides from {low} to {high}, got "
            f"{channels} x {height} x {breadth}. Shrink the pictures, or cut them into parts."
        )
    return channels, height, breadth
