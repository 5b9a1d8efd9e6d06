"""Record what removes blur and what does not, in sharper-table.json.

    python -m vae_lib.recorded.sharper_table

Three tasks, a block of rows for each: digits by threshold, binarised dynamically, and in grey. In
the two latter blocks, and in one row of the first, the networks share the convolutional trunk, the
steps, the images and their order, so what differs is what the row is called after. (A hierarchy has
a trunk of its own. The other rows of the first block are networks that other chapters recorded.)

Each row is scored by its bound on all test images and by its log likelihood on some, and draws
10,000 pictures. Of these the grey and the edges are measured, and the Fréchet distance to the test
images, in the features of the network that `sharper_classifier` records. Scores are kept image by
image, with ten pictures of each kind, in sharper-table-scores.safetensors.
"""

import argparse
import math
import time
from functools import partial
from pathlib import Path

import torch
from safetensors.torch import load_file, save
from torch import nn
from torch.nn import functional as F
from torch.utils.flop_counter import FlopCounterMode

from vae_lib import checkpoints
from vae_lib.autoregressive import AutoregressivePrior, LocalBernoulli
from vae_lib.convolutional import LOG_SCALES
from vae_lib.data import MNIST, Batches, binarize, load_mnist, seeded
from vae_lib.evaluation import Estimate, held_out_elbo, log_likelihood
from vae_lib.hierarchy import conv_hierarchy
from vae_lib.looks import (
    DigitClassifier,
    edges,
    frechet_distance,
    frechet_error,
    grey,
    seen_features,
)
from vae_lib.model import (
    VAE,
    DiscretizedLogisticDecoder,
    GaussianDecoder,
    GaussianEncoder,
    dense_vae,
    switched,
)
from vae_lib.networks import linear
from vae_lib.objectives import elbo, iwae, terms
from vae_lib.priors import GaussianMixture, VampPrior
from vae_lib.quantized import (
    Codebook,
    CodeDecoder,
    CodeEncoder,
    CodePrior,
    RoundedDecoder,
    quantized_objective,
)
from vae_lib.records import Record
from vae_lib.residual import residual_vae
from vae_lib.states import State
from vae_lib.training import cosine, train

EPOCHS = 3
BATCH = 64
RATE = 2e-3
RISE = 200  # steps in which the learning rate rises
WARM_UP = 500  # steps in which the weight of the rate rises
LATENTS = 24
FEATURES = 16  # numbers for each pixel, before the last layers of the decoder
COMPONENTS = 100  # of the mixture, and pseudo-inputs
CODES, LENGTH = 16, 8
FIRST_STD = 0.25
IMAGES, SAMPLES = 200, 500  # of the log likelihood
DRAWN = 10_000
KEPT = 10  # pictures of each kind
SCORES = "sharper-table-scores.safetensors"
CLASSIFIER = "digit-classifier"
TASKS = ("grey", "dynamic", "threshold")


# --- The rows ---------------------------------------------------------------------------------


def base(seed, reach=0):
    model = residual_vae(
        latents=LATENTS,
        widths=(16, 32),
        encoder_blocks=(1, 1),
        decoder_blocks=(1, 1),
        features=FEATURES,
        reach=reach,
        prior="normal",
        seed=seed,
    )
    model.per_pixel = FEATURES
    return model


def local(seed):
    return base(seed, reach=3)


def with_mixture(seed):
    model = base(seed)
    model.prior = GaussianMixture(LATENTS, COMPONENTS, seed=seed)
    return model


def with_vamp(seed):
    model = base(seed)
    model.prior = VampPrior(model.encoder, load_mnist().train_images[:COMPONENTS].float() / 255)
    return model


def with_sequence(seed, reach=0):
    model = base(seed, reach)
    generator = seeded(seed, stream="sharper prior")
    model.prior = AutoregressivePrior(LATENTS, hidden=192, generator=generator)
    return model


def with_both(seed):
    return with_sequence(seed, reach=3)


