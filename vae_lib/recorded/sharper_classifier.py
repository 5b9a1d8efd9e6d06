"""Record the classifier whose features the Fréchet distances are taken of: sharper-classifier.json.

    python -m vae_lib.recorded.sharper_classifier

It learns from all 60,000 training images, each shown in one of three ways, drawn anew in each
epoch: as greys, binarised dynamically, or by threshold. So it is at home in all three tasks.
"""

import torch
from torch.nn import functional as F

from vae_lib import checkpoints
from vae_lib.data import Batches, binarize, load_mnist, seeded
from vae_lib.looks import DigitClassifier
from vae_lib.records import Record
from vae_lib.training import cosine, train

EPOCHS = 5
NAME = "digit-classifier"


def shown(images, generator):
    """Return pictures in the three ways that the tasks show them."""
    return {
        "grey": images.float() / 255,
        "dynamic": binarize(images, "dynamic", generator=generator),
        "threshold": binarize(images, "threshold"),
    }


def mixed(rows, generator):
    """Show each image in one of the ways; its label stays in the last column."""
    ways = torch.stack(list(shown(rows[:, :-1], generator).values()))
    which = torch.randint(len(ways), (len(rows),), generator=generator)
    return torch.cat([ways[which, torch.arange(len(rows))], rows[:, -1:].float()], 1)


def right(model, x, generator):
    """The log probability of the label."""
    return -F.cross_entropy(model(x[:, :-1]), x[:, -1].long(), reduction="none")


def measure(choice, folder):
    mnist, model = load_mnist(), DigitClassifier(choice["seed"])
    rows = torch.cat([mnist.train_images, mnist.train_labels[:, None]], 1)
    batches = Batches(rows, seed=choice["seed"], transform=mixed)
    rate = cosine(3e-3, EPOCHS * len(batches), warm_up=min(200, len(batches)))
    state = folder / "training.state"
    train(model, batches, right, epochs=EPOCHS, learning_rate=rate, state=state)
    figures = {"weights": sum(weight.numel() for weight in model.parameters())}
    with torch.no_grad():
        for way, x in shown(mnist.test_images, seeded(0, stream="test images")).items():
            said = torch.cat([model(part).argmax(-1) for part in x.split(1000)])
            figures[f"wrong_{way}"] = (said != mnist.test_labels).sum().item()
    checkpoints.save(checkpoints.RECORDED / NAME, model, data="MNIST", **figures)
    return figures


def main():
    """Record what is not recorded yet."""
    record = Record(
        __file__,
        recipe="DigitClassifier, all 60,000 training images, each shown as greys, binarised "
        "dynamically or by threshold; five epochs, batches of 100, Adam, a learning rate that "
        "rises to 3e-3 over 200 steps and falls to zero along half a cosine",
        unit="test images of 10,000 that are told wrongly",
    )
    record.run(measure, [{"seed": 0}])


if __name__ == "__main__":
    main()
