"""What holds for every model and every image, tried on examples that nobody thought of."""

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from vae_lib.data import binarize, quantize
from vae_lib.distributions import (
    Bernoulli,
    Categorical,
    DiagonalGaussian,
    DiscretizedLogistic,
    Mixture,
)
from vae_lib.evaluation import active_units, held_out_elbo, log_likelihood
from vae_lib.losses import implied_weights
from vae_lib.model import (
    VAE,
    CategoricalDecoder,
    DiscretizedLogisticDecoder,
    GaussianDecoder,
    StandardNormal,
    dense_vae,
)
from vae_lib.networks import TwoHeads, dense
from vae_lib.objectives import beta_elbo, dreg, elbo, iwae, log_weights, terms
from vae_lib.priors import GaussianMixture

# The same examples at every run: a property that fails must fail for everyone.
settings.register_profile("book", derandomize=True, database=None, deadline=None, max_examples=25)
settings.load_profile("book")

sizes = st.integers(1, 6)
seeds = st.integers(0, 10**6)
dtypes = st.sampled_from([torch.float32, torch.float64])
LEVELS = 4


def generator(seed=0):
    return torch.Generator().manual_seed(seed)


@st.composite
def models(draw):
    """A VAE of any size, prior, likelihood and precision, with images that it can score."""
    pixels, hidden, latents, seed = draw(sizes), draw(sizes), draw(sizes), draw(seeds)
    random = generator(seed)
    model = dense_vae(pixels, (hidden, hidden), latents, seed=seed)
    grey = torch.randint(256, (draw(sizes) + 1, pixels), generator=random, dtype=torch.uint8)
    images = binarize(grey, "threshold")
    kind = draw(st.sampled_from(["bernoulli", "gaussian", "categorical", "logistic"]))
    if kind != "bernoulli":
        images = quantize(grey, LEVELS)
    decoder = {
        "bernoulli": lambda: model.decoder,
        "gaussian": lambda: GaussianDecoder(dense(latents, pixels, generator=random), 0.5),
        "categorical": lambda: CategoricalDecoder(
            dense(latents, pixels * LEVELS, generator=random), LEVELS
        ),
        "logistic": lambda: DiscretizedLogisticDecoder(
            TwoHeads(torch.nn.Identity(), latents, pixels, random), LEVELS
        ),
    }[kind]()
    prior = draw(st.sampled_from([StandardNormal(latents), GaussianMixture(latents, 3)]))
    dtype = draw(dtypes)
    return VAE(model.encoder, prior, decoder).to(dtype), images.to(dtype)


def close(a, b):
    """Equal but for rounding, for numbers of the order of a hundred."""
    tolerance = 1e-3 if a.dtype == torch.float32 else 1e-9
    torch.testing.assert_close(a, b, rtol=tolerance, atol=tolerance)


class Noisy(DiagonalGaussian):
    """A Gaussian that draws with noise that is given: shape (samples, ..., d)."""

    def __init__(self, q, noise):
        super().__init__(q.mean, q.log_std)
        self.noise = noise

    def rsample(self, samples=None, *, generator=None):
        return self.mean + self.std * (self.noise[0] if samples is None else self.noise[:samples])


OBJECTIVES = {
    "elbo": elbo,
    "beta": lambda *a: beta_elbo(*a, beta=0.5),
    "iwae": lambda *a: iwae(*a, samples=3),
    "dreg": lambda *a: dreg(*a, samples=3),
    "distortion": lambda *a: terms(*a).distortion,
    "rate": lambda *a: terms(*a).rate,
}
every_objective = pytest.mark.parametrize("name", OBJECTIVES)


# -- shapes, types, signs


@every_objective
@given(models(), seeds)
def test_an_objective_gives_one_number_of_the_models_precision_per_image(name, case, seed):
    model, x = case
    values = OBJECTIVES[name](model, x, generator(seed))
    assert values.shape == x.shape[:1]
    assert values.dtype == x.dtype
    assert torch.isfinite(values).all()


