"""Does an integer model say the same whatever it is asked at once, and wherever it runs?"""

import hashlib
import json
import os
import subprocess
import sys

import numpy as np
import pytest
import torch

from tests import matrix
from vae_lib.autoregressive import AutoregressivePrior
from vae_lib.convolutional import conv_vae
from vae_lib.exact import Affine
from vae_lib.integers import integer_model
from vae_lib.local_levels import level_vae
from vae_lib.masses import IntegerModel, scaled
from vae_lib.model import dense_vae
from vae_lib.priors import GaussianMixture
from vae_lib.residual import residual_vae


def shaken(model, seed=0, by=0.1):
    """Move all weights, so that none of them is zero and much depends on much."""
    source = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for weight in model.parameters():
            weight += by * torch.randn(weight.shape, generator=source)
    return model


def dense(prior=None):
    model = dense_vae(pixels=20, hidden=12, latents=3)
    model.prior = prior or model.prior
    return integer_model(shaken(model), (1, 4, 5))


def autoregressive():
    return AutoregressivePrior(3, 10, components=2, generator=torch.Generator().manual_seed(0))


MODELS = {
    "dense": dense,
    "mixture": lambda: dense(GaussianMixture(3, 4)),
    "autoregressive": lambda: dense(autoregressive()),
    "bits": lambda: integer_model(
        shaken(conv_vae((1, 9, 10), 3, width=4, likelihood="bits")), grid=6
    ),
    "levels": lambda: integer_model(shaken(conv_vae((3, 8, 8), 3, width=4), by=0.02)),
    "residual": lambda: integer_model(shaken(residual_vae((8, 12), 4, widths=(4, 6), features=5))),
    "local levels": lambda: integer_model(
        shaken(level_vae((8, 12), 4, widths=(4, 6), features=5, levels=16), by=0.02)
    ),
    "no reach": lambda: integer_model(
        shaken(residual_vae((8, 8), 4, widths=(4, 6), features=5, reach=0, prior="normal"))
    ),
}


@pytest.fixture(params=MODELS)
def model(request):
    return MODELS[request.param]()


def images(model, count, seed=0):
    return np.random.default_rng(seed).integers(0, model.levels, (count, model.pixels))


def cells(model, count, seed=1):
    """Cells about as wide apart as a posterior's."""
    drawn = model.cells * (0.5 + 0.06 * np.random.default_rng(seed).standard_normal((count, 3)))
    return np.resize(drawn.astype(np.int64), (count, model.latents))


def every(masses):
    """The mass of every symbol; for many symbols of some."""
    edges = np.unique(np.linspace(0, masses.symbols, 17).astype(int))
    return np.stack([masses(edge) for edge in edges])


def everything(model, x, z):
    """All that a codec asks, each in one call."""
    state = model.likelihood(z)
    asked = model.posterior(x), model.prior(z, slice(0, model.latents))
    return [every(m) for m in (*asked, model.pixel(state, x, np.arange(model.pixels)))]


def digest(arrays):
    return hashlib.sha256(b"".join(a.astype("<i8").tobytes() for a in arrays)).hexdigest()


def test_masses_are_whole_numbers_that_rise(model):
    x, z = images(model, 5), cells(model, 5)
    for found in everything(model, x, z):
        assert found.dtype == np.int64
        assert (found[0] == 0).all()
        assert (found[-1] == 2**30).all()
        assert (np.diff(found, axis=0) >= 1).all()


def test_batches_of_any_size_give_the_same(model):
    x, z = images(model, 64), cells(model, 64)
    whole = everything(model, x, z)
    for size in (1, 7, 64):
        parts = [everything(model, x[i : i + size], z[i : i + size]) for i in range(0, 64, size)]
        for number, expected in enumerate(whole):
            assert np.array_equal(np.concatenate([p[number] for p in parts], 1), expected)
    assert [found.shape[1] for found in everything(model, x[:0], z[:0])] == [0, 0, 0]


