"""Where a training stands: what its next step depends on, in memory and in a file."""

import hashlib
import time
import warnings
import weakref
from pathlib import Path
from typing import ClassVar

import torch
from torch import Tensor, nn

from vae_lib import checkpoints
from vae_lib.data import Batches
from vae_lib.processes import from_first, share

FORMAT = "vae_lib training state 1"


# What the file holds besides tensors, by the names of the attributes.
NUMBERS = ["epoch", "step", "steps", "history", "wall_seconds", "cpu_seconds"]
NUMBERS += ["_total", "_seen", "_skipped", "_in_a_row"]


class State:
    """Where a training stands, so that `train` can go on from there.

    It holds what the next step depends on: the optimiser's moments, the average of the weights,
    the epoch, the step and the position in the noise. The weights are those of the model.
    Without a path it lasts as long as the process. With one it is written to that file while
    `train` runs, weights included, and a training whose file exists goes on from the file.

    Arguments:
        path: Of a file that need not exist, or None.
        every: Seconds between two writings, at least 0; 0 writes after every step. The end of
            the training and Ctrl-C write too.

    Attributes:
        epoch: How many epochs are complete.
        step: How many steps of the next one are.
        steps: How many steps there were in all.
        history: A dictionary for each complete epoch: "epoch", "objective" (its mean while the
            model was being trained), "skipped" (steps), "validation" if there is one, and what
            `after_epoch` returned.
        averaged: A model with the average of the weights, or None.
        best: None, or a dictionary: "epoch", "validation", and the "weights" that had it.
        wall_seconds, cpu_seconds: What the training took so far, interruptions left out.

    Example:
        >>> from vae_lib.data import Batches
        >>> from vae_lib.model import dense_vae
        >>> from vae_lib.training import train
        >>> model, state = dense_vae(hidden=8, latents=2), State()
        >>> batches = Batches(torch.zeros(200, 784))
        >>> _ = train(model, batches, epochs=2, state=state)
        >>> _ = train(model, batches, epochs=4, state=state)  # two more
        >>> state.epoch, state.steps
        (4, 8)
    """

    _latest: ClassVar = weakref.WeakKeyDictionary()

    def __init__(self, path: str | Path | None = None, *, every: float = 120):
        if not every >= 0:
            raise ValueError(f"every: expected a number of seconds not below zero, got {every}.")
        self.path = None if path is None else Path(path)
        self.every = every
        self.epoch = self.step = self.steps = 0
        self.history: list[dict] = []
        self.averaged: nn.Module | None = None
        self.best: dict | None = None
        self.wall_seconds = self.cpu_seconds = 0.0
        self._total, self._seen, self._skipped, self._in_a_row = 0.0, 0, 0, 0  # in this epoch
        self._noise: Tensor | None = None  # the generator's state after the last step
        self._model: weakref.ref = lambda: None
        self._optimizer: torch.optim.Optimizer | None = None
        self._average: nn.Module | None = None
        self._recipe: dict | None = None
        self._whole = True  # False between the two ends of a step
        self._written = self._wall = self._cpu = 0.0  # clocks

    @classmethod
    def of(cls, model: nn.Module) -> "State":
        """Return the state of a model's latest training in this process.

        Raises:
            ValueError: The model was not trained in this process.
        """
        if model not in cls._latest:
            raise ValueError("model: expected one that `train` has trained in this process.")
        return cls._latest[model]

    @classmethod
    def given(cls, state: "State | str | Path | None", model: nn.Module) -> "State":
        """Return what `train` is given as a state: one, the path of one, or None for a new one.

        A new one for a model that was trained before comes with a warning, since it is easily
        taken for going on.
        """
        if state is None and model in cls._latest:
            warnings.warn(
                "train: this model was trained before, and this call starts anew: Adam has "
                "forgotten that training, and order and noise are those of epoch 1 again. To go "
                "on, pass state=State.of(model) and the number of epochs in all; if it is meant, "
                "pass state=State().",
                stacklevel=3,
            )
        return state if isinstance(state, State) else cls(state)

    def how_to_go_on(self, steps: int) -> str:
        """Say where the training stands, of so many steps in an epoch, and how to continue it."""
        where = f"after epoch {self.epoch}"
        if self.step:
            where = f"in epoch {self.epoch + 1}, after step {self.step} of {steps}"
        kept = "state=State.of(model), whose history has the epochs so far"
        if self.path is not None:
            kept = f"the same state, which is in {self.path}"
        return f"stopped {where}. To go on, call train with the same arguments and {kept}."

    def _start(self, model: nn.Module, optimizer, average, recipe: dict, epochs: int) -> None:
        """Bind to a model, or go on with it, from the file if there is one."""
        if self._recipe is None:
            self._optimizer, self._average, self._recipe = optimizer, average, recipe
            stored = from_first(self._stored)  # that others see the file is not said
            if stored is not None:
                self._load(model, *stored)
        elif self._model() is not model:
            raise ValueError(
                "state: it belongs to the training of another model. Give that model, or a new "
                "State()."
            )
        if not self._whole:
            raise ValueError(
                "state: its training broke off in the middle of a step. Go on from a file, with a "
                "new State(path) and a new model, or start anew."
            )
        for name, value in recipe.items():
            if self._recipe[name] != value:
                raise ValueError(
                    f"state: its training had {name} {self._recipe[name]}, got {value}. Give the "
                    "same again to go on, or a new State() to start anew."
                )
        if epochs < self.epoch:
            raise ValueError(
                f"epochs: expected at least the {self.epoch} that the state has seen, got {epochs}."
            )
        self._model = weakref.ref(model)
        self.averaged = None if self._average is None else self._average.module
        State._latest[model] = self
        self._written = time.monotonic()
        self._wall, self._cpu = time.perf_counter(), time.process_time()

    def _due(self) -> bool:
        """Whether it is time to write again."""
        return self.path is not None and time.monotonic() - self._written >= self.every

    def _write(self) -> None:
        """Count the time, and write the file if there is a path: whole, or the old one stays."""
        wall, cpu = time.perf_counter(), time.process_time()
        self.wall_seconds += wall - self._wall
        self.cpu_seconds += cpu - self._cpu
        self._wall, self._cpu, self._written = wall, cpu, time.monotonic()
        if self.path is None or share().rank > 0:
            return
        model = self._model()
        tensors = {f"model.{name}": value for name, value in model.state_dict().items()}
        for index, moments in self._optimizer.state_dict()["state"].items():
            tensors |= {f"optimizer.{index}.{name}": value for name, value in moments.items()}
        if self._average is not None:
            average = self._average.state_dict()
            tensors |= {f"average.{name}": value for name, value in average.items()}
        if self.best is not None:
            tensors |= {f"best.{name}": value for name, value in self.best["weights"].items()}
        if self._noise is not None:
            tensors["noise"] = self._noise
        best = self.best and {name: self.best[name] for name in ("epoch", "validation")}
        description = {"format": FORMAT, "recipe": self._recipe, "best": best}
        description |= {name: getattr(self, name) for name in NUMBERS}
        checkpoints.write({self.path: checkpoints.pack(tensors, description)})

    def _stored(self) -> tuple[dict[str, Tensor], dict] | None:
        """Read the file, if there is one."""
        there = self.path is not None and self.path.exists()
        return checkpoints.unpack(self.path, FORMAT) if there else None

    def _load(self, model: nn.Module, tensors: dict[str, Tensor], description: dict) -> None:
        """Take what was read into the model, the optimiser and this object, if it fits."""
        parts: dict[str, dict] = {"model": {}, "optimizer": {}, "average": {}, "best": {}}
        for name, value in tensors.items():
            part, _, rest = name.partition(".")
            if rest:
                parts[part][rest] = value
        checkpoints.check_shapes(parts["model"], model, self.path)
        model.load_state_dict(parts["model"])
        moments: dict[int, dict] = {}
        for name, value in parts["optimizer"].items():
            index, _, kind = name.partition(".")
            moments.setdefault(int(index), {})[kind] = value
        groups = self._optimizer.state_dict()["param_groups"]
        self._optimizer.load_state_dict({"state": moments, "param_groups": groups})
        if self._average is not None and parts["average"]:
            self._average.load_state_dict(parts["average"])
        self.best = description["best"] and {**description["best"], "weights": parts["best"]}
        self._noise = tensors.get("noise")
        self._recipe = description["recipe"]
        for name in NUMBERS:
            setattr(self, name, description[name])


def described(batches: Batches) -> dict:
    """Return what the order and the content of batches depend on; of the images, a sample."""
    images = batches.images
    sample = torch.linspace(0, len(images) - 1, 16, device="cpu").long()
    rows = images[sample.to(images.device)]
    content = rows.cpu().contiguous().flatten().view(torch.uint8).numpy().tobytes()
    return {
        "images": f"{tuple(images.shape)} {hashlib.sha256(content).hexdigest()[:12]}",
        "batch size": batches.batch_size,
        "order": batches.seed if batches.shuffle else "as it is",
    }
