"""What judges a trained model on images that it has not seen.

Each score is an `Estimate`: one value per image, from which mean and standard error follow.
The model is scored in evaluation mode, and left as it was found. A latent is always sampled, in
evaluation as in training: with z = mu the number would be no bound on anything.
"""

import math
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from torch import Tensor

from vae_lib.arguments import kind, tensor, whole
from vae_lib.data import seeded
from vae_lib.model import VAE, switched
from vae_lib.objectives import log_weights, terms

# So many pixels are decoded at a time: a likelihood may need many numbers for each.
PIXELS = 2**22


@dataclass(frozen=True, eq=False)
class Estimate:
    """A score of each of n images, read as a sample from all images of their kind.

    An estimate is equal to itself alone; compare `values`.

    Arguments:
        values: Shape (n,), in nats; finite.

    Raises:
        ValueError: Another shape, no values, or some that are NaN or infinite.

    Example:
        >>> print(Estimate(torch.tensor([-90.0, -100.0, -110.0])))
        -100.00 ± 5.77
    """

    values: Tensor

    def __post_init__(self):
        """Refuse what has no mean."""
        if tensor("values", self.values).ndim != 1 or len(self.values) == 0:
            raise ValueError(
                "values: expected one number for each of n images, shape (n,), got shape "
                f"{tuple(self.values.shape)}. Sum over pixels and latents, and keep the images."
            )
        bad = (~self.values.isfinite()).nonzero().flatten().tolist()
        if bad:
            raise ValueError(
                f"values: expected finite numbers, got NaN or infinity for {len(bad)} of "
                f"{len(self.values)} images, first for image {bad[0]}. Look for weights that "
                "diverged, or for a logarithm of zero in the likelihood."
            )

    @property
    def mean(self) -> float:
        """The mean over the images, in nats."""
        return _precise(self.values).mean().item()

    @property
    def standard_error(self) -> float:
        """How much that mean varies between draws of n images, s / sqrt(n), in nats."""
        return _precise(self.values).std().item() / math.sqrt(len(self.values))

    def __str__(self) -> str:
        """Mean and standard error, to a hundredth of a nat."""
        return f"{self.mean:.2f} ± {self.standard_error:.2f}"


