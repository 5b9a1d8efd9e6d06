import math

import pytest
import torch

from vae_lib.looks import (
    DigitClassifier,
    edges,
    frechet_distance,
    frechet_error,
    grey,
    seen_features,
)


def source(seed=0):
    return torch.Generator().manual_seed(seed)


def drawn(n=400, d=3, seed=0):
    mix = torch.randn(d, d, generator=source(seed + 100)).double()
    return torch.randn(n, d, generator=source(seed)).double() @ mix


# -- grey and edges


def test_grey_counts_what_is_neither_paper_nor_ink():
    p = torch.tensor([[0.0, 1.0, 0.5], [0.25, 0.25, 1.0]])
    assert grey(p).tolist() == [1.0, 1.5]


def test_edges_by_loops():
    x = torch.rand(784, generator=source()).double()
    total = 0.0
    for r in range(28):
        for c in range(28):
            for down, right in ((1, 0), (0, 1)):
                if r + down < 28 and c + right < 28:
                    total += (x[28 * r + c] - x[28 * (r + down) + c + right]).item() ** 2
    assert edges(x).item() == pytest.approx(total)
    assert edges(x.expand(2, 3, 784)).shape == (2, 3)


@pytest.mark.parametrize("steps", [1, 2, 4, 8])
def test_an_edge_that_is_spread_over_n_steps_counts_one_nth(steps):
    ramp = (torch.arange(28) - 10).clamp(0, steps) / steps
    assert edges(ramp.expand(28, 28).reshape(-1)).item() == pytest.approx(28 / steps, rel=1e-5)


def test_rows_of_another_length_are_refused():
    with pytest.raises(ValueError, match=r"^pictures: expected rows of 784 numbers"):
        edges(torch.zeros(5, 28, 28))
    with pytest.raises(ValueError, match=r"^pictures: expected rows of 784 numbers"):
        seen_features(DigitClassifier(), torch.zeros(5, 100))


# -- the Fréchet distance


def test_the_distance_of_independent_features_is_that_of_their_spreads():
    z = drawn()
    white = torch.linalg.solve_triangular(
        torch.linalg.cholesky(torch.cov(z.T)), (z - z.mean(0)).T, upper=False
    ).T
    s, t = torch.tensor([1.0, 2.0, 3.0]).double(), torch.tensor([2.0, 0.5, 3.0]).double()
    shift = torch.tensor([0.3, 0.0, -1.0]).double()
    found = frechet_distance(white * s, white * t + shift)
    assert found == pytest.approx((shift.square().sum() + (s - t).square().sum()).item())


def test_the_distance_is_that_of_another_formula():
    a, b = drawn(seed=1), drawn(seed=2) + 1
    product = torch.cov(a.T) @ torch.cov(b.T)
    root = torch.linalg.eigvals(product).sqrt().real.sum()  # of a matrix that is not symmetric
    gap = (a.mean(0) - b.mean(0)).square().sum()
    expected = gap + a.var(0).sum() + b.var(0).sum() - 2 * root
    assert frechet_distance(a, b) == pytest.approx(expected.item())
    assert frechet_distance(b, a) == pytest.approx(expected.item())


def test_the_distance_is_blind_to_what_mean_and_covariance_do_not_see():
    a = drawn()
    two = torch.tensor([-1.0, 1.0]).double().repeat(500).unsqueeze(-1)  # two points, no bell
    bell = torch.linspace(0.0005, 0.9995, 1000).double()
    bell = (math.sqrt(2) * torch.erfinv(2 * bell - 1)).unsqueeze(-1)
    bell = (bell - bell.mean()) / bell.std() * two.std()
    assert frechet_distance(two, bell) == pytest.approx(0, abs=1e-9)
    assert frechet_distance(a, a) == pytest.approx(0, abs=1e-9)


def test_features_that_do_not_vary_do_no_harm():
    a = torch.cat([drawn(), torch.ones(400, 2)], 1)
    b = torch.cat([drawn(seed=1), torch.ones(400, 1), torch.zeros(400, 1)], 1)
    assert frechet_distance(a, b) == pytest.approx(
        frechet_distance(drawn(), drawn(seed=1)) + 1, rel=1e-6
    )


def test_fewer_rows_make_the_distance_larger():
    few = [frechet_distance(*torch.randn(2, 50, 8, generator=source(k))) for k in range(10)]
    many = [frechet_distance(*torch.randn(2, 2000, 8, generator=source(k))) for k in range(10)]
    assert min(few) > 5 * max(many) > 0


def test_the_error_is_about_the_spread_between_draws():
    b = torch.randn(2000, 4, generator=source(99))
    sets = [1.2 * torch.randn(500, 4, generator=source(k)) for k in range(60)]
    spread = torch.tensor([frechet_distance(a, b) for a in sets]).std().item()
    assert frechet_error(sets[0], b, source()) == pytest.approx(spread, rel=0.5)


@pytest.mark.parametrize("b", [torch.zeros(5, 4), torch.zeros(1, 3), torch.zeros(3)])
def test_sets_of_another_shape_are_refused(b):
    with pytest.raises(ValueError, match=r"^b: expected features of shape \(n, 3\)"):
        frechet_distance(torch.zeros(5, 3), b)


# -- the classifier


def test_the_logits_are_made_of_the_features():
    network, x = DigitClassifier(seed=3), torch.rand(7, 784, generator=source())
    found = seen_features(network, x, batch_size=3)
    assert found.shape == (7, 64)
    assert not found.requires_grad
    torch.testing.assert_close(network.last(found), network(x))
    assert torch.equal(network.last.weight, DigitClassifier(seed=3).last.weight)
    assert not torch.equal(network.last.weight, DigitClassifier().last.weight)


def test_features_keep_their_size_through_the_layers():
    x = (torch.rand(200, 784, generator=source()) < 0.5).float()
    assert 0.2 < seen_features(DigitClassifier(), x).square().mean().sqrt() < 2
