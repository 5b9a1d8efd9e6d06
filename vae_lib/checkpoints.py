"""Weights on disk: safetensors, which cannot carry code, with a readable JSON file beside it."""

import hashlib
import json
import os
import platform
from pathlib import Path

import safetensors.torch
import torch
from torch import nn

RECORDED = Path(__file__).with_name("assets") / "recorded"
FORMAT = "vae_lib checkpoint 1"


def save(path: str | Path, model: nn.Module, **recipe) -> Path:
    """Write a model's weights and how they came to be, each file whole or not at all.

    A crash in the moment between the two files leaves a pair that `load` refuses.

    Arguments:
        path: Where to write, without an ending: `path`.safetensors and `path`.json result.
            Missing folders are made.
        model: Its parameters and persistent buffers are written.
        recipe: Whatever a reader should know: seed, epochs, scores. JSON types only.

    Returns:
        The path of the .safetensors file.

    Raises:
        ValueError: The weights are not all finite, or the recipe is not JSON. Files that were
            there before are left as they were.

    Example:
        >>> import tempfile
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     written = save(f"{folder}/small", nn.Linear(2, 1), epochs=10)
        ...     load(f"{folder}/small", nn.Linear(2, 1))["epochs"]
        10
    """
    state = {name: value.detach().cpu().contiguous() for name, value in model.state_dict().items()}
    for name, value in state.items():
        if not torch.isfinite(value).all():
            raise ValueError(
                f"model: expected finite weights, but {name} holds NaN or infinity. "
                "Nothing was written; save a model from before it diverged."
            )
    weights = safetensors.torch.save(state)
    sidecar = {
        "format": FORMAT,
        "sha256": hashlib.sha256(weights).hexdigest(),
        "weights": {name: " x ".join(map(str, value.shape)) for name, value in state.items()},
        "recipe": recipe,
        "made_with": {"torch": torch.__version__, "machine": platform.machine()},
    }
    try:
        text = json.dumps(sidecar, indent=1) + "\n"
    except TypeError as error:
        raise ValueError(f"recipe: expected JSON types only, but {error}.") from error
    target, described = _pair(path)
    target.parent.mkdir(parents=True, exist_ok=True)
    _write({target: weights, described: text.encode()})
    return target


def load(path: str | Path, model: nn.Module) -> dict:
    """Read weights into a model of the same shape, after checking that they are intact.

    Arguments:
        path: As given to `save`, without an ending. What ships with the book is in `RECORDED`.
        model: Overwritten in place, but only once everything has been checked.

    Returns:
        The recipe that was saved with the weights.

    Raises:
        FileNotFoundError: One of the two files is missing.
        ValueError: A truncated, changed or foreign file, or weights of another shape; the
            model is left as it was.
    """
    target, described = _pair(path)
    for file in (target, described):
        if not file.exists():
            raise FileNotFoundError(
                f"path: expected a checkpoint, a pair of .safetensors and .json, but there is no "
                f"{file}. Train the model and save it, or correct the path."
            )
    try:
        sidecar = json.loads(described.read_text())
        known = sidecar["format"] == FORMAT and {"sha256", "recipe"} <= sidecar.keys()
    except (json.JSONDecodeError, UnicodeDecodeError, KeyError, TypeError):
        known = False
    if not known:
        raise ValueError(
            f'path: expected {described} to be a JSON file with "format": "{FORMAT}", '
            "which it is not. Load a checkpoint that vae_lib.checkpoints.save wrote."
        )
    weights = target.read_bytes()
    found = hashlib.sha256(weights).hexdigest()
    if found != sidecar["sha256"]:
        raise ValueError(
            f"path: {target} has {len(weights)} bytes with sha256 {found[:12]}…, expected "
            f"{sidecar['sha256'][:12]}…: it is truncated, changed or not of this pair. "
            "Restore both files, or train and save again."
        )
    state = safetensors.torch.load(weights)
    _check_shapes(state, model, target)
    model.load_state_dict(state)
    return sidecar["recipe"]


def _pair(path: str | Path) -> tuple[Path, Path]:
    """Return the two files of a checkpoint."""
    path = Path(path)
    return path.with_name(path.name + ".safetensors"), path.with_name(path.name + ".json")


def _check_shapes(state: dict, model: nn.Module, file: Path) -> None:
    """Refuse weights that are not those of the model."""
    expected = {name: tuple(value.shape) for name, value in model.state_dict().items()}
    found = {name: tuple(value.shape) for name, value in state.items()}
    if found != expected:
        differing = sorted(
            name for name in expected.keys() | found.keys() if expected.get(name) != found.get(name)
        )
        name = differing[0]
        raise ValueError(
            f"model: {file} does not fit it in {len(differing)} places; first {name}, in the file "
            f"{found.get(name, 'missing')}, in the model {expected.get(name, 'missing')}. "
            "Make the model with the sizes that the weights were trained with."
        )


def _write(contents: dict[Path, bytes]) -> None:
    """Write files so that a crash leaves the old ones or the new ones, never half of one."""
    partials = {file: file.with_name(f".{file.name}.{os.getpid()}.partial") for file in contents}
    try:
        for file, partial in partials.items():
            with partial.open("wb") as stream:
                stream.write(contents[file])
                stream.flush()
                os.fsync(stream.fileno())
        # Everything is on the disk; what is left takes microseconds.
        for file, partial in partials.items():
            partial.replace(file)
    finally:
        for partial in partials.values():
            partial.unlink(missing_ok=True)
