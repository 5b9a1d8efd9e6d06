"""What lies in vae_lib/assets/recorded: is it still what the code gives, and is it listed?"""

import hashlib
import json

import pytest

from vae_lib.checkpoints import RECORDED, load
from vae_lib.data import MNIST, binarize, load_mnist
from vae_lib.evaluation import held_out_elbo
from vae_lib.model import dense_vae

NAMES = sorted({path.stem for path in RECORDED.glob("*.json")})
ROOT = MNIST.parents[2]


@pytest.mark.parametrize(
    ("name", "latents"),
    [("code-post", 5), ("code-corrected", 5), ("output-two-latents", 2), ("issues-twenty", 20)],
)
def test_a_recorded_network_still_scores_what_was_recorded(name, latents):
    model = dense_vae(latents=latents)
    recipe = load(RECORDED / name, model)
    elbo = held_out_elbo(model, binarize(load_mnist().test_images, "threshold")).elbo
    assert elbo.mean == pytest.approx(recipe["elbo"], abs=0.02)
    assert elbo.standard_error == pytest.approx(recipe["standard_error"], abs=0.01)


def test_a_recorded_run_belongs_to_its_script():
    for path in RECORDED.glob("*_*.py"):
        record = json.loads((RECORDED / f"{path.stem.replace('_', '-')}.json").read_text())
        for file in (path, MNIST):
            found = hashlib.sha256(file.read_bytes()).hexdigest()
            assert record["sha256"][file.name] == found, f"{file.name} changed: record again"


def test_every_record_is_listed_under_provenance():
    listed = (ROOT / "book" / "provenance.md").read_text()
    assert NAMES
    assert [name for name in NAMES if f"`{name}`" not in listed] == []
