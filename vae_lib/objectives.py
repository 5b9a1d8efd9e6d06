"""What training maximises: the evidence lower bound, its two terms, and importance weights.

Every function returns one value per example, in nats per image. Nothing is averaged over a
batch here, and nothing is negated: for the ELBO, larger is better.
"""

from dataclasses import dataclass

import torch
from torch import Tensor

from vae_lib.model import VAE


@dataclass(frozen=True)
class Terms:
    """The two costs of an image, in nats: what the latents leave open, and the latents."""

    distortion: Tensor
    rate: Tensor

    @property
    def elbo(self) -> Tensor:
        """The evidence lower bound, minus the sum of the two costs."""
        return -(self.distortion + self.rate)


def terms(model: VAE, x: Tensor, generator: torch.Generator | None = None) -> Terms:
    r"""Estimate the two terms of the negative ELBO with one sample of z per image.

    .. math:: \text{distortion} = -\log p(x | z), \quad z \sim q(z | x); \qquad
        \text{rate} = KL(q(z | x) \| p(z))

    The distortion is an unbiased estimate of its expectation over q; the rate is exact.

    Arguments:
        model: Any VAE whose q has a closed-form `kl` to its prior.
        x: Images, shape (batch, pixels), in the support of the decoder's distribution.
        generator: The source of the noise; None takes PyTorch's global one.

    Returns:
        Distortion and rate, each of shape (batch,), in nats; the rate is not negative, but for
        rounding.

    Example:
        >>> from vae_lib.model import dense_vae
        >>> cost = terms(dense_vae(), torch.zeros(3, 784))
        >>> cost.distortion.shape, bool((cost.rate >= 0).all())
        (torch.Size([3]), True)
    """
    q = model.encoder(x)
    z = q.rsample(generator=generator)
    return Terms(distortion=-model.decoder(z).log_prob(x), rate=q.kl(model.prior()))


def elbo(model: VAE, x: Tensor, generator: torch.Generator | None = None) -> Tensor:
    r"""Estimate the evidence lower bound of each image with one sample of z.

    .. math:: \text{ELBO}(x) = E_{q(z | x)}[\log p(x | z)] - KL(q(z | x) \| p(z))
        \le \log p(x)

    Equation 3 of Kingma and Welling (2014), estimated as in their equation 7.

    Arguments:
        model: A VAE.
        x: Images, shape (batch, pixels).
        generator: The source of the noise; None takes PyTorch's global one.

    Returns:
        Nats, shape (batch,); larger is better.

    Example:
        >>> from vae_lib.model import dense_vae
        >>> elbo(dense_vae(), torch.zeros(3, 784)).shape
        torch.Size([3])
    """
    return terms(model, x, generator).elbo


def log_weights(
    model: VAE, x: Tensor, samples: int, generator: torch.Generator | None = None
) -> Tensor:
    r"""Draw latents from q and return their log importance weights.

    .. math:: \log w = \log p(x | z) + \log p(z) - \log q(z | x), \quad z \sim q(z | x)

    Their mean estimates the ELBO; the logarithm of the mean of :math:`w` estimates
    :math:`\log p(x)` from below (Burda, Grosse and Salakhutdinov, 2016, equation 8).

    Arguments:
        model: A VAE.
        x: Images, shape (batch, pixels).
        samples: How many latents to draw for each image, at least 1.
        generator: The source of the noise; None takes PyTorch's global one.

    Returns:
        Nats, shape (samples, batch).

    Raises:
        ValueError: `samples` below 1.

    Example:
        >>> from vae_lib.model import dense_vae
        >>> log_weights(dense_vae(), torch.zeros(3, 784), 2).shape
        torch.Size([2, 3])
    """
    if samples < 1:
        raise ValueError(f"samples: expected at least 1, got {samples}.")
    q = model.encoder(x)
    z = q.rsample(samples, generator=generator)
    return model.decoder(z).log_prob(x) + model.prior().log_prob(z) - q.log_prob(z)
