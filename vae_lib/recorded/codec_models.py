"""Record the networks of the codec, and the files that they make, in codec-models.json.

    python -m vae_lib.recorded.codec_models

Two networks, an hour of one core each, have the parts of `sharper_record`: one of digits in black
and white by a threshold, one of digits in 256 greys. A third is fast, a quarter of an hour of one
core: the dense network of `good_burda`, which goes on from there with an autoregressive prior, of
digits binarised dynamically. Each is kept as what a decoder needs, its integers. Once there is the
network of `sharper_record`, it is made into integers as well; nothing is trained for it.

2,000 of the 60,000 training images are held out to draw the curve on; for the fast network the
400 that were held out before. At the end the 10,000 test images are scored once, packed into a
file and unpacked again.

Both the training and the record go on after an interruption, from what is in the folder that
`--kept` names.
"""

import argparse
import math
import time
from pathlib import Path

import torch

from vae_lib import checkpoints, coding
from vae_lib.autoregressive import AutoregressivePrior
from vae_lib.data import Batches, binarize, hold_out, load_mnist, quantize, seeded
from vae_lib.evaluation import held_out_elbo
from vae_lib.integers import integer_model, store
from vae_lib.local_levels import level_vae
from vae_lib.model import dense_vae
from vae_lib.objectives import dreg, terms
from vae_lib.records import Record
from vae_lib.residual import residual_vae
from vae_lib.states import State
from vae_lib.training import cosine, train

BATCH = 64
# Held: training images to draw the curve on. Warm-up: steps in which the weight of the rate rises
# from 0 to 1.
LONG = {"held": 2000, "warm_up": 1000, "peak": 2e-3, "clip": 200}
RUNS = {
    "codec-fast": {"held": 400, "epochs": 40, "warm_up": 0, "peak": 1e-3, "clip": 200},
    "codec-grey": {**LONG, "epochs": 6, "peak": 1.5e-3, "clip": 1000},
    "codec-threshold": {**LONG, "epochs": 7},
}


BEST = checkpoints.RECORDED / "sharper-digits"  # it comes of another script


def network(name):
    if name == "codec-record":
        model = residual_vae(latents=40, reach=3)
        checkpoints.load(BEST, model)
        return model
    if name == "codec-grey":
        return level_vae(seed=0)
    if name == "codec-threshold":
        return residual_vae(seed=0)
    model = dense_vae(hidden=(200, 200), latents=50)
    checkpoints.load(checkpoints.RECORDED / "good-vae", model)
    source = seeded(0, stream="codec-fast")
    model.prior = AutoregressivePrior(50, hidden=256, components=4, generator=source)
    return model


def drawn(x, generator):
    return binarize(x, "dynamic", generator=generator)


def shown(name, images, generator):
    """Return images as a network is to see them."""
    if name == "codec-grey":
        return quantize(images, 256)
    if name == "codec-threshold":
        return binarize(images, "threshold")
    return drawn(images, generator)


def objective(state, warm_up):
    """The ELBO, with a rate that counts little at first; then with less noisy gradients."""

    def value(model, x, generator):
        if state.steps < warm_up:
            cost = terms(model, x, generator)
            return -(cost.distortion + (state.steps + 1) / warm_up * cost.rate)
        return dreg(model, x, generator, samples=1)

    return value


def bits(elbo, pixels):
    """Return -ELBO in bits a pixel."""
    return -elbo / math.log(2) / pixels


def trained(name, folder):
    """Train, or go on; return the state, whose average is the model."""
    told = RUNS[name]
    learn, held = hold_out(load_mnist().train_images, told["held"])
    held = shown(name, held, seeded(0, stream="validation images"))
    model, state = network(name), State(folder / "training.state")
    anew = drawn if name == "codec-fast" else None
    learn = learn if anew else shown(name, learn, None)
    batches = Batches(learn, batch_size=BATCH, transform=anew)
    steps = told["epochs"] * len(batches)

    def curve(epoch):
        found = held_out_elbo(state.averaged, held, batch_size=250).elbo
        row = {
            "held_out_bits": round(bits(found.mean, held.shape[1]), 5),
            "cpu_seconds": round(state.cpu_seconds),
        }
        print(f"{name}: epoch {epoch} of {told['epochs']}, {row}", flush=True)
        return row

    train(
        model,
        batches,
        objective(state, told["warm_up"]),
        epochs=told["epochs"],
        learning_rate=cosine(told["peak"], steps, warm_up=500),
        clip=told["clip"],
        average=lambda step: min(0.999, (1 + step) / (10 + step)),
        after_epoch=curve,
        state=state,
    )
    return state


def timed(function, *given):
    """Return what a function gives, and the seconds of a processor that it takes."""
    start = time.process_time()
    found = function(*given)
    return found, round(time.process_time() - start, 1)


def measure(choice, folder):
    name = choice["name"]
    state = trained(name, folder) if name in RUNS else None
    chosen = network(name) if state is None else state.averaged
    images = shown(name, load_mnist().test_images, seeded(0, stream="test images"))
    cost = held_out_elbo(chosen, images, batch_size=250).elbo
    model = integer_model(chosen)
    numbers = (images * (model.levels - 1)).round().to(torch.uint8)
    data, to = timed(coding.compress, numbers, model)
    again, back = timed(coding.decompress, data, model)
    if not torch.equal(again, numbers):
        raise RuntimeError(f"{name}: expected the images back, got others.")
    file = checkpoints.RECORDED / f"{name}.safetensors"
    figures = {
        "weights": sum(weight.numel() for weight in chosen.parameters()),
        "elbo": round(cost.mean, 3),
        "standard_error": round(cost.standard_error, 3),
        "bits": round(bits(cost.mean, images.shape[1]), 5),
        "file_bytes": len(data),
        "file_bits": round(8 * len(data) / images.numel(), 5),
        "compress_cpu_seconds": to,
        "decompress_cpu_seconds": back,
    }
    store(file, model, figures=figures)
    figures["model_bytes"] = file.stat().st_size
    if state is not None:
        figures["training_cpu_seconds"] = round(state.cpu_seconds)
        figures["curve"] = [{k: round(v, 5) for k, v in row.items()} for row in state.history]
    return figures


def main():
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    default = Path("outputs") / "recorded"
    parser.add_argument("--kept", type=Path, default=default, help="folder of unfinished work")
    parser.add_argument("--workers", type=int, default=1, help="runs at a time")
    parser.add_argument("--only", choices=(*RUNS, "codec-record"), help="one of them")
    arguments = parser.parse_args()
    record = Record(
        __file__,
        recipe="residual_vae and level_vae with 40 latents, autoregressive prior and a reach of 3, "
        "MNIST by a threshold and in 256 greys, 58,000 training images, rate weighted from 0 to 1 "
        "over 1,000 steps; good-vae with an autoregressive prior, MNIST binarised dynamically, "
        "59,600 training images; batches of 64, Adam with a cosine, doubly reparameterised "
        "gradients, weights averaged with 0.999, seed 0",
        unit="nats per image, bits per pixel, bytes; scores on the 10,000 test images",
        kept=arguments.kept,
    )
    there = ["codec-record"] if BEST.with_suffix(".safetensors").exists() else []
    names = [name for name in (*RUNS, *there) if arguments.only in (None, name)]
    record.run(measure, [{"name": name} for name in names], workers=arguments.workers)


if __name__ == "__main__":
    main()
