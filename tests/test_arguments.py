"""What is not of the type that an argument needs is refused by the argument's name."""

import numpy as np
import pytest
import torch
from PIL import Image
from torch.utils.data import DataLoader, TensorDataset

from vae_lib import checkpoints, figures
from vae_lib.arguments import kind, real, source, tensor, whole
from vae_lib.data import Batches, binarize, hold_out, quantize, seeded
from vae_lib.distributions import Bernoulli, Categorical, DiagonalGaussian, DiscretizedLogistic
from vae_lib.evaluation import Estimate, active_units, held_out_elbo, log_likelihood
from vae_lib.losses import implied_weights
from vae_lib.model import GaussianDecoder, dense_vae
from vae_lib.networks import dense, linear
from vae_lib.objectives import beta_elbo, dreg, elbo, iwae, log_weights
from vae_lib.training import train

BYTES = torch.zeros(6, 784, dtype=torch.uint8)
X = torch.zeros(6, 784)
VAE = dense_vae(hidden=2)
BATCHES = Batches(X, batch_size=3)
NO_TENSORS = {
    "numpy": X.numpy(),
    "list": X.tolist(),
    "picture": Image.new("L", (28, 28)),
    "loader": DataLoader(TensorDataset(X)),
    "nothing": None,
    "number": 0.5,
}
TAKE_TENSORS = {
    "images: binarize": lambda x: binarize(x, "threshold"),
    "images: quantize": lambda x: quantize(x, 16),
    "images: hold_out": lambda x: hold_out(x, 2),
    "images: Batches": Batches,
    "images: held_out_elbo": lambda x: held_out_elbo(VAE, x),
    "images: log_likelihood": lambda x: log_likelihood(VAE, x, samples=2),
    "images: active_units": lambda x: active_units(VAE, x),
    "values: Estimate": Estimate,
    "x: encoder": VAE.encoder,
    "x: elbo": lambda x: elbo(VAE, x),
    "x: decoder": VAE.decoder,
    "x: Bernoulli.log_prob": Bernoulli(X).log_prob,
    "x: Categorical.log_prob": Categorical(torch.zeros(784, 4)).log_prob,
    "z: DiagonalGaussian.log_prob": DiagonalGaussian(X, X).log_prob,
    "logits: Bernoulli": Bernoulli,
    "logits: Categorical": Categorical,
    "mean: DiagonalGaussian": lambda x: DiagonalGaussian(x, X),
    "log_std: DiagonalGaussian": lambda x: DiagonalGaussian(X, x),
    "location: DiscretizedLogistic": lambda x: DiscretizedLogistic(x, X),
}
TAKE_WHOLE_NUMBERS = {
    "epochs: train": lambda n: train(dense_vae(hidden=2), BATCHES, epochs=n),
    "batch_size: Batches": lambda n: Batches(X, batch_size=n),
    "seed: Batches": lambda n: Batches(X, seed=n),
    "seed: seeded": lambda n: seeded(n, stream="test"),
    "epoch: seeded": lambda n: seeded(0, n, stream="test"),
    "levels: quantize": lambda n: quantize(BYTES, n),
    "levels: DiscretizedLogistic": lambda n: DiscretizedLogistic(X, X, n),
    "count: hold_out": lambda n: hold_out(X, n),
    "hidden: dense_vae": lambda n: dense_vae(hidden=n),
    "hidden: dense_vae, several": lambda n: dense_vae(hidden=[3, n]),
    "latents: dense_vae": lambda n: dense_vae(latents=n),
    "pixels: dense_vae": lambda n: dense_vae(pixels=n),
    "seed: dense_vae": lambda n: dense_vae(seed=n),
    "inputs: linear": lambda n: linear(n, 2),
    "outputs: dense": lambda n: dense(2, n),
    "samples: log_likelihood": lambda n: log_likelihood(VAE, X, samples=n),
    "batch_size: log_likelihood": lambda n: log_likelihood(VAE, X, samples=2, batch_size=n),
    "batch_size: held_out_elbo": lambda n: held_out_elbo(VAE, X, batch_size=n),
    "batch_size: active_units": lambda n: active_units(VAE, X, batch_size=n),
    "samples: iwae": lambda n: iwae(VAE, X, samples=n),
    "samples: dreg": lambda n: dreg(VAE, X, samples=n),
    "at_once: log_weights": lambda n: log_weights(VAE, X, 2, at_once=n),
    "samples: rsample": DiagonalGaussian(X, X).rsample,
    "pixels: implied_weights": lambda n: implied_weights(pixels=n, latents=2),
}
TAKE_NUMBERS = {
    "learning_rate: train": lambda v: train(
        dense_vae(hidden=2), BATCHES, epochs=1, learning_rate=v
    ),
    "clip: train": lambda v: train(dense_vae(hidden=2), BATCHES, epochs=1, clip=v),
    "average: train": lambda v: train(dense_vae(hidden=2), BATCHES, epochs=1, average=v),
    "beta: beta_elbo": lambda v: beta_elbo(VAE, X, beta=v),
    "std: GaussianDecoder": lambda v: GaussianDecoder(dense(2, 3), v),
    "divergence_weight: implied_weights": lambda v: implied_weights(
        pixels=2, latents=2, divergence_weight=v
    ),
}
TAKE_GENERATORS = {
    "binarize": lambda g: binarize(BYTES, "dynamic", generator=g),
    "elbo": lambda g: elbo(VAE, X, g),
    "iwae": lambda g: iwae(VAE, X, g, samples=2),
    "DiagonalGaussian": lambda g: DiagonalGaussian(X, X).sample(generator=g),
    "Bernoulli": lambda g: Bernoulli(X).sample(generator=g),
    "dense": lambda g: dense(2, 3, generator=g),
}
OTHERS = {
    "batches: expected vae_lib.data.Batches": lambda: train(VAE, X, epochs=1),
    "batches: expected vae_lib.data.Batches, got DataLoader": lambda: train(
        VAE, NO_TENSORS["loader"], epochs=1
    ),
    "model: expected a torch.nn.Module, got function": lambda: train(dense_vae, BATCHES, epochs=1),
    "objective: expected a callable": lambda: train(VAE, BATCHES, "elbo", epochs=1),
    "path: expected a path": lambda: checkpoints.load(VAE, "model"),
    "path: expected a path, got NoneType": lambda: checkpoints.save(None, VAE),
}


