"""A run: a folder that holds a trained model and all that is needed to go on with it.

The command line is a thin layer over this module. What lies in the folder is data, and none of
it can carry code: `recipe.json`, `weights.safetensors` with `weights.json`, `state.safetensors`
(where the training stands), `history.csv`, `pictures.csv` (which were held out, which skipped) and
the pictures `curve.png`, `samples.png` and `reconstructions.png`.
"""

import csv
import io
import math
import os
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass, replace
from functools import cached_property
from pathlib import Path

import matplotlib as mpl
import torch
from filelock import FileLock, Timeout
from matplotlib import pyplot as plt
from torch import Tensor

from vae_lib import checkpoints, figures, images, states
from vae_lib.arguments import whole
from vae_lib.data import Batches, seeded
from vae_lib.evaluation import Estimate, held_out_elbo, log_likelihood
from vae_lib.images import Pictures
from vae_lib.model import VAE, switched
from vae_lib.objectives import log_weights
from vae_lib.processes import from_first, share
from vae_lib.recipes import (
    DEFAULTS,
    DEFAULTS_MNIST,
    FIXED_MNIST,
    MNIST,
    Data,
    OtherPictures,
    Recipe,
    enough,
    located,
    mnist,
    table,
)
from vae_lib.states import State
from vae_lib.training import train

EVERY = 30  # seconds of training that a kill can cost
DRAW_EVERY = 10  # seconds between two drawings of the curve and the sheets
SHOWN = 64  # pixels of a side that small pictures are shown with
AT_ONCE = 2**26  # numbers of pictures that are scored at a time


@dataclass(frozen=True, eq=False)
class Score:
    """What a run makes of pictures, one value each.

    Arguments:
        elbo: In nats, one sample of z each.
        likelihood: Importance-sampled log p(x), in nats.
        bits: Bits per dimension by the ELBO, less is better; None of a density, of which no
            bits of a file can be said.
    """

    elbo: Estimate
    likelihood: Estimate
    bits: Estimate | None


