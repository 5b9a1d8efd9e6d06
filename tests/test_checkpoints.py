import json
import os
import signal
import subprocess
import sys
import textwrap

import pytest
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
    sidecar = json.loads((tmp_path / "model.json").read_text())
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
    file.write_text('{"epoch": 3}')


def _no_json(file):
    file.write_text("PK\x03\x04 not json")


@pytest.mark.parametrize(
    ("damage", "ending", "message"),
    [
        (_truncate, "safetensors", r"sha256 .* truncated, changed .* Restore both"),
        (_flip, "safetensors", r"sha256 .* truncated, changed .* Restore both"),
        (_truncate, "json", r'expected .*model\.json to be a JSON file with "format"'),
        (_foreign, "json", r'"format": "vae_lib checkpoint 1".*vae_lib.checkpoints.save'),
        (_no_json, "json", r'expected .*model\.json to be a JSON file with "format"'),
    ],
)
def test_a_damaged_checkpoint_is_refused_and_the_model_kept(tmp_path, damage, ending, message):
    checkpoints.save(tmp_path / "model", small(seed=1))
    damage(tmp_path / f"model.{ending}")
    model = small(seed=2)
    with pytest.raises(ValueError, match=message):
        checkpoints.load(tmp_path / "model", model)
    assert same(model, small(seed=2))


@pytest.mark.parametrize("ending", ["safetensors", "json"])
def test_a_missing_half_is_named(tmp_path, ending):
    checkpoints.save(tmp_path / "model", small())
    (tmp_path / f"model.{ending}").unlink()
    with pytest.raises(FileNotFoundError, match=rf"there is no .*model\.{ending}"):
        checkpoints.load(tmp_path / "model", small())


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


def test_a_process_killed_while_it_writes_leaves_the_old_checkpoint(tmp_path):
    checkpoints.save(tmp_path / "model", small(seed=1))
    code = f"""
        import os, signal
        from vae_lib import checkpoints
        from vae_lib.model import dense_vae
        def die(*args): os.kill(os.getpid(), signal.SIGKILL)
        os.fsync = die  # the new bytes are written, the file is not yet in place
        checkpoints.save({str(tmp_path / "model")!r}, dense_vae(6, 4, 2, seed=2))
    """
    done = subprocess.run([sys.executable, "-c", textwrap.dedent(code)], check=False)
    assert done.returncode == -signal.SIGKILL
    model = small()
    checkpoints.load(tmp_path / "model", model)
    assert same(model, small(seed=1))


def test_a_full_disk_leaves_no_half_file(tmp_path, monkeypatch):
    checkpoints.save(tmp_path / "model", small(seed=1))

    def full(_):
        raise OSError("No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(OSError, match="No space left"):
        checkpoints.save(tmp_path / "model", small(seed=2))
    assert sorted(file.name for file in tmp_path.iterdir()) == ["model.json", "model.safetensors"]
