import json

import matplotlib as mpl
import numpy as np
import pytest
from matplotlib import pyplot as plt
from matplotlib.patches import Circle, FancyArrowPatch

from vae_lib.fingerprints import fingerprint

X = np.linspace(0, 6, 300)


@pytest.fixture(autouse=True)
def _close_figures():
    with mpl.rc_context():
        yield
    plt.close("all")


def drawn(draw):
    """Return the fingerprint of what a function draws on one axes."""
    fig, ax = plt.subplots()
    draw(ax)
    return fingerprint(fig)


def artists(draw):
    return drawn(draw)["axes"][0]["artists"]


# Pairs of drawings that a reader would tell apart.
DIFFERENT = {
    "curve": (lambda ax: ax.plot(X, np.sin(X)), lambda ax: ax.plot(X, np.cos(X))),
    "colour": (lambda ax: ax.plot(X, color="red"), lambda ax: ax.plot(X, color="blue")),
    "dashes": (lambda ax: ax.plot(X), lambda ax: ax.plot(X, "--")),
    "one spike": (lambda ax: ax.plot(X), lambda ax: ax.plot(np.where(np.arange(300) == 5, 9, X))),
    "label": (lambda ax: ax.plot(X, label="a"), lambda ax: ax.plot(X, label="b")),
    "title": (lambda ax: ax.set_title("a"), lambda ax: ax.set_title("b")),
    "axis label": (lambda ax: ax.set_xlabel("a"), lambda ax: ax.set_xlabel("b")),
    "scale": (lambda ax: ax.set_yscale("linear"), lambda ax: ax.set_yscale("log")),
    "limits": (lambda ax: ax.set_xlim(0, 1), lambda ax: ax.set_xlim(0, 2)),
    "tick labels": (
        lambda ax: ax.set_xticks([0, 1], ["a", "b"]),
        lambda ax: ax.set_xticks([0, 1], ["a", "c"]),
    ),
    "image": (lambda ax: ax.imshow(np.eye(30)), lambda ax: ax.imshow(np.eye(30)[::-1])),
    "colour of an image": (
        lambda ax: ax.imshow(np.ones((4, 4, 3)) * [1, 0, 0]),
        lambda ax: ax.imshow(np.ones((4, 4, 3)) * [0, 1, 0]),
    ),
    "colour limits": (
        lambda ax: ax.imshow(np.eye(30), vmax=1),
        lambda ax: ax.imshow(np.eye(30), vmax=2),
    ),
    "mesh": (lambda ax: ax.pcolormesh(np.eye(9)), lambda ax: ax.pcolormesh(np.eye(9)[::-1])),
    "scatter": (lambda ax: ax.scatter(X, X), lambda ax: ax.scatter(X, X[::-1])),
    "scatter's colours": (
        lambda ax: ax.scatter(X, X, c=X),
        lambda ax: ax.scatter(X, X, c=X[::-1]),
    ),
    "bars": (lambda ax: ax.bar(["a", "b"], [1, 2]), lambda ax: ax.bar(["a", "b"], [1, 3])),
    "names of bars": (lambda ax: ax.bar(["a", "b"], [1, 2]), lambda ax: ax.bar(["a", "c"], [1, 2])),
    "area": (lambda ax: ax.fill_between(X, X), lambda ax: ax.fill_between(X, 2 * X)),
    "error bars": (lambda ax: ax.errorbar(X, X, 1), lambda ax: ax.errorbar(X, X, 2)),
    "contours": (
        lambda ax: ax.contour(np.outer(X, X)),
        lambda ax: ax.contour(np.outer(X, X), levels=[3]),
    ),
    "text": (lambda ax: ax.text(0, 0, "a"), lambda ax: ax.text(0, 0, "b")),
    "place of a text": (lambda ax: ax.text(0, 0, "a"), lambda ax: ax.text(0, 1, "a")),
    "arrow of a text": (
        lambda ax: ax.annotate("a", (0, 0), (1, 1), arrowprops={}),
        lambda ax: ax.annotate("a", (0, 1), (1, 1), arrowprops={}),
    ),
    "arrow": (
        lambda ax: ax.add_patch(FancyArrowPatch((0, 0), (1, 1))),
        lambda ax: ax.add_patch(FancyArrowPatch((0, 0), (1, 0))),
    ),
    "circle": (
        lambda ax: ax.add_patch(Circle((0, 0), 1)),
        lambda ax: ax.add_patch(Circle((0, 0), 2)),
    ),
    "legend": (
        lambda ax: ax.legend([ax.plot(X)[0]], ["a"]),
        lambda ax: ax.legend([ax.plot(X)[0]], ["b"]),
    ),
    "inset": (
        lambda ax: ax.inset_axes([0, 0, 1, 1]).plot(X),
        lambda ax: ax.inset_axes([0, 0, 1, 1]).plot(-X),
    ),
    "title of the figure": (
        lambda ax: ax.figure.suptitle("a"),
        lambda ax: ax.figure.suptitle("b"),
    ),
}


