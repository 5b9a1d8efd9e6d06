"""A hierarchy of latents: each has a prior and a q of its own, both given the latents above it.

It is a `VAE` with a longer way down, so objectives and evaluation take it as it is. Only its
decoder says what an image is made of, as in any VAE: any module from features to a distribution.
"""

import math
from collections.abc import Callable, Sequence
from itertools import pairwise
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import silu

from vae_lib.arguments import whole
from vae_lib.convolutional import GAIN, WIDEST
from vae_lib.data import seeded
from vae_lib.distributions import DiagonalGaussian
from vae_lib.model import VAE, BernoulliDecoder, StandardNormal
from vae_lib.networks import check_rows, linear

PLAIN = 1 / GAIN  # for a convolution of what no SiLU has shortened
# Below the top, log sigma and the logarithm of its factor are held between minus and plus this.
# Unbounded, a broad latent makes the next one broader still, and now and then a draw is infinite.
LIMIT = 5.0
HOW = "Make ones and zeros of bytes with vae_lib.data.binarize"


class Hierarchy(VAE):
    r"""A VAE with latents :math:`z_1, \dots, z_L`, drawn from the top down.

    .. math:: p(x, z) = p(z_1) \prod_{l=2}^L p(z_l | z_{<l}) \; p(x | z), \quad
        q(z | x) = q(z_1 | x) \prod_{l=2}^L q(z_l | z_{<l}, x)

    The order of Sønderby et al. (2016) and of Kingma et al. (2016), in which q and prior share the
    way down. The ELBO has a rate for each latent,

    .. math:: E_{q(z_{<l} | x)} \left[ KL(q(z_l | z_{<l}, x) \| p(z_l | z_{<l})) \right],

    whose divergence is exact and whose expectation is estimated by the draws of those above.

    Arguments:
        encoder: A module from images x (..., pixels) to q(z_1 given x) and, for each layer, what it
            sees of x: a sequence, the top one first.
        prior: A module that, called with nothing, gives p(z_1); any prior of a VAE.
        layers: One `Layer` for each latent below the top, the upper ones first. The first of them
            is called with z_1, each other one with what the one above it returned.
        decoder: A module from what the last layer returned to a distribution p(x given z).

    Example:
        >>> from vae_lib.objectives import terms
        >>> model = conv_hierarchy((1, 8, 8), layers=(2, 1), latents=5, width=8)
        >>> cost = terms(model, torch.zeros(3, 64))
        >>> cost.elbo.shape, len(cost.rates)
        (torch.Size([3]), 4)
        >>> model.generate(10).mean.shape
        torch.Size([10, 64])
    """

    def __init__(
        self,
        encoder: nn.Module,
        prior: nn.Module,
        layers: Sequence[nn.Module],
        decoder: nn.Module,
    ):
        super().__init__(encoder, prior, decoder)
        self.layers = nn.ModuleList(layers)

    def top_down(self, seen: Sequence | None, choose: Callable[[Any, Any], Tensor]) -> Any:
        """Return p(x given z) of the latents that `choose(q, p)` gives, the top one first."""
        top, *below = [None] * (1 + len(self.layers)) if seen is None else seen
        h = choose(top, self.prior())
        for layer, features in zip(self.layers, below, strict=True):
            h = layer(h, features, choose)
        return self.decoder(h)


class Layer(nn.Module):
    r"""One latent below the top, whose q says how it differs from its prior.

    .. math:: p(z | h) = N(\mu, \sigma^2), \quad
        q(z | h, x) = N(\mu + \Delta\mu, (\sigma \, \Delta\sigma)^2)

    The residual normal distributions of Vahdat and Kautz (2020): where the image adds nothing,
    q need only be told so, not to follow the prior.

    Arguments:
        before: A module from what comes from above to the features h of this layer.
        prior: A module from h to two tensors (..., d), mu and log sigma.
        posterior: A module from h and what the layer sees of x to two tensors (..., d), the
            difference of mu and the logarithm of the factor of sigma.
        after: A module from h and z (..., d) to what goes down.
    """

    def __init__(self, before: nn.Module, prior: nn.Module, posterior: nn.Module, after: nn.Module):
        super().__init__()
        self.before, self.prior, self.posterior, self.after = before, prior, posterior, after

    def forward(self, h: Tensor, seen: Any, choose: Callable[[Any, Any], Tensor]) -> Tensor:
        """Return what goes down once `choose(q, p)` has given z; q is None if `seen` is."""
        h = self.before(h)
        p, q = DiagonalGaussian(*self.prior(h)), None
        if seen is not None:
            shift, log_factor = self.posterior(h, seen)
            q = DiagonalGaussian(p.mean + shift, p.log_std + log_factor)
        return self.after(h, choose(q, p))


