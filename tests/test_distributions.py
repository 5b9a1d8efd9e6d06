import math

import pytest
import torch
from torch.distributions import Bernoulli as TorchBernoulli
from torch.distributions import Categorical as TorchCategorical
from torch.distributions import Independent, MixtureSameFamily, Normal, kl_divergence

from tests.memory import Largest
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
        (torch.zeros(4), r"expected rows of 3 numbers, got shape \(4,\)"),
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
        (torch.zeros(3), r"expected rows of 2 numbers, got shape \(3,\).*flatten"),
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


# -- 16 bits


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_sixteen_bits_are_widened_before_anything_is_computed(dtype):
    mean, log_std, other, x = (draw(2000, seed=seed).to(dtype) for seed in range(4))
    grey = (x > 0).to(dtype)
    levels = draw(2000, 4, seed=4).to(dtype)
    weights = torch.zeros(2, dtype=dtype)
    pairs = [mean.view(2, -1), log_std.view(2, -1)]

    def values(to):
        q, p = DiagonalGaussian(to(mean), to(log_std)), DiagonalGaussian(to(other), to(log_std))
        mixture = Mixture(to(weights), DiagonalGaussian(*map(to, pairs)))
        pixels = [Bernoulli(to(mean)), Categorical(to(levels))]
        pixels.append(DiscretizedLogistic(to(mean), to(log_std)))
        yield from (q.log_prob(x), q.kl(p), q.std, mixture.log_prob(x[:1000]))
        yield from (q.sample(generator=torch.Generator().manual_seed(0)),)
        yield mixture.sample(3, generator=torch.Generator().manual_seed(0))
        for family in pixels:
            yield from (family.log_prob(grey), family.mean)
            yield family.sample(generator=torch.Generator().manual_seed(0))

    for narrow, wide in zip(values(lambda t: t), values(torch.Tensor.float), strict=True):
        assert narrow.dtype == torch.float32
        assert torch.equal(narrow, wide)


def test_rare_ink_is_as_rare_in_sixteen_bits():
    # The smallest even draw above zero is 2^-8 in bfloat16, far above this probability.
    n = 2_000_000
    coins = Bernoulli(torch.full((n,), -8.0, dtype=torch.bfloat16))
    p = 1 / (1 + math.exp(8))
    share = coins.sample(generator=torch.Generator().manual_seed(0)).double().mean().item()
    assert abs(share - p) < 5 * math.sqrt(p / n)
    fair = Bernoulli(torch.zeros(784, dtype=torch.bfloat16)).log_prob(torch.zeros(784))
    assert fair.item() == pytest.approx(-784 * math.log(2), rel=1e-6)


# -- nothing to score


def empty(*shape):
    return torch.zeros(0, *shape)


@pytest.mark.parametrize(
    ("distribution", "x"),
    [
        (DiagonalGaussian(empty(3), empty(3)), empty(3)),
        (DiagonalGaussian(torch.zeros(3), torch.zeros(3)), empty(3)),
        (Bernoulli(empty(3)), empty(3)),
        (Categorical(empty(3, 4)), empty(3)),
        (Categorical(torch.zeros(3, 4)), empty(3)),
        (DiscretizedLogistic(empty(3), empty(3)), empty(3)),
        (DiscretizedLogistic(torch.zeros(3), torch.zeros(3)), empty(3)),
        (Mixture(torch.zeros(2), DiagonalGaussian(torch.zeros(2, 3), torch.zeros(2, 3))), empty(3)),
    ],
)
def test_an_empty_batch_has_no_values(distribution, x):
    assert distribution.log_prob(x).shape == (0,)
    if isinstance(distribution, Mixture):
        assert distribution.sample(0).shape == (0, 3)
    else:
        drawn = distribution.sample()
        assert drawn.shape == distribution.mean.shape
        assert drawn.shape[-1] == 3


def test_an_empty_batch_has_no_divergences():
    standard = DiagonalGaussian(torch.zeros(3), torch.zeros(3))
    assert DiagonalGaussian(empty(3), empty(3)).kl(standard).shape == (0,)