@given(models(), st.integers(1, 5), seeds)
def test_log_weights_are_one_row_per_sample(case, samples, seed):
    model, x = case
    assert log_weights(model, x, samples, generator(seed)).shape == (samples, len(x))


@given(models(), seeds)
def test_signs_are_as_the_docstrings_say(case, seed):
    model, x = case
    cost = terms(model, x, generator(seed))
    if not isinstance(model.decoder, GaussianDecoder):  # probabilities, not densities
        assert (cost.distortion >= -1e-5).all()
    if isinstance(model.prior, StandardNormal):
        assert (cost.rate >= -1e-5).all()
    close(cost.elbo, -cost.distortion - cost.rate)


@given(models(), st.integers(2, 6), seeds)
def test_the_bound_lies_between_the_mean_and_the_largest_weight(case, samples, seed):
    model, x = case
    log_w = log_weights(model, x, samples, generator(seed))
    bound = iwae(model, x, generator(seed), samples=samples)
    slack = 1e-4 * (1 + bound.abs())
    assert (bound >= log_w.mean(0) - slack).all()
    assert (bound <= log_w.max(0).values + slack).all()


@given(models(), st.integers(1, 150), seeds)
def test_effective_samples_lie_between_one_and_all(case, samples, seed):
    model, x = case
    found = log_likelihood(model, x, samples=samples, seed=seed)
    assert (found.effective_samples > 0.999).all()
    assert (found.effective_samples < samples * 1.001).all()
    errors = found.sampling_errors
    assert ((errors >= 0) & (errors <= 1)).all()


# -- invariances


@every_objective
@given(models(), seeds)
def test_the_order_of_a_batch_does_not_matter(name, case, seed):
    model, x = case
    order = torch.randperm(len(x), generator=generator(seed))
    noise = torch.randn(3, *model.encoder(x).mean.shape, generator=generator(seed)).to(x)

    def values(x, noise):
        def encoder(x):
            return Noisy(model.encoder(x), noise)

        return OBJECTIVES[name](VAE(encoder, model.prior, model.decoder), x, None)

    close(values(x, noise)[order], values(x[order], noise[:, order]))


@given(models(), st.integers(1, 7))
def test_the_size_of_a_batch_does_not_matter_where_nothing_is_drawn(case, batch_size):
    model, x = case
    whole = model.encoder(x)
    parts = [model.encoder(part) for part in x.split(batch_size)]
    close(whole.mean, torch.cat([q.mean for q in parts]))
    close(whole.log_std, torch.cat([q.log_std for q in parts]))
    z = whole.mean.detach()
    close(
        model.decoder(z).log_prob(x),
        torch.cat(
            [
                model.decoder(a).log_prob(b)
                for a, b in zip(z.split(batch_size), x.split(batch_size), strict=True)
            ]
        ),
    )
    units = active_units(model, x, threshold=0.02, batch_size=batch_size)
    assert torch.equal(units, active_units(model, x, threshold=0.02))


@given(models(), seeds)
def test_scoring_is_repeatable_and_leaves_the_model_alone(case, seed):
    model, x = case
    before = {name: value.clone() for name, value in model.state_dict().items()}
    first, second = (held_out_elbo(model, x, seed=seed).elbo.values for _ in range(2))
    assert torch.equal(first, second)
    assert not first.requires_grad
    assert all(torch.equal(before[name], value) for name, value in model.state_dict().items())


@given(sizes, sizes, seeds)
def test_both_precisions_agree(batch, latents, seed):
    random = generator(seed)

    def draw(*shape):
        return torch.randn(*shape, generator=random, dtype=torch.float64)

    q, p = (DiagonalGaussian(draw(batch, latents), 0.5 * draw(batch, latents)) for _ in range(2))
    z = draw(batch, latents)
    single = DiagonalGaussian(q.mean.float(), q.log_std.float())
    other = DiagonalGaussian(p.mean.float(), p.log_std.float())
    torch.testing.assert_close(
        q.kl(p), single.kl(other).double(), rtol=1e-3, atol=1e-4, check_dtype=False
    )
    torch.testing.assert_close(
        q.log_prob(z), single.log_prob(z.float()).double(), rtol=1e-3, atol=1e-4
    )


