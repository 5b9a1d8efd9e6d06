import math

import pytest
import torch
from torch import nn

from vae_lib.autoregressive import (
    LOG_STD,
    AutoregressiveMixture,
    AutoregressivePrior,
    LocalBernoulli,
    LocalDecoder,
    LocalHead,
    MaskedDense,
)
from vae_lib.distributions import Bernoulli


def source(seed=0):
    return torch.Generator().manual_seed(seed)


def head(shape=(2, 3), features=4, reach=1, layers=2):
    """A head in 64 bits, all of whose weights and biases are drawn."""
    made = LocalHead(shape, features, reach, layers, source()).double()
    with torch.no_grad():
        for weight in made.parameters():
            weight.copy_(0.5 * torch.randn(weight.shape, generator=source(weight.numel())).double())
        made.last.bias.zero_()  # neither of the two colours is rare
    return made


def features(*shape, seed=1):
    return torch.randn(*shape, generator=source(seed)).double()


def every(pixels):
    """All images of so many pixels."""
    return torch.cartesian_prod(*[torch.tensor([0.0, 1.0]).double()] * pixels)


def before(shape, reach):
    """Say by loops, for pixels i and j, whether the logit of i may see the pixel j."""
    height, width = shape
    seen = torch.zeros(height * width, height * width, dtype=torch.bool)
    for row in range(height):
        for column in range(width):
            for other in range(height):
                for beside in range(width):
                    near = row - other <= reach and abs(column - beside) <= reach
                    earlier = other < row or (other == row and beside < column)
                    seen[row * width + column, other * width + beside] = near and earlier
    return seen


# A picture's pixels


@pytest.mark.parametrize("reach", [0, 1, 2, 5])
def test_the_probabilities_of_all_images_sum_to_one(reach):
    given = LocalBernoulli(features(6, 4), head(reach=reach))
    assert given.log_prob(every(6)).exp().sum().item() == pytest.approx(1, abs=1e-12)


@pytest.mark.parametrize(("shape", "reach"), [((5, 4), 1), ((4, 6), 2), ((3, 3), 3), ((3, 4), 0)])
def test_a_logit_sees_the_pixels_near_and_before_it_and_no_other(shape, reach):
    pixels = math.prod(shape)
    network, x = head(shape, reach=reach), torch.rand(pixels, generator=source()).double()
    jacobian = torch.autograd.functional.jacobian(lambda x: network(features(pixels, 4), x), x)
    assert torch.equal(jacobian != 0, before(shape, reach))
    assert 2 * reach * (reach + 1) == network.seen.sum()


def test_a_logit_depends_on_the_features_of_its_pixel_alone():
    network = head((3, 4))
    x = every(12)[1234]
    jacobian = torch.autograd.functional.jacobian(lambda f: network(f, x), features(12, 4))
    assert torch.equal((jacobian != 0).any(-1), torch.eye(12, dtype=torch.bool))


def test_logits_are_those_of_loops_over_pixels_and_layers():
    """The same by hand: the pixels that may be seen, one by one, times their weights."""
    network, given, x = head((3, 4), features=5), features(12, 5), every(12)[2741]
    picture = x.view(3, 4)
    for row in range(3):
        for column in range(4):
            h = given[4 * row + column].clone()
            for down, right in [(-1, -1), (-1, 0), (-1, 1), (0, -1)]:
                other, beside = row + down, column + right
                if 0 <= other < 3 and 0 <= beside < 4:
                    h += picture[other, beside] * network.weight[:, 1 + down, 1 + right]
            for layer in network.layers:
                h = h + layer.weight @ (h / (1 + torch.exp(-h))) + layer.bias
            logit = network.last.weight @ (h / (1 + torch.exp(-h))) + network.last.bias
            found = network(given, x)[4 * row + column]
            assert found.item() == pytest.approx(logit.item(), abs=1e-12)


