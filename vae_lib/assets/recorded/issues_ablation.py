"""Record which of the post's choices cost how much, in issues-ablation.json.

    OMP_NUM_THREADS=1 python vae_lib/assets/recorded/issues_ablation.py --seeds 0 1 --epochs 100

Two divergences x two penalties x two numbers of latents, each trained once a seed and scored
after several numbers of epochs. The record is written after every run, and a run that is in it
already is not repeated: stop at any time, and start again with the same command or other seeds.
The wrong objectives are those of the issues chapter, which explains them.
"""

import argparse
import hashlib
import itertools
import json
import multiprocessing
import os
import platform
import time
from concurrent.futures import ProcessPoolExecutor, as_completed
from functools import partial
from pathlib import Path

import torch

from vae_lib import checkpoints
from vae_lib.data import MNIST, Batches, binarize, load_mnist
from vae_lib.evaluation import held_out_elbo
from vae_lib.model import dense_vae
from vae_lib.training import train

RECORD = Path(__file__).with_name("issues-ablation.json")
MARKS = (1, 3, 10, 30, 100)
DIVERGENCES, PENALTIES, LATENTS = ("post", "right"), (0.01, 0.0), (5, 20)
# The best of the sixteen networks of a seed is kept for the chapters that need one.
SHIPPED = {"seed": 0, "divergence": "right", "penalty": 0.0, "latents": 20, "epochs": 100}


def objective(model, x, generator, *, divergence, penalty):
    """The ELBO, or the ELBO with the post's form of the divergence, its penalty, or both."""
    q = model.encoder(x)
    value = model.decoder(q.rsample(generator=generator)).log_prob(x)
    if divergence == "right":
        value = value - q.kl(model.prior())
    else:
        value = value - 0.5 * (q.std**2 + q.mean**2 - 1 + q.log_std**2).sum(-1)
    if penalty:
        value = value - penalty * sum((w**2).sum() for w in model.decoder.parameters())
    return value


def run(seed, epochs, divergence, penalty, latents):
    """Train one network and return its scores after each number of epochs."""
    torch.set_num_threads(1)
    mnist = load_mnist()
    images = binarize(mnist.train_images, "threshold")
    held_out = binarize(mnist.test_images, "threshold")
    start = time.perf_counter()
    model = dense_vae(latents=latents, seed=seed)
    scores = []

    def score(epoch):
        if epoch in MARKS:
            found = held_out_elbo(model, held_out)
            scores.append(
                {
                    "epochs": epoch,
                    "elbo": round(found.elbo.mean, 3),
                    "standard_error": round(found.elbo.standard_error, 3),
                    "rate": round(found.rate.mean, 3),
                }
            )

    train(
        model,
        Batches(images, seed=seed),
        partial(objective, divergence=divergence, penalty=penalty),
        epochs=epochs,
        seed=seed,
        after_epoch=score,
    )
    choice = {"seed": seed, "divergence": divergence, "penalty": penalty, "latents": latents}
    if {**choice, "epochs": epochs} == SHIPPED:
        found = {name: scores[-1][name] for name in ("elbo", "standard_error")}
        checkpoints.save(RECORD.with_name("issues-twenty"), model, **SHIPPED, **found)
    return {**choice, "scores": scores, "wall_seconds": round(time.perf_counter() - start)}


def sources():
    return {
        file.name: hashlib.sha256(file.read_bytes()).hexdigest() for file in (MNIST, Path(__file__))
    }


def write(runs):
    record = {
        "recipe": "784-500-latents-500-784 with tanh, MNIST by threshold, shuffled batches of "
        "100, Adam 1e-3, logits; every score is the true ELBO with one sample of z",
        "unit": "nats per image, on the 10,000 held-out images",
        "runs": sorted(
            runs, key=lambda r: (r["seed"], r["latents"], -r["penalty"], r["divergence"])
        ),
        "processor": platform.processor() or platform.machine(),
        "threads": 1,
        "torch": torch.__version__,
        "sha256": sources(),
    }
    whole = RECORD.with_suffix(".partial")
    whole.write_text(json.dumps(record, indent=1) + "\n")
    os.replace(whole, RECORD)


def main():
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--seeds", type=int, nargs="+", required=True)
    parser.add_argument("--epochs", type=int, choices=MARKS, default=MARKS[-1])
    parser.add_argument("--workers", type=int, default=2, help="processes of one thread each")
    asked = parser.parse_args()
    runs = json.loads(RECORD.read_text()) if RECORD.exists() else {"sha256": sources(), "runs": []}
    if runs["sha256"] != sources():
        raise SystemExit(f"{RECORD} was made by another script or other images: delete it first.")
    runs = runs["runs"]
    done = {(r["seed"], r["divergence"], r["penalty"], r["latents"]) for r in runs}
    with ProcessPoolExecutor(asked.workers, multiprocessing.get_context("spawn")) as pool:
        wanted = itertools.product(asked.seeds, DIVERGENCES, PENALTIES, LATENTS)
        tasks = [
            pool.submit(run, seed, asked.epochs, *choice)
            for seed, *choice in wanted
            if (seed, *choice) not in done
        ]
        for task in as_completed(tasks):
            runs.append(task.result())
            write(runs)
            print({name: value for name, value in runs[-1].items() if name != "scores"}, flush=True)


if __name__ == "__main__":
    main()
