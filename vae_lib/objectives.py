"""What training maximises: the evidence lower bound, its two terms, and importance weights.

Every objective returns one value per example, in nats per image. Nothing is averaged over a
batch here, and nothing is negated: for the ELBO, larger is better.
"""

import math
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from vae_lib.arguments import kind, real, whole
from vae_lib.distributions import DiagonalGaussian
from vae_lib.model import VAE


@dataclass(frozen=True, eq=False)
class Terms:
    """The two costs of an image, in nats: what the latents leave open, and the latents.

    Arguments:
        distortion: Shape (batch,).
        rate: Of all latents, shape (batch,).
        rates: That of each latent of a hierarchy, the top one first; they add up to `rate`.
    """

    distortion: Tensor
    rate: Tensor
    rates: tuple[Tensor, ...] = ()

    @property
    def elbo(self) -> Tensor:
        """The evidence lower bound, minus the sum of the two costs."""
        return -(self.distortion + self.rate)


def terms(model: VAE, x: Tensor, generator: torch.Generator | None = None) -> Terms:
    r"""Estimate the two terms of the negative ELBO with one sample of z per image.

    .. math:: \text{distortion} = -\log p(x | z), \quad z \sim q(z | x); \qquad
        \text{rate} = KL(q(z | x) \| p(z))

    The distortion is an unbiased estimate of its expectation over q. The rate is exact where
    encoder and prior are diagonal Gaussians; with any other prior it is estimated by the same
    sample, as :math:`\log q(z | x) - \log p(z)`. In a hierarchy each latent has a rate, given the
    sample of those above it, and they add up.

    Arguments:
        model: A VAE.
        x: Images, shape (batch, pixels), in the support of the decoder's distribution.
        generator: The source of the noise; None takes PyTorch's global one.

    Returns:
        Distortion and rate, each of shape (batch,), in nats. An exact rate is not negative, but
        for rounding; an estimated one may be.

    Raises:
        ValueError: Encoder and decoder disagree about how many images there are.

    Example:
        >>> from vae_lib.model import dense_vae
        >>> cost = terms(dense_vae(), torch.zeros(3, 784))
        >>> cost.distortion.shape, bool((cost.rate >= 0).all())
        (torch.Size([3]), True)
    """
    rates = []

    def choose(q, prior):
        z = q.rsample(generator=generator)
        exact = isinstance(q, DiagonalGaussian) and isinstance(prior, DiagonalGaussian)
        rates.append(q.kl(prior) if exact else q.log_prob(z) - prior.log_prob(z))
        return z

    model = _model(model)
    log_p = model.top_down(model.bottom_up(x), choose).log_prob(x)
    rate = sum(rates[1:], rates[0])
    if log_p.shape != rate.shape:  # or their sum would broadcast
        raise ValueError(
            f"model: expected one log p(x | z) for each of {tuple(rate.shape)} images, got shape "
            f"{tuple(log_p.shape)}. Let the decoder give rows of pixels: .flatten(1)."
        )
    return Terms(distortion=-log_p, rate=rate, rates=tuple(rates))


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


def beta_elbo(
    model: VAE, x: Tensor, generator: torch.Generator | None = None, *, beta: float
) -> Tensor:
    r"""Estimate the ELBO with its rate weighted by beta (Higgins et al., 2017).

    .. math:: -(\text{distortion} + \beta \, \text{rate})

    For a beta of at least 1 its expectation is a bound on :math:`\log p(x)`, since no expected
    rate is negative; below 1 it need not be one.

    Arguments:
        model: A VAE.
        x: Images, shape (batch, pixels).
        generator: The source of the noise; None takes PyTorch's global one.
        beta: The weight of the rate, not negative; 1 is the ELBO.

    Returns:
        Nats, shape (batch,); larger is better.

    Raises:
        ValueError: A negative `beta`.

    Example:
        >>> from vae_lib.model import dense_vae
        >>> beta_elbo(dense_vae(), torch.zeros(3, 784), beta=0.5).shape
        torch.Size([3])
    """
    if not real("beta", beta) >= 0:
        raise ValueError(f"beta: expected a number not below zero, got {beta}.")
    cost = terms(model, x, generator)
    return -(cost.distortion + beta * cost.rate)