def test_no_draws_may_be_asked_for_and_fewer_not():
    gaussian = DiagonalGaussian(torch.zeros(2, 3), torch.zeros(2, 3))
    assert gaussian.sample(0).shape == (0, 2, 3)
    for sample in (gaussian.sample, gaussian.rsample, Mixture(torch.zeros(2), gaussian).sample):
        with pytest.raises(ValueError, match="samples: expected at least 0, got -1"):
            sample(-1)


# -- shapes


@pytest.mark.parametrize(
    "log_prob",
    [
        lambda x: DiagonalGaussian(torch.zeros(3, 1), torch.zeros(3, 1)).log_prob(x),
        lambda x: DiagonalGaussian(x, x).kl(DiagonalGaussian(torch.zeros(1), torch.zeros(1))),
        lambda x: DiagonalGaussian(torch.zeros(1), torch.zeros(1)).kl(DiagonalGaussian(x, x)),
        lambda x: Mixture(
            torch.zeros(2), DiagonalGaussian(torch.zeros(2, 1), torch.zeros(2, 1))
        ).log_prob(x),
        lambda x: Bernoulli(torch.zeros(3, 1)).log_prob(x),
        lambda x: Categorical(torch.zeros(3, 1, 2)).log_prob(x),
        lambda x: DiscretizedLogistic(torch.zeros(3, 1), torch.zeros(3, 1)).log_prob(x),
    ],
)
def test_one_number_a_row_is_not_stretched_over_many(log_prob):
    with pytest.raises(ValueError, match=r"expected rows of \d+ numbers, got shape .*flatten"):
        log_prob(torch.zeros(3, 784))
    assert log_prob(torch.zeros(3, 1)).shape == (3,)


def families(*shape):
    """Each family, with parameters for events of the shape's last axis."""
    zeros = torch.zeros(*shape)
    return [
        DiagonalGaussian(zeros, zeros),
        Bernoulli(zeros),
        Categorical(torch.zeros(*shape, 4)),
        DiscretizedLogistic(zeros, zeros),
    ]


@pytest.mark.parametrize("family", range(4))
def test_pictures_are_no_rows(family):
    with pytest.raises(ValueError, match=r"rows of 28 numbers, got shape \(28, 1, 28, 28\).*flat"):
        families(28, 1, 28, 28)[family].log_prob(torch.zeros(28, 1, 28, 28))
    with pytest.raises(ValueError, match=r"rows of 28 numbers"):
        families(5, 28, 1, 28, 28)[family].log_prob(torch.zeros(28, 1, 28, 28))


@pytest.mark.parametrize("family", range(4))
def test_batches_broadcast_or_are_refused(family):
    for parameters, x, found in [
        ((3,), (5, 3), (5,)),
        ((5, 3), (3,), (5,)),
        ((7, 5, 3), (5, 3), (7, 5)),
        ((7, 1, 3), (5, 3), (7, 5)),
        ((5, 3), (2, 7, 1, 3), (2, 7, 5)),
    ]:
        assert families(*parameters)[family].log_prob(torch.zeros(*x)).shape == found
    with pytest.raises(ValueError, match=r": expected a shape that broadcasts against \(5, 3.*row"):
        families(5, 3)[family].log_prob(torch.zeros(4, 3))


@pytest.mark.parametrize(
    "make",
    [
        lambda x: DiagonalGaussian(x, x),
        Bernoulli,
        Categorical,
        lambda x: Categorical(x.view(1)),
        lambda x: DiscretizedLogistic(x, x),
        lambda x: Bernoulli(x.view(1).int()),
    ],
)
def test_parameters_without_an_event_are_refused(make):
    with pytest.raises(ValueError, match=r"^\w+: expected floats of shape \(\.\.\., d.*\), got"):
        make(torch.tensor(0.0))


def test_one_level_is_refused_and_two_are_not():
    with pytest.raises(ValueError, match=r"logits: expected at least 2 levels, .*\(5, 1\)"):
        Categorical(torch.zeros(5, 1))
    assert Categorical(torch.zeros(5, 2)).log_prob(torch.ones(5)) < 0


