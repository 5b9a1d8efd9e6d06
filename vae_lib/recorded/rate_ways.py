"""Record a decoder that can do without its latents, in rate-ways.json.

    python -m vae_lib.recorded.rate_ways

The decoder of `rate_sweep`, whose pixels now also see pixels nearby. At a price that the networks
there pay it collapses. It is trained so, in ways that are to make it use its latents, and at a
lower price. Networks of one seed share their first weights, the order of the images and the noise.
What the page draws lies beside the figures, in rate-ways-pictures.safetensors, for seed 0.
"""

import argparse
from pathlib import Path

import torch
from torch import nn

from vae_lib import checkpoints
from vae_lib.autoregressive import LocalDecoder, LocalHead
from vae_lib.data import MNIST, Batches, seeded
from vae_lib.objectives import beta_elbo
from vae_lib.recorded import rate_sweep
from vae_lib.recorded.rate_sweep import BATCH, CLASSIFIER, CLIP, LATENTS, RISE, SEEDS
from vae_lib.records import Record
from vae_lib.states import State
from vae_lib.training import cosine, train

EPOCHS, PEAK = 1, 6e-3
FEATURES, REACH = 8, 3
HIGH = 5.0  # the price of the first four ways
FREE = 0.25  # nats of each latent, on average over a batch
WAYS = (
    "plain",
    "warm-up",
    "free bits",
    "no neighbours",
    "price 1",
    "price 1, warm-up",
    "no latents",
)
PICTURES = "rate-ways-pictures.safetensors"


class Spread(nn.Module):
    """The logits of a dense decoder as some features of each pixel, beside some of its place."""

    def __init__(self, network, seed):
        super().__init__()
        self.network = network
        generator = seeded(seed, stream="rate-ways features")
        self.along = nn.Parameter(torch.randn(FEATURES, generator=generator))
        self.place = nn.Parameter(torch.zeros(784, FEATURES))

    def forward(self, z):
        return self.network(z).unsqueeze(-1) * self.along + self.place


def local(seed, reach=REACH):
    """The same encoder, and a decoder whose pixels also see those before them nearby."""
    model, generator = rate_sweep.dense(seed), seeded(seed, stream="rate-ways head")
    head = LocalHead((28, 28), FEATURES, reach, layers=1, generator=generator)
    model.decoder = LocalDecoder(Spread(model.decoder.network, seed), head)
    model.per_pixel = FEATURES
    return model


def free_bits(model, x, generator):
    """As at the high price, but that each latent pays for so many nats at least (Kingma et al.)."""
    q = model.encoder(x)
    z = q.rsample(generator=generator)
    paid = rate_sweep.latent_rates(q).mean(0).clamp_min(FREE).sum()
    return model.decoder(z).log_prob(x) - HIGH * paid


def without(model, x, generator):
    """The log probability of an image by a decoder that is given zeros for its latents."""
    return model.decoder(torch.zeros(len(x), LATENTS)).log_prob(x)


def objective(choice, state, steps):
    """Return what a network maximises."""
    if choice["way"] in ("free bits", "no latents"):
        return {"free bits": free_bits, "no latents": without}[choice["way"]]
    price = 1.0 if choice["way"].startswith("price 1") else HIGH

    def value(model, x, generator):
        """The price of the rate rises in a line from 0 over the first half, or stays."""
        risen = min(1, 2 * state.steps / steps) if choice["way"].endswith("warm-up") else 1
        return beta_elbo(model, x, generator, beta=price * risen)

    return value


def network(choice):
    return local(choice["seed"], 0 if choice["way"] == "no neighbours" else REACH)


def learn(model, images, choice, state):
    """Train a network in place, as its way says."""
    batches = Batches(images, BATCH, seed=choice["seed"])
    steps = EPOCHS * len(batches)
    train(
        model,
        batches,
        objective(choice, state, steps),
        epochs=EPOCHS,
        learning_rate=cosine(PEAK, steps, warm_up=RISE),
        clip=CLIP,
        seed=choice["seed"],
        state=state,
    )


def measure(choice, folder):
    """Train one network and judge it by the validation images."""
    images, held, labels = rate_sweep.data()
    model = network(choice)
    learn(model, images, choice, State(folder / "training.state"))
    if choice["way"] == "no latents":
        with torch.no_grad():
            cost = torch.cat([-without(model, x, None) for x in held.split(1000)])
        return {"elbo": rate_sweep.shortened(-cost)}
    figures, tensors = rate_sweep.judged(model, held, labels)
    if choice["seed"] == 0:
        rate_sweep.keep(PICTURES, {f"{choice['way']}/{name}": v for name, v in tensors.items()})
    return figures


def main():
    """Record what is not recorded yet."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    default = Path("outputs") / "recorded"
    parser.add_argument("--kept", type=Path, default=default, help="folder of unfinished work")
    record = Record(
        __file__,
        recipe="the network and the data of rate-sweep, but that a pixel also sees 24 before it "
        "(no neighbours: none) and has eight features; one epoch, a peak of 6e-3; the rate "
        "weighted by 5, or by 1 where it says so; a weight that rises over the first half of the "
        "steps; 0.25 nats of each latent paid for anyway; zeros in place of the latents",
        unit="as in rate-sweep; pictures are draws, since such pixels have no mean",
        data=[
            MNIST,
            checkpoints.RECORDED / f"{CLASSIFIER}.safetensors",
            Path(rate_sweep.__file__),
        ],
        kept=parser.parse_args().kept,
    )
    record.run(measure, [{"way": way, "seed": seed} for seed in SEEDS for way in WAYS])


if __name__ == "__main__":
    main()
