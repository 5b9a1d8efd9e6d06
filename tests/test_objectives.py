import math
from functools import partial

import pytest
import torch
from torch.distributions import Bernoulli, Independent, Normal, kl_divergence

from tests.oracles import off_centre, probabilistic_pca, two_latents
from vae_lib.data import Batches
from vae_lib.distributions import DiagonalGaussian
from vae_lib.model import (
    VAE,
    BernoulliDecoder,
    CategoricalDecoder,
    DiscretizedLogisticDecoder,
    GaussianDecoder,
    GaussianEncoder,
    dense_vae,
)
from vae_lib.networks import TwoHeads, dense
from vae_lib.objectives import (
    Terms,
    beta_elbo,
    dreg,
    elbo,
    iwae,
    log_weights,
    terms,
)
from vae_lib.priors import GaussianMixture
from vae_lib.training import train


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
    with pytest.raises(ValueError, match="samples: expected at least 1, got 0"):
        dreg(model, x, samples=0)
    assert log_weights(model, x, 1).shape == (1, 5)


def test_weights_in_parts_are_the_weights_as_a_whole(small):
    model, x = small
    whole = log_weights(model, x, 7, generator())
    for at_once in (1, 3, 7, 8, None):
        found = log_weights(model, x, 7, generator(), at_once=at_once)
        torch.testing.assert_close(found, whole)
    with pytest.raises(ValueError, match="at_once: expected at least 1, got 0"):
        log_weights(model, x, 7, at_once=0)


OBJECTIVES = {
    "elbo": elbo,
    "beta_elbo": partial(beta_elbo, beta=0.5),
    "iwae": partial(iwae, samples=3),
    "dreg": partial(dreg, samples=3),
}


@pytest.mark.parametrize("name", OBJECTIVES)
@pytest.mark.parametrize("likelihood", ["bernoulli", "gaussian", "categorical", "logistic"])
def test_no_images_have_no_values(name, likelihood):
    model = dense_vae(pixels=12, hidden=6, latents=3)
    decoder = {
        "bernoulli": model.decoder,
        "gaussian": GaussianDecoder(dense(3, 12)),
        "categorical": CategoricalDecoder(dense(3, 48), 4),
        "logistic": DiscretizedLogisticDecoder(TwoHeads(torch.nn.Identity(), 3, 12), 4),
    }[likelihood]
    for prior in (model.prior, GaussianMixture(3, 2)):
        values = OBJECTIVES[name](VAE(model.encoder, prior, decoder), torch.zeros(0, 12))
        assert values.shape == (0,)
    assert log_weights(model, torch.zeros(0, 12), 2).shape == (2, 0)


@pytest.mark.parametrize("name", OBJECTIVES)
def test_bytes_are_refused(name):
    with pytest.raises(ValueError, match=r"x: expected torch.float32, .*got torch.uint8.*binari"):
        OBJECTIVES[name](dense_vae(hidden=2), torch.zeros(3, 784, dtype=torch.uint8))


class Pictures(torch.nn.Module):
    """Map rows to pictures of one channel, or back."""

    def __init__(self, network, *, first):
        super().__init__()
        self.network, self.first = network, first

    def forward(self, x):
        return self.network(x.flatten(1)) if self.first else self.network(x).unflatten(-1, (2, 6))


def test_pictures_that_no_one_flattened_are_refused():
    # Distortions of shape (3, 2) and rates of shape (3,) would not be one value per image.
    model = dense_vae(pixels=12, hidden=6, latents=3)
    encoder = GaussianEncoder(Pictures(model.encoder.network, first=True))
    for decoder in (BernoulliDecoder, GaussianDecoder):
        pictures = VAE(encoder, model.prior, decoder(Pictures(model.decoder.network, first=False)))
        with pytest.raises(ValueError, match=r"model: expected one log p.*\(3,\).*\(3, 2\).*flat"):
            elbo(pictures, torch.zeros(3, 2, 6))


def test_terms_are_equal_to_themselves_alone():
    one, other = (Terms(torch.zeros(3), torch.zeros(3)) for _ in range(2))
    assert one == one
    assert one != other
    assert len({one, other}) == 2


def test_each_step_of_each_epoch_of_a_training_has_noise_of_its_own():
    seen = []

    def objective(model, x, generator):
        values = elbo(model, x, generator)
        seen.append(torch.randn(4, generator=generator))
        return values

    batches = Batches(torch.zeros(20, 12), batch_size=10)
    train(dense_vae(pixels=12, hidden=6, latents=3), batches, objective, epochs=3)
    assert len(torch.stack(seen).unique(dim=0)) == len(seen) == 6


