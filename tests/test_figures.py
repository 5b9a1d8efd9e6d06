import base64
import io

import matplotlib as mpl
import numpy as np
import pytest
import torch
from IPython.core.interactiveshell import InteractiveShell
from IPython.utils.capture import capture_output
from matplotlib import pyplot as plt
from PIL import Image

from vae_lib import figures
from vae_lib.figures import curves, film, image_sheet, show, use_style
from vae_lib.fingerprints import fingerprint

X = np.linspace(0, 6, 300)


@pytest.fixture(autouse=True)
def _close_figures():
    with mpl.rc_context():
        yield
    plt.close("all")


def shown(fig):
    """Return what a cell that shows a figure puts out."""
    InteractiveShell.instance()
    try:
        with capture_output() as captured:
            assert show(fig) is None
    finally:
        InteractiveShell.clear_instance()
    (output,) = captured.outputs
    return output


def test_show_publishes_the_picture_with_its_fingerprint():
    fig = curves({"y": (X, X)}, xlabel="x", ylabel="y")
    expected = fingerprint(fig)
    output = shown(fig)
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


# Settings that someone may have in a matplotlibrc, or take from a style.
HOSTILE = {
    "axes.grid": True,
    "axes.facecolor": "black",
    "axes.labelsize": 30,
    "axes.unicode_minus": False,
    "figure.dpi": 31,
    "figure.facecolor": "green",
    "font.family": "monospace",
    "font.size": 25,
    "image.origin": "lower",
    "image.aspect": "auto",
    "legend.loc": "lower left",
    "lines.linestyle": ":",
    "lines.marker": "o",
    "path.sketch": (1, 100, 2),
    "savefig.bbox": "standard",
    "savefig.transparent": True,
    "text.antialiased": False,
    "xtick.direction": "in",
    "ytick.left": False,
}
SAVING = {
    "savefig.bbox": "standard",
    "savefig.dpi": 31,
    "savefig.edgecolor": "red",
    "savefig.facecolor": "green",
    "savefig.format": "svg",
    "savefig.orientation": "landscape",
    "savefig.pad_inches": 1,
    "savefig.transparent": True,
}


def pictures():
    images = np.random.default_rng(0).random((3, 784))
    series = {"sine": (X, np.sin(X)), "cosine": (X, np.cos(X))}
    yield image_sheet(images, columns=2, row_labels=["a", "b"], title="three")
    yield curves(series, xlabel="x", ylabel="y", dashed=["cosine"], title="two")


def bare():
    fig, ax = plt.subplots()
    ax.set_facecolor("0.9")
    ax.plot(X, -X)
    yield fig


@pytest.mark.parametrize("draw", [pictures, bare])
def test_no_setting_of_the_user_reaches_a_picture(draw):
    use_style()
    usual = [shown(fig) for fig in draw()]
    mpl.rcParams.update(HOSTILE)
    use_style()
    for fig, before in zip(draw(), usual, strict=True):
        after = shown(fig)
        assert after.data["image/png"] == before.data["image/png"]
        assert after.metadata == before.metadata
    mpl.rcParams.update(SAVING)
    for fig, before in zip(draw(), usual, strict=True):
        assert shown(fig).data["image/png"] == before.data["image/png"]


def test_the_style_leaves_the_backend_alone():
    before = mpl.get_backend(), mpl.is_interactive()
    mpl.rcParams["interactive"] = not before[1]
    use_style()
    assert (mpl.get_backend(), mpl.is_interactive()) == (before[0], not before[1])


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


def test_pictures_keep_their_colours_and_their_proportions():
    # Channel by channel: each picture has one red, one green and one blue pixel in its first row.
    picture = np.zeros((3, 2, 4), np.uint8)
    picture[0, 0, 0] = picture[1, 0, 1] = picture[2, 0, 2] = 255
    fig = image_sheet(picture.reshape(1, -1).repeat(3, axis=0), columns=2, shape=(3, 2, 4))
    sheet = np.asarray(fig.axes[0].images[0].get_array())
    assert sheet.shape == (5, 9, 3)
    assert np.array_equal(sheet[:2, 5:], picture.transpose(1, 2, 0) / 255)
    assert (sheet[2] == 0.88).all()  # the line between
    assert (sheet[3:, 5:] == 1).all()  # no fourth picture: paper
    assert sheet[0, :3].tolist() == [[1, 0, 0], [0, 1, 0], [0, 0, 1]]
    record = fingerprint(fig)["axes"][0]["artists"][0]
    assert record["shape"] == "5 x 9 x 3"
    width, height = fig.get_size_inches()
    assert width == pytest.approx(2 * height)
    floats = image_sheet(picture.reshape(1, -1) / 255, shape=(3, 2, 4))
    assert np.array_equal(np.asarray(floats.axes[0].images[0].get_array()), sheet[:2, :4])


def test_grey_pictures_are_light_where_their_numbers_are_large():
    fig = image_sheet(np.array([[0.0, 1.0]]), shape=(1, 1, 2))
    (image,) = fig.axes[0].images
    assert image.get_cmap().name == "gray"
    assert image.to_rgba(image.get_array())[0, :, 0].tolist() == [0, 1]


@pytest.mark.parametrize(
    ("rows", "shape"), [(np.zeros((2, 9)), (3, 2, 2)), (np.zeros((2, 16)), (4, 2, 2))]
)
def test_pictures_of_another_shape_or_with_alpha_are_refused(rows, shape):
    with pytest.raises(ValueError, match="images: expected rows of pictures"):
        image_sheet(rows, shape=shape)


