import math

import pytest
import torch
from torch.distributions import Bernoulli, Independent, Normal, kl_divergence

from tests.oracles import off_centre, probabilistic_pca
from vae_lib.model import dense_vae
from vae_lib.objectives import elbo, log_weights, terms


def generator(seed=0):
    return torch.Generator().manual_seed(seed)


@pytest.fixture(scope="module")
def pca():
    return probabilistic_pca()


@pytest.fixture
def small():
    model = dense_vae(pixels=12, hidden=6, latents=3, seed=1).double()
    x = (torch.rand(5, 12, generator=generator(), dtype=torch.float64) < 0.4).double()
    return model, x


def test_every_value_is_one_per_example(small):
    model, x = small
    cost = terms(model, x, generator())
    assert cost.distortion.shape == cost.rate.shape == cost.elbo.shape == (5,)
    assert log_weights(model, x, 7, generator()).shape == (7, 5)


def test_the_terms_equal_those_of_torch_distributions(small):
    model, x = small
    mean, log_std = model.encoder.network(x)
    q = Independent(Normal(mean, log_std.exp()), 1)
    prior = Independent(Normal(torch.zeros(3).double(), torch.ones(3).double()), 1)
    z = mean + log_std.exp() * torch.randn(5, 3, generator=generator(2), dtype=torch.float64)
    likelihood = Independent(Bernoulli(logits=model.decoder.network(z)), 1)

    cost = terms(model, x, generator(2))
    torch.testing.assert_close(cost.distortion, -likelihood.log_prob(x))
    torch.testing.assert_close(cost.rate, kl_divergence(q, prior))
    torch.testing.assert_close(
        elbo(model, x, generator(2)), likelihood.log_prob(x) - kl_divergence(q, prior)
    )


def test_log_weights_equal_those_of_torch_distributions(small):
    model, x = small
    mean, log_std = model.encoder.network(x)
    q = Independent(Normal(mean, log_std.exp()), 1)
    z = mean + log_std.exp() * torch.randn(4, 5, 3, generator=generator(2), dtype=torch.float64)
    likelihood = Independent(Bernoulli(logits=model.decoder.network(z)), 1)
    log_prior = -0.5 * (z**2).sum(-1) - 1.5 * math.log(2 * math.pi)
    torch.testing.assert_close(
        log_weights(model, x, 4, generator(2)),
        likelihood.log_prob(x) + log_prior - q.log_prob(z),
    )


def test_with_an_exact_posterior_every_weight_is_the_likelihood(pca):
    model, x, exact = pca
    weights = log_weights(model, x, 20, generator())
    torch.testing.assert_close(weights, exact.expand(20, -1), rtol=0, atol=1e-11)


def test_with_an_exact_posterior_the_elbo_is_the_likelihood_on_average(pca):
    model, x, exact = pca
    draws = torch.stack([elbo(model, x, generator(seed)) for seed in range(4000)])
    error = draws.std(0) / math.sqrt(len(draws))
    assert ((draws.mean(0) - exact).abs() < 5 * error).all()


def test_the_gap_is_the_divergence_from_the_true_posterior(pca):
    model, x, exact = pca
    wrong, gap = off_centre(model, by=0.8)
    draws = log_weights(wrong, x, 4000, generator())
    error = draws.std(0) / math.sqrt(len(draws))
    assert ((exact - draws.mean(0) - gap).abs() < 5 * error).all()
    single = torch.stack([elbo(wrong, x, generator(seed)) for seed in range(4000)])
    error = single.std(0) / math.sqrt(len(single))
    assert ((exact - single.mean(0) - gap).abs() < 5 * error).all()


def test_the_rate_is_zero_when_the_encoder_ignores_the_image(small):
    model, x = small
    for layer in (model.encoder.network.first, model.encoder.network.second):
        torch.nn.init.zeros_(layer.weight)
    torch.testing.assert_close(terms(model, x, generator()).rate, torch.zeros(5).double())


def test_each_image_of_a_batch_has_its_own_noise():
    model = dense_vae(pixels=12, hidden=6, latents=3, seed=1)
    with torch.no_grad():
        model.encoder.network.second.bias.fill_(1.0)
    x = torch.ones(200, 12)
    assert terms(model, x, generator()).distortion.unique().numel() > 150


def test_evaluation_mode_samples_too(small):
    model, x = small
    model.eval()
    first, second = (terms(model, x, generator(seed)).distortion for seed in (0, 1))
    assert not torch.equal(first, second)


def test_gradients_agree_with_finite_differences(small):
    model, x = small

    def objective(weight):
        parameters = {"encoder.network.second.weight": weight}
        q = torch.func.functional_call(model.encoder, _below(parameters, "encoder."), (x,))
        z = q.rsample(generator=generator(3))
        return model.decoder(z).log_prob(x) - q.kl(model.prior())

    weight = model.encoder.network.second.weight.detach().clone().requires_grad_(True)
    assert torch.autograd.gradcheck(objective, weight)


def _below(parameters, prefix):
    return {name.removeprefix(prefix): value for name, value in parameters.items()}


def test_no_samples_are_refused(small):
    model, x = small
    with pytest.raises(ValueError, match="samples: expected at least 1, got 0"):
        log_weights(model, x, 0)
