import copy
import math
from types import SimpleNamespace

import pytest
import torch

from tests.memory import Largest
from tests.oracles import off_centre, probabilistic_pca
from vae_lib.data import seeded
from vae_lib.distributions import DiagonalGaussian
from vae_lib.evaluation import (
    Estimate,
    LogLikelihood,
    active_units,
    held_out_elbo,
    log_likelihood,
)
from vae_lib.model import VAE, CategoricalDecoder, StandardNormal, dense_vae
from vae_lib.networks import dense
from vae_lib.objectives import elbo, log_weights


@pytest.fixture(scope="module")
def pca():
    return probabilistic_pca()


def test_an_estimate_is_a_mean_and_its_standard_error():
    values = torch.tensor([1.0, 2.0, 3.0, 6.0])
    estimate = Estimate(values)
    assert estimate.mean == 3.0
    assert estimate.standard_error == pytest.approx(math.sqrt((4 + 1 + 0 + 9) / 3 / 4))
    assert str(estimate) == "3.00 ± 1.08"


def test_the_held_out_elbo_is_minus_distortion_minus_rate(pca):
    model, x, _ = pca
    scores = held_out_elbo(model, x)
    assert scores.elbo.values.shape == (50,)
    torch.testing.assert_close(scores.elbo.values, -(scores.distortion.values + scores.rate.values))
    assert (scores.rate.values >= 0).all()


def test_the_held_out_elbo_is_unbiased(pca):
    model, x, exact = pca
    wrong, gap = off_centre(model, by=0.5)
    many = x.repeat(400, 1)
    difference = Estimate(exact.repeat(400) - held_out_elbo(wrong, many).elbo.values)
    assert abs(difference.mean - gap) < 5 * difference.standard_error


def test_log_likelihood_is_exact_where_the_posterior_is(pca):
    model, x, exact = pca
    for samples in (1, 7):
        values = log_likelihood(model, x, samples=samples).values
        torch.testing.assert_close(values, exact, rtol=0, atol=1e-11)


def test_log_likelihood_rises_to_the_truth_with_the_number_of_samples(pca):
    model, x, exact = pca
    wrong, gap = off_centre(model, by=0.8)
    shortfalls = [
        Estimate(exact - log_likelihood(wrong, x, samples=k).values).mean
        for k in (1, 10, 100, 5000)
    ]
    assert shortfalls[0] == pytest.approx(gap, abs=0.6)
    assert shortfalls[0] > 2 * shortfalls[1] > 4 * shortfalls[2]
    assert abs(shortfalls[3]) < 0.01


def test_log_likelihood_survives_weights_far_below_what_a_float_can_hold():
    model = dense_vae(seed=0)  # untrained: about -543 nats an image, exp of which is zero
    x = (torch.rand(4, 784, generator=torch.Generator().manual_seed(0)) < 0.5).float()
    values = log_likelihood(model, x, samples=10).values
    assert torch.isfinite(values).all()
    assert (values < -500).all()


@pytest.mark.parametrize(
    "score", [held_out_elbo, lambda *a, **k: log_likelihood(*a, samples=3, **k)]
)
def test_scores_depend_on_their_seed_and_change_nothing(pca, score):
    model = dense_vae(pixels=6, hidden=4, latents=2).double()
    x = (pca[1] > 0).double()
    model.train()
    before = [w.clone() for w in model.parameters()]

    def values(seed):
        result = score(model, x, seed=seed)
        return getattr(result, "elbo", result).values

    torch.manual_seed(3)
    first = values(0)
    torch.manual_seed(4)
    assert torch.equal(first, values(0))
    assert not torch.equal(first, values(1))
    assert not first.requires_grad
    assert model.training
    assert all(torch.equal(a, b) for a, b in zip(before, model.parameters(), strict=True))
    model.eval()
    assert torch.equal(first, values(0))


@pytest.mark.parametrize(
    ("images", "message"),
    [
        (torch.zeros(3, 28, 28), r"torch.float32 \(3, 28, 28\).*flatten"),
        (torch.zeros(3, 784, dtype=torch.uint8), r"torch.uint8 \(3, 784\).*Binarise"),
        (torch.zeros(1, 784), r"n at least 2"),
    ],
)
def test_what_cannot_be_scored_is_refused(images, message):
    with pytest.raises(ValueError, match=message):
        held_out_elbo(dense_vae(hidden=2), images)
    with pytest.raises(ValueError, match=message):
        log_likelihood(dense_vae(hidden=2), images, samples=2)
    with pytest.raises(ValueError, match=message):
        active_units(dense_vae(hidden=2), images)


