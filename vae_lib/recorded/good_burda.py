"""Record the networks of Burda, Grosse and Salakhutdinov (2016), in good-burda.json.

    python -m vae_lib.recorded.good_burda --name good-vae
    python -m vae_lib.recorded.good_burda --name good-iwae

Their network and data: 784-200-200-50-200-200-784 with tanh, images binarised anew at each
showing, batches of 20, Adam, eight stages of falling step size, and 5,000 samples an image to
score all 10,000 test images. Ours is the number of epochs, what two processor cores do in two
hours; their stages grow threefold, to 3,280 in all. With one sample the objective is the ELBO,
with k it is the importance-weighted bound of k.
"""

import argparse
from functools import partial

import torch
from safetensors.torch import save_file

from vae_lib import checkpoints
from vae_lib.data import Batches, binarize, hold_out, load_mnist, seeded
from vae_lib.evaluation import held_out_elbo, log_likelihood
from vae_lib.model import dense_vae
from vae_lib.objectives import elbo, iwae
from vae_lib.records import Record
from vae_lib.states import State
from vae_lib.training import train

STAGES = 8
SAMPLES = {"good-vae": 1, "good-iwae": 50}
EPOCHS = {1: (100,) * 3 + (40,) * 5, 50: (14,) * 3 + (8,) * 5}  # stage by stage


def network(images):
    """Their network; the decoder starts from the mean image, as theirs does."""
    model = dense_vae(hidden=(200, 200), latents=50, seed=0)
    mean = (images.float().mean(0) / 255).clamp(1e-3, 1 - 1e-3)
    with torch.no_grad():
        model.decoder.network[-1].bias.copy_(torch.logit(mean))
    return model


def objective(model, x, generator, *, samples):
    if samples == 1:
        return elbo(model, x, generator)
    # Matrix products in half the bits take half the time.
    with torch.autocast("cpu", dtype=torch.bfloat16):
        return iwae(model, x, generator, samples=samples)


def learning_rate(stage):
    """1e-3 falling to 1e-4 in eight steps, rounded as in their experiments."""
    return 1e-4 * round(10 ** (1 - stage / (STAGES - 1)), 1)


def drawn(x, generator):
    return binarize(x, "dynamic", generator=generator)


def measure(choice, folder):
    samples = SAMPLES[choice["name"]]
    # 400 training images are kept apart, as theirs were, to draw the curve on.
    learn, validation = hold_out(load_mnist().train_images, 400)
    validation = drawn(validation, torch.Generator().manual_seed(0))
    model, stages = network(learn), []
    for stage, epochs in enumerate(EPOCHS[samples]):
        # Adam starts anew in each stage, and the last epoch of a stage tells the curve.
        state = State(folder / f"stage-{stage}.state")

        def curve(epoch, last=epochs):
            if epoch < last:
                return {}
            found = log_likelihood(model, validation, samples=1000)
            bound = held_out_elbo(model, validation).elbo.mean
            return {
                "validation_log_likelihood": round(found.mean, 3),
                "validation_elbo": round(bound, 3),
            }

        history = train(
            model,
            Batches(learn, batch_size=20, seed=stage, transform=drawn),
            partial(objective, samples=samples),
            epochs=epochs,
            learning_rate=learning_rate(stage),
            seed=stage,
            after_epoch=curve,
            state=state,
        )
        found = state.history[-1]
        stages.append(
            {
                "epochs": epochs,
                "learning_rate": learning_rate(stage),
                "objective": [round(value, 3) for value in history],
                "validation_log_likelihood": found["validation_log_likelihood"],
                "validation_elbo": found["validation_elbo"],
                "wall_seconds": round(state.wall_seconds),
                "cpu_seconds": round(state.cpu_seconds),
            }
        )
    figures = score(model, choice["name"])
    products = "float32" if samples == 1 else "bfloat16"
    return {"objective_samples": samples, "products": products, **figures, "stages": stages}


def score(model, name, samples=5000):
    """Score all test images, binarised once: their ELBO and their log p(x)."""
    images = load_mnist().test_images
    images = drawn(images, seeded(0, stream="test images"))
    cost = held_out_elbo(model, images)
    found = log_likelihood(model, images, samples=samples)
    figures = {
        "elbo": round(cost.elbo.mean, 3),
        "elbo_standard_error": round(cost.elbo.standard_error, 3),
        "rate": round(cost.rate.mean, 3),
        "log_likelihood": round(found.mean, 3),
        "standard_error": round(found.standard_error, 3),
        "samples": samples,
    }
    values = {
        "elbo": cost.elbo.values,
        "log_likelihood": found.values,
        "effective_samples": found.effective_samples,
    }
    checkpoints.save(checkpoints.RECORDED / name, model, **figures)
    save_file(values, checkpoints.RECORDED / f"{name}-scores.safetensors")
    return figures


def main():
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--name", choices=SAMPLES, required=True)
    record = Record(
        __file__,
        recipe="784-200-200-50-200-200-784 with tanh, MNIST binarised dynamically, batches of 20, "
        "Adam at step sizes falling from 1e-3 to 1e-4, seed 0; 400 training images apart",
        unit="nats per image; scores on the 10,000 test images, binarised once",
    )
    record.run(measure, [{"name": parser.parse_args().name}])


if __name__ == "__main__":
    main()
