"""Write the networks of the book as scripts for its pages: `python -m book.export_weights FOLDER`.

Each file puts one object into `vaeBook.data`, so that a page opened from a disk can load it by a
`<script>`, which needs no server. `make book` calls this; nothing of it is committed.

The large matrices go out in 8 bits, one scale for each row. With each weight rounded by itself the
ELBO of an image would move by up to 0.9 nats. So the columns are rounded in turn, and those to the
right take over what the rounding did to the outputs, as far as they can for the inputs that the
layer meets (Frantar and others, GPTQ, 2023, after Hassibi and Stork, 1993). The network with fifty
latents is surer of its pixels, and 8 bits would still move one by 0.04: it goes out in 16.
"""

import base64
import json
import sys
from pathlib import Path

import numpy as np
import torch
from torch import nn

from vae_lib import checkpoints
from vae_lib.data import binarize, load_mnist, seeded
from vae_lib.model import dense_vae

EXACT = 4000  # a layer with fewer weights than this keeps all of their bits
LIMIT = 2_500_000  # bytes of all files together
PLACES = 2**15 / 6  # a latent of 1 as a whole number of 16 bits: means lie within 5


def text(array, kind):
    """Return numbers as base64 of their little-endian bytes, such as `<f4`."""
    return base64.b64encode(np.ascontiguousarray(array, dtype=kind).tobytes()).decode("ascii")


def rounded(weight, inputs, most):
    """Round a matrix to whole numbers of -most to most times a scale for each row.

    Arguments:
        weight: Shape (rows, columns).
        inputs: What the layer meets, shape (examples, columns), any number of them.
        most: 127 for 8 bits, 32,767 for 16.

    Returns:
        The whole numbers, shape (rows, columns), and the scales, shape (rows, 1), in float64.
    """
    left, inputs = weight.double().clone(), inputs.double()
    scale = left.abs().amax(1, keepdim=True) / most
    together = inputs.T @ inputs / len(inputs)
    # A little on the diagonal: inputs that never occur, such as the rim's pixels, have no inverse.
    together += 1e-4 * together.diag().mean() * torch.eye(len(together), dtype=torch.float64)
    passes_on = torch.linalg.cholesky(torch.linalg.inv(together), upper=True)
    whole = torch.empty_like(left)
    for column, shares in enumerate(passes_on):
        whole[:, column] = (left[:, column] / scale[:, 0]).round().clamp(-most, most)
        error = left[:, column] - whole[:, column] * scale[:, 0]
        left[:, column:] -= torch.outer(error / shares[column], shares[column:])
    return whole, scale


def layer(linear, inputs, width=1):
    """Return an affine layer for a page, its weights in `width` bytes each."""
    weight, bias = linear.weight.detach(), linear.bias.detach()
    found = {"outputs": len(weight), "bias": text(bias, "<f4")}
    if weight.numel() < EXACT:
        return found | {"floats": text(weight, "<f4")}
    whole, scale = rounded(weight, inputs, 2 ** (8 * width - 1) - 1)
    return found | {"whole": text(whole, f"<i{width}"), "width": width, "scale": text(scale, "<f4")}


def layers(network, inputs, width=1):
    """Return the affine layers of a network, each quantized for what it meets there."""
    found = []
    for part in network:
        if isinstance(part, nn.Sequential):
            found += layers(part, inputs, width)
        elif isinstance(part, nn.Linear):
            found.append(layer(part, inputs, width))
        inputs = part(inputs)
    return found


def recorded(name, **sizes):
    """Return a recorded network and how it was made."""
    model = dense_vae(**sizes)
    recipe = checkpoints.load(checkpoints.RECORDED / name, model)
    return model.requires_grad_(False), recipe


def met_by_decoder(model, images):
    """Return latents for which a decoder is rounded: of images, and more widely scattered."""
    noise = seeded(0, stream="page")
    encoded = model.encoder(images).rsample(generator=noise)
    return torch.cat([encoded, 1.5 * torch.randn(encoded.shape, generator=noise)])


def files():
    """Return the contents of the files by their names: what the widgets need."""
    mnist = load_mnist()
    images = binarize(mnist.train_images[:3000], "threshold")
    held_out, labels = binarize(mnist.test_images, "threshold"), mnist.test_labels
    first = [int((labels == digit).nonzero()[0]) for digit in range(10)]

    plane, recipe = recorded("output-two-latents", latents=2)
    means = plane.encoder(held_out).mean
    encoder = plane.encoder.network
    features = encoder.trunk(images)
    yield (
        "two-decoder",
        {
            "decoder": layers(plane.decoder.network, met_by_decoder(plane, images)),
            "means": text((means * PLACES).round(), "<i2"),
            "places": PLACES,
            "labels": text(labels, "<u1"),
        },
    )
    yield (
        "two-encoder",
        {
            "trunk": layers(encoder.trunk, images),
            "mean": [layer(encoder.first, features)],
            "log_std": [layer(encoder.second, features)],
            "elbo": recipe["elbo"],
        },
    )
    yield "digits", {"bits": [text(np.packbits(held_out[k].bool().numpy()), "<u1") for k in first]}

    fifty, _ = recorded("good-vae", hidden=(200, 200), latents=50)
    # The same pixels as in the chapter, so that its table and the page give the same rates.
    coins = seeded(0, stream="coins")
    q = fifty.encoder(binarize(mnist.test_images, "dynamic", generator=coins))
    rates = (0.5 * (q.std**2 + q.mean**2 - 1) - q.log_std).mean(0)
    yield (
        "fifty-decoder",
        {
            "decoder": layers(fifty.decoder.network, met_by_decoder(fifty, images), width=2),
            "rates": [round(rate, 4) for rate in rates.tolist()],
            "starts": [[round(z, 4) for z in q.mean[k].tolist()] for k in first],
        },
    )


def export(folder):
    """Write the files into a folder; return how many bytes they have together."""
    folder.mkdir(parents=True, exist_ok=True)
    size = 0
    for name, content in files():
        script = f"vaeBook.data[{json.dumps(name)}] = {json.dumps(content)};\n"
        size += (folder / f"{name}.js").write_text(script, encoding="utf-8")
    if size > LIMIT:
        raise RuntimeError(f"the networks of the pages have {size} bytes, more than {LIMIT}")
    return size


if __name__ == "__main__":
    torch.set_num_threads(1)
    print(f"{export(Path(sys.argv[1])):,} bytes")
