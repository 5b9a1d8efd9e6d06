"""What `make bench` times in JAX: one compiled scan over the steps of an epoch."""

import json
import sys
from itertools import pairwise

import jax
import jax.numpy as jnp
from jax import lax

from tests.bench import Workload, serve, thresholded

WIDTH = 16  # as the network in PyTorch has it
LATENTS = {"dense": 5, "convolutional": 64}
PICTURES = ("NHWC", "HWIO", "NHWC")


def uniform(key, shape, bound):
    """Return weights between two bounds and zero biases."""
    return jax.random.uniform(key, shape, minval=-bound, maxval=bound), jnp.zeros(shape[-1])


def linear(key, inputs, outputs):
    return uniform(key, (inputs, outputs), (6 / (inputs + outputs)) ** 0.5)


def kernel(key, side, inputs, outputs, reached):
    return uniform(key, (side, side, inputs, outputs), (3 / 0.356 / reached) ** 0.5)


def affine(layer, x):
    return x @ layer[0] + layer[1]


def down(layer, h):
    """Halve the sides, rounding up."""
    weight, bias = layer
    padding = [(1, 1), (1, 1)]
    return lax.conv_general_dilated(h, weight, (2, 2), padding, dimension_numbers=PICTURES) + bias


def up(layer, h, side):
    """Double the sides by a transposed convolution, and keep so much of them."""
    weight, bias = layer
    padding, twice = [(2, 2), (2, 2)], (2, 2)
    h = lax.conv_general_dilated(
        h, weight, (1, 1), padding, lhs_dilation=twice, dimension_numbers=PICTURES
    )
    return h[:, :side, :side] + bias


def dense_parameters(keys):
    sizes = {"trunk": (784, 500), "first": (500, 5), "second": (500, 5)}
    sizes |= {"hidden": (5, 500), "last": (500, 784)}
    return {
        name: linear(key, *size) for key, (name, size) in zip(keys, sizes.items(), strict=False)
    }


def dense_encoder(parameters, x):
    features = jnp.tanh(affine(parameters["trunk"], x))
    return affine(parameters["first"], features), affine(parameters["second"], features)


def dense_decoder(parameters, z):
    return affine(parameters["last"], jnp.tanh(affine(parameters["hidden"], z)))


def convolutional_parameters(keys):
    channels = [1, WIDTH, 2 * WIDTH, 4 * WIDTH]
    steps = list(pairwise(channels))
    features, keys = 16 * channels[-1], iter(keys)
    return {
        "down": [kernel(next(keys), 3, a, b, 9 * a) for a, b in steps],
        "first": linear(next(keys), features, 64),
        "second": linear(next(keys), features, 64),
        "start": linear(next(keys), 64, features),
        "up": [kernel(next(keys), 4, b, a, 4 * b) for a, b in reversed(steps)],
    }


def convolutional_encoder(parameters, x):
    h = (2 * x - 1).reshape(-1, 28, 28, 1)
    for layer in parameters["down"]:
        h = jax.nn.silu(down(layer, h))
    h = h.reshape(len(x), -1)
    return affine(parameters["first"], h), affine(parameters["second"], h)


def convolutional_decoder(parameters, z):
    h = affine(parameters["start"], z).reshape(len(z), 4, 4, -1)
    for layer, side in zip(parameters["up"], (7, 14, 28), strict=True):
        h = up(layer, jax.nn.silu(h), side)
    return h.reshape(len(z), -1)


NETWORKS = {
    "dense": (dense_parameters, dense_encoder, dense_decoder),
    "convolutional": (convolutional_parameters, convolutional_encoder, convolutional_decoder),
}


def training(workload):
    """Prepare a training, and return its round."""
    make, encoder, decoder = NETWORKS[workload.network]
    images = jnp.asarray(thresholded(workload.images))

    def loss(parameters, x, key):
        mean, log_std = encoder(parameters, x)
        z = mean + jnp.exp(log_std) * jax.random.normal(key, mean.shape)
        logits = decoder(parameters, z)
        distortion = (jax.nn.softplus(logits) - x * logits).sum()
        rate = 0.5 * (jnp.exp(2 * log_std) + mean**2 - 1 - 2 * log_std).sum()
        return (distortion + rate) / len(x)

    def step(state, batch):
        parameters, m, v, count = state
        rows, key = batch
        value, gradient = jax.value_and_grad(loss)(parameters, images[rows], key)
        count = count + 1
        m = jax.tree.map(lambda a, g: 0.9 * a + 0.1 * g, m, gradient)
        v = jax.tree.map(lambda a, g: 0.999 * a + 0.001 * g**2, v, gradient)

        def moved(w, a, b):
            return w - 1e-3 * (a / (1 - 0.9**count)) / (jnp.sqrt(b / (1 - 0.999**count)) + 1e-8)

        return (jax.tree.map(moved, parameters, m, v), m, v, count), value

    @jax.jit
    def epoch(state, key):
        order, noise = jax.random.split(key)
        rows = jax.random.permutation(order, len(images)).reshape(-1, workload.batch)
        state, values = lax.scan(step, state, (rows, jax.random.split(noise, len(rows))))
        return state, values.mean()

    key, *keys = jax.random.split(jax.random.key(0), 20)
    parameters = make(keys)
    parameters["second"] = jax.tree.map(jnp.zeros_like, parameters["second"])
    zeros = jax.tree.map(jnp.zeros_like, parameters)
    now = {"state": (parameters, zeros, zeros, 0.0), "key": key}

    def a_round(watch):
        now["key"], own = jax.random.split(now["key"])
        with watch:
            now["state"], value = jax.block_until_ready(epoch(now["state"], own))
        return -float(value)

    return a_round


if __name__ == "__main__":
    serve(training(Workload(**json.loads(sys.argv[1]))))
