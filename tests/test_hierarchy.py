import math
from itertools import product

import numpy as np
import pytest
import torch
from torch.distributions import Independent, Normal, kl_divergence

from tests.oracles import linear_hierarchy
from vae_lib.distributions import Bernoulli, DiagonalGaussian, DiscretizedLogistic
from vae_lib.evaluation import log_likelihood
from vae_lib.hierarchy import Pixels, _doubled, _halved, conv_hierarchy
from vae_lib.model import DiscretizedLogisticDecoder
from vae_lib.objectives import elbo, iwae, log_weights, terms


def generator(seed=0):
    return torch.Generator().manual_seed(seed)


def small(seed=0, **more):
    """A hierarchy of four latents for pictures of 8 x 8."""
    given = {"latents": 3, "channels": 2, "width": 4} | more
    return conv_hierarchy((1, 8, 8), (2, 1), seed=seed, **given)


def rough(model):
    """The same model with weights none of which is zero, so that every term counts."""
    noises = generator(7)
    with torch.no_grad():
        for weight in model.parameters():
            noise = torch.randn(weight.shape, generator=noises, dtype=weight.dtype)
            weight += 0.2 * noise / math.sqrt(max(4, weight[0].numel()))
    return model


def bits(n, pixels=64):
    return (torch.rand(n, pixels, generator=generator(1)) < 0.4).float()


# -- linear maps: the exact answer


def test_with_exact_posteriors_every_weight_is_the_likelihood():
    model, x, exact, _ = linear_hierarchy()
    weights = log_weights(model, x, 20, generator())
    torch.testing.assert_close(weights, exact.expand(20, -1), rtol=0, atol=1e-10)
    for samples in (1, 13):
        found = log_likelihood(model, x, samples=samples, batch_size=15)
        torch.testing.assert_close(found.values, exact, rtol=0, atol=1e-10)
    bound = iwae(model, x, generator(), samples=5)
    torch.testing.assert_close(bound, exact, rtol=0, atol=1e-10)


@pytest.mark.parametrize(
    ("off", "wider"), [((0, 0), 0), ((0.8, 0), 0), ((0, 0.6), 0), ((0.5, 0.7), 0.2), ((0, 0), -0.4)]
)
def test_the_gap_is_the_divergence_of_each_latent_from_its_posterior(off, wider):
    model, x, exact, gaps = linear_hierarchy(off, wider)
    bound = torch.stack([elbo(model, x, generator(seed)) for seed in range(1000)])
    weights = log_weights(model, x, 1000, generator())
    for draws in (bound, weights):
        error = draws.std(0) / math.sqrt(len(draws))
        assert ((exact - draws.mean(0) - sum(gaps)).abs() < 5 * error + 1e-10).all()
    # Over all images as well, for which the error is a sixth.
    short = (exact - bound).mean(1)
    assert abs(short.mean() - sum(gaps)) < 5 * short.std() / math.sqrt(len(short))
    assert (exact.mean() > bound.mean()) or sum(gaps) == 0


def test_importance_sampling_closes_the_gap():
    model, x, exact, gaps = linear_hierarchy((0.5, 0.5), 0.2)
    found = log_likelihood(model, x, samples=20_000)
    assert ((found.values - exact).abs() < 5 * found.sampling_errors).all()
    assert found.sampling_errors.max() < 0.1 < sum(gaps)


def test_the_rate_of_each_latent_is_the_expectation_over_those_above_it():
    model, x, _, _ = linear_hierarchy((0.5, -0.3), 0.1)
    found = torch.stack(
        [torch.stack(terms(model, x, generator(seed)).rates) for seed in range(1500)]
    )
    # The top one is exact; the one below it is quadratic in z_1, so three nodes a latent give it.
    q = model.encoder(x)[0]
    top = kl_divergence(
        Independent(Normal(q.mean, q.std), 1), Independent(Normal(0 * q.mean, 1), 1)
    )
    torch.testing.assert_close(found[:, 0], top.expand(1500, -1))
    nodes, weights = (torch.from_numpy(array) for array in np.polynomial.hermite_e.hermegauss(3))
    below = 0.0
    for (e, f), (v, w) in zip(product(nodes, repeat=2), product(weights, repeat=2), strict=True):
        z = q.mean + q.std * torch.stack([e, f])
        pairs = []
        model.layers[0](z, x, lambda q, p, pairs=pairs: pairs.append((q, p)) or q.mean)
        ((q2, p2),) = pairs
        below = below + v * w / (2 * math.pi) * kl_divergence(
            Independent(Normal(q2.mean, q2.std), 1), Independent(Normal(p2.mean, p2.std), 1)
        )
    error = found[:, 1].std(0) / math.sqrt(len(found))
    assert ((found[:, 1].mean(0) - below).abs() < 5 * error).all()
    assert (error > 0).all()


