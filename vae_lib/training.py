"""One loop for every objective and every model."""

import math
import os
import sys
from collections.abc import Callable

import torch
from torch import Tensor, nn
from tqdm import tqdm

from vae_lib.data import Batches, seeded
from vae_lib.objectives import elbo

Objective = Callable[[nn.Module, Tensor, torch.Generator], Tensor]


def train(
    model: nn.Module,
    batches: Batches,
    objective: Objective = elbo,
    *,
    epochs: int,
    learning_rate: float = 1e-3,
    seed: int = 0,
    after_epoch: Callable[[int], None] | None = None,
) -> list[float]:
    """Maximise an objective with Adam (Kingma and Ba, 2015).

    This is the one place where an objective is averaged over a batch and negated. The order
    of the images and the noise depend on the seeds and the epoch alone. A person who watches
    sees a bar with the mean of the objective over the epoch so far; see `watched`.

    Arguments:
        model: Trained in place, on the device that it shares with the images.
        batches: The images.
        objective: A callable (model, x, generator) that returns one value per example, shape
            (batch,), larger is better; for example `vae_lib.objectives.elbo`.
        epochs: How often to go through the images, at least 1.
        learning_rate: Adam's step size.
        seed: Of the noise.
        after_epoch: Called with the epoch's number, from 1 on, after each epoch.

    Returns:
        The mean of the objective over each epoch, while the model was being trained, in the
        objective's own unit.

    Raises:
        ValueError: `epochs` below 1, or an objective that is not of shape (batch,).
        FloatingPointError: The objective became NaN or infinite. The model keeps the last
            parameters before that step.

    Example:
        >>> from vae_lib.model import dense_vae
        >>> batches = Batches(torch.zeros(200, 784), batch_size=50)
        >>> first, last = train(dense_vae(hidden=8, latents=2), batches, epochs=2)
        >>> first < last
        True
    """
    if epochs < 1:
        raise ValueError(f"epochs: expected at least 1, got {epochs}.")
    # The fused form does the same arithmetic in one pass over the weights.
    optimizer = torch.optim.Adam(model.parameters(), lr=learning_rate, fused=True)
    history = []
    with tqdm(total=epochs * len(batches), disable=not watched(), leave=False) as bar:
        for epoch in range(1, epochs + 1):
            noise = seeded(seed, epoch, stream="noise", device=batches.images.device)
            total, seen = 0.0, 0
            for step, x in enumerate(batches.epoch(epoch), start=1):
                values = objective(model, x, noise)
                mean = _mean(values, x, epoch, step)
                optimizer.zero_grad()
                (-mean).backward()
                optimizer.step()
                total += mean.item() * len(x)
                seen += len(x)
                bar.update()
                if step % 50 == 0:
                    bar.set_postfix_str(f"epoch {epoch}/{epochs}, objective {total / seen:.1f}")
            history.append(total / seen)
            if after_epoch is not None:
                after_epoch(epoch)
    return history


def _mean(values: Tensor, x: Tensor, epoch: int, step: int) -> Tensor:
    """Average an objective over its batch, refusing a wrong shape and a number that is none."""
    if values.shape != x.shape[:1]:
        raise ValueError(
            f"objective: expected one value per example, shape ({len(x)},), got "
            f"{tuple(values.shape)}. Sum over pixels and latents; leave the mean to the loop."
        )
    mean = values.mean()
    if not math.isfinite(mean.item()):
        raise FloatingPointError(
            f"objective: expected a finite number, got {mean.item()} at epoch {epoch}, step "
            f"{step}. The model keeps its parameters from before this step. Lower the learning "
            "rate, or look for a logarithm of zero or an exponential without bound."
        )
    return mean


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
