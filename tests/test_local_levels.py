"""Are greys that see those before them a distribution, and do they look at no later one?"""

import math

import pytest
import torch

from tests.test_autoregressive import before, features, source
from vae_lib.local_levels import LevelHead, LocalLevels, level_vae, mixtures


def head(shape=(2, 2), reach=1, components=2):
    """A head in 64 bits, all of whose weights and biases are drawn."""
    made = LevelHead(shape, 4, reach, 2, components, source()).double()
    with torch.no_grad():
        for weight in made.parameters():
            weight.copy_(0.5 * torch.randn(weight.shape, generator=source(weight.numel())).double())
    return made


def every(pixels, levels):
    """All images of so many pixels."""
    return torch.cartesian_prod(*[torch.linspace(0, 1, levels).double()] * pixels)


@pytest.mark.parametrize(("reach", "components"), [(0, 1), (1, 1), (1, 3), (2, 2)])
def test_the_probabilities_of_all_images_sum_to_one(reach, components):
    made = LocalLevels(features(4, 4), head((2, 2), reach, components), levels=5)
    assert made.log_prob(every(4, 5)).exp().sum().item() == pytest.approx(1, abs=1e-9)


@pytest.mark.parametrize("reach", [0, 1, 2])
def test_a_pixel_sees_those_near_and_before_it(reach):
    shape = 4, 5
    made, x = head(shape, reach), torch.rand(20, generator=source(3)).double()
    seen = torch.zeros(20, 20, dtype=torch.bool)
    plain = made(features(20, 4), x)
    for pixel in range(20):
        other = x.clone()
        other[pixel] = 0  # the grey and whether there is any
        seen[:, pixel] = (made(features(20, 4), other) != plain).any(-1)
    assert torch.equal(seen, before(shape, reach))


def test_faint_ink_is_told_from_paper():
    made, x = head((1, 2)), torch.tensor([[0.0, 0.0], [1e-9, 0.0]]).double()
    one, two = made(features(2, 4), x)[:, 1]
    assert (one - two).abs().max() > 0.1


def test_draws_are_as_frequent_as_their_probabilities():
    made, count = LocalLevels(features(2, 4), head((1, 2)), levels=3), 20_000
    many = LocalLevels(made.features.expand(count, 2, 4), made.head, levels=3)
    drawn = many.sample(generator=source(5))
    images = every(2, 3)
    found = (drawn[:, None] == images).all(-1).double().mean(0)
    p = made.log_prob(images).exp()
    assert ((found - p).abs() < 4 * (p * (1 - p) / count).sqrt() + 1e-4).all()
    assert (p > 0.01).sum() >= 4


def test_an_end_can_have_nearly_all_the_mass_and_one_grey_in_the_middle_too():
    """Four digits of five pixels are paper: what they cost must not add up."""
    made = LevelHead((1, 1), 4, components=1).double()
    with torch.no_grad():
        made.last.weight.zero_()
        for grey, centre in ((0.0, -0.1), (1.0, 1.1), (0.4, 0.4)):
            # At the narrowest scale but one half, of a bin of 1/255.
            made.last.bias.copy_(torch.tensor([0.0, centre, -20.0]).double())
            nats = -LocalLevels(features(1, 4), made).log_prob(torch.tensor([grey]).double())
            assert 784 * nats / math.log(2) < (0.001 if grey != 0.4 else 8)


def test_log_scales_are_held():
    _, _, log_scales = mixtures(torch.tensor([[0.0, 0.0, 0.0, 0.0, -1e6, 1e6]]))
    assert log_scales.tolist() == [[-8.0, 3.0]]


def test_samples_of_latents_go_in_front():
    model = level_vae((8, 8), 4, widths=(4, 6), features=5)
    x = torch.rand(3, 64).mul(255).round() / 255
    z = torch.randn(2, 3, 4, generator=source())
    both = model.decoder(z).log_prob(x)
    torch.testing.assert_close(both[1], model.decoder(z[1]).log_prob(x))
    (-both.mean()).backward()
    assert all(weight.grad.isfinite().all() for weight in model.decoder.parameters())
