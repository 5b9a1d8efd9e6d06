"""One loop for every objective and every model."""

import copy
import math
import os
import signal
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from itertools import islice
from pathlib import Path

import torch
from torch import nn
from torch.optim.swa_utils import AveragedModel
from tqdm import tqdm

from vae_lib.arguments import kind, real, whole
from vae_lib.data import Batches, seeded
from vae_lib.model import switched
from vae_lib.objectives import elbo
from vae_lib.processes import from_first, share
from vae_lib.states import State, described
from vae_lib.steps import Objective, Step, made_fast


class Interrupted(KeyboardInterrupt):
    """Ctrl-C ended a training between two steps; its message says how to go on."""


def train(
    model: nn.Module,
    batches: Batches,
    objective: Objective = elbo,
    *,
    epochs: int,
    learning_rate: float | Callable[[int], float] = 1e-3,
    seed: int = 0,
    after_epoch: Callable[[int], dict | None] | None = None,
    validate: Callable[[nn.Module], float] | None = None,
    clip: float | None = None,
    average: float | Callable[[int], float] | None = None,
    skip: bool = False,
    fast: bool = False,
    state: State | str | Path | None = None,
) -> list[float]:
    """Maximise an objective with Adam (Kingma and Ba, 2015).

    This is the one place where an objective is averaged over a batch and negated. The order
    of the images and the noise depend on the seeds, the epoch and the step alone, so a training
    that was stopped and goes on, by the same call with the same `state`, ends with the same
    bits as one that was not. A person who watches sees a bar with the mean of the objective
    over the epoch so far; see `watched`. Ctrl-C waits for the end of the step, a second one
    does not.

    Where several processes have joined (`vae_lib.processes`), all of them call it alike, with all
    the images, and share each batch; it ends with the same weights in each, which are those of one
    process but for rounding. What the objective gets as its generator is then a
    `vae_lib.noise.Rows`. `validate` and `after_epoch` are called, and the state is written and
    read, by the first process alone.

    Arguments:
        model: Trained in place, in training mode, on the device that it shares with the images.
        batches: The images.
        objective: A callable (model, x, generator) that returns one value per example, shape
            (batch,), larger is better; for example `vae_lib.objectives.elbo`.
        epochs: How often to go through the images, at least 1, counted from the beginning: a
            state that has seen two of four goes on for two more.
        learning_rate: Adam's step size, or a function that gives it for each step, counted from
            0 over all epochs; for example `cosine`.
        seed: Of the noise.
        after_epoch: Called with the epoch's number, from 1 on, after each epoch; what it returns
            is added to the history. A training killed meanwhile calls it for that epoch again.
        validate: Called with the model after each epoch, or with the average of its weights if
            there is one; returns a score, larger is better. The weights of the best are kept in
            `State.best`, apart from the last, which are the model's.
        clip: The gradient's greatest length (its norm over all weights); longer ones are
            shortened to it. None shortens none.
        average: The decay, at least 0 and below 1, of an exponential moving average of the
            weights, kept in `State.averaged`: after each step it keeps this share of itself. Or
            a function that gives it for each step, counted from 0 over all epochs.
        skip: Leave out a step whose objective or gradient is not finite, and count it in the
            history, in place of raising; ten in a row raise all the same.
        fast: Compute the networks in bfloat16 where the device has instructions for it
            (`vae_lib.steps.has_bfloat16`); elsewhere it changes nothing. Weights, distributions
            and their densities stay in 32 bits. Other bits on another device: not for a score that
            is compared to the last digit.
        state: A `State`, or the path of its file. None starts anew.

    Returns:
        The mean of the objective over each epoch, while the model was being trained, in the
        objective's own unit; of the epochs before, too, if the training went on.

    Raises:
        ValueError: An argument out of range, an objective that is not of shape (batch,), images
            outside of the support of the decoder's distribution, or a state of another training.
        FloatingPointError: The objective or its gradient became NaN or infinite. The model keeps
            the parameters from before that step.
        Interrupted: Ctrl-C. The model, the history and the state are those after the last step.

    Example:
        >>> from vae_lib.model import dense_vae
        >>> batches = Batches(torch.zeros(200, 784), batch_size=50)
        >>> first, last = train(dense_vae(hidden=8, latents=2), batches, epochs=2)
        >>> first < last
        True
    """
    if not isinstance(batches, Batches):
        raise ValueError(
            f"batches: expected vae_lib.data.Batches, got {type(batches).__name__}. "
            "Wrap a tensor of images: Batches(images, batch_size=100)."
        )
    if not isinstance(model, nn.Module):
        raise ValueError(f"model: expected a torch.nn.Module, got {kind(model)}.")
    if not callable(objective):
        raise ValueError(f"objective: expected a callable such as elbo, got {kind(objective)}.")
    epochs = whole("epochs", epochs)
    if not callable(learning_rate):
        real("learning_rate", learning_rate)
    if clip is not None and not real("clip", clip) > 0:
        raise ValueError(f"clip: expected a number above zero or None, got {clip}.")
    decay = average if callable(average) else lambda step: average
    if average is not None and not 0 <= real("average", decay(0)) < 1:
        raise ValueError(f"average: expected a decay from 0 to below 1 or None, got {average}.")
    state = State.given(state, model)
    rate = learning_rate if callable(learning_rate) else lambda step: learning_rate
    # The fused form does the same arithmetic in one pass over the weights.
    optimizer = torch.optim.Adam(model.parameters(), lr=rate(0), fused=True)
    copied = average is not None and state._recipe is None
    averaged = AveragedModel(model) if copied else None
    recipe = {
        "seed": seed,
        "learning rate": None if callable(learning_rate) else learning_rate,
        "clip": clip,
        "average": "a function" if callable(average) else average,
        **described(batches),
    }
    state._start(model, optimizer, averaged, recipe, epochs)
    ours = share()
    hidden = ours.rank > 0 or not watched()
    bar = tqdm(total=epochs * len(batches), initial=state.steps, disable=hidden, leave=False)
    with bar, _patient() as stopped, made_fast(model, fast) as fast:
        options = {"rate": rate, "decay": decay, "clip": clip, "skip": skip, "fast": fast}
        step = Step(model, objective, state, stopped=stopped, share=ours, **options)
        while state.epoch < epochs:
            number = state.epoch + 1
            noise = seeded(seed, number, stream="noise", device=batches.images.device)
            if state.step:
                noise.set_state(state._noise)
            # Going on in the middle, what the batches of the steps before drew is drawn again.
            with switched(model, training=True):
                for x in islice(batches.epoch(number, ours), state.step, None):
                    step(x, noise, batches.size(state.step))
                    bar.update()
                    if state.step % 50 == 0 and state._seen:
                        mean = state._total / state._seen
                        bar.set_postfix_str(f"epoch {number}/{epochs}, objective {mean:.1f}")
                    if step.asked_to_stop():
                        break
                    if not step.unread and state._due():
                        state._write()
                step.read()
            if state.step == len(batches) and not step.asked_to_stop():
                _finish_epoch(model, state, validate, after_epoch)
            if step.asked_to_stop():
                state._write()
                raise Interrupted(state.how_to_go_on(len(batches)))
        state._write()
    return [row["objective"] for row in state.history]


