import math

import numpy as np
import pytest
import torch

from tests import independent
from vae_lib.autoregressive import AutoregressiveMixture, LocalBernoulli
from vae_lib.convolutional import GAIN
from vae_lib.data import Batches
from vae_lib.distributions import DiagonalGaussian
from vae_lib.evaluation import held_out_elbo, log_likelihood
from vae_lib.objectives import elbo
from vae_lib.residual import ResidualBlock, ResidualDecoder, ResidualEncoder, residual_vae
from vae_lib.training import train

SMALL = {"widths": (4, 6), "encoder_blocks": (1, 2), "decoder_blocks": (2, 1), "features": 5}


def small(shape=(8, 12), latents=3, **choices):
    return residual_vae(shape, latents, **(SMALL | {"reach": 2} | choices))


def pictures(n, pixels=96):
    return (torch.rand(n, pixels, generator=torch.Generator().manual_seed(0)) < 0.3).float()


def silu(h):
    return h / (1 + torch.exp(-h))


def test_it_is_trained_sampled_and_scored():
    model, x = small(), pictures(6)
    elbo(model, x, torch.Generator().manual_seed(0)).sum().backward()
    for name, weight in model.named_parameters():
        assert weight.grad.abs().sum() > 0, name
    drawn = model.generate(4, generator=torch.Generator().manual_seed(0))
    assert isinstance(drawn, LocalBernoulli)
    assert drawn.sample(generator=torch.Generator().manual_seed(1)).shape == (4, 96)
    assert isinstance(model.prior(), AutoregressiveMixture)
    assert held_out_elbo(model, x).elbo.values.shape == (6,)
    assert log_likelihood(model, x, samples=3).values.shape == (6,)


def test_training_raises_the_bound():
    model = small()
    history = train(model, Batches(pictures(100), 20), epochs=5, learning_rate=3e-3)
    assert history[-1] > history[0] + 5


def test_the_normal_prior_has_an_exact_rate():
    model = small(prior="normal")
    assert isinstance(model.prior(), DiagonalGaussian)
    with pytest.raises(ValueError, match='prior: expected "autoregressive" or "normal"'):
        small(prior="flow")


def test_the_same_seed_gives_the_same_weights():
    weights = small().state_dict()
    torch.manual_seed(5)
    again, other = small().state_dict(), small(seed=1).state_dict()
    assert all(torch.equal(weights[name], again[name]) for name in weights)
    drawn = [name for name in weights if name.endswith("weight")]
    assert not any(torch.equal(weights[name], other[name]) for name in drawn)


def test_a_block_adds_two_convolutions():
    block, h = ResidualBlock(3, depth=4), torch.randn(2, 3, 5, 6)
    inner = torch.conv2d(silu(h), block.first.weight, block.first.bias, padding=1)
    outer = torch.conv2d(silu(inner), block.second.weight, block.second.bias, padding=1)
    torch.testing.assert_close(block(h), h + outer)
    wide = ResidualBlock(64, 4, torch.Generator().manual_seed(0))
    assert wide.first.weight.std().item() == pytest.approx(GAIN / math.sqrt(64 * 9), rel=0.02)
    assert wide.second.weight.std().item() == pytest.approx(GAIN / math.sqrt(64 * 9) / 2, rel=0.02)


def test_the_first_latents_lie_near_the_prior_and_reach_the_decoder():
    model, x = residual_vae(), pictures(50, 784)
    q = model.encoder(x)
    assert q.log_std.abs().max() < 0.4
    assert 0.2 < q.mean.std() < 2
    weight = model.decoder.network.first.weight
    assert weight.std().item() == pytest.approx(1 / math.sqrt(40), rel=0.02)


def test_the_encoder_is_what_plain_layers_make_of_centred_pictures():
    """Without regard to how numbers lie in memory: channel by channel, as PyTorch has them."""
    encoder, x = ResidualEncoder((8, 12), (4, 6), (1, 2)), pictures(5)
    h = (2 * x - 1).view(5, 1, 8, 12)
    for step in encoder.steps:
        h = step(h.contiguous())
    assert h.shape == (5, 6, 2, 3)
    torch.testing.assert_close(encoder(x), h.permute(0, 2, 3, 1).flatten(1))
    assert len(encoder.steps) == 7