def test_the_noise_comes_from_the_generator_or_from_the_global_one(small):
    model, x = small
    for objective in (
        elbo,
        lambda *a: beta_elbo(*a, beta=0.5),
        lambda *a: iwae(*a, samples=3),
        lambda *a: dreg(*a, samples=3),
        lambda *a: terms(*a).distortion,
        lambda m, x, *g: log_weights(m, x, 3, *g),
    ):
        assert torch.equal(objective(model, x, generator()), objective(model, x, generator()))
        assert not torch.equal(objective(model, x, generator()), objective(model, x, generator(1)))
        torch.manual_seed(7)
        first = objective(model, x)
        torch.manual_seed(7)
        assert torch.equal(first, objective(model, x))
        assert not torch.equal(first, objective(model, x))


# -- a weight on the rate


def test_beta_weighs_the_rate_alone(small):
    model, x = small
    cost = terms(model, x, generator())
    for beta in (0.0, 0.3, 1.0, 4.0):
        torch.testing.assert_close(
            beta_elbo(model, x, generator(), beta=beta), -cost.distortion - beta * cost.rate
        )
    torch.testing.assert_close(
        beta_elbo(model, x, generator(), beta=1), elbo(model, x, generator())
    )


@pytest.mark.parametrize("beta", [-0.1, float("nan")])
def test_a_negative_beta_is_refused(small, beta):
    with pytest.raises(ValueError, match="beta: expected a number not below zero"):
        beta_elbo(*small, beta=beta)


# -- another prior


def test_with_a_mixture_prior_the_rate_is_estimated_without_bias(small):
    model, x = small
    other = VAE(model.encoder, GaussianMixture(3, 4).double(), model.decoder)
    q = model.encoder(x)
    draws = torch.stack([terms(other, x, generator(seed)).rate for seed in range(4000)])
    z = q.rsample(200_000, generator=generator(9))
    precise = q.log_prob(z) - other.prior().log_prob(z)
    error = (draws.var(0) / len(draws) + precise.var(0) / len(precise)).sqrt()
    assert ((draws.mean(0) - precise.mean(0)).abs() < 5 * error).all()


def test_the_estimated_rate_uses_the_draw_that_is_decoded(small):
    model, x = small
    other = VAE(model.encoder, GaussianMixture(3, 1).double(), model.decoder)
    with torch.no_grad():
        other.prior.means.zero_()  # the standard normal, as a mixture of one
    torch.testing.assert_close(
        elbo(other, x, generator()), log_weights(model, x, 1, generator())[0]
    )
    torch.testing.assert_close(
        terms(other, x, generator()).distortion, terms(model, x, generator()).distortion
    )


def test_a_gaussian_prior_keeps_the_exact_rate(small):
    model, x = small
    first, second = (terms(model, x, generator(seed)).rate for seed in (0, 1))
    assert torch.equal(first, second)


# -- the importance-weighted bound


def test_the_bound_is_the_log_of_the_mean_weight(small):
    model, x = small
    weights = log_weights(model, x, 7, generator()).exp()
    torch.testing.assert_close(iwae(model, x, generator(), samples=7), weights.mean(0).log())
    torch.testing.assert_close(
        iwae(model, x, generator(), samples=1), log_weights(model, x, 1, generator())[0]
    )


def test_the_bound_is_exact_where_the_posterior_is(pca):
    model, x, exact = pca
    for samples in (1, 2, 50):
        torch.testing.assert_close(
            iwae(model, x, generator(), samples=samples), exact, rtol=0, atol=1e-11
        )


def test_the_bound_rises_with_the_samples_and_stays_below(pca):
    model, x, exact = pca
    wrong, gap = off_centre(model, by=0.5)
    x, exact = x.repeat(200, 1), exact.repeat(200)
    short = [exact - iwae(wrong, x, generator(k), samples=k) for k in (1, 2, 5, 20, 100)]
    means = [s.mean().item() for s in short]
    errors = [(s.std() / math.sqrt(len(s))).item() for s in short]
    assert abs(means[0] - gap) < 5 * errors[0]
    for (near, far), error in zip(zip(means[1:], means, strict=False), errors, strict=False):
        assert 0 < near < far - 5 * error
    # For large k the shortfall is half the relative variance of a weight over k, which is
    # known here: log w - log p(x) is normal with variance 2 x 0.5^2 and mean minus half of it.
    relative_variance = math.exp(2 * 0.5**2) - 1
    assert means[-1] == pytest.approx(relative_variance / (2 * 100), abs=5 * errors[-1])


# -- the doubly reparameterised gradient


class Constant(torch.nn.Module):
    """An encoder whose answer is settled."""

    def __init__(self, answer):
        super().__init__()
        self.answer = answer

    def forward(self, x):
        return self.answer


@pytest.fixture
def spread(small):
    """A model whose posterior is far from its prior, so that weights differ."""
    model, x = small
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.mul_(1.5)
        model.encoder.network.second.bias.fill_(-0.3)
    return model, x


def gradients(values, model):
    model.zero_grad()
    values.sum().backward()
    return {name: p.grad.clone() for name, p in model.named_parameters()}


