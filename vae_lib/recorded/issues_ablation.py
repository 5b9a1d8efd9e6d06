"""Record which of the post's choices cost how much, in issues-ablation.json.

    python -m vae_lib.recorded.issues_ablation --seeds 0 1 --epochs 100
    python -m vae_lib.recorded.issues_ablation --seeds 2 3 4 --epochs 10

Two divergences x two penalties x two numbers of latents, each trained once a seed and scored
after several numbers of epochs. The wrong objectives are those of the issues chapter, which
explains them.
"""

import argparse
import itertools
from functools import partial

from vae_lib import checkpoints
from vae_lib.data import Batches, binarize, load_mnist
from vae_lib.evaluation import held_out_elbo
from vae_lib.model import dense_vae
from vae_lib.records import Record
from vae_lib.states import State
from vae_lib.training import train

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


def measure(choice, folder):
    """Train one network and return its scores after each number of epochs."""
    seed, epochs = choice["seed"], choice["epochs"]
    mnist = load_mnist()
    images = binarize(mnist.train_images, "threshold")
    held_out = binarize(mnist.test_images, "threshold")
    model, state = dense_vae(latents=choice["latents"], seed=seed), State(folder / "training.state")

    def score(epoch):
        if epoch not in MARKS:
            return {}
        found = held_out_elbo(model, held_out)
        return {
            "elbo": round(found.elbo.mean, 3),
            "standard_error": round(found.elbo.standard_error, 3),
            "rate": round(found.rate.mean, 3),
        }

    train(
        model,
        Batches(images, seed=seed),
        partial(objective, divergence=choice["divergence"], penalty=choice["penalty"]),
        epochs=epochs,
        seed=seed,
        after_epoch=score,
        state=state,
    )
    names = ("elbo", "standard_error", "rate")
    scores = [
        {"epochs": row["epoch"], **{name: row[name] for name in names}}
        for row in state.history
        if row["epoch"] in MARKS
    ]
    if choice == SHIPPED:
        found = {name: scores[-1][name] for name in ("elbo", "standard_error")}
        checkpoints.save(checkpoints.RECORDED / "issues-twenty", model, **SHIPPED, **found)
    return {"scores": scores}


def main():
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--seeds", type=int, nargs="+", required=True)
    parser.add_argument("--epochs", type=int, choices=MARKS, default=MARKS[-1])
    parser.add_argument("--workers", type=int, default=2, help="processes of one thread each")
    asked = parser.parse_args()
    record = Record(
        __file__,
        recipe="784-500-latents-500-784 with tanh, MNIST by threshold, shuffled batches of 100, "
        "Adam 1e-3, logits; every score is the true ELBO with one sample of z",
        unit="nats per image, on the 10,000 held-out images",
    )
    wanted = itertools.product(asked.seeds, DIVERGENCES, PENALTIES, LATENTS)
    names = ("seed", "divergence", "penalty", "latents")
    choices = [{**dict(zip(names, c, strict=True)), "epochs": asked.epochs} for c in wanted]
    record.run(measure, choices, workers=asked.workers)


if __name__ == "__main__":
    main()
