"""The variational autoencoder: an encoder, a prior and a decoder, each giving a distribution."""

from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from vae_lib.arguments import real, whole
from vae_lib.distributions import Bernoulli, Categorical, DiagonalGaussian, DiscretizedLogistic
from vae_lib.networks import TwoHeads, dense


class GaussianEncoder(nn.Module):
    """The encoder, x to q(z given x): a network's two outputs read as mean and log std.

    Arguments:
        network: A map from images (..., pixels) to two tensors of shape (..., latents).
    """

    def __init__(self, network: nn.Module):
        super().__init__()
        self.network = network

    def forward(self, x: Tensor) -> DiagonalGaussian:
        """Return q(z given x) of images x, shape (..., pixels)."""
        return DiagonalGaussian(*self.network(x))


class BernoulliDecoder(nn.Module):
    """The decoder, z to p(x given z): a network's output read as the logits of the pixels.

    Arguments:
        network: A map from latents (..., latents) to logits (..., pixels).
    """

    def __init__(self, network: nn.Module):
        super().__init__()
        self.network = network

    def forward(self, z: Tensor) -> Bernoulli:
        """Return p(x given z) of latents z, shape (..., latents)."""
        return Bernoulli(self.network(z))


class GaussianDecoder(nn.Module):
    """A decoder of grey images: a network's output is the mean, with one spread for all pixels.

    Arguments:
        network: A map from latents (..., latents) to means (..., pixels).
        std: The standard deviation of every pixel. A number keeps it at that; None learns it,
            from 1 on, as Rybkin, Daniilidis and Levine (2021) do.

    Raises:
        ValueError: `std` not above zero.
    """

    def __init__(self, network: nn.Module, std: float | None = None):
        super().__init__()
        if std is not None and not real("std", std) > 0:
            raise ValueError(f"std: expected a number above zero, got {std}.")
        self.network = network
        log_std = torch.tensor(1.0 if std is None else std).log()
        self.log_std = nn.Parameter(log_std, requires_grad=std is None)

    def forward(self, z: Tensor) -> DiagonalGaussian:
        """Return p(x given z), a density, of latents z, shape (..., latents)."""
        mean = self.network(z)
        return DiagonalGaussian(mean, self.log_std.expand_as(mean))


class CategoricalDecoder(nn.Module):
    """A decoder of grey levels: a network's output is read as L logits a pixel.

    Arguments:
        network: A map from latents (..., latents) to logits (..., pixels x L), pixel by pixel.
        levels: L, the number of grey levels.
    """

    def __init__(self, network: nn.Module, levels: int):
        super().__init__()
        self.network = network
        self.levels = levels

    def forward(self, z: Tensor) -> Categorical:
        """Return p(x given z) of latents z, shape (..., latents)."""
        return Categorical(self.network(z).unflatten(-1, (-1, self.levels)))


class DiscretizedLogisticDecoder(nn.Module):
    """A decoder of grey levels: a network's two outputs are read as location and log scale.

    Arguments:
        network: A map from latents (..., latents) to two tensors of shape (..., pixels).
        levels: L, the number of grey levels.
    """

    def __init__(self, network: nn.Module, levels: int = 256):
        super().__init__()
        self.network = network
        self.levels = levels

    def forward(self, z: Tensor) -> DiscretizedLogistic:
        """Return p(x given z) of latents z, shape (..., latents)."""
        return DiscretizedLogistic(*self.network(z), levels=self.levels)


class StandardNormal(nn.Module):
    """The prior p(z) = N(0, I).

    Arguments:
        latents: The length of z, at least 1.
    """

    def __init__(self, latents: int):
        super().__init__()
        # A buffer, so that the prior moves between devices and precisions with the model; not
        # saved, because it holds nothing that was learned.
        self.register_buffer("zeros", torch.zeros(latents), persistent=False)

    def forward(self) -> DiagonalGaussian:
        """Return p(z), of event shape (latents,)."""
        return DiagonalGaussian(self.zeros, self.zeros)


