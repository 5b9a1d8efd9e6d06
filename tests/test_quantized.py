import itertools
import math

import pytest
import torch
from torch import nn
from torch.distributions import Normal

from vae_lib.distributions import DiagonalGaussian
from vae_lib.evaluation import held_out_elbo
from vae_lib.model import VAE, BernoulliDecoder, GaussianDecoder
from vae_lib.networks import linear
from vae_lib.objectives import log_weights, terms
from vae_lib.quantized import (
    Codebook,
    CodeDecoder,
    CodeEncoder,
    CodePrior,
    Codes,
    RoundedDecoder,
    RoundedGaussian,
    quantized_objective,
    straight_through,
)


def source(seed=0):
    return torch.Generator().manual_seed(seed)


def a_book(codes=5, length=3, decay=0.9):
    book = Codebook(codes, length, decay).double()
    book.vectors.copy_(torch.randn(codes, length, generator=source()))
    book.counts.fill_(10)
    book.sums.copy_(10 * book.vectors)
    return book


class Apart(nn.Module):
    """A linear map to so many vectors of a length."""

    def __init__(self, inputs, places, length):
        super().__init__()
        self.layer = linear(inputs, places * length, source())
        self.places = places

    def forward(self, x):
        return self.layer(x).unflatten(-1, (self.places, -1))


def a_model(shape=(2, 2), codes=3, length=2, pixels=6):
    """A VAE whose latents are codes, in 64 bits, small enough to count all of them."""
    places = math.prod(shape)
    book = Codebook(codes, length)
    book.vectors.copy_(torch.randn(codes, length, generator=source(1)))
    book.counts.fill_(10)
    book.sums.copy_(10 * book.vectors)
    return VAE(
        CodeEncoder(Apart(pixels, places, length), book),
        CodePrior(shape, codes, hidden=4, generator=source(2)),
        CodeDecoder(book, BernoulliDecoder(linear(places * length, pixels, source(3)))),
    ).double()


def every(places, codes):
    return torch.tensor(list(itertools.product(range(codes), repeat=places)))


# -- the book


def test_a_row_gets_the_vector_that_is_nearest():
    book, h = a_book(), torch.randn(4, 7, 3, generator=source(1)).double()
    far = (h.unsqueeze(-2) - book.vectors).square().sum(-1)
    assert torch.equal(book(h), far.argmin(-1))
    assert len(book(h).unique()) > 2


def test_vectors_follow_the_mean_of_the_rows_that_chose_them():
    book, h = a_book(), torch.randn(200, 3, generator=source(1)).double()
    chosen, before = book(h), a_book()
    book.learn(h, source())
    for code in range(5):
        mine = h[chosen == code]
        count = 0.9 * 10 + 0.1 * len(mine)
        total = 0.9 * 10 * before.vectors[code] + 0.1 * mine.sum(0)
        torch.testing.assert_close(book.vectors[code], total / count)


def test_a_vector_that_no_row_chooses_becomes_a_row():
    book, h = a_book(), torch.randn(50, 3, generator=source(1)).double()
    book.vectors[2], book.sums[2], book.counts[2] = 100, 100, 1.0
    book.learn(h, source())
    assert (book.vectors[2] == h).all(-1).any()
    new = Codebook(5, 3).double()
    new.learn(h, source())
    assert all((vector == h).all(-1).any() for vector in new.vectors[1:])  # all chose the first


def test_rounding_lets_the_gradient_through():
    h = torch.tensor([0.3, -1.0], requires_grad=True)
    vectors = torch.tensor([0.5, -2.0])
    rounded = straight_through(h, vectors)
    torch.testing.assert_close(rounded, vectors)
    (rounded**3).sum().backward()
    torch.testing.assert_close(h.grad, 3 * vectors**2)  # as if the rounded ones had been moved


