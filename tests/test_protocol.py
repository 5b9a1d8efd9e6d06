"""What every kind of model has to do, so that objectives and evaluation may take any of them."""

import copy
import math
from functools import partial
from itertools import product
from types import SimpleNamespace

import pytest
import torch

from vae_lib.checkpoints import load, save
from vae_lib.data import Batches, seeded
from vae_lib.evaluation import active_units, held_out_elbo, log_likelihood
from vae_lib.hierarchy import Hierarchy, conv_hierarchy
from vae_lib.model import VAE, dense_vae, switched
from vae_lib.objectives import beta_elbo, dreg, elbo, iwae, log_weights, terms
from vae_lib.priors import GaussianMixture, VampPrior
from vae_lib.states import State
from vae_lib.training import train

PIXELS = 16


def generator(seed=0):
    return torch.Generator().manual_seed(seed)


class Own(VAE):
    """Somebody's own: three parts, and a `forward` that means something else."""

    def forward(self, x):
        return self.decoder(self.encoder(x).mean).mean


def one_vector(kind=VAE, prior=None, seed=0, pixels=PIXELS):
    model = dense_vae(pixels=pixels, hidden=8, latents=2, seed=seed)
    made = kind(model.encoder, model.prior, model.decoder)
    if prior is not None:
        made.prior = prior(made)
    return made


def several(seed=0, pixels=PIXELS, prior=None):
    side = math.isqrt(pixels)
    layers = (1,) * (side.bit_length() - 1)
    model = conv_hierarchy((1, side, side), layers, latents=2, channels=1, width=4, seed=seed)
    if prior is not None:
        model.prior = prior(model)
    return model


def pseudo(model):
    pixels = model.decoder.network[-1].out_features
    return VampPrior(model.encoder, torch.rand(5, pixels, generator=generator(4)))


def stand_in(seed=0, pixels=PIXELS):
    """Three parts and nothing else: no module, no methods."""
    parts = one_vector(seed=seed, pixels=pixels)
    return SimpleNamespace(encoder=parts.encoder, prior=parts.prior, decoder=parts.decoder)


def mixture(model):
    return GaussianMixture(2, 3)


MAKERS = {
    "standard normal": one_vector,
    "somebody's own": partial(one_vector, Own),
    "mixture": partial(one_vector, prior=mixture),
    "pseudo-inputs": partial(one_vector, prior=pseudo),
    "hierarchy": several,
    "hierarchy below a mixture": partial(several, prior=mixture),
}
every_model = pytest.mark.parametrize("make", MAKERS.values(), ids=MAKERS)
EVERYTHING = MAKERS | {"three parts alone": stand_in}
everything = pytest.mark.parametrize("make", EVERYTHING.values(), ids=EVERYTHING)
OBJECTIVES = {
    "elbo": elbo,
    "beta": partial(beta_elbo, beta=0.5),
    "iwae": partial(iwae, samples=3),
    "distortion": lambda *a: terms(*a).distortion,
    "rate": lambda *a: terms(*a).rate,
}


def shaken(model, by=0.3):
    """Move all weights away from where they start, so that every term counts and differs."""
    noise = generator(8)
    parts = [model] if isinstance(model, torch.nn.Module) else [model.encoder, model.decoder]
    with torch.no_grad():
        for weight in (weight for part in parts for weight in part.parameters()):
            long = max(4, weight[0].numel() if weight.ndim else 1)
            weight += by * torch.randn(weight.shape, generator=noise) / math.sqrt(long)
    return model


def broad(model):
    """Shake what generates, and let each q be a little broader than where its latent may be.

    Then the weights are bounded, and a few thousand of them are enough.
    """
    with torch.no_grad():
        if isinstance(model, Hierarchy):
            encoder, model.encoder = model.encoder, None
            posteriors = [layer.posterior for layer in model.layers]
            for layer in model.layers:
                layer.posterior = None
            shaken(model, by=0.6)
            model.encoder = encoder
            model.encoder.top.bias[2:] = 0.5
            for layer, posterior in zip(model.layers, posteriors, strict=True):
                layer.posterior = posterior
                posterior.heads.network[-1].bias[1:] = 0.3
            return model
        heads = model.encoder.network
        heads.first.weight.zero_()
        heads.second.weight.zero_()
        heads.second.bias.fill_(0.5)
        for part in (model.prior, model.decoder):
            shaken(part, by=0.6)
        return model