def test_no_samples_are_refused(pca):
    with pytest.raises(ValueError, match="samples: expected at least 1, got 0"):
        log_likelihood(*pca[:2], samples=0)


def test_two_images_are_enough(pca):
    assert log_likelihood(pca[0], pca[1][:2], samples=1).values.shape == (2,)


# -- how far the samples can be trusted


@pytest.mark.parametrize("samples", [1, 7, 100, 101, 250])
def test_samples_in_parts_are_the_samples_as_a_whole(pca, samples):
    wrong, _ = off_centre(pca[0], by=0.8)
    x = pca[1][:5]
    found = log_likelihood(wrong, x, samples=samples)
    noise = seeded(0, stream="evaluation")
    parts = [
        log_weights(wrong, x, min(100, samples - start), noise) for start in range(0, samples, 100)
    ]
    weights = torch.cat(parts).exp()
    assert len(weights) == samples
    torch.testing.assert_close(found.values, weights.mean(0).log())
    torch.testing.assert_close(found.effective_samples, weights.sum(0) ** 2 / (weights**2).sum(0))
    assert found.samples == samples


def test_batches_come_back_in_order(pca):
    model, x, exact = pca
    for batch_size in (1, 7, 50, 1000):
        values = log_likelihood(model, x, samples=3, batch_size=batch_size).values
        torch.testing.assert_close(values, exact, rtol=0, atol=1e-11)
        rates = held_out_elbo(model, x, batch_size=batch_size).rate.values
        torch.testing.assert_close(rates, model.encoder(x).kl(model.prior()))


def test_equal_weights_are_all_effective(pca):
    model, x, _ = pca
    found = log_likelihood(model, x, samples=150)
    torch.testing.assert_close(found.effective_samples, torch.full((50,), 150.0).double())
    assert (found.sampling_errors < 1e-5).all()


def test_the_sampling_error_is_the_spread_between_repetitions(pca):
    wrong, _ = off_centre(pca[0], by=0.5)
    x = pca[1][:4]
    found = [log_likelihood(wrong, x, samples=100, seed=seed) for seed in range(400)]
    spread = torch.stack([f.values for f in found]).std(0)
    stated = torch.stack([f.sampling_errors for f in found]).square().mean(0).sqrt()
    torch.testing.assert_close(stated, spread, rtol=0.2, atol=0)