class VAE(nn.Module):
    """A variational autoencoder (Kingma and Welling, 2014): three parts, each replaceable.

    Objectives, evaluation and `generate` know a model by two methods alone. What has both is a
    model, however many latents it has (`vae_lib.hierarchy`):

    - `seen = bottom_up(x)` is what images alone say of the latents.
    - `top_down(seen, choose)` returns p(x given z). On its way it calls `choose(q, p)` for each
      latent, the top one first, with its q and its prior, both given the latents above.
    - What `choose` returns is that latent: a draw from q to score an image, one from p to make
      an image (then `seen` and q are None), or whatever a codec reads. The first may have axes
      in front, such as samples; what follows carries them.

    Arguments:
        encoder: A module from images x (..., pixels) to a distribution q(z given x).
        prior: A module that, called with nothing, gives the distribution p(z).
        decoder: A module from latents z (..., latents) to a distribution p(x given z).

    Attributes:
        per_pixel: How many numbers the way down holds for each pixel, 1 unless set. Evaluation
            decodes fewer latents at a time where they are many.

    Example:
        >>> model = dense_vae(latents=5)
        >>> q = model.encoder(torch.zeros(3, 784))
        >>> model.decoder(q.rsample()).mean.shape
        torch.Size([3, 784])
        >>> model.top_down(model.bottom_up(torch.zeros(3, 784)), lambda q, p: q.mean).mean.shape
        torch.Size([3, 784])
    """

    per_pixel = 1

    def __init__(self, encoder: nn.Module, prior: nn.Module, decoder: nn.Module):
        super().__init__()
        self.encoder = encoder
        self.prior = prior
        self.decoder = decoder

    def bottom_up(self, x: Tensor) -> Any:
        """Return what images x, shape (..., pixels), say of the latents: here q(z given x)."""
        return self.encoder(x)

    def top_down(self, seen: Any, choose: Callable[[Any, Any], Tensor]) -> Any:
        """Return p(x given z) of the latents that `choose(q, p)` gives, here a single one.

        Arguments:
            seen: What `bottom_up` returned, or None, as to generate; then q is None.
            choose: Called with q and the prior of each latent; returns the latent.
        """
        return self.decoder(choose(seen, self.prior()))

    def generate(self, count: int, *, generator: torch.Generator | None = None):
        """Draw `count` latents from the prior and return p(x given z), batch shape (count,).

        The model stays in the mode that it is in: with dropout or batch normalisation, put it
        into evaluation mode first, by `model.eval()` or `switched`.
        """
        counts = iter([count])  # of the top latent; those below it follow
        return self.top_down(None, lambda q, p: p.sample(next(counts, None), generator=generator))


def dense_vae(
    pixels: int = 784, hidden: int | Sequence[int] = 500, latents: int = 5, *, seed: int = 0
) -> VAE:
    """Make a network of the post's kind: 784-500-(5, 5) to encode, 5-500-784 to decode, tanh.

    Arguments:
        pixels: Length of an image row.
        hidden: Width of the one hidden layer on each side, or the widths of several, in the
            order of the encoder; the decoder has them in the opposite order.
        latents: Length of z.
        seed: Of the initial weights (Glorot's; biases start at zero), the source of which is
            `torch.Generator().manual_seed(seed)`.

    Returns:
        A model with a Gaussian encoder, a standard normal prior and a Bernoulli decoder, on the
        CPU, whatever PyTorch's default device is.

    Raises:
        ValueError: A size below 1, or no hidden layer.

    Example:
        >>> sum(weight.numel() for weight in dense_vae().parameters())
        793294
    """
    pixels, latents = whole("pixels", pixels), whole("latents", latents)
    several = isinstance(hidden, Iterable) and not isinstance(hidden, str)
    widths = [whole("hidden", width) for width in (hidden if several else [hidden])]
    if not widths:
        raise ValueError("hidden: expected at least one width, got none.")
    generator = torch.Generator().manual_seed(whole("seed", seed, None))
    with torch.device(generator.device):
        trunk = nn.Sequential(dense(pixels, *widths, generator=generator), nn.Tanh())
        return VAE(
            GaussianEncoder(TwoHeads(trunk, widths[-1], latents, generator)),
            StandardNormal(latents),
            BernoulliDecoder(dense(latents, *reversed(widths), pixels, generator=generator)),
        )


@contextmanager
def switched(model: nn.Module, *, training: bool) -> Iterator[None]:
    """Put a model into training or evaluation mode for a while, then each part back as it was.

    The mode tells layers such as batch normalisation and dropout what to do.

    Arguments:
        model: Any module. What is none has no mode, and is left alone.
        training: True for training mode, False for evaluation mode.

    Example:
        >>> model = dense_vae()
        >>> with switched(model, training=False):
        ...     model.training
        False
        >>> model.training
        True
    """
    modules = list(model.modules()) if isinstance(model, nn.Module) else []
    before = [module.training for module in modules]
    if modules:
        model.train(training)
    try:
        yield
    finally:
        for module, mode in zip(modules, before, strict=True):
            module.training = mode
