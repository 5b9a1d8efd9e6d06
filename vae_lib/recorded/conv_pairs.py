"""Record dense and convolutional networks beside each other, in conv-pairs.json.

    python -m vae_lib.recorded.conv_pairs

One convolutional network stands between dense ones: the narrow have as many weights, the wide
take as many operations an image. There are two of each, with the tanh of the post and with the
SiLU that the convolutional one has. Two more are the convolutional one with residual blocks,
narrowed until it takes as many operations, and with batch normalisation. The learning
rate is chosen first, by short trainings scored on training images that are held out; the two
latter take that of the plain one. Of seed 0 the scores are kept image by image, and the weights
but for those of the wide networks, which are many.
"""

import argparse

import torch
from safetensors.torch import save
from torch import nn
from torch.nn import functional as F
from torch.utils.flop_counter import FlopCounterMode

from vae_lib import checkpoints
from vae_lib.convolutional import conv_vae
from vae_lib.data import Batches, binarize, hold_out, load_mnist, seeded
from vae_lib.evaluation import held_out_elbo, log_likelihood
from vae_lib.model import dense_vae
from vae_lib.objectives import elbo
from vae_lib.records import Record
from vae_lib.residual import ResidualBlock
from vae_lib.training import cosine, train

LATENTS = 20
EPOCHS = 3
SHORT = 20_000  # images of a training that chooses a learning rate
RATES = (1e-3, 3e-3, 9e-3)
IMAGES, SAMPLES = 500, 500  # of the log-likelihood
CHOSEN_FOR = {"residual": "convolutional", "normalised": "convolutional"}


def dense(hidden, nonlinearity):
    def make(seed):
        model = dense_vae(hidden=hidden, latents=LATENTS, seed=seed)
        model.encoder.network.trunk[1], model.decoder.network[1] = nonlinearity(), nonlinearity()
        return model

    return make


def convolutional(seed, width=12):
    return conv_vae((1, 28, 28), LATENTS, width=width, likelihood="bits", seed=seed)


def residual(seed):
    """Two thirds of the channels, and a block at 7 x 7 on the way down and on the way up."""
    model, generator = convolutional(seed, width=8), seeded(seed, stream="conv-pairs blocks")
    down, up = model.encoder.network.trunk.steps, model.decoder.network.steps
    down[1] = nn.Sequential(down[1], ResidualBlock(16, 1, generator))
    up[0] = nn.Sequential(up[0], ResidualBlock(16, 1, generator))
    return model


def normalised(seed):
    """Batch normalisation after each convolution but the one that gives the pixels."""
    model = convolutional(seed)
    down, up = model.encoder.network.trunk.steps, model.decoder.network.steps
    for steps, channels in ((down, (12, 24, 48)), (up, (24, 12))):
        for place, count in enumerate(channels):
            steps[place] = nn.Sequential(steps[place], nn.BatchNorm2d(count))
    return model


NETWORKS = {
    "narrow dense, tanh": dense(51, nn.Tanh),
    "wide dense, tanh": dense(564, nn.Tanh),
    "narrow dense, SiLU": dense(51, nn.SiLU),
    "wide dense, SiLU": dense(564, nn.SiLU),
    "convolutional": convolutional,
    "residual": residual,
    "normalised": normalised,
}
STEMS = ["narrow", "wide", "narrow-silu", "wide-silu", "plain", "residual", "normalised"]
FILES = dict(zip(NETWORKS, STEMS, strict=True))


def shifted(images, right):
    """Move pictures to the right by so many pixels; what leaves them is lost."""
    return F.pad(images.reshape(-1, 28, 28), (right, -right)).flatten(1)


def operations(model, images, *, learn):
    """Count multiplications and additions for an image, to score it or to learn from it."""
    with FlopCounterMode(display=False) as counter:
        bound = elbo(model, images, seeded(0, stream="operations"))
        if learn:
            bound.mean().backward()
    model.zero_grad()
    return round(counter.get_total_flops() / len(images))


