"""Distributions whose numbers depend on those before them: of pixels, and of latents.

Of an image, each pixel is a coin whose logit is computed from the latents and from the few pixels
above and to the left of it. Of a vector of latents, each has a mixture of Gaussians whose
parameters are computed from the latents before it. In both, the density of all takes one pass of
a network with masked weights, and a draw takes one pass for each number.
"""

import math
from collections.abc import Callable, Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from vae_lib.arguments import source, tensor, whole
from vae_lib.distributions import Bernoulli
from vae_lib.networks import check_rows, linear
from vae_lib.noise import Source, uniform

LOG_STD = 6.0  # a log standard deviation of a latent is held between minus and plus this
HOW = "Make ones and zeros of bytes with vae_lib.data.binarize"


class LocalHead(nn.Module):
    r"""From features and the pixels before to logits: a masked convolution, then 1 x 1 layers.

    What a pixel's logit may see of the image are the `reach` rows above it, `reach` columns to
    either side, and as many pixels to its left: :math:`2 r (r + 1)` of them, 24 for a reach of 3.
    Whatever is further away must come through the latents. Beyond the border all is zero. The
    layers after the convolution see one place only, so a codec can compute pixel by pixel.

    The masked convolution is that of van den Oord, Kalchbrenner and Kavukcuoglu (2016); to keep it
    small, so that the latents are used, is the advice of Chen et al. (2017).

    Arguments:
        shape: Height and width of an image.
        features: How many numbers come for each pixel, at least 1; also the width of the layers.
        reach: r, at least 0. With 0 no pixel sees another.
        layers: How many residual 1 x 1 layers, at least 0.
        generator: The source of the weights; None takes PyTorch's global one.

    Example:
        >>> head = LocalHead((28, 28), features=32)
        >>> head(torch.zeros(5, 784, 32), torch.zeros(5, 784)).shape
        torch.Size([5, 784])
    """

    how = HOW  # to make images that it takes

    def __init__(
        self,
        shape: Sequence[int],
        features: int,
        reach: int = 3,
        layers: int = 2,
        generator: torch.Generator | None = None,
    ):
        super().__init__()
        height, width = shape
        self.shape = whole("shape", height), whole("shape", width)
        self.features, self.reach = whole("features", features), whole("reach", reach, 0)
        seen = torch.ones(reach + 1, 2 * reach + 1, dtype=torch.bool)
        seen[-1, reach:] = False  # in its own row, neither the pixel itself nor what follows
        self.register_buffer("seen", seen, persistent=False)
        self.weight = nn.Parameter(torch.empty(features, *seen.shape))
        bound = math.sqrt(3 / max(1, 2 * reach * (reach + 1)))
        nn.init.uniform_(self.weight, -bound, bound, generator=source(generator))
        layers = range(whole("layers", layers, 0))
        self.layers = nn.ModuleList(linear(features, features, generator) for _ in layers)
        self.last = linear(features, 1, generator)

    def forward(self, features: Tensor, x: Tensor) -> Tensor:
        """Map features (..., pixels, features) and images (..., pixels) to logits (..., pixels).

        Each logit is computed from the features of its pixel and from the pixels of x before it.
        """
        check_rows("x", x, math.prod(self.shape), self.weight, self.how)
        # The channels stay last in memory, so that the features of a pixel come out side by side.
        pictures = self._shown(self._framed(x.reshape(-1, *self.shape))).permute(0, 3, 1, 2)
        seen = F.conv2d(pictures, self._kernel()).permute(0, 2, 3, 1)
        return self._logits(features + seen.reshape(*x.shape, self.features))

    def sample(
        self, features: Tensor, uniform: Tensor, draw: Callable[[Tensor, Tensor], Tensor]
    ) -> Tensor:
        """Draw images pixel by pixel.

        Arguments:
            features: Shape (n, pixels, features).
            uniform: Numbers from 0 to 1, shape (n, pixels, draws).
            draw: Makes pixels (n,) of what this module says of them and of the uniform numbers of
                each, shape (n, draws).

        Returns:
            What was drawn, shape (n, pixels).
        """
        (height, width), reach = self.shape, self.reach
        framed = self._framed(features.new_zeros(len(uniform), height, width))
        kernel = self._kernel().permute(0, 2, 3, 1).flatten(1)
        for pixel in range(height * width):
            row, column = divmod(pixel, width)
            before = framed[:, row : row + reach + 1, column : column + 2 * reach + 1]
            said = self._logits(features[:, pixel] + self._shown(before).flatten(1) @ kernel.T)
            drawn = draw(said.to(uniform.dtype), uniform[:, pixel])
            framed[:, row + reach, column + reach] = drawn
        return framed[:, reach:, reach : reach + width].flatten(1)

    def _framed(self, pictures: Tensor) -> Tensor:
        """Put zeros above and to both sides of pictures (n, height, width)."""
        return F.pad(pictures, (self.reach, self.reach, self.reach, 0))

    def _shown(self, pictures: Tensor) -> Tensor:
        """Return what is seen of each pixel of pictures (...), shape (..., channels)."""
        return pictures.unsqueeze(-1)

    def _kernel(self) -> Tensor:
        """Return the weights (features, channels, rows, columns), zero where nothing is seen."""
        return (self.weight * self.seen).view(self.features, -1, *self.seen.shape)

    def _logits(self, h: Tensor) -> Tensor:
        """Map numbers (..., features) to logits (...)."""
        for layer in self.layers:
            h = h + layer(F.silu(h))
        return self.last(F.silu(h)).squeeze(-1)