class Pixels(nn.Module):
    """The last step of a decoder: features at half the sides of a picture, to rows of pixels.

    A convolution there gives four numbers for each that is asked for, and these are laid side by
    side (Shi et al., 2016), so nothing is computed at the full size.

    Arguments:
        features: How many channels come in.
        planes: How many numbers to give for each pixel: at least 1 for each channel.
        generator: The source of the weights; None takes PyTorch's global one.

    Example:
        >>> Pixels(features=16, planes=3)(torch.zeros(5, 16, 14, 14)).shape  # 3 x 28 x 28
        torch.Size([5, 2352])
    """

    def __init__(self, features: int, planes: int, generator: torch.Generator | None = None):
        super().__init__()
        self.convolution = _conv(features, 4 * planes, 3, generator)

    def forward(self, h: Tensor) -> Tensor:
        """Map features (..., features, height / 2, width / 2) to rows, plane by plane."""
        return _doubled(self.convolution(silu(h))).flatten(-3)


def conv_hierarchy(
    shape: Sequence[int] = (1, 28, 28),
    layers: Sequence[int] = (4, 2),
    *,
    latents: int = 24,
    channels: int = 4,
    width: int = 64,
    blocks: int = 1,
    planes: int = 1,
    decoder: Callable[[nn.Module], nn.Module] = BernoulliDecoder,
    seed: int = 0,
) -> Hierarchy:
    """Make a convolutional hierarchy for pictures: a vector on top, pictures of latents below it.

    The networks are residual blocks, each a bottleneck of 1 x 1, 3 x 3 and 1 x 1 convolutions
    after a SiLU, with its last weights divided by the root of the number of blocks on its way, as
    in the very deep VAE of Child (2021), and no normalisation. They work at half the sides and
    below; at the full size nothing is computed. Training starts with each q equal to its prior, a
    standard normal. Gradients can be long: train with `clip`. Logarithms of spreads below the top
    are held between -5 and 5 by a tanh, as in the code of Vahdat and Kautz (2020).

    Arguments:
        shape: Channels, height and width of a picture; the sides can be halved once for each of
            `layers`.
        layers: How many layers of latents there are at each size, each at least 1, the smallest
            size first; the last size is half the picture's, each other one half of the next. The
            default has four layers at 7 x 7 and two at 14 x 14.
        latents: Length of the vector on top.
        channels: Latents at each place of each layer.
        width: Channels of the features at half the picture's sides, even; they double with each
            halving, up to four times as many.
        blocks: How many residual blocks follow each latent, and on the way up each halving.
        planes: How many numbers the decoder gets for each pixel and channel.
        decoder: Makes a decoder of a network from features to rows of planes x channels x height x
            width numbers, plane by plane; for example `vae_lib.model.BernoulliDecoder`.
        seed: Of the initial weights, from the stream "hierarchy"; see `vae_lib.data.seeded`.

    Returns:
        A model of rows of channels x height x width numbers from 0 to 1, with a standard normal
        prior of the top latent; on the CPU, whatever PyTorch's default device is.

    Raises:
        ValueError: A size below 1, an odd width, or sides that cannot be halved so often.

    Example:
        >>> model = conv_hierarchy(layers=(2, 1), width=8)
        >>> model.generate(2).mean.shape
        torch.Size([2, 784])
    """
    shape, layers = _checked(shape, layers)
    latents, channels = whole("latents", latents), whole("channels", channels)
    blocks, planes = whole("blocks", blocks), whole("planes", planes)
    if whole("width", width, 2) % 2:
        raise ValueError(f"width: expected an even number, got {width}.")
    sizes = _sizes(shape, width, len(layers))  # the smallest first, as `layers`
    generator = seeded(seed, stream="hierarchy")
    with torch.device(generator.device):
        encoder = _BottomUp(shape, sizes[::-1], layers, latents, blocks, generator)
        scale = 1 / math.sqrt(blocks * sum(layers))
        steps, before = [], _Start(latents, sizes[0], generator)
        for index, (count, (features, *sides)) in enumerate(zip(layers, sizes, strict=True)):
            if index:
                before = _Up(sizes[index - 1][0], features, generator)
            for _ in range(count):
                prior = _Heads(_bottleneck(features, 2 * channels, 0.0, generator))
                posterior = _Posterior(features, 2 * channels, generator)
                after = _After((channels, *sides), features, blocks, scale, generator)
                steps.append(Layer(before, prior, posterior, after))
                before = nn.Identity()
        network = Pixels(sizes[-1][0], planes * shape[0], generator)
        model = Hierarchy(encoder, StandardNormal(latents), steps, decoder(network))
        model.per_pixel = max(1, width // 4) + planes * shape[0]  # at half the sides, and whole
        return model


class _BottomUp(nn.Module):
    """Rows of pixels to q of the top latent and, for each layer, features of its size."""

    def __init__(self, shape, sizes, layers, latents, blocks, generator):
        super().__init__()
        self.shape, self.layers = shape, layers
        scale = 1 / math.sqrt(blocks * len(sizes))
        self.first = _conv(4 * shape[0], sizes[0][0], 3, generator, PLAIN)
        widths = [size[0] for size in sizes]
        self.halve = nn.ModuleList(
            _conv(4 * a, b, 1, generator, PLAIN) for a, b in pairwise(widths)
        )
        self.blocks = nn.ModuleList(_residual(w, blocks, scale, generator) for w in widths)
        self.top = linear(math.prod(sizes[-1]), 2 * latents, generator)
        nn.init.zeros_(self.top.weight)  # q starts as a standard normal

    def forward(self, x: Tensor) -> list:
        check_rows("x", x, math.prod(self.shape), self.first.weight, HOW)
        picture = (2 * x - 1).unflatten(-1, self.shape)  # centred, so that black is not silence
        h = self.blocks[0](self.first(_halved(picture)))
        features = [h]
        for halve, blocks in zip(self.halve, self.blocks[1:], strict=True):
            h = blocks(halve(_halved(h)))
            features.append(h)
        q = DiagonalGaussian(*self.top(silu(h).flatten(-3)).chunk(2, -1))
        counted = zip(self.layers, reversed(features), strict=True)
        return [q, *(one for count, one in counted for _ in range(count))]


class _Start(nn.Module):
    """The top latent to the first features."""

    def __init__(self, latents, size, generator):
        super().__init__()
        self.size = size
        self.convolution = _conv(latents, math.prod(size), 1, generator, PLAIN)

    def forward(self, z: Tensor) -> Tensor:
        return self.convolution(z[..., None, None]).flatten(-3).unflatten(-1, self.size)


class _Up(nn.Module):
    """Features to those of twice the sides."""

    def __init__(self, before, after, generator):
        super().__init__()
        self.convolution = _conv(before, 4 * after, 1, generator, PLAIN)

    def forward(self, h: Tensor) -> Tensor:
        return _doubled(self.convolution(h))


class _Heads(nn.Module):
    """A network's channels as two tensors of rows, the second within its limits."""

    def __init__(self, network):
        super().__init__()
        self.network = network

    def forward(self, h: Tensor) -> tuple[Tensor, Tensor]:
        first, second = (half.flatten(-3) for half in self.network(h).chunk(2, -3))
        return first, LIMIT * torch.tanh(second / LIMIT)


class _Posterior(nn.Module):
    """A bottleneck of two inputs; what is seen of x is reduced once, whatever samples meet it."""

    def __init__(self, features, outputs, generator):
        super().__init__()
        narrow = features // 2
        self.above = _conv(features, narrow, 1, generator)
        self.below = _conv(features, narrow, 1, generator)
        rest = [nn.SiLU(), _conv(narrow, narrow, 3, generator)]
        rest += [nn.SiLU(), _conv(narrow, outputs, 1, generator, scale=0.0)]
        self.heads = _Heads(nn.Sequential(*rest))

    def forward(self, h: Tensor, seen: Tensor) -> tuple[Tensor, Tensor]:
        return self.heads(self.above(silu(h)) + self.below(silu(seen)))


class _After(nn.Module):
    """Add a latent to the features, and go on with them."""

    def __init__(self, size, features, blocks, scale, generator):
        super().__init__()
        self.size = size
        self.project = _conv(size[0], features, 1, generator, scale * PLAIN)
        self.blocks = _residual(features, blocks, scale, generator)

    def forward(self, h: Tensor, z: Tensor) -> Tensor:
        return self.blocks(h + self.project(z.unflatten(-1, self.size)))


class _Residual(nn.Module):
    """Features, and what a network adds to them."""

    def __init__(self, network):
        super().__init__()
        self.network = network

    def forward(self, h: Tensor) -> Tensor:
        return h + self.network(h)


class _Convolution(nn.Conv2d):
    """A convolution of pictures with any axes in front."""

    def forward(self, h: Tensor) -> Tensor:
        in_front = h.shape[:-3]
        h = super().forward(h.reshape(math.prod(in_front), *h.shape[-3:]))
        return h.reshape(*in_front, *h.shape[1:])


def _halved(h: Tensor) -> Tensor:
    """Lay the four pixels of each square of 2 x 2 behind one another, as channels."""
    # Those of PyTorch, pixel_unshuffle and pixel_shuffle, leave no pictures as they were.
    squares = h.unflatten(-2, (-1, 2)).unflatten(-1, (-1, 2))  # (..., C, H, 2, W, 2)
    return squares.movedim((-3, -1), (-4, -3)).flatten(-5, -3)


def _doubled(h: Tensor) -> Tensor:
    """Lay four channels side by side, as a square of 2 x 2 pixels."""
    squares = h.unflatten(-3, (-1, 2, 2)).movedim((-4, -3), (-3, -1))  # (..., C, H, 2, W, 2)
    return squares.flatten(-2).flatten(-3, -2)


def _residual(features, blocks, scale, generator) -> nn.Sequential:
    """Chain so many residual blocks."""
    each = (_bottleneck(features, features, scale, generator) for _ in range(blocks))
    return nn.Sequential(*(_Residual(network) for network in each))


def _bottleneck(features, outputs, scale, generator) -> nn.Sequential:
    """Chain three convolutions, the middle one over half the channels, each after a SiLU."""
    narrow = features // 2
    first, middle = _conv(features, narrow, 1, generator), _conv(narrow, narrow, 3, generator)
    last = _conv(narrow, outputs, 1, generator, scale)
    return nn.Sequential(nn.SiLU(), first, nn.SiLU(), middle, nn.SiLU(), last)


def _conv(inputs, outputs, kernel, generator, scale=1.0) -> nn.Module:
    """Make a convolution that keeps the mean square of SiLUs, times `scale` squared."""
    layer = nn.utils.skip_init(_Convolution, inputs, outputs, kernel, padding=kernel // 2)
    bound = scale * GAIN * math.sqrt(3 / (inputs * kernel**2))
    nn.init.uniform_(layer.weight, -bound, bound, generator=generator)
    nn.init.zeros_(layer.bias)
    return layer


def _sizes(shape, width, count) -> list[tuple[int, int, int]]:
    """Return channels, height and width of the features of each size, the smallest first."""
    _, height, breadth = shape
    return [
        (width * min(WIDEST, 2 ** (n - 1)), height // 2**n, breadth // 2**n)
        for n in range(count, 0, -1)
    ]


def _checked(shape: Sequence[int], layers: Sequence[int]) -> tuple[tuple, tuple]:
    """Return shape and layers as tuples of numbers, refusing those that do not fit."""
    for name, value in {"shape": shape, "layers": layers}.items():
        if not isinstance(value, Sequence) or isinstance(value, str) or not value:
            raise ValueError(f"{name}: expected a sequence of whole numbers, got {value!r}.")
    shape = tuple(whole("shape", number) for number in shape)
    layers = tuple(whole("layers", number) for number in layers)
    unit = 2 ** len(layers)
    if len(shape) != 3 or shape[1] % unit or shape[2] % unit:
        raise ValueError(
            f"shape: expected (channels, height, width) with sides that {unit} divides, for layers "
            f"of {len(layers)} sizes, got {shape}. Pad the pictures, or ask for fewer sizes."
        )
    return shape, layers
