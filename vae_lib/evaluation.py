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


def log_likelihood(
    model: VAE, images: Tensor, *, samples: int, seed: int = 0, batch_size: int = 50
) -> Estimate:
    r"""Estimate log p(x) of images by importance sampling from the encoder.

    .. math:: \log p(x) \ge E \left[ \log \frac1k \sum_{i=1}^k w_i \right], \quad
        w_i = \frac{p(x | z_i) p(z_i)}{q(z_i | x)}, \quad z_i \sim q(z | x)

    Equation 8 of Burda, Grosse and Salakhutdinov (2016). For k = 1 it is the ELBO; its
    expectation does not fall with k and tends to log p(x), if the weights are bounded. A
    difference between two models is meaningful only on the same images with the same k.

    Arguments:
        model: A VAE.
        images: Shape (n, pixels).
        samples: k, the number of latents per image, at least 1.
        seed: Of the noise.
        batch_size: How many images to score at a time. Another size gives an image other noise.

    Returns:
        One value per image, in nats; larger is better.

    Raises:
        ValueError: `samples` below 1, or `images` not a matrix with at least two rows.

    Example:
        >>> from vae_lib.model import dense_vae
        >>> log_likelihood(dense_vae(), torch.zeros(10, 784), samples=4).values.shape
        torch.Size([10])
    """
    _check_images(images)
    noise = seeded(seed, stream="evaluation", device=images.device)
    with torch.no_grad():
        bounds = [
            torch.logsumexp(log_weights(model, x, samples, noise), dim=0) - math.log(samples)
            for x in images.split(batch_size)
        ]
    return Estimate(torch.cat(bounds))


def _check_images(images: Tensor) -> None:
    """Refuse what cannot be scored."""
    if images.ndim != 2 or len(images) < 2 or not images.is_floating_point():
        raise ValueError(
            "images: expected floats of shape (n, pixels) with n at least 2, got "
            f"{images.dtype} {tuple(images.shape)}. Binarise bytes; flatten pictures with "
            "images.flatten(1)."
        )
