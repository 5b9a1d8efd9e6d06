"""Distributions with the three things that a VAE asks of them: density, sample, divergence.

They are ours rather than `torch.distributions` because the divergence is what the book is
about, and because randomness is passed in as a `torch.Generator`. The last axis is the event:
latents or pixels. Every density and divergence sums over it and returns one value per
example, in nats.
"""

import math

import torch
import torch.nn.functional as F
from torch import Tensor


class DiagonalGaussian:
    r"""A normal distribution with independent components, :math:`N(\mu, \sigma^2)`.

    Arguments:
        mean: :math:`\mu`, shape (..., d).
        log_std: :math:`\log \sigma`, the logarithm of the standard deviation (not of the
            variance), shape (..., d).

    Raises:
        ValueError: The two shapes differ.

    Example:
        >>> standard = DiagonalGaussian(torch.zeros(2), torch.zeros(2))
        >>> print(f"{standard.log_prob(torch.zeros(2)):.4f}")  # -log(2 pi)
        -1.8379
    """

    def __init__(self, mean: Tensor, log_std: Tensor):
        if mean.shape != log_std.shape:
            raise ValueError(
                f"log_std: expected the shape of mean, {tuple(mean.shape)}, "
                f"got {tuple(log_std.shape)}."
            )
        self.mean = mean
        self.log_std = log_std

    @property
    def std(self) -> Tensor:
        """The standard deviation, shape (..., d)."""
        return self.log_std.exp()

    def log_prob(self, z: Tensor) -> Tensor:
        r"""Return the log density of each example.

        .. math:: \log N(z; \mu, \sigma^2) = -\tfrac12 \sum_j \left[
            \left(\frac{z_j - \mu_j}{\sigma_j}\right)^2 + 2 \log\sigma_j + \log 2\pi \right]

        Arguments:
            z: Shape (..., d), broadcast against the parameters.

        Returns:
            Nats, shape (...); of either sign, since a density may exceed one.
        """
        standard = (z - self.mean) * torch.exp(-self.log_std)
        return -0.5 * (standard**2 + 2 * self.log_std + math.log(2 * math.pi)).sum(-1)

    def rsample(
        self, samples: int | None = None, *, generator: torch.Generator | None = None
    ) -> Tensor:
        r"""Draw :math:`\mu + \sigma \varepsilon` with :math:`\varepsilon \sim N(0, I)`.

        The draw is differentiable in :math:`\mu` and :math:`\log\sigma` (the
        reparameterisation of Kingma and Welling, 2014).

        Arguments:
            samples: How many draws per example; None for one without an axis of its own.
            generator: The source of the noise; None takes PyTorch's global one.

        Returns:
            Shape (..., d), or (samples, ..., d).
        """
        shape = self.mean.shape if samples is None else (samples, *self.mean.shape)
        noise = torch.randn(
            shape, generator=generator, device=self.mean.device, dtype=self.mean.dtype
        )
        return self.mean + self.std * noise

    def kl(self, other: "DiagonalGaussian") -> Tensor:
        r"""Return the Kullback-Leibler divergence from this distribution to another.

        .. math:: KL(q \| p) = \tfrac12 \sum_j \left[ \frac{\sigma_j^2 + (\mu_j - m_j)^2}{s_j^2}
            - 1 - 2 \log \frac{\sigma_j}{s_j} \right]

        with :math:`q = N(\mu, \sigma^2)` this distribution and :math:`p = N(m, s^2)` the other.
        For a standard normal p it is appendix B of Kingma and Welling (2014).

        Arguments:
            other: p, broadcast against q.

        Returns:
            Nats, shape (...); zero where the two are equal and positive elsewhere, but for
            rounding (about 1e-7 in 32-bit floats).
        """
        log_ratio = self.log_std - other.log_std
        shift = (self.mean - other.mean) * torch.exp(-other.log_std)
        return 0.5 * (torch.exp(2 * log_ratio) + shift**2 - 1 - 2 * log_ratio).sum(-1)


class Bernoulli:
    r"""Independent coin tosses, one a pixel, given by their logits.

    The logit of a probability p is :math:`\log p/(1 - p)`. Logits rather than probabilities,
    because the probability of a pixel that the network is sure of rounds to 0 or 1, whose
    logarithm is infinite, and an epsilon added to keep it finite changes the loss.

    Arguments:
        logits: Any real numbers, shape (..., d).

    Example:
        >>> coins = Bernoulli(torch.tensor([0.0, 0.0, 0.0]))
        >>> print(f"{coins.log_prob(torch.tensor([1.0, 0.0, 1.0])):.4f}")  # 3 log(1/2)
        -2.0794
    """

    def __init__(self, logits: Tensor):
        self.logits = logits

    @property
    def mean(self) -> Tensor:
        """The probability that a pixel is one, shape (..., d)."""
        return torch.sigmoid(self.logits)

    def log_prob(self, x: Tensor) -> Tensor:
        r"""Return the log probability of each image.

        .. math:: \log p(x) = \sum_i \left[ x_i \log p_i + (1 - x_i) \log (1 - p_i) \right]

        Arguments:
            x: Zeros and ones, shape (..., d), broadcast against the logits.

        Returns:
            Nats, shape (...); never positive.

        Raises:
            ValueError: Another number of pixels, or values that are not zeros and ones. Grey
                levels would give a number, but not the probability of a grey image.
        """
        if x.shape[-1:] != self.logits.shape[-1:]:
            raise ValueError(
                f"x: expected {self.logits.shape[-1]} pixels a row, got shape {tuple(x.shape)}. "
                "Flatten pictures with x.flatten(1)."
            )
        if not ((x == 0) | (x == 1)).all():
            raise ValueError(
                f"x: expected zeros and ones, got values from {x.min():g} to {x.max():g}. "
                "Make them with vae_lib.data.binarize."
            )
        target = x.to(self.logits.dtype).expand_as(self.logits)
        loss = F.binary_cross_entropy_with_logits(self.logits, target, reduction="none")
        return -loss.sum(-1)

    def sample(self, *, generator: torch.Generator | None = None) -> Tensor:
        """Toss each coin once: zeros and ones, of the shape of the logits."""
        uniform = torch.rand(
            self.logits.shape,
            generator=generator,
            device=self.logits.device,
            dtype=self.logits.dtype,
        )
        return (uniform < self.mean).to(self.logits.dtype)