@pytest.mark.parametrize(("one", "other"), [*DIFFERENT.values()], ids=[*DIFFERENT])
def test_another_drawing_has_another_fingerprint(one, other):
    assert drawn(one) != drawn(other)


@pytest.mark.parametrize("draw", [pair[0] for pair in DIFFERENT.values()], ids=[*DIFFERENT])
def test_a_fingerprint_depends_on_what_is_drawn_alone(draw):
    usual = drawn(draw)
    assert usual == drawn(draw)
    assert json.loads(json.dumps(usual, allow_nan=False)) == usual
    other = {"figure.dpi": 50, "font.size": 20, "font.family": "serif", "figure.figsize": (9, 2)}
    with mpl.rc_context(other):
        fig, ax = plt.subplots()
        draw(ax)
        assert fingerprint(fig) == usual
        fig.canvas.draw()
        assert fingerprint(fig) == usual


def test_an_empty_axes_has_no_artists():
    assert artists(lambda ax: None) == []


def test_what_is_hidden_is_not_drawn():
    assert artists(lambda ax: ax.plot(X, visible=False)) == []
    assert drawn(lambda ax: ax.set_visible(False))["axes"] == []


def test_a_line_is_sampled_with_its_ends():
    (line,) = artists(lambda ax: ax.plot(X, X**2, color="#009e73", label="square"))
    assert (line["kind"], line["label"], line["n"]) == ("line", "square", 300)
    assert line["colour"] == "#009e73ff"
    assert len(line["x"]) == len(line["y"]) == 33
    assert (line["y"][0], line["y"][-1]) == (0.0, 36.0)
    assert line["y_stats"] == pytest.approx([(X**2).mean(), (X**2).std(), 0, 36], rel=1e-5)


def test_a_line_without_finite_points_counts_none():
    (line,) = artists(lambda ax: ax.plot([1, np.nan], [np.nan, 1]))
    assert line["n"] == 0
    assert line["y"] == ["nan", 1.0]


def test_block_means_of_an_image_cover_it_exactly():
    pixels = np.random.default_rng(0).random((13, 30))
    (image,) = artists(lambda ax: ax.imshow(pixels))
    rows = np.diff([0, 2, 4, 6, 8, 10, 11, 12, 13])  # 13 rows in 8 bands
    columns = np.diff([0, 4, 8, 12, 16, 20, 24, 27, 30])
    weights = np.outer(rows, columns)
    means = np.reshape(image["blocks"], (8, 8))
    assert means[0, 0] == pytest.approx(pixels[:2, :4].mean(), rel=1e-5)
    assert (means * weights).sum() / pixels.size == pytest.approx(pixels.mean(), rel=1e-5)
    assert image["shape"] == "13 x 30"


def test_a_histogram_is_one_record():
    (bars,) = artists(lambda ax: ax.hist(X, bins=20))
    assert (bars["kind"], bars["n"], sum(bars["height"])) == ("bars", 20, 300)


def test_a_colour_bar_is_told_from_other_axes():
    record = drawn(lambda ax: ax.figure.colorbar(ax.imshow(np.eye(3)), label="nats"))
    assert record["axes"][1]["artists"] == [{"kind": "colorbar"}]
    assert record["axes"][1]["ylabel"] == "nats"
