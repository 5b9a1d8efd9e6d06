import subprocess
import sys

import pytest
import torch

from vae_lib.distributions import Bernoulli, Categorical, DiagonalGaussian, DiscretizedLogistic
from vae_lib.model import (
    VAE,
    BernoulliDecoder,
    CategoricalDecoder,
    DiscretizedLogisticDecoder,
    GaussianDecoder,
    StandardNormal,
    dense_vae,
    switched,
)
from vae_lib.networks import TwoHeads, dense


def test_the_post_network_has_its_shapes_and_counts():
    model = dense_vae()
    counts = {name: value.numel() for name, value in model.named_parameters()}
    assert sum(counts.values()) == 793_294
    assert sum(n for name, n in counts.items() if name.startswith("encoder")) == (
        784 * 500 + 500 + 2 * (500 * 5 + 5)
    )
    assert sum(n for name, n in counts.items() if name.startswith("decoder")) == (
        5 * 500 + 500 + 500 * 784 + 784
    )


def test_encoder_and_decoder_are_one_hidden_tanh_layer_each():
    model = dense_vae(pixels=6, hidden=4, latents=2)
    x = torch.linspace(0, 1, 12).view(2, 6)
    q = model.encoder(x)
    heads, layers = model.encoder.network, model.decoder.network
    features = torch.tanh(heads.trunk[0][0](x))
    torch.testing.assert_close(q.mean, heads.first(features))
    torch.testing.assert_close(q.log_std, heads.second(features))
    torch.testing.assert_close(
        model.decoder(q.mean).logits, layers[2](torch.tanh(layers[0](q.mean)))
    )


def test_the_prior_is_standard_normal():
    prior = StandardNormal(3)()
    assert torch.equal(prior.mean, torch.zeros(3))
    assert torch.equal(prior.std, torch.ones(3))


def test_generate_decodes_draws_from_the_prior():
    class Identity(torch.nn.Module):
        def forward(self, z):
            return z

    n = 50_000
    z = VAE(Identity(), StandardNormal(2), Identity()).generate(
        n, generator=torch.Generator().manual_seed(0)
    )
    assert z.shape == (n, 2)
    assert (z.mean(0).abs() < 5 / n**0.5).all()
    assert ((z.std(0) - 1).abs() < 5 / (2 * n) ** 0.5).all()


def test_a_seed_decides_all_weights():
    first, again, other = (dense_vae(seed=seed).state_dict() for seed in (0, 0, 1))
    assert all(torch.equal(first[name], again[name]) for name in first)
    assert not any(torch.equal(first[n], other[n]) for n in first if n.endswith("weight"))


def test_the_default_seed_is_zero():
    assert torch.equal(
        dense_vae().decoder.network[0].weight, dense_vae(seed=0).decoder.network[0].weight
    )


def test_a_prior_that_learned_nothing_is_not_saved():
    assert list(StandardNormal(3).state_dict()) == []


def test_precision_moves_all_three_parts():
    model = dense_vae(hidden=4).double()
    assert model.prior().mean.dtype == torch.float64
    assert model.generate(2).logits.dtype == torch.float64


def test_several_hidden_layers_are_mirrored_in_the_decoder():
    model = dense_vae(pixels=6, hidden=(5, 4), latents=2)
    shapes = [tuple(p.shape) for p in model.parameters() if p.ndim == 2]
    assert shapes == [(5, 6), (4, 5), (2, 4), (2, 4), (4, 2), (5, 4), (6, 5)]
    first = model.encoder.network.trunk
    x = torch.linspace(0, 1, 12).view(2, 6)
    features = torch.tanh(first[0][2](torch.tanh(first[0][0](x))))
    torch.testing.assert_close(model.encoder(x).mean, model.encoder.network.first(features))


@pytest.mark.parametrize("size", ["pixels", "hidden", "latents"])
def test_a_size_below_one_is_refused(size):
    with pytest.raises(ValueError, match=f"{size}: expected at least 1, got 0"):
        dense_vae(**{size: 0})
    assert dense_vae(**{"pixels": 2, "hidden": 2, "latents": 2, size: 1}) is not None


