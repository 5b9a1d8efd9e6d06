"""Record the code chapter's two trainings for several seeds, in code-seeds.json.

    python -m vae_lib.recorded.code_seeds

The post's loss is written as in the chapter; there each part of it is explained.
"""

import torch

from vae_lib.data import Batches, binarize, load_mnist
from vae_lib.evaluation import held_out_elbo
from vae_lib.model import dense_vae
from vae_lib.objectives import elbo
from vae_lib.records import Record
from vae_lib.training import train

SEEDS = range(5)
EPOCHS = 10
EPSILON = torch.finfo(torch.float32).eps


def post_objective(model, x, generator):
    q = model.encoder(x)
    p = model.decoder(q.rsample(generator=generator)).mean
    fit = (x * torch.log(p + EPSILON) + (1 - x) * torch.log(1 - p + EPSILON)).sum(-1)
    divergence = 0.5 * (torch.exp(2 * q.log_std) + q.mean**2 - 1 + q.log_std**2).sum(-1)
    return fit - divergence - 0.01 * sum((w**2).sum() for w in model.decoder.parameters())


VARIANTS = {"the post": (False, post_objective), "put right": (True, elbo)}


def measure(choice, folder):
    seed = choice["seed"]
    shuffle, objective = VARIANTS[choice["variant"]]
    mnist = load_mnist()
    batches = Batches(binarize(mnist.train_images, "threshold"), seed=seed, shuffle=shuffle)
    model = dense_vae(seed=seed)
    train(model, batches, objective, epochs=EPOCHS, seed=seed, state=folder / "training.state")
    score = held_out_elbo(model, binarize(mnist.test_images, "threshold")).elbo
    return {"elbo": round(score.mean, 3), "standard_error": round(score.standard_error, 3)}


def main():
    record = Record(
        __file__,
        recipe="784-500-5-500-784, MNIST by threshold, Adam 1e-3, batches of 100, 10 epochs; the "
        "post: its loss and fixed order; put right: ELBO on logits, shuffled",
        unit="nats per image, on the 10,000 held-out images",
    )
    choices = [{"variant": name, "seed": seed} for seed in SEEDS for name in VARIANTS]
    record.run(measure, choices)


if __name__ == "__main__":
    main()
