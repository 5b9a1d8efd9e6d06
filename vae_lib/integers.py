"""From a trained VAE to integers: weights rounded once, and modules read as steps.

What is rounded is stored, and whoever decodes reads that; the trained weights are not needed again.
What a module computes is known from its type, and only from exactly that type: a subclass may
compute something else.
"""

import math
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from vae_lib import checkpoints
from vae_lib.arguments import kind, whole
from vae_lib.autoregressive import AutoregressivePrior, LocalDecoder, LocalHead
from vae_lib.convolutional import ConvDecoder, ConvEncoder, _Down, _GreyAndScale, _Up
from vae_lib.exact import BITS, ONE
from vae_lib.local_levels import LevelDecoder, LevelHead
from vae_lib.masses import FORMAT, LIMIT, IntegerModel
from vae_lib.model import (
    VAE,
    BernoulliDecoder,
    DiscretizedLogisticDecoder,
    GaussianDecoder,
    GaussianEncoder,
    StandardNormal,
)
from vae_lib.networks import TwoHeads, _Linear
from vae_lib.priors import GaussianMixture
from vae_lib.residual import ResidualBlock, ResidualDecoder, ResidualEncoder, _Doubled

GRID = 9  # cells of 1/32
WEIGHT_BITS = 12
STORED = "vae_lib codec 1"


def integer_model(
    model: VAE, shape: Sequence[int] | None = None, *, grid: int = GRID, bits: int = WEIGHT_BITS
) -> IntegerModel:
    """Make an integer model of a trained VAE.

    With weights of 12 bits and cells of 1/32, the ideal code length of test images came within a
    thousandth of the -ELBO for each of the recorded networks of bits that was tried; that of emoji
    in 256 levels was shorter by a thousandth, since no level has a mass below 2^-30.

    Arguments:
        model: One whose parts are those of `dense_vae`, `conv_vae` or `residual_vae`, with
            probabilities for pixels: its decoder is a `BernoulliDecoder`, a `LocalDecoder`, a
            `DiscretizedLogisticDecoder` or a `LevelDecoder`. Its prior may also be a
            `GaussianMixture`.
        shape: Channels, height and width of an image, where the networks do not know them. None
            takes one channel and a square.
        grid: A latent has 2^grid cells, 4 to 14.
        bits: Of a weight, 4 to 24.

    Raises:
        ValueError: A model that has other parts, a shape of another number of pixels, or weights
            so large that their products might not be exact.

    Example:
        >>> from vae_lib.model import dense_vae
        >>> small = integer_model(dense_vae(pixels=16, hidden=8, latents=2))
        >>> masses = small.posterior(np.zeros((3, 16), dtype=int))
        >>> masses.shape, masses(0).tolist()[0], (masses(small.cells) / masses.total).tolist()[0]
        ((3, 2), [0, 0], [1.0, 1.0])
    """
    if type(model) is not VAE:
        raise _other(model, "a VAE of one vector of latents")
    if type(model.encoder) is not GaussianEncoder:
        raise _other(model.encoder, "a GaussianEncoder")
    grid, bits = _within("grid", grid, 4, 14), _within("bits", bits, 4, 24)
    levels, unit = getattr(model.decoder, "levels", 2), LIMIT / 2**grid
    arrays: dict[str, np.ndarray] = {}
    reader = partial(_Reader, arrays, bits)
    down, up = reader("encoder", 1 / (levels - 1)), reader("decoder", unit)
    described = {"format": FORMAT, "levels": levels, "grid": grid}
    described["encoder"] = down.steps(model.encoder.network)
    described["centre"] = [2, levels - 1] if down.centred else [1, 0]
    near = reader("head", 1 / (levels - 1))
    described["decoder"], described["head"] = _decoder(model.decoder, up, near)
    described["prior"] = _prior(model.prior, reader("prior", unit))
    described["shape"] = _shape(shape, down.shape, down.inputs)
    described["latents"] = up.inputs
    return IntegerModel(arrays, described)


