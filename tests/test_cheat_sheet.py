"""The page of the cheat sheet: its loop runs, and its numbers are what they say."""

import math
import re

import pytest
import torch
from torch.nn.functional import binary_cross_entropy_with_logits

from tests.test_chapters import ROOT
from vae_lib.data import seeded
from vae_lib.distributions import DiagonalGaussian
from vae_lib.model import dense_vae

PAGE = (ROOT / "book" / "cheat-sheet.md").read_text(encoding="utf-8")
LOOP = re.search(r"```python\n(.*?)```", PAGE, re.DOTALL)[1]


def run(learning_rate):
    """Run the page's loop on a small network; return the network and the names that it sets."""
    model = dense_vae(pixels=20, hidden=30, latents=3)
    pixels = torch.rand(250, 20, generator=seeded(0, stream="cheat sheet")).round()

    def encode(x):
        q = model.encoder(x)
        return q.mean, q.log_std

    names = {
        "torch": torch,
        "binary_cross_entropy_with_logits": binary_cross_entropy_with_logits,
        "images": pixels,
        "encode": encode,
        "decode": model.decoder.network,
        "optimizer": torch.optim.Adam(model.parameters(), lr=learning_rate),
    }
    with torch.random.fork_rng():
        torch.manual_seed(0)
        exec(LOOP, names)
    return model, names


def test_the_loss_of_the_loop_is_minus_the_bound():
    model, names = run(learning_rate=0.0)
    q = DiagonalGaussian(names["mu"], names["log_sigma"])
    torch.testing.assert_close(names["kl"], q.kl(model.prior()))
    torch.testing.assert_close(names["surprise"], -model.decoder(names["z"]).log_prob(names["x"]))
    assert names["loss"].item() == pytest.approx((names["kl"] + names["surprise"]).mean().item())
    assert names["epoch"] == 9


def test_the_loop_learns():
    still, moved = run(learning_rate=0.0)[1], run(learning_rate=1e-2)[1]
    assert moved["loss"] < 0.95 * still["loss"]


def test_the_constants_are_right():
    for number in (1 / math.log(2), 784 * math.log(2), math.log(10)):
        assert f"\\approx {number:.2f}$" in PAGE