class Run:
    """A run folder, opened.

    Arguments:
        folder: Where it lies.
        recipe: What it was begun with.
        data: Its pictures, if they were loaded already.
        where: The device of a model that is read from the disk.
    """

    def __init__(
        self,
        folder: str | Path,
        recipe: Recipe,
        data: Data | None = None,
        *,
        where: str | None = None,
    ):
        self.folder = Path(folder)
        self.recipe = recipe
        self._data = data
        self._model: VAE | None = None
        self._device = where

    @classmethod
    def create(cls, folder: str | Path, source: str | Path, **settings) -> "Run":
        """Begin a run in a new or empty folder: load the pictures and write the recipe.

        Arguments:
            folder: Where; it is made, and so are those above it.
            source: A folder or zip of pictures, or "mnist".
            settings: Those that `vae_lib.recipes.DEFAULTS` names: `size`, the side of a square or
                (height, width), and `channels` as `load_images` takes them, the others as
                `Recipe` does. What is None or left out takes its default.

        Raises:
            ValueError: A folder that holds something, pictures or settings that do not fit.
            OSError: The folder cannot be written.
        """
        folder, source = Path(folder), located(source)
        _check_new(folder, source)
        given = {name: value for name, value in settings.items() if value is not None}
        fixed = [name for name in FIXED_MNIST if name in given and source == MNIST]
        if fixed:
            raise ValueError(
                f"{fixed[0]}: expected none for mnist, whose pictures and split are fixed, got "
                f"{_said(given[fixed[0]])}. Leave it out."
            )
        known = DEFAULTS | (DEFAULTS_MNIST if source == MNIST else {}) | given
        size, channels = _sides(known.pop("size")), known.pop("channels")
        epochs = known.pop("epochs")
        blank = {"count": 3, "pictures": "0" * 64, "split": "0" * 64, "epochs": epochs or 1}
        # What cannot be is refused before minutes of loading.
        recipe = Recipe(source=source, shape=(channels or 1, *size), **blank, **known)
        device(recipe.device)
        options = {"size": size, "channels": channels, "background": recipe.background}
        data = Data.load(source, held_out=recipe.held_out, seed=recipe.seed, **options)
        epochs = epochs or enough(len(data.learnt), recipe.batch_size)
        run = cls(folder, replace(recipe, epochs=epochs, **data.facts()), data)
        recipe = {folder / "recipe.json": run.recipe.content()}
        checkpoints.write(recipe | {folder / "pictures.csv": data.table()})
        return run

    @classmethod
    def open(cls, folder: str | Path, *, where: str | None = None) -> "Run":
        """Open a run folder.

        Raises:
            FileNotFoundError: There is none.
            ValueError: The folder holds no run, or a damaged recipe.
        """
        folder = Path(folder)
        if not folder.exists():
            raise FileNotFoundError(
                f"run: expected a run folder, found nothing at {folder}. Make one with vae train, "
                "or correct the path."
            )
        if not (folder / "recipe.json").is_file():
            raise ValueError(
                f"run: expected a run folder, but {folder} holds no recipe.json. Give the folder "
                "that vae train wrote."
            )
        return cls(folder, Recipe.read(folder / "recipe.json"), where=where)

    def agree(self, source: str | Path, **settings) -> None:
        """Check that a run can go on with these settings; None stands for the run's own.

        The source may have moved, as long as it holds the same pictures.

        Raises:
            ValueError: One that is not the run's, or other pictures. Nothing was changed.
        """
        ours, source = self.recipe, located(source)
        known = asdict(ours) | {"channels": ours.shape[0], "size": ours.shape[1:]}
        if MNIST in (source, ours.source):
            settings = settings | {"source": source}
        for name, value in settings.items():
            value = _sides(value) if name == "size" and value is not None else value
            if name != "epochs" and value is not None and value != known[name]:
                raise ValueError(
                    f"{name}: the run in {self.folder} was begun with {_said(known[name])}, got "
                    f"{_said(value)}. Leave it out to go on, or begin another run elsewhere "
                    "with -o."
                )
        recipe = replace(ours, source=source)
        self._data, self.recipe = self._loaded(recipe), recipe

    @property
    def data(self) -> Data:
        """The pictures of the run.

        Raises:
            ValueError: They are others than those it was begun with, or are split otherwise.
        """
        if self._data is None:
            self._data = self._loaded(self.recipe)
        return self._data

    def _loaded(self, recipe: Recipe) -> Data:
        """Load the pictures of a recipe; where they differ, name those that came or went."""
        try:
            return Data.of(recipe)
        except OtherPictures as error:
            listed = (self.folder / "pictures.csv").read_text(
                encoding="utf-8", errors="surrogateescape"
            )
            rows = list(csv.reader(io.StringIO(listed)))[1:]
            before = {name for name, use in rows if not use.startswith("skipped")}
            named = [f"{name} is new" for name in error.names if name not in before]
            named += [f"{name} is missing" for name in sorted(before - set(error.names))]
            more = ", and so on" if len(named) > 3 else ""
            changes = ", ".join(named[:3]) + more if named else "a picture was changed"
            raise ValueError(
                f"source: the run was begun with {recipe.count:,} pictures, and what lies in "
                f"{recipe.source} now differs from them: {changes}. Give the same pictures, or "
                "begin another run elsewhere with -o. Other pictures are scored by vae score RUN "
                "FOLDER."
            ) from None

    @cached_property
    def held_out(self) -> Pictures:
        """The pictures that no weight has seen."""
        return self.data.pictures[self.data.held_out]

    @property
    def model(self) -> VAE:
        """The trained model, as it is on disk or as `train` left it.

        Raises:
            FileNotFoundError: There are no weights yet.
            ValueError: They are damaged, or not of this recipe.
        """
        if self._model is None:
            if not (self.folder / "weights.safetensors").exists():
                raise FileNotFoundError(
                    f"run: {self.folder} has no weights yet; they come with the first epoch. Go "
                    "on with vae train."
                )
            model = self.recipe.model()
            checkpoints.load(self.folder / "weights", model)
            self._model = model.to(device(self._device or "cpu"))
        return self._model

    # ------------------------------------------------------------------------------- training

    @property
    def size(self) -> str:
        """Height and width, as people say it."""
        return "{1} x {2}".format(*self.recipe.shape)

    @property
    def epochs(self) -> int:
        """How many epochs are complete, by the state on disk."""
        file = self.folder / "state.safetensors"
        return checkpoints.unpack(file, states.FORMAT)[1]["epoch"] if file.exists() else 0

    def train(self, epochs: int | None = None, *, report: Callable[[dict], None] | None = None):
        """Train, or go on where the training stopped, and write the folder after each epoch.

        Processes that have joined (`vae_lib.processes`) share each batch, and the first writes.

        Arguments:
            epochs: How many in all; None as many as the run was begun for.
            report: Called after each epoch with its row of the history.

        Raises:
            ValueError: Fewer epochs than there were, or a damaged state.
            OSError: A file cannot be written; the old ones are left.
            vae_lib.training.Interrupted: Ctrl-C; the state is on disk.
        """
        recipe, seen = self.recipe, from_first(lambda: self.epochs)
        if not seen and (self.folder / "weights.safetensors").exists():
            raise ValueError(
                f"run: {self.folder} has weights, and its state.safetensors, from which to go on, "
                "is gone or of no whole epoch. Restore it, or begin another run elsewhere with -o."
            )
        epochs = recipe.epochs if epochs is None else whole("epochs", epochs)
        if epochs < seen:
            raise ValueError(
                f"epochs: the run in {self.folder} has {seen} already, got {epochs}. Give more, or "
                "begin another run elsewhere with -o."
            )
        with _alone(self.folder):
            self._train(replace(recipe, epochs=epochs), seen, report)

    def _train(self, recipe: Recipe, seen: int, report: Callable[[dict], None] | None) -> None:
        """Train for the epochs that are missing."""
        self.recipe, epochs = recipe, recipe.epochs
        batches, model = self._batches(), recipe.model().to(device(recipe.device))
        self._model = model
        if share().rank == 0:
            checkpoints.write({self.folder / "recipe.json": recipe.content()})
        state = State(self.folder / "state.safetensors", every=EVERY)
        options = {"learning_rate": recipe.learning_rate, "clip": recipe.clip}
        options |= {"seed": recipe.seed, "state": state}
        options["average"] = None if recipe.average is None else recipe.forgetting
        options["after_epoch"] = lambda _: self._judged(model, state)
        drawn = -math.inf
        # An epoch a call, so that the state on disk is never older than what is written after it.
        for number in range(max(1, seen), epochs + 1):
            train(model, batches, epochs=number, **options)
            self._model = _kept(model, state)
            # In the middle of an epoch the weights are not those that the last row judged.
            if state.step == 0 and share().rank == 0:
                self._save(state)
                if number == epochs or time.monotonic() - drawn > DRAW_EVERY:
                    self._draw(state.history)
                    drawn = time.monotonic()
            if report is not None and number > seen:
                report(state.history[-1])

    def _batches(self) -> Batches:
        """Return batches of the rows to learn from, looked up one batch at a time.

        The array may be larger than the memory, so no half of it is copied.
        """
        recipe, data = self.recipe, self.data
        everything, where = data.pictures.images, device(recipe.device)

        def look_up(rows, _):
            return recipe.floats(everything[rows.cpu()].to(where))

        rows = data.learnt.to(where)
        return Batches(rows, recipe.batch_size, seed=recipe.seed, transform=look_up)

    def _judged(self, model: VAE, state: State) -> dict:
        """Score the held-out pictures after an epoch."""
        self._model = _kept(model, state)
        elbo = self._elbo(self.held_out)
        row = {"held_out": elbo.mean, "standard_error": elbo.standard_error}
        if not self._density():
            row["bits"] = self._bits(elbo).mean
        return row | {"seconds": state.wall_seconds + time.perf_counter() - state._wall}

    def _save(self, state: State) -> None:
        """Write weights and history."""
        said = {"epochs": state.epoch, "held_out_elbo": state.history[-1]["held_out"]}
        checkpoints.save(self.folder / "weights", self.model, run=said | asdict(self.recipe))
        names = {"epoch": "epoch", "objective": "objective_nats", "held_out": "held_out_elbo_nats"}
        names |= {"bits": "held_out_bits_per_dimension", "seconds": "seconds"}
        rows = [[_short(row.get(name, "")) for name in names] for row in state.history]
        checkpoints.write({self.folder / "history.csv": table(names.values(), rows)})

    def _draw(self, history: list[dict]) -> None:
        """Draw the curve, some samples, and some held-out pictures with what comes back."""
        checkpoints.write({self.folder / "curve.png": _curve(history)})
        self.sheet(self.folder / "samples.png", self.sample(40, mean=True))
        self.compare(self.folder / "reconstructions.png", self.held_out[:20])

    # ------------------------------------------------------------------------- what it can do

    def pictures(self, source, *, least: int = 2) -> Pictures:
        """Load other pictures, and bring them to the shape of the run.

        Arguments:
            source: A folder or zip, a list of files, or "mnist", which stands for its test images.
            least: How many there must be.

        Raises:
            ValueError: What `load_images` refuses.
        """
        channels, *sides = self.recipe.shape
        if source == MNIST:
            if self.recipe.source != MNIST:
                raise ValueError("source: expected pictures, got mnist, which this run is not of.")
            return mnist()[60_000:]
        options = {"channels": channels, "background": self.recipe.background, "least": least}
        return images.load_images(source, size=tuple(sides), **options)

    def score(self, pictures: Pictures, *, samples: int = 100) -> Score:
        """Score pictures, at least two.

        Arguments:
            pictures: In the shape of the run.
            samples: Latents a picture for the importance-sampled likelihood.
        """
        parts = enumerate(self._parts(pictures))
        found = [log_likelihood(self.model, x, samples=samples, seed=s) for s, x in parts]
        likelihood = Estimate(torch.cat([part.values for part in found]))
        elbo = self._elbo(pictures)
        return Score(elbo, likelihood, None if self._density() else self._bits(elbo))

    def _elbo(self, pictures: Pictures) -> Estimate:
        """Estimate the ELBO of pictures, few enough of them at a time."""
        size = self._at_once()
        parts = enumerate(self._parts(pictures))
        found = [held_out_elbo(self.model, x, seed=s, batch_size=size).elbo for s, x in parts]
        return Estimate(torch.cat([part.values for part in found]))

    def _bits(self, estimate: Estimate) -> Estimate:
        """Turn nats a picture into bits per dimension."""
        return Estimate(-estimate.values / (math.prod(self.recipe.shape) * math.log(2)))

    def _parts(self, pictures: Pictures) -> Iterator[Tensor]:
        """Yield pictures as the model learns them, as many at a time as fit comfortably."""
        count = -(-pictures.images.numel() // AT_ONCE)
        for part in pictures.images.tensor_split(count):
            yield self._floats(part)

    def _floats(self, bytes_: Tensor) -> Tensor:
        """Turn bytes into what the model learns, on its device."""
        return self.recipe.floats(bytes_.to(self._where()))

    def _where(self) -> torch.device:
        """Return the device of the model."""
        return next(self.model.parameters()).device

    def _density(self) -> bool:
        """Whether the scores are densities."""
        return self.recipe.likelihood == "gaussian"

    def _at_once(self) -> int:
        """How many pictures go through the network at a time."""
        return max(1, min(1000, 2**20 // math.prod(self.recipe.shape)))

    @torch.no_grad()
    def encode(self, pictures: Pictures) -> tuple[Tensor, Tensor]:
        """Return mean and log standard deviation of q(z given x), shape (n, latents) each."""
        parts = pictures.images.split(self._at_once())
        with switched(self.model, training=False):
            found = [self.model.encoder(self._floats(part)) for part in parts]
        means, log_stds = [q.mean for q in found], [q.log_std for q in found]
        return torch.cat(means).cpu(), torch.cat(log_stds).cpu()

    @torch.no_grad()
    def decode(self, z: Tensor, *, generator: torch.Generator | None = None) -> Tensor:
        """Return the mean of p(x given z), or draw from it.

        Arguments:
            z: Shape (n, latents).
            generator: Of the draws, on the device of the model; None returns the mean.

        Returns:
            Floats from 0 to 1, shape (n, channels x height x width), on the CPU.
        """
        found = []
        with switched(self.model, training=False):
            for part in z.to(self._where()).split(self._at_once()):
                p = self.model.decoder(part)
                found.append(p.mean if generator is None else p.sample(generator=generator))
        return torch.cat(found).cpu().clamp(0, 1)

    def sample(self, count: int, *, mean: bool = False, seed: int = 0) -> Tensor:
        """Draw pictures from the prior: floats from 0 to 1, one a row.

        Arguments:
            count: How many, at least 1.
            mean: Return the decoder's mean for each latent, which is smoother than a draw.
            seed: Of the draws.
        """
        generator = seeded(seed, stream="samples", device=self._where())
        with torch.no_grad():
            z = self.model.prior().sample(whole("count", count), generator=generator)
        return self.decode(z, generator=None if mean else generator)

    def compare(self, file: str | Path, pictures: Pictures) -> None:
        """Write a sheet of pictures, below each what comes back from its mean of z."""
        columns = min(10, len(pictures))
        back = self.decode(self.encode(pictures)[0])
        rows, filling = [], torch.zeros if self.recipe.shape[0] == 4 else torch.ones
        pairs = zip(self._seen(pictures).split(columns), back.split(columns), strict=True)
        for above, below in pairs:
            blank = filling(columns - len(above), back.shape[1])
            rows += [above, blank, below, blank]
        self.sheet(file, torch.cat(rows), columns)

    def walk(self, ends: Pictures, steps: int) -> Tensor:
        """Go from one picture to another in a straight line between their means of z.

        Arguments:
            ends: Two pictures.
            steps: How many pictures to decode on the way, both ends included; at least 2.

        Returns:
            The first picture, what the line decodes to, the second; a row each.
        """
        first, last = self.encode(ends)[0]
        way = torch.linspace(0, 1, whole("steps", steps, 2)).unsqueeze(-1)
        start, end = self._seen(ends).split(1)
        return torch.cat([start, self.decode(torch.lerp(first, last, way)), end])

    def costs(self, pictures: Pictures, *, samples: int = 100) -> tuple[Tensor, Tensor | None]:
        """Return the ELBO of each picture, over several draws of z, and its bits per dimension.

        Returns:
            Nats, and bits per dimension or None of a density; shape (n,) each.
        """
        noise = seeded(0, stream="evaluation", device=self._where())
        with torch.no_grad(), switched(self.model, training=False):
            found = [
                log_weights(self.model, self._floats(one), samples, noise, at_once=10).mean(0)
                for one in pictures.images.split(1)
            ]
        elbo = Estimate(torch.cat(found).cpu())
        return elbo.values, None if self._density() else self._bits(elbo).values

    def _seen(self, pictures: Pictures) -> Tensor:
        """Return pictures as the model sees them, for a sheet."""
        return self._floats(pictures.images).cpu()

    def check_output(self, file: str | Path, *used: str | Path) -> None:
        """Refuse to write over pictures, or among those that the run is of.

        Arguments:
            file: Where something is to be written.
            used: The pictures that it is made from.

        Raises:
            ValueError: It is one of them, or lies in the folder that the run learns from.
        """
        place = Path(file).expanduser().resolve()
        inside = self.recipe.source != MNIST and place.is_relative_to(
            Path(self.recipe.source).resolve()
        )
        if inside or any(place == Path(one).expanduser().resolve() for one in used):
            raise ValueError(
                f"output: expected a file that is none of the pictures and not among them, got "
                f"{file}. Give another with -o."
            )

    def sheet(self, file: str | Path, rows: Tensor, columns: int = 10) -> None:
        """Write pictures, floats from 0 to 1, one a row, as a PNG sheet: whole or not at all."""
        zoom = max(1, SHOWN // max(self.recipe.shape))
        images.save_sheet(file, rows, self.recipe.shape, columns, zoom=zoom)


@contextmanager
def _alone(folder: Path) -> Iterator[None]:
    """Keep a second training out of a run folder; processes that train together are one."""
    if share().rank > 0:
        yield
        return
    lock = FileLock(folder / ".lock")
    try:
        lock.acquire(timeout=0)
    except Timeout:
        raise ValueError(
            f"run: another training is at work in {folder}. Wait for its end, or begin another run "
            "elsewhere with -o."
        ) from None
    try:
        yield
    finally:
        lock.release()
        with suppress(OSError):
            (folder / ".lock").unlink()


def _kept(model: VAE, state: State) -> VAE:
    """Return what a training is for: the average of the weights, where there is one."""
    return model if state.averaged is None else state.averaged


def _curve(history: list[dict]) -> bytes:
    """Draw the history in the house style, as PNG."""
    epochs = [row["epoch"] for row in history]
    series = {"learnt from": (epochs, [row["objective"] for row in history])}
    series["held out"] = (epochs, [row["held_out"] for row in history])
    buffer = io.BytesIO()
    with mpl.rc_context():
        figures.use_style()
        colors = {"learnt from": figures.NEUTRAL, "held out": figures.INK}
        labels = {"xlabel": "epoch", "ylabel": "ELBO, nats per picture"}
        fig = figures.curves(series, colors=colors, dashed=["learnt from"], **labels)
        axis = fig.axes[0]
        axis.xaxis.get_major_locator().set_params(integer=True)
        for line in axis.lines:
            line.set_marker("." if len(epochs) < 30 else "")  # one epoch makes no line
        fig.savefig(buffer, format="png")
        plt.close(fig)
    return buffer.getvalue()


def _check_new(folder: Path, source: str) -> None:
    """Refuse a folder that cannot hold a new run, before anything is loaded."""
    if source != MNIST and folder.resolve().is_relative_to(Path(source).resolve()):
        raise ValueError(
            f"run: expected a folder outside of the pictures, got {folder} in {source}: its sheets "
            "would be taken for pictures. Give another with -o."
        )
    if folder.exists() and not folder.is_dir():
        raise ValueError(f"run: expected a folder, got the file {folder}. Give another with -o.")
    if folder.is_dir() and any(folder.iterdir()):
        raise ValueError(
            f"run: expected a run, or a new or empty folder, but {folder} holds other files and no "
            "recipe.json. Give another with -o."
        )
    there = next(place for place in (folder, *folder.absolute().parents) if place.exists())
    if not there.is_dir() or not os.access(there, os.W_OK):
        raise ValueError(f"run: {there} cannot be written to. Give another folder with -o.")


def _sides(size: int | tuple[int, int]) -> tuple[int, int]:
    """Return height and width of a size, which is a side or both."""
    return tuple(size) if isinstance(size, tuple | list) else (size, size)


def _said(value) -> str:
    """Say a setting as the command line takes it."""
    return "x".join(map(str, value)) if isinstance(value, tuple) else str(value)


def _short(value):
    """Round a number for a table that people read."""
    return f"{value:.6g}" if isinstance(value, float) else value


def device(name: str) -> torch.device:
    """Return a device that can be used.

    Raises:
        ValueError: There is none of that name here.
    """
    try:
        torch.empty(1, device=name)
    except (RuntimeError, AssertionError) as error:
        raise ValueError(
            f"device: expected one that this machine has, got {name}. Use cpu."
        ) from error
    return torch.device(name)
