import subprocess
import sys
import time

import pytest
import torch

from vae_lib.model import VAE, StandardNormal, dense_vae


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


def test_precision_moves_all_three_parts():
    model = dense_vae(hidden=4).double()
    assert model.prior().mean.dtype == torch.float64
    assert model.generate(2).logits.dtype == torch.float64


@pytest.mark.parametrize("size", ["pixels", "hidden", "latents"])
def test_a_size_below_one_is_refused(size):
    with pytest.raises(ValueError, match=f"{size}: expected at least 1, got 0"):
        dense_vae(**{size: 0})


def test_importing_the_library_takes_little_more_than_importing_torch():
    def seconds(modules):
        start = time.perf_counter()
        subprocess.run([sys.executable, "-c", f"import {modules}"], check=True)
        return time.perf_counter() - start

    pairs = [(seconds("torch"), seconds("torch, vae_lib")) for _ in range(3)]
    assert min(ours / torchs for torchs, ours in pairs) < 1.25


def test_importing_the_library_leaves_matplotlib_alone():
    code = "import sys, vae_lib; sys.exit('matplotlib' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
