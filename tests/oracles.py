"""Models whose log p(x) is known, to test the library against."""

import torch
from torch import nn

from vae_lib.distributions import DiagonalGaussian
from vae_lib.model import VAE, StandardNormal


class LinearDecoder(nn.Module):
    """p(x given z) = N(W z + b, sigma^2 I): with a normal prior, log p(x) has a closed form."""

    def __init__(self, weight, bias, std):
        super().__init__()
        self.weight, self.bias = weight, bias
        self.log_std = torch.tensor(std, dtype=torch.float64).log()

    def forward(self, z):
        mean = z @ self.weight.T + self.bias
        return DiagonalGaussian(mean, self.log_std.to(mean).expand_as(mean))


class LinearEncoder(nn.Module):
    """q(z given x) with a mean linear in x and one standard deviation for each latent."""

    def __init__(self, weight, bias, log_std):
        super().__init__()
        self.weight, self.bias, self.log_std = weight, bias, log_std

    def forward(self, x):
        mean = (x - self.bias) @ self.weight.T
        return DiagonalGaussian(mean, self.log_std.expand_as(mean))


def probabilistic_pca(latents=2, pixels=6, std=0.5, seed=0):
    """A VAE with linear maps, in float64, and its exact log p(x).

    The columns of W are orthogonal, so the true posterior is a diagonal Gaussian and the
    encoder can be, and is, exact: the ELBO equals log p(x), image by image, draw by draw.
    Returns the model, a matrix of images drawn from it, and their log p(x).
    """
    generator = torch.Generator().manual_seed(seed)

    def draw(*shape):
        return torch.randn(*shape, generator=generator, dtype=torch.float64)

    basis, _ = torch.linalg.qr(draw(pixels, latents))
    weight = basis * torch.linspace(1, 2, latents, dtype=torch.float64)
    bias = draw(pixels)
    scale = (weight**2).sum(0)  # the diagonal of W'W
    precision = 1 + scale / std**2
    encoder = LinearEncoder((weight / std**2 / precision).T, bias, -0.5 * precision.log())
    model = VAE(encoder, StandardNormal(latents), LinearDecoder(weight, bias, std)).double()
    images = draw(50, latents) @ weight.T + bias + std * draw(50, pixels)

    covariance = weight @ weight.T + std**2 * torch.eye(pixels, dtype=torch.float64)
    exact = torch.distributions.MultivariateNormal(bias, covariance).log_prob(images)
    return model, images, exact


def off_centre(model, by):
    """The same model with each mean of q off by `by` standard deviations.

    Returns the model and the gap that this opens between log p(x) and the ELBO: the divergence
    from q to the true posterior, half of by squared for each latent.
    """

    class OffCentre(nn.Module):
        def forward(self, x):
            q = model.encoder(x)
            return DiagonalGaussian(q.mean + by * q.std, q.log_std)

    latents = model.prior().mean.numel()
    return VAE(OffCentre(), model.prior, model.decoder), 0.5 * latents * by**2
