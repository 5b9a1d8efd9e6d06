"""Trainings for several processes to do together; torchrun starts them, test_processes compares.

    python -m torch.distributed.run --standalone --nproc-per-node 2 -m tests.together OUT NAME ...

Without torchrun one process does the same alone. Each training leaves OUT/NAME.pt.
"""

import os
import sys
from functools import partial
from pathlib import Path
from unittest import mock

import numpy as np
import torch

from vae_lib import noise, steps
from vae_lib.convolutional import conv_vae
from vae_lib.data import Batches, binarize
from vae_lib.distributions import DiagonalGaussian
from vae_lib.evaluation import held_out_elbo
from vae_lib.hierarchy import conv_hierarchy
from vae_lib.model import dense_vae
from vae_lib.noise import Share, normal
from vae_lib.objectives import dreg, elbo, iwae
from vae_lib.processes import from_first, joined, share
from vae_lib.residual import residual_vae
from vae_lib.states import State
from vae_lib.training import cosine, train


def images(n, pixels=16):
    """Make zeros and ones, whole rows of which are alike, in 64 bits."""
    generator = torch.Generator().manual_seed(0)
    patterns = (torch.rand(3, pixels, generator=generator) < 0.5).double()
    flips = torch.rand(n, pixels, generator=generator) < 0.1
    return (patterns[torch.arange(n) % 3] - flips.double()).abs()


def dynamic(x, generator):
    return binarize(0.1 + 0.8 * x, "dynamic", generator=generator).double()


def by_itself(model, x, generator):
    """An objective that draws on its own, by the function that knows of rows."""
    q = model.encoder(x)
    z = q.mean + q.std * normal(q.mean.shape, generator, like=x)
    return model.decoder(z).log_prob(x) - q.kl(DiagonalGaussian(0 * q.mean, 0 * q.mean))


def half(model, x, generator):
    """An objective that leaves the encoder out."""
    z = normal((len(x), 2), generator, like=x)
    return model.decoder(z).log_prob(x)


def dense():
    return dense_vae(pixels=16, hidden=8, latents=2).double()


def hierarchy():
    sizes = {"layers": (1, 1), "latents": 2, "channels": 1, "width": 4}
    return conv_hierarchy((1, 4, 4), **sizes).double()


def in_turn():
    """A network whose prior and whose pixels are autoregressive."""
    options = {"widths": (4, 4), "encoder_blocks": (1, 1), "decoder_blocks": (1, 1)}
    return residual_vae((4, 4), 3, features=4, **options).double()


def trained(objective=elbo, *, make=dense, n=110, size=20, transform=None, epochs=4, **options):
    """Train for about twenty steps and return the weights."""
    model, state = make(), State()
    batches = Batches(images(n), size, seed=1, transform=transform)
    history = train(
        model, batches, objective, epochs=epochs, learning_rate=1e-2, state=state, **options
    )
    kept = {} if state.averaged is None else {"averaged": state.averaged.state_dict()}
    return {"weights": model.state_dict(), "history": history, **kept}


def all_options():
    """Train with all that has an effect on a step."""
    rate, score = cosine(1e-2, 24, warm_up=3), lambda model: elbo_of(model).elbo.mean
    model, state = dense(), State()
    batches = Batches(images(110), 20, transform=dynamic)
    options = {"learning_rate": rate, "clip": 3.0, "average": 0.9, "validate": score}
    train(model, batches, epochs=4, state=state, skip=True, **options)
    best = state.best["weights"]
    return {"weights": model.state_dict(), "averaged": state.averaged.state_dict(), "best": best}


def elbo_of(model):
    with torch.no_grad():
        return held_out_elbo(model, images(60))


def an_epoch():
    """Train for an epoch in 32 bits and score what was held out."""
    make = partial(dense_vae, hidden=100)
    model, x = make(), images(3400, 784).float()
    train(model, Batches(x[:3000], 50), epochs=1)
    return {"held out": held_out_elbo(model, x[3000:]).elbo.mean}


