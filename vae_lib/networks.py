"""The maps between pixels and latents: plain functions of tensors, nothing probabilistic."""

from itertools import pairwise

import torch
from torch import Tensor, nn

from vae_lib.arguments import source, tensor, whole


def check_rows(name: str, rows: Tensor, length: int, weight: Tensor, how: str) -> None:
    """Refuse, by the argument's name, rows of another length or type than the weights are for.

    Arguments:
        name: Of the argument.
        rows: Shape (..., length).
        length: Of a row.
        weight: One of the weights, whose type is that of all.
        how: What makes numbers of bytes here: the beginning of a sentence.

    Raises:
        ValueError: Another length or type, unless autocast is on, which brings types together.
    """
    if tensor(name, rows).shape[-1:] != (length,):
        raise ValueError(
            f"{name}: expected rows of {length} numbers, got shape {tuple(rows.shape)}. "
            f"Flatten pictures with {name}.flatten(1), or make a network of that size."
        )
    kind = weight.dtype
    if rows.dtype != kind and not torch.is_autocast_enabled(rows.device.type):
        raise ValueError(
            f"{name}: expected {kind}, as the weights are, got {rows.dtype}. {how}; bring model "
            f"and images to one precision with .to({kind})."
        )


class _Linear(nn.Linear):
    """An affine layer that says what it expected."""

    def forward(self, x: Tensor) -> Tensor:
        how = "Make ones and zeros of bytes with vae_lib.data.binarize"
        check_rows("x", x, self.in_features, self.weight, how)
        return super().forward(x)


def linear(inputs: int, outputs: int, generator: torch.Generator | None = None) -> nn.Linear:
    """Make an affine layer with Glorot's uniform weights and zero biases.

    This is the initialisation that Flux gives a `Dense` layer (Glorot and Bengio, 2010):
    weights uniform on plus or minus sqrt(6 / (inputs + outputs)). PyTorch's own differs.

    Arguments:
        inputs: Length of an input row, at least 1.
        outputs: Length of an output row, at least 1.
        generator: The source of the weights; None takes PyTorch's global one.

    Returns:
        A layer from (..., inputs) to (..., outputs).

    Example:
        >>> layer = linear(784, 500)
        >>> layer.weight.shape, layer.bias.abs().sum().item()
        (torch.Size([500, 784]), 0.0)
    """
    sizes = whole("inputs", inputs), whole("outputs", outputs)
    layer = nn.utils.skip_init(_Linear, *sizes)
    nn.init.xavier_uniform_(layer.weight, generator=source(generator))
    nn.init.zeros_(layer.bias)
    return layer


def dense(*widths: int, generator: torch.Generator | None = None) -> nn.Sequential:
    """Chain affine layers with a tanh between each two.

    Arguments:
        widths: Length of a row before, between and after the layers; at least two.
        generator: The source of the weights; None takes PyTorch's global one.

    Returns:
        A map from (..., widths[0]) to (..., widths[-1]); nothing follows the last layer.

    Raises:
        ValueError: Fewer than two widths.

    Example:
        >>> dense(5, 500, 784)(torch.zeros(3, 5)).shape
        torch.Size([3, 784])
    """
    if len(widths) < 2:
        raise ValueError(f"widths: expected at least an input and an output, got {widths}.")
    layers: list[nn.Module] = []
    for inputs, outputs in pairwise(widths):
        layers += [linear(inputs, outputs, generator), nn.Tanh()]
    return nn.Sequential(*layers[:-1])


class TwoHeads(nn.Module):
    """A trunk whose features feed two parallel affine heads.

    Arguments:
        trunk: Any map to (..., features).
        features: Length of the trunk's output row.
        outputs: Length of each head's output row.
        generator: The source of the heads' weights; None takes PyTorch's global one.

    Example:
        >>> first, second = TwoHeads(dense(784, 500), 500, 5)(torch.zeros(3, 784))
        >>> first.shape, second.shape
        (torch.Size([3, 5]), torch.Size([3, 5]))
    """

    def __init__(
        self,
        trunk: nn.Module,
        features: int,
        outputs: int,
        generator: torch.Generator | None = None,
    ):
        super().__init__()
        self.trunk = trunk
        self.first = linear(features, outputs, generator)
        self.second = linear(features, outputs, generator)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Map (..., inputs) to two tensors of shape (..., outputs)."""
        features = self.trunk(x)
        return self.first(features), self.second(features)