@grey_families
def test_bytes_are_no_greys(family):
    with pytest.raises(ValueError, match=r"expected greys as floats.*torch.uint8.*quantize"):
        family().log_prob(torch.tensor([1, 0], dtype=torch.uint8))


# -- the ends of what a float holds


def slope(f, at):
    """The value of a function of one number, and its slope."""
    at = at.clone().requires_grad_()
    value = f(at).sum()
    (gradient,) = torch.autograd.grad(value, at)
    return value.item(), gradient.item()


both = pytest.mark.parametrize("dtype", [torch.float32, torch.float64])


@both
@pytest.mark.parametrize("log_std", [-1000.0, -700.0, -200.0, -100.0, -88.0])
def test_a_narrow_gaussian_keeps_its_density_and_its_slope(dtype, log_std):
    zero, s = torch.zeros(1, dtype=dtype), torch.tensor([log_std], dtype=dtype)
    peak = -log_std - 0.5 * math.log(2 * math.pi)
    found = slope(lambda s: DiagonalGaussian(zero, s).log_prob(zero), s)
    assert found == (pytest.approx(peak), -1)
    # One standard deviation off, where a float still tells that apart from the mean.
    if s.exp() > torch.finfo(dtype).tiny * torch.finfo(dtype).eps * 100:
        z = zero + s.exp()
        value, gradient = slope(lambda s: DiagonalGaussian(zero, s).log_prob(z), s)
        assert value == pytest.approx(peak - 0.5, rel=1e-4)
        assert gradient == pytest.approx(0, abs=0.02)
    q = DiagonalGaussian(zero, s)
    assert torch.isfinite(q.log_prob(q.sample(generator=torch.Generator().manual_seed(0))))


@both
@pytest.mark.parametrize("log_std", [-1000.0, -100.0, 0.0, 100.0, 1000.0])
def test_a_divergence_between_equals_is_zero_however_narrow_or_wide(dtype, log_std):
    mean, s = torch.full((1,), 0.3, dtype=dtype), torch.tensor([log_std], dtype=dtype)
    p = DiagonalGaussian(mean, s)
    assert slope(lambda s: DiagonalGaussian(mean, s).kl(p), s) == (0, 0)
    # Narrower by 20: the ratio of the spreads, and not the spreads themselves, is what counts.
    value, gradient = slope(lambda s: DiagonalGaussian(mean, s - 20).kl(p), s)
    assert value == pytest.approx(0.5 * (math.exp(-40) - 1 + 40))
    assert gradient == pytest.approx(-1)


@both
@pytest.mark.parametrize("log_scale", [88.0, 100.0, 110.0, 800.0])
def test_a_wide_logistic_keeps_its_cost_and_its_slope(dtype, log_scale):
    location, s = torch.full((1,), 0.4, dtype=dtype), torch.tensor([log_scale], dtype=dtype)
    for x, cost, due in [
        (0.0, math.log(2), 0),
        (0.4, 2 * math.log(2) + math.log(15) + log_scale, 1),
        (1.0, math.log(2), 0),
    ]:
        x = torch.full((1,), x, dtype=dtype)
        value, gradient = slope(lambda s, x=x: DiscretizedLogistic(location, s, 16).log_prob(x), s)
        assert value == pytest.approx(-cost, rel=1e-5)
        assert gradient == pytest.approx(-due, abs=1e-5)
    value, gradient = slope(lambda s: DiscretizedLogistic(location, s, 16).mean, s)
    assert value == pytest.approx(0.5)
    assert gradient == pytest.approx(0, abs=1e-5)


@both
@pytest.mark.parametrize("log_scale", [-1000.0, -200.0, -100.0, -88.0])
def test_a_narrow_logistic_is_sure_of_its_bin_and_has_no_slope_there(dtype, log_scale):
    s = torch.tensor([log_scale], dtype=dtype)
    for grey in (0.0, 0.4, 1.0):
        x = torch.full((1,), grey, dtype=dtype)
        found = slope(lambda s, x=x: DiscretizedLogistic(x, s, 16).log_prob(x), s)
        assert found == (pytest.approx(0, abs=1e-6), 0)
        value, gradient = slope(lambda s, x=x: DiscretizedLogistic(x, s, 16).mean, s)
        assert (value, gradient) == (pytest.approx(grey), 0)
    many = DiscretizedLogistic(x.expand(1000), s.expand(1000), 16)
    assert torch.equal(many.sample(generator=torch.Generator().manual_seed(0)), x.expand(1000))


