"""What an argument must be: each function refuses, by the argument's name, what is not."""

import operator
from numbers import Real
from typing import Any

import torch
from torch import Tensor

HOW = {
    "numpy.ndarray": "Convert it with torch.from_numpy.",
    "list": "Convert it with torch.tensor.",
    "tuple": "Convert it with torch.tensor.",
    "PIL": "Convert it with torch.from_numpy(numpy.array(picture)).",
    "torch.utils.data": "Give the images themselves, not what delivers them.",
}


def kind(value: Any) -> str:
    """Name the type of a value, with its module.

    Example:
        >>> kind([1]), kind(torch.zeros(1))
        ('list', 'torch.Tensor')
    """
    name = f"{type(value).__module__}.{type(value).__qualname__}"
    return name.removeprefix("builtins.")


def tensor(name: str, value: Any) -> Tensor:
    """Return a tensor as it is.

    Raises:
        ValueError: Anything else.

    Example:
        >>> tensor("images", [0.5])
        Traceback (most recent call last):
        ValueError: images: expected a torch.Tensor, got list. Convert it with torch.tensor.
    """
    if isinstance(value, Tensor):
        return value
    found = kind(value)
    how = next((how for start, how in HOW.items() if found.startswith(start)), "")
    raise ValueError(f"{name}: expected a torch.Tensor, got {found}. {how}".rstrip())


def whole(name: str, value: Any, least: int | None = 1) -> int:
    """Return a whole number of any library as an int.

    Raises:
        ValueError: Another type, a float with no fraction included, or less than `least`.

    Example:
        >>> whole("epochs", 2.0)
        Traceback (most recent call last):
        ValueError: epochs: expected a whole number, got 2.0 (float).
    """
    try:
        number = operator.index(value)
    except TypeError:
        raise ValueError(f"{name}: expected a whole number, got {_shown(value)}.") from None
    if least is not None and number < least:
        raise ValueError(f"{name}: expected at least {least}, got {number}.")
    return number


def real(name: str, value: Any) -> Real:
    """Return a number of any library as it is; NaN is one.

    Raises:
        ValueError: Another type, text and tensors included.
    """
    if not isinstance(value, Real):
        raise ValueError(f"{name}: expected a number, got {_shown(value)}.")
    return value


def source(generator: Any) -> torch.Generator | None:
    """Return a generator of PyTorch, or None, as it is.

    Raises:
        ValueError: Anything else, such as a seed.
    """
    if generator is not None and not isinstance(generator, torch.Generator):
        raise ValueError(
            f"generator: expected a torch.Generator or None, got {_shown(generator)}. Make one "
            "of a seed with torch.Generator().manual_seed(seed)."
        )
    return generator


def _shown(value: Any) -> str:
    """Show a value if it is short, and its type."""
    short = repr(value)
    return f"{short} ({kind(value)})" if len(short) <= 20 and "\n" not in short else kind(value)
