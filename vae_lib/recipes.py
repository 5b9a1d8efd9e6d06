"""What a run is begun with: its settings, checked, and its pictures, split.

A recipe is stored as JSON. What is read back is data from outside, which no entry of it may turn
into more than a model and pictures of ordinary size.
"""

import csv
import hashlib
import io
import json
import math
import re
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path

import torch
from torch import Tensor

from vae_lib import images
from vae_lib.convolutional import conv_vae
from vae_lib.data import binarize, load_mnist, quantize
from vae_lib.images import Pictures
from vae_lib.model import VAE, dense_vae

FORMAT = "vae_lib run 1"
MNIST = "mnist"
LIKELIHOODS = ("levels", "bits", "gaussian")

# What a run is begun with unless told otherwise. Those of MNIST are the chapter *code*'s.
DEFAULTS = {
    "size": 32,
    "channels": None,
    "background": "white",
    "held_out": 0.1,
    "likelihood": "levels",
    "latents": 64,
    "width": 32,
    "batch_size": 64,
    "learning_rate": 2e-3,
    "clip": 1000.0,
    "average": 0.99,
    "epochs": None,  # as `enough` says
    "seed": 0,
    "device": "cpu",
}
FIXED_MNIST = {"size": 28, "channels": 1, "background": "black", "held_out": 1 / 7}
FIXED_MNIST |= {"likelihood": "bits", "clip": None, "average": None}
DEFAULTS_MNIST = FIXED_MNIST | {"latents": 5, "width": 500, "batch_size": 100, "epochs": 10}
DEFAULTS_MNIST |= {"learning_rate": 1e-3}
STEPS = 2000  # of a training that is neither a glance nor a night
LONGEST = 128  # pixels of a side


def _number(least, most, kind=int) -> tuple[str, Callable]:
    """Say what a number must be, and how to tell."""
    kinds = (int,) if kind is int else (int, float)
    what = f"a {'whole number' if kind is int else 'number'} from {least:g} to {most:g}"
    return what, lambda v: type(v) in kinds and least <= v <= most


def _text(what: str, pattern: str) -> tuple[str, Callable]:
    """Say what a text must be, and how to tell."""
    return what, lambda v: isinstance(v, str) and re.fullmatch(pattern, v) is not None


def _is_shape(value) -> bool:
    """Tell whether a value is the shape of pictures that a network can be made for."""
    three = isinstance(value, list | tuple) and len(value) == 3
    whole_numbers = three and all(type(length) is int for length in value)
    return whole_numbers and value[0] in (1, 3, 4) and all(8 <= v <= LONGEST for v in value[1:])


CLIP, AVERAGE = _number(1e-9, 1e9, float), _number(0, 0.99999, float)
# Bounds above all because a recipe may come from elsewhere: no entry may fill the memory.
ENTRIES = {
    "source": _text("a path, or mnist", r"[^\0]+"),
    "count": _number(3, 2**40),
    "pictures": _text("the sha256 of the pictures", "[0-9a-f]{64}"),
    "split": _text("the sha256 of the rows held out", "[0-9a-f]{64}"),
    "shape": (f"1, 3 or 4 channels, and height and width from 8 to {LONGEST}", _is_shape),
    "background": _text("the name of a colour or #rrggbb", "[a-z]+|#[0-9a-fA-F]{6}"),
    "held_out": _number(0.001, 0.9, float),
    "likelihood": (f"one of {', '.join(LIKELIHOODS)}", lambda v: v in LIKELIHOODS),
    "latents": _number(1, 4096),
    "width": _number(1, 1024),
    "batch_size": _number(1, 2**20),
    "learning_rate": _number(1e-9, 10, float),
    "clip": ("a number above zero, or null", lambda v: v is None or CLIP[1](v)),
    "average": ("a decay from 0 to below 1, or null", lambda v: v is None or AVERAGE[1](v)),
    "epochs": _number(1, 10**6),
    "seed": _number(0, 2**63 - 1),
    "device": _text("the name of a device, such as cpu or cuda", "[a-z]+(:[0-9]+)?"),
}


class OtherPictures(ValueError):
    """The pictures of a run are no longer those it was begun with.

    Attributes:
        names: Of the pictures that are there.
    """

    def __init__(self, names: list[str]):
        super().__init__("source: expected the pictures that the run was begun with. Give them.")
        self.names = names