def bits(n=6, pixels=PIXELS):
    """Two patterns with a little noise: something to learn within a few steps."""
    noise = generator(1)
    pattern = (torch.arange(pixels) % 2).float()
    which = torch.rand(n, 1, generator=noise) < 0.5
    images = torch.where(which, pattern, 1 - pattern)
    return torch.where(torch.rand(n, pixels, generator=noise) < 0.05, 1 - images, images)


def alike(one, other):
    torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-4)


# -- shapes and seeds


@everything
def test_there_is_one_value_for_each_image(make):
    model, x = shaken(make()), bits()
    for objective in OBJECTIVES.values():
        for images in (x, x[:1], x[:0]):
            values = objective(model, images, generator())
            assert values.shape == images.shape[:1]
            assert values.dtype == torch.float32
            assert values.isfinite().all()
    for samples in (1, 4):
        assert log_weights(model, x, samples, generator()).shape == (samples, 6)
        assert log_weights(model, x[:0], samples, generator()).shape == (samples, 0)


@everything
def test_the_generator_decides_every_draw(make):
    model, x = shaken(make()), bits()
    for objective in [*OBJECTIVES.values(), lambda m, x, *g: log_weights(m, x, 3, *g)]:
        first = objective(model, x, generator())
        assert torch.equal(first, objective(model, x, generator()))
        torch.manual_seed(3)
        assert torch.equal(first, objective(model, x, generator()))  # and not the global one
        torch.manual_seed(3)
        whole = objective(model, x)
        torch.manual_seed(3)
        assert torch.equal(whole, objective(model, x))
    for objective in (elbo, OBJECTIVES["distortion"], OBJECTIVES["iwae"]):
        assert not torch.equal(objective(model, x, generator()), objective(model, x, generator(1)))


@everything
def test_each_image_and_each_sample_has_its_own_noise(make):
    model, x = shaken(make()), bits(1).expand(20, -1)
    assert terms(model, x, generator()).distortion.unique().numel() > 15
    assert log_weights(model, x, 10, generator()).unique().numel() > 150


@every_model
def test_the_rates_of_the_latents_add_up(make):
    model, x = shaken(make()), bits()
    cost = terms(model, x, generator())
    alike(sum(cost.rates), cost.rate)
    assert len(cost.rates) == (3 if isinstance(model, Hierarchy) else 1)
    alike(cost.elbo, -cost.distortion - cost.rate)
    alike(beta_elbo(model, x, generator(), beta=0.3), -cost.distortion - 0.3 * cost.rate)


@every_model
def test_precision_moves_all_of_it(make):
    model, x = shaken(make()).double(), bits().double()
    for objective in OBJECTIVES.values():
        assert objective(model, x, generator()).dtype == torch.float64
    assert model.generate(2, generator=generator()).mean.dtype == torch.float64


# -- the way down


def walk(model, seen, given=None):
    """Go down once, with latents that are given or drawn from q; return all that was met."""
    noise, met = generator(2), []

    def choose(q, p):
        z = q.rsample(generator=noise) if given is None else given[len(met)]
        met.append((q, p, z))
        return z

    return met, model.top_down(seen, choose)


@every_model
def test_priors_and_likelihood_need_no_image(make):
    """What a decoder of bits knows: the latents so far. It has to find the very same numbers."""
    model, x = shaken(make()), bits()
    met, likelihood = walk(model, model.bottom_up(x))
    latents = [z for _, _, z in met]
    again, same = walk(model, None, latents)
    assert [q for q, _, _ in again] == [None] * len(met)
    for (_, p, z), (_, other, _) in zip(met, again, strict=True):
        assert torch.equal(p.log_prob(z), other.log_prob(z))
    assert torch.equal(likelihood.log_prob(x), same.log_prob(x))
    # And with the images it finds the same q.
    seen, _ = walk(model, model.bottom_up(x), latents)
    for (q, _, z), (other, _, _) in zip(met, seen, strict=True):
        assert torch.equal(q.log_prob(z), other.log_prob(z))


