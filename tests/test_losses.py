import math

import pytest
import torch

from vae_lib.losses import implied_weights
from vae_lib.model import VAE, GaussianDecoder, dense_vae
from vae_lib.objectives import beta_elbo, elbo, terms


def generator(seed=0):
    return torch.Generator().manual_seed(seed)


@pytest.fixture
def small():
    model = dense_vae(pixels=12, hidden=6, latents=3, seed=1).double()
    x = (torch.rand(5, 12, generator=generator(), dtype=torch.float64) < 0.4).double()
    return model, x


PUBLIC = [
    # AntixK/PyTorch-VAE a6896b9: mean squared error over 3 x 64 x 64, 0.00025 times the KL.
    (
        {
            "pixels": 3 * 64 * 64,
            "latents": 128,
            "reconstruction": "mean",
            "divergence_weight": 0.00025,
        },
        "std",
        1.24,
    ),
    # google/flax 18f8f31, nnx toy: mean cross entropy, 0.1 times the mean KL of 32 latents.
    (
        {
            "pixels": 784,
            "latents": 32,
            "reconstruction": "mean",
            "divergence": "mean",
            "divergence_weight": 0.1,
        },
        "beta",
        2.45,
    ),
    # Generative Deep Learning, second edition, 9b1048d: 500 times the mean cross entropy.
    (
        {"pixels": 1024, "latents": 2, "reconstruction": "mean", "reconstruction_weight": 500},
        "beta",
        2.05,
    ),
    # jax-ml/jax-ai-stack 59de2e1: mean cross entropy over 64, 0.1 times the mean KL of 8.
    (
        {
            "pixels": 64,
            "latents": 8,
            "reconstruction": "mean",
            "divergence": "mean",
            "divergence_weight": 0.1,
        },
        "beta",
        0.8,
    ),
]


@pytest.mark.parametrize(("loss", "what", "value"), PUBLIC)
def test_public_losses_mean_what_was_worked_out_by_hand(loss, what, value):
    assert round(getattr(implied_weights(**loss), what), 2) == value


def test_the_implied_beta_gives_the_gradient_of_the_loss(small):
    model, x = small
    cost = terms(model, x, generator())
    loss = 3 * cost.distortion.mean() / 12 + 0.2 * cost.rate.mean() / 3
    found = implied_weights(
        pixels=12,
        latents=3,
        reconstruction="mean",
        divergence="mean",
        reconstruction_weight=3,
        divergence_weight=0.2,
    )
    weights = list(model.parameters())
    theirs = torch.autograd.grad(loss, weights)
    ours = torch.autograd.grad(-beta_elbo(model, x, generator(), beta=found.beta).mean(), weights)
    for one, other in zip(theirs, ours, strict=True):
        torch.testing.assert_close(one * 12 / 3, other)


def test_the_implied_sigma_gives_the_gradient_of_the_loss(small):
    model, x = small
    network = model.decoder.network
    q = model.encoder(x)
    error = (network(q.rsample(generator=generator())) - x) ** 2
    loss = 0.5 * error.mean() + 0.01 * q.kl(model.prior()).mean()
    found = implied_weights(
        pixels=12,
        latents=3,
        reconstruction="mean",
        reconstruction_weight=0.5,
        divergence_weight=0.01,
    )
    ours = VAE(model.encoder, model.prior, GaussianDecoder(network, found.std).double())
    weights = list(model.parameters())
    theirs = torch.autograd.grad(loss, weights)
    ours = torch.autograd.grad(-elbo(ours, x, generator()).mean(), weights)
    for one, other in zip(theirs, ours, strict=True):
        torch.testing.assert_close(one / 0.01, other, rtol=1e-6, atol=1e-9)


def test_a_plain_elbo_implies_one():
    found = implied_weights(pixels=784, latents=5)
    assert found.beta == 1
    assert found.std == math.sqrt(0.5)
    assert implied_weights(pixels=1, latents=1, divergence_weight=0).std == 0
    assert implied_weights(pixels=1, latents=1, reconstruction="mean", divergence="mean").beta == 1


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"pixels": 0}, "pixels: expected at least 1, got 0"),
        ({"latents": 0}, "latents: expected at least 1, got 0"),
        ({"reconstruction": "max"}, 'reconstruction: expected "sum" or "mean", got \'max\''),
        ({"divergence": "none"}, 'divergence: expected "sum" or "mean", got \'none\''),
        ({"reconstruction_weight": 0}, "reconstruction_weight: expected a number above zero"),
        ({"divergence_weight": -1.0}, "divergence_weight: expected a number not below zero"),
    ],
)
def test_a_loss_that_cannot_be_is_refused(wrong, message):
    with pytest.raises(ValueError, match=message):
        implied_weights(**{"pixels": 784, "latents": 5, **wrong})
