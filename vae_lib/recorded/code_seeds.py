"""Record the steps from the post's training to the code chapter's own, in code-seeds.json.

    python -m vae_lib.recorded.code_seeds

The first of the five variants is the post's training and the last the chapter's VAE; each takes
one more step from the one to the other. The post's loss is written as in the chapter, which
explains each part of it.
"""

import argparse

import torch

from vae_lib.data import Batches, binarize, load_mnist, seeded
from vae_lib.evaluation import held_out_elbo
from vae_lib.model import dense_vae
from vae_lib.objectives import elbo
from vae_lib.records import Record
from vae_lib.training import train

SEEDS = range(5)
EPOCHS = 10
DELTA = torch.finfo(torch.float32).eps


def post_bound(model, x, generator):
    """What the post prints, with the sign turned: its likelihood and its form of the divergence."""
    q = model.encoder(x)
    p = model.decoder(q.rsample(generator=generator)).mean
    fit = (x * torch.log(p + DELTA) + (1 - x) * torch.log(1 - p + DELTA)).sum(-1)
    return fit - 0.5 * (torch.exp(2 * q.log_std) + q.mean**2 - 1 + q.log_std**2).sum(-1)


def post_objective(model, x, generator):
    """The above with the post's penalty on the decoder."""
    squares = sum((w**2).sum() for w in model.decoder.parameters())
    return post_bound(model, x, generator) - 0.01 * squares


def in_file_order(images, seed):
    """MNIST's own order, the same in every epoch."""
    return Batches(images, shuffle=False)


def in_one_order(images, seed):
    """One random order, the same in every epoch."""
    rows = torch.randperm(len(images), generator=seeded(seed, stream="one order"))
    return Batches(images[rows], shuffle=False)


def in_fresh_orders(images, seed):
    """Another random order in every epoch."""
    return Batches(images, seed=seed)


VARIANTS = {
    "the post": (in_file_order, post_objective),
    "one random order": (in_one_order, post_objective),
    "fresh orders": (in_fresh_orders, post_objective),
    "no penalty": (in_fresh_orders, post_bound),
    "VAE": (in_fresh_orders, elbo),
}


def measure(choice, folder):
    """Train one network and score it."""
    seed = choice["seed"]
    batches, objective = VARIANTS[choice["variant"]]
    mnist = load_mnist()
    batches = batches(binarize(mnist.train_images, "threshold"), seed)
    model = dense_vae(seed=seed)
    train(model, batches, objective, epochs=EPOCHS, seed=seed, state=folder / "training.state")
    score = held_out_elbo(model, binarize(mnist.test_images, "threshold")).elbo
    return {"elbo": round(score.mean, 3), "standard_error": round(score.standard_error, 3)}


def main():
    """Record what is not recorded yet."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--workers", type=int, default=2, help="processes of one thread each")
    workers = parser.parse_args().workers
    record = Record(
        __file__,
        recipe="784-500-5-500-784 with tanh, MNIST by threshold, Adam 1e-3, batches of 100, ten "
        "epochs; the post: its loss, MNIST's own order; then one random order for all epochs; "
        "another in each; no penalty; VAE: the right divergence and logits too",
        unit="nats per image, on the 10,000 held-out images",
    )
    choices = [{"variant": name, "seed": seed} for seed in SEEDS for name in VARIANTS]
    record.run(measure, choices, workers=workers)


if __name__ == "__main__":
    main()