def test_without_reach_it_is_a_bernoulli():
    network, given = head(reach=0), features(3, 6, 4)
    plain = Bernoulli(network(given, torch.zeros(3, 6).double()))
    x = every(6)[[5, 17, 60]]
    assert torch.equal(LocalBernoulli(given, network).log_prob(x), plain.log_prob(x))


def test_log_prob_broadcasts_images_against_samples():
    network, given, x = head(), features(5, 2, 6, 4), every(6)[[9, 44]]
    found = LocalBernoulli(given, network).log_prob(x)
    assert found.shape == (5, 2)
    for sample in range(5):
        for image in range(2):
            one = LocalBernoulli(given[sample, image], network).log_prob(x[image])
            assert found[sample, image].item() == pytest.approx(one.item(), abs=1e-12)


def test_the_probabilities_are_those_of_the_logits():
    given, x = LocalBernoulli(features(6, 4), head()), every(6)[[3, 40]]
    p = given.probabilities(x)
    by_hand = torch.where(x == 1, p, 1 - p).log().sum(-1)
    torch.testing.assert_close(given.log_prob(x), by_hand)
    assert not hasattr(given, "mean")


def test_images_are_drawn_as_often_as_they_are_probable():
    """A chi-squared test over all images of four pixels: its mean is 15, its spread 5.5."""
    given = LocalBernoulli(features(4, 4), head((2, 2)))
    many = 20_000
    drawn = LocalBernoulli(given.features.expand(many, 4, 4), given.head).sample(generator=source())
    number = (drawn @ torch.tensor([8.0, 4.0, 2.0, 1.0]).double()).long()
    expected = many * given.log_prob(every(4)).exp()
    squares = (torch.bincount(number, minlength=16) - expected) ** 2 / expected
    assert squares.sum() < 15 + 4 * 5.5


@pytest.mark.parametrize("reach", [0, 1, 3])
def test_a_drawn_pixel_is_one_where_its_number_is_below_its_probability(reach):
    """What was drawn, seen by the pass over the whole image: pixel by pixel gives the same."""
    network, given = head((5, 4), reach=reach), features(7, 20, 4)
    uniform = torch.rand(7, 20, generator=source()).double()
    pixels = LocalBernoulli(given, network)
    x = network.sample(given, uniform[..., None], pixels._drawn)
    p = pixels.probabilities(x)
    assert torch.equal(x, (uniform < p).double())
    assert 0 < x.mean().item() < 1


def test_a_draw_has_the_shape_of_the_batch_and_no_gradient():
    decoder = LocalDecoder(
        nn.Sequential(nn.Linear(3, 24), nn.Unflatten(-1, (6, 4))), head().float()
    )
    given = decoder(torch.randn(2, 5, 3, generator=source()))
    x = given.sample(generator=source(1))
    assert x.shape == (2, 5, 6)
    assert not x.requires_grad
    assert torch.equal(x, given.sample(generator=source(1)))
    assert not torch.equal(x, given.sample(generator=source(2)))
    assert decoder(torch.zeros(3)).sample(generator=source()).shape == (6,)


def test_nan_shows_in_a_draw():
    given = features(2, 6, 4)
    given[1, 3] = math.nan
    x = LocalBernoulli(given, head()).sample(generator=source())
    assert x[0].isfinite().all()
    assert x[1, 3].isnan()


def test_every_weight_that_may_act_is_trained_and_no_other():
    network = head((5, 4), reach=2)
    LocalBernoulli(features(30, 20, 4), network).log_prob(every(20)[:30]).sum().backward()
    x = torch.rand(30, 20, generator=source()).round().double()
    network.zero_grad()
    LocalBernoulli(features(30, 20, 4), network).log_prob(x).sum().backward()
    assert all((weight.grad != 0).all() for weight in network.layers.parameters())
    assert torch.equal((network.weight.grad != 0).all(0), network.seen)