def test_block_by_block_gives_the_same_and_looks_at_no_later_one(model):
    x, z = images(model, 6), cells(model, 6)
    _, prior, pixels = everything(model, x, z)
    known = np.zeros_like(z)
    for block in model.prior_blocks:
        assert np.array_equal(every(model.prior(known, block)), prior[:, :, block])
        known[:, block] = z[:, block]
    assert np.array_equal(known, z)
    state, known = model.likelihood(z), np.ones_like(x) * (model.levels - 1)
    for block in model.pixel_blocks:
        assert np.array_equal(every(model.pixel(state, known, block)), pixels[:, :, block])
        known[:, block] = x[:, block]
    assert np.array_equal(known, x)


def test_pixels_do_depend_on_pixels_and_latents_on_latents():
    """Else the test before this one would say nothing."""
    model = MODELS["residual"]()
    x, z = images(model, 1), cells(model, 1)
    _, prior, pixels = everything(model, x, z)
    _, _, other = everything(model, 1 - x, z)
    assert (pixels[1:-1] != other[1:-1]).mean() > 0.9
    z[0, 0] += 9
    _, moved, _ = everything(model, x, z)
    assert np.array_equal(moved[..., 0], prior[..., 0])
    assert (moved[1:-1, ..., 1:] != prior[1:-1, ..., 1:]).mean() > 0.9


def test_fronts_are_few():
    model = MODELS["residual"]()
    assert len(model.pixel_blocks) == 12 + 4 * 7
    assert max(map(len, model.pixel_blocks)) == 3
    assert len(MODELS["no reach"]().pixel_blocks) == 1


def large():
    """A product so large that several threads share it, and that fractions would be rounded."""
    drawn = np.random.default_rng(0)
    weight, bias = drawn.integers(-(2**15), 2**15, (200, 900)), drawn.integers(-9, 9, 200)
    return drawn.integers(-(2**26), 2**26, (400, 900)).astype(np.float64), Affine(weight, bias, 0)


PROGRAM = """
import json, sys
import numpy as np
from tests.test_masses import IntegerModel, cells, digest, everything, images, large
found = {}
for name, description in json.load(open(sys.argv[1], encoding="utf-8")).items():
    with np.load(f"{sys.argv[2]}/{name}.npz") as arrays:
        model = IntegerModel.from_tensors(dict(arrays), description)
    found[name] = model.sha256, digest(everything(model, images(model, 20), cells(model, 20)))
x, layer = large()
found["large"] = digest([layer(x)])
print(json.dumps(found))
"""


def test_another_process_with_other_threads_and_instructions_gives_the_same(tmp_path):
    """What is stored here is read there, on the oldest instructions and with one thread and two."""
    made = {name: make() for name, make in MODELS.items()}
    expected, descriptions = {}, {}
    for name, model in made.items():
        arrays, descriptions[name] = model.tensors()
        np.savez(tmp_path / f"{name}.npz", **arrays)
        found = digest(everything(model, images(model, 20), cells(model, 20)))
        expected[name] = [model.sha256, found]
    x, layer = large()
    # NumPy multiplies whole numbers itself, without the library for floats.
    product = x.astype(np.int64) @ layer.scaled.astype(np.int64) + np.array(layer.bias)
    expected["large"] = digest([product])
    told = tmp_path / "descriptions.json"
    told.write_text(json.dumps(descriptions), encoding="utf-8")
    native = {**os.environ, "OMP_NUM_THREADS": "1"}
    for environment in (native, matrix.environment("default", 2)):
        done = subprocess.run(
            [sys.executable, "-c", PROGRAM, str(told), str(tmp_path)],
            env=environment,
            capture_output=True,
            encoding="utf-8",
            check=True,
        )
        assert json.loads(done.stdout.splitlines()[-1]) == expected