@every_model
def test_weights_are_those_of_what_was_met(make):
    model, x = shaken(make()), bits()
    met, likelihood = walk(model, model.bottom_up(x))
    expected = likelihood.log_prob(x) + sum(p.log_prob(z) - q.log_prob(z) for q, p, z in met)
    found = log_weights(model, x, 1, generator(2))[0]
    alike(found, expected)
    weights = list(model.parameters())
    ours, theirs = (
        torch.autograd.grad(w.sum(), weights, retain_graph=True) for w in (found, expected)
    )
    for one, other in zip(ours, theirs, strict=True):
        alike(one, other)
    alike(terms(model, x, generator(2)).distortion, -likelihood.log_prob(x))


@every_model
def test_generating_draws_each_latent_from_its_prior(make):
    model = shaken(make())
    noise, sizes = generator(5), []

    def choose(q, p):
        assert q is None
        sizes.append(None if sizes else 7)  # the latents below are as many as the top one
        return p.sample(sizes[-1], generator=noise)

    expected = model.top_down(None, choose)
    found = model.generate(7, generator=generator(5))
    assert found.mean.shape == (7, PIXELS)
    assert torch.equal(found.logits, expected.logits)
    assert not torch.equal(found.logits, model.generate(7, generator=generator(6)).logits)
    assert model.generate(0).mean.shape == (0, PIXELS)


# -- estimates


@everything
def test_the_mean_weight_is_the_bound(make):
    model, x = shaken(make()), bits(3)
    with torch.no_grad():
        single = torch.stack([elbo(model, x, generator(seed)) for seed in range(200)])
        many = log_weights(model, x, 4000, generator(9))
    error = (single.var(0) / len(single) + many.var(0) / len(many)).sqrt()
    assert ((single.mean(0) - many.mean(0)).abs() < 5 * error).all()


@everything
def test_the_bound_of_many_samples_is_the_log_of_the_mean_weight(make):
    model, x = shaken(make()), bits()
    weights = log_weights(model, x, 5, generator()).exp()
    alike(iwae(model, x, generator(), samples=5), weights.mean(0).log())
    alike(iwae(model, x, generator(), samples=1), log_weights(model, x, 1, generator())[0])


@everything
def test_the_probabilities_of_all_pictures_sum_to_one(make):
    model = broad(make(pixels=4))
    x = torch.tensor(list(product([0.0, 1.0], repeat=4)))
    found = log_likelihood(model, x, samples=4000)
    p, relative = found.values.double().exp(), found.sampling_errors.double()
    assert p.std() > 0.003  # or there would be little to get wrong
    assert abs(p.sum() - 1) < 5 * (p * relative).square().sum().sqrt() + 1e-4
    assert (p * relative).square().sum().sqrt() < 0.02


@every_model
def test_weights_in_parts_are_as_good_as_the_whole(make):
    model, x = shaken(make()), bits(3)
    with torch.no_grad():
        whole = log_weights(model, x, 900, generator())
        for at_once in (70, 400, 900, 1000):
            some = log_weights(model, x, 900, generator(), at_once=at_once)
            assert some.shape == (900, 3)
            assert torch.equal(some, log_weights(model, x, 900, generator(), at_once=at_once))
            if at_once >= 900 or not isinstance(model, Hierarchy):
                alike(some, whole)
            error = ((some.var(0) + whole.var(0)) / 900).sqrt()
            assert ((some.mean(0) - whole.mean(0)).abs() < 5 * error + 1e-4).all()
            assert torch.unique(some[:, 0]).numel() > 700


