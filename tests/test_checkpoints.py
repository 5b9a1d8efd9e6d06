import json
import os
import subprocess
import sys
import textwrap

import pytest
import safetensors.torch
import torch
from torch import nn

from vae_lib import checkpoints
from vae_lib.model import dense_vae


def small(seed=0):
    return dense_vae(pixels=6, hidden=4, latents=2, seed=seed)


def same(first, second):
    first, second = first.state_dict(), second.state_dict()
    return first.keys() == second.keys() and all(torch.equal(first[k], second[k]) for k in first)


def test_what_is_saved_comes_back_bit_for_bit(tmp_path):
    model, other = small(seed=1), small(seed=2)
    file = checkpoints.save(tmp_path / "deep" / "one.two", model, seed=1, note="héllo")
    assert file == tmp_path / "deep" / "one.two.safetensors"
    assert not same(model, other)
    assert checkpoints.load(tmp_path / "deep" / "one.two", other) == {"seed": 1, "note": "héllo"}
    assert same(model, other)


def test_the_sidecar_can_be_read(tmp_path):
    checkpoints.save(tmp_path / "model", small(), epochs=10)
    sidecar = json.loads((tmp_path / "model.json").read_text(encoding="utf-8"))
    assert sidecar["recipe"] == {"epochs": 10}
    assert sidecar["weights"]["encoder.network.first.weight"] == "2 x 4"
    assert sidecar["made_with"]["torch"] == torch.__version__
    assert sorted(file.name for file in tmp_path.iterdir()) == ["model.json", "model.safetensors"]


def _truncate(file):
    file.write_bytes(file.read_bytes()[:-10])


def _flip(file):
    content = bytearray(file.read_bytes())
    content[-1] ^= 1
    file.write_bytes(content)


def _foreign(file):
    file.write_text('{"epoch": 3}', encoding="utf-8")


def _no_json(file):
    file.write_text("PK\x03\x04 not json", encoding="utf-8")


def _edited(file):
    # In the .json as it is, in the header of the other file with its quotes escaped.
    content = file.read_bytes()
    assert content.count(b"epochs") == 1
    file.write_bytes(content.replace(b": 10", b": 11"))


def _another_kind(file):
    checkpoints.write({file: checkpoints.pack({"bias": torch.zeros(1)}, {"format": "another"})})


def _no_description(file):
    file.write_bytes(safetensors.torch.save({"bias": torch.zeros(1)}))


@pytest.mark.parametrize(
    ("damage", "ending", "message"),
    [
        (_truncate, "safetensors", r"truncated, changed or no safetensors .* Restore it"),
        (_no_json, "safetensors", r"truncated, changed or no safetensors .* Restore it"),
        (_flip, "safetensors", r"sha256 that it was written with: it was changed"),
        (_edited, "safetensors", r"sha256 that it was written with: it was changed"),
        (_no_description, "safetensors", r'expected .* to be a "vae_lib checkpoint 2"'),
        (_another_kind, "safetensors", r'expected .* to be a "vae_lib checkpoint 2"'),
        (_truncate, "json", r"expected .*model\.json to describe .* Restore both"),
        (_foreign, "json", r"expected .*model\.json to describe .* Restore both"),
        (_no_json, "json", r"expected .*model\.json to describe .* Restore both"),
        (_edited, "json", r"expected .*model\.json to describe .* Restore both"),
    ],
)
def test_a_damaged_checkpoint_is_refused_and_the_model_kept(tmp_path, damage, ending, message):
    checkpoints.save(tmp_path / "model", small(seed=1), epochs=10)
    before = (tmp_path / f"model.{ending}").read_bytes()
    damage(tmp_path / f"model.{ending}")
    assert (tmp_path / f"model.{ending}").read_bytes() != before
    model = small(seed=2)
    with pytest.raises(ValueError, match=message):
        checkpoints.load(tmp_path / "model", model)
    assert same(model, small(seed=2))


def test_missing_weights_are_named_and_a_missing_description_is_no_loss(tmp_path):
    checkpoints.save(tmp_path / "model", small(seed=1), epochs=10)
    (tmp_path / "model.json").unlink()
    model = small()
    assert checkpoints.load(tmp_path / "model", model) == {"epochs": 10}
    assert same(model, small(seed=1))
    (tmp_path / "model.safetensors").unlink()
    with pytest.raises(FileNotFoundError, match=r"there is no .*model\.safetensors"):
        checkpoints.load(tmp_path / "model", small())