def test_the_objective_and_its_gradient_by_hand():
    model, x = a_model(), torch.tensor([[1.0, 0, 0, 1, 1, 0], [0.0, 1, 1, 1, 0, 1]]).double()
    model.eval()  # so that the book stays
    h = model.encoder.network(x).detach()
    vectors = model.encoder.book.vectors[model.encoder.book(h)]
    decoder, rows = model.decoder.decoder, vectors.flatten(-2).clone().requires_grad_()
    log_p = decoder(rows).log_prob(x)
    value = quantized_objective(model, x, source(), commitment=0.7)
    torch.testing.assert_close(value, log_p - 0.7 * (h - vectors).square().sum((-1, -2)))
    log_p.sum().backward()
    to_h = rows.grad - 2 * 0.7 * (h - vectors).flatten(-2)
    value.sum().backward()
    torch.testing.assert_close(model.encoder.network.layer.weight.grad, to_h.T @ x)
    assert all(weight.grad is None for weight in model.prior.parameters())


def test_the_book_follows_in_training_alone():
    model, x = a_model(), torch.eye(6).double()
    before = model.encoder.book.vectors.clone()
    quantized_objective(model.eval(), x, source())
    assert torch.equal(model.encoder.book.vectors, before)
    quantized_objective(model.train(), x, source())
    assert not torch.equal(model.encoder.book.vectors, before)
    assert model.decoder.book is model.encoder.book


# -- codes as latents


@pytest.mark.parametrize("shape", [(2, 2), (1, 3), (3, 1)])
def test_the_probabilities_of_all_codes_sum_to_one(shape):
    prior = CodePrior(shape, 3, hidden=4, generator=source()).double()()
    p = prior.log_prob(every(math.prod(shape), 3)).exp()
    assert p.sum().item() == pytest.approx(1, abs=1e-12)
    assert p.max() > 1.5 * p.min()


def test_a_code_depends_on_those_before_it_and_on_them_alone():
    prior = CodePrior((2, 3), 4, hidden=8, generator=source()).double()
    z = torch.randint(4, (1, 6), generator=source())
    before = prior.logits(z)
    for place in range(6):
        other = z.clone()
        other[0, place] = (z[0, place] + 1) % 4
        moved = (prior.logits(other) != before).any(-1)[0]
        assert not moved[: place + 1].any()
        assert moved[place + 1 :].all()  # a recurrent network forgets nothing at once


def test_a_place_is_told_what_is_before_it_and_above_it():
    prior = CodePrior((2, 3), 4, hidden=8, generator=source())
    z = torch.tensor([[0, 1, 2, 3, 0, 1]])
    before, above = [4, 0, 1, 2, 3, 0], [4, 4, 4, 0, 1, 2]  # 4 stands for none
    told = prior.before[before] + prior.above[above] + prior.place
    torch.testing.assert_close(prior.inputs(z)[0], told)


def test_codes_are_drawn_as_often_as_they_should_be():
    prior = CodePrior((2, 2), 2, hidden=4, generator=source())()
    drawn = prior.sample(20_000, generator=source())
    number = (drawn * torch.tensor([8, 4, 2, 1])).sum(-1)
    share = number.bincount(minlength=16) / 20_000
    p = prior.log_prob(every(4, 2)).exp()
    assert ((share - p).abs() < 4.5 * (p * (1 - p) / 20_000).sqrt()).all()
    assert torch.equal(drawn, prior.sample(20_000, generator=source()))
    assert prior.sample(0).shape == (0, 4)


def test_the_elbo_of_codes_is_a_term_of_the_exact_sum():
    model = a_model()
    images = torch.tensor(list(itertools.product([0.0, 1.0], repeat=6))).double()
    codes = every(4, 3)
    log_joint = torch.stack(
        [model.prior().log_prob(c) + model.decoder(c).log_prob(images) for c in codes]
    )
    exact = torch.logsumexp(log_joint, 0)
    assert exact.exp().sum().item() == pytest.approx(1, abs=1e-12)
    cost, chosen = terms(model, images), model.encoder(images).codes
    torch.testing.assert_close(cost.rate, -model.prior().log_prob(chosen))
    torch.testing.assert_close(cost.distortion, -model.decoder(chosen).log_prob(images))
    assert (cost.elbo < exact).all()
    with torch.no_grad():
        log_w = log_weights(model, images, 3)
    torch.testing.assert_close(log_w, cost.elbo.detach().expand(3, -1))
    torch.testing.assert_close(held_out_elbo(model, images).elbo.values, cost.elbo.detach())