def test_the_sampling_error_follows_its_equation():
    found = LogLikelihood(torch.zeros(3), torch.tensor([1.0, 10.0, 100.000001]), samples=100)
    expected = torch.tensor([math.sqrt(1 - 0.01), math.sqrt(0.1 - 0.01), 0.0])
    torch.testing.assert_close(found.sampling_errors, expected, rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("samples", [10, 250, 257])
def test_the_step_compares_with_ten_estimates_from_a_tenth_each(pca, samples):
    wrong, _ = off_centre(pca[0], by=0.5)
    x = pca[1][:60]
    found = log_likelihood(wrong, x, samples=samples)
    noise = seeded(0, stream="evaluation")
    tenth = samples // 10
    for images, values in zip(x.split(50), found.step.values.split(50), strict=True):
        counts = [100] * (samples // 100) + [samples % 100] * (samples % 100 > 0)
        w = torch.cat([log_weights(wrong, images, n, noise) for n in counts]).exp()
        tenths = [w[i * tenth : (i + 1) * tenth].mean(0).log() for i in range(10)]
        torch.testing.assert_close(values, w.mean(0).log() - sum(tenths) / 10)


def test_the_step_is_the_rise_of_the_bound_from_a_tenth_of_the_samples(pca):
    wrong, _ = off_centre(pca[0], by=0.5)
    x = pca[1][:1].expand(2000, -1)
    found = log_likelihood(wrong, x, samples=20)
    assert (found.step.values >= 0).all()
    fewer = log_likelihood(wrong, x, samples=2, seed=1)
    rise = Estimate(found.values - fewer.values)
    assert rise.mean > 5 * rise.standard_error
    assert found.step.mean == pytest.approx(rise.mean, abs=4 * rise.standard_error)


def test_the_step_of_few_samples_is_refused(pca):
    found = log_likelihood(pca[0], pca[1][:2], samples=9)
    with pytest.raises(ValueError, match=r"step: expected .* at least 10 samples, got 9"):
        _ = found.step


# -- active units


def constant_latents(variances):
    """A model whose posterior means have the given variances over the images 0, 1, ... 9."""

    class Encoder(torch.nn.Module):
        def forward(self, x):
            centred = (x - 4.5) / x.new_tensor(range(10)).std()
            return DiagonalGaussian(3 + centred * variances.sqrt(), torch.zeros(len(x), 4))

    return VAE(Encoder(), StandardNormal(4), None)


def test_a_unit_is_active_if_its_mean_varies_between_images():
    model = constant_latents(torch.tensor([0.0, 0.0099, 0.0101, 1.0]))
    images = torch.arange(10.0).unsqueeze(1)
    for batch_size in (3, 1000):
        found = active_units(model, images, batch_size=batch_size)
        assert found.tolist() == [False, False, True, True]
    assert active_units(model, images, threshold=0.5).tolist() == [False, False, False, True]


def test_untrained_and_unused_latents_are_told_apart():
    model = dense_vae(pixels=12, hidden=6, latents=3)
    with torch.no_grad():
        model.encoder.network.first.weight[1] = 0
    x = (torch.rand(100, 12, generator=torch.Generator().manual_seed(0)) < 0.5).float()
    assert active_units(model, x).tolist() == [True, False, True]


# -- defaults that recorded scores depend on


def test_scores_are_of_seed_zero_and_of_the_stated_batches_unless_told_otherwise():
    model = dense_vae(pixels=6, hidden=4, latents=2)
    x = (torch.rand(1100, 6, generator=torch.Generator().manual_seed(0)) < 0.5).float()
    default = held_out_elbo(model, x).elbo.values
    assert torch.equal(default, held_out_elbo(model, x, seed=0, batch_size=1000).elbo.values)
    default = log_likelihood(model, x[:60], samples=2).values
    stated = log_likelihood(model, x[:60], samples=2, seed=0, batch_size=50).values
    assert torch.equal(default, stated)


def test_the_held_out_elbo_draws_from_the_stream_of_evaluation(pca):
    wrong, _ = off_centre(pca[0], by=0.5)
    noise = seeded(0, stream="evaluation")
    torch.testing.assert_close(held_out_elbo(wrong, pca[1]).elbo.values, elbo(wrong, pca[1], noise))


@pytest.mark.parametrize(
    "score", [held_out_elbo, lambda *a, **k: log_likelihood(*a, samples=3, **k)]
)
def test_noise_is_drawn_where_the_images_are(pca, score, monkeypatch):
    asked = []

    def spy(*arguments, device="nowhere", **more):
        asked.append(device)
        return seeded(*arguments, **more)

    monkeypatch.setattr("vae_lib.evaluation.seeded", spy)
    score(*pca[:2])
    assert asked == [pca[1].device]


# -- evaluation mode

SCORES = {
    "held_out_elbo": lambda *a: held_out_elbo(*a).elbo.values,
    "log_likelihood": lambda *a: log_likelihood(*a, samples=3).values,
    "active_units": active_units,
}
every_score = pytest.mark.parametrize("score", SCORES.values(), ids=SCORES)


@pytest.fixture
def moody():
    """A model that batch normalisation and dropout change from call to call, and images."""
    model = dense_vae(pixels=12, hidden=20, latents=5)
    model.encoder.network.trunk.append(torch.nn.BatchNorm1d(20))
    model.encoder.network.trunk.append(torch.nn.Dropout(0.5))
    model.decoder.network.insert(0, torch.nn.Dropout(0.5))
    model.decoder.network[0].eval()
    return model, (torch.rand(50, 12, generator=torch.Generator().manual_seed(0)) < 0.5).float()


@every_score
def test_a_score_changes_nothing_and_nothing_changes_it(moody, score):
    model, x = moody
    modes = [module.training for module in model.modules()]
    state = copy.deepcopy(model.state_dict())
    first = score(model, x)
    torch.manual_seed(1)
    assert torch.equal(first, score(model, x))
    assert [module.training for module in model.modules()] == modes
    assert all(torch.equal(state[name], value) for name, value in model.state_dict().items())
    model.eval()
    assert torch.equal(first, score(model, x))


@every_score
def test_a_score_that_fails_leaves_the_mode_alone(moody, score):
    model, x = moody
    modes = [module.training for module in model.modules()]
    with pytest.raises(ValueError, match="expected rows of 12 numbers"):
        score(model, x[:, 1:])
    assert [module.training for module in model.modules()] == modes


def test_a_stand_in_for_a_model_may_be_scored():
    q = SimpleNamespace(rsample=lambda count, generator: count, log_prob=lambda z: 0.0)
    fake = SimpleNamespace(
        encoder=lambda x: q,
        prior=lambda: q,
        decoder=lambda count: SimpleNamespace(log_prob=lambda x: torch.full((count, len(x)), -2.0)),
    )
    found = log_likelihood(fake, torch.zeros(2, 784), samples=250)
    torch.testing.assert_close(found.values, torch.full((2,), -2.0))


# -- numbers that are none


@every_score
def test_weights_that_diverged_are_no_score(pca, score):
    model = dense_vae(pixels=6, hidden=4, latents=2)
    with torch.no_grad():
        model.encoder.network.first.bias[0] = math.nan
    with pytest.raises(ValueError, match=r"expected finite.*got NaN or infinity for 50 of 50 im"):
        score(model, (pca[1] > 0).float())


def test_the_images_without_a_finite_score_are_counted():
    model = dense_vae(pixels=6, hidden=4, latents=2)
    heads = model.encoder.network
    with torch.no_grad():  # an infinite mean for images with ink in the first pixel
        heads.trunk[0][0].weight.zero_()
        heads.trunk[0][0].weight[:2, 0] = 10
        heads.first.weight[0, :2] = 3e38
    x = torch.zeros(10, 6)
    x[[4, 7], 0] = 1
    for score in SCORES.values():
        with pytest.raises(ValueError, match="NaN or infinity for 2 of 10 images"):
            score(model, x)
    with pytest.raises(ValueError, match="first for image 4"):
        held_out_elbo(model, x)


@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
def test_an_estimate_needs_finite_values(bad):
    with pytest.raises(ValueError, match=r"^values: .* infinity for 2 of 4 images, first.* 1\."):
        Estimate(torch.tensor([1.0, bad, 2.0, bad]))


@pytest.mark.parametrize("shape", [(), (0,), (3, 4)])
def test_an_estimate_needs_one_value_per_image(shape):
    with pytest.raises(ValueError, match=r"^values: expected one number for each.*shape \("):
        Estimate(torch.zeros(shape))


def test_estimates_are_equal_to_themselves_alone():
    values = torch.zeros(3)
    one, other = LogLikelihood(values, values, 1), LogLikelihood(values, values, 1)
    scores = held_out_elbo(dense_vae(hidden=2), torch.zeros(3, 784))
    for thing, twin in [(one, other), (Estimate(values), Estimate(values)), (scores, scores.elbo)]:
        assert thing == thing
        assert thing != twin
        assert len({thing, twin}) == 2


# -- devices and memory


class Elsewhere(torch.Tensor):
    """Numbers on a device that has no 64 bits, as those of a Mac's GPU."""

    def cpu(self):
        return self.as_subclass(torch.Tensor)

    def double(self):
        raise TypeError("no float64 here")


def test_numbers_come_to_the_cpu_before_they_are_widened():
    estimate = Estimate(torch.tensor([1.0, 2.0, 3.0, 6.0]).as_subclass(Elsewhere))
    assert str(estimate) == "3.00 ± 1.08"
    images = torch.arange(10.0).unsqueeze(1)
    model = constant_latents(torch.tensor([0.0, 0.0099, 0.0101, 1.0]))
    assert active_units(model, images.as_subclass(Elsewhere)).tolist() == [False, False, True, True]


def test_many_images_and_many_levels_are_decoded_in_parts(monkeypatch):
    monkeypatch.setattr("vae_lib.evaluation.PIXELS", 2**14, raising=False)
    model = dense_vae(pixels=100, hidden=4, latents=2)
    grey = CategoricalDecoder(dense(2, 800), levels=8)
    model = VAE(model.encoder, model.prior, grey).double()
    x = torch.randint(8, (50, 100), generator=torch.Generator().manual_seed(0)).double() / 7
    with Largest() as made:
        found = log_likelihood(model, x, samples=30)
    assert made.numbers <= 2**14 * 8  # all draws at once make 1.2 million
    with torch.no_grad():
        log_w = log_weights(model, x, 30, seeded(0, stream="evaluation"))
    torch.testing.assert_close(found.values, torch.logsumexp(log_w, 0) - math.log(30))
    torch.testing.assert_close(found.effective_samples, 1 / torch.softmax(log_w, 0).square().sum(0))
