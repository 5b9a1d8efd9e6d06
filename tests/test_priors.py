import copy
import math
import pickle

import numpy as np
import pytest
import torch
from torch.distributions import Categorical, Independent, MixtureSameFamily, Normal

from tests.memory import Largest
from vae_lib import priors
from vae_lib.checkpoints import load, save
from vae_lib.data import seeded
from vae_lib.distributions import DiagonalGaussian
from vae_lib.evaluation import log_likelihood
from vae_lib.model import VAE, BernoulliDecoder, GaussianEncoder, dense_vae
from vae_lib.networks import TwoHeads, dense
from vae_lib.objectives import elbo, log_weights, terms
from vae_lib.priors import GaussianMixture, VampPrior


def generator(seed=0):
    return torch.Generator().manual_seed(seed)


# -- the mixture
def test_a_mixture_prior_starts_as_it_says():
    prior = GaussianMixture(latents=3, components=4, seed=1)
    found = prior()
    assert found.components.mean.shape == (4, 3)
    assert torch.equal(found.components.std, torch.ones(4, 3))
    assert torch.equal(torch.softmax(found.logits, 0), torch.full((4,), 0.25))
    assert torch.equal(found.components.mean, GaussianMixture(3, 4, seed=1)().components.mean)
    assert not torch.equal(found.components.mean, GaussianMixture(3, 4)().components.mean)
    assert torch.equal(GaussianMixture(3, 4)().components.mean, GaussianMixture(3, 4, seed=0).means)
    stream = torch.randn(4, 3, generator=seeded(1, stream="mixture"))
    assert torch.equal(prior.means, stream)


def test_every_part_of_a_mixture_prior_learns():
    prior = GaussianMixture(latents=2, components=3)
    prior().log_prob(torch.tensor([[0.5, -0.5], [2.0, 1.0]])).sum().backward()
    assert all((p.grad.abs() > 0).all() for p in prior.parameters())
    assert len(list(prior.parameters())) == 3


def test_generate_draws_from_whatever_prior_there_is():
    class Identity(torch.nn.Module):
        def forward(self, z):
            return z

    prior = GaussianMixture(latents=2, components=3)
    model = VAE(Identity(), prior, Identity())
    z = model.generate(7, generator=torch.Generator().manual_seed(0))
    assert torch.equal(z, prior().sample(7, generator=torch.Generator().manual_seed(0)))


# -- pseudo-inputs


@pytest.fixture
def vamp():
    """A model in 64 bits whose prior has seven pseudo-inputs, and images.

    The encoder's spreads differ from one and from one another, so that a variance in place of a
    standard deviation, or a logarithm in place of either, is another number.
    """
    model = dense_vae(pixels=12, hidden=6, latents=2, seed=1)
    with torch.no_grad():
        model.encoder.network.first.weight.mul_(2)
        model.encoder.network.second.bias.copy_(torch.tensor([-0.7, 0.4]))
    model.prior = VampPrior(model.encoder, torch.rand(7, 12, generator=generator(3)))
    x = (torch.rand(5, 12, generator=generator(), dtype=torch.float64) < 0.4).double()
    return model.double(), x


def reference(model):
    """The same density by torch.distributions, from the equation."""
    mean, log_std = model.encoder.network(torch.sigmoid(model.prior.logits))
    even = Categorical(probs=torch.ones(len(mean), dtype=mean.dtype))
    return MixtureSameFamily(even, Independent(Normal(mean, log_std.exp()), 1))


def test_the_density_is_the_mean_of_those_of_the_pseudo_inputs(vamp):
    model, _ = vamp
    z = 2 * torch.randn(4, 9, 2, generator=generator(), dtype=torch.float64)
    found = model.prior().log_prob(z)
    torch.testing.assert_close(found, reference(model).log_prob(z))
    each = torch.stack([model.encoder(u).log_prob(z) for u in model.prior.inputs])
    torch.testing.assert_close(found, each.exp().mean(0).log())
    torch.testing.assert_close(model.prior().log_prob(z[1, 2]), found[1, 2])
    assert model.prior().log_prob(z[:, :0]).shape == (4, 0)


@pytest.mark.parametrize("count", [1, 7])
def test_the_density_integrates_to_one(vamp, count):
    model, _ = vamp
    prior = VampPrior(model.encoder, torch.rand(count, 12, generator=generator()).double())
    axis = torch.linspace(-14, 14, 400, dtype=torch.float64)
    z = torch.cartesian_prod(axis, axis)
    with torch.no_grad():
        total = prior().log_prob(z).exp().sum() * (axis[1] - axis[0]) ** 2
    assert total.item() == pytest.approx(1, abs=1e-6)


