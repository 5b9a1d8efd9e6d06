"""Record rate and distortion at eight prices of a nat, in rate-sweep.json.

    python -m vae_lib.recorded.rate_sweep

A dense network is trained once for each weight of the rate. Those of one seed share their first
weights, the order of the images and the noise. What the page draws lies beside the figures, in
rate-sweep-pictures.safetensors: rate and distortion of each image for seed 0, and what ten images
come back as.
"""

import argparse
from functools import partial
from pathlib import Path

import torch
from safetensors.torch import load_file, save
from torch import nn

from vae_lib import checkpoints
from vae_lib.data import MNIST, Batches, binarize, hold_out, load_mnist, seeded
from vae_lib.evaluation import Estimate, active_units, held_out_elbo
from vae_lib.looks import DigitClassifier, edges, grey
from vae_lib.model import dense_vae
from vae_lib.objectives import beta_elbo
from vae_lib.records import Record
from vae_lib.states import State
from vae_lib.training import cosine, train

LATENTS = 20
BETAS = (1.0, 0.1, 60.0, 5.0, 0.25, 15.0, 2.0, 0.5)  # in the order of recording
SEEDS = (0, 1, 2)
BATCH, RISE = 100, 50  # images in a batch, steps in which the learning rate rises
CLIP = 200  # the greatest length of a gradient
EPOCHS, PEAK = 2, 9e-3
DRAWN = 1000  # images whose z are decoded to pictures that a network reads
KEPT = 10  # pictures of each kind
PICTURES = "rate-sweep-pictures.safetensors"
CLASSIFIER = "digit-classifier"
COSTS = ("elbo", "distortion", "rate")


def dense(seed):
    """The network of the book, with SiLU in place of tanh: it learns in fewer epochs."""
    model = dense_vae(latents=LATENTS, seed=seed)
    model.encoder.network.trunk[1], model.decoder.network[1] = nn.SiLU(), nn.SiLU()
    return model


def learn(model, images, choice, state):
    """Train a network in place, at its price."""
    batches = Batches(images, BATCH, seed=choice["seed"])
    train(
        model,
        batches,
        partial(beta_elbo, beta=choice["beta"]),
        epochs=EPOCHS,
        learning_rate=cosine(PEAK, EPOCHS * len(batches), warm_up=RISE),
        clip=CLIP,
        seed=choice["seed"],
        state=state,
    )


def latent_rates(q):
    """Return the rate of each latent, shape (batch, latents)."""
    return 0.5 * (q.std**2 + q.mean**2 - 1) - q.log_std


def rates(model, x):
    """Return the rates of the latents, averaged over images, the largest first."""
    with torch.no_grad():
        found = latent_rates(model.encoder(x)).mean(0)
    return [round(rate, 4) for rate in found.sort(descending=True)[0].tolist()]


def decoded(model, x):
    """Draw a z of each image and decode it: to means, or to draws where there are no means."""
    generator = seeded(0, stream="rebuilt")
    with torch.no_grad():
        given = model.decoder(model.encoder(x).rsample(generator=generator))
        return given.mean if hasattr(given, "mean") else given.sample(generator=generator)


def read(pictures):
    """Return the digits that the recorded classifier reads."""
    classifier = DigitClassifier()
    checkpoints.load(checkpoints.RECORDED / CLASSIFIER, classifier)
    with torch.no_grad():
        return torch.cat([classifier(part).argmax(-1) for part in pictures.split(1000)])


def shortened(values, digits=3):
    estimate = Estimate(values.float())
    return [round(estimate.mean, digits), round(estimate.standard_error, digits)]


def keep(name, tensors):
    """Add tensors to a file of them, under what they belong to."""
    path = checkpoints.RECORDED / name
    kept = load_file(path) if path.exists() else {}
    checkpoints.write({path: save(kept | tensors)})


def data():
    """Return thresholded training images, validation images, and the labels of the latter."""
    mnist = load_mnist()
    return *hold_out(binarize(mnist.train_images, "threshold")), hold_out(mnist.train_labels)[1]


def judged(model, held, labels):
    """Score a network on held-out images, and look at what comes back."""
    scores = held_out_elbo(model, held)
    back = decoded(model, held[:DRAWN])
    figures = {name: shortened(getattr(scores, name).values) for name in COSTS}
    figures |= {
        "active_units": int(active_units(model, held).sum()),
        "rates": rates(model, held),
        "other_digit": shortened(100.0 * (read(back) != labels[:DRAWN]), 2),
        "grey": shortened(grey(back), 2),
        "edges": shortened(edges(back), 2),
    }
    costs = {"rate": scores.rate.values, "distortion": scores.distortion.values}
    return figures, costs | {"pictures": (255 * back[:KEPT]).round().byte()}


def measure(choice, folder):
    """Train one network and judge it by the validation images."""
    images, held, labels = data()
    model = dense(choice["seed"])
    learn(model, images, choice, State(folder / "training.state"))
    figures, tensors = judged(model, held, labels)
    if choice["seed"] == 0:
        keep(PICTURES, {f"{choice['beta']:g}/{name}": v for name, v in tensors.items()})
    return figures


def main():
    """Record what is not recorded yet."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    default = Path("outputs") / "recorded"
    parser.add_argument("--kept", type=Path, default=default, help="folder of unfinished work")
    record = Record(
        __file__,
        recipe="784-500-20-500-784 with SiLU, MNIST by threshold, 50,000 training images, two "
        "epochs, batches of 100, Adam, a learning rate that rises to 9e-3 over 50 steps and falls "
        "to zero along half a cosine, gradients clipped at 200, the rate weighted by beta",
        unit="nats per image, on 10,000 validation images, with standard errors; of the first "
        "1,000, decoded from one z: per cent that are read as another digit, grey in pixels, edges",
        data=[MNIST, checkpoints.RECORDED / f"{CLASSIFIER}.safetensors"],
        kept=parser.parse_args().kept,
    )
    record.run(measure, [{"beta": beta, "seed": seed} for seed in SEEDS for beta in BETAS])


if __name__ == "__main__":
    main()
