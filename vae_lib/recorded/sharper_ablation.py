"""Record what each ingredient of the record of *sharper* is worth, in sharper-ablation.json.

    python -m vae_lib.recorded.sharper_ablation

The network and the training of `sharper_record`, at half the widths and few steps, and without one
of its ingredients at a time; two seeds, which all share images, order and noise. What the average
of the weights is worth is read off one and the same training, scored with it and without.
"""

import argparse
from pathlib import Path

import torch
from safetensors.torch import load_file, save

from vae_lib import checkpoints
from vae_lib.data import Batches, binarize, load_mnist, seeded
from vae_lib.evaluation import held_out_elbo
from vae_lib.objectives import dreg, terms
from vae_lib.records import Record
from vae_lib.residual import residual_vae
from vae_lib.states import State
from vae_lib.training import cosine, train

EPOCHS, IMAGES, BATCH = 2, 51_200, 64  # 1,600 steps
WARM_UP = 400  # steps in which the weight of the rate rises from 0 to 1
RISE = 200  # steps in which the learning rate rises
SCORED = 5000  # test images
SCORES = "sharper-ablation-scores.safetensors"
NONE = {"encoder_blocks": (0, 0), "decoder_blocks": (0, 0)}
VARIANTS = {
    "all of it": {},
    "no local pixels": {"reach": 0},
    "no autoregressive prior": {"prior": "normal"},
    "no residual blocks": NONE,
    "plain gradient": {},
}


def network(choice):
    sizes = {"latents": 40, "widths": (16, 32), "features": 16, "reach": 3}
    return residual_vae(**(sizes | VARIANTS[choice["variant"]]), seed=choice["seed"])


def drawn(x, generator):
    return binarize(x, "dynamic", generator=generator)


def objective(variant, state):
    """The ELBO, with a rate that counts little at first."""

    def value(model, x, generator):
        if variant == "plain gradient" or state.steps < WARM_UP:
            cost = terms(model, x, generator)
            return -(cost.distortion + min(1, (state.steps + 1) / WARM_UP) * cost.rate)
        return dreg(model, x, generator, samples=1)

    return value


def keep(choice, tensors):
    """Add tensors to the file of scores."""
    path = checkpoints.RECORDED / SCORES
    kept = load_file(path) if path.exists() else {}
    name = f"{choice['variant']}/{choice['seed']}"
    checkpoints.write({path: save(kept | {f"{name}/{k}": v for k, v in tensors.items()})})


def measure(choice, folder):
    """Train one variant, and score the average of its weights and the last of them."""
    mnist, seed = load_mnist(), choice["seed"]
    model, state = network(choice), State(folder / "training.state")
    batches = Batches(mnist.train_images[:IMAGES], BATCH, seed=seed, transform=drawn)
    steps = EPOCHS * len(batches)
    train(
        model.to(memory_format=torch.channels_last),  # less time, for convolutions
        batches,
        objective(choice["variant"], state),
        epochs=EPOCHS,
        learning_rate=cosine(2e-3, steps, warm_up=min(RISE, steps // 2)),
        clip=200,
        average=lambda step: min(0.999, (1 + step) / (10 + step)),
        seed=seed,
        state=state,
    )
    x = drawn(mnist.test_images, seeded(0, stream="test images"))[:SCORED]
    figures, values = {"weights": sum(weight.numel() for weight in model.parameters())}, {}
    for name, judged in (("average", state.averaged), ("last", model)):
        score = held_out_elbo(judged, x).elbo
        figures[name] = round(score.mean, 3)
        figures[f"standard_error_{name}"] = round(score.standard_error, 3)
        if name == "average" or choice["variant"] == "all of it":
            values[name] = score.values
    figures["cpu_seconds_to_learn"] = round(state.cpu_seconds)
    keep(choice, values)
    return figures


def main():
    """Record what is not recorded yet."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    default = Path("outputs") / "recorded"
    parser.add_argument("--kept", type=Path, default=default, help="folder of unfinished work")
    record = Record(
        __file__,
        recipe="residual_vae with 40 latents, widths 16 and 32, 16 features, its autoregressive "
        "prior and a reach of 3, or without one of these; MNIST binarised dynamically, 51,200 "
        "training images, two epochs, batches of 64, Adam, a learning rate that rises to 2e-3 over "
        "200 steps and falls to zero along half a cosine, gradients clipped at 200, rate weighted "
        "from 0 to 1 over 400 steps and then doubly reparameterised gradients, weights averaged "
        "with up to 0.999",
        unit="nats per image, on the first 5,000 test images, binarised once: the ELBO with the "
        "average of the weights, and with the last",
        kept=parser.parse_args().kept,
    )
    choices = [{"variant": name, "seed": seed} for seed in (0, 1) for name in VARIANTS]
    record.run(measure, choices)


if __name__ == "__main__":
    main()