class LocalPixels:
    """What pixels that depend on some pixels before them have in common.

    Arguments:
        features: What is known of each pixel beforehand, shape (..., pixels, features).
        head: Says of each pixel, from features and images, how it is distributed.
    """

    draws = 1  # uniform numbers that a pixel takes

    def __init__(self, features: Tensor, head: LocalHead):
        self.features = tensor("features", features)
        self.head = head

    def sample(self, *, generator: Source = None) -> Tensor:
        """Draw each image once, pixel by pixel, shape (..., pixels)."""
        features, shape = self.features, self.features.shape[:-1]
        # In 16 bits the chances of a rare pixel would be rounded.
        kind = torch.promote_types(features.dtype, torch.float32)
        even = uniform((*shape, self.draws), generator, like=features.new_empty(0, dtype=kind))
        with torch.no_grad():
            rows = features.reshape(-1, *features.shape[-2:])
            even = even.reshape(*rows.shape[:-1], self.draws)
            drawn = self.head.sample(rows, even, self._drawn)
        return drawn.reshape(shape).to(kind)

    def _drawn(self, said: Tensor, uniform: Tensor) -> Tensor:
        """Make pixels (n,) of what the head says of them and of uniform numbers (n, draws)."""
        raise NotImplementedError


class LocalBernoulli(LocalPixels):
    r"""Pixels of zeros and ones, each a coin that depends on some pixels before it.

    .. math:: p(x) = \prod_i p(x_i \mid x_{<i})

    in reading order: row by row, each from the left.

    There is no `mean`: a pixel's probability depends on the image. `probabilities` gives it. A
    sample has zeros and ones.

    Arguments:
        features: What is known of each pixel beforehand, shape (..., pixels, features).
        head: Maps features and images to logits.

    Example:
        >>> head = LocalHead((2, 3), features=4)
        >>> given = LocalBernoulli(torch.zeros(6, 4), head)
        >>> every = torch.cartesian_prod(*[torch.tensor([0.0, 1.0])] * 6)
        >>> print(f"{given.log_prob(every).exp().sum():.4f}")
        1.0000
    """

    def logits(self, x: Tensor) -> Tensor:
        """Return the logit of each pixel, given those of x before it, shape (..., pixels)."""
        return self.head(self.features, x)

    def probabilities(self, x: Tensor) -> Tensor:
        """Return the probability that a pixel is one, given those of x before it."""
        return torch.sigmoid(self.logits(x))

    def log_prob(self, x: Tensor) -> Tensor:
        r"""Return the log probability of each image.

        .. math:: \log p(x) = \sum_i \log p(x_i \mid x_{<i})

        Arguments:
            x: Zeros and ones, shape (..., pixels), broadcast against the features.

        Returns:
            Nats, shape (...); never positive.

        Raises:
            ValueError: Another number of pixels, or values that are not zeros and ones.
        """
        return Bernoulli(self.logits(x)).log_prob(x)

    def _drawn(self, said: Tensor, uniform: Tensor) -> Tensor:
        p = torch.sigmoid(said)
        return (uniform[:, 0] < p).to(p) + 0 * p  # NaN shows, rather than paper


