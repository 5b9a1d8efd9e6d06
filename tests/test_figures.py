import base64
import json

import matplotlib as mpl
import numpy as np
import pytest
import torch
from IPython.core.interactiveshell import InteractiveShell
from IPython.utils.capture import capture_output
from matplotlib import pyplot as plt
from matplotlib.patches import Circle, FancyArrowPatch

from vae_lib import figures
from vae_lib.figures import curves, fingerprint, image_sheet, show, use_style

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
    (line,) = artists(lambda ax: ax.plot(X, X**2, color=figures.TRUTH, label="square"))
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


def test_show_publishes_the_picture_with_its_fingerprint():
    InteractiveShell.instance()
    try:
        fig = curves({"y": (X, X)}, xlabel="x", ylabel="y")
        expected = fingerprint(fig)
        with capture_output() as captured:
            assert show(fig) is None
    finally:
        InteractiveShell.clear_instance()
    (output,) = captured.outputs
    assert set(output.data) == {"image/png", "text/plain"}
    assert output.data["text/plain"] == "<Figure with 1 plot>"
    png = base64.b64decode(output.data["image/png"])
    assert png.startswith(b"\x89PNG")
    assert b"matplotlib" not in png.lower()  # its version would change the stored picture
    assert output.metadata == {"vae_book": {"fingerprint": expected}}
    assert not plt.fignum_exists(fig.number)


def test_show_outside_ipython_closes_the_figure(capsys):
    fig = curves({"y": (X, X)}, xlabel="x", ylabel="y")
    show(fig)
    assert not plt.fignum_exists(fig.number)
    assert capsys.readouterr().out == ""


def test_no_colour_with_a_meaning_is_given_away():
    use_style()
    free = mpl.rcParams["axes.prop_cycle"].by_key()["color"]
    assert not {figures.THE_POST, figures.CORRECTED, figures.TRUTH} & set(free)


def test_a_sheet_lays_images_out_in_rows():
    images = torch.linspace(0, 1, 5)[:, None].expand(5, 784).requires_grad_()
    fig = image_sheet(images, columns=3, row_labels=["a", "b"], title="five")
    sheet = fig.axes[0].images[0].get_array()
    assert sheet.shape == (2 * 28 + 1, 3 * 28 + 2)
    assert [sheet[0, 0], sheet[0, 29], sheet[0, 58], sheet[29, 0]] == [0, 0.25, 0.5, 0.75]
    assert not sheet[30:56, 60:].any()  # no sixth image
    record = fingerprint(fig)["axes"][0]
    assert (record["title"], record["yticks"], record["xticks"]) == ("five", ["a", "b"], [])
    assert record["artists"][0]["clim"] == [0.0, 1.0]


def test_flat_and_square_images_give_the_same_sheet():
    images = np.random.default_rng(0).random((4, 784))
    square = image_sheet(images.reshape(4, 28, 28))
    assert fingerprint(image_sheet(images)) == fingerprint(square)


@pytest.mark.parametrize("shape", [(784,), (3, 783), (3, 27, 28), (0, 784), (2, 1, 28, 28)])
def test_a_sheet_of_another_shape_is_refused(shape):
    with pytest.raises(ValueError, match=r"images must have shape \(n, 784\)") as error:
        image_sheet(np.zeros(shape))
    assert str(shape) in str(error.value)


def test_a_sheet_refuses_what_it_cannot_draw():
    with pytest.raises(ValueError, match="finite"):
        image_sheet(np.full((1, 784), np.nan))
    with pytest.raises(ValueError, match="row_labels must hold one string for each of the 2 rows"):
        image_sheet(np.zeros((4, 784)), columns=2, row_labels=["a"])
    with pytest.raises(ValueError, match="columns must be at least 1, got 0"):
        image_sheet(np.zeros((4, 784)), columns=0)


def test_curves_keep_their_colours():
    series = {"post": (X, X), "right": (X, torch.tensor(-X)), "other": (X, 0 * X)}
    colors = {"post": figures.THE_POST, "right": figures.CORRECTED}
    use_style()
    ax = curves(series, xlabel="epoch", ylabel="nats", colors=colors).axes[0]
    given = [line.get_color() for line in ax.lines]
    assert given == [figures.THE_POST, figures.CORRECTED, figures.INK]
    assert [text.get_text() for text in ax.get_legend().get_texts()] == list(series)


def test_curves_refuse_lengths_that_differ():
    with pytest.raises(ValueError, match=r"series\['a'\] .* got \(2,\) and \(3,\)"):
        curves({"a": ([0, 1], [0, 1, 2])}, xlabel="x", ylabel="y")
    with pytest.raises(ValueError, match="series must hold"):
        curves({}, xlabel="x", ylabel="y")
    assert plt.get_fignums() == []