@dataclass(frozen=True)
class Recipe:
    """All that is needed to load the pictures of a run again and to build its model.

    Arguments:
        source: The absolute path of a folder or zip, or "mnist".
        count: How many pictures there are.
        pictures: The sha256 of all of them.
        split: The sha256 of the rows that are held out.
        shape: Channels, height and width, which all pictures are brought to.
        background: What transparency is laid on.
        held_out: The share held out.
        likelihood: "levels", "bits" or "gaussian"; see `vae_lib.convolutional.conv_vae`.
        latents: The length of z.
        width: Of the network: channels of the first convolution, or of MNIST's hidden layer.
        batch_size: Pictures in a step.
        learning_rate: Adam's step size.
        clip: The gradient's greatest length, or None.
        average: The decay of an average of the weights, which is what is scored and kept; see
            `forgetting`. None keeps the last weights.
        epochs: How many there are to be in all.
        seed: Of the split, the first weights, the order and the noise.
        device: Where it is trained.

    Raises:
        ValueError: An entry of another type or out of its range.
    """

    source: str
    count: int
    pictures: str
    split: str
    shape: tuple[int, int, int]
    background: str
    held_out: float
    likelihood: str
    latents: int
    width: int
    batch_size: int
    learning_rate: float
    clip: float | None
    average: float | None
    epochs: int
    seed: int
    device: str

    def __post_init__(self):
        """Refuse what no run has."""
        for name, (what, fits) in ENTRIES.items():
            value = getattr(self, name)
            if not fits(value):
                raise ValueError(f"{name}: expected {what}, got {value!r}. Correct it.")
        found = (tuple(self.shape), self.likelihood)
        if self.source == MNIST and found != ((1, 28, 28), "bits"):
            raise ValueError(
                f"shape, likelihood: expected those of MNIST, got {found}. Correct it."
            )
        object.__setattr__(self, "shape", tuple(self.shape))

    @classmethod
    def read(cls, file: Path) -> "Recipe":
        """Read a recipe from a JSON file, and check it.

        Raises:
            ValueError: No JSON, another format, entries that lack, are unknown or do not fit.
        """
        try:
            found = json.loads(file.read_text(encoding="utf-8"))
            if not isinstance(found, dict) or found.pop("format", None) != FORMAT:
                raise ValueError(f'it does not say "format": "{FORMAT}"')
            if found.keys() != ENTRIES.keys():
                odd = sorted(found.keys() ^ ENTRIES.keys())
                raise ValueError(f"of its entries these lack or are too many: {', '.join(odd)}")
            return cls(**found)
        except (ValueError, RecursionError) as error:
            raise ValueError(
                f"recipe: {file} is damaged or of another version: {str(error).rstrip('.')}. "
                "Restore it, or train again into another folder."
            ) from error

    def content(self) -> bytes:
        """Return the recipe as JSON, as `read` takes it."""
        return (json.dumps({"format": FORMAT, **asdict(self)}, indent=1) + "\n").encode()

    def model(self) -> VAE:
        """Build the model, with its first weights."""
        if self.source == MNIST:
            return dense_vae(math.prod(self.shape), self.width, self.latents, seed=self.seed)
        options = {"width": self.width, "likelihood": self.likelihood, "seed": self.seed}
        return conv_vae(self.shape, self.latents, **options)

    def forgetting(self, step: int) -> float:
        """Return the decay of the average at a step: less at first, so that it is not far behind.

        Arguments:
            step: Counted from 0.
        """
        return min(self.average, (1 + step) / (10 + step))

    def floats(self, pictures: Tensor) -> Tensor:
        """Turn bytes into what the model learns: ones and zeros, or 256 levels from 0 to 1."""
        if self.likelihood == "bits":
            return binarize(pictures, "threshold")
        return quantize(pictures, 256)