def each(cases):
    return pytest.mark.parametrize(("name", "call"), cases.items(), ids=list(cases))


@pytest.mark.parametrize("value", NO_TENSORS.values(), ids=list(NO_TENSORS))
@each(TAKE_TENSORS)
def test_what_is_no_tensor_is_refused_by_name(name, call, value):
    expected = f"^{name.partition(':')[0]}: expected a torch.Tensor, got "
    with pytest.raises(ValueError, match=expected):
        call(value)


@pytest.mark.parametrize("value", [1.5, 2.0, "2", np.ones(2), [2]], ids=repr)
@each(TAKE_WHOLE_NUMBERS)
def test_what_is_no_whole_number_is_refused_by_name(name, call, value):
    if name == "hidden: dense_vae" and not isinstance(value, float | str):
        value = ["2"]  # several widths are meant there
    with pytest.raises(ValueError, match=rf"^{name.partition(':')[0]}: expected a whole number"):
        call(value)


@each(TAKE_WHOLE_NUMBERS)
def test_whole_numbers_of_other_libraries_are_taken(name, call):
    call(np.int64(2))


@pytest.mark.parametrize("value", ["0.1", [0.1], np.zeros(1)], ids=repr)
@each(TAKE_NUMBERS)
def test_what_is_no_number_is_refused_by_name(name, call, value):
    with pytest.raises(ValueError, match=rf"^{name.partition(':')[0]}: expected a number, got "):
        call(value)


@each(TAKE_NUMBERS)
def test_numbers_of_other_libraries_are_taken(name, call):
    call(np.float64(0.5))


@pytest.mark.parametrize("value", [0, "0", np.random.default_rng(0)], ids=["int", "str", "numpy"])
@each(TAKE_GENERATORS)
def test_what_is_no_generator_is_refused(name, call, value):
    with pytest.raises(ValueError, match=r"^generator: expected a torch.Generator or None"):
        call(value)


@each(OTHERS)
def test_arguments_of_other_kinds(name, call):
    with pytest.raises(ValueError, match=f"^{name}"):
        call()


def test_figures_take_arrays_lists_and_pictures():
    pictures = [Image.new("L", (28, 28))]
    for images in (X, X.numpy(), X.tolist(), pictures):
        assert figures.image_sheet(images).axes


def test_a_refusal_says_what_to_do():
    for value, how in {
        "numpy": "got numpy.ndarray. Convert it with torch.from_numpy.",
        "list": "got list. Convert it with torch.tensor.",
        "picture": "Convert it with torch.from_numpy(numpy.array(picture)).",
        "loader": "Give the images themselves, not what delivers them.",
        "nothing": "got NoneType.",
    }.items():
        with pytest.raises(ValueError, match=r"^images: ") as refused:
            tensor("images", NO_TENSORS[value])
        assert str(refused.value).endswith(how)


def test_what_fits_is_returned():
    generator = torch.Generator()
    assert tensor("x", X) is X
    assert whole("n", torch.tensor(3)) == 3
    assert whole("n", -3, None) == -3
    assert real("v", 0.5) == 0.5
    assert source(generator) is generator
    assert source(None) is None
    assert kind(X) == "torch.Tensor"