def test_a_logistic_grey_is_never_zero_times_infinity(monkeypatch):
    # Even draws of exactly 0 come once in sixteen million, of 1/2 as seldom.
    monkeypatch.setattr(
        "vae_lib.distributions._uniform_like", lambda x, generator: torch.tensor([0.0, 0.5])
    )
    for log_scale in (-110.0, 110.0):
        place = torch.full((2,), 0.4)
        x = DiscretizedLogistic(place, torch.full((2,), log_scale), 16).sample()
        torch.testing.assert_close(x, torch.tensor([0.0, 0.4]))


@both
@pytest.mark.parametrize("logit", [-1e30, -1e4, 1e4, 1e30])
def test_sure_logits_keep_their_cost_and_their_slope(dtype, logit):
    wrong = torch.tensor([float(logit < 0)], dtype=dtype)
    at, zero = torch.tensor([logit], dtype=dtype), torch.zeros(1, dtype=dtype)
    sign = math.copysign(1, logit)

    def pair(a):
        return Categorical(torch.stack([zero, a], -1))

    for family in (Bernoulli, pair):
        value, gradient = slope(lambda a, f=family: f(a).log_prob(wrong), at)
        assert (value, gradient) == (pytest.approx(-abs(logit), rel=1e-6), pytest.approx(-sign))
        assert slope(lambda a, f=family: f(a).log_prob(1 - wrong), at) == (0, 0)


@both
def test_a_component_far_away_or_without_weight_adds_nothing(dtype):
    one = torch.tensor([1.0], dtype=dtype)
    zeros = torch.zeros(2, 1, dtype=dtype)
    peak = -0.5 * math.log(2 * math.pi)

    def far(m):
        parts = DiagonalGaussian(torch.stack([0 * m, m]), zeros)
        return Mixture(zeros[:, 0], parts).log_prob(0 * one)

    assert slope(far, 1e25 * one) == (pytest.approx(peak - math.log(2)), 0)

    def without(a):
        return Mixture(torch.cat([0 * one, a]), DiagonalGaussian(zeros, zeros)).log_prob(0 * one)

    assert slope(without, -1e4 * one) == (pytest.approx(peak), 0)
    assert slope(without, -math.inf * one) == (pytest.approx(peak), 0)


@pytest.mark.parametrize("bad", [math.nan, math.inf])
def test_what_diverged_is_not_drawn_as_if_it_had_not(bad):
    two = DiagonalGaussian(torch.zeros(2, 3), torch.zeros(2, 3))
    for family in (Categorical(torch.full((3, 2), bad)), Mixture(torch.full((2,), bad), two)):
        with pytest.raises(ValueError, match="logits: expected real numbers, got NaN or inf"):
            family.sample(*[1] * isinstance(family, Mixture))
    nan = torch.full((3,), math.nan)
    for family in (Bernoulli(nan), DiscretizedLogistic(nan, nan), DiagonalGaussian(nan, nan)):
        assert family.sample().isnan().all()


def test_the_mean_grey_of_many_pixels_is_that_of_each():
    # More pixels than are taken at a time, of which there are 4,112.
    location, log_scale = 0.5 + 0.3 * draw(3, 3000).float(), draw(3, 3000, seed=1).float() - 2
    whole = DiscretizedLogistic(location, log_scale).mean
    border = (torch.arange(255) + 0.5) / 255
    above = torch.sigmoid((location.unsqueeze(-1) - border) / log_scale.exp().unsqueeze(-1))
    torch.testing.assert_close(whole, above.mean(-1))


def test_the_mean_grey_takes_little_memory():
    location = torch.zeros(20, 784)
    with Largest() as made:
        _ = DiscretizedLogistic(location, location).mean
    assert made.numbers < 1.1e6  # all pixels times all borders are four million
