"""Priors that are learned: called with nothing, each gives a distribution p(z) to draw from.

Any of them takes the place of `vae_lib.model.StandardNormal`. Between a Gaussian q and such a
prior no closed form of the divergence is known, so the rate is estimated by the draw that is
decoded.
"""

import torch
from torch import Tensor, nn

from vae_lib.arguments import kind, tensor
from vae_lib.data import seeded
from vae_lib.distributions import DiagonalGaussian, Mixture

AT_ONCE = 2**24  # numbers: 64 MiB in 32 bits
INSIDE = 0.02  # how far from 0 and from 1 a pseudo-input starts


class GaussianMixture(nn.Module):
    """A prior p(z) that is learned: a mixture of K diagonal Gaussians.

    Arguments:
        latents: The length of z, at least 1.
        components: K, at least 1.
        seed: Of the means, which start as draws from N(0, I), each component with unit spread.
            They come from the stream "mixture" of the seed; see `vae_lib.data.seeded`.

    Example:
        >>> GaussianMixture(latents=5, components=10)().sample(3).shape
        torch.Size([3, 5])
    """

    def __init__(self, latents: int, components: int, *, seed: int = 0):
        super().__init__()
        generator = seeded(seed, stream="mixture")
        means = torch.randn(components, latents, generator=generator, device="cpu")
        self.means = nn.Parameter(means)
        self.log_stds = nn.Parameter(torch.zeros_like(means))
        self.logits = nn.Parameter(torch.zeros_like(means[:, 0]))

    def forward(self) -> Mixture:
        """Return p(z), of event shape (latents,)."""
        return Mixture(self.logits, DiagonalGaussian(self.means, self.log_stds))


class VampPrior(nn.Module):
    r"""The mean of q(z given u) over K pseudo-inputs u, which are learned.

    .. math:: p(z) = \frac1K \sum_{k=1}^K q(z | u_k)

    The VampPrior of Tomczak and Welling (2018). With all images in place of the pseudo-inputs it
    would be the prior for which the mean ELBO of these images is largest. The gradient reaches the
    pseudo-inputs, and the encoder through them. Each is kept between 0 and 1, as the sigmoid of
    what is learned.

    Arguments:
        encoder: The model's own, from images (..., pixels) to a `DiagonalGaussian`. It is no part
            of the prior: the model saves its weights, and moves them between devices.
        images: Where the pseudo-inputs start: K images, floats from 0 to 1, shape (K, pixels);
            values nearer than 0.02 to either end are moved to there. Some of the training images
            serve, or greys drawn at random.

    Raises:
        ValueError: Images of another kind, or none.

    Example:
        >>> from vae_lib.model import dense_vae
        >>> model = dense_vae()
        >>> model.prior = VampPrior(model.encoder, torch.rand(20, 784))
        >>> model.generate(3).mean.shape
        torch.Size([3, 784])
    """

    def __init__(self, encoder: nn.Module, images: Tensor):
        super().__init__()
        shape = tuple(tensor("images", images).shape)
        if len(shape) != 2 or not images.is_floating_point() or images.numel() == 0:
            raise ValueError(
                f"images: expected floats of shape (K, pixels), got {images.dtype} {shape}. Divide "
                "bytes by 255; flatten pictures with images.flatten(1)."
            )
        if not ((images >= 0) & (images <= 1)).all():
            raise ValueError(
                f"images: expected floats from 0 to 1, got values from {images.min():g} to "
                f"{images.max():g}. Divide bytes by 255."
            )
        # In a tuple, so that it is not registered as a part.
        self._encoder = (encoder,)
        self.logits = nn.Parameter(torch.logit(images.detach().clamp(INSIDE, 1 - INSIDE)))

    @property
    def inputs(self) -> Tensor:
        """The pseudo-inputs, shape (K, pixels), each number between 0 and 1."""
        return torch.sigmoid(self.logits)

    def forward(self) -> Mixture:
        """Return p(z), of event shape (latents,)."""
        q = self._encoder[0](self.inputs)
        if not isinstance(q, DiagonalGaussian):
            raise ValueError(f"encoder: expected one that gives DiagonalGaussian, got {kind(q)}.")
        return _InParts(q.mean.new_zeros(len(q.mean)), q)


class _InParts(Mixture):
    """A mixture of many components, whose density takes no more memory than needed."""

    def log_prob(self, z: Tensor) -> Tensor:
        """Return what `Mixture` does, for some rows at a time."""
        rows = z.reshape(-1, z.shape[-1])
        some = max(1, AT_ONCE // self.components.mean.numel())
        return torch.cat([super(_InParts, self).log_prob(part) for part in rows.split(some)]).view(
            z.shape[:-1]
        )