def store(file: Path, model: IntegerModel, **told) -> None:
    """Write an integer model to a file, with whatever else is to be told of it.

    Arguments:
        file: Where.
        model: What `stored` will return.
        told: JSON types; none of them is named "format" or "model".
    """
    arrays, described = model.tensors()
    tensors = {name: torch.from_numpy(array) for name, array in arrays.items()}
    description = {"format": STORED, **told, "model": described}
    checkpoints.write({Path(file): checkpoints.pack(tensors, description)})


def stored(file: Path) -> tuple[IntegerModel, dict]:
    """Read what `store` wrote: the model, and what was told of it.

    Raises:
        ValueError: Another file, or a changed one.
    """
    tensors, told = checkpoints.unpack(Path(file), STORED)
    arrays = {name: value.numpy() for name, value in tensors.items()}
    return IntegerModel.from_tensors(arrays, told.pop("model")), told


def _within(name: str, value: int, low: int, high: int) -> int:
    """Return a whole number within limits."""
    if not low <= whole(name, value) <= high:
        raise ValueError(f"{name}: expected {low} to {high}, got {value}.")
    return int(value)


def _other(part: Any, expected: str) -> ValueError:
    """Say that a part of the model is none that this can read."""
    return ValueError(
        f"model: expected {expected}, got {kind(part)}, which cannot be read as integers. Take a "
        "model by dense_vae, conv_vae or residual_vae, with bits or levels."
    )


def _shape(given: Sequence[int] | None, known: list[int] | None, pixels: int) -> list[int]:
    """Return channels, height and width of an image: what the network knows, or what is given."""
    side = math.isqrt(pixels)
    found = known or ([1, side, side] if given is None else [whole("shape", n) for n in given])
    fits = known is not None or (len(found) == 3 and math.prod(found) == pixels)
    if not fits or (given is not None and list(given) != found):
        expected = known or f"channels, height and width of {pixels} numbers"
        raise ValueError(f"shape: expected {expected}, got {given}. Give that of the images.")
    return found


