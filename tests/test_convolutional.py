import math

import pytest
import torch

from vae_lib.convolutional import (
    GAIN,
    LOG_SCALES,
    ConvDecoder,
    ConvEncoder,
    conv_vae,
    feature_shapes,
)
from vae_lib.data import Batches, quantize
from vae_lib.distributions import Bernoulli, DiagonalGaussian, DiscretizedLogistic
from vae_lib.evaluation import held_out_elbo, log_likelihood
from vae_lib.objectives import elbo
from vae_lib.training import train

# Channels, height and width; odd ones, oblong ones, the least and the most.
SHAPES = [(1, 8, 8), (3, 9, 9), (1, 28, 28), (4, 31, 33), (3, 64, 20), (1, 8, 128), (3, 128, 128)]
GIVEN = {"levels": DiscretizedLogistic, "bits": Bernoulli, "gaussian": DiagonalGaussian}


def small(likelihood="levels", shape=(3, 9, 12), latents=5, seed=0):
    return conv_vae(shape, latents, width=4, likelihood=likelihood, seed=seed)


def pictures(n, shape=(3, 9, 12), levels=256):
    """Draw pictures of one grey each, with a darker left half."""
    generator = torch.Generator().manual_seed(0)
    grey = torch.randint(64, 256, (n, 1, 1, 1), generator=generator).expand(n, *shape).clone()
    grey[..., : shape[-1] // 2] -= 64
    return quantize(grey.flatten(1).byte(), levels)


@pytest.mark.parametrize("shape", SHAPES)
def test_rows_of_every_size_go_down_and_come_back(shape):
    model, pixels = conv_vae(shape, 7, width=4), math.prod(shape)
    q = model.encoder(torch.zeros(2, pixels))
    assert q.mean.shape == q.std.shape == (2, 7)
    assert model.decoder(q.mean).location.shape == (2, pixels)
    assert max(feature_shapes(shape, 4)[-1][1:]) <= 4


def watched_steps(network):
    """Note the shape of what goes into a network's first step, and of what each gives."""
    seen = []
    network.steps[0].register_forward_pre_hook(lambda step, given: seen.append(given[0].shape[1:]))
    for step in network.steps:
        step.register_forward_hook(lambda step, given, out: seen.append(out.shape[1:]))
    return seen


@pytest.mark.parametrize("shape", SHAPES)
def test_the_decoder_mirrors_the_encoder(shape):
    down, up = ConvEncoder(shape, 2), ConvDecoder(shape, 3, 2)
    went_down, went_up = watched_steps(down), watched_steps(up)
    down(torch.zeros(1, math.prod(shape)))
    up(torch.zeros(1, 3))
    assert went_up == went_down[::-1]
    assert went_down == feature_shapes(shape, 2)


def test_a_short_side_is_left_alone_while_the_long_one_is_halved():
    assert feature_shapes((1, 8, 31), 2) == [(1, 8, 31), (2, 4, 16), (4, 4, 8), (8, 4, 4)]
    assert [channels for channels, *_ in feature_shapes((3, 128, 128), 8)] == [3, 8, 16, 32, 32, 32]


@pytest.mark.parametrize("likelihood", GIVEN)
def test_each_likelihood_is_trained_sampled_and_scored(likelihood):
    model = small(likelihood)
    x = pictures(6, levels=2 if likelihood == "bits" else 256)
    elbo(model, x, torch.Generator().manual_seed(0)).sum().backward()
    for name, weight in model.named_parameters():
        assert weight.grad.abs().sum() > 0, name
    drawn = model.generate(4, generator=torch.Generator().manual_seed(0))
    assert isinstance(drawn, GIVEN[likelihood])
    assert drawn.sample(generator=torch.Generator().manual_seed(1)).shape == (4, 3 * 9 * 12)
    assert held_out_elbo(model, x).elbo.values.shape == (6,)
    assert log_likelihood(model, x, samples=3).values.shape == (6,)


def test_the_same_seed_gives_the_same_weights():
    weights = small().state_dict()
    torch.manual_seed(5)
    again, other = small().state_dict(), small(seed=1).state_dict()
    assert all(torch.equal(weights[name], again[name]) for name in weights)
    drawn = [name for name in weights if name.endswith("weight")]
    assert len(drawn) == 7
    assert not any(torch.equal(weights[name], other[name]) for name in drawn)


def test_the_probabilities_of_the_levels_sum_to_one():
    """For one pixel of each channel, at latents near and far; the others are held."""
    model = small()
    for scale in (1, 100):
        given = model.decoder(scale * torch.ones(1, 5))
        levels = torch.arange(256).double() / 255
        for pixel in (0, 3 * 9 * 12 - 1):
            alone = DiscretizedLogistic(
                given.location[:, pixel : pixel + 1].double(),
                given.log_scale[:, pixel : pixel + 1].double(),
            )
            total = alone.log_prob(levels.unsqueeze(-1)).exp().sum()
            assert total.item() == pytest.approx(1, abs=1e-9)


@pytest.mark.parametrize("sign", [-1, 1])
def test_log_scales_are_held_however_far_the_network_goes(sign):
    model = small()
    with torch.no_grad():
        model.decoder.network.network.steps[-1].convolution.bias[3:] = sign * 1e6
    log_scale = model.decoder(torch.zeros(1, 5)).log_scale
    assert log_scale.unique().tolist() == [-8 if sign < 0 else 3]


def test_the_limits_of_the_log_scale_are_what_their_comment_says():
    low, high = LOG_SCALES
    grey = torch.tensor([100 / 255])
    narrow = DiscretizedLogistic(grey, torch.tensor([low]))
    assert narrow.log_prob(grey).exp().item() == pytest.approx(0.99, abs=0.005)
    assert math.pi / math.sqrt(3) * math.exp(high) > 30
    assert math.pi / math.sqrt(3) * math.exp((low + high) / 2) == pytest.approx(0.15, abs=0.002)


def test_weights_make_up_for_what_the_nonlinearity_shortens():
    """The mean square of a SiLU of normal numbers, and the spread of weights that undoes it."""
    x = torch.linspace(-10, 10, 20_001, dtype=torch.float64)
    density = torch.exp(-0.5 * x**2) / math.sqrt(2 * math.pi)
    square = (torch.nn.functional.silu(x) ** 2 * density).sum() * 1e-3
    assert abs(GAIN**-2 - square.item()) < 5e-4
    generator = torch.Generator().manual_seed(0)
    down, up = ConvEncoder((3, 16, 8), 64, generator), ConvDecoder((3, 16, 8), 5, 64, 1, generator)
    # Down: 3 x 3 pixels of 64 channels. Up: of 4 weights (of 3, where a side stays) 2 (3) meet.
    for layer, inputs in ((down.steps[1], 64 * 9), (up.steps[0], 128 * 2 * 3)):
        spread = layer.convolution.weight.std().item()
        assert spread == pytest.approx(GAIN / math.sqrt(inputs), rel=0.01)


def test_the_way_up_draws_no_checkerboard():
    """With weights that are all the same, an even picture stays even, away from its border."""
    step = ConvDecoder((1, 16, 8), 5, 2).steps[0]
    with torch.no_grad():
        step.convolution.weight.fill_(1)
        inner = step(torch.ones(1, 4, 4, 4))[..., 1:-1, 1:-1]
    assert inner.shape == (1, 2, 6, 2)
    assert inner.unique().numel() == 1


def test_channels_and_rows_are_where_an_image_has_them():
    """The last bias of each channel moves that channel's third of the row."""
    decoder = ConvDecoder((3, 9, 12), 5, 4, outputs=2)
    with torch.no_grad():
        for weight in decoder.parameters():
            weight.zero_()
        decoder.steps[-1].convolution.bias.copy_(torch.arange(6.0))
    given = decoder(torch.zeros(5)).view(6, 9 * 12)
    assert torch.equal(given, torch.arange(6.0).unsqueeze(1).expand(6, 9 * 12))


def test_draws_have_an_axis_of_their_own():
    model = small()
    z = torch.randn(3, 6, 5, generator=torch.Generator().manual_seed(0))
    whole, parts = model.decoder(z), [model.decoder(one) for one in z]
    assert whole.location.shape == (3, 6, 3 * 9 * 12)
    torch.testing.assert_close(whole.location, torch.stack([part.location for part in parts]))
    torch.testing.assert_close(whole.log_scale, torch.stack([part.log_scale for part in parts]))
    x = pictures(6).view(2, 3, -1)
    torch.testing.assert_close(model.encoder(x).mean[1], model.encoder(x[1]).mean)
    assert model.encoder(x[0, 0]).mean.shape == (5,)
    assert model.decoder(z[:, :0]).location.shape == (3, 0, 3 * 9 * 12)


@pytest.mark.parametrize("likelihood", GIVEN)
def test_thirty_steps_raise_the_elbo(likelihood):
    model = small(likelihood)
    batches = Batches(pictures(20, levels=2 if likelihood == "bits" else 256), batch_size=20)
    objectives = train(model, batches, epochs=30, learning_rate=1e-2, clip=1000)
    assert objectives[-1] > objectives[0] + 20


def test_both_precisions_and_autocast_work():
    x = pictures(2)
    assert small().double().encoder(x.double()).mean.dtype == torch.float64
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert small().decoder(torch.zeros(2, 5)).location.isfinite().all()


@pytest.mark.parametrize(
    "shape", [(3, 7, 32), (3, 32, 129), (0, 32, 32), (5, 32, 32), (32, 32), "3x8x8", 32, None]
)
def test_pictures_that_no_network_is_made_for_are_refused(shape):
    with pytest.raises(ValueError, match=r"shape: expected .*, got "):
        conv_vae(shape)


def test_other_wrong_arguments_are_refused():
    with pytest.raises(ValueError, match=r"shape: expected a whole number, got 32\.0"):
        conv_vae((3, 32.0, 32))
    with pytest.raises(ValueError, match="latents: expected at least 1, got 0"):
        conv_vae((3, 32, 32), 0)
    with pytest.raises(ValueError, match="width: expected at least 1, got 0"):
        conv_vae((3, 32, 32), width=0)
    with pytest.raises(ValueError, match=r"likelihood: expected one of .levels., .* got .grey."):
        conv_vae((3, 32, 32), likelihood="grey")


@pytest.mark.parametrize("shape", [(2, 3, 9, 12), (2, 323), ()])
def test_rows_of_another_length_are_refused(shape):
    with pytest.raises(ValueError, match=r"x: expected rows of 324 numbers, got shape .*x.flatten"):
        small().encoder(torch.zeros(shape))
    with pytest.raises(ValueError, match="z: expected rows of 5 numbers, got shape"):
        small().decoder(torch.zeros(shape))


@pytest.mark.parametrize("dtype", [torch.uint8, torch.int64, torch.float64, torch.bfloat16])
def test_rows_of_another_type_are_refused(dtype):
    with pytest.raises(ValueError, match=rf"x: expected torch.float32, .* got {dtype}.*quantize"):
        small().encoder(torch.zeros(2, 324, dtype=dtype))
    with pytest.raises(ValueError, match=rf"z: expected torch.float32, .* got {dtype}"):
        small().decoder(torch.zeros(2, 5, dtype=dtype))


def test_it_is_made_on_the_cpu_whatever_the_default_device():
    with torch.device("meta"):
        other = conv_vae((1, 8, 8), 2, width=4)
    pairs = zip(other.parameters(), conv_vae((1, 8, 8), 2, width=4).parameters(), strict=True)
    assert all(torch.equal(one, same) for one, same in pairs)
