"""Record the emoji network and two ways to hold emoji out, in own-split.json.

    python -m vae_lib.recorded.own_split

A design is drawn in up to six tones of skin. Held out at random, a picture leaves its other tones
among those that are learnt from; held out by design, it leaves none. Three folds for each way
hold every picture out once, so both ways are compared on the same pictures. The seventh run is
the network that the chapter looks at: it learns from nine tenths, split by design.
"""

import argparse

import torch

from vae_lib import checkpoints
from vae_lib.convolutional import conv_vae
from vae_lib.data import Batches, quantize
from vae_lib.evaluation import held_out_elbo
from vae_lib.images import EMOJI, load_images, split_groups
from vae_lib.records import Record
from vae_lib.states import State
from vae_lib.training import train

EPOCHS = 30
FOLDS = range(3)


def folds(groups):
    """Cut the rows into three parts of nearly one size, no group in two of them."""
    rest, first = split_groups(groups, 1 / 3)
    second, third = split_groups([groups[row] for row in rest], 1 / 2)
    return first, rest[second], rest[third]


def augmented(shape):
    """Mirror half of the pictures, left and right, and make greys of bytes."""

    def transform(x, generator):
        turned = torch.rand(len(x), 1, generator=generator) < 0.5
        mirrored = x.reshape(-1, *shape).flip(-1).flatten(1)
        return quantize(torch.where(turned, mirrored, x), 256)

    return transform


def rows_of(choice, pictures):
    """Return the rows to learn from and the rows held out."""
    designs = [name.split(".")[0] for name in pictures.names]
    if choice["split"] == "chapter":
        return split_groups(designs)
    groups = designs if choice["split"] == "by design" else list(range(len(pictures)))
    held = folds(groups)[choice["fold"]]
    learnt = torch.ones(len(pictures), dtype=torch.bool)
    learnt[held] = False
    return learnt.nonzero().flatten(), held


def measure(choice, folder):
    """Train one network, and score the average of its weights on what was held out."""
    pictures = load_images(EMOJI, channels=3, background="white")
    learnt, held = rows_of(choice, pictures)
    model, state = conv_vae(pictures.shape), State(folder / "training.state")
    images = quantize(pictures.images[held], 256)
    curve = {}
    if choice["split"] == "chapter":
        curve["after_epoch"] = lambda _: {
            "held_out": round(held_out_elbo(state.averaged, images).elbo.mean, 1)
        }
    train(
        model,
        Batches(pictures.images[learnt], batch_size=64, transform=augmented(pictures.shape)),
        epochs=EPOCHS,
        learning_rate=4e-3,
        clip=1000,
        average=0.99,
        state=state,
        **curve,
    )
    scores = held_out_elbo(state.averaged, images)
    seen = held_out_elbo(state.averaged, quantize(pictures.images[learnt], 256))
    figures = {
        "learnt_from": len(learnt),
        "held_out": len(held),
        "elbo": round(scores.elbo.mean, 2),
        "standard_error": round(scores.elbo.standard_error, 2),
        "rate": round(scores.rate.mean, 2),
        "elbo_of_learnt": round(seen.elbo.mean, 2),
    }
    if choice["split"] == "chapter":
        checkpoints.save(checkpoints.RECORDED / "own-emoji", state.averaged, **figures)
        rows = [{k: round(v, 1) for k, v in row.items()} for row in state.history]
        return {**figures, "history": rows}
    values = [round(value, 1) for value in scores.elbo.values.tolist()]
    return {**figures, "rows": held.tolist(), "elbos": values}


def main():
    """Record what is not recorded yet."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--workers", type=int, default=2, help="processes of one thread each")
    workers = parser.parse_args().workers
    record = Record(
        __file__,
        recipe="conv_vae of 3 x 32 x 32 with 64 latents and width 32, 256 levels; emoji on white, "
        "mirrored at random; 30 epochs, batches of 64, Adam 4e-3, gradients clipped at 1000, "
        "weights averaged with 0.99, seed 0; no choice is made by what is held out",
        unit="nats per picture of 3,072 numbers",
        data=[EMOJI],
    )
    choices = [{"split": way, "fold": k} for k in FOLDS for way in ("at random", "by design")]
    record.run(measure, [{"split": "chapter", "fold": 0}, *choices], workers=workers)


if __name__ == "__main__":
    main()