@dataclass(frozen=True, eq=False)
class Data:
    """The pictures of a run, and which of them it learns from.

    Arguments:
        pictures: All of them.
        learnt: The rows to learn from.
        held_out: The rows that no weight has seen.
    """

    pictures: Pictures
    learnt: Tensor
    held_out: Tensor

    @classmethod
    def load(cls, source: str, *, held_out: float, seed: int, **options) -> "Data":
        """Load and split pictures, near-duplicates on one side; MNIST has a split of its own.

        Arguments:
            source: A folder or zip, or "mnist".
            held_out: The share to hold out.
            seed: Of the split.
            options: `size`, `channels` and `background` of `vae_lib.images.load_images`.

        Raises:
            ValueError: What `load_images` refuses, or too few pictures to hold two of them out.
        """
        if source == MNIST:
            return cls(mnist(), torch.arange(60_000), torch.arange(60_000, 70_000))
        pictures = images.load_images(source, **options)
        groups = images.near_duplicates(pictures)
        learnt, held = images.split_groups(groups, held_out, seed=seed)
        if len(held) < 2 or len(learnt) < 1:
            raise ValueError(
                f"held_out: expected at least 2 pictures held out and 1 to learn from, got "
                f"{len(held)} and {len(learnt)} by a share of {held_out:g}. Give more pictures, or "
                "another --held-out."
            )
        return cls(pictures, learnt, held)

    @classmethod
    def of(cls, recipe: Recipe) -> "Data":
        """Load the pictures of a recipe, and check that they are those it was begun with.

        Raises:
            ValueError: They are others, an `OtherPictures`, or are split otherwise.
        """
        channels, *sides = recipe.shape
        options = {"held_out": recipe.held_out, "seed": recipe.seed}
        options |= {"channels": channels, "size": tuple(sides), "background": recipe.background}
        data = cls.load(recipe.source, **options)
        facts = data.facts()
        split = facts.pop("split")
        if any(getattr(recipe, name) != value for name, value in facts.items()):
            raise OtherPictures(data.pictures.names)
        if split != recipe.split:
            raise ValueError(
                "split: this version of vae_lib holds out other pictures than the run did. Go on "
                "with the version that began it, or begin another run elsewhere with -o."
            )
        return data

    def facts(self) -> dict:
        """Return what a recipe says of the pictures, so that others are not taken for them."""
        found = hashlib.sha256(repr(tuple(self.pictures.shape)).encode())
        found.update(self.pictures.images.contiguous().numpy())
        split = hashlib.sha256(self.held_out.numpy().tobytes())
        facts = {"count": len(self.pictures), "shape": tuple(self.pictures.shape)}
        return facts | {"pictures": found.hexdigest(), "split": split.hexdigest()}

    def __str__(self) -> str:
        """How many, how large, how many held out."""
        return f"{described(self.pictures)}; {len(self.held_out):,} held out"

    def table(self) -> bytes:
        """List all pictures, and what each is used for, as CSV."""
        held = set(self.held_out.tolist())
        names = enumerate(self.pictures.names)
        rows = [(name, "held out" if row in held else "learnt from") for row, name in names]
        rows += [(name, f"skipped: {why}") for name, why in self.pictures.skipped]
        return table(["name", "use"], rows)


def enough(pictures: int, batch_size: int) -> int:
    """Say how many epochs to train for unless told: about 2,000 steps, in 20 to 60 epochs.

    More would make a network that saw few pictures worse on those held out.

    Arguments:
        pictures: How many are learnt from.
        batch_size: Of them in a step.

    Example:
        >>> enough(50, 64), enough(2187, 64), enough(100_000, 64)
        (60, 58, 20)
    """
    steps = -(-pictures // batch_size)
    return min(60, max(20, -(-STEPS // steps)))


def described(pictures: Pictures) -> str:
    """Say how many pictures there are, and of what shape, height first.

    Example:
        >>> described(mnist())
        '70,000 pictures, 28 x 28, 1 channel'
    """
    channels, height, width = pictures.shape
    one = "picture" if len(pictures) == 1 else "pictures"
    deep = "channel" if channels == 1 else "channels"
    return f"{len(pictures):,} {one}, {height} x {width}, {channels} {deep}"


def table(header, rows) -> bytes:
    """Return rows as CSV in UTF-8.

    Example:
        >>> table(["name", "elbo"], [("a.png", -1.5)])
        b'name,elbo\\na.png,-1.5\\n'
    """
    stream = io.StringIO()
    csv.writer(stream, lineterminator="\n").writerows([list(header), *rows])
    return stream.getvalue().encode("utf-8", "surrogateescape")


def located(source: str | Path) -> str:
    """Return a source as a recipe names it."""
    return MNIST if str(source) == MNIST else str(Path(source).expanduser().absolute())


def mnist() -> Pictures:
    """Return MNIST as pictures: 60,000 to learn from, then the 10,000 of the test."""
    both = load_mnist()
    names = [f"train/{row:05}" for row in range(60_000)] + [f"test/{n:05}" for n in range(10_000)]
    return Pictures(
        torch.cat([both.train_images, both.test_images]),
        (1, 28, 28),
        names,
        torch.cat([both.train_labels, both.test_labels]).long(),
        [str(digit) for digit in range(10)],
        [],
    )
