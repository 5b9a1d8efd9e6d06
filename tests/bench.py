"""Time one epoch of the post's network three ways, side by side: `make bench`.

The contenders are `vae_lib.training.train`, the loop most people write (a DataLoader over a
TensorDataset, PyTorch's Adam as it comes), and a jitted JAX scan. All three train 784-500-5 on
thresholded MNIST in batches of 100. Each measurement is a process of its own; the contenders
take turns, so that a slow minute of the machine hits all of them, and only ratios are reported.
JAX is installed apart from the project; without it the third contender is left out.
"""

import os
import statistics
import subprocess
import sys
import time

import numpy as np

from tests.surroundings import ROOT, clean

ROUNDS = 5
BATCH = 100


def images():
    with np.load(ROOT / "vae_lib" / "assets" / "mnist.npz") as archive:
        return (archive["x_train"].reshape(-1, 784) >= 128).astype(np.float32)


def ours():
    import torch

    from vae_lib.data import Batches
    from vae_lib.model import dense_vae
    from vae_lib.training import train

    x = torch.from_numpy(images())
    model = dense_vae()
    train(model, Batches(x[:6000], BATCH), epochs=1)  # warm up
    start = time.perf_counter()
    train(model, Batches(x, BATCH), epochs=1)
    return time.perf_counter() - start


def usual():
    import torch
    from torch.nn import functional as F
    from torch.utils.data import DataLoader, TensorDataset

    from vae_lib.model import dense_vae

    model = dense_vae()
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-3)

    def epoch(x):
        for (batch,) in DataLoader(TensorDataset(x), batch_size=BATCH, shuffle=True):
            mean, log_std = model.encoder.network(batch)
            z = mean + log_std.exp() * torch.randn_like(mean)
            logits = model.decoder.network(z)
            distortion = F.binary_cross_entropy_with_logits(logits, batch, reduction="sum")
            rate = 0.5 * ((2 * log_std).exp() + mean**2 - 1 - 2 * log_std).sum()
            loss = (distortion + rate) / len(batch)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            loss.item()

    x = torch.from_numpy(images())
    epoch(x[:6000])  # warm up
    start = time.perf_counter()
    epoch(x)
    return time.perf_counter() - start


def jax_scan():
    import jax
    import jax.numpy as jnp

    def layer(key, inputs, outputs):
        bound = (6 / (inputs + outputs)) ** 0.5
        return jax.random.uniform(key, (inputs, outputs), minval=-bound, maxval=bound), jnp.zeros(
            outputs
        )

    def affine(parameters, x):
        return x @ parameters[0] + parameters[1]

    def loss(parameters, x, key):
        trunk, first, second, hidden, last = parameters
        features = jnp.tanh(affine(trunk, x))
        mean, log_std = affine(first, features), affine(second, features)
        z = mean + jnp.exp(log_std) * jax.random.normal(key, mean.shape)
        logits = affine(last, jnp.tanh(affine(hidden, z)))
        distortion = (jax.nn.softplus(logits) - x * logits).sum()
        rate = 0.5 * (jnp.exp(2 * log_std) + mean**2 - 1 - 2 * log_std).sum()
        return (distortion + rate) / len(x)

    def step(state, batch):
        parameters, m, v, count = state
        rows, key = batch
        gradient = jax.grad(loss)(parameters, x[rows], key)
        count = count + 1
        m = jax.tree.map(lambda a, g: 0.9 * a + 0.1 * g, m, gradient)
        v = jax.tree.map(lambda a, g: 0.999 * a + 0.001 * g**2, v, gradient)

        def moved(w, a, b):
            return w - 1e-3 * (a / (1 - 0.9**count)) / (jnp.sqrt(b / (1 - 0.999**count)) + 1e-8)

        return (jax.tree.map(moved, parameters, m, v), m, v, count), None

    @jax.jit
    def epoch(state, key):
        order, noise = jax.random.split(key)
        rows = jax.random.permutation(order, len(x)).reshape(-1, BATCH)
        return jax.lax.scan(step, state, (rows, jax.random.split(noise, len(rows))))[0]

    x = jnp.asarray(images())
    keys = jax.random.split(jax.random.key(0), 5)
    sizes = [(784, 500), (500, 5), (500, 5), (5, 500), (500, 784)]
    parameters = [layer(key, *size) for key, size in zip(keys, sizes, strict=True)]
    zeros = jax.tree.map(jnp.zeros_like, parameters)
    state = (parameters, zeros, zeros, 0.0)
    state = jax.block_until_ready(epoch(state, keys[0]))  # warm up, and compile
    start = time.perf_counter()
    jax.block_until_ready(epoch(state, keys[1]))
    return time.perf_counter() - start


CONTENDERS = {"ours": ours, "usual": usual, "jax": jax_scan}


def measure(name, python, cores):
    """Run one contender in a process of its own on so many cores."""
    environment = clean(os.environ) | {
        "OMP_NUM_THREADS": str(cores),
        "MKL_NUM_THREADS": str(cores),
        "PYTHONPATH": str(ROOT),
    }
    command = [python, "-m", "tests.bench", name, str(cores)]
    done = subprocess.run(
        command, cwd=ROOT, env=environment, check=True, capture_output=True, encoding="utf-8"
    )
    return float(done.stdout.split()[-1])


def main():
    """Take turns for a few rounds and print the ratios to ours."""
    pythons = {"ours": sys.executable, "usual": sys.executable}
    jax_python = ROOT / ".venv-jax" / "bin" / "python"
    if jax_python.exists():
        pythons["jax"] = str(jax_python)
    else:
        print("JAX is not installed in .venv-jax; `make bench` does it. Leaving it out.")
    for cores in sorted({1, len(os.sched_getaffinity(0))}):
        times = {name: [] for name in pythons}
        for _ in range(ROUNDS):
            for name, python in pythons.items():
                times[name].append(measure(name, python, cores))
        print(f"{cores} core(s), {ROUNDS} rounds, one epoch of 600 steps:")
        for name, seconds in times.items():
            ratios = [a / b for a, b in zip(seconds, times["ours"], strict=True)]
            print(
                f"  {name:6} median {statistics.median(seconds):5.2f} s, time over ours: median "
                f"{statistics.median(ratios):.2f}, from {min(ratios):.2f} to {max(ratios):.2f}"
            )


if __name__ == "__main__":
    if len(sys.argv) > 1:
        os.sched_setaffinity(0, range(int(sys.argv[2])))
        print(CONTENDERS[sys.argv[1]]())
    else:
        main()
