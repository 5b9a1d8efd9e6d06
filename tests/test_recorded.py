"""What lies in vae_lib/assets/recorded: is it still what the code gives, and is it listed?"""

import json
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from vae_lib.checkpoints import RECORDED, load
from vae_lib.convolutional import conv_vae
from vae_lib.data import MNIST, binarize, load_mnist, quantize, seeded
from vae_lib.evaluation import LogLikelihood, held_out_elbo, log_likelihood
from vae_lib.images import EMOJI, load_images
from vae_lib.looks import DigitClassifier
from vae_lib.model import dense_vae
from vae_lib.objectives import terms
from vae_lib.recorded import (
    codec_classical,
    conv_pairs,
    own_split,
    rate_sweep,
    rate_ways,
    sharper_classifier,
)
from vae_lib.records import checksums

NAMES = sorted({path.stem for path in RECORDED.glob("*.json")})
ROOT = MNIST.parents[2]
# It takes hours, and its record comes with the chapter that reads it.
UNFINISHED = {
    "sharper_record",
    "sharper_table",
    "sharper_ablation",
    "rate_sweep",
    "rate_ways",
    "codec_models",
}
SCRIPTS = sorted(ROOT.glob("vae_lib/recorded/[!_]*.py"))
SCRIPTS = [script for script in SCRIPTS if script.stem not in UNFINISHED]
READER = RECORDED / f"{rate_sweep.CLASSIFIER}.safetensors"
DATA = {  # of the others it is MNIST
    "own_split": [EMOJI],
    "rate_sweep": [MNIST, READER],
    "rate_ways": [MNIST, READER, ROOT / "vae_lib" / "recorded" / "rate_sweep.py"],
}


@pytest.mark.parametrize(
    ("name", "latents"),
    [
        ("code-post", 5),
        ("code-corrected", 5),
        ("output-two-latents", 2),
        ("issues-twenty", 20),
        ("issues-twenty-short", 20),
    ],
)
def test_a_recorded_network_still_scores_what_was_recorded(name, latents):
    model = dense_vae(latents=latents)
    recipe = load(RECORDED / name, model)
    elbo = held_out_elbo(model, binarize(load_mnist().test_images, "threshold")).elbo
    assert elbo.mean == pytest.approx(recipe["elbo"], abs=0.02)
    assert elbo.standard_error == pytest.approx(recipe["standard_error"], abs=0.01)


@pytest.mark.parametrize("name", ["good-vae", "good-iwae"])
def test_a_network_of_burda_still_scores_what_was_recorded(name):
    model = dense_vae(hidden=(200, 200), latents=50)
    recipe = load(RECORDED / name, model)
    scores = load_file(RECORDED / f"{name}-scores.safetensors")
    images = load_mnist().test_images
    images = binarize(images, "dynamic", generator=seeded(0, stream="test images"))
    elbo = held_out_elbo(model, images).elbo
    assert elbo.mean == pytest.approx(recipe["elbo"], abs=0.02)
    torch.testing.assert_close(elbo.values, scores["elbo"], rtol=0, atol=0.1)
    # Fifty images again, with fewer samples than the 5,000 of the record.
    rows = torch.randperm(len(images), generator=seeded(0, stream="rows"))[:50]
    found = log_likelihood(model, images[rows], samples=1000)
    stated = LogLikelihood(
        scores["log_likelihood"][rows], scores["effective_samples"][rows], recipe["samples"]
    )
    error = (found.sampling_errors**2 + stated.sampling_errors**2).sqrt()
    difference = found.values - stated.values
    assert abs(difference.mean()) < 4 * error.square().sum().sqrt() / len(rows)
    assert scores["log_likelihood"].mean().item() == pytest.approx(
        recipe["log_likelihood"], abs=1e-3
    )


def test_the_emoji_network_still_scores_what_was_recorded():
    pictures = load_images(EMOJI, channels=3, background="white")
    model = conv_vae(pictures.shape)
    recipe = load(RECORDED / "own-emoji", model)
    _, held = own_split.rows_of({"split": "chapter"}, pictures)
    elbo = held_out_elbo(model, quantize(pictures.images[held], 256)).elbo
    assert elbo.mean == pytest.approx(recipe["elbo"], abs=1)  # of thousands
    assert elbo.standard_error == pytest.approx(recipe["standard_error"], abs=0.5)


