"""Residual networks for pictures of one channel, whose work lies at half and a quarter of the side.

Images stay rows, as everywhere in the library. A picture of height x width becomes features of
height / 2 x width / 2 and then of height / 4 x width / 4; the decoder goes the opposite way. At
each of the two sizes stand residual blocks without normalisation. The full size, where a block
would cost four times as much as at half of it, has none.
"""

import math
from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from vae_lib.arguments import whole
from vae_lib.autoregressive import AutoregressivePrior, LocalDecoder, LocalHead
from vae_lib.convolutional import convolution
from vae_lib.data import seeded
from vae_lib.model import VAE, GaussianEncoder, StandardNormal
from vae_lib.networks import TwoHeads, check_rows, linear

HOW = "Make ones and zeros of bytes with vae_lib.data.binarize"
PRIORS = ("autoregressive", "normal")

# Pictures are kept with their channels last in memory, which took a tenth less time on a processor
# and lets a layer of 1 x 1 be a product of rows. `_pictures` makes them so of rows, and each
# convolution keeps it.


class ResidualBlock(nn.Module):
    r"""Add to features what two convolutions of 3 x 3 make of them (He et al., 2016).

    .. math:: h + B \, \sigma(A \, \sigma(h)), \quad \sigma(h) = h / (1 + e^{-h})

    Arguments:
        channels: Of the features.
        depth: How many blocks there are in a row. The last weights start shorter by one over its
            root, so that the sum does not grow with the depth.
        generator: The source of the weights; None takes PyTorch's global one.

    Example:
        >>> ResidualBlock(32, depth=4)(torch.zeros(5, 32, 14, 14)).shape
        torch.Size([5, 32, 14, 14])
    """

    def __init__(self, channels: int, depth: int, generator: torch.Generator | None = None):
        super().__init__()
        self.first = convolution(channels, channels, 3, 1, generator)
        self.second = convolution(channels, channels, 3, 1, generator)
        with torch.no_grad():
            self.second.weight /= math.sqrt(depth)

    def forward(self, h: Tensor) -> Tensor:
        """Map features (n, channels, height, width) to as many."""
        return h + self.second(F.silu(self.first(F.silu(h))))


class ResidualEncoder(nn.Module):
    """The way down: rows of pixels to rows of features at a quarter of the side.

    Arguments:
        shape: Height and width of a picture, multiples of 4.
        widths: Channels at half and at a quarter of the side.
        blocks: How many residual blocks there are at each.
        generator: The source of the weights; None takes PyTorch's global one.

    Example:
        >>> ResidualEncoder((28, 28), (32, 64), (1, 2))(torch.zeros(5, 784)).shape
        torch.Size([5, 3136])
    """

    def __init__(
        self,
        shape: Sequence[int],
        widths: Sequence[int],
        blocks: Sequence[int],
        generator: torch.Generator | None = None,
    ):
        super().__init__()
        self.shape = _checked(shape)
        (half, quarter), depth = widths, sum(blocks)
        self.steps = nn.Sequential(
            convolution(1, half, 5, 2, generator),
            *(ResidualBlock(half, depth, generator) for _ in range(blocks[0])),
            nn.SiLU(),
            convolution(half, quarter, 3, 2, generator),
            *(ResidualBlock(quarter, depth, generator) for _ in range(blocks[1])),
            nn.SiLU(),
        )
        self.features = math.prod(self.shape) // 16 * quarter

    def forward(self, x: Tensor) -> Tensor:
        """Map images (..., pixels), from 0 to 1, to rows (..., features)."""
        check_rows("x", x, math.prod(self.shape), self.steps[0].weight, HOW)
        h = self.steps(_pictures(2 * x - 1, self.shape))
        return _rows(h).reshape(*x.shape[:-1], self.features)


class ResidualDecoder(nn.Module):
    """The way up: rows of latents to some features for each pixel.

    A side is doubled by a linear map from each place to its four.

    Arguments:
        shape: Height and width of a picture, multiples of 4.
        latents: Length of z, at least 1.
        widths: Channels at half and at a quarter of the side.
        blocks: How many residual blocks there are at each.
        features: How many numbers to give for each pixel.
        generator: The source of the weights; None takes PyTorch's global one.

    Example:
        >>> ResidualDecoder((28, 28), 40, (32, 64), (3, 2), 16)(torch.zeros(5, 40)).shape
        torch.Size([5, 784, 16])
    """

    def __init__(
        self,
        shape: Sequence[int],
        latents: int,
        widths: Sequence[int],
        blocks: Sequence[int],
        features: int,
        generator: torch.Generator | None = None,
    ):
        super().__init__()
        height, width = _checked(shape)
        (half, quarter), depth = widths, sum(blocks)
        self.smallest = height // 4, width // 4
        self.first = linear(latents, math.prod(self.smallest) * quarter, generator)
        # Glorot's weights would be short: there are far more outputs here than inputs.
        bound = math.sqrt(3 / latents)
        nn.init.uniform_(self.first.weight, -bound, bound, generator=generator)
        self.steps = nn.Sequential(
            *(ResidualBlock(quarter, depth, generator) for _ in range(blocks[1])),
            _Doubled(quarter, half, generator),
            *(ResidualBlock(half, depth, generator) for _ in range(blocks[0])),
            _Doubled(half, features, generator),
        )

    def forward(self, z: Tensor) -> Tensor:
        """Map latents (..., latents) to features (..., pixels, features)."""
        check_rows("z", z, self.first.in_features, self.first.weight, HOW)
        h = self.steps(_pictures(self.first(z), self.smallest))
        return _rows(h).reshape(*z.shape[:-1], h.shape[-2] * h.shape[-1], h.shape[1])


