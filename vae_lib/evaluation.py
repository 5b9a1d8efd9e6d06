"""What judges a trained model on images that it has not seen.

Each score is an `Estimate`: one value per image, from which mean and standard error follow.
A latent is always sampled, in evaluation as in training: with z = mu the number would be no
bound on anything. No function here changes the model.
"""

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from vae_lib.data import seeded
from vae_lib.model import VAE
from vae_lib.objectives import log_weights, terms


@dataclass(frozen=True)
class Estimate:
    """A score of each of n images, read as a sample from all images of their kind.

    Arguments:
        values: Shape (n,), in nats.

    Example:
        >>> print(Estimate(torch.tensor([-90.0, -100.0, -110.0])))
        -100.00 ± 5.77
    """

    values: Tensor

    @property
    def mean(self) -> float:
        """The mean over the images, in nats."""
        return self.values.double().mean().item()

    @property
    def standard_error(self) -> float:
        """How much that mean varies between draws of n images, s / sqrt(n), in nats."""
        return self.values.double().std().item() / math.sqrt(len(self.values))

    def __str__(self) -> str:
        """Mean and standard error, to a hundredth of a nat."""
        return f"{self.mean:.2f} ± {self.standard_error:.2f}"


@dataclass(frozen=True)
class Scores:
    """The held-out ELBO and the two costs that it is made of, in nats per image."""

    elbo: Estimate
    distortion: Estimate
    rate: Estimate


def held_out_elbo(model: VAE, images: Tensor, *, seed: int = 0, batch_size: int = 1000) -> Scores:
    """Estimate the ELBO of images with one sample of z each.

    Arguments:
        model: A VAE.
        images: Shape (n, pixels), in the support of the decoder's distribution.
        seed: Of the noise.
        batch_size: How many images to score at a time. Another size gives an image other noise.

    Returns:
        ELBO (larger is better), distortion and rate, one value per image each.

    Raises:
        ValueError: `images` is not a matrix with at least two rows.

    Example:
        >>> from vae_lib.model import dense_vae
        >>> scores = held_out_elbo(dense_vae(), torch.zeros(10, 784))
        >>> scores.elbo.values.shape
        torch.Size([10])
    """
    _check_images(images)
    noise = seeded(seed, stream="evaluation", device=images.device)
    with torch.no_grad():
        parts = [terms(model, x, noise) for x in images.split(batch_size)]
    distortion = torch.cat([part.distortion for part in parts])
    rate = torch.cat([part.rate for part in parts])
    return Scores(Estimate(-(distortion + rate)), Estimate(distortion), Estimate(rate))


@dataclass(frozen=True)
class LogLikelihood(Estimate):
    """An importance-sampled log p(x) of each image, and how much the sampling can be trusted.

    Arguments:
        values: Shape (n,), in nats.
        effective_samples: Kish's effective sample size of the weights of each image, shape (n,):
            from 1, where a single weight outweighs all others, to k, where all are equal.
        samples: k, the number of latents per image.
    """

    effective_samples: Tensor
    samples: int

    @property
    def sampling_errors(self) -> Tensor:
        r"""The standard error of each value that is due to its finite k, shape (n,), in nats.

        .. math:: \sqrt{1 / \text{ESS} - 1 / k}

        The delta method: the relative standard error of the mean weight, which is the absolute
        one of its logarithm. It takes the weights that were drawn for typical. Where the largest
        weights are rare and none was drawn, it is too small, and nothing in it says so.
        """
        return (1 / self.effective_samples - 1 / self.samples).clamp_min(0).sqrt()


def log_likelihood(
    model: VAE, images: Tensor, *, samples: int, seed: int = 0, batch_size: int = 50
) -> LogLikelihood:
    r"""Estimate log p(x) of images by importance sampling from the encoder.

    .. math:: \log p(x) \ge E \left[ \log \frac1k \sum_{i=1}^k w_i \right], \quad
        w_i = \frac{p(x | z_i) p(z_i)}{q(z_i | x)}, \quad z_i \sim q(z | x)

    Equation 8 of Burda, Grosse and Salakhutdinov (2016). For k = 1 it is the ELBO; its
    expectation does not fall with k, and tends to log p(x) at least where the weights are
    bounded. A difference between two models is meaningful only on the same images with the
    same k.

    Arguments:
        model: A VAE.
        images: Shape (n, pixels).
        samples: k, the number of latents per image, at least 1. At most a hundred are held in
            memory at a time.
        seed: Of the noise.
        batch_size: How many images to score at a time. Another size gives an image other noise.

    Returns:
        One value per image, in nats (larger is better), with its effective sample size
        :math:`(\sum w)^2 / \sum w^2` (Kish, 1965).

    Raises:
        ValueError: `samples` below 1, or `images` not a matrix with at least two rows.

    Example:
        >>> from vae_lib.model import dense_vae
        >>> found = log_likelihood(dense_vae(), torch.zeros(10, 784), samples=4)
        >>> found.values.shape, found.effective_samples.shape
        (torch.Size([10]), torch.Size([10]))
    """
    _check_images(images)
    if samples < 1:
        raise ValueError(f"samples: expected at least 1, got {samples}.")
    noise = seeded(seed, stream="evaluation", device=images.device)
    values, effective = [], []
    with torch.no_grad():
        for x in images.split(batch_size):
            sums, squares = [], []
            for start in range(0, samples, 100):
                log_w = log_weights(model, x, min(100, samples - start), noise)
                sums.append(torch.logsumexp(log_w, 0))
                squares.append(torch.logsumexp(2 * log_w, 0))
            total = torch.logsumexp(torch.stack(sums), 0)
            values.append(total - math.log(samples))
            effective.append(torch.exp(2 * total - torch.logsumexp(torch.stack(squares), 0)))
    return LogLikelihood(torch.cat(values), torch.cat(effective), samples)


def active_units(
    model: VAE, images: Tensor, *, threshold: float = 0.01, batch_size: int = 1000
) -> Tensor:
    r"""Say which latents the encoder uses.

    .. math:: \text{Var}_x \left( E_{q(z | x)}[z_j] \right) > 0.01

    The criterion of Burda, Grosse and Salakhutdinov (2016): the mean of an unused latent is the
    same for every image.

    Arguments:
        model: A VAE whose encoder's distribution has a `mean`.
        images: Shape (n, pixels).
        threshold: The variance above which a latent counts as active.
        batch_size: How many images to encode at a time; it does not change the result.

    Returns:
        True for each active latent, shape (latents,).

    Raises:
        ValueError: `images` is not a matrix with at least two rows.

    Example:
        >>> from vae_lib.model import dense_vae
        >>> active_units(dense_vae(latents=5), torch.eye(784)).shape
        torch.Size([5])
    """
    _check_images(images)
    with torch.no_grad():
        means = torch.cat([model.encoder(x).mean for x in images.split(batch_size)])
    return means.double().var(0) > threshold


def _check_images(images: Tensor) -> None:
    """Refuse what cannot be scored."""
    if images.ndim != 2 or len(images) < 2 or not images.is_floating_point():
        raise ValueError(
            "images: expected floats of shape (n, pixels) with n at least 2, got "
            f"{images.dtype} {tuple(images.shape)}. Binarise bytes; flatten pictures with "
            "images.flatten(1)."
        )