@pytest.mark.parametrize(
    "name", [n for n, stem in conv_pairs.FILES.items() if not stem.startswith("wide")]
)
def test_a_network_of_the_convolutions_still_scores_what_was_recorded(name):
    model, path = conv_pairs.NETWORKS[name](0), RECORDED / f"conv-{conv_pairs.FILES[name]}"
    recipe = load(path, model)
    scores = load_file(f"{path}-scores.safetensors")
    images = binarize(load_mnist().test_images, "threshold")
    elbo = held_out_elbo(model, images).elbo
    assert elbo.mean == pytest.approx(recipe["elbo"], abs=0.02)
    assert elbo.standard_error == pytest.approx(recipe["standard_error"], abs=0.01)
    torch.testing.assert_close(elbo.values, scores["elbo"], rtol=0, atol=0.1)
    # The first thousand images are a batch of their own, so their noise is the same.
    moved = held_out_elbo(model, conv_pairs.shifted(images[:1000], 2)).elbo
    torch.testing.assert_close(moved.values, scores["elbo_shifted"][:1000], rtol=0, atol=0.1)
    assert scores["log_likelihood"].mean().item() == pytest.approx(
        recipe["log_likelihood"], abs=1e-3
    )


def test_the_networks_of_the_convolutions_are_as_equal_as_they_are_called():
    images = binarize(load_mnist().test_images[:2], "threshold")
    models = {stem: conv_pairs.NETWORKS[name](0) for name, stem in conv_pairs.FILES.items()}
    weights = {k: sum(w.numel() for w in m.parameters()) for k, m in models.items()}
    counts = {k: conv_pairs.operations(m, images, learn=False) for k, m in models.items()}
    assert weights["narrow"] == pytest.approx(weights["plain"], rel=0.01)
    assert counts["wide"] == pytest.approx(counts["plain"], rel=0.001)
    assert counts["residual"] == pytest.approx(counts["plain"], rel=0.05)
    assert counts["normalised"] == counts["plain"]
    for run in json.loads((RECORDED / "conv-pairs.json").read_text(encoding="utf-8"))["runs"]:
        if run["part"] == "networks":
            stem = conv_pairs.FILES[run["network"]]
            assert (run["weights"], run["operations"]) == (weights[stem], counts[stem])


def test_the_digit_classifier_still_tells_digits_apart():
    classifier, mnist = DigitClassifier(), load_mnist()
    recipe = load(RECORDED / "digit-classifier", classifier)
    ways = sharper_classifier.shown(mnist.test_images, seeded(0, stream="test images"))
    for way, x in ways.items():
        with torch.no_grad():
            wrong = (classifier(x).argmax(-1) != mnist.test_labels).sum().item()
        assert wrong == pytest.approx(recipe[f"wrong_{way}"], abs=3)
        assert wrong < 150


def test_the_classifier_learns_from_every_way_to_show_a_digit():
    mnist = load_mnist()
    rows = torch.cat([mnist.train_images, mnist.train_labels[:, None]], 1)[:300]
    batch = sharper_classifier.mixed(rows, seeded(0, stream="mixed"))
    assert torch.equal(batch[:, -1].long(), mnist.train_labels[:300].long())
    grey = ((batch[:, :-1] > 0) & (batch[:, :-1] < 1)).any(1)
    cut = (batch[:, :-1] == binarize(mnist.train_images[:300], "threshold")).all(1)
    for share in (grey, cut, ~grey & ~cut):
        assert 0.25 < share.float().mean() < 0.42


def test_free_bits_are_paid_for_whether_a_latent_carries_them_or_not():
    x = binarize(load_mnist().test_images[:8], "threshold")
    model = rate_ways.network({"way": "free bits", "seed": 0})
    value = rate_ways.free_bits(model, x, seeded(0, stream="z"))
    cost = terms(model, x, seeded(0, stream="z"))
    each = rate_sweep.latent_rates(model.encoder(x))
    torch.testing.assert_close(each.sum(-1), cost.rate)
    assert each.mean(0).min() < rate_ways.FREE < each.mean(0).max()
    paid = sum(max(rate_ways.FREE, rate) for rate in each.mean(0).tolist())
    torch.testing.assert_close(value, -cost.distortion - rate_ways.HIGH * paid)