# -- the convolutional one


def walked(model, x, samples=None, seed=0):
    """Go down once; return q, prior and draw of each latent, and the likelihood."""
    found, noise = [], generator(seed)

    def choose(q, p):
        z = q.rsample(*([] if found or samples is None else [samples]), generator=noise)
        found.append((q, p, z))
        return z

    return found, model.top_down(model.bottom_up(x), choose)


def test_every_latent_has_the_size_that_was_asked_for():
    model, x = small(), bits(5)
    found, likelihood = walked(model, x)
    assert [z.shape for _, _, z in found] == [(5, 3), (5, 8), (5, 8), (5, 32)]
    assert [layer.posterior.above.weight.shape[1] for layer in model.layers] == [8, 8, 4]
    assert isinstance(likelihood, Bernoulli)
    assert likelihood.logits.shape == (5, 64)


def test_the_default_is_the_one_of_the_docstring():
    model = conv_hierarchy()
    found, _ = walked(model, torch.zeros(2, 784))
    sizes = [24] + 4 * [4 * 7 * 7] + 2 * [4 * 14 * 14]
    assert [z.shape[-1] for _, _, z in found] == sizes
    assert 1.2e6 < sum(weight.numel() for weight in model.parameters()) < 1.4e6


def test_each_density_is_that_of_torch_distributions():
    model, x = rough(small()).double(), bits(5).double()
    found, likelihood = walked(model, x)
    top, *below = model.encoder(x)
    h, log_w, rates = found[0][2], 0.0, []
    pairs = [((top.mean, top.log_std), (torch.zeros(5, 3).double(), torch.zeros(5, 3).double()))]
    for layer, seen, (_, _, z) in zip(model.layers, below, found[1:], strict=True):
        h = layer.before(h)
        (mean, log_std), (shift, log_factor) = layer.prior(h), layer.posterior(h, seen)
        assert min(part.abs().max() for part in (mean, log_std, shift, log_factor)) > 0.01
        pairs.append(((mean + shift, log_std + log_factor), (mean, log_std)))
        h = layer.after(h, z)
    for (q, p), (_, _, z) in zip(pairs, found, strict=True):
        q, p = (Independent(Normal(mean, log_std.exp()), 1) for mean, log_std in (q, p))
        log_w = log_w + p.log_prob(z) - q.log_prob(z)
        rates.append(kl_divergence(q, p))
    log_p = torch.distributions.Bernoulli(logits=likelihood.logits).log_prob(x).sum(-1)
    torch.testing.assert_close(model.decoder(h).logits, likelihood.logits)

    cost = terms(model, x, generator())
    for one, other in zip(cost.rates, rates, strict=True):
        torch.testing.assert_close(one, other)
    torch.testing.assert_close(cost.rate, sum(rates))
    torch.testing.assert_close(cost.distortion, -log_p)
    weight = log_weights(model, x, 1, generator())[0]
    torch.testing.assert_close(weight, log_p + log_w)


def test_the_mean_weight_is_the_bound():
    model, x = rough(small(width=2)).double(), bits(4).double()
    single = torch.stack([elbo(model, x, generator(seed)) for seed in range(300)])
    many = log_weights(model, x, 1500, generator(1))
    error = (single.var(0) / len(single) + many.var(0) / len(many)).sqrt()
    assert ((single.mean(0) - many.mean(0)).abs() < 5 * error).all()


