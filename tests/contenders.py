"""What `make bench` times in PyTorch. Each function prepares a training and returns its round."""

import json
import os
import sys
from itertools import count

import torch
import torch.nn.functional as F
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

from tests.bench import Workload, asked, decline, serve, thresholded
from vae_lib.convolutional import conv_vae
from vae_lib.data import Batches
from vae_lib.model import dense_vae
from vae_lib.objectives import elbo
from vae_lib.processes import from_first, joined
from vae_lib.states import State
from vae_lib.steps import has_bfloat16
from vae_lib.training import train

WIDTH = 16  # of the convolutional network
NETWORKS = {
    "dense": dense_vae,
    "convolutional": lambda: conv_vae((1, 28, 28), width=WIDTH, likelihood="bits"),
}
MAPS = (nn.Linear, nn.Conv2d, nn.ConvTranspose2d)


def prepared(workload):
    """Return a new network and the images of a round.

    The spread of the latents starts at one, or it would depend on the seed how wild the first
    steps are, and what was learned could not be compared after a minute.
    """
    model = NETWORKS[workload.network]()
    nn.init.zeros_(model.encoder.network.second.weight)
    return model, torch.from_numpy(thresholded(workload.images))


def ours(workload, **options):
    """`vae_lib.training.train`."""
    model, images = prepared(workload)
    batches, state = Batches(images, workload.batch), State()

    def a_round(watch):
        with watch:
            return train(model, batches, epochs=state.epoch + 1, state=state, **options)[-1]

    return a_round


def fast(workload):
    """The same in 16 bits."""
    return ours(workload, fast=True)


def usual(workload):
    """The loop that most people write: a DataLoader, and Adam as it comes."""
    model, images = prepared(workload)
    loader = DataLoader(TensorDataset(images), batch_size=workload.batch, shuffle=True)
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-3)

    def epoch():
        total = 0.0
        for (x,) in loader:
            mean, log_std = model.encoder.network(x)
            z = mean + log_std.exp() * torch.randn_like(mean)
            logits = model.decoder.network(z)
            distortion = F.binary_cross_entropy_with_logits(logits, x, reduction="sum")
            rate = 0.5 * ((2 * log_std).exp() + mean**2 - 1 - 2 * log_std).sum()
            loss = (distortion + rate) / len(x)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            total += loss.item() * len(x)
        return -total / len(images)

    def a_round(watch):
        with watch:
            return epoch()

    return a_round


def products(workload):
    """The products and convolutions of each step, which no loop around them can do without.

    The gradient with respect to the images is none of them. Between two steps Adam goes over the
    weights, off the clock, so that the caches hold what they hold in training.
    """
    model, images = prepared(workload)
    maps = seen(model, images[: workload.batch])
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-12, fused=True)

    def a_round(watch):
        for _ in range(len(images) // workload.batch):
            with watch:
                multiply(maps)
            optimizer.step()

    return a_round


def seen(model, x):
    """List a model's linear maps in the order of their use: each, its input, like its output."""
    maps = []

    def note(layer, inputs, output):
        maps.append((layer, inputs[0].detach(), torch.randn_like(output)))

    hooks = [m.register_forward_hook(note) for m in model.modules() if isinstance(m, MAPS)]
    with torch.no_grad():
        elbo(model, x, torch.Generator().manual_seed(0))
    for hook in hooks:
        hook.remove()
    return maps


@torch.no_grad()
def multiply(maps):
    """Go forward through linear maps and back, leaving out biases and all that lies between."""
    for layer, x, _ in maps:
        if isinstance(layer, nn.Linear):
            x @ layer.weight.T
        else:
            torch.ops.aten.convolution(x, layer.weight, None, *_settings(layer))
    for number, (layer, x, gradient) in reversed(list(zip(count(), maps))):
        if isinstance(layer, nn.Linear):
            layer.weight.grad = gradient.T @ x
            if number > 0:
                gradient @ layer.weight
        else:
            wanted = [number > 0, True, False]
            layer.weight.grad = torch.ops.aten.convolution_backward(
                gradient, x, layer.weight, None, *_settings(layer), wanted
            )[1]


def _settings(layer):
    """Return the settings of a convolution in the order in which PyTorch's operations take them."""
    transposed = isinstance(layer, nn.ConvTranspose2d)
    sizes = layer.stride, layer.padding, layer.dilation
    return *sizes, transposed, layer.output_padding, layer.groups


CONTENDERS = {"ours": ours, "fast": fast, "usual": usual, "products": products}


def main(name, workload):
    """Take part in `make bench`, alone or as one of two processes that torchrun started."""
    workload = Workload(**json.loads(workload))
    if name == "fast" and not has_bfloat16("cpu"):
        return decline("no bfloat16 here")
    if not torch.distributed.is_torchelastic_launched():
        return serve(
            {"ours": ours, "fast": fast, "usual": usual, "products": products}[name](workload)
        )
    return serve_together(workload)


def serve_together(workload):
    """Take part as one of several processes, each on a processor of its own; the first answers."""
    with joined() as share, open(os.devnull, "w", encoding="utf-8") as nowhere:
        if share.rank > 0:
            sys.stdout = nowhere
        if hasattr(os, "sched_setaffinity"):
            os.sched_setaffinity(0, [sorted(os.sched_getaffinity(0))[share.rank]])
        serve(ours(workload), lambda: from_first(asked))


if __name__ == "__main__":
    main(*sys.argv[1:])