def test_greys_and_other_sizes_are_refused():
    given = LocalBernoulli(features(6, 4), head())
    with pytest.raises(ValueError, match="x: expected zeros and ones"):
        given.log_prob(torch.full((6,), 0.5).double())
    with pytest.raises(ValueError, match="x: expected rows of 6 numbers"):
        given.log_prob(torch.zeros(7).double())
    with pytest.raises(ValueError, match=r"x: expected torch\.float64"):
        given.log_prob(torch.zeros(6))
    with pytest.raises(ValueError, match="reach: expected at least 0"):
        LocalHead((2, 3), 4, reach=-1)
    with pytest.raises(ValueError, match="shape: expected a whole number"):
        LocalHead((2, 3.5), 4)
    with pytest.raises(ValueError, match=r"features: expected a torch\.Tensor"):
        LocalBernoulli([0.0], head())


# A vector's elements


def mixture(length, components=3, hidden=7, layers=2):
    """A mixture in 64 bits whose weights are all drawn, so that much depends on much."""
    network = MaskedDense(length, hidden, 3 * components, layers, source()).double()
    with torch.no_grad():
        for weight in network.parameters():
            weight.copy_(0.7 * torch.randn(weight.shape, generator=source(weight.numel())).double())
    return AutoregressiveMixture(network, length)


@pytest.mark.parametrize("layers", [1, 2, 3])
@pytest.mark.parametrize("length", [1, 2, 5])
def test_an_output_sees_the_elements_before_it_and_all_of_them(length, layers):
    network = mixture(length, components=1, hidden=12, layers=layers).network
    z = torch.randn(length, generator=source()).double()
    jacobian = torch.autograd.functional.jacobian(network, z)
    seen = torch.ones(length, length).tril(-1).bool()
    assert torch.equal((jacobian != 0).all(1), seen)
    assert torch.equal((jacobian != 0).any(1), seen)


def test_the_density_of_one_element_integrates_to_one():
    p = mixture(1)
    z = torch.linspace(-60, 60, 400_001).double().unsqueeze(-1)
    assert torch.trapezoid(p.log_prob(z).exp(), z[:, 0]).item() == pytest.approx(1, abs=1e-9)


def test_the_density_of_two_elements_integrates_to_one():
    p = mixture(2)
    line = torch.linspace(-25, 25, 501).double()
    density = p.log_prob(torch.cartesian_prod(line, line)).exp().view(501, 501)
    total = torch.trapezoid(torch.trapezoid(density, line), line)
    assert total.item() == pytest.approx(1, abs=1e-5)


def test_the_density_is_a_product_of_mixtures_by_hand():
    p = mixture(3, components=2)
    z = torch.randn(4, 3, generator=source()).double()
    numbers = p.network(z)
    for row in range(4):
        total = 0
        for j in range(3):
            logits, means, raw = numbers[row, j].view(3, 2)
            log_std = 6 * torch.tanh(raw / 6)
            weights = torch.softmax(logits, 0)
            normal = torch.distributions.Normal(means, log_std.exp())
            total = total + (weights * normal.log_prob(z[row, j]).exp()).sum().log()
        assert p.log_prob(z)[row].item() == pytest.approx(total.item(), abs=1e-12)


def test_densities_broadcast_over_samples():
    p = mixture(3)
    z = torch.randn(5, 2, 3, generator=source()).double()
    assert torch.equal(p.log_prob(z)[3, 1], p.log_prob(z[3, 1]))
    assert p.log_prob(z).shape == (5, 2)


def test_draws_have_the_moments_of_the_density():
    """Both elements by quadrature; the second's mean, given the first, is not constant."""
    p, many = mixture(2), 40_000
    z = p.sample(many, generator=source())
    line = torch.linspace(-25, 25, 501).double()
    grid = torch.cartesian_prod(line, line)
    mass = p.log_prob(grid).exp() * (line[1] - line[0]) ** 2
    for moment in (
        lambda z: z[:, 0],
        lambda z: z[:, 1],
        lambda z: z[:, 0].abs(),
        lambda z: torch.tanh(z[:, 0]) * torch.tanh(z[:, 1]),
        lambda z: torch.exp(-(z[:, 1] ** 2)),
    ):
        found, exact = moment(z), (moment(grid) * mass).sum()
        assert abs(found.mean() - exact) < 4 * found.std() / math.sqrt(many)


