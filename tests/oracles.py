"""Models whose log p(x) is known, to test the library against."""

import math

import numpy as np
import torch
from torch import nn

from vae_lib.distributions import DiagonalGaussian
from vae_lib.model import VAE, StandardNormal, dense_vae


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


def two_latents():
    """A small smooth VAE with two latents, in float64, and its log p(x) by quadrature.

    Gauss-Hermite quadrature with 60 x 60 nodes is as good as exact for a decoder this smooth.
    The encoder gives every image the prior, a little wider, so importance weights are bounded.
    Returns the model, six images of eight pixels, and their log p(x).
    """
    model = dense_vae(pixels=8, hidden=6, latents=2, seed=2).double()
    heads = model.encoder.network
    with torch.no_grad():
        heads.first.weight.zero_()
        heads.second.weight.zero_()
        heads.second.bias.fill_(0.1)
    generator = torch.Generator().manual_seed(0)
    images = (torch.rand(6, 8, generator=generator, dtype=torch.float64) < 0.5).double()
    nodes, weights = np.polynomial.hermite_e.hermegauss(60)
    nodes, weights = torch.from_numpy(nodes), torch.from_numpy(weights / weights.sum())
    z = torch.cartesian_prod(nodes, nodes)
    log_weight = torch.cartesian_prod(weights, weights).prod(-1).log()
    with torch.no_grad():
        log_p = model.decoder(z).log_prob(images.unsqueeze(1))
    return model, images, torch.logsumexp(log_p + log_weight, -1)


def best_probabilistic_pca(images, latents):
    """The maximum of log p(x) over all W and sigma (Tipping and Bishop, 1999), in float64.

    Returns the mean log p(x) at the optimum, the basis of the column space of W and sigma.
    """
    pixels = images.shape[1]
    covariance = torch.cov(images.T, correction=0)
    values, vectors = torch.linalg.eigh(covariance)
    kept, left = values[-latents:], values[:-latents]
    variance = left.mean()
    log_det = kept.log().sum() + (pixels - latents) * variance.log()
    mean = -0.5 * (pixels * math.log(2 * math.pi) + log_det + pixels)
    return mean.item(), vectors[:, -latents:], variance.sqrt().item()
