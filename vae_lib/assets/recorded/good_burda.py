"""Record the networks of Burda, Grosse and Salakhutdinov (2016), in good-burda.json.

    OMP_NUM_THREADS=1 python vae_lib/assets/recorded/good_burda.py --samples 1
    OMP_NUM_THREADS=1 python vae_lib/assets/recorded/good_burda.py --samples 50

Their network and data: 784-200-200-50-200-200-784 with tanh, images binarised anew at each
showing, batches of 20, Adam, eight stages of falling step size, and 5,000 samples an image to
score all 10,000 test images. Ours is the number of epochs, what two processor cores do in two
hours; their stages grow threefold, to 3,280 in all. With one sample the objective is the ELBO,
with k it is the importance-weighted bound of k.

The state is kept in outputs/ after every stage: stop at any time, and start again with the
same command. The record is written at the end.
"""

import argparse
import hashlib
import json
import os
import platform
import time
from functools import partial
from pathlib import Path

import torch
from safetensors.torch import save_file

from vae_lib import checkpoints
from vae_lib.data import MNIST, Batches, binarize, hold_out, load_mnist, seeded
from vae_lib.evaluation import held_out_elbo, log_likelihood
from vae_lib.model import dense_vae
from vae_lib.objectives import elbo, iwae
from vae_lib.training import train

RECORD = Path(__file__).with_name("good-burda.json")
NAMES = {1: "good-vae", 50: "good-iwae"}
STAGES = 8
EPOCHS = {1: (100,) * 3 + (40,) * 5, 50: (14,) * 3 + (8,) * 5}  # stage by stage


def network(images):
    """Their network; the decoder starts from the mean image, as theirs does."""
    model = dense_vae(hidden=(200, 200), latents=50, seed=0)
    mean = (images.float().mean(0) / 255).clamp(1e-3, 1 - 1e-3)
    with torch.no_grad():
        model.decoder.network[-1].bias.copy_(torch.logit(mean))
    return model


def objective(model, x, generator, *, samples):
    if samples == 1:
        return elbo(model, x, generator)
    # Matrix products in half the bits take half the time; densities stay in 32.
    with torch.autocast("cpu", dtype=torch.bfloat16):
        return iwae(model, x, generator, samples=samples)


def learning_rate(stage):
    """1e-3 falling to 1e-4 in eight steps, rounded as in their paper."""
    return 1e-4 * round(10 ** (1 - stage / (STAGES - 1)), 1)


def run(samples):
    torch.set_num_threads(1)
    mnist = load_mnist()
    # 400 training images are kept apart, as theirs were, to draw the curve on.
    learn, validation = hold_out(mnist.train_images, 400)
    validation = binarize(validation, "static", seed=0)
    model = network(learn)
    kept = Path("outputs") / NAMES[samples]
    kept.parent.mkdir(exist_ok=True)
    progress = {"stages": []}
    if kept.with_suffix(".json").exists():
        progress = checkpoints.load(kept, model)
    for stage in range(len(progress["stages"]), STAGES):
        start = time.perf_counter()
        cpu = time.process_time()
        batches = Batches(
            learn,
            batch_size=20,
            seed=stage,
            transform=lambda x, noise: binarize(x, "dynamic", generator=noise),
        )
        history = train(
            model,
            batches,
            partial(objective, samples=samples),
            epochs=EPOCHS[samples][stage],
            learning_rate=learning_rate(stage),
            seed=stage,
        )
        found = log_likelihood(model, validation, samples=1000)
        progress["stages"].append(
            {
                "epochs": EPOCHS[samples][stage],
                "learning_rate": learning_rate(stage),
                "objective": [round(value, 3) for value in history],
                "validation_log_likelihood": round(found.mean, 3),
                "validation_elbo": round(held_out_elbo(model, validation).elbo.mean, 3),
                "wall_seconds": round(time.perf_counter() - start),
                "cpu_seconds": round(time.process_time() - cpu),
            }
        )
        checkpoints.save(kept, model, **progress)
        print(samples, stage, progress["stages"][-1]["validation_log_likelihood"], flush=True)
    return model, progress["stages"]


def score(model, samples=5000):
    """Score all test images, binarised once: their ELBO and their log p(x)."""
    torch.set_num_threads(1)
    images = load_mnist().test_images
    images = binarize(images, "dynamic", generator=seeded(0, stream="test images"))
    cost = held_out_elbo(model, images)
    found = log_likelihood(model, images, samples=samples)
    figures = {
        "elbo": round(cost.elbo.mean, 3),
        "elbo_standard_error": round(cost.elbo.standard_error, 3),
        "rate": round(cost.rate.mean, 3),
        "log_likelihood": round(found.mean, 3),
        "standard_error": round(found.standard_error, 3),
        "samples": samples,
    }
    values = {
        "elbo": cost.elbo.values,
        "log_likelihood": found.values,
        "effective_samples": found.effective_samples,
    }
    return figures, values


def sources():
    return {
        file.name: hashlib.sha256(file.read_bytes()).hexdigest() for file in (MNIST, Path(__file__))
    }


def main():
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--samples", type=int, choices=NAMES, required=True)
    samples = parser.parse_args().samples
    name = NAMES[samples]
    model, stages = run(samples)
    figures, values = score(model)
    checkpoints.save(RECORD.with_name(name), model, **figures)
    save_file(values, RECORD.with_name(f"{name}-scores.safetensors"))
    record = {
        "recipe": "784-200-200-50-200-200-784 with tanh, MNIST binarised dynamically, batches of "
        "20, Adam at step sizes falling from 1e-3 to 1e-4, seed 0; 400 training images apart",
        "unit": "nats per image; scores on the 10,000 test images, binarised once",
        "runs": {},
        "sha256": sources(),
    }
    if RECORD.exists():
        record["runs"] = json.loads(RECORD.read_text())["runs"]
    record["runs"][name] = {
        "objective_samples": samples,
        "products": "float32" if samples == 1 else "bfloat16",
        **figures,
        "stages": stages,
        "processor": platform.processor() or platform.machine(),
        "threads": 1,
        "torch": torch.__version__,
    }
    whole = RECORD.with_suffix(f".{name}")
    whole.write_text(json.dumps(record, indent=1) + "\n")
    os.replace(whole, RECORD)


if __name__ == "__main__":
    main()