def test_the_probabilities_of_all_pictures_are_those_of_the_integral_and_sum_to_one():
    """Sixteen pictures of 2 x 2 and two latents, one below the other, on a fine grid."""
    model = rough(conv_hierarchy((1, 2, 2), (1,), latents=1, channels=1, width=4)).double()
    x = torch.tensor(list(product([0.0, 1.0], repeat=4))).double()
    nodes, weights = (torch.from_numpy(array) for array in np.polynomial.hermite_e.hermegauss(80))
    e = torch.cartesian_prod(nodes, nodes)
    log_weight = (torch.cartesian_prod(weights, weights).prod(-1) / (2 * math.pi)).log()
    given = iter(e.T.unsqueeze(-1))  # numbers of a standard normal, as those that make a draw
    with torch.no_grad():
        likelihood = model.top_down(None, lambda q, p: p.mean + p.std * next(given))
        log_p = likelihood.log_prob(x.unsqueeze(1))
    exact = torch.logsumexp(log_p + log_weight, -1)
    assert exact.exp().sum().item() == pytest.approx(1, abs=1e-9)
    found = log_likelihood(model, x, samples=20_000)
    assert ((found.values - exact).abs() < 5 * found.sampling_errors).all()
    assert found.sampling_errors.max() < 0.05
    assert found.values.exp().sum().item() == pytest.approx(1, abs=0.02)
    assert exact.std() > 0.1  # or there would be little to tell apart


def test_generated_pictures_have_the_probabilities_of_the_integral():
    model = rough(conv_hierarchy((1, 2, 2), (1,), latents=1, channels=1, width=4))
    x = torch.tensor(list(product([0.0, 1.0], repeat=4)))
    with torch.no_grad():
        drawn = model.generate(40_000, generator=generator()).sample(generator=generator(1))
    share = (drawn.unsqueeze(1) == x).all(-1).double().mean(0)
    p = log_likelihood(model, x, samples=5000).values.double().exp()
    assert ((share - p).abs() < 5 * (p / len(drawn)).sqrt() + 0.03 * p).all()


def test_training_starts_with_each_q_equal_to_its_prior():
    model, x = small(), bits(5)
    for q, p, _ in walked(model, x)[0]:
        assert torch.equal(q.mean, p.mean.expand_as(q.mean))
        assert torch.equal(q.std, torch.ones_like(q.std))
    assert (terms(model, x, generator()).rate == 0).all()


def test_spreads_are_held_however_far_the_network_goes():
    model, x = small(), bits(5)
    with torch.no_grad():
        for layer in model.layers:
            layer.prior.network[-1].bias.fill_(-1e6)
            layer.posterior.heads.network[-1].bias.fill_(1e6)
    for q, p, _ in walked(model, x)[0][1:]:
        assert p.log_std.unique().tolist() == [-5]
        assert q.log_std.unique().tolist() == [0]  # -5, and a factor that is 5 at most
        assert p.mean.unique().tolist() == [-1e6]


def test_channels_double_with_each_halving_up_to_four_times():
    model = conv_hierarchy((1, 16, 16), (1, 1, 1, 1), latents=1, channels=1, width=2)
    assert [layer.posterior.above.in_channels for layer in model.layers] == [8, 8, 4, 2]


def test_black_is_not_silence():
    _, *seen = small().bottom_up(torch.zeros(1, 64))
    assert all(one.abs().mean() > 0.1 for one in seen)


def test_every_weight_learns_once_none_is_zero():
    model = rough(small())
    elbo(model, bits(5), generator()).sum().backward()
    for name, weight in model.named_parameters():
        assert weight.grad.abs().sum() > 0, name


def test_samples_have_an_axis_of_their_own_and_meet_their_own_image():
    model, x = rough(small()).double(), bits(5).double()
    found, likelihood = walked(model, x, samples=3)
    assert [z.shape[:-1] for _, _, z in found] == [(3, 5)] * 4
    assert likelihood.logits.shape == (3, 5, 64)
    # The same latents, given one sample and one image at a time.
    for sample, image in product(range(3), range(5)):
        drawn = iter(found)
        one = model.top_down(
            model.bottom_up(x[image : image + 1]),
            lambda q, p, drawn=drawn, s=sample, i=image: next(drawn)[2][s, i : i + 1],
        )
        torch.testing.assert_close(one.logits[0], likelihood.logits[sample, image])
    given = [q for q, _, _ in found]
    drawn, qs = iter(found), []
    model.top_down(
        model.bottom_up(x[2]), lambda q, p: qs.append(q) or next(drawn)[2][1, 2]
    )  # an image alone, with no axis in front
    torch.testing.assert_close(qs[0].mean, given[0].mean[2])
    for one, other in zip(qs[1:], given[1:], strict=True):
        torch.testing.assert_close(one.mean, other.mean[1, 2])
        torch.testing.assert_close(one.log_std, other.log_std[1, 2])


