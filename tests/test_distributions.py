import math

import pytest
import torch
from torch.distributions import Bernoulli as TorchBernoulli
from torch.distributions import Independent, Normal, kl_divergence

from vae_lib.distributions import Bernoulli, DiagonalGaussian


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
    total = (
        Bernoulli(logits).log_prob(images[:, None]).exp()
        if False
        else torch.stack([Bernoulli(logits).log_prob(image).exp() for image in images]).sum()
    )
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
