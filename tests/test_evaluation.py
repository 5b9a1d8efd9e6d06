import math

import pytest
import torch

from tests.oracles import off_centre, probabilistic_pca
from vae_lib.evaluation import Estimate, held_out_elbo, log_likelihood
from vae_lib.model import dense_vae


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