def test_draws_are_of_the_pseudo_inputs_and_not_of_a_standard_normal(vamp):
    model, _ = vamp
    q = model.encoder(model.prior.inputs)
    z = model.prior().sample(100_000, generator=generator())
    assert not z.requires_grad
    assert z.shape == (100_000, 2)
    mean = q.mean.mean(0)
    variance = (q.std**2 + q.mean**2).mean(0) - mean**2
    assert ((z.mean(0) - mean).abs() < 5 * (variance / len(z)).sqrt()).all()
    torch.testing.assert_close(z.var(0), variance, rtol=0.03, atol=0)
    assert (mean.abs() > 0.05).all()
    assert ((variance - 1).abs() > 0.1).all()
    # In the whole: the mean of log p of draws is minus the entropy, here by a grid.
    axis = torch.linspace(-14, 14, 400, dtype=torch.float64)
    with torch.no_grad():
        log_p = model.prior().log_prob(torch.cartesian_prod(axis, axis))
        entropy = -(log_p.exp() * log_p).sum() * (axis[1] - axis[0]) ** 2
        drawn = model.prior().log_prob(z)
    assert abs(drawn.mean() + entropy) < 5 * drawn.std() / math.sqrt(len(drawn))


def test_generating_draws_from_the_prior_that_is_scored(vamp):
    model, _ = vamp
    p = model.generate(7, generator=generator())
    z = model.prior().sample(7, generator=generator())
    torch.testing.assert_close(p.logits, model.decoder(z).logits)


def test_the_gradient_reaches_pseudo_inputs_and_through_them_the_encoder(vamp):
    model, x = vamp
    z = torch.randn(9, 2, generator=generator(), dtype=torch.float64)
    weights = [model.prior.logits, *model.encoder.parameters()]
    ours = torch.autograd.grad(model.prior().log_prob(z).sum(), weights)
    theirs = torch.autograd.grad(reference(model).log_prob(z).sum(), weights)
    for one, other in zip(ours, theirs, strict=True):
        torch.testing.assert_close(one, other)
        assert one.abs().sum() > 0

    def density(logits):
        inputs = torch.func.functional_call(model.prior, {"logits": logits})
        return inputs.log_prob(z)

    assert torch.autograd.gradcheck(density, model.prior.logits.detach().requires_grad_(True))
    elbo(model, x, generator()).sum().backward()
    assert all(p.grad.abs().sum() > 0 for p in model.parameters())


def test_the_rate_is_estimated_by_the_draw_that_is_decoded(vamp):
    model, x = vamp
    q = model.encoder(x)
    z = q.rsample(generator=generator())
    theirs = Independent(Normal(q.mean, q.std), 1).log_prob(z) - reference(model).log_prob(z)
    cost = terms(model, x, generator())
    torch.testing.assert_close(cost.rate, theirs)
    torch.testing.assert_close(cost.distortion, -model.decoder(z).log_prob(x))
    many = q.rsample(100_000, generator=generator(1))
    precise = q.log_prob(many) - model.prior().log_prob(many)
    draws = torch.stack([terms(model, x, generator(seed)).rate for seed in range(1000)])
    error = (draws.var(0) / len(draws) + precise.var(0) / len(precise)).sqrt()
    assert ((draws.mean(0) - precise.mean(0)).abs() < 5 * error).all()


def test_where_all_images_are_pseudo_inputs_the_mean_rate_is_below_log_k(vamp):
    """KL(q(z given x_k) | mean of all q) is at most log K, since the mean has q / K in it."""
    model, x = vamp
    model.prior = VampPrior(model.encoder, x)
    with torch.no_grad():
        model.prior.logits.copy_(torch.logit(x, eps=1e-12))
        for scale in (1, 100):
            model.encoder.network.first.weight.mul_(scale)
            q = model.encoder(x)
            z = q.rsample(5000, generator=generator())
            rate = (q.log_prob(z) - model.prior().log_prob(z)).mean(0)
            assert (rate < math.log(5) + 1e-6).all()
    torch.testing.assert_close(rate, torch.full_like(rate, math.log(5)))  # now far apart


def test_pseudo_inputs_stay_images_however_far_they_are_pushed(vamp):
    model, _ = vamp
    assert ((model.prior.inputs > 0) & (model.prior.inputs < 1)).all()
    optimizer = torch.optim.SGD([model.prior.logits], lr=1e6)
    z = torch.full((3, 2), 30.0, dtype=torch.float64)
    for _ in range(5):
        optimizer.zero_grad()
        (-model.prior().log_prob(z).sum()).backward()
        optimizer.step()
    assert ((model.prior.inputs >= 0) & (model.prior.inputs <= 1)).all()
    assert model.prior.inputs.max() > 0.999 or model.prior.inputs.min() < 0.001


def test_pseudo_inputs_start_at_the_images():
    images = torch.tensor([[0.0, 1.0, 0.25], [0.5, 0.01, 0.999]])
    prior = VampPrior(None, images)
    expected = torch.tensor([[0.02, 0.98, 0.25], [0.5, 0.02, 0.98]])
    torch.testing.assert_close(prior.inputs, expected)
    assert prior.logits.requires_grad


