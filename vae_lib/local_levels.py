"""Grey pixels that depend on those before them: each a mixture of discretised logistics.

What `vae_lib.autoregressive` does for ink and paper, done for levels of grey. A pixel sees the
latents' features and the few pixels above and to the left of it, and has a mixture of the
logistics of `vae_lib.distributions.DiscretizedLogistic`. Most pixels of a digit are paper and
nothing but paper: a component whose centre lies beyond an end gives that end nearly all its mass.
"""

import math
from collections.abc import Sequence

import torch
from torch import Tensor, nn

from vae_lib.arguments import whole
from vae_lib.autoregressive import LocalHead, LocalPixels
from vae_lib.convolutional import LOG_SCALES
from vae_lib.data import seeded
from vae_lib.distributions import DiscretizedLogistic
from vae_lib.model import VAE
from vae_lib.networks import linear
from vae_lib.residual import residual_vae


class LevelHead(LocalHead):
    r"""From features and the greys before to the mixture of each pixel: a `LocalHead` of 3 K.

    Of each grey nearby it sees two numbers, the grey itself and whether it is more than paper,
    since the faintest grey is the beginning of a stroke and paper is not.

    Arguments:
        shape, features, reach, layers, generator: Those of `LocalHead`.
        components: K, at least 1.

    Example:
        >>> head = LevelHead((28, 28), features=32)
        >>> head(torch.zeros(5, 784, 32), torch.zeros(5, 784)).shape
        torch.Size([5, 784, 15])
    """

    how = "Make greys of bytes with vae_lib.data.quantize"

    def __init__(
        self,
        shape: Sequence[int],
        features: int,
        reach: int = 3,
        layers: int = 2,
        components: int = 5,
        generator: torch.Generator | None = None,
    ):
        super().__init__(shape, features, reach, layers, generator)
        self.components = whole("components", components)
        again = torch.empty_like(self.weight)
        bound = math.sqrt(3 / max(1, 2 * reach * (reach + 1)))
        nn.init.uniform_(again, -bound, bound, generator=generator)
        both = torch.stack([self.weight.detach(), again], 1) / math.sqrt(2)
        self.weight = nn.Parameter(both)
        self.last = linear(features, 3 * components, generator)
        with torch.no_grad():  # at first the centres are spread from paper to ink
            self.last.weight *= 0.1
            self.last.bias.view(3, -1)[1] = torch.linspace(0, 1, components)

    def _shown(self, pictures: Tensor) -> Tensor:
        """Return greys (...), and whether they are more than paper, as (..., 2)."""
        return torch.stack([pictures, (pictures > 0).to(pictures)], -1)


def mixtures(numbers: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Read numbers (..., 3 K) as log weights, centres and log scales, (..., K) each.

    A tanh holds the log scales between -8 and 3, as those of `conv_vae`.
    """
    logits, means, raw = numbers.chunk(3, -1)
    low, high = LOG_SCALES
    half = (high - low) / 2
    return torch.log_softmax(logits, -1), means, low + half + half * torch.tanh(raw / half)


class LocalLevels(LocalPixels):
    r"""Pixels of grey levels, each a mixture that depends on some pixels before it.

    .. math:: p(x) = \prod_i \sum_k \pi_k \left[ F_k(b_i) - F_k(a_i) \right], \quad
        (\pi, F) = f_i(z, x_{<i})

    in reading order, with the logistic distribution functions F and the bins from a to b of
    PixelCNN++ (Salimans, Karpathy, Chen and Kingma, 2017). A sample has greys from 0 to 1.

    Arguments:
        features: What is known of each pixel beforehand, shape (..., pixels, features).
        head: Maps features and images to mixtures.
        levels: L, at least 2.

    Example:
        >>> given = LocalLevels(torch.zeros(2, 4), LevelHead((1, 2), features=4), levels=3)
        >>> every = torch.cartesian_prod(*[torch.tensor([0, 0.5, 1])] * 2)
        >>> print(f"{given.log_prob(every).exp().sum():.4f}")
        1.0000
    """

    draws = 2  # one chooses the component, the other the place within it

    def __init__(self, features: Tensor, head: LevelHead, levels: int = 256):
        super().__init__(features, head)
        self.levels = whole("levels", levels, 2)

    def log_prob(self, x: Tensor) -> Tensor:
        """Return the log probability of each image.

        Arguments:
            x: Greys that are multiples of 1 / (L - 1), shape (..., pixels), broadcast against the
                features.

        Returns:
            Nats, shape (...); never positive, but for rounding.

        Raises:
            ValueError: Another number of pixels, or greys between the levels.
        """
        numbers = self.head(self.features, x)
        numbers = numbers.to(torch.promote_types(numbers.dtype, torch.float32))
        log_weights, means, log_scales = mixtures(numbers)
        rows = (part.reshape(-1, self.head.components, 1) for part in (means, log_scales))
        grey = x.expand(means.shape[:-1]).reshape(-1, 1, 1)
        each = DiscretizedLogistic(*rows, levels=self.levels).log_prob(grey)
        return torch.logsumexp(log_weights + each.view(means.shape), -1).sum(-1)

    def _drawn(self, said: Tensor, uniform: Tensor) -> Tensor:
        log_weights, means, log_scales = mixtures(said)
        below = log_weights.exp().cumsum(-1)[:, :-1]  # the last takes what is left
        which = (uniform[:, :1] >= below).sum(-1, keepdim=True)
        mean, scale = means.gather(-1, which), log_scales.gather(-1, which).exp()
        grey = (mean + scale * torch.logit(uniform[:, 1:])).clamp(0, 1)
        return (torch.round(grey * (self.levels - 1)) / (self.levels - 1)).squeeze(-1)


class LevelDecoder(nn.Module):
    """A decoder of grey levels whose pixels also see some pixels before them.

    Arguments:
        network: A map from latents (..., latents) to features (..., pixels, features).
        head: Maps features and images to mixtures.
        levels: How many greys there are.
    """

    def __init__(self, network: nn.Module, head: LevelHead, levels: int = 256):
        super().__init__()
        self.network = network
        self.head = head
        self.levels = levels

    def forward(self, z: Tensor) -> LocalLevels:
        """Return p(x given z) of latents z, shape (..., latents)."""
        return LocalLevels(self.network(z), self.head, self.levels)


def level_vae(
    shape: Sequence[int] = (28, 28),
    latents: int = 40,
    *,
    features: int = 32,
    reach: int = 3,
    components: int = 5,
    levels: int = 256,
    seed: int = 0,
    **others,
) -> VAE:
    """Make a `residual_vae` of grey levels.

    The gradients are long at first, since a wrong grey costs more the narrower the scale: train
    with `clip`.

    Arguments:
        shape, latents, features, reach, seed: Those of `residual_vae`.
        components: How many logistics there are in a pixel's mixture.
        levels: How many greys a pixel may have.
        others: What else `residual_vae` takes.

    Example:
        >>> model = level_vae((8, 8), 4, widths=(4, 6), features=5)
        >>> model.decoder(torch.zeros(3, 4)).log_prob(torch.zeros(3, 64)).shape
        torch.Size([3])
    """
    model = residual_vae(shape, latents, features=features, reach=reach, seed=seed, **others)
    generator = seeded(seed, stream="level_vae")
    with torch.device(generator.device):
        head = LevelHead(shape, features, reach, components=components, generator=generator)
    return VAE(model.encoder, model.prior, LevelDecoder(model.decoder.network, head, levels=levels))
