"""A run folder: what it holds, what it refuses, and that it goes on as if nothing had been."""

import json
import math

import numpy as np
import pytest
import torch
from PIL import Image

from vae_lib import checkpoints, recipes, runs, states
from vae_lib.data import Batches, binarize, load_mnist
from vae_lib.evaluation import held_out_elbo
from vae_lib.model import dense_vae
from vae_lib.recipes import Data, Recipe
from vae_lib.runs import Run
from vae_lib.training import train

SMALL = {"size": 8, "latents": 2, "width": 4, "batch_size": 2, "held_out": 0.25, "epochs": 2}


def paint(folder, count=12, shape=(9, 11, 3), seed=0):
    """Fill a folder with noise, of which no picture is the near-duplicate of another."""
    folder.mkdir(parents=True, exist_ok=True)
    pixels = np.random.default_rng(seed).integers(0, 256, (count, *shape), dtype=np.uint8)
    for number, picture in enumerate(pixels):
        Image.fromarray(picture).save(folder / f"{number:02}.png")
    return folder


def same(run, other):
    """Compare two runs; the header of a safetensors file has no fixed order."""
    for name, kind in (("weights", checkpoints.FORMAT), ("state", states.FORMAT)):
        ours, theirs = (
            checkpoints.unpack(folder / f"{name}.safetensors", kind) for folder in (run, other)
        )
        assert ours[0].keys() == theirs[0].keys()
        assert all(torch.equal(value, theirs[0][key]) for key, value in ours[0].items())
    for name in ("samples.png", "reconstructions.png", "pictures.csv", "weights.json"):
        assert (run / name).read_bytes() == (other / name).read_bytes(), name
    histories = [
        [line.rpartition(",")[0] for line in text.splitlines()]
        for text in ((f / "history.csv").read_text(encoding="utf-8") for f in (run, other))
    ]
    assert histories[0] == histories[1]
    return True


@pytest.fixture(scope="module")
def source(tmp_path_factory):
    return paint(tmp_path_factory.mktemp("pictures") / "own")


@pytest.fixture(scope="module")
def trained(source, tmp_path_factory):
    """A run of two epochs, which tests only read."""
    run = Run.create(tmp_path_factory.mktemp("run") / "own", source, **SMALL)
    run.train()
    return Run.open(run.folder)


@pytest.fixture(scope="module")
def few_digits():
    """MNIST as `mnist` gives it, with 300 images to learn from and 50 of the test."""
    digits = recipes.mnist()
    return digits[torch.cat([torch.arange(300), torch.arange(60_000, 60_050)])]


def test_a_run_holds_what_it_says(trained):
    assert sorted(file.name for file in trained.folder.iterdir()) == [
        "curve.png",
        "history.csv",
        "pictures.csv",
        "recipe.json",
        "reconstructions.png",
        "samples.png",
        "state.safetensors",
        "weights.json",
        "weights.safetensors",
    ]
    history = (trained.folder / "history.csv").read_text(encoding="utf-8").splitlines()
    header = "epoch,objective_nats,held_out_elbo_nats,held_out_bits_per_dimension,seconds"
    assert history[0] == header
    assert [line.split(",")[0] for line in history[1:]] == ["1", "2"]
    uses = (trained.folder / "pictures.csv").read_text(encoding="utf-8").splitlines()[1:]
    assert sum(line.endswith("held out") for line in uses) == len(trained.held_out) == 3
    assert len(uses) == 12
    assert trained.epochs == 2


def test_the_history_is_that_of_the_weights(trained):
    last = (trained.folder / "history.csv").read_text(encoding="utf-8").splitlines()[-1].split(",")
    found = trained.score(trained.held_out, samples=10)
    assert float(last[2]) == pytest.approx(found.elbo.mean, rel=1e-5)
    assert float(last[3]) == pytest.approx(found.bits.mean, rel=1e-5)
    assert found.bits.mean == pytest.approx(-found.elbo.mean / (192 * math.log(2)), rel=1e-6)
    assert found.likelihood.mean > found.elbo.mean


def test_the_average_of_the_weights_is_what_is_kept(trained):
    assert trained.recipe.average == 0.99
    assert [round(trained.recipe.forgetting(step), 2) for step in (0, 8, 2000)] == [0.1, 0.5, 0.99]
    state, _ = checkpoints.unpack(trained.folder / "state.safetensors", states.FORMAT)
    ours = trained.model.state_dict()
    assert all(torch.equal(value, state[f"average.module.{n}"]) for n, value in ours.items())
    assert not all(torch.equal(value, state[f"model.{n}"]) for n, value in ours.items())