def test_each_prior_follows_the_latents_above_and_each_q_the_image():
    model, x = rough(small()), bits(5)
    found, _ = walked(model, x)
    for _, p, _ in found[1:]:
        assert (p.mean.std(0) > 1e-3).any()
    drawn = iter(found)
    other = []
    model.top_down(model.bottom_up(1 - x), lambda q, p: other.append((q, p)) or next(drawn)[2])
    for (q, p, _), (its_q, its_p) in zip(found, other, strict=True):
        torch.testing.assert_close(p.mean, its_p.mean)  # given those above, x says no more
        assert (q.mean - its_q.mean).abs().max() > 1e-3


def test_any_decoder_reads_the_features():
    def levels(network):
        class Halves(torch.nn.Module):
            def forward(self, h):
                return network(h).chunk(2, -1)

        return DiscretizedLogisticDecoder(Halves(), levels=4)

    model = small(planes=2, decoder=levels)
    p = model.generate(3, generator=generator())
    assert isinstance(p, DiscretizedLogistic)
    assert p.location.shape == (3, 64)
    assert elbo(model, bits(3), generator()).shape == (3,)


def test_pixels_are_where_an_image_has_them():
    """Each of the four numbers of a place is a pixel of its square, plane by plane."""
    last = Pixels(2, planes=3)
    with torch.no_grad():
        last.convolution.weight.zero_()
        last.convolution.bias.copy_(torch.arange(12.0))
        given = last(torch.zeros(2, 2, 5)).view(3, 4, 10)
    for plane in range(3):
        square = 4 * plane + torch.tensor([[0.0, 1.0], [2.0, 3.0]])
        assert torch.equal(given[plane], square.repeat(2, 5))


def test_halving_and_doubling_are_those_of_pytorch_but_for_no_pictures():
    h = torch.randn(3, 2, 8, 6, 4, generator=generator())
    assert torch.equal(_halved(h), torch.nn.functional.pixel_unshuffle(h, 2))
    assert torch.equal(_doubled(h), torch.nn.functional.pixel_shuffle(h, 2))
    assert _halved(h[:, :0]).shape == (3, 0, 32, 3, 2)
    assert _doubled(h[:0]).shape == (0, 2, 2, 12, 8)


def test_latents_and_features_are_rows_and_pictures_in_one_order():
    """A latent moves the pixels at its place, and none that the convolutions do not reach."""
    model = conv_hierarchy((1, 16, 16), (1,), latents=1, channels=1, width=4)
    rough(model)
    found, likelihood = walked(model, bits(1, 256))
    z = found[1][2].clone().requires_grad_(True)
    drawn = iter([found[0][2], z])
    logits = model.top_down(None, lambda q, p: next(drawn)).logits
    torch.testing.assert_close(logits, likelihood.logits)
    (slope,) = torch.autograd.grad(logits.view(16, 16)[4, 8], z)
    reached = slope.view(8, 8).nonzero()
    assert len(reached) == 25  # 3 x 3 once in a block, once in the last step
    assert reached.float().mean(0).tolist() == [2, 4]


def test_the_same_seed_gives_the_same_weights():
    weights = small().state_dict()
    torch.manual_seed(5)
    again, other = small().state_dict(), small(seed=1).state_dict()
    assert all(torch.equal(weights[name], again[name]) for name in weights)
    random = [name for name, value in weights.items() if value.any()]
    assert len(random) > 20
    assert not any(torch.equal(weights[name], other[name]) for name in random)


def test_it_is_made_on_the_cpu_whatever_the_default_device():
    with torch.device("meta"):
        other = small()
    pairs = zip(other.parameters(), small().parameters(), strict=True)
    assert all(torch.equal(one, same) for one, same in pairs)