def hierarchy(seed):
    return conv_hierarchy(layers=(2, 1), latents=LATENTS, width=24, seed=seed)


class PerPlace(nn.Module):
    """One affine layer for the numbers of each of some places."""

    def __init__(self, places, inputs, outputs, generator):
        super().__init__()
        self.places, self.in_features = places, places * inputs
        self.layer = linear(inputs, outputs, generator)

    @property
    def weight(self):
        return self.layer.weight

    def forward(self, rows):
        return self.layer(rows.unflatten(-1, (self.places, -1))).flatten(-2)


def quantized(seed):
    """49 codes at 7 x 7 in place of one vector of latents."""
    model, generator = base(seed), seeded(seed, stream="sharper codes")
    book, places = Codebook(CODES, LENGTH), 7 * 7
    trunk, network = model.encoder.network.trunk, model.decoder.network
    down = PerPlace(places, trunk.features // places, LENGTH, generator)
    network.first = PerPlace(places, LENGTH, trunk.features // places, generator)
    return VAE(
        CodeEncoder(nn.Sequential(trunk, down, nn.Unflatten(-1, (places, LENGTH))), book),
        CodePrior((7, 7), CODES, generator=generator),
        CodeDecoder(book, model.decoder),
    )


class Beside(nn.Module):
    """The features of the pixels, and beside them the label that comes after the pixels."""

    def __init__(self, trunk):
        super().__init__()
        self.trunk = trunk

    def forward(self, x):
        pixels, label = x.split((784, 10), -1)
        return torch.cat([self.trunk(pixels), label], -1)


class OfPixels:
    """A distribution of the pixels, of rows that have a label after them."""

    def __init__(self, given):
        self.given = given

    def log_prob(self, x):
        return self.given.log_prob(x[..., :784])


class Labelled(VAE):
    """A VAE of p(x given label): encoder and decoder are told the label (Sohn et al., 2015)."""

    def bottom_up(self, x):
        return self.encoder(x), x[..., 784:]

    def top_down(self, seen, choose):
        q, label = seen
        z = choose(q, self.prior())
        label = label.expand(*z.shape[:-1], 10)
        return OfPixels(self.decoder(torch.cat([z, label], -1)))

    def generate(self, count, *, generator=None):
        label = torch.eye(10)[torch.arange(count) % 10]
        drawn = self.prior().sample(count, generator=generator)
        return self.top_down((None, label), lambda q, p: drawn).given


def labelled(seed):
    model, generator = base(seed), seeded(seed, stream="sharper labels")
    heads, network = model.encoder.network, model.decoder.network
    heads.trunk = Beside(heads.trunk)
    heads.first = wider(heads.first, generator)
    heads.second = wider(heads.second, generator)
    network.first = wider(network.first, generator)
    made = Labelled(model.encoder, model.prior, model.decoder)
    made.per_pixel = FEATURES
    return made


def wider(layer, generator):
    """A layer that is told the label too; to the rest it does what it did."""
    made = linear(layer.in_features + 10, layer.out_features, generator)
    with torch.no_grad():
        made.weight[:, :-10] = layer.weight
    return made


class Greys(nn.Module):
    """The numbers of each pixel as a grey, and perhaps a second number within limits."""

    def __init__(self, network, limits, seed):
        super().__init__()
        self.network, self.limits = network, limits
        outputs = 1 if limits is None else 2
        self.last = linear(FEATURES, outputs, seeded(seed, stream="sharper greys"))

    def forward(self, z):
        numbers = self.last(F.silu(self.network(z)))
        mean = 0.5 + numbers[..., 0]
        if self.limits is None:
            return mean
        low, high = self.limits
        half = (high - low) / 2
        return mean, low + half + half * torch.tanh(numbers[..., 1] / half)


def greys(decoder, limits=None):
    def make(seed):
        model = base(seed)
        model.decoder = decoder(Greys(model.decoder.network, limits, seed))
        return model

    return make


def fixed(network):
    return GaussianDecoder(network, 1.0)


def learned(network):
    decoder = GaussianDecoder(network)
    nn.init.constant_(decoder.log_std, math.log(FIRST_STD))
    return decoder


def pixelwise(network):
    # A network's two outputs as mean and log std: what an encoder does with them, a decoder can.
    return RoundedDecoder(GaussianEncoder(network))


def recorded(name, latents):
    def make(seed):
        model = dense_vae(latents=latents)
        checkpoints.load(checkpoints.RECORDED / name, model)
        return model

    return make


ROWS = {
    "threshold": {
        "the post's": recorded("code-post", 5),
        "VAE": recorded("code-corrected", 5),
        "20 latents": recorded("issues-twenty", 20),
        "base": base,
    },
    "dynamic": {
        "base": base,
        "beta 0.5": base,
        "IWAE": base,
        "mixture": with_mixture,
        "VampPrior": with_vamp,
        "autoregressive prior": with_sequence,
        "local pixels": local,
        "both": with_both,
        "hierarchy": hierarchy,
        "VQ": quantized,
        "label": labelled,
    },
    "grey": {
        "sigma 1": greys(fixed),
        "one sigma": greys(learned),
        "a sigma a pixel": greys(pixelwise, limits=(-6.0, 1.0)),
        "logistic": greys(DiscretizedLogisticDecoder, limits=LOG_SCALES),
    },
}
FOUND = ("the post's", "VAE", "20 latents")  # and not trained here
SHIPPED = {"base": "sharper-base", "both": "sharper-both"}  # of the dynamic block, seed 0
AGAIN = ("base", "autoregressive prior")  # with another seed


# --- Training ---------------------------------------------------------------------------------


def as_shown(task, images, generator):
    """Make the pictures of a task of bytes."""
    if task == "grey":
        return images.float() / 255
    return binarize(images, task, generator=generator)


def data(choice, images, labels):
    """Return rows of bytes, and what makes pictures of them, with labels where they are told."""
    if choice["row"] != "label":
        return images, partial(as_shown, choice["task"])
    rows = torch.cat([images, labels[:, None]], 1)

    def transform(x, generator):
        label = F.one_hot(x[:, 784:].flatten().long(), 10).float()
        return torch.cat([as_shown(choice["task"], x[:, :784], generator), label], 1)

    return rows, transform


def objective(row, state):
    """The ELBO, with a rate that counts little at first, and what a row has in its place."""
    beta = 0.5 if row == "beta 0.5" else 1.0

    def value(model, x, generator):
        if row == "IWAE" and state.steps >= WARM_UP:
            return iwae(model, x, generator, samples=5)
        cost = terms(model, x, generator)
        return -(cost.distortion + beta * min(1, (state.steps + 1) / WARM_UP) * cost.rate)

    return quantized_objective if row == "VQ" else value


def fit(model, batches, what, state, seed):
    steps = EPOCHS * len(batches)
    train(
        model.to(memory_format=torch.channels_last),  # less time, for convolutions
        batches,
        what,
        epochs=EPOCHS,
        learning_rate=cosine(RATE, steps, warm_up=min(RISE, steps // 2)),
        clip=200,
        seed=seed,
        state=state,
    )
    model.to(memory_format=torch.contiguous_format)


def learn(model, choice, folder):
    """Train a row; return the seconds that it took."""
    mnist, seed = load_mnist(), choice["seed"]
    images, transform = data(choice, mnist.train_images, mnist.train_labels)
    batches = Batches(images, BATCH, seed=seed, transform=transform)
    state = State(folder / "training.state")
    if choice["row"] != "VQ":
        fit(model, batches, objective(choice["row"], state), state, seed)
        return state.cpu_seconds
    prior, model.prior = model.prior, None  # no part of the first training
    fit(model, batches, objective("VQ", state), state, seed)
    after = State(folder / "prior.state")

    def codes(x, generator):
        with torch.no_grad(), switched(model, training=False):
            return model.encoder(transform(x, generator)).codes

    def of_codes(prior, z, generator):
        return prior().log_prob(z)

    batches = Batches(images, BATCH, seed=seed, transform=codes)
    fit(prior, batches, of_codes, after, seed)
    model.prior = prior
    return state.cpu_seconds + after.cpu_seconds


# --- Scores -----------------------------------------------------------------------------------


def operations(model, x, row=None):
    """Count multiplications and additions for an image: to score it, or to learn a row from it."""
    learnt = {"VQ": quantized_objective, "IWAE": partial(iwae, samples=5)}
    with FlopCounterMode(display=False) as counter:
        bound = learnt.get(row, elbo)(model, x, seeded(0, stream="operations"))
        if row is not None:
            bound.mean().backward()
    model.zero_grad()
    return round(counter.get_total_flops() / len(x))


def shortened(estimate, digits=3):
    return [round(estimate.mean, digits), round(estimate.standard_error, digits)]


def likelihoods(model, choice, x):
    """Score the bound, and the log likelihood where several draws tell more than one."""
    scores = held_out_elbo(model, x)
    figures = {name: shortened(getattr(scores, name)) for name in ("elbo", "distortion", "rate")}
    values = {"elbo": scores.elbo.values}
    if choice["row"] != "VQ":
        rows = torch.randperm(len(x), generator=seeded(0, stream="rows"))[:IMAGES]
        found = log_likelihood(model, x[rows], samples=SAMPLES)
        figures["log_likelihood"] = shortened(found)
        figures["log_likelihood_step"] = round(found.step.mean, 3)
        values["log_likelihood"] = found.values
    return figures, values


def drawn_from(model, choice):
    """Draw pictures; return each kind of what may be shown of them."""
    generator = seeded(choice["seed"], stream="drawn pictures")
    parts = []
    with torch.no_grad(), switched(model, training=False):
        for count in [1000] * (DRAWN // 1000) + [DRAWN % 1000] * (DRAWN % 1000 > 0):
            given = model.generate(count, generator=generator)
            sample = given.sample(generator=generator)
            sees = isinstance(given, LocalBernoulli)
            mean = given.probabilities(sample) if sees else given.mean
            parts.append((sample, mean))
    sample, mean = (torch.cat(part) for part in zip(*parts, strict=True))
    if choice["row"] in ("local pixels", "both"):  # whose means depend on the pixels before
        return {"sample": sample, "probabilities": mean}
    kinds = {"sample": sample, "mean": mean}
    return kinds if choice["task"] == "grey" else kinds | {"most probable": (mean > 0.5).float()}


def references():
    """Return the network that judges, and the features of the test images of each task."""
    classifier, images = DigitClassifier(), load_mnist().test_images
    checkpoints.load(checkpoints.RECORDED / CLASSIFIER, classifier)
    shown = {task: as_shown(task, images, seeded(0, stream="test images")) for task in TASKS}
    return classifier, {task: seen_features(classifier, x) for task, x in shown.items()}


def judged(kinds):
    """Measure each kind of picture, against the test images of each task."""
    classifier, real = references()
    figures = {}
    for kind, pictures in kinds.items():
        seen = seen_features(classifier, pictures)
        chance = partial(seeded, 0, stream="bootstrap")
        figures[kind] = {
            "grey": shortened(Estimate(grey(pictures)), 2),
            "edges": shortened(Estimate(edges(pictures)), 2),
            "frechet": {
                task: [
                    round(frechet_distance(seen, other), 3),
                    round(frechet_error(seen, other, chance()), 3),
                ]
                for task, other in real.items()
            },
        }
    return figures


def keep(choice, tensors):
    """Add tensors to the file of scores."""
    path = checkpoints.RECORDED / SCORES
    kept = load_file(path) if path.exists() else {}
    name = f"{choice['task']}/{choice['row']}/{choice['seed']}"
    checkpoints.write(
        {path: save(kept | {f"{name}/{k}": v.contiguous() for k, v in tensors.items()})}
    )


def few(kinds):
    return {kind: (255 * pictures[:KEPT]).round().byte() for kind, pictures in kinds.items()}


def real_digits(choice):
    """Measure training images as if a model had drawn them, and the test images themselves."""
    mnist, task = load_mnist(), choice["task"]
    rows = torch.randperm(len(mnist.train_images), generator=seeded(0, stream="rows"))[:DRAWN]
    train_images = as_shown(task, mnist.train_images[rows], seeded(0, stream="training images"))
    test_images = as_shown(task, mnist.test_images, seeded(0, stream="test images"))
    return judged({"training images": train_images, "test images": test_images})


def measure(choice, folder):
    """Train one row, score it, and judge what it draws."""
    task, row = choice["task"], choice["row"]
    if row == "real digits":
        return real_digits(choice)
    mnist, model = load_mnist(), ROWS[task][row](choice["seed"])
    images, transform = data(choice, mnist.test_images, mnist.test_labels)
    x = transform(images, seeded(0, stream="test images"))
    figures = {
        "weights": sum(weight.numel() for weight in model.parameters()),
        "operations": operations(model, x[:BATCH]),
        "operations_to_learn": operations(model, x[:BATCH], row),
    }
    if row not in FOUND:
        model = ROWS[task][row](choice["seed"])
        figures["cpu_seconds_to_learn"] = round(learn(model, choice, folder))
    if isinstance(model.decoder, GaussianDecoder):  # learns by a density, is scored on levels
        model.decoder = RoundedDecoder(model.decoder)
    found, values = likelihoods(model, choice, x)
    before = time.process_time()
    kinds = drawn_from(model, choice)
    figures |= found | {"cpu_seconds_to_draw": round(time.process_time() - before)}
    figures |= {"pictures": judged(kinds)}
    if row == "VQ":
        with torch.no_grad():
            used = model.encoder(x[:1000]).codes.flatten().bincount(minlength=CODES) / 49_000
        figures["perplexity"] = round(torch.exp(torch.special.entr(used).sum()).item(), 2)
    if task == "dynamic" and choice["seed"] == 0 and row in SHIPPED:
        checkpoints.save(checkpoints.RECORDED / SHIPPED[row], model, data=task, **figures)
    keep(choice, values | few(kinds))
    return figures


def main():
    """Record what is not recorded yet."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    default = Path("outputs") / "recorded"
    parser.add_argument("--kept", type=Path, default=default, help="folder of unfinished work")
    weights = [CLASSIFIER, "code-post", "code-corrected", "issues-twenty"]
    record = Record(
        __file__,
        recipe="networks of a residual trunk (widths 16 and 32, one block at each size and side, "
        "16 features a pixel) with 24 latents, but for those that other records have; all 60,000 "
        "training images, three epochs, batches of 64, Adam, a learning rate that rises to 2e-3 "
        "over 200 steps and falls to zero along half a cosine, gradients clipped at 200, the rate "
        "weighted from 0 to 1 over 500 steps; no choice was made by the test images",
        unit="nats per image, on the 10,000 test images, and on 200 of them for the log "
        "likelihood of 500 samples; each with its standard error. Of 10,000 drawn pictures: grey "
        "in pixels, edges, and Fréchet distances with the bootstrap's error of the draws",
        data=[MNIST, *(checkpoints.RECORDED / f"{name}.safetensors" for name in weights)],
        kept=parser.parse_args().kept,
    )
    choices = [{"task": task, "row": "real digits", "seed": 0} for task in TASKS]
    choices += [{"task": t, "row": r, "seed": 0} for t, rows in ROWS.items() for r in rows]
    choices += [{"task": "dynamic", "row": row, "seed": 1} for row in AGAIN]
    record.run(measure, choices)


if __name__ == "__main__":
    main()