class _Doubled(nn.Module):
    """From each place to its four at twice the side."""

    def __init__(self, before: int, after: int, generator):
        super().__init__()
        self.after = after
        self.four = linear(before, 4 * after, generator)

    def forward(self, h: Tensor) -> Tensor:
        h = self.four(F.silu(_rows(h)))
        n, height, width, _ = h.shape
        h = h.view(n, height, width, 2, 2, self.after).transpose(2, 3)
        return h.reshape(n, 2 * height, 2 * width, self.after).permute(0, 3, 1, 2)


def _pictures(rows: Tensor, sides: tuple[int, int]) -> Tensor:
    """Make pictures (n, channels, height, width) of rows, channels last in memory."""
    return rows.reshape(-1, *sides, rows.shape[-1] // math.prod(sides)).permute(0, 3, 1, 2)


def _rows(h: Tensor) -> Tensor:
    """Return pictures as (n, height, width, channels)."""
    return h.permute(0, 2, 3, 1)


def residual_vae(
    shape: Sequence[int] = (28, 28),
    latents: int = 40,
    *,
    widths: Sequence[int] = (32, 64),
    encoder_blocks: Sequence[int] = (1, 2),
    decoder_blocks: Sequence[int] = (3, 2),
    features: int = 32,
    reach: int = 3,
    prior: str = "autoregressive",
    seed: int = 0,
) -> VAE:
    """Make a residual VAE of binary pictures, with a decoder that also sees pixels nearby.

    Arguments:
        shape: Height and width of a picture, multiples of 4.
        latents: Length of z.
        widths: Channels at half and at a quarter of the side.
        encoder_blocks: How many residual blocks the encoder has at each.
        decoder_blocks: How many the decoder has at each.
        features: How many numbers the decoder gives for each pixel, before `LocalHead`.
        reach: How far a pixel sees those before it; with 0 it sees none.
        prior: "autoregressive", an `AutoregressivePrior` of its default size, or "normal".
        seed: Of the initial weights, from the stream "residual_vae"; see `vae_lib.data.seeded`.

    Returns:
        A model of rows of height x width zeros and ones, with a Gaussian encoder; on the CPU,
        whatever PyTorch's default device is.

    Raises:
        ValueError: A shape, a size or a prior that is none of these.

    Example:
        >>> model = residual_vae(latents=16)
        >>> q = model.encoder(torch.zeros(5, 784))
        >>> model.decoder(q.mean).log_prob(torch.zeros(5, 784)).shape
        torch.Size([5])
    """
    if prior not in PRIORS:
        raise ValueError(f'prior: expected "autoregressive" or "normal", got {prior!r}.')
    shape, latents = _checked(shape), whole("latents", latents)
    generator = seeded(seed, stream="residual_vae")
    with torch.device(generator.device):
        trunk = ResidualEncoder(shape, widths, encoder_blocks, generator)
        heads = TwoHeads(trunk, trunk.features, latents, generator)
        with torch.no_grad():  # the first latents lie where the prior expects them
            heads.first.weight *= 0.25
            heads.second.weight *= 0.02
        network = ResidualDecoder(shape, latents, widths, decoder_blocks, features, generator)
        return VAE(
            GaussianEncoder(heads),
            AutoregressivePrior(latents, generator=generator)
            if prior == "autoregressive"
            else StandardNormal(latents),
            LocalDecoder(network, LocalHead(shape, features, reach, generator=generator)),
        )


def _checked(shape: Sequence[int]) -> tuple[int, int]:
    """Return a shape as two numbers, refusing one whose sides cannot be halved twice."""
    if not isinstance(shape, Sequence) or isinstance(shape, str) or len(shape) != 2:
        raise ValueError(f"shape: expected (height, width), got {shape!r}.")
    height, width = (whole("shape", side) for side in shape)
    if height % 4 or width % 4:
        raise ValueError(
            f"shape: expected sides that are multiples of 4, got {height} x {width}. Pad the "
            "pictures with paper."
        )
    return height, width