def test_the_encoder_is_the_models_own_and_saved_once(vamp, tmp_path):
    model, x = vamp
    assert [name for name, _ in model.prior.named_parameters()] == ["logits"]
    assert sum("encoder" in name for name in model.state_dict()) == len(
        list(model.encoder.parameters())
    )
    save(tmp_path / "vamp", model)
    other = dense_vae(pixels=12, hidden=6, latents=2, seed=9).double()
    other.prior = VampPrior(other.encoder, torch.rand(7, 12).double())
    load(tmp_path / "vamp", other)
    assert torch.equal(elbo(other, x, generator()), elbo(model, x, generator()))


@pytest.mark.parametrize(
    "copied", [copy.deepcopy, lambda m: pickle.loads(pickle.dumps(m))], ids=["deepcopy", "pickle"]
)
def test_a_copy_has_the_encoder_of_the_copy(vamp, copied):
    model, x = vamp
    before = elbo(model, x, generator())
    other = copied(model)
    assert torch.equal(elbo(other, x, generator()), before)
    with torch.no_grad():
        model.encoder.network.first.weight.add_(1)
    assert torch.equal(elbo(other, x, generator()), before)
    assert other.prior._encoder[0] is other.encoder


def test_many_pseudo_inputs_take_little_memory(vamp, monkeypatch):
    model, x = vamp
    z = torch.randn(40, 9, 2, generator=generator(), dtype=torch.float64)
    whole = model.prior().log_prob(z)
    monkeypatch.setattr(priors, "AT_ONCE", 14 * 5)
    torch.testing.assert_close(model.prior().log_prob(z), whole)
    p = model.prior()
    with torch.no_grad(), Largest() as largest:
        p.log_prob(z)
    assert largest.numbers <= 40 * 9 * 2  # and not 7 times as many
    first = log_likelihood(model, x, samples=30).values
    monkeypatch.setattr(priors, "AT_ONCE", 1)
    torch.testing.assert_close(log_likelihood(model, x, samples=30).values, first)


def test_weights_agree_with_quadrature():
    """log p(x) of six images by a grid over two latents, and by importance sampling."""
    random = generator(5)
    heads = TwoHeads(torch.nn.Sequential(dense(8, 6, generator=random), torch.nn.Tanh()), 6, 2)
    encoder = GaussianEncoder(heads)
    prior = VampPrior(encoder, torch.rand(4, 8, generator=random))
    model = VAE(encoder, prior, BernoulliDecoder(dense(2, 6, 8, generator=random))).double()
    with torch.no_grad():
        heads.second.weight.zero_()
        heads.second.bias.fill_(0.2)
    x = (torch.rand(6, 8, generator=random, dtype=torch.float64) < 0.5).double()
    nodes, weights = (torch.from_numpy(array) for array in np.polynomial.hermite_e.hermegauss(60))
    e = torch.cartesian_prod(nodes, nodes)
    log_weight = (torch.cartesian_prod(weights, weights).prod(-1) / (2 * math.pi)).log()
    with torch.no_grad():
        q = encoder(prior.inputs)
        parts = [
            torch.logsumexp(model.decoder(m + s * e).log_prob(x.unsqueeze(1)) + log_weight, -1)
            for m, s in zip(q.mean, q.std, strict=True)
        ]
        exact = torch.logsumexp(torch.stack(parts), 0) - math.log(4)
    found = log_likelihood(model, x, samples=20_000)
    assert ((found.values - exact).abs() < 5 * found.sampling_errors).all()
    assert found.sampling_errors.max() < 0.05
    assert log_weights(model, x, 3, generator()).shape == (3, 6)


@pytest.mark.parametrize(
    ("images", "message"),
    [
        (torch.zeros(3, 12, dtype=torch.uint8), r"images: expected floats of shape .*torch.uint8"),
        (
            torch.zeros(3, 3, 4),
            r"images: expected floats of shape \(K, pixels\).*\(3, 3, 4\).*flat",
        ),
        (torch.zeros(0, 12), r"images: expected floats of shape \(K, pixels\)"),
        (torch.full((3, 12), 1.5), r"images: expected floats from 0 to 1, got values from 1.5 to"),
        (torch.full((3, 12), math.nan), r"images: expected floats from 0 to 1"),
        ([[0.5]], r"images: expected a torch.Tensor, got list"),
    ],
)
def test_images_that_cannot_be_pseudo_inputs_are_refused(images, message):
    with pytest.raises(ValueError, match=message):
        VampPrior(dense_vae(pixels=12, hidden=2, latents=2).encoder, images)


def test_another_kind_of_q_is_refused():
    prior = VampPrior(lambda x: x, torch.zeros(2, 3))
    with pytest.raises(ValueError, match=r"encoder: expected .* DiagonalGaussian, got torch.Tens"):
        prior()
    assert isinstance(VampPrior(lambda x: DiagonalGaussian(x, x), torch.zeros(2, 3))(), object)