def test_depth_does_not_make_features_grow():
    """With all weights as they start, the spread of the logits is about the same."""
    spread = []
    for layers in ((1, 1), (6, 6)):
        model = conv_hierarchy((1, 8, 8), layers, latents=3, channels=4, width=16)
        with torch.no_grad():
            spread.append(model.generate(200, generator=generator()).logits.std().item())
    assert 0.5 < spread[0] / spread[1] < 2
    assert 0.3 < spread[0] < 3


def test_densities_have_32_bits_where_the_network_has_16():
    model, x = rough(small()), bits(5)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        found, likelihood = walked(model, x)
        cost = terms(model, x, generator())
    for q, p, z in found:
        assert {t.dtype for t in (q.mean, q.log_std, p.mean, p.log_std, z)} == {torch.float32}
    assert likelihood.logits.dtype == cost.rate.dtype == torch.float32
    exact = terms(model, x, generator())
    torch.testing.assert_close(cost.distortion, exact.distortion, rtol=0.05, atol=0.5)


def test_channels_last_changes_rounding_alone():
    model, x = rough(small()), bits(5)
    before = terms(model, x, generator())
    after = terms(model.to(memory_format=torch.channels_last), x, generator())
    torch.testing.assert_close(before.rate, after.rate, rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(before.distortion, after.distortion, rtol=1e-4, atol=1e-4)


def test_few_latents_are_decoded_at_a_time_where_features_are_wide():
    counts = []

    def counted(network):
        class Counting(torch.nn.Module):
            def forward(self, h):
                counts.append(math.prod(h.shape[:-3]))
                return Bernoulli(network(h))

        return Counting()

    model = conv_hierarchy(width=64, layers=(1, 1), decoder=counted)
    assert model.per_pixel == 17
    log_likelihood(model, torch.zeros(50, 784), samples=8)
    assert counts == [300, 100]  # 2^22 numbers of 50 x 784 x 17 each: six samples, then two


def test_any_prior_stands_on_top():
    model = small()
    model.prior = torch.nn.Module()
    model.prior.forward = lambda: DiagonalGaussian(torch.full((3,), 2.0), torch.zeros(3))
    cost = terms(model, bits(4), generator())
    torch.testing.assert_close(cost.rates[0], torch.full((4,), 3 * 0.5 * 4.0))
    z = walked(model, bits(4))[0][0][1].sample(1000, generator=generator())
    assert (z.mean(0) - 2).abs().max() < 0.2


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"shape": (1, 28)}, r"shape: expected \(channels, height, width\) .* got \(1, 28\)"),
        ({"shape": (1, 30, 28)}, r"shape: .* sides that 4 divides, for layers of 2 sizes"),
        ({"shape": (1, 28, 30)}, r"shape: .* sides that 4 divides"),
        ({"shape": "1x28x28"}, r"shape: expected a sequence of whole numbers"),
        ({"shape": (0, 28, 28)}, r"shape: expected at least 1, got 0"),
        ({"layers": (4, 0)}, r"layers: expected at least 1, got 0"),
        ({"layers": ()}, r"layers: expected a sequence"),
        ({"layers": 2}, r"layers: expected a sequence"),
        ({"layers": (1, 1, 1)}, r"shape: .* sides that 8 divides"),
        ({"latents": 0}, r"latents: expected at least 1, got 0"),
        ({"channels": 0}, r"channels: expected at least 1, got 0"),
        ({"width": 1}, r"width: expected at least 2, got 1"),
        ({"width": 5}, r"width: expected an even number, got 5"),
        ({"blocks": 0}, r"blocks: expected at least 1, got 0"),
        ({"planes": 0}, r"planes: expected at least 1, got 0"),
    ],
)
def test_sizes_that_cannot_be_are_refused(given, message):
    with pytest.raises(ValueError, match=message):
        conv_hierarchy(**given)


@pytest.mark.parametrize("shape", [(2, 8, 8), (2, 63), ()])
def test_rows_of_another_length_are_refused(shape):
    with pytest.raises(ValueError, match=r"x: expected rows of 64 numbers, got shape .*x.flatten"):
        small().bottom_up(torch.zeros(shape))


def test_bytes_are_refused():
    with pytest.raises(ValueError, match=r"x: expected torch.float32, .*got torch.uint8.*binari"):
        small().bottom_up(torch.zeros(2, 64, dtype=torch.uint8))