@everything
def test_scores_are_repeatable_and_change_nothing(make):
    model, x = shaken(make()), bits(7)
    held = held_out_elbo(model, x)
    alike(held.elbo.values, -(held.distortion.values + held.rate.values))
    alike(held.elbo.values, elbo(model, x, seeded(0, stream="evaluation")))
    found = log_likelihood(model, x, samples=12, batch_size=3)
    assert found.values.shape == found.effective_samples.shape == found.tenths.shape == (7,)
    assert torch.equal(found.values, log_likelihood(model, x, samples=12, batch_size=3).values)
    assert not found.values.requires_grad


@every_model
def test_scores_are_taken_in_evaluation_mode(make):
    model = shaken(make())
    modes = []
    model.decoder.register_forward_hook(lambda module, *_: modes.append(module.training))
    with switched(model, training=True):
        held_out_elbo(model, bits())
        log_likelihood(model, bits(), samples=2)
        assert model.training
    assert modes == [False, False]


# -- training and files


@every_model
def test_a_few_steps_raise_the_bound(make):
    model, x = make(), bits(100)
    before = held_out_elbo(model, x).elbo
    for objective in (elbo, partial(iwae, samples=3)):
        batches = Batches(x, batch_size=20)
        train(model, batches, objective, epochs=4, learning_rate=1e-2, clip=100, state=State())
    after = held_out_elbo(model, x).elbo
    assert after.mean > before.mean + 1


@every_model
def test_every_weight_gets_a_gradient(make):
    model = shaken(make())
    elbo(model, bits(), generator()).sum().backward()
    for name, weight in model.named_parameters():
        assert weight.grad is not None, name
        assert weight.grad.abs().sum() > 0, name


@every_model
def test_a_file_gives_the_same_scores(make, tmp_path):
    model, x = shaken(make()), bits()
    save(tmp_path / "model", model, note="none")
    other = make(seed=1)
    assert not torch.equal(elbo(model, x, generator()), elbo(other, x, generator()))
    load(tmp_path / "model", other)
    assert torch.equal(elbo(model, x, generator()), elbo(other, x, generator()))
    one, two = (m.generate(3, generator=generator()).logits for m in (model, other))
    assert torch.equal(one, two)
    assert torch.equal(elbo(copy.deepcopy(model), x, generator()), elbo(model, x, generator()))


@every_model
def test_a_training_goes_on_from_its_file_with_the_same_bits(make, tmp_path):
    batches = Batches(bits(60), batch_size=20)
    options = {"learning_rate": 1e-2, "clip": 100, "average": 0.5}
    straight, state = make(), State()
    train(straight, batches, epochs=2, state=state, **options)
    train(make(), batches, epochs=1, state=tmp_path / "state", **options)
    resumed, other = make(), State(tmp_path / "state")
    train(resumed, batches, epochs=2, state=other, **options)
    x = bits(20)
    for one, two in ((straight, resumed), (state.averaged, other.averaged)):
        weights = two.state_dict()
        assert all(torch.equal(value, weights[name]) for name, value in one.state_dict().items())
        assert torch.equal(held_out_elbo(one, x).elbo.values, held_out_elbo(two, x).elbo.values)
    assert not torch.equal(
        held_out_elbo(straight, x).elbo.values, held_out_elbo(state.averaged, x).elbo.values
    )


# -- what a hierarchy is refused by


def test_objectives_of_one_vector_say_so():
    model, x = several(), bits()
    with pytest.raises(ValueError, match=r"model: expected a DiagonalGaussian.*got list.*iwae"):
        dreg(model, x, generator(), samples=3)
    with pytest.raises(ValueError, match=r"model: expected an encoder .* got .*list.*terms"):
        active_units(model, x)


@pytest.mark.parametrize("prior", [None, mixture, pseudo])
def test_the_doubly_reparameterised_bound_takes_any_prior(prior):
    model, x = shaken(one_vector(prior=prior)), bits()
    alike(dreg(model, x, generator(), samples=4), iwae(model, x, generator(), samples=4))
    gradients = []
    for objective in (dreg, iwae):
        model.zero_grad()
        objective(model, x, generator(), samples=4).sum().backward()
        gradients.append([p.grad.clone() for p in model.decoder.parameters()])
    for one, other in zip(*gradients, strict=True):
        alike(one, other)
