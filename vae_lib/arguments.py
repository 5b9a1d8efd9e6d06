"""What an argument must be: each function refuses, by the argument's name, what is not."""

import operator
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
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


_NOTED: ContextVar[list | None] = ContextVar("noted", default=None)


def must(fulfilled: Tensor, say: Callable[[], str]) -> None:
    """Refuse values that do not fulfil what they must: at once, or within `noted` later.

    Arguments:
        fulfilled: One truth value, on the device of the values. To look at it is to wait until the
            device has computed it.
        say: Gives the message of the error.

    Raises:
        ValueError: It is false.
    """
    if (waiting := _NOTED.get()) is not None:
        waiting.append((fulfilled, say))
    elif not fulfilled:
        raise ValueError(say())


@contextmanager
def noted() -> Iterator[list[tuple[Tensor, Callable[[], str]]]]:
    """Note what `must` is asked, and leave it to the caller to look, when it has time to wait.

    Example:
        >>> with noted() as asked:
        ...     must(torch.tensor(1) > 2, lambda: "one: expected more.")
        >>> [say() for fulfilled, say in asked if not fulfilled]
        ['one: expected more.']
    """
    token = _NOTED.set([])
    try:
        yield _NOTED.get()
    finally:
        _NOTED.reset(token)


def _shown(value: Any) -> str:
    """Show a value if it is short, and its type."""
    short = repr(value)
    return f"{short} ({kind(value)})" if len(short) <= 20 and "\n" not in short else kind(value)