def test_an_epoch_more_is_an_epoch_later(source, trained, tmp_path):
    """One call for two epochs, or one each and a new process between: the same bits."""
    run = Run.create(tmp_path / "run", source, **SMALL | {"epochs": 1})
    run.train()
    again = Run.open(run.folder)
    again.agree(source, latents=2, size=8)
    again.train(2)
    assert same(run.folder, trained.folder)
    assert Run.open(run.folder).recipe == trained.recipe  # it was prolonged


def test_pictures_may_move_and_not_change(source, trained, tmp_path):
    Run.open(trained.folder).agree(paint(tmp_path / "moved"))
    with pytest.raises(ValueError, match=r"begun with 12 pictures, and what lies in .* differs"):
        Run.open(trained.folder).agree(paint(tmp_path / "others", seed=1))


def test_another_setting_is_named(source, trained):
    for name, value in (("latents", 3), ("size", (8, 9)), ("channels", 1), ("clip", 1.0)):
        with pytest.raises(ValueError, match=f"^{name}: the run in .* was begun with .*, got"):
            trained.agree(source, **{name: value})
    with pytest.raises(ValueError, match=r"^source: .*, got mnist"):
        trained.agree("mnist")


def test_epochs_are_as_many_as_it_takes(source, tmp_path):
    settings = {name: value for name, value in SMALL.items() if name != "epochs"}
    assert Run.create(tmp_path / "a", source, **settings).recipe.epochs == 60
    assert Run.create(tmp_path / "b", source, **settings, epochs=3).recipe.epochs == 3


def test_fewer_epochs_than_there_were(trained):
    with pytest.raises(ValueError, match=r"^epochs: .* has 2 already, got 1"):
        Run.open(trained.folder).train(1)


def test_another_split_is_noticed(trained, monkeypatch):
    recipe = Recipe(**vars(trained.recipe) | {"split": "0" * 64})
    with pytest.raises(ValueError, match="holds out other pictures"):
        Data.of(recipe)


def test_near_duplicates_stay_on_one_side(tmp_path):
    folder = paint(tmp_path / "own")
    for file in list(folder.iterdir()):
        Image.open(file).save(folder / f"again-{file.name}")
    data = Data.load(str(folder), size=8, held_out=0.25, seed=0)
    held = {data.pictures.names[row].removeprefix("again-") for row in data.held_out.tolist()}
    learnt = {data.pictures.names[row].removeprefix("again-") for row in data.learnt.tolist()}
    assert not held & learnt


def test_too_few_pictures_to_hold_two_out(tmp_path):
    with pytest.raises(ValueError, match="at least 2 pictures held out"):
        Run.create(tmp_path / "run", paint(tmp_path / "own", count=2), **SMALL)
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize("likelihood", ["bits", "gaussian"])
@pytest.mark.parametrize("channels", [1, 4])
def test_other_likelihoods_and_channels(source, tmp_path, likelihood, channels):
    settings = SMALL | {"epochs": 1, "likelihood": likelihood, "channels": channels}
    run = Run.create(tmp_path / "run", source, **settings)
    run.train()
    score = run.score(run.held_out, samples=2)
    assert (score.bits is None) == (likelihood == "gaussian")
    assert run.sample(3).shape == (3, 64 * channels)
    header = (run.folder / "history.csv").read_text(encoding="utf-8").splitlines()[1]
    assert (",," in header) == (likelihood == "gaussian")


# ------------------------------------------------------------------------------- the digits


def test_the_digits_are_trained_as_in_the_chapter(tmp_path, monkeypatch, few_digits):
    """The library's own call, as the chapter *code* writes it, on some of the images."""
    data = Data(few_digits, torch.arange(300), torch.arange(300, 350))
    monkeypatch.setattr(Data, "load", lambda *_, **__: data)
    run = Run.create(tmp_path / "run", "mnist", epochs=2)
    assert run.recipe == Recipe.read(run.folder / "recipe.json")
    run.train()
    mnist = load_mnist()
    model = dense_vae(784, 500, 5, seed=0)
    images = binarize(mnist.train_images[:300], "threshold")
    train(model, Batches(images, batch_size=100, seed=0), epochs=2)
    ours = Run.open(run.folder).model.state_dict()
    assert all(torch.equal(ours[name], value) for name, value in model.state_dict().items())
    images = binarize(mnist.test_images[:50], "threshold")
    scores = run.score(run.held_out, samples=1)
    assert torch.equal(scores.elbo.values, held_out_elbo(model, images).elbo.values)


def test_the_digits_have_their_settings():
    defaults = recipes.DEFAULTS | recipes.DEFAULTS_MNIST
    assert (defaults["epochs"], defaults["batch_size"], defaults["learning_rate"]) == (
        10,
        100,
        1e-3,
    )
    assert (defaults["width"], defaults["latents"], defaults["seed"]) == (500, 5, 0)