def test_hidden_layers_are_needed_and_each_has_a_width():
    with pytest.raises(ValueError, match="hidden: expected at least one width, got none"):
        dense_vae(hidden=())
    with pytest.raises(ValueError, match="hidden: expected at least 1, got -1"):
        dense_vae(hidden=(5, -1))


# -- the decoders


def test_each_decoder_reads_its_network_as_its_distribution():
    z = torch.linspace(-1, 1, 6).view(3, 2)
    network = dense(2, 4, 6)
    torch.testing.assert_close(BernoulliDecoder(network)(z).logits, network(z))
    assert isinstance(BernoulliDecoder(network)(z), Bernoulli)

    gaussian = GaussianDecoder(network, std=0.3)(z)
    assert isinstance(gaussian, DiagonalGaussian)
    torch.testing.assert_close(gaussian.mean, network(z))
    torch.testing.assert_close(gaussian.std, torch.full((3, 6), 0.3))

    levels = CategoricalDecoder(network, levels=3)(z)
    assert isinstance(levels, Categorical)
    torch.testing.assert_close(levels.logits, network(z).view(3, 2, 3))

    heads = TwoHeads(dense(2, 4), 4, 6)
    logistic = DiscretizedLogisticDecoder(heads, levels=16)(z)
    assert isinstance(logistic, DiscretizedLogistic)
    assert logistic.levels == 16
    torch.testing.assert_close(logistic.location, heads(z)[0])
    torch.testing.assert_close(logistic.log_scale, heads(z)[1])
    assert DiscretizedLogisticDecoder(heads)(z).levels == 256


def test_a_gaussian_decoder_learns_its_spread_unless_told_otherwise():
    z, x = torch.zeros(3, 2), torch.full((3, 6), 5.0)
    learned, fixed = (GaussianDecoder(dense(2, 6), std) for std in (None, 2.0))
    assert learned(z).std.unique().tolist() == [1.0]
    for decoder in (learned, fixed):
        decoder(z).log_prob(x).sum().backward()
    assert learned.log_std.grad > 0
    assert fixed.log_std.grad is None
    assert "log_std" in fixed.state_dict()


@pytest.mark.parametrize("std", [0.0, -1.0, float("nan")])
def test_a_spread_that_cannot_be_is_refused(std):
    with pytest.raises(ValueError, match="std: expected a number above zero"):
        GaussianDecoder(dense(2, 6), std)


IMPORTED = """
import sys, time
start = time.process_time(); import torch
then = time.process_time(); import vae_lib
print((time.process_time() - then) / (then - start), "matplotlib" in sys.modules)
"""


def test_importing_the_library_takes_little_more_than_importing_torch():
    command = [sys.executable, "-c", IMPORTED]
    share, drawing = subprocess.check_output(command, encoding="utf-8").split()
    assert float(share) < 0.25
    assert drawing == "False"


# -- modes


def parts():
    """A model with one part in evaluation mode, as someone may have frozen it."""
    model = torch.nn.Sequential(torch.nn.Dropout(), torch.nn.Sequential(torch.nn.Dropout()))
    model.train()
    model[1].eval()
    return model


@pytest.mark.parametrize("training", [True, False])
def test_a_switched_model_comes_back_part_by_part(training):
    model = parts()
    before = [module.training for module in model.modules()]
    assert len(set(before)) == 2
    with switched(model, training=training):
        assert {module.training for module in model.modules()} == {training}
    assert [module.training for module in model.modules()] == before
    with pytest.raises(ZeroDivisionError), switched(model, training=training):
        raise ZeroDivisionError
    assert [module.training for module in model.modules()] == before


def test_what_is_no_module_has_no_mode():
    with switched(object(), training=False):
        pass


def test_generating_keeps_the_mode_of_the_model():
    model = VAE(torch.nn.Identity(), StandardNormal(2), BernoulliDecoder(torch.nn.Dropout(0.5)))
    dropped = model.generate(100, generator=torch.Generator().manual_seed(0)).logits == 0
    assert dropped.float().mean() > 0.3
    model.eval()
    assert not (model.generate(100, generator=torch.Generator().manual_seed(0)).logits == 0).any()