def test_a_sheet_and_each_image_on_it_stand_upright():
    # Left to right, then down; each image has its ink at the top right, and no two are alike.
    images = np.zeros((6, 4, 4))
    images[:, 0, 2:] = np.linspace(0.5, 1, 6)[:, None]
    fig = image_sheet(images, columns=3, side=4)
    sheet = np.asarray(fig.axes[0].images[0].get_array())
    assert sheet.shape == (9, 14)
    for index, image in enumerate(images):
        top, left = 5 * (index // 3), 5 * (index % 3)
        assert np.array_equal(sheet[top : top + 4, left : left + 4], image)
    # And as it is drawn: row 0 above row 1, column 0 left of column 1.
    assert fig.axes[0].images[0].origin == "upper"
    (x0, x1), (y0, y1) = fig.axes[0].get_xlim(), fig.axes[0].get_ylim()
    assert x0 < x1
    assert y0 > y1


def test_flat_and_square_images_give_the_same_sheet():
    images = np.random.default_rng(0).random((4, 784))
    square = image_sheet(images.reshape(4, 28, 28))
    assert fingerprint(image_sheet(images)) == fingerprint(square)


@pytest.mark.parametrize("shape", [(784,), (3, 783), (3, 27, 28), (0, 784), (2, 1, 28, 28)])
def test_a_sheet_of_another_shape_is_refused(shape):
    with pytest.raises(ValueError, match=r"images: expected shape \(n, 784\)") as error:
        image_sheet(np.zeros(shape))
    assert str(shape) in str(error.value)


def test_a_sheet_refuses_what_it_cannot_draw():
    with pytest.raises(ValueError, match="finite"):
        image_sheet(np.full((1, 784), np.nan))
    with pytest.raises(ValueError, match="row_labels: expected one string for each of the 2 rows"):
        image_sheet(np.zeros((4, 784)), columns=2, row_labels=["a"])
    with pytest.raises(ValueError, match="columns: expected at least 1, got 0"):
        image_sheet(np.zeros((4, 784)), columns=0)
    with pytest.raises(ValueError, match=r"side: expected a whole number, got 2\.0"):
        image_sheet(np.zeros((4, 4)), side=2.0)
    for wrong in ("digits", [[0.0], [0.0, 1.0]], [None, {}], object()):
        with pytest.raises(ValueError, match=r"images: expected (numbers|shape)"):
            image_sheet(wrong)


def test_curves_keep_their_colours():
    series = {"post": (X, X), "right": (X, torch.tensor(-X)), "other": (X, 0 * X)}
    colors = {"post": figures.THE_POST, "right": figures.CORRECTED}
    use_style()
    ax = curves(series, xlabel="epoch", ylabel="nats", colors=colors).axes[0]
    given = [line.get_color() for line in ax.lines]
    assert given == [figures.THE_POST, figures.CORRECTED, figures.INK]
    assert [text.get_text() for text in ax.get_legend().get_texts()] == list(series)


def test_curves_refuse_lengths_that_differ():
    with pytest.raises(ValueError, match=r"series\['a'\]: .* got \(2,\) and \(3,\)"):
        curves({"a": ([0, 1], [0, 1, 2])}, xlabel="x", ylabel="y")
    with pytest.raises(ValueError, match=r"series\['a'\]: expected numbers, got str"):
        curves({"a": ("x", [1])}, xlabel="x", ylabel="y")
    with pytest.raises(ValueError, match="series: expected at least one"):
        curves({}, xlabel="x", ylabel="y")
    assert plt.get_fignums() == []


def test_the_frames_of_a_film_are_sixteenths_of_its_picture():
    use_style()
    fig = film([f"frame {number}" for number in range(16)])
    shades = [0.2 + number / 20 for number in range(16)]
    for ax, shade in zip(fig.axes, shades, strict=True):
        ax.plot([0, 1], [0, 1], lw=400, color=str(shade))  # more than its frame: it is cut off
        ax.set(xlim=(0, 1), ylim=(0, 1))
    InteractiveShell.instance()
    try:
        with capture_output() as captured:
            show(fig, margin=0)
    finally:
        InteractiveShell.clear_instance()
    (output,) = captured.outputs
    record = output.metadata["vae_book"]["fingerprint"]
    titles = [a["text"] for ax in record["axes"] for a in ax["artists"] if a["kind"] == "text"]
    assert titles == [f"frame {number}" for number in range(16)]
    png = Image.open(io.BytesIO(base64.b64decode(output.data["image/png"]))).convert("L")
    pixels = np.asarray(png) / 255
    side = pixels.shape[0] // 4
    assert pixels.shape == (4 * side, 4 * side)
    for number, shade in enumerate(shades):
        row, column = divmod(number, 4)
        tile = pixels[row * side : (row + 1) * side, column * side : (column + 1) * side]
        # Left of the middle, away from the title and the lines between frames.
        inner = tile[side // 3 : -3, 3 : side // 3]
        assert abs(np.median(inner) - shade) < 0.01
        assert np.abs(inner - shade).max() < 0.01


@pytest.mark.parametrize("count", [0, 15, 17])
def test_a_film_has_sixteen_frames(count):
    with pytest.raises(ValueError, match=f"^titles: expected 16 strings.* got {count}\\."):
        film(["moment"] * count)
