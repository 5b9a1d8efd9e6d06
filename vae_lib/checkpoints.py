"""Weights on disk: safetensors, which cannot carry code, with a readable JSON file beside it."""

import hashlib
import json
import os
import platform
from pathlib import Path

import safetensors
import safetensors.torch
import torch
from torch import Tensor, nn

from vae_lib.arguments import kind

RECORDED = Path(__file__).with_name("assets") / "recorded"
FORMAT = "vae_lib checkpoint 2"


def save(path: str | Path, model: nn.Module, **recipe) -> Path:
    """Write a model's weights and how they came to be.

    The .safetensors file holds both, and is written whole or not at all. The .json file beside it
    says the same for people. A process that is killed at any moment leaves the old weights or
    the new ones, and `load` can read them.

    Arguments:
        path: Where to write, without an ending: `path`.safetensors and `path`.json result.
            Missing folders are made.
        model: Its parameters and persistent buffers are written; what is shared by two names is
            written under both.
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
    weights = model.state_dict()
    for name, value in weights.items():
        if not torch.isfinite(value).all():
            raise ValueError(
                f"model: expected finite weights, but {name} holds NaN or infinity. "
                "Nothing was written; save a model from before it diverged."
            )
    description = {
        "format": FORMAT,
        "weights": {name: " x ".join(map(str, value.shape)) for name, value in weights.items()},
        "recipe": recipe,
        "made_with": {"torch": torch.__version__, "machine": platform.machine()},
    }
    try:
        content = pack(weights, description)
    except TypeError as error:
        raise ValueError(f"recipe: expected JSON types only, but {error}.") from error
    target, described = _pair(path)
    write({target: content, described: (json.dumps(description, indent=1) + "\n").encode()})
    return target


def load(path: str | Path, model: nn.Module) -> dict:
    """Read weights into a model of the same shape, after checking that nothing in them changed.

    Arguments:
        path: As given to `save`, without an ending. What ships with the book is in `RECORDED`.
        model: Overwritten in place, but only once everything has been checked.

    Returns:
        The recipe that was saved with the weights.

    Raises:
        FileNotFoundError: There is no .safetensors file.
        ValueError: A truncated, changed or foreign file, a .json file that says something else
            than the weights, or weights of another shape; the model is left as it was.
    """
    target, described = _pair(path)
    if not target.exists():
        raise FileNotFoundError(
            f"path: expected a checkpoint, a pair of .safetensors and .json, but there is no "
            f"{target}. Train the model and save it, or correct the path."
        )
    weights, description = unpack(target, FORMAT)
    if described.exists():
        try:
            same = json.loads(described.read_text(encoding="utf-8")) == description
        except (json.JSONDecodeError, UnicodeDecodeError):
            same = False
        if not same:
            raise ValueError(
                f"path: expected {described} to describe {target.name} as it was saved, which it "
                "does not: one of the two was changed or comes from elsewhere. Restore both; or "
                "delete the .json, whose original the other file holds."
            )
    check_shapes(weights, model, target)
    model.load_state_dict(weights)
    return description["recipe"]


def pack(tensors: dict[str, Tensor], description: dict) -> bytes:
    """Put tensors and a description into the bytes of one safetensors file.

    Arguments:
        tensors: Of any shape and device; they are copied.
        description: JSON types only; it has an entry "format".

    Returns:
        What `unpack` reads. A checksum of everything is among it.

    Raises:
        TypeError: `description` holds something that is not of JSON.

    Example:
        >>> len(pack({"one": torch.ones(3)}, {"format": "an example"})) > 12
        True
    """
    # Copies, because two names of the same memory are refused.
    tensors = {name: value.detach().cpu().clone() for name, value in tensors.items()}
    tensors = {name: value.contiguous() for name, value in tensors.items()}
    text = json.dumps(description)
    metadata = {"description": text, "sha256": _checksum(tensors, text)}
    return safetensors.torch.save(tensors, metadata)


def unpack(file: Path, expected: str) -> tuple[dict[str, Tensor], dict]:
    """Read back what `pack` put into a file, and check that it is unchanged.

    Arguments:
        file: Where the bytes are.
        expected: The entry "format" that the description must have.

    Returns:
        The tensors, on the CPU, and the description.

    Raises:
        ValueError: The file is truncated, changed, or not of that format.
    """
    try:
        with safetensors.safe_open(file, "pt") as content:
            metadata = content.metadata() or {}
            tensors = {name: content.get_tensor(name) for name in content.keys()}  # noqa: SIM118
    except safetensors.SafetensorError as error:
        raise ValueError(
            f"path: {file} is truncated, changed or no safetensors file ({error}). "
            "Restore it, or train and save again."
        ) from error
    text = metadata.get("description", "{}")
    if "sha256" in metadata and metadata["sha256"] != _checksum(tensors, text):
        raise ValueError(
            f"path: {file} does not have the sha256 that it was written with: it was changed. "
            "Restore it, or train and save again."
        )
    description = json.loads(text)
    if "sha256" not in metadata or description.get("format") != expected:
        raise ValueError(
            f'path: expected {file} to be a "{expected}", which it does not say. '
            "Give a file that vae_lib wrote for this purpose, with this version of it."
        )
    return tensors, description


def _checksum(tensors: dict[str, Tensor], text: str) -> str:
    """Return the sha256 of a description and of tensors with their names."""
    found = hashlib.sha256(text.encode())
    for name in sorted(tensors):
        value = tensors[name]
        found.update(f"{name} {value.dtype} {tuple(value.shape)}".encode())
        found.update(value.flatten().view(torch.uint8).numpy())
    return found.hexdigest()


def write(contents: dict[Path, bytes]) -> None:
    """Write files, each whole or not at all; missing folders are made.

    Arguments:
        contents: The bytes of each file. A process that is killed leaves all the old files, or
            the new first one and of the others none or the new one: never old beside new.

    Raises:
        OSError: They cannot be written; the old ones are left as they were.
    """
    # One name for each, so that however often a process is killed it leaves one file behind.
    partials = {file: file.with_name(f".{file.name}.partial") for file in contents}
    try:
        for file, partial in partials.items():
            file.parent.mkdir(parents=True, exist_ok=True)
            with partial.open("wb") as stream:
                stream.write(contents[file])
                stream.flush()
                os.fsync(stream.fileno())
        # Everything is on the disk; what is left takes microseconds.
        for file in list(contents)[1:]:
            file.unlink(missing_ok=True)
        for file, partial in partials.items():
            partial.replace(file)
    finally:
        for partial in partials.values():
            partial.unlink(missing_ok=True)


def _pair(path: str | Path) -> tuple[Path, Path]:
    """Return the two files of a checkpoint."""
    if not isinstance(path, str | os.PathLike):
        raise ValueError(f"path: expected a path, got {kind(path)}. It comes before the model.")
    path = Path(path)
    return path.with_name(path.name + ".safetensors"), path.with_name(path.name + ".json")


def check_shapes(weights: dict[str, Tensor], model: nn.Module, file: Path) -> None:
    """Refuse weights that are not those of the model: ValueError names the first that differs."""
    expected = {name: tuple(value.shape) for name, value in model.state_dict().items()}
    found = {name: tuple(value.shape) for name, value in weights.items()}
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