def test_a_sure_q_is_sure():
    q = Codes(torch.tensor([[1, 2], [0, 0]]))
    assert q.log_prob(torch.tensor([[1, 2], [0, 1]])).tolist() == [0, -math.inf]
    assert torch.equal(q.rsample(3), q.codes.expand(3, 2, 2))


# -- rounded greys


@pytest.mark.parametrize("log_std", [-7.0, -3.0, 0.0, 2.0])
@pytest.mark.parametrize("mean", [-0.4, 0.0, 0.3, 1.0, 2.0])
def test_the_probabilities_of_all_levels_sum_to_one(mean, log_std):
    gaussian = DiagonalGaussian(*torch.tensor([[mean], [log_std]], dtype=torch.float64))
    levels = torch.linspace(0, 1, 256, dtype=torch.float64).unsqueeze(-1)
    p = RoundedGaussian(gaussian).log_prob(levels).exp()
    assert p.sum().item() == pytest.approx(1, abs=1e-9)
    between = Normal(gaussian.mean, gaussian.std).cdf((levels[:-1] + levels[1:]) / 2)
    ends = torch.cat([torch.zeros(1, 1), between, torch.ones(1, 1)])
    torch.testing.assert_close(p, ends.diff(dim=0).flatten(), rtol=1e-8, atol=1e-14)


def test_a_level_far_away_has_a_finite_cost_and_gradient():
    mean = torch.tensor([0.0, 1.0, 0.5, 0.5, 40.0], requires_grad=True)
    log_std = torch.tensor([-6.0, -6.0, -6.0, -6.0, 0.0], requires_grad=True)
    x = torch.tensor([1.0, 0.0, 0.2, 0.8, 0.2])
    levels = torch.round(x * 255) / 255
    value = RoundedGaussian(DiagonalGaussian(mean, log_std)).log_prob(levels)
    value.backward()
    assert value.isfinite()
    assert mean.grad.isfinite().all()
    assert log_std.grad.isfinite().all()
    assert (mean.grad.sign() == torch.tensor([1, -1, -1, 1, -1])).all()


def test_a_broad_one_is_the_density_times_the_step():
    gaussian = DiagonalGaussian(torch.rand(9, generator=source()), torch.full((9,), -1.0))
    x = torch.tensor([50.0, 100, 200, 20, 5, 90, 30, 60, 128]) / 255
    difference = RoundedGaussian(gaussian).log_prob(x) - gaussian.log_prob(x)
    assert difference.item() == pytest.approx(-9 * math.log(255), abs=2e-3)


def test_rounded_greys_are_drawn_as_often_as_they_should_be():
    given = RoundedGaussian(DiagonalGaussian(torch.full((20_000,), 0.2), torch.zeros(20_000)), 3)
    share = torch.stack([(given.sample(generator=source()) == g).float().mean() for g in (0, 0.5)])
    p = Normal(0.2, 1.0).cdf(torch.tensor([0.25, 0.75]))
    torch.testing.assert_close(share.cumsum(0), p, rtol=0, atol=0.016)


def test_a_rounded_decoder_takes_the_place_of_one_of_densities():
    decoder = GaussianDecoder(linear(2, 4, source()), 0.5)
    z = torch.randn(3, 2, generator=source())
    given = RoundedDecoder(decoder, levels=16)(z)
    x = torch.tensor([[0, 1, 7, 15]]) / 15
    narrow = RoundedGaussian(decoder(z), 16)
    torch.testing.assert_close(given.log_prob(x), narrow.log_prob(x))
    assert given.mean.min() >= 0
    assert given.mean.max() <= 1