class LocalDecoder(nn.Module):
    """A decoder whose pixels also see some pixels before them (Chen et al., 2017).

    Arguments:
        network: A map from latents (..., latents) to features (..., pixels, features).
        head: Maps features and images to logits.
    """

    def __init__(self, network: nn.Module, head: LocalHead):
        super().__init__()
        self.network = network
        self.head = head

    def forward(self, z: Tensor) -> LocalBernoulli:
        """Return p(x given z) of latents z, shape (..., latents)."""
        return LocalBernoulli(self.network(z), self.head)


class MaskedDense(nn.Module):
    r"""Numbers for each element of a vector that depend on the elements before it alone.

    A dense network whose units have a place each: a unit of the hidden layers sees elements up
    to its place, and an output sees hidden units of places before its own. This is MADE (Germain,
    Gregor, Murray and Larochelle, 2015), with the natural order, and SiLU between the layers. A
    second and further hidden layers are residual.

    Arguments:
        length: d, of the vector, at least 1.
        hidden: Units in a hidden layer, at least 1; from d - 1 on no place is without one.
        outputs: How many numbers for each element, at least 1.
        layers: How many hidden layers, at least 1.
        generator: The source of the weights; None takes PyTorch's global one.

    Example:
        >>> MaskedDense(40, hidden=512, outputs=24)(torch.zeros(5, 40)).shape
        torch.Size([5, 40, 24])
    """

    def __init__(
        self,
        length: int,
        hidden: int,
        outputs: int,
        layers: int = 2,
        generator: torch.Generator | None = None,
    ):
        super().__init__()
        element = torch.arange(whole("length", length))
        place = torch.arange(whole("hidden", hidden)) % max(1, length - 1)
        ends = element.repeat_interleave(whole("outputs", outputs))
        self.outputs = outputs
        self.first = _Masked(place[:, None] >= element, generator)
        more = range(whole("layers", layers) - 1)
        self.layers = nn.ModuleList(_Masked(place[:, None] >= place, generator) for _ in more)
        self.last = _Masked(ends[:, None] > place, generator)

    def forward(self, z: Tensor) -> Tensor:
        """Map vectors (..., d) to numbers (..., d, outputs)."""
        h = self.first(z)
        for layer in self.layers:
            h = h + layer(F.silu(h))
        return self.last(F.silu(h)).unflatten(-1, (-1, self.outputs))


class _Masked(nn.Module):
    """An affine layer, some of whose weights are held at zero."""

    def __init__(self, allowed: Tensor, generator: torch.Generator | None):
        super().__init__()
        self.affine = linear(*reversed(allowed.shape), generator)
        self.register_buffer("allowed", allowed, persistent=False)

    def forward(self, h: Tensor) -> Tensor:
        check_rows("z", h, self.affine.in_features, self.affine.weight, HOW)
        return F.linear(h, self.affine.weight * self.allowed, self.affine.bias)


