import math

import pytest
import torch
from torch.distributions import Bernoulli as TorchBernoulli
from torch.distributions import Categorical as TorchCategorical
from torch.distributions import Independent, MixtureSameFamily, Normal, kl_divergence

from vae_lib.distributions import (
    Bernoulli,
    Categorical,
    DiagonalGaussian,
    DiscretizedLogistic,
    Mixture,
)


def draw(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


@pytest.fixture
def q():
    return DiagonalGaussian(draw(4, 3), 0.7 * draw(4, 3, seed=1))


@pytest.fixture
def p():
    return DiagonalGaussian(draw(4, 3, seed=2), 0.7 * draw(4, 3, seed=3))


def as_torch(gaussian):
    return Independent(Normal(gaussian.mean, gaussian.std), 1)


# -- the diagonal Gaussian


def test_log_prob_equals_that_of_torch_distributions(q):
    z = draw(7, 4, 3, seed=4)
    assert q.log_prob(z).shape == (7, 4)
    torch.testing.assert_close(q.log_prob(z), as_torch(q).log_prob(z))


def test_the_density_integrates_to_one():
    gaussian = DiagonalGaussian(torch.tensor([0.3]), torch.tensor([-0.4]))
    z = torch.linspace(-8, 8, 4001).unsqueeze(-1)
    integral = torch.trapezoid(gaussian.log_prob(z).exp(), z.squeeze(-1))
    torch.testing.assert_close(integral, torch.tensor(1.0))


def test_kl_equals_that_of_torch_distributions(q, p):
    assert q.kl(p).shape == (4,)
    torch.testing.assert_close(q.kl(p), kl_divergence(as_torch(q), as_torch(p)))


def test_kl_to_the_standard_normal_equals_that_of_torch_distributions(q):
    standard = DiagonalGaussian(torch.zeros(3).double(), torch.zeros(3).double())
    torch.testing.assert_close(q.kl(standard), kl_divergence(as_torch(q), as_torch(standard)))


def test_kl_equals_its_monte_carlo_estimate(q, p):
    z = q.rsample(200_000, generator=torch.Generator().manual_seed(5))
    difference = q.log_prob(z) - p.log_prob(z)
    error = difference.std(0) / math.sqrt(len(z))
    assert ((difference.mean(0) - q.kl(p)).abs() < 5 * error).all()


def test_kl_is_zero_at_equality_and_positive_elsewhere(q):
    torch.testing.assert_close(q.kl(q), torch.zeros(4).double())
    for log_std in torch.linspace(-4, 2, 61).double():
        if abs(log_std) > 1e-6:
            narrow = DiagonalGaussian(torch.zeros(1).double(), log_std.view(1))
            assert narrow.kl(DiagonalGaussian(torch.zeros(1), torch.zeros(1))) > 0


def test_draws_have_the_mean_and_the_spread_they_should(q):
    n = 100_000
    z = q.rsample(n, generator=torch.Generator().manual_seed(6))
    assert z.shape == (n, 4, 3)
    assert ((z.mean(0) - q.mean).abs() < 5 * q.std / math.sqrt(n)).all()
    assert ((z.std(0) / q.std - 1).abs() < 5 / math.sqrt(2 * n)).all()


def test_every_example_and_every_latent_has_its_own_noise():
    n = 20_000
    same = DiagonalGaussian(torch.zeros(n, 2), torch.zeros(n, 2))
    z = same.rsample(generator=torch.Generator().manual_seed(7))
    assert z.shape == (n, 2)
    assert z.unique().numel() > 1.9 * n
    correlations = [(z[1:, 0] * z[:-1, 0]).mean(), (z[:, 0] * z[:, 1]).mean()]
    assert all(abs(c) < 5 / math.sqrt(n) for c in correlations)


def test_draws_depend_on_the_generator_alone(q):
    first = q.rsample(generator=torch.Generator().manual_seed(8))
    torch.manual_seed(1)
    assert torch.equal(first, q.rsample(generator=torch.Generator().manual_seed(8)))
    assert not torch.equal(first, q.rsample(generator=torch.Generator().manual_seed(9)))


def test_gradients_flow_through_a_draw():
    mean = torch.zeros(3, requires_grad=True)
    log_std = torch.full((3,), -0.5, requires_grad=True)
    z = DiagonalGaussian(mean, log_std).rsample(generator=torch.Generator().manual_seed(0))
    z.sum().backward()
    torch.testing.assert_close(mean.grad, torch.ones(3))
    torch.testing.assert_close(log_std.grad, z.detach() - mean.detach())


def test_a_sample_is_a_draw_without_a_gradient():
    mean = torch.zeros(3, requires_grad=True)
    gaussian = DiagonalGaussian(mean, torch.full((3,), -0.5))
    for samples in (None, 4):
        z = gaussian.sample(samples, generator=torch.Generator().manual_seed(0))
        assert not z.requires_grad
        assert torch.equal(
            z, gaussian.rsample(samples, generator=torch.Generator().manual_seed(0)).detach()
        )


def test_no_gradient_flows_through_a_detached_gaussian():
    parameters = torch.randn(2, 3, requires_grad=True)
    gaussian = DiagonalGaussian(*parameters)
    still = gaussian.detach()
    assert not still.log_prob(torch.zeros(3)).requires_grad
    assert torch.equal(still.mean, gaussian.mean)
    assert torch.equal(still.log_std, gaussian.log_std)


def test_a_wrong_shape_is_refused():
    with pytest.raises(ValueError, match=r"log_std: expected .*\(4, 3\), got \(3,\)"):
        DiagonalGaussian(torch.zeros(4, 3), torch.zeros(3))


# -- the Bernoulli


def test_bernoulli_log_prob_equals_that_of_torch_distributions():
    logits = 3 * draw(5, 4, 6)
    x = (draw(4, 6, seed=1) > 0).double()
    expected = Independent(TorchBernoulli(logits=logits), 1).log_prob(x.expand(5, 4, 6))
    assert Bernoulli(logits).log_prob(x).shape == (5, 4)
    torch.testing.assert_close(Bernoulli(logits).log_prob(x), expected)


def test_the_probabilities_of_all_images_add_up_to_one():
    logits = draw(6)
    images = torch.cartesian_prod(*[torch.tensor([0.0, 1.0])] * 6).double()
    total = Bernoulli(logits).log_prob(images).exp().sum()
    torch.testing.assert_close(total, torch.tensor(1.0).double())


@pytest.mark.parametrize("logit", [-200.0, -30.0, 30.0, 200.0])
def test_a_sure_pixel_keeps_its_exact_cost_and_its_slope(logit):
    logits = torch.tensor([logit], requires_grad=True)
    wrong = torch.tensor([1.0 if logit < 0 else 0.0])
    cost = -Bernoulli(logits).log_prob(wrong)
    cost.backward()
    torch.testing.assert_close(cost.item(), abs(logit))
    torch.testing.assert_close(logits.grad.abs(), torch.ones(1))


def test_bernoulli_samples_have_the_mean_they_should():
    logits = torch.linspace(-3, 3, 7).expand(50_000, 7)
    coins = Bernoulli(logits)
    x = coins.sample(generator=torch.Generator().manual_seed(0))
    assert set(x.unique().tolist()) == {0.0, 1.0}
    p = torch.sigmoid(logits[0])
    torch.testing.assert_close(coins.mean[0], p)
    assert ((x.mean(0) - p).abs() < 5 * (p * (1 - p) / 50_000).sqrt()).all()


@pytest.mark.parametrize(
    ("x", "message"),
    [
        (
            torch.tensor([0.0, 0.5, 1.0]),
            r"expected zeros and ones, got values from 0 to 1.*binarize",
        ),
        (torch.tensor([0.0, 255.0, 0.0]), r"expected zeros and ones, got values from 0 to 255"),
        (torch.tensor([0.0, float("nan"), 0.0]), r"expected zeros and ones"),
        (torch.zeros(4), r"expected 3 pixels a row, got shape \(4,\)"),
    ],
)
def test_what_no_coin_shows_is_refused(x, message):
    with pytest.raises(ValueError, match=message):
        Bernoulli(torch.zeros(3)).log_prob(x)


def test_zeros_and_ones_may_be_bytes():
    x = torch.tensor([0, 1, 1], dtype=torch.uint8)
    torch.testing.assert_close(
        Bernoulli(draw(3)).log_prob(x), Bernoulli(draw(3)).log_prob(x.double())
    )


# -- grey levels: what the two families share

LEVELS = 5


def categorical(seed=0):
    return Categorical(2 * draw(3, 2, LEVELS, seed=seed))


def logistic(seed=0):
    return DiscretizedLogistic(
        0.5 + 0.5 * draw(3, 2, seed=seed), draw(3, 2, seed=seed + 1) - 1.5, LEVELS
    )


grey_families = pytest.mark.parametrize("family", [categorical, logistic])


def every_image():
    """All 25 images of two pixels with five levels."""
    grey = torch.linspace(0, 1, LEVELS, dtype=torch.float64)
    return torch.cartesian_prod(grey, grey)


@grey_families
def test_the_probabilities_of_all_grey_images_add_up_to_one(family):
    log_p = family().log_prob(every_image().unsqueeze(1))
    assert log_p.shape == (LEVELS**2, 3)
    assert (log_p < 0).all()
    torch.testing.assert_close(log_p.exp().sum(0), torch.ones(3).double())


@grey_families
def test_the_mean_is_the_sum_of_grey_times_probability(family):
    images = every_image().unsqueeze(1)
    weights = family().log_prob(images).exp()
    torch.testing.assert_close(family().mean, (weights.unsqueeze(-1) * images).sum(0))


@grey_families
def test_grey_samples_come_as_often_as_their_probability_says(family):
    n = 20_000
    one = family()
    if isinstance(one, Categorical):
        many = Categorical(one.logits[0].expand(n, -1, -1))
    else:
        many = DiscretizedLogistic(
            one.location[0].expand(n, -1), one.log_scale[0].expand(n, -1), LEVELS
        )
    x = many.sample(generator=torch.Generator().manual_seed(0))
    assert x.shape == (n, 2)
    assert x.dtype == torch.float64
    for image in every_image():
        p = one.log_prob(image)[0].exp()
        share = (x == image).all(-1).double().mean()
        assert abs(share - p) < 5 * (p * (1 - p) / n).sqrt() + 1e-12
    again = many.sample(generator=torch.Generator().manual_seed(0))
    assert torch.equal(x, again)


@grey_families
def test_a_grey_log_prob_takes_draws_of_its_parameters_before_the_batch(family):
    x = every_image()[[1, 7, 23]]
    log_p = family().log_prob(x)
    assert log_p.shape == (3,)
    for row in range(3):
        torch.testing.assert_close(log_p[row], family().log_prob(x[row])[row])


@grey_families
@pytest.mark.parametrize(
    ("x", "message"),
    [
        (
            torch.tensor([0.0, 0.3]),
            r"multiples of 1/4 from 0 to 1, got others, from 0 to 0.3.*quan",
        ),
        (torch.tensor([0.0, 1.25]), r"multiples of 1/4"),
        (torch.tensor([-0.25, 1.0]), r"multiples of 1/4"),
        (torch.tensor([0.0, float("nan")]), r"multiples of 1/4"),
        (torch.zeros(3), r"expected 2 pixels a row, got shape \(3,\).*flatten"),
    ],
)
def test_what_is_no_grey_level_is_refused(family, x, message):
    with pytest.raises(ValueError, match=message):
        family().log_prob(x)


@grey_families
def test_greys_may_be_off_by_rounding(family):
    x = every_image().float().double() + 1e-6
    torch.testing.assert_close(
        family().log_prob(x.unsqueeze(1)),
        family().log_prob(every_image().unsqueeze(1)),
        rtol=1e-3,
        atol=0,
    )


# -- the categorical


def test_categorical_log_prob_equals_that_of_torch_distributions():
    logits = 2 * draw(7, 4, 3, 16)
    level = torch.randint(16, (4, 3), generator=torch.Generator().manual_seed(0))
    expected = Independent(TorchCategorical(logits=logits), 1).log_prob(level.expand(7, 4, 3))
    found = Categorical(logits).log_prob(level / 15)
    assert found.shape == (7, 4)
    torch.testing.assert_close(found, expected)


def test_a_shift_of_all_logits_of_a_pixel_changes_nothing():
    x = every_image()[:3]
    shifted = Categorical(categorical().logits + 50 * draw(3, 2, 1))
    torch.testing.assert_close(shifted.log_prob(x), categorical().log_prob(x))


# -- the discretised logistic


def test_logistic_log_prob_equals_the_difference_of_two_sigmoids():
    grey = torch.arange(256).double() / 255
    location, log_scale = 0.4, -2.0
    every = DiscretizedLogistic(
        torch.full((256, 1), location).double(), torch.full((256, 1), log_scale).double()
    )

    def below(t):
        return torch.sigmoid((t - location) / math.exp(log_scale))

    p = below(grey + 0.5 / 255) - below(grey - 0.5 / 255)
    p[0], p[-1] = below(grey[0] + 0.5 / 255), 1 - below(grey[-1] - 0.5 / 255)
    torch.testing.assert_close(every.log_prob(grey.unsqueeze(-1)), p.log())


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_a_grey_far_from_its_location_keeps_its_exact_cost_and_its_slope(dtype):
    # Bin 128 of 256, two hundred scales above the location: the difference of two sigmoids is
    # zero there in any float. With F the tail exp((t - m) / s) the cost is known.
    scale, location = 1e-3, 128 / 255 - 0.2
    half = 0.5 / 255
    place = torch.tensor([location], dtype=dtype, requires_grad=True)
    log_scale = torch.tensor([math.log(scale)], dtype=dtype)
    log_p = DiscretizedLogistic(place, log_scale).log_prob(torch.tensor([128 / 255], dtype=dtype))
    expected = -(0.2 - half) / scale + math.log(1 - math.exp(-2 * half / scale))
    assert log_p.item() == pytest.approx(expected, rel=1e-4)
    log_p.backward()
    assert place.grad.item() == pytest.approx(1 / scale, rel=1e-4)


def test_the_last_bins_are_open():
    far = DiscretizedLogistic(torch.tensor([9.0, -9.0]), torch.tensor([-3.0, -3.0]), 4)
    assert far.log_prob(torch.tensor([1.0, 0.0])).item() == pytest.approx(0, abs=1e-6)


def test_a_very_narrow_and_a_very_wide_logistic_stay_finite():
    for log_scale in (-20.0, 20.0):
        s = torch.full((3,), log_scale, requires_grad=True)
        log_p = DiscretizedLogistic(torch.full((3,), 0.4), s).log_prob(torch.tensor([0, 0.2, 1]))
        log_p.backward()
        assert torch.isfinite(log_p)
        assert torch.isfinite(s.grad).all()


def test_logistic_parameters_that_cannot_be_are_refused():
    with pytest.raises(ValueError, match=r"log_scale: expected .*\(4, 3\), got \(3,\)"):
        DiscretizedLogistic(torch.zeros(4, 3), torch.zeros(3))
    with pytest.raises(ValueError, match="levels: expected at least 2, got 1"):
        DiscretizedLogistic(torch.zeros(3), torch.zeros(3), levels=1)


def test_two_hundred_and_fifty_six_levels_are_the_default():
    assert DiscretizedLogistic(torch.zeros(1), torch.zeros(1)).levels == 256


# -- the mixture


@pytest.fixture
def mixture():
    return Mixture(draw(4), DiagonalGaussian(draw(4, 3, seed=1), 0.5 * draw(4, 3, seed=2)))


def test_mixture_log_prob_equals_that_of_torch_distributions(mixture):
    z = draw(7, 5, 3, seed=3)
    expected = MixtureSameFamily(
        TorchCategorical(logits=mixture.logits), as_torch(mixture.components)
    ).log_prob(z)
    assert mixture.log_prob(z).shape == (7, 5)
    torch.testing.assert_close(mixture.log_prob(z), expected)


def test_a_mixture_of_one_is_its_component():
    one = DiagonalGaussian(draw(1, 3), draw(1, 3, seed=1))
    z = draw(5, 3, seed=2)
    torch.testing.assert_close(
        Mixture(torch.tensor([3.0]).double(), one).log_prob(z), one.log_prob(z)
    )


def test_mixture_samples_have_the_moments_they_should(mixture):
    n = 100_000
    z = mixture.sample(n, generator=torch.Generator().manual_seed(0))
    assert z.shape == (n, 3)
    weights = torch.softmax(mixture.logits, 0).unsqueeze(-1)
    mean = (weights * mixture.components.mean).sum(0)
    square = (weights * (mixture.components.mean**2 + mixture.components.std**2)).sum(0)
    assert ((z.mean(0) - mean).abs() < 5 * z.std(0) / math.sqrt(n)).all()
    assert (((z**2).mean(0) - square).abs() < 5 * (z**2).std(0) / math.sqrt(n)).all()
    assert torch.equal(z, mixture.sample(n, generator=torch.Generator().manual_seed(0)))


def test_mixture_parameters_that_do_not_belong_together_are_refused():
    two = DiagonalGaussian(torch.zeros(2, 3), torch.zeros(2, 3))
    with pytest.raises(ValueError, match=r"logits: .*got \(3,\) beside \(2, 3\)"):
        Mixture(torch.zeros(3), two)
    with pytest.raises(ValueError, match=r"beside \(3,\)"):
        Mixture(torch.zeros(3), DiagonalGaussian(torch.zeros(3), torch.zeros(3)))


# -- draws: their source, their precision, their device


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_a_coin_falls_by_one_even_draw_of_the_generator(dtype):
    logits = draw(1000).to(dtype)
    x = Bernoulli(logits).sample(generator=torch.Generator().manual_seed(1))
    uniform = torch.rand(1000, generator=torch.Generator().manual_seed(1), dtype=dtype)
    assert x.dtype == dtype
    assert torch.equal(x, (uniform < torch.sigmoid(logits)).to(dtype))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_a_logistic_grey_is_the_quantile_of_one_even_draw(dtype):
    location, log_scale = 0.5 + 0.2 * draw(1000).to(dtype), draw(1000, seed=1).to(dtype) - 2
    x = DiscretizedLogistic(location, log_scale).sample(generator=torch.Generator().manual_seed(1))
    uniform = torch.rand(1000, generator=torch.Generator().manual_seed(1), dtype=dtype)
    assert x.dtype == dtype
    grey = location + log_scale.exp() * (uniform / (1 - uniform)).log()
    inside = (grey > 0) & (grey < 1)
    assert inside.sum() > 500
    assert (grey - x)[inside].abs().max() < 0.5 / 255 + 1e-4
    assert torch.equal(x[~inside], (grey[~inside] > 0.5).to(dtype))


def test_draws_stay_on_the_device_of_their_parameters():
    # A tensor on the device "meta" has a shape and no numbers, and mixes with no other.
    elsewhere = torch.zeros(3, 2, device="meta")
    gaussian = DiagonalGaussian(elsewhere, elsewhere)
    logistic = DiscretizedLogistic(elsewhere, elsewhere)
    for x in (gaussian.rsample(), gaussian.sample(4), Bernoulli(elsewhere).sample()):
        assert x.device.type == "meta"
    assert logistic.sample().device.type == logistic.mean.device.type == "meta"
    assert Categorical(elsewhere).mean.device.type == "meta"


def test_two_levels_are_enough():
    x = torch.tensor([0.0, 1.0])
    wide = DiscretizedLogistic(torch.full((2,), 0.5), torch.zeros(2), levels=2)
    torch.testing.assert_close(wide.log_prob(x), torch.tensor(2 * math.log(0.5)))