def test_draws_come_from_the_generator_alone():
    p = mixture(4)
    z = p.sample(3, generator=source())
    torch.manual_seed(9)
    assert torch.equal(z, p.sample(3, generator=source()))
    assert not torch.equal(z, p.sample(3, generator=source(1)))
    assert not z.requires_grad
    assert p.sample(0).shape == (0, 4)


def test_log_stds_are_held():
    p = mixture(2)
    with torch.no_grad():
        p.network.last.affine.bias.view(2, 3, 3)[:, 2] = torch.tensor([-1e9, 0.0, 1e9])
    z = 1e4 * torch.ones(5, 2).double()
    log_std = p.conditionals(z)[2][:, 0]
    assert log_std.amin() == -LOG_STD
    assert log_std.amax() == LOG_STD
    assert p.log_prob(z).isfinite().all()


def test_sixteen_bits_are_widened():
    coins = LocalBernoulli(features(6, 4).bfloat16(), head().bfloat16())
    assert coins.log_prob(every(6)[[3]].bfloat16()).dtype == torch.float32
    assert coins.sample(generator=source()).dtype == torch.float32
    network = mixture(2).network.to(torch.bfloat16)
    p = AutoregressiveMixture(network, 2)
    assert all(part.dtype == torch.float32 for part in p.conditionals(torch.zeros(3, 2).bfloat16()))


def test_a_rare_pixel_is_as_rare_in_sixteen_bits():
    network = LocalHead((1, 1), 1, reach=0, layers=0).bfloat16()
    with torch.no_grad():
        network.last.weight.zero_()
        network.last.bias.fill_(-9)  # a probability of 1.2e-4, where 16 bits have steps of 4e-3
    drawn = LocalBernoulli(torch.zeros(100_000, 1, 1).bfloat16(), network)
    assert 1 <= drawn.sample(generator=source()).sum() <= 30


def test_rows_of_another_length_are_refused():
    with pytest.raises(ValueError, match="z: expected rows of 3 numbers"):
        mixture(3).log_prob(torch.zeros(2).double())
    with pytest.raises(ValueError, match="latents: expected at least 1"):
        AutoregressivePrior(0)
    with pytest.raises(ValueError, match="components: expected at least 1"):
        AutoregressivePrior(3, components=0)
    with pytest.raises(ValueError, match="samples: expected at least 0"):
        mixture(2).sample(-1)


@pytest.mark.parametrize("components", [1, 8])
def test_a_prior_starts_near_unit_spread_and_hardly_dependent(components):
    prior = AutoregressivePrior(10, hidden=64, components=components, generator=source())
    z = prior().sample(4000, generator=source())
    assert z.mean(0).abs().max() < 0.15
    assert (z.std(0) - 1.15).abs().max() < 0.25
    _, means, log_stds = prior().conditionals(z)
    assert log_stds.abs().max() < 0.3
    assert means.mean(0).shape == (10, components)
    expected = torch.linspace(-1, 1, components) if components > 1 else torch.zeros(1)
    assert (means - expected).abs().max() < 0.5


def test_a_prior_learns_what_depends_on_what():
    """Of z2 = -z1 + a little noise it comes within 0.1 nat of the true density."""
    prior = AutoregressivePrior(2, hidden=32, components=2, generator=source())
    adam = torch.optim.Adam(prior.parameters(), 1e-2)
    noise = source(1)

    def draw(n):
        one, two = torch.randn(2, n, generator=noise)
        return torch.stack([one, 0.1 * two - one], -1)

    for _ in range(300):
        adam.zero_grad()
        (-prior().log_prob(draw(200)).mean()).backward()
        adam.step()
    entropy = math.log(2 * math.pi * math.e) + math.log(0.1)
    assert -prior().log_prob(draw(4000)).mean().item() == pytest.approx(entropy, abs=0.1)