@pytest.mark.parametrize(
    ("way", "step", "price"),
    [
        ("plain", 0, 5),
        ("warm-up", 0, 0),
        ("warm-up", 25, 2.5),
        ("warm-up", 90, 5),
        ("price 1, warm-up", 25, 0.5),
        ("price 1, warm-up", 90, 1),
        ("no neighbours", 90, 5),
    ],
)
def test_each_way_pays_its_price(way, step, price):
    x = binarize(load_mnist().test_images[:4], "threshold")
    choice = {"way": way, "seed": 0}
    model, state = rate_ways.network(choice), SimpleNamespace(steps=step)
    assert model.decoder.head.reach == (0 if way == "no neighbours" else 3)
    value = rate_ways.objective(choice, state, 100)(model, x, seeded(0, stream="z"))
    cost = terms(model, x, seeded(0, stream="z"))
    torch.testing.assert_close(value, -cost.distortion - price * cost.rate)


@pytest.mark.parametrize("right", [0, 1, 2])
def test_a_shifted_picture_is_where_it_was_moved_to(right):
    pictures = torch.rand(3, 784, generator=torch.Generator().manual_seed(0))
    moved = conv_pairs.shifted(pictures, right).reshape(-1, 28, 28)
    assert torch.equal(moved[..., right:], pictures.reshape(-1, 28, 28)[..., : 28 - right])
    assert not moved[..., :right].any()


@pytest.mark.parametrize("way", ["at random", "by design"])
def test_each_way_of_holding_out_holds_every_emoji_out_once(way):
    pictures = load_images(EMOJI, channels=3, background="white")
    runs = json.loads((RECORDED / "own-split.json").read_text(encoding="utf-8"))["runs"]
    runs = [run for run in runs if run["split"] == way]
    rows = [row for run in runs for row in run["rows"]]
    assert sorted(rows) == list(range(len(pictures)))
    for run in runs:
        learnt, held = own_split.rows_of(run, pictures)
        assert held.tolist() == run["rows"]
        assert not set(learnt.tolist()) & set(held.tolist())
        designs = [{pictures.names[row].split(".")[0] for row in part} for part in (learnt, held)]
        assert bool(designs[0] & designs[1]) == (way == "at random")


def stated(coder, kind):
    """Return what is recorded of a compressor."""
    runs = json.loads((RECORDED / "codec-classical.json").read_text(encoding="utf-8"))["runs"]
    asked = {"digits": kind, "coder": coder, "files": "one"}
    return next(run for run in runs if asked.items() <= run.items())


@pytest.mark.parametrize("kind", ["dynamic", "threshold", "grey"])
def test_bz2_still_writes_as_much(kind):
    pictures = codec_classical.digits(kind, load_mnist().test_images)
    assert codec_classical.streamed("bz2", pictures)["bytes"] == stated("bz2", kind)["bytes"]


def test_counts_of_the_training_digits_still_say_as_much():
    found = codec_classical.counted(
        "threshold", codec_classical.digits("threshold", load_mnist().test_images)
    )
    assert found["bytes"] == pytest.approx(stated("counts", "threshold")["bytes"], abs=2)


def test_counts_see_the_nearest_pixels_before():
    counts, row = codec_classical.Counts(), 10 * 28 + 10
    plain = counts.contexts(np.zeros((1, 28, 28), np.uint8)).ravel()
    seen = []
    for pixel in range(784):
        one = np.zeros(784, np.uint8)
        one[pixel] = 1
        if counts.contexts(one.reshape(1, 28, 28)).ravel()[row] != plain[row]:
            seen.append((pixel // 28 - 10, pixel % 28 - 10))
    assert len(seen) == 14
    assert max(seen) == (0, -1)
    assert {(0, -3), (-1, 2), (-3, 0), (-2, 2)} < set(seen)


def test_a_program_that_is_missing_is_named_with_what_to_install():
    with pytest.raises(
        ValueError, match=r"^programs: expected pnmtovae, .*: apt-get install .*zpaq"
    ):
        codec_classical.run("pnmtovae")


@pytest.mark.parametrize("script", SCRIPTS, ids=lambda script: script.stem)
def test_a_recorded_run_belongs_to_its_script(script):
    record = json.loads(
        (RECORDED / f"{script.stem.replace('_', '-')}.json").read_text(encoding="utf-8")
    )
    assert record["sha256"] == checksums([script, *DATA.get(script.stem, [MNIST])]), (
        "the code changed: record again"
    )
    assert record["runs"]


def test_every_record_is_listed_under_provenance():
    listed = (ROOT / "book" / "provenance.md").read_text(encoding="utf-8")
    assert NAMES
    assert [name for name in NAMES if f"`{name}`" not in listed] == []
