"""What a loss of two weighted terms amounts to, whoever wrote it: which beta, or which sigma."""

import math
from dataclasses import dataclass

from vae_lib.arguments import real, whole


@dataclass(frozen=True)
class ImpliedWeights:
    """What a loss of two weighted terms amounts to, up to a common factor.

    Arguments:
        beta: The weight of the divergence beside a log likelihood summed over the pixels.
    """

    beta: float

    @property
    def std(self) -> float:
        r"""The :math:`\sigma` of a Gaussian decoder for which a squared error is its ELBO.

        .. math:: \sigma = \sqrt{\beta / 2}

        since the squared error has the weight :math:`1 / 2\sigma^2` there. In the pixels' own
        unit.
        """
        return math.sqrt(self.beta / 2)


def implied_weights(
    *,
    pixels: int,
    latents: int,
    reconstruction: str = "sum",
    divergence: str = "sum",
    reconstruction_weight: float = 1.0,
    divergence_weight: float = 1.0,
) -> ImpliedWeights:
    r"""Say which beta, or which sigma, a loss of two terms trains with.

    .. math:: \beta = \frac{\text{divergence weight} \, / \, (d \text{ if averaged})}
        {\text{reconstruction weight} \, / \, (D \text{ if averaged})}

    Over the batch both terms must be averaged, or both summed. If one alone is summed over a
    batch of M images, multiply its weight by M.

    Arguments:
        pixels: D, the numbers of an image over which the reconstruction is reduced: pixels times
            channels.
        latents: d.
        reconstruction: "sum" or "mean", how it is reduced over the D numbers.
        divergence: "sum" or "mean", how it is reduced over the d latents.
        reconstruction_weight: What the reduced reconstruction is multiplied by, above zero.
        divergence_weight: What the reduced divergence is multiplied by, not negative.

    Returns:
        The beta of a cross entropy, and the sigma (`std`) of a squared error.

    Raises:
        ValueError: An unknown reduction, or a size or weight out of range.

    Example:
        >>> found = implied_weights(  # mean squared error over 3 x 64 x 64, 0.00025 KL
        ...     pixels=3 * 64 * 64, latents=128, reconstruction="mean", divergence_weight=0.00025)
        >>> print(f"{found.std:.2f}")
        1.24
    """
    for name, size in {"pixels": pixels, "latents": latents}.items():
        whole(name, size)
    for name, how in {"reconstruction": reconstruction, "divergence": divergence}.items():
        if how not in ("sum", "mean"):
            raise ValueError(f'{name}: expected "sum" or "mean", got {how!r}.')
    if not real("reconstruction_weight", reconstruction_weight) > 0:
        raise ValueError(
            f"reconstruction_weight: expected a number above zero, got {reconstruction_weight}."
        )
    if not real("divergence_weight", divergence_weight) >= 0:
        raise ValueError(
            f"divergence_weight: expected a number not below zero, got {divergence_weight}."
        )
    per_pixel = reconstruction_weight / (pixels if reconstruction == "mean" else 1)
    per_latent = divergence_weight / (latents if divergence == "mean" else 1)
    return ImpliedWeights(beta=per_latent / per_pixel)