def log_weights(
    model: VAE,
    x: Tensor,
    samples: int,
    generator: torch.Generator | None = None,
    *,
    at_once: int | None = None,
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
        at_once: How many of the drawn latents of each image to decode at a time, at least 1; None
            for all. Without a gradient, fewer take less memory. It changes weights by rounding
            alone, but in a hierarchy it changes the noise below the top.

    Returns:
        Nats, shape (samples, batch).

    Raises:
        ValueError: `samples` or `at_once` below 1.

    Example:
        >>> from vae_lib.model import dense_vae
        >>> log_weights(dense_vae(), torch.zeros(3, 784), 2).shape
        torch.Size([2, 3])
    """
    whole("samples", samples)
    at_once = samples if at_once is None else whole("at_once", at_once)
    model = _model(model)
    seen = model.bottom_up(x)
    tops: list[Tensor] = []

    def first(q):
        if not tops:  # all draws of the top latent are made at once
            z = q.rsample(samples, generator=generator)
            tops.extend([z] if samples <= at_once else z.split(at_once))
        return tops.pop(0)

    parts = range(0, samples, at_once)
    return torch.cat([_log_weight(model, seen, x, first, generator) for _ in parts])


def _log_weight(model, seen, x, first, generator) -> Tensor:
    """Go top-down once, from the latent that `first` draws from its q, and weigh what was drawn."""
    drawn = []

    def choose(q, prior):
        z = q.rsample(generator=generator) if drawn else first(q)
        drawn.append((q, prior, z))
        return z

    log_w = model.top_down(seen, choose).log_prob(x)
    for q, prior, z in drawn:
        log_w = log_w + prior.log_prob(z) - q.log_prob(z)
    return log_w


def _model(model: Any) -> Any:
    """Return a model with the two methods of a `VAE`: itself, or one made of its three parts."""
    made = hasattr(model, "top_down")
    return model if made else VAE(model.encoder, model.prior, model.decoder)


def iwae(
    model: VAE, x: Tensor, generator: torch.Generator | None = None, *, samples: int
) -> Tensor:
    r"""Estimate the importance-weighted bound of each image.

    .. math:: \log \frac1k \sum_{i=1}^k w_i, \quad
        w_i = \frac{p(x | z_i) \, p(z_i)}{q(z_i | x)}, \quad z_i \sim q(z | x)

    Equation 8 of Burda, Grosse and Salakhutdinov (2016). Its expectation is at most
    :math:`\log p(x)` and does not fall with k; for k = 1 it is the ELBO's.

    Arguments:
        model: A VAE.
        x: Images, shape (batch, pixels).
        generator: The source of the noise; None takes PyTorch's global one.
        samples: k, the number of latents per image, at least 1.

    Returns:
        Nats, shape (batch,); larger is better.

    Raises:
        ValueError: `samples` below 1.

    Example:
        >>> from vae_lib.model import dense_vae
        >>> iwae(dense_vae(), torch.zeros(3, 784), samples=5).shape
        torch.Size([3])
    """
    return torch.logsumexp(log_weights(model, x, samples, generator), 0) - math.log(samples)


def dreg(
    model: VAE, x: Tensor, generator: torch.Generator | None = None, *, samples: int
) -> Tensor:
    r"""Estimate the importance-weighted bound, with the doubly reparameterised gradient.

    The value is that of `iwae`, draw for draw. So is the gradient in the parameters of decoder
    and prior. In those of the encoder, :math:`\phi`, it is

    .. math:: \sum_{i=1}^k \tilde w_i^2 \, \frac{\partial \log w_i}{\partial z_i}
        \frac{\partial z_i}{\partial \phi}, \quad \tilde w_i = \frac{w_i}{\sum_j w_j}

    which has the same expectation (Tucker, Lawson, Gu and Maddison, 2019). For large k the ratio
    of its signal to its noise grows like the root of k, where that of `iwae` falls like one over
    the root; how large k must be depends on how far q is from the posterior. The chapter
    *How good is it?* shows it growing for one latent, and for two trained networks still falling
    at k = 64.
    For k = 1 it is the estimator of Roeder, Wu and Duvenaud (2017).

    Arguments:
        model: A VAE with one latent vector, whose encoder gives a `DiagonalGaussian`.
        x: Images, shape (batch, pixels).
        generator: The source of the noise; None takes PyTorch's global one.
        samples: k, the number of latents per image, at least 1.

    Returns:
        Nats, shape (batch,); larger is better. Second derivatives are not those of the bound.

    Raises:
        ValueError: `samples` below 1, or a model of another kind, such as a hierarchy.

    Example:
        >>> from vae_lib.model import dense_vae
        >>> dreg(dense_vae(), torch.zeros(3, 784), samples=5).shape
        torch.Size([3])
    """
    whole("samples", samples)
    model = _model(model)
    q = model.bottom_up(x)
    if not isinstance(q, DiagonalGaussian):
        raise ValueError(
            f"model: expected a DiagonalGaussian as its q, got {kind(q)}. Use iwae, which serves "
            "other distributions and hierarchies too."
        )
    z = q.rsample(samples, generator=generator)
    # q is held fixed here, so that its parameters act through z alone ...
    log_w = _log_weight(model, q.detach(), x, lambda q: z, generator)
    weights = torch.softmax(log_w.detach(), 0)
    if z.requires_grad:
        # ... and what flows back through z is weighted once more.
        z.register_hook(lambda gradient: weights.unsqueeze(-1) * gradient)
    surrogate = (weights * log_w).sum(0)
    value = torch.logsumexp(log_w.detach(), 0) - math.log(samples)
    return value + surrogate - surrogate.detach()
