"""Record what 2, 5 and 20 latents give back after equal training, in issues-latents.json.

    python -m vae_lib.recorded.issues_latents

The network is that of the code chapter, trained as there, so the ones with 2 and with 5 latents
and seed 0 are in `output-two-latents` and `code-corrected` too. The one with 20 and seed 0 is
kept in `issues-twenty-short`.
"""

import argparse
import itertools

import torch

from vae_lib import checkpoints
from vae_lib.data import Batches, binarize, load_mnist, seeded
from vae_lib.evaluation import Estimate, held_out_elbo
from vae_lib.model import dense_vae
from vae_lib.records import Record
from vae_lib.training import train

SEEDS, LATENTS, EPOCHS = range(5), (2, 5, 20), 10
SHIPPED = {"latents": 20, "seed": 0}


def rebuild(model, images):
    """Encode images, draw one z each and return the probabilities of their pixels."""
    with torch.no_grad():
        z = model.encoder(images).rsample(generator=seeded(0, stream="rebuilt"))
        return model.decoder(z).mean


def measure(choice, folder):
    """Train one network, rebuild the held-out images, and count what is grey and what is wrong."""
    seed = choice["seed"]
    mnist = load_mnist()
    images = binarize(mnist.test_images, "threshold")
    model = dense_vae(latents=choice["latents"], seed=seed)
    batches = Batches(binarize(mnist.train_images, "threshold"), seed=seed)
    train(model, batches, epochs=EPOCHS, seed=seed, state=folder / "training.state")
    scores, p = held_out_elbo(model, images), rebuild(model, images)
    figures = {
        "elbo": scores.elbo,
        "distortion": scores.distortion,
        "rate": scores.rate,
        "grey_pixels": Estimate((4 * p * (1 - p)).sum(-1)),
        "wrong_pixels": Estimate(((p > 0.5) != (images > 0.5)).float().sum(-1)),
    }
    found = {name: round(value.mean, 3) for name, value in figures.items()}
    errors = {name: round(value.standard_error, 3) for name, value in figures.items()}
    if choice == SHIPPED:
        recipe = {"data": "MNIST, threshold", "hidden": 500, "epochs": EPOCHS, **SHIPPED}
        score = {"elbo": found["elbo"], "standard_error": errors["elbo"]}
        checkpoints.save(checkpoints.RECORDED / "issues-twenty-short", model, **recipe, **score)
    return {**found, "standard_errors": errors}


def main():
    """Record what is not recorded yet."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--workers", type=int, default=2, help="processes of one thread each")
    workers = parser.parse_args().workers
    record = Record(
        __file__,
        recipe="784-500-latents-500-784 with tanh, MNIST by threshold, the ELBO, Adam 1e-3, "
        "shuffled batches of 100, ten epochs; grey pixels: the sum of 4 p (1 - p) of an image "
        "rebuilt from one draw of z; wrong pixels: where its most probable image is not the real",
        unit="nats or pixels per image, on the 10,000 held-out images",
    )
    choices = [{"latents": n, "seed": seed} for seed, n in itertools.product(SEEDS, LATENTS)]
    record.run(measure, choices, workers=workers)


if __name__ == "__main__":
    main()