def _decoder(decoder: nn.Module, to: "_Reader", near: "_Reader") -> tuple[list, dict]:
    """Return the steps of a decoder, and what its numbers are for a pixel."""
    if type(decoder) is BernoulliDecoder:
        return to.steps(decoder.network), {"kind": "coins"}
    if type(decoder) is DiscretizedLogisticDecoder:
        held = type(decoder.network) is _GreyAndScale
        steps = to.steps(decoder.network.network if held else decoder.network)
        head = {"middle": ONE // 2 if held else 0, "scale": "level" if held else "plain"}
        return steps, {"kind": "levels", **head}
    if type(decoder) in LOCAL and type(decoder.head) is LOCAL[type(decoder)][0]:
        head, told = decoder.head, {"kind": LOCAL[type(decoder)][1], "reach": decoder.head.reach}
        told["seen"] = near.affine(head.weight[..., head.seen].flatten(1))
        layers = [["residual", [["table", "silu"], near.affine(*_of(m))]] for m in head.layers]
        told["layers"] = [*layers, ["table", "silu"], near.affine(*_of(head.last))]
        return to.steps(decoder.network), told
    if type(decoder) is GaussianDecoder:
        raise _other(decoder, "a decoder with probabilities, since a density is no number of bits")
    raise _other(decoder, "a decoder with probabilities of bits or levels")


LOCAL = {LocalDecoder: (LocalHead, "local"), LevelDecoder: (LevelHead, "local levels")}


def _prior(prior: nn.Module, to: "_Reader") -> dict:
    """Return the description of a prior."""
    if type(prior) is StandardNormal:
        return {"kind": "normal"}
    if type(prior) is GaussianMixture:
        for name in ("logits", "means", "log_stds"):
            to.arrays[f"prior.{name}"] = _integers(ONE * _numbers(getattr(prior, name)).T)
        return {"kind": "mixture"}
    if type(prior) is AutoregressivePrior:
        return {"kind": "autoregressive", "affine": to.masked(prior.network)}
    raise _other(prior, "a StandardNormal, GaussianMixture or AutoregressivePrior")


def _numbers(weight: Tensor) -> np.ndarray:
    """Return a tensor's numbers in 64 bits."""
    numbers = weight.detach().cpu().double().numpy()
    if not np.isfinite(numbers).all():
        raise ValueError("model: expected finite weights, got NaN or infinity. Train it anew.")
    return numbers


def _integers(numbers: np.ndarray, kind: type = np.int64) -> np.ndarray:
    """Round to whole numbers."""
    return np.ascontiguousarray(np.rint(numbers).astype(kind))


def _of(layer: nn.Module) -> tuple[Tensor, Tensor | None]:
    """Return the weight and the bias of a layer."""
    return layer.weight, layer.bias


class _Reader:
    """Reads modules in the order in which they compute, and stores their weights.

    Arguments:
        arrays: Where the weights are put.
        bits: Of a weight.
        name: Before the names of the arrays.
        unit: What 1 stands for in the integers that come in; after the first product, 2^-12.

    Attributes:
        inputs: The length of the rows that come in, if the first product is of these.
        shape: Of the images, if a module knows it.
        centred: Whether the first module takes images from -1 to 1.
        sides: Height and width of the features at this point, if a module needs them.
    """

    def __init__(self, arrays: dict[str, np.ndarray], bits: int, name: str, unit: float):
        self.arrays, self.bits, self.name, self.unit = arrays, bits, name, unit
        self.inputs, self.shape, self.centred = 0, None, False
        self.sides, self.count = (0, 0), 0

    def steps(self, module: nn.Module) -> list:
        """Return the steps of a module."""
        if type(module) not in READ:
            raise _other(module, "modules of the library's networks")
        return READ[type(module)](self, module)

    def store(self, array: np.ndarray) -> str:
        """Keep an array and return its name."""
        self.count += 1
        name = f"{self.name}.{self.count}"
        self.arrays[name] = array
        return name

    def affine(self, weight: Tensor, bias: Tensor | None = None) -> list:
        """Round weights (outputs, inputs), so that the largest takes all the bits."""
        numbers = _numbers(weight) * self.unit
        largest = np.abs(numbers).max(initial=0) or 1.0
        scale = math.floor(math.log2((2 ** (self.bits - 1) - 1) / largest))
        shift = scale - BITS
        start = np.full(len(numbers), 2.0 ** (shift - 1) if shift > 0 else 0.0)  # rounds
        if bias is not None:
            start += _numbers(bias) * 2.0**scale
        self.unit, self.inputs = 1 / ONE, self.inputs or numbers.shape[1]
        weights = _integers(numbers * 2.0**scale, np.int16 if self.bits <= 16 else np.int32)
        return ["affine", self.store(weights), self.store(_integers(start)), shift]

    def masked(self, network: nn.Module) -> list:
        """Return the products of a `MaskedDense`, its hidden units sorted by their places."""
        allowed = network.first.allowed
        places = allowed.sum(1).cpu().numpy() - 1
        order = np.argsort(places, kind="stable")
        self.arrays["prior.places"] = places[order].astype(np.int64)
        order = torch.from_numpy(order).to(allowed.device)
        layers, found = [network.first, *network.layers, network.last], []
        for number, layer in enumerate(layers):
            weight, bias = layer.affine.weight * layer.allowed, layer.affine.bias
            if number > 0:
                weight = weight[:, order]
            if number < len(layers) - 1:
                weight, bias = weight[order], bias[order]
            found.append(self.affine(weight, bias))
        return found


READ: dict[type, Callable[[_Reader, nn.Module], list]] = {}


def _reads(*types: type):
    """Register a function for modules of exactly these types."""

    def register(function):
        READ.update(dict.fromkeys(types, function))
        return function

    return register


@_reads(nn.Linear, _Linear)
def _linear(to, module):
    return [to.affine(*_of(module))]


@_reads(nn.SiLU, nn.Tanh, nn.Sigmoid, nn.ReLU)
def _table(to, module):
    return [["table", type(module).__name__.lower()]]


@_reads(nn.Sequential)
def _sequential(to, module):
    return [step for part in module for step in to.steps(part)]


@_reads(TwoHeads)
def _two_heads(to, module):
    steps, heads = to.steps(module.trunk), (module.first, module.second)
    if any(type(head) not in (nn.Linear, _Linear) for head in heads):
        raise _other(module, "two affine heads")
    weight, bias = (torch.cat(parts) for parts in zip(*map(_of, heads), strict=True))
    return [*steps, to.affine(weight, bias)]


@_reads(nn.Conv2d)
def _convolution(to, module):
    usual = module.groups == 1 and module.dilation == (1, 1) and module.padding_mode == "zeros"
    if not usual or isinstance(module.padding, str):
        raise _other(module, "a convolution without groups and dilation, padded by a number")
    weight = module.weight.permute(0, 2, 3, 1).flatten(1)
    sizes = (list(size) for size in (module.kernel_size, module.stride, module.padding))
    return [["unfold", *sizes], to.affine(weight, module.bias)]


@_reads(_Down)
def _down(to, module):
    return to.steps(module.convolution)


@_reads(_Up)
def _up(to, module):
    layer = module.convolution
    weight = layer.weight.permute(2, 3, 1, 0).flatten(0, 2)
    sizes = (list(size) for size in (layer.kernel_size, layer.stride, layer.padding))
    affine = to.affine(weight)
    bias = to.store(_integers(ONE * _numbers(layer.bias)))
    return [affine, ["fold", *sizes, list(module.sides)], ["add", bias]]


@_reads(ConvEncoder)
def _conv_encoder(to, module):
    channels, height, width = module.shape
    to.shape, to.centred = [channels, height, width], True
    steps = [["arrange", to.shape, [1, 2, 0], [height, width, channels]]]
    for step in module.steps:
        steps += [*to.steps(step), ["table", "silu"]]
    channels = module.steps[-1].convolution.out_channels
    places = module.features // channels
    return [*steps, ["arrange", [places, channels], [1, 0], [module.features]]]


@_reads(ConvDecoder)
def _conv_decoder(to, module):
    channels, height, width = module.smallest
    steps = to.steps(module.first)
    steps += [["arrange", [channels, height * width], [1, 0], [height, width, channels]]]
    for step in module.steps:
        steps += [["table", "silu"], *to.steps(step)]
    places = math.prod(module.steps[-1].sides)
    planes = module.numbers // places
    return [*steps, ["arrange", [places, planes], [1, 0], [module.numbers]]]


@_reads(ResidualEncoder)
def _residual_encoder(to, module):
    to.shape, to.centred = [1, *module.shape], True
    first = ["arrange", [*module.shape, 1], [0, 1, 2], [*module.shape, 1]]
    last = ["arrange", [module.features], [0], [module.features]]
    return [first, *to.steps(module.steps), last]


@_reads(ResidualBlock)
def _residual_block(to, module):
    one, two = to.steps(module.first), to.steps(module.second)
    return [["residual", [["table", "silu"], *one, ["table", "silu"], *two]]]


@_reads(ResidualDecoder)
def _residual_decoder(to, module):
    to.sides = height, width = module.smallest
    steps = to.steps(module.first)
    channels = module.first.out_features // (height * width)
    steps += [["arrange", [height, width, channels], [0, 1, 2], [height, width, channels]]]
    steps += to.steps(module.steps)
    pixels, features = math.prod(to.sides), module.steps[-1].after
    return [*steps, ["arrange", [pixels, features], [0, 1], [pixels, features]]]


@_reads(_Doubled)
def _doubled(to, module):
    (height, width), after = to.sides, module.after
    to.sides = 2 * height, 2 * width
    four = ["arrange", [height, width, 2, 2, after], [0, 2, 1, 3, 4], [*to.sides, after]]
    return [["table", "silu"], to.affine(*_of(module.four)), four]
