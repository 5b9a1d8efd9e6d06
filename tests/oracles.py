"""Models whose log p(x) is known, to test the library against."""

import math

import numpy as np
import torch
from torch import nn

from vae_lib.distributions import DiagonalGaussian
from vae_lib.hierarchy import Hierarchy, Layer
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


class Map(nn.Module):
    """A function of tensors as a module."""

    def __init__(self, function):
        super().__init__()
        self.function = function

    def forward(self, *tensors):
        return self.function(*tensors)


def linear_hierarchy(off=(0.0, 0.0), wider=0.0, seed=0):
    """A hierarchy of two latents with linear maps, in float64, and its exact log p(x).

    z_1 ~ N(0, I), z_2 ~ N(A z_1 + a, s^2), x ~ N(B z_2 + b, 0.5^2 I), where A and B have
    orthogonal columns. Then p(z_1 given x) and p(z_2 given z_1, x) are diagonal and linear, and q
    is equal to them: every weight is p(x). The posteriors here are read off the covariance of
    everything, by conditioning, and not worked out.

    With `off`, the mean of q of each latent is so many of its standard deviations off, and with
    `wider` its log standard deviation is greater by that. Returns the model, a matrix of images
    drawn from it, their log p(x), and the divergence from q to the posterior for each latent.
    """
    generator = torch.Generator().manual_seed(seed)
    latents, pixels, std = 2, 5, 0.5

    def draw(*shape):
        return torch.randn(*shape, generator=generator, dtype=torch.float64)

    one, two = torch.eye(latents).double(), torch.eye(pixels).double()
    A = torch.linalg.qr(draw(latents, latents))[0] * torch.tensor([0.7, 1.3]).double()
    B, a, b = 1.5 * torch.linalg.qr(draw(pixels, latents))[0], draw(latents), draw(pixels)
    log_s = torch.full((latents,), -0.3).double()
    # Everything is what three independent normal vectors are mapped to: (z_1, z_2, x).
    s = log_s.exp().diag()
    zero = torch.zeros(latents, pixels).double()
    root = torch.cat(
        [
            torch.cat([one, 0 * one, zero], 1),
            torch.cat([A, s, zero], 1),
            torch.cat([B @ A, B @ s, std * two], 1),
        ]
    )
    mean = torch.cat([torch.zeros(latents).double(), a, B @ a + b])
    covariance = root @ root.T
    first, second, seen = slice(0, 2), slice(2, 4), slice(4, 9)

    def conditional(of, given):
        """Return gain, offset and log standard deviations of a part given others."""
        inner = covariance[given][:, given]
        gain = torch.linalg.solve(inner, covariance[given][:, of]).T
        left = covariance[of][:, of] - gain @ covariance[given][:, of]
        assert (left - left.diag().diag()).abs().max() < 1e-12  # so q can be diagonal
        return gain, mean[of] - gain @ mean[given], 0.5 * left.diag().log()

    top_gain, top_offset, top_log_std = conditional(first, torch.arange(4, 9))
    gain, offset, log_std = conditional(second, torch.tensor([0, 1, *range(4, 9)]))

    def encoder(x):
        centre = x @ top_gain.T + top_offset + off[0] * top_log_std.exp()
        return DiagonalGaussian(centre, (top_log_std + wider).expand_as(centre)), x

    def prior(h):
        centre = h @ A.T + a
        return centre, log_s.expand_as(centre)

    def posterior(h, x):
        both = torch.cat([h, x.expand(*h.shape[:-1], pixels)], -1)
        centre = both @ gain.T + offset + off[1] * log_std.exp()
        return centre - prior(h)[0], (log_std + wider - log_s).expand_as(centre)

    layer = Layer(nn.Identity(), Map(prior), Map(posterior), Map(lambda h, z: z))
    decoder = LinearDecoder(B, b, std)
    model = Hierarchy(Map(encoder), StandardNormal(latents), [layer], decoder).double()
    everything = draw(40, 9) @ root.T + mean
    images = everything[:, seen]
    exact = torch.distributions.MultivariateNormal(mean[seen], covariance[seen][:, seen])
    widened = 0.5 * (math.exp(2 * wider) - 1 - 2 * wider)
    gaps = [latents * (0.5 * shift**2 + widened) for shift in off]
    return model, images, exact.log_prob(images), gaps
