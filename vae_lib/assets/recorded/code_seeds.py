"""Record the code chapter's two trainings for several seeds, in code-seeds.json.

    OMP_NUM_THREADS=1 python vae_lib/assets/recorded/code_seeds.py

The post's loss is written as in the chapter; there each part of it is explained.
"""

import hashlib
import json
import os
import platform
import time
from pathlib import Path

import torch

from vae_lib.data import MNIST, Batches, binarize, load_mnist
from vae_lib.evaluation import held_out_elbo
from vae_lib.model import dense_vae
from vae_lib.objectives import elbo
from vae_lib.training import train

RECORD = Path(__file__).with_name("code-seeds.json")
SEEDS = range(5)
EPOCHS = 10
EPSILON = torch.finfo(torch.float32).eps


def post_objective(model, x, generator):
    q = model.encoder(x)
    p = model.decoder(q.rsample(generator=generator)).mean
    fit = (x * torch.log(p + EPSILON) + (1 - x) * torch.log(1 - p + EPSILON)).sum(-1)
    divergence = 0.5 * (torch.exp(2 * q.log_std) + q.mean**2 - 1 + q.log_std**2).sum(-1)
    return fit - divergence - 0.01 * sum((w**2).sum() for w in model.decoder.parameters())


VARIANTS = {"the post": (False, post_objective), "put right": (True, elbo)}


def main():
    mnist = load_mnist()
    images = binarize(mnist.train_images, "threshold")
    held_out = binarize(mnist.test_images, "threshold")
    start = time.perf_counter()
    runs = []
    for seed in SEEDS:
        for name, (shuffle, objective) in VARIANTS.items():
            model = dense_vae(seed=seed)
            batches = Batches(images, seed=seed, shuffle=shuffle)
            train(model, batches, objective, epochs=EPOCHS, seed=seed)
            score = held_out_elbo(model, held_out).elbo
            runs.append(
                {
                    "variant": name,
                    "seed": seed,
                    "elbo": round(score.mean, 3),
                    "standard_error": round(score.standard_error, 3),
                }
            )
    record = {
        "recipe": "784-500-5-500-784, MNIST by threshold, Adam 1e-3, batches of 100, 10 epochs; "
        "the post: its loss and fixed order; put right: ELBO on logits, shuffled",
        "unit": "nats per image, on the 10,000 held-out images",
        "runs": runs,
        "wall_seconds": round(time.perf_counter() - start),
        "processor": platform.processor() or platform.machine(),
        "threads": torch.get_num_threads(),
        "torch": torch.__version__,
        "sha256": {
            file.name: hashlib.sha256(file.read_bytes()).hexdigest()
            for file in (MNIST, Path(__file__))
        },
    }
    partial = RECORD.with_suffix(".partial")
    partial.write_text(json.dumps(record, indent=1) + "\n")
    os.replace(partial, RECORD)


if __name__ == "__main__":
    main()