def _finish_epoch(model, state, validate, after_epoch) -> None:
    """Judge the model, and close the epoch in the state once nothing can fail any more."""
    number = state.epoch + 1
    for name, value in model.named_parameters():
        if not torch.isfinite(value).all():
            raise FloatingPointError(
                f"model: expected finite parameters, but {name} holds NaN or infinity after epoch "
                f"{number}. Lower the learning rate, and go on from a state before that."
            )
    objective = state._total / state._seen if state._seen else math.nan
    row = {"epoch": number, "objective": objective}
    row["skipped"] = state._skipped
    judged = model if state.averaged is None else state.averaged

    def judgement():
        found = {} if validate is None else {"validation": float(validate(judged))}
        return found | ((after_epoch and after_epoch(number)) or {})

    row |= from_first(judgement)
    best = state.best
    if validate is not None and (best is None or row["validation"] > best["validation"]):
        weights = copy.deepcopy(judged.state_dict())
        state.best = {"epoch": number, "validation": row["validation"], "weights": weights}
    state.history.append(row)
    state.epoch, state.step = number, 0
    state._total, state._seen, state._skipped = 0.0, 0, 0


@contextmanager
def _patient() -> Iterator[list]:
    """Let Ctrl-C wait: the list that is yielded is empty until it came. A second one raises."""
    asked: list[bool] = []

    def note(number, frame):
        if asked:
            raise KeyboardInterrupt
        asked.append(True)

    main = threading.current_thread() is threading.main_thread()
    ours = main and signal.getsignal(signal.SIGINT) is signal.default_int_handler
    if ours:
        signal.signal(signal.SIGINT, note)
    try:
        yield asked
    finally:
        if ours:
            signal.signal(signal.SIGINT, signal.default_int_handler)


def cosine(peak: float, steps: int, *, warm_up: int = 0) -> Callable[[int], float]:
    r"""Make a learning rate that rises in a line and falls to zero along half a cosine.

    .. math:: \tfrac12 \, \text{peak} \, [1 + \cos(\pi t)], \quad
        t = \frac{\text{step} - \text{warm-up}}{\text{steps} - \text{warm-up}}

    The falling part is that of Loshchilov and Hutter (2017), without restarts.

    Arguments:
        peak: The greatest learning rate, above zero.
        steps: How many steps the whole training has, above `warm_up`.
        warm_up: How many of them rise, from peak / warm_up on.

    Returns:
        A function of the step, counted from 0, for `train`.

    Raises:
        ValueError: A number out of range.

    Example:
        >>> rate = cosine(1e-3, 101)
        >>> print(f"{rate(0):.4f} {rate(50):.4f} {rate(100):.4f}")
        0.0010 0.0005 0.0000
    """
    if not (peak > 0 and 0 <= warm_up < steps):
        raise ValueError(
            "peak, steps: expected a peak above zero, and a warm-up of fewer steps than there are, "
            f"got {peak}, and {warm_up} of {steps}."
        )

    def rate(step: int) -> float:
        if step < warm_up:
            return peak * (step + 1) / warm_up
        return 0.5 * peak * (1 + math.cos(math.pi * (step - warm_up) / (steps - warm_up)))

    return rate


def watched() -> bool:
    """Whether a person is watching: a terminal, or a notebook open in an editor.

    A notebook that is executed to be stored must not store a bar. The environment variable
    VAE_LIB_PROGRESS decides if it is set: 0 for never, anything else for always.

    Example:
        >>> watched()  # not while this example is tested
        False
    """
    if "VAE_LIB_PROGRESS" in os.environ:
        return os.environ["VAE_LIB_PROGRESS"] != "0"
    # Set by the Jupyter server, by VS Code and by Colab for kernels that they start.
    editors = ("JPY_SESSION_NAME", "VSCODE_PID", "COLAB_RELEASE_TAG")
    return sys.stderr.isatty() or any(name in os.environ for name in editors)