class AutoregressiveMixture:
    r"""A vector, each of whose elements has a mixture of Gaussians given those before it.

    .. math:: p(z) = \prod_j \sum_k \pi_{jk} \, N(z_j; m_{jk}, s_{jk}^2), \quad
        (\pi_j, m_j, s_j) = f_j(z_{<j})

    Arguments:
        network: f, from (..., d) to (..., d, 3 K): K logits of weights, K means, and K log
            standard deviations that are then held between -6 and 6 by a tanh.
        length: d.
    """

    def __init__(self, network: nn.Module, length: int):
        self.network = network
        self.length = length

    def conditionals(self, z: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Return log weights, means and log standard deviations, shape (..., d, K) each.

        Those of an element depend on the elements before it alone.
        """
        numbers = self.network(z)
        numbers = numbers.to(torch.promote_types(numbers.dtype, torch.float32))
        logits, means, raw = numbers.chunk(3, -1)
        return torch.log_softmax(logits, -1), means, LOG_STD * torch.tanh(raw / LOG_STD)

    def log_prob(self, z: Tensor) -> Tensor:
        r"""Return the log density :math:`\sum_j \log p(z_j \mid z_{<j})` of each vector.

        Arguments:
            z: Shape (..., d).

        Returns:
            Nats, shape (...), of either sign.

        Raises:
            ValueError: Rows of another length.
        """
        log_weights, means, log_stds = self.conditionals(z)
        standard = (z.unsqueeze(-1) - means) * torch.exp(-log_stds)
        each = -0.5 * (standard**2 + math.log(2 * math.pi)) - log_stds
        return torch.logsumexp(log_weights + each, -1).sum(-1)

    def sample(self, samples: int, *, generator: torch.Generator | None = None) -> Tensor:
        """Draw `samples` vectors, at least 0, element by element, shape (samples, d)."""
        weight = next(self.network.parameters())
        shape = whole("samples", samples, 0), self.length
        alike = {"generator": source(generator), "device": weight.device, "dtype": weight.dtype}
        chance, noise = torch.rand(shape, **alike), torch.randn(shape, **alike)
        z = torch.zeros_like(noise)
        with torch.no_grad():
            for j in range(self.length):
                log_weights, means, log_stds = (part[:, j] for part in self.conditionals(z))
                below = log_weights.exp().cumsum(-1)[:, :-1]  # the last takes what is left
                which = (chance[:, j, None] >= below).sum(-1, keepdim=True)
                mean, log_std = means.gather(-1, which), log_stds.gather(-1, which)
                z[:, j] = (mean + log_std.exp() * noise[:, j, None]).squeeze(-1)
        return z


class AutoregressivePrior(nn.Module):
    """A prior p(z) that is learned: an `AutoregressiveMixture` over the vector of latents.

    Arguments:
        latents: d, the length of z, at least 1.
        hidden: Units in each of its two hidden layers, at least 1.
        components: K, at least 1. They start with means from -1 to 1 and a spread of about one.
        generator: The source of the weights; None takes PyTorch's global one.

    Example:
        >>> prior = AutoregressivePrior(40)()
        >>> prior.log_prob(torch.zeros(5, 40)).shape, prior.sample(3).shape
        (torch.Size([5]), torch.Size([3, 40]))
    """

    def __init__(
        self,
        latents: int,
        hidden: int = 512,
        components: int = 8,
        generator: torch.Generator | None = None,
    ):
        super().__init__()
        self.latents = whole("latents", latents)
        outputs = 3 * whole("components", components)
        self.network = MaskedDense(latents, hidden, outputs, generator=generator)
        with torch.no_grad():
            last = self.network.last.affine
            last.weight *= 0.1  # at first hardly anything depends on what came before
            spread = torch.linspace(-1, 1, components, dtype=last.bias.dtype)
            last.bias.view(latents, 3, components)[:, 1] = spread if components > 1 else 0

    def forward(self) -> AutoregressiveMixture:
        """Return p(z), of event shape (latents,)."""
        return AutoregressiveMixture(self.network, self.latents)