def test_recorded_weights_score_what_the_chapter_says(trained):
    """A run of the book's own weights: what ten epochs of `vae train mnist` lead to."""
    facts = vars(trained.recipe) | dict.fromkeys(("held_out",), 1 / 7)
    facts |= {"source": "mnist", "shape": (1, 28, 28), "likelihood": "bits", "clip": None}
    facts["average"] = None
    run = Run("unused", Recipe(**facts | {"latents": 5, "width": 500}))
    run._model = run.recipe.model()
    said = checkpoints.load(checkpoints.RECORDED / "code-corrected", run._model)
    elbo = run._elbo(recipes.mnist()[60_000:])
    assert abs(elbo.mean - said["elbo"]) < 0.05


# ------------------------------------------------------------------------ what a recipe may say

WRONG = {
    "source": [3, "", "a\0b"],
    "count": [2, 1e3, True],
    "pictures": ["abc", None],
    "split": ["0" * 63],
    "shape": [[3, 8], [3, 8, 7], [2, 8, 8], [3, 8, 129], [3, 8.0, 8], "388", None],
    "background": ["__import__", 0],
    "held_out": [0, 1, "0.1", math.nan],
    "likelihood": ["levels()", ["levels"], None],
    "latents": [0, 10**9, "2", None],
    "width": [0, 10**9, True],
    "batch_size": [0, 1.5],
    "learning_rate": [0, -1, math.inf, math.nan, None],
    "clip": [0, "1", math.nan],
    "average": [-0.1, 1, "0.9", True, math.nan],
    "epochs": [0, 2.0],
    "seed": [-1, 2**64],
    "device": ["cpu; rm", None],
}


@pytest.mark.parametrize(("name", "value"), [(n, v) for n, vs in WRONG.items() for v in vs])
def test_a_recipe_is_checked(trained, tmp_path, name, value):
    found = json.loads((trained.folder / "recipe.json").read_text(encoding="utf-8"))
    file = tmp_path / "recipe.json"
    file.write_text(json.dumps(found | {name: value}), encoding="utf-8")
    with pytest.raises(ValueError, match=rf"^recipe: .* is damaged .*: {name}: expected"):
        Recipe.read(file)


def test_every_entry_is_checked():
    assert list(WRONG) == list(recipes.ENTRIES) == list(Recipe.__dataclass_fields__)


@pytest.mark.parametrize(
    "change",
    [
        lambda text: text[:-20],
        lambda text: "[" * 100_000,
        lambda text: "[]",
        lambda text: "",
        lambda text: text.replace("run 1", "run 2"),
        lambda text: text.replace('"seed"', '"sead"'),
        lambda text: text.replace('"count"', '"count": 12, "more"'),
    ],
)
def test_a_damaged_recipe_is_refused(trained, tmp_path, change):
    text = (trained.folder / "recipe.json").read_text(encoding="utf-8")
    file = tmp_path / "recipe.json"
    file.write_text(change(text), encoding="utf-8")
    with pytest.raises(ValueError, match=r"^recipe: .* is damaged or of another version"):
        Recipe.read(file)


def test_a_recipe_that_is_no_text(tmp_path):
    file = tmp_path / "recipe.json"
    file.write_bytes(b"\xff\xfe\x00")
    with pytest.raises(ValueError, match=r"^recipe: "):
        Recipe.read(file)


# ------------------------------------------------------------------------------ what a run draws


def test_a_walk_begins_and_ends_with_what_was_given(trained):
    ends = trained.held_out[:2]
    way = trained.walk(ends, 4)
    assert way.shape == (6, 192)
    assert torch.equal(way[0], ends.images[0] / 255)
    means, _ = trained.encode(ends)
    assert torch.allclose(way[1], trained.decode(means)[0], atol=1e-6)
    assert torch.allclose(way[4], trained.decode(means)[1], atol=1e-6)


def test_samples_follow_their_seed(trained):
    assert torch.equal(trained.sample(3), trained.sample(3))
    assert not torch.equal(trained.sample(3), trained.sample(3, seed=1))
    assert not torch.equal(trained.sample(3), trained.sample(3, mean=True))


def test_parts_are_scored_like_the_whole(trained, monkeypatch):
    monkeypatch.setattr(runs, "AT_ONCE", 192 * 4)
    parts = list(trained._parts(trained.data.pictures))
    assert [len(part) for part in parts] == [4, 4, 4]
    assert torch.equal(torch.cat(parts), trained._floats(trained.data.pictures.images))


def test_a_device_that_is_not_there():
    for name in ("nonsense", "cuda:77"):
        with pytest.raises(ValueError, match=r"^device: expected one that this machine has, got"):
            runs.device(name)