def test_what_is_stored_makes_the_same_model(model):
    arrays, description = model.tensors()
    description = json.loads(json.dumps(description))
    again = IntegerModel.from_tensors(arrays, description)
    assert again.sha256 == model.sha256
    x, z = images(model, 3), cells(model, 3)
    assert digest(everything(again, x, z)) == digest(everything(model, x, z))
    assert all(array.dtype.kind == "i" for array in arrays.values())


def test_the_digest_is_of_every_weight_and_of_the_description(model):
    arrays, description = model.tensors()
    for name in arrays:
        if arrays[name].size:
            changed = {**arrays, name: arrays[name].copy()}
            changed[name].flat[-1] ^= 1
            assert IntegerModel(changed, description).sha256 != model.sha256
    assert IntegerModel(arrays, {**description, "said": 1}).sha256 != model.sha256


def test_weights_that_might_be_inexact_are_refused(model):
    arrays, description = model.tensors()
    for name in arrays:
        kind = arrays[name].dtype
        if name.startswith("prior.") and kind == np.int64 and name.count(".") == 1:
            continue  # of no product
        if kind == np.int64:
            changed = {**arrays, name: np.full_like(arrays[name], 2**53)}
            with pytest.raises(ValueError, match=r"model: expected integers below 2\^53"):
                IntegerModel(changed, description)


@pytest.mark.parametrize(
    ("name", "places"),
    [
        ("autoregressive", [("prior", "affine", 0), ("prior", "affine", 1)]),
        ("residual", [("head", "seen"), ("decoder", -3)]),
    ],
)
def test_sums_that_might_be_inexact_are_refused(name, places):
    """Each part is below 2^53, and their sum is not."""
    arrays, description = MODELS[name]().tensors()
    description = json.loads(json.dumps(description))
    for number, place in enumerate(places):
        step = description
        for key in place:
            step = step[key]
        arrays = {**arrays, step[2]: np.full_like(arrays[step[2]], 2**52)}
        step[3] = 0
        if number == 0:
            IntegerModel(arrays, description)
    with pytest.raises(ValueError, match=r"model: expected integers below 2\^53"):
        IntegerModel(arrays, description)


def test_another_format_is_refused():
    arrays, description = dense().tensors()
    with pytest.raises(ValueError, match='description: expected one of "vae_lib integers 1"'):
        IntegerModel(arrays, {**description, "format": "other"})


def test_images_that_are_none_are_refused():
    model = dense()
    with pytest.raises(
        ValueError, match=r"images: expected integers of shape \(n, 20\), got float"
    ):
        model.posterior(np.zeros((1, 20)))
    with pytest.raises(ValueError, match="images: expected integers of shape"):
        model.posterior(np.zeros((1, 4, 5), dtype=int))
    with pytest.raises(ValueError, match="images: expected levels from 0 to 1, got 0 to 2"):
        model.posterior(np.arange(20)[None] % 3)


@pytest.mark.parametrize("name", ["plain", "latent", "level"])
def test_scales_are_what_the_model_says(name):
    raw = torch.linspace(-12, 12, 2001).double()
    expected = {
        "plain": lambda: raw.clamp(-10, 10),
        "latent": lambda: 6 * torch.tanh(raw / 6),
        "level": lambda: -2.5 + 5.5 * torch.tanh(raw / 5.5),
    }[name]()
    found = scaled(name, (raw * 4096).round().long().numpy(), 256 if name == "level" else 2)
    found = -np.log(found / 2**20 * (255 if name == "level" else 1))
    assert np.abs(found - expected.numpy()).max() < 0.02


def test_masses_do_not_depend_on_defaults_of_torch():
    network = shaken(residual_vae((8, 8), 4, widths=(4, 6), features=5))
    model = integer_model(network)
    x, z = images(model, 4), cells(model, 4)
    before = torch.get_default_dtype()
    torch.set_default_dtype(torch.float64)
    torch.set_default_device("meta")
    try:
        again = integer_model(network)
        found = digest(everything(again, x, z))
    finally:
        torch.set_default_dtype(before)
        torch.set_default_device(None)
    assert again.sha256 == model.sha256
    assert found == digest(everything(model, x, z))