@given(sizes, sizes, seeds)
def test_a_divergence_is_never_negative_and_adds_up_over_latents(batch, latents, seed):
    random = generator(seed)
    q, p = (
        DiagonalGaussian(*torch.randn(2, batch, latents, generator=random, dtype=torch.float64))
        for _ in range(2)
    )
    divergence = q.kl(p)
    assert (divergence >= -1e-12).all()
    each = [
        DiagonalGaussian(q.mean[:, j : j + 1], q.log_std[:, j : j + 1]).kl(
            DiagonalGaussian(p.mean[:, j : j + 1], p.log_std[:, j : j + 1])
        )
        for j in range(latents)
    ]
    close(divergence, torch.stack(each).sum(0))


@given(sizes, sizes, seeds, st.floats(-5, 5), st.floats(-2, 2))
def test_a_divergence_does_not_care_about_origin_and_unit(batch, latents, seed, shift, log_unit):
    random = generator(seed)
    q, p = (
        DiagonalGaussian(*torch.randn(2, batch, latents, generator=random, dtype=torch.float64))
        for _ in range(2)
    )

    def moved(g):
        return DiagonalGaussian(math.exp(log_unit) * g.mean + shift, g.log_std + log_unit)

    close(q.kl(p), moved(q).kl(moved(p)))


# -- ranges


@given(sizes, sizes, seeds, dtypes, st.floats(-3, 3))
def test_samples_of_images_are_images(batch, pixels, seed, dtype, log_scale):
    random = generator(seed)
    logits = 10 * torch.randn(batch, pixels, LEVELS, generator=random).to(dtype)
    place = torch.randn(batch, pixels, generator=random).to(dtype)
    scale = torch.full_like(place, log_scale)
    grid = {
        Bernoulli(logits[..., 0]): 1,
        Categorical(logits): LEVELS - 1,
        DiscretizedLogistic(place, scale, LEVELS): LEVELS - 1,
    }
    for likelihood, steps in grid.items():
        x = likelihood.sample(generator=random)
        assert x.shape == (batch, pixels)
        assert x.dtype == dtype
        assert x.min() >= 0
        assert x.max() <= 1
        assert ((x * steps - (x * steps).round()).abs() < 1e-5).all()
        assert (likelihood.log_prob(x) <= 1e-6).all()
        assert likelihood.mean.shape == (batch, pixels)
        assert ((likelihood.mean >= 0) & (likelihood.mean <= 1 + 1e-6)).all()


@given(sizes, sizes, sizes, seeds)
def test_a_mixture_lies_below_its_largest_component(batch, latents, components, seed):
    random = generator(seed)
    parts = DiagonalGaussian(*torch.randn(2, components, latents, generator=random).double())
    mixture = Mixture(torch.randn(components, generator=random).double(), parts)
    z = mixture.sample(batch, generator=random)
    assert z.shape == (batch, latents)
    assert (mixture.log_prob(z) <= parts.log_prob(z.unsqueeze(1)).max(1).values + 1e-9).all()


@given(
    st.integers(1, 10**4),
    st.integers(1, 100),
    st.floats(0.01, 100),
    st.floats(0.01, 100),
    st.floats(0.01, 100),
)
def test_a_common_factor_changes_no_implied_weight(pixels, latents, one, other, factor):
    kinds = [(r, d) for r in ("sum", "mean") for d in ("sum", "mean")]
    for reconstruction, divergence in kinds:
        found, scaled = (
            implied_weights(
                pixels=pixels,
                latents=latents,
                reconstruction=reconstruction,
                divergence=divergence,
                reconstruction_weight=c * one,
                divergence_weight=c * other,
            )
            for c in (1, factor)
        )
        assert found.beta == pytest.approx(scaled.beta)
        assert 2 * found.std**2 == pytest.approx(found.beta)