def learn(model, images, choice, folder):
    batches = Batches(images, seed=choice["seed"])
    epochs = EPOCHS if choice["part"] == "networks" else 1
    train(
        model.to(memory_format=torch.channels_last),  # a sixth less time, for convolutions
        batches,
        epochs=epochs,
        learning_rate=cosine(choice["rate"], epochs * len(batches), warm_up=50),
        seed=choice["seed"],
        state=folder / "training.state",
    )
    return model.to(memory_format=torch.contiguous_format)


def measure(choice, folder):
    """Train one network and score it."""
    mnist, seed = load_mnist(), choice["seed"]
    images = binarize(mnist.train_images, "threshold")
    model = NETWORKS[choice["network"]](seed)
    if choice["part"] == "rates":
        learnt, held = hold_out(images)
        model = learn(model, learnt[:SHORT], choice, folder)
        return {"held_out_elbo": round(held_out_elbo(model, held).elbo.mean, 3)}
    counts = {
        "weights": sum(weight.numel() for weight in model.parameters()),
        "operations": operations(model, images[:100], learn=False),
        "operations_to_learn": operations(model, images[:100], learn=True),
    }
    model = learn(NETWORKS[choice["network"]](seed), images, choice, folder)
    test = binarize(mnist.test_images, "threshold")
    scores, moved = held_out_elbo(model, test), held_out_elbo(model, shifted(test, 2))
    figures = {
        **counts,
        "elbo": round(scores.elbo.mean, 3),
        "standard_error": round(scores.elbo.standard_error, 3),
        "rate_of_latents": round(scores.rate.mean, 3),
        "elbo_shifted": round(moved.elbo.mean, 3),
    }
    if seed == 0:
        keep(choice, model, test, scores.elbo.values, moved.elbo.values, figures)
    return figures


def keep(choice, model, test, scores, moved, figures):
    """Add the log-likelihood to the figures, and write weights and scores."""
    rows = torch.randperm(len(test), generator=seeded(0, stream="rows"))[:IMAGES]
    found = log_likelihood(model, test[rows], samples=SAMPLES)
    figures |= {
        "log_likelihood": round(found.mean, 3),
        "log_likelihood_step": round(found.step.mean, 3),
    }
    values = {"elbo": scores, "elbo_shifted": moved, "log_likelihood": found.values}
    path = checkpoints.RECORDED / f"conv-{FILES[choice['network']]}"
    checkpoints.write({path.with_name(f"{path.name}-scores.safetensors"): save(values)})
    if not FILES[choice["network"]].startswith("wide"):
        checkpoints.save(path, model, data="MNIST, threshold", **choice, **figures)


def main():
    """Record what is not recorded yet."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--workers", type=int, default=1, help="processes of one thread each")
    workers = parser.parse_args().workers
    record = Record(
        __file__,
        recipe="20 latents, MNIST by threshold, batches of 100, Adam, a learning rate that rises "
        "over 50 steps and falls to zero along half a cosine; three epochs of all training "
        "images; its peak is the best of three after an epoch of 20,000 of them, on 10,000 others",
        unit="nats per image, on the 10,000 test images; operations are per image",
    )
    tried = [name for name in NETWORKS if name not in CHOSEN_FOR]
    rates = [{"part": "rates", "network": n, "seed": 0, "rate": r} for n in tried for r in RATES]
    record.run(measure, rates, workers=workers)
    found = [run for run in record.runs() if run["part"] == "rates"]
    best = {run["network"]: run["rate"] for run in sorted(found, key=lambda r: r["held_out_elbo"])}
    again = tried[2:]  # the networks with SiLU, convolutional or not
    seeds = {0: list(NETWORKS), 1: [*again, "residual"], 2: again}
    choices = [
        {"part": "networks", "network": n, "seed": seed, "rate": best[CHOSEN_FOR.get(n, n)]}
        for seed, names in seeds.items()
        for n in names
    ]
    record.run(measure, choices, workers=workers)


if __name__ == "__main__":
    main()