@dataclass(frozen=True, eq=False)
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
        batch_size: How many images to score at a time. Another size may give an image other
            noise.

    Returns:
        ELBO (larger is better), distortion and rate, one value per image each.

    Raises:
        ValueError: `images` is not a matrix with at least two rows, or a score is not finite.

    Example:
        >>> from vae_lib.model import dense_vae
        >>> scores = held_out_elbo(dense_vae(), torch.zeros(10, 784))
        >>> scores.elbo.values.shape
        torch.Size([10])
    """
    _check_images(images)
    batch_size = whole("batch_size", batch_size)
    noise = seeded(seed, stream="evaluation", device=images.device)
    with _judging(model):
        parts = [terms(model, x, noise) for x in images.split(batch_size)]
    distortion = torch.cat([part.distortion for part in parts])
    rate = torch.cat([part.rate for part in parts])
    return Scores(Estimate(-(distortion + rate)), Estimate(distortion), Estimate(rate))


@dataclass(frozen=True, eq=False)
class LogLikelihood(Estimate):
    """An importance-sampled log p(x) of each image, and how much the sampling can be trusted.

    Arguments:
        values: Shape (n,), in nats.
        effective_samples: Kish's effective sample size of the weights of each image, shape (n,):
            from 1, where a single weight outweighs all others, to k, where all are equal.
        samples: k, the number of latents per image.
        tenths: The same draws read as ten estimates from a tenth of the samples each, and these
            averaged: shape (n,), in nats. None if k is below ten.
    """

    effective_samples: Tensor
    samples: int
    tenths: Tensor | None = None

    @property
    def step(self) -> Estimate:
        r"""What the last tenfold of the samples brought, in nats.

        .. math:: \log \hat p_k - \frac{1}{10} \sum_{t=1}^{10} \log \hat p_{k / 10}^{(t)}

        A score from k samples is quoted with it (chapter *how-good-is-it*): two models whose
        estimates differ by less than their steps have not been told apart. No value is negative
        beyond rounding, by Jensen's inequality; where k is no multiple of ten, the tenths leave
        out the last draws, and one may be. A small step is no proof that little is missing.

        Raises:
            ValueError: k is below ten.
        """
        if self.tenths is None:
            raise ValueError(
                f"step: expected an estimate from at least 10 samples, got {self.samples}. Score "
                "with more."
            )
        return Estimate(self.values - self.tenths)

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
        samples: k, the number of latents per image, at least 1. At most a hundred are drawn at a
            time, and fewer are decoded where images are many or large.
        seed: Of the noise.
        batch_size: How many images to score at a time. Another size gives an image other noise.

    Returns:
        One value per image, in nats (larger is better), with its effective sample size
        :math:`(\sum w)^2 / \sum w^2` (Kish, 1965), and `step`, what the last tenfold of the
        samples brought.

    Raises:
        ValueError: `samples` below 1, `images` not a matrix with at least two rows, or a score
            that is not finite.

    Example:
        >>> from vae_lib.model import dense_vae
        >>> found = log_likelihood(dense_vae(), torch.zeros(10, 784), samples=4)
        >>> found.values.shape, found.effective_samples.shape
        (torch.Size([10]), torch.Size([10]))
    """
    _check_images(images)
    samples, batch_size = whole("samples", samples), whole("batch_size", batch_size)
    noise = seeded(seed, stream="evaluation", device=images.device)
    tenth = samples // 10
    values, effective, tenths = [], [], []
    with _judging(model):
        for x in images.split(batch_size):
            at_once = max(1, PIXELS // (x.numel() * getattr(model, "per_pixel", 1)))
            counts = [min(100, samples - start) for start in range(0, samples, 100)]
            log_w = torch.cat([log_weights(model, x, n, noise, at_once=at_once) for n in counts])
            total = torch.logsumexp(log_w, 0)
            values.append(total - math.log(samples))
            effective.append(torch.exp(2 * total - torch.logsumexp(2 * log_w, 0)))
            if tenth:
                parts = log_w[: 10 * tenth].unflatten(0, (10, tenth))
                tenths.append((torch.logsumexp(parts, 1) - math.log(tenth)).mean(0))
    return LogLikelihood(
        torch.cat(values), torch.cat(effective), samples, torch.cat(tenths) if tenth else None
    )


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
        batch_size: How many images to encode at a time; it changes the means by rounding alone.

    Returns:
        True for each active latent, shape (latents,), on the CPU.

    Raises:
        ValueError: `images` is not a matrix with at least two rows, the model is a hierarchy, or a
            mean is not finite: of weights that diverged, no latent would count as active.

    Example:
        >>> from vae_lib.model import dense_vae
        >>> active_units(dense_vae(latents=5), torch.eye(784)).shape
        torch.Size([5])
    """
    _check_images(images)
    batch_size = whole("batch_size", batch_size)
    with _judging(model):
        answers = [model.encoder(x) for x in images.split(batch_size)]
    if not hasattr(answers[0], "mean"):
        raise ValueError(
            "model: expected an encoder whose distribution has a mean, got one that returns "
            f"{kind(answers[0])}. Of a hierarchy, look at the rates of vae_lib.objectives.terms."
        )
    means = torch.cat([q.mean for q in answers])
    bad = int((~means.isfinite()).any(-1).sum())
    if bad:
        raise ValueError(
            f"model: expected finite means of q(z given x), got NaN or infinity for {bad} of "
            f"{len(means)} images. Look for weights that diverged."
        )
    return _precise(means).var(0) > threshold


@contextmanager
def _judging(model: VAE) -> Iterator[None]:
    """Neither learn nor change: no gradients, and evaluation mode for a while."""
    with torch.no_grad(), switched(model, training=False):
        yield


def _precise(values: Tensor) -> Tensor:
    """Return values in 64 bits, on the CPU, since not every device has them."""
    return values.cpu().double()


def _check_images(images: Tensor) -> None:
    """Refuse what cannot be scored."""
    if tensor("images", images).ndim != 2 or len(images) < 2 or not images.is_floating_point():
        raise ValueError(
            "images: expected floats of shape (n, pixels) with n at least 2, got "
            f"{images.dtype} {tuple(images.shape)}. Binarise bytes; flatten pictures with "
            "images.flatten(1)."
        )