def in_two_halves(out):
    """Stop after half of the epochs, and go on from the file with a new model."""
    options = {"learning_rate": 1e-2, "average": 0.9}
    batches = Batches(images(110), 20, transform=dynamic)
    straight, first, second = dense(), dense(), dense()
    train(straight, batches, epochs=4, **options)
    train(first, batches, epochs=2, **options, state=out / f"half of {share().of}")
    train(second, batches, epochs=4, **options, state=out / f"half of {share().of}")
    return {"straight": straight.state_dict(), "weights": second.state_dict()}


def killed(out):
    """Let the second process die in the middle of an epoch, once, and be started again."""
    model, seen = dense(), []

    def objective(model, x, generator):
        seen.append(len(x))
        if share().rank == 1 and os.environ["TORCHELASTIC_RESTART_COUNT"] == "0" and len(seen) > 9:
            os._exit(9)
        return elbo(model, x, generator)

    batches = Batches(images(110), 20, seed=1)
    state = State(out / "killed.state", every=0)
    train(model, batches, objective, epochs=4, learning_rate=1e-2, state=state)
    return {"weights": model.state_dict(), "steps": len(seen)}


def refused():
    """Have one process meet an image of grey, in the second step."""
    x = images(80)
    x[torch.arange(35, 40)] = 0.5
    model = dense()
    before = []
    objective = lambda *given: before.append(weights(model)) or elbo(*given)  # noqa: E731
    try:
        train(model, Batches(x, 20, shuffle=False), objective, epochs=1)
    except ValueError as error:
        return {"error": str(error), "kept": torch.equal(weights(model), before[1])}


def left_out():
    """Train with an objective that some parameters have no part in."""
    try:
        trained(half)
    except ValueError as error:
        return {"error": str(error)}


def weights(model):
    return torch.cat([w.detach().flatten() for w in model.parameters()])


def mapped(out):
    """Learn from a file that is looked into and not read; tell which rows each process took."""
    file = out / "rows.npy"
    from_first(lambda: np.save(file, images(4096, 784).byte().numpy()))
    rows = np.load(file, mmap_mode="c")
    taken = []

    def transform(x, generator):
        taken.append(len(x))
        return x.float()

    batches = Batches(torch.from_numpy(rows), 100, transform=transform)
    train(dense_vae(hidden=8), batches, epochs=1)
    return {"rows": sum(taken)}


def noise_for_its_rows_alone(draw, shape, generator, axis, device, dtype):
    generator = getattr(generator, "generator", generator)
    return draw(tuple(shape), generator=generator, device=device, dtype=dtype)


PLANTED = {
    "noise": (noise, "_drawn", noise_for_its_rows_alone),
    "rows": (Share, "rows", lambda self, total: slice(0, total // self.of)),
    "sum": (steps, "DistributedDataParallel", lambda module, **_: module),
}


def planted(what):
    """Train with an error put in on purpose."""
    with mock.patch.object(*PLANTED[what]):
        return trained()


TRAININGS = {
    "elbo": trained,
    "a row for one": partial(trained, n=61),
    "dynamic": partial(trained, transform=dynamic),
    "iwae": partial(trained, partial(iwae, samples=3)),
    "dreg": partial(trained, partial(dreg, samples=3)),
    "by itself": partial(trained, by_itself),
    "convolutions": partial(
        trained,
        make=lambda: conv_vae((1, 8, 8), 3, width=2, likelihood="bits").double(),
        transform=lambda x, _: x.repeat(1, 4),
    ),
    "hierarchy": partial(trained, make=hierarchy, epochs=2),
    "latents in turn": partial(trained, make=in_turn, epochs=2),
    "all options": all_options,
    "an epoch": an_epoch,
    "refused": refused,
    "left out": left_out,
    **{f"planted {what}": partial(planted, what) for what in PLANTED},
    "in two halves": in_two_halves,
    "killed": killed,
    "mapped": mapped,
}


def main(out, *names):
    """Do trainings in turn; each process leaves what it found."""
    torch.set_num_threads(1)
    out = Path(out)
    with joined() as ours:
        for name in names:
            training = TRAININGS[name]
            found = training(out) if training in (in_two_halves, killed, mapped) else training()
            torch.save(found, out / f"{name} {ours.rank} of {ours.of}.pt")


if __name__ == "__main__":
    main(*sys.argv[1:])