def test_a_side_is_doubled_place_by_place():
    """Each place of the last doubling gives its own four pixels and no other."""
    decoder = ResidualDecoder((8, 12), 3, (4, 6), (0, 0), 5)
    last, h = decoder.steps[-1], torch.randn(1, 4, 4, 6)
    four = last.four(silu(h[0, :, 1, 2])).view(2, 2, 5)
    out = last(h)
    assert out.shape == (1, 5, 8, 12)
    torch.testing.assert_close(out[0, :, 2:4, 4:6], four.permute(2, 0, 1))
    bent = h.clone()
    bent[0, :, 1, 2] += 1
    changed = (last(bent) != out).any(1)[0]
    assert changed.nonzero().tolist() == [[2, 4], [2, 5], [3, 4], [3, 5]]


def test_features_come_pixel_by_pixel_in_reading_order():
    decoder, z = ResidualDecoder((8, 12), 3, (4, 6), (1, 1), 5), torch.randn(2, 7, 3)
    found = decoder(z)
    assert found.shape == (2, 7, 96, 5)
    torch.testing.assert_close(found[1, 2], decoder(z[1, 2]))
    h = decoder.first(z[1, 2]).view(1, 2, 3, 6).permute(0, 3, 1, 2)
    for step in decoder.steps:
        h = step(h)
    torch.testing.assert_close(found[1, 2], h[0].flatten(1).T)


def test_it_works_in_64_bits_and_on_another_default():
    model, x = small().double(), pictures(3).double()
    assert elbo(model, x).dtype == torch.float64
    assert model.generate(2).sample().dtype == torch.float64
    with torch.device("meta"):
        made = small()
    assert {weight.device.type for weight in made.state_dict().values()} == {"cpu"}


def trained(**choices):
    """A small network in 64 bits after some steps, none of whose biases is zero any more."""
    model = small(**choices)
    train(model, Batches(pictures(100), 20), epochs=4, learning_rate=3e-3)
    return model.double()


@pytest.mark.parametrize("choices", [{}, {"latents": 1}, {"reach": 0}, {"reach": 3}], ids=str)
def test_another_implementation_gives_the_same_densities(choices):
    model, x = trained(**choices), pictures(5).double()
    w, q = independent.arrays(model), model.encoder(x)
    z = q.sample(generator=torch.Generator().manual_seed(3))
    with torch.no_grad():
        ours = [*(q.mean, q.log_std), model.decoder(z).log_prob(x), model.prior().log_prob(z)]
    x, z, shape = x.numpy(), z.numpy(), (8, 12)
    theirs = [
        *independent.encoded(x, shape, w),
        independent.log_p_of_pixels(x, z, shape, w),
        independent.log_p_of_latents(z, w),
    ]
    for one, other in zip(ours, theirs, strict=True):
        np.testing.assert_allclose(one.detach().numpy(), other, rtol=1e-10, atol=1e-10)


def test_another_estimator_agrees_within_its_errors():
    model, x = trained(), pictures(8).double()
    found = log_likelihood(model, x, samples=1000)
    theirs, errors = independent.log_likelihood(
        x.numpy(), (8, 12), independent.arrays(model), 200, np.random.default_rng(0)
    )
    error = np.hypot(found.sampling_errors.numpy(), errors)
    gap = found.values.numpy() - theirs
    assert np.abs(gap / error).max() < 4.5
    assert abs(gap.mean()) < 4 * np.sqrt((error**2).sum()) / len(x)
    assert error.mean() < 0.1


def test_what_cannot_be_is_refused():
    for shape, words in (((7, 8), "multiples of 4, got 7 x 8"), (28, "height, width"), ("28", "")):
        with pytest.raises(ValueError, match=f"shape: expected.*{words}"):
            residual_vae(shape)
    with pytest.raises(ValueError, match="latents: expected at least 1"):
        small(latents=0)
    with pytest.raises(ValueError, match="x: expected rows of 96 numbers"):
        small().encoder(torch.zeros(2, 95))
    with pytest.raises(ValueError, match="z: expected rows of 3 numbers"):
        small().decoder(torch.zeros(2, 4))