@pytest.mark.parametrize("samples", [1, 2, 8])
def test_dreg_has_the_value_and_the_decoder_gradient_of_the_bound(spread, samples):
    model, x = spread
    plain = iwae(model, x, generator(), samples=samples)
    doubly = dreg(model, x, generator(), samples=samples)
    torch.testing.assert_close(plain, doubly)
    first, second = gradients(plain, model), gradients(doubly, model)
    for name in first:
        if name.startswith("decoder"):
            torch.testing.assert_close(first[name], second[name])
        elif samples > 1:
            assert not torch.allclose(first[name], second[name])


def test_dreg_has_the_gradient_of_its_equation(spread):
    model, x = spread
    k = 4
    q = model.encoder(x)
    noise = torch.randn(k, *q.mean.shape, generator=generator(), dtype=torch.float64)
    z = (q.mean + q.std * noise).detach().requires_grad_(True)
    fixed = Independent(Normal(q.mean.detach(), q.std.detach()), 1)
    log_prior = -0.5 * (z**2).sum(-1) - 1.5 * math.log(2 * math.pi)
    log_w = model.decoder(z).log_prob(x) + log_prior - fixed.log_prob(z)
    (slope,) = torch.autograd.grad(log_w.sum(), z)
    weights = torch.softmax(log_w.detach(), 0).unsqueeze(-1)
    wanted = (weights**2 * slope).detach()
    # dz/dmean = 1 and dz/dlog_std = std * noise
    found = dict(model.encoder.named_parameters())
    expected = torch.autograd.grad(
        [q.mean, q.log_std], list(found.values()), [wanted.sum(0), (wanted * q.std * noise).sum(0)]
    )
    seen = gradients(dreg(model, x, generator(), samples=k), model)
    for name, value in zip(found, expected, strict=True):
        torch.testing.assert_close(seen[f"encoder.{name}"], value)


def test_dreg_agrees_with_the_bound_in_the_mean_and_is_less_noisy(pca):
    model, x, _ = pca
    rows = x[:3].repeat(20_000, 1)

    def per_image(objective):
        """The gradient in the means of q, for each repetition of each image."""
        q = model.encoder(rows)
        mean = (q.mean + 0.4 * q.std).requires_grad_(True)
        encoder = Constant(DiagonalGaussian(mean, q.log_std))
        values = objective(VAE(encoder, model.prior, model.decoder), rows, generator(3), samples=5)
        (gradient,) = torch.autograd.grad(values.sum(), mean)
        return gradient.view(-1, 3, 2)

    plain, doubly = per_image(iwae), per_image(dreg)
    error = (plain.var(0) / len(plain) + doubly.var(0) / len(doubly)).sqrt()
    assert ((plain.mean(0) - doubly.mean(0)).abs() < 5 * error).all()
    assert (doubly.mean(0).abs() > 5 * error).all()
    assert (2 * doubly.var(0) < plain.var(0)).all()


def test_with_an_exact_posterior_dreg_has_no_noise_at_all(pca):
    model, x, _ = pca
    weight = model.encoder.weight.clone().requires_grad_(True)
    model.encoder.weight = weight
    dreg(model, x, generator(), samples=3).sum().backward()
    assert weight.grad.abs().max() < 1e-10
    weight.grad = None
    iwae(model, x, generator(), samples=3).sum().backward()
    assert weight.grad.abs().max() > 0.1


def test_dreg_can_be_scored_without_gradients(small):
    model, x = small
    with torch.no_grad():
        torch.testing.assert_close(
            dreg(model, x, generator(), samples=3), iwae(model, x, generator(), samples=3)
        )


# -- two gradients of one expectation


def test_pathwise_and_score_function_gradients_agree_in_the_mean(small):
    model, x = small
    n = 20_000
    q = model.encoder(x)
    mean = q.mean.detach().expand(n, -1, -1).clone().requires_grad_(True)
    log_std = q.log_std.detach().expand(n, -1, -1).clone().requires_grad_(True)
    again = type(q)(mean, log_std)

    z = again.rsample(generator=generator(1))
    pathwise = torch.autograd.grad(model.decoder(z).log_prob(x).sum(), [mean, log_std])
    z = again.sample(generator=generator(2))
    surrogate = model.decoder(z).log_prob(x).detach() * again.log_prob(z)
    score = torch.autograd.grad(surrogate.sum(), [mean, log_std])
    for one, other in zip(pathwise, score, strict=True):
        error = (one.var(0) / n + other.var(0) / n).sqrt()
        assert ((one.mean(0) - other.mean(0)).abs() < 5 * error).all()
        assert (other.var(0) > 10 * one.var(0)).all()


def test_two_latents_integrated_over_a_grid_agree_with_the_bound():
    model, x, exact = two_latents()
    values = iwae(model, x.repeat(40, 1), generator(), samples=10_000).view(40, -1)
    error = values.std(0) / math.sqrt(40)
    assert ((values.mean(0) - exact).abs() < 5 * error + 1e-6).all()
    assert (error < 2e-3).all()


def test_terms_are_costs():
    cost = Terms(distortion=torch.tensor([3.0]), rate=torch.tensor([2.0]))
    assert cost.elbo.item() == -5
