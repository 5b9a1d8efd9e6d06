"""Where random numbers come from: a generator, or the rows of a batch that one process holds."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from vae_lib.arguments import source


@dataclass(frozen=True)
class Share:
    """Which of several processes this one is, and so which rows of a batch are its own.

    Arguments:
        rank: From 0 to below `of`.
        of: How many processes share each batch.

    Example:
        >>> [Share(rank, 3).rows(10) for rank in range(3)]
        [slice(0, 3, None), slice(3, 6, None), slice(6, 10, None)]
    """

    rank: int = 0
    of: int = 1

    def rows(self, total: int) -> slice:
        """Return its rows of a batch of `total`; where these are few, perhaps none."""
        return slice(self.rank * total // self.of, (self.rank + 1) * total // self.of)


@dataclass(frozen=True, eq=False)
class Rows:
    """What an objective gets as its generator where several processes share each batch.

    Each process draws the noise of the whole batch, with a generator that all of them have seeded
    alike, and keeps the rows of its own images. So an image meets the same noise however many
    processes there are. Whatever of the library takes a `torch.Generator` to draw something for
    each image takes this in its place: the `rsample` and `sample` of a distribution whose
    parameters have an axis of images before the last, and `vae_lib.data.binarize`. An objective
    that draws by itself does it with `normal` and `uniform`, which take either. PyTorch's own
    functions refuse it, so noise that all processes have alike cannot come about unnoticed.

    Arguments:
        generator: Seeded alike in all processes.
        total: How many images the whole batch has.
        rows: Which of them are here.

    Example:
        >>> draw = lambda rows: normal(
        ...     (2, 5), Rows(torch.Generator().manual_seed(0), 4, rows), like=torch.zeros(0))
        >>> whole = normal((4, 5), torch.Generator().manual_seed(0), like=torch.zeros(0))
        >>> torch.equal(torch.cat([draw(slice(0, 2)), draw(slice(2, 4))]), whole)
        True
    """

    generator: torch.Generator
    total: int
    rows: slice

    @property
    def device(self) -> torch.device:
        """Where the numbers are drawn."""
        return self.generator.device


Source = torch.Generator | Rows | None


def known(generator: Source) -> Source:
    """Return what numbers can be drawn from as it is.

    Raises:
        ValueError: Anything else, such as a seed.
    """
    return generator if isinstance(generator, Rows) else source(generator)


def normal(shape: Sequence[int], generator: Source, *, like: Tensor, axis: int = -2) -> Tensor:
    """Draw standard normal numbers.

    Arguments:
        shape: Of the result.
        generator: A `torch.Generator`, None for PyTorch's global one, or `Rows`.
        like: The result has its device and precision.
        axis: That of the images, which `Rows` share among them.

    Raises:
        ValueError: Another generator, or `Rows` of another number than there are on that axis.
    """
    return _drawn(torch.randn, shape, generator, axis, like.device, like.dtype)


def uniform(shape: Sequence[int], generator: Source, *, like: Tensor, axis: int = -2) -> Tensor:
    """Draw even numbers from 0 to below 1; the arguments are those of `normal`."""
    return _drawn(torch.rand, shape, generator, axis, like.device, like.dtype)


def _drawn(draw: Callable, shape: Sequence[int], generator: Source, axis: int, device, dtype):
    """Draw numbers of a shape; for `Rows`, draw those of the whole batch and keep its rows."""
    if not isinstance(known(generator), Rows):
        return draw(tuple(shape), generator=generator, device=device, dtype=dtype)
    here, axis = generator.rows.stop - generator.rows.start, axis % max(1, len(shape))
    if len(shape) < 2 or shape[axis] != here:
        raise ValueError(
            f"generator: expected to draw for the {here} images of this process, got the shape "
            f"{tuple(shape)}. Where processes share a batch, draw one row for each of x, with its "
            "axis before the last."
        )
    shape = [*shape[:axis], generator.total, *shape[axis + 1 :]]
    drawn = draw(shape, generator=generator.generator, device=device, dtype=dtype)
    return drawn.narrow(axis, generator.rows.start, here)