def test_tied_weights_come_back_tied(tmp_path):
    class Tied(nn.Module):
        def __init__(self):
            super().__init__()
            self.first = nn.Linear(3, 3)
            self.second = nn.Linear(3, 3)
            self.second.weight = self.first.weight

    model, other = Tied(), Tied()
    checkpoints.save(tmp_path / "model", model)
    checkpoints.load(tmp_path / "model", other)
    assert same(model, other)
    assert other.second.weight is other.first.weight


def test_every_kind_of_number_is_kept(tmp_path):
    tensors = {
        "half": torch.ones(2, 3, dtype=torch.bfloat16),
        "double": torch.rand(3, 2, dtype=torch.float64).T,
        "count": torch.tensor(7),
        "bytes": torch.arange(9, dtype=torch.uint8)[::2],
        "none": torch.zeros(0, 4),
    }
    file = tmp_path / "kinds"
    checkpoints.write({file: checkpoints.pack(tensors, {"format": "kinds", "n": [1.1, None]})})
    found, description = checkpoints.unpack(file, "kinds")
    assert description == {"format": "kinds", "n": [1.1, None]}
    assert found.keys() == tensors.keys()
    for name, value in tensors.items():
        assert found[name].dtype == value.dtype
        assert torch.equal(found[name], value)


@pytest.mark.parametrize(
    ("model", "message"),
    [
        (
            dense_vae(6, 4, 3),
            r"decoder.network.0.weight, in the file \(4, 2\), in the model \(4, 3\)",
        ),
        (nn.Linear(2, 1), r"first bias, in the file missing, in the model \(1,\)"),
    ],
)
def test_weights_of_another_shape_are_refused_and_the_model_kept(tmp_path, model, message):
    checkpoints.save(tmp_path / "model", small())
    before = {name: value.clone() for name, value in model.state_dict().items()}
    with pytest.raises(ValueError, match=message):
        checkpoints.load(tmp_path / "model", model)
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())


def test_nothing_is_overwritten_by_what_cannot_be_saved(tmp_path):
    checkpoints.save(tmp_path / "model", small(seed=1))
    diverged = small()
    with torch.no_grad():
        diverged.decoder.network[0].bias[0] = float("nan")
    with pytest.raises(ValueError, match=r"decoder.network.0.bias holds NaN .*Nothing was written"):
        checkpoints.save(tmp_path / "model", diverged)
    with pytest.raises(ValueError, match="recipe: expected JSON types only"):
        checkpoints.save(tmp_path / "model", small(), when=object())
    model = small()
    checkpoints.load(tmp_path / "model", model)
    assert same(model, small(seed=1))


# What a writing does, call by call, with the seed of the weights that a kill there leaves.
MOMENTS = {
    "os.fsync, 1": 1,  # the new weights are on the disk, and not yet in place
    "os.fsync, 2": 1,
    "Path.unlink, 1": 1,
    "Path.replace, 1": 1,
    "Path.replace, 2": 2,  # the new weights are in place, their description is not
}


@pytest.mark.parametrize(("moment", "seed"), MOMENTS.items())
def test_a_process_killed_while_it_writes_leaves_a_checkpoint(tmp_path, moment, seed):
    checkpoints.save(tmp_path / "model", small(seed=1), seed=1)
    name, count = moment.split(", ")
    code = f"""
        import os
        from pathlib import Path
        from vae_lib import checkpoints
        from vae_lib.model import dense_vae
        before, calls = {name}, []
        def die(*args, **options):
            calls.append(1)
            if len(calls) == {count}:
                os._exit(9)  # without a farewell
            return before(*args, **options)
        {name} = die
        checkpoints.save({str(tmp_path / "model")!r}, dense_vae(6, 4, 2, seed=2), seed=2)
    """
    done = subprocess.run([sys.executable, "-c", textwrap.dedent(code)], check=False)
    assert done.returncode == 9
    model = small()
    assert checkpoints.load(tmp_path / "model", model) == {"seed": seed}
    assert same(model, small(seed=seed))
    checkpoints.save(tmp_path / "model", small(seed=3))
    assert sorted(file.name for file in tmp_path.iterdir()) == ["model.json", "model.safetensors"]


def test_a_full_disk_leaves_no_half_file(tmp_path, monkeypatch):
    checkpoints.save(tmp_path / "model", small(seed=1))

    def full(_):
        raise OSError("No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(OSError, match="No space left"):
        checkpoints.save(tmp_path / "model", small(seed=2))
    assert sorted(file.name for file in tmp_path.iterdir()) == ["model.json", "model.safetensors"]
