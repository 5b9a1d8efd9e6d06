"""The variational autoencoder: an encoder, a prior and a decoder, each giving a distribution."""

import torch
from torch import Tensor, nn

from vae_lib.distributions import Bernoulli, DiagonalGaussian
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

    Arguments:
        encoder: A module from images x (..., pixels) to a distribution q(z given x).
        prior: A module that, called with nothing, gives the distribution p(z).
        decoder: A module from latents z (..., latents) to a distribution p(x given z).

    Example:
        >>> model = dense_vae(latents=5)
        >>> q = model.encoder(torch.zeros(3, 784))
        >>> model.decoder(q.rsample()).mean.shape
        torch.Size([3, 784])
    """

    def __init__(self, encoder: nn.Module, prior: nn.Module, decoder: nn.Module):
        super().__init__()
        self.encoder = encoder
        self.prior = prior
        self.decoder = decoder

    def generate(self, count: int, *, generator: torch.Generator | None = None):
        """Draw `count` latents from the prior and return p(x given z), batch shape (count,)."""
        return self.decoder(self.prior().rsample(count, generator=generator))


def dense_vae(pixels: int = 784, hidden: int = 500, latents: int = 5, *, seed: int = 0) -> VAE:
    """Make the post's network: 784-500-(5, 5) to encode and 5-500-784 to decode, with tanh.

    Arguments:
        pixels: Length of an image row.
        hidden: Width of the one hidden layer on each side.
        latents: Length of z.
        seed: Of the initial weights (Glorot's; biases start at zero).

    Returns:
        A model with a Gaussian encoder, a standard normal prior and a Bernoulli decoder.

    Raises:
        ValueError: A size below 1.

    Example:
        >>> sum(weight.numel() for weight in dense_vae().parameters())
        793294
    """
    for name, size in {"pixels": pixels, "hidden": hidden, "latents": latents}.items():
        if size < 1:
            raise ValueError(f"{name}: expected at least 1, got {size}.")
    generator = torch.Generator().manual_seed(seed)
    trunk = nn.Sequential(dense(pixels, hidden, generator=generator), nn.Tanh())
    return VAE(
        GaussianEncoder(TwoHeads(trunk, hidden, latents, generator)),
        StandardNormal(latents),
        BernoulliDecoder(dense(latents, hidden, pixels, generator=generator)),
    )
