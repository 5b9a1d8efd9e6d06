"""Record the best likelihood that five hours of one core reach, in sharper-record.json.

    python -m vae_lib.recorded.sharper_record

One vector of latents with an autoregressive prior, residual convolutions, and a decoder whose
pixels also see the pixels nearby; the last epochs maximise the importance-weighted bound. All
60,000 training images are learnt from: the choices were made before, in short runs with 10,000 of
them held out. The curve is drawn on the first 2,000 test images, and nothing depends on it.

At the end all 10,000 test images are scored, binarised by one draw: -ELBO, and the log likelihood
from twice as many samples again and again, until its mean moves by less than 0.05 nat. Both the
training and the scores go on after an interruption, from what is in the folder that `--kept` names.
"""

import argparse
import math
import time
from pathlib import Path

import torch

from vae_lib import checkpoints
from vae_lib.data import Batches, binarize, load_mnist, seeded
from vae_lib.evaluation import Estimate, held_out_elbo, log_likelihood
from vae_lib.objectives import dreg, terms
from vae_lib.records import Record
from vae_lib.residual import residual_vae
from vae_lib.states import State
from vae_lib.training import cosine, train

EPOCHS = 28
LAST = 2  # so many of them maximise the importance-weighted bound
SAMPLES = 5  # of its latents
BATCH = 64
WARM_UP = 2000  # steps in which the weight of the rate rises from 0 to 1
CURVE = 2000  # test images
CHUNK = 500  # test images whose scores are kept at a time
FIRST, ENOUGH = 32, 0.05  # samples of the first score, and nats that the last doubling may bring
FORMAT = "sharper-record scores 1"


def network():
    return residual_vae(latents=40, reach=3, seed=0)


def drawn(x, generator):
    return binarize(x, "dynamic", generator=generator)


def objective(state, steps):
    """The ELBO, with a rate that counts little at first; at the end the tighter bound."""

    def value(model, x, generator):
        if state.steps < WARM_UP:
            cost = terms(model, x, generator)
            return -(cost.distortion + (state.steps + 1) / WARM_UP * cost.rate)
        # With one sample its value is the ELBO's, and its gradient is less noisy: in a short run
        # the hundred steps after the warm-up were better by a nat.
        last = state.steps >= steps * (EPOCHS - LAST) // EPOCHS
        return dreg(model, x, generator, samples=SAMPLES if last else 1)

    return value


def trained(folder, images):
    """Train, or go on; return the state, whose average is the model."""
    model, state = network(), State(folder / "training.state")
    batches = Batches(load_mnist().train_images, batch_size=BATCH, transform=drawn)
    steps = EPOCHS * len(batches)

    def curve(epoch):
        found = held_out_elbo(state.averaged, images[:CURVE]).elbo
        # The time of the latest writing of the state, at most two minutes ago.
        row = {"elbo": round(found.mean, 3), "cpu_seconds": round(state.cpu_seconds)}
        print(f"sharper-record: epoch {epoch} of {EPOCHS}, {row}", flush=True)
        return row

    train(
        model,
        batches,
        objective(state, steps),
        epochs=EPOCHS,
        learning_rate=cosine(2e-3, steps, warm_up=500),
        clip=200,
        average=lambda step: min(0.999, (1 + step) / (10 + step)),
        after_epoch=curve,
        state=state,
    )
    return state


def scored(model, images, samples, first_seed, folder):
    """Return log p(x) and effective samples of each image; a chunk is kept once it is scored."""
    values, effective = [], []
    for number, x in enumerate(images.split(CHUNK)):
        seed = first_seed + number
        file = folder / f"scores-{seed}.safetensors"
        if not file.exists():
            cpu = time.process_time()
            found = log_likelihood(model, x, samples=samples, seed=seed)
            tensors = {"values": found.values, "effective": found.effective_samples}
            told = {"format": FORMAT, "cpu_seconds": time.process_time() - cpu}
            checkpoints.write({file: checkpoints.pack(tensors, told)})
        tensors, _ = checkpoints.unpack(file, FORMAT)
        values.append(tensors["values"])
        effective.append(tensors["effective"])
    return torch.cat(values), torch.cat(effective)


def joined(one, two):
    """Join two scores from as many samples each: as if all had been drawn at once."""
    (a, ess_a), (b, ess_b) = one, two
    # In logarithms, up to the same factor: the sums of the weights and of their squares.
    total = torch.logaddexp(a, b)
    squares = torch.logaddexp(2 * a - ess_a.log(), 2 * b - ess_b.log())
    return total - math.log(2), torch.exp(2 * total - squares)


def doubled(model, images, folder):
    """Score with twice the samples until that brings little; return the rows and the scores."""
    chunks, samples, rows = -(-len(images) // CHUNK), FIRST, []
    found = scored(model, images, samples, 0, folder)
    while not rows or rows[-1]["move"] >= ENOUGH:
        more = scored(model, images, samples, (len(rows) + 1) * chunks, folder)
        both = joined(found, more)
        # What it brings beside the mean of the two halves, each a score from so many samples.
        move = Estimate(both[0] - (found[0] + more[0]) / 2)
        samples, found = 2 * samples, both
        score = Estimate(found[0])
        rows.append(
            {
                "samples": samples,
                "log_likelihood": round(score.mean, 3),
                "standard_error": round(score.standard_error, 3),
                "move": round(move.mean, 4),
                "median_effective_samples": round(found[1].median().item(), 1),
            }
        )
        print(f"sharper-record: {rows[-1]}", flush=True)
    return rows, found


def measure(choice, folder):
    images = drawn(load_mnist().test_images, seeded(0, stream="test images"))
    state = trained(folder, images)
    model = state.averaged
    cost = held_out_elbo(model, images)
    rows, found = doubled(model, images, folder)
    files = folder.glob("scores-*.safetensors")
    spent = sum(checkpoints.unpack(file, FORMAT)[1]["cpu_seconds"] for file in files)
    figures = {
        "weights": sum(weight.numel() for weight in model.parameters()),
        "elbo": round(cost.elbo.mean, 3),
        "elbo_standard_error": round(cost.elbo.standard_error, 3),
        "rate": round(cost.rate.mean, 3),
        **rows[-1],
        "training_cpu_seconds": round(state.cpu_seconds),
        "scoring_cpu_seconds": round(spent),
    }
    checkpoints.save(checkpoints.RECORDED / choice["name"], model, **figures)
    scores = {"elbo": cost.elbo.values, "log_likelihood": found[0], "effective_samples": found[1]}
    content = checkpoints.pack(scores, {"format": FORMAT})
    checkpoints.write({checkpoints.RECORDED / f"{choice['name']}-scores.safetensors": content})
    curve = [{k: round(v, 3) for k, v in row.items()} for row in state.history]
    return {**figures, "doublings": rows, "curve": curve}


def main():
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    default = Path("outputs") / "recorded"
    parser.add_argument("--kept", type=Path, default=default, help="folder of unfinished work")
    record = Record(
        __file__,
        recipe="residual_vae with 40 latents, its autoregressive prior and a reach of 3; MNIST "
        "binarised dynamically, all 60,000 training images, 28 epochs, batches of 64, Adam with a "
        "cosine from 2e-3, rate weighted from 0 to 1 over 2,000 steps, the last two epochs by the "
        "importance-weighted bound of 5, doubly reparameterised gradients, weights averaged with "
        "0.999, seed 0",
        unit="nats per image; scores on the 10,000 test images, binarised once",
        kept=parser.parse_args().kept,
    )
    record.run(measure, [{"name": "sharper-digits"}])


if __name__ == "__main__":
    main()
