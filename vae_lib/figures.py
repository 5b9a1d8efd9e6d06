"""The house style, and the few figures that the book repeats.

A chapter shows every figure with `show`, which stores a fingerprint beside the picture, a short
record of what was drawn; see `vae_lib.fingerprints`.
"""

import base64
import io
import sys

import matplotlib as mpl
import numpy as np
from matplotlib import pyplot as plt

from vae_lib.arguments import kind, whole
from vae_lib.fingerprints import fingerprint

__all__ = [
    "CORRECTED",
    "INK",
    "NEUTRAL",
    "OTHERS",
    "THE_POST",
    "TRUTH",
    "curves",
    "film",
    "image_sheet",
    "show",
    "use_style",
]

# One palette with fixed meanings, after Okabe and Ito (2008), whose colours stay apart in the
# common forms of colour blindness. In grey print they do not: there, tell curves by their style.
INK = "#1a1a1a"  # text, axes, and data that takes no side
THE_POST = "#d55e00"  # what the blog post does, as written (vermilion)
CORRECTED = "#0072b2"  # the same thing done right (blue)
TRUTH = "#009e73"  # an exact reference: a closed form, an integral (green)
NEUTRAL = "#767676"  # guides, grids, what the figure is not about (grey)
OTHERS = ("#cc79a7", "#e69f00", "#56b4e9")  # more series, without a fixed meaning

FRAMES = 4  # of a film, across and down; book.css counts on it


def use_style():
    """Set the house style for all figures that are made after this call.

    It starts from matplotlib's own defaults, so that no setting of yours reaches a figure, from a
    matplotlibrc, a style or an earlier line; what draws on your screen, the backend, stays. The
    page is always white, because a figure keeps its own background in the dark theme. A curve
    without a colour of its own never gets one that has a meaning.

    Returns:
        None; `matplotlib.rcParams` is changed.

    Example:
        >>> use_style()
        >>> mpl.rcParams["figure.figsize"]
        [6.4, 3.4]
    """
    plt.style.use("default")
    white = ["figure.facecolor", "axes.facecolor", "savefig.facecolor"]
    ink = ["text.color", "axes.labelcolor", "axes.edgecolor", "xtick.color", "ytick.color"]
    mpl.rcParams.update(dict.fromkeys(white, "white") | dict.fromkeys(ink, INK))
    mpl.rcParams.update(
        {
            "figure.figsize": (6.4, 3.4),  # inches: readable on a telephone at full width
            "figure.dpi": 144,
            "savefig.dpi": "figure",
            "figure.constrained_layout.use": True,
            "font.size": 11,
            "axes.titlesize": 12,
            "axes.titlelocation": "left",
            "xtick.labelsize": 10,
            "ytick.labelsize": 10,
            "legend.fontsize": 10,
            "legend.frameon": False,
            "axes.spines.top": False,
            "axes.spines.right": False,
            "axes.prop_cycle": mpl.cycler(color=[INK, *OTHERS, NEUTRAL]),
            "lines.linewidth": 1.8,
            "image.cmap": "gray_r",  # 1 is ink, 0 is paper
            "image.interpolation": "nearest",
        }
    )


def show(fig, *, margin=0.1):
    """Show a figure in a notebook, with the fingerprint that the tests compare, and close it.

    Outside IPython the figure is rendered, so that a fault in it still shows, and closed.

    Arguments:
        fig: a `matplotlib.figure.Figure`.
        margin: inches of white around what is drawn; 0 for a `film`.

    Returns:
        None; in a notebook the cell gets one output, with `image/png`, a `text/plain` that no
        matplotlib version changes, and the fingerprint as metadata `vae_book.fingerprint`.

    Example:
        >>> show(curves({"a line": ([0, 1], [2, 3])}, xlabel="x", ylabel="y"))
    """
    drawn = fingerprint(fig)
    buffer = io.BytesIO()
    # All that a setting might decide is said here; no "Software", which is matplotlib's version.
    fig.savefig(
        buffer,
        format="png",
        dpi="figure",
        facecolor="white",
        transparent=False,
        bbox_inches="tight",
        pad_inches=margin,
        metadata={"Software": None},
    )
    plt.close(fig)  # or the inline backend shows it a second time
    if "IPython" not in sys.modules:
        return
    from IPython import get_ipython
    from IPython.display import display

    if get_ipython() is None:
        return
    count = len(drawn["axes"])
    bundle = {
        "image/png": base64.b64encode(buffer.getvalue()).decode("ascii"),
        "text/plain": f"<Figure with {count} {'plot' if count == 1 else 'plots'}>",
    }
    display(bundle, raw=True, metadata={"vae_book": {"fingerprint": drawn}})


# ---------------------------------------------------------------- the figures that the book repeats


def image_sheet(images, columns=10, *, side=28, shape=None, row_labels=None, title=None):
    """Draw images as one sheet, row by row: dark ink on white, or pictures in their own colours.

    Arguments:
        images: array or tensor of shape (n, side * side) or (n, side, side); 0 is paper and 1 is
            ink, and what lies outside is drawn as the nearer of the two. With `shape`, rows of
            shape (n, channels * height * width): 0 is black, and white is 1, or 255 of bytes.
        columns: how many images a row holds, at least 1.
        side: height and width of one image, in pixels.
        shape: (channels, height, width) of a picture, with 1 channel or 3; None for ink.
        row_labels: one string for each row, or None.
        title: a string, or None.

    Returns:
        A `Figure` with one axes and one image.

    Raises:
        ValueError: for another shape, for no image at all, for values that are not finite, for
            fewer than one column, or for another number of row labels.

    Example:
        >>> fig = image_sheet(np.eye(4).reshape(1, 16).repeat(6, axis=0), columns=3, side=4)
        >>> fig.axes[0].images[0].get_array().shape  # 2 x 3 images, a gap of one between them
        (9, 14)
        >>> fig = image_sheet(np.zeros((6, 24), np.uint8), columns=3, shape=(3, 2, 4))
        >>> fig.axes[0].images[0].get_array().shape
        (5, 14, 3)
    """
    images = _checked_images(images, side) if shape is None else _pictures(images, shape)
    columns = min(whole("columns", columns), len(images))
    sheet = _tile(images, columns, line=0.12 if shape is None else 0.88)
    rows = -(-len(images) // columns)
    if row_labels is not None and len(row_labels) != rows:
        raise ValueError(
            f"row_labels: expected one string for each of the {rows} rows, got {len(row_labels)}. "
            "Change columns or the labels."
        )
    height, width = images.shape[1:3]
    inches = min(0.62, 5.8 / columns)  # the width of one image, so that ten fill the page
    extra = (0.9 if row_labels else 0.0, 0.35 if title else 0.0)
    size = (inches * columns + extra[0], inches * height / width * rows + extra[1])
    fig, ax = plt.subplots(figsize=size)
    colours = "gray_r" if shape is None else "gray"  # of colour pictures it is not asked
    ax.imshow(sheet, cmap=colours, vmin=0, vmax=1, interpolation="nearest")
    ax.spines[:].set_visible(False)
    ax.set_xticks([])
    centres = [row * (height + 1) + (height - 1) / 2 for row in range(rows)] if row_labels else []
    ax.set_yticks(centres, row_labels or [])
    ax.tick_params(length=0)
    if title:
        ax.set_title(title)
    return fig


def curves(series, *, xlabel, ylabel, colors=None, dashed=(), title=None):
    """Draw one curve for each entry of a dictionary, with a legend where there are several.

    Arguments:
        series: `{label: (x, y)}`; x and y are sequences, arrays or tensors of one length.
        xlabel: name of the horizontal axis, with its unit.
        ylabel: name of the vertical axis, with its unit.
        colors: `{label: colour}`, or None; a label that is missing takes the next free colour.
        dashed: the labels of the curves to draw dashed.
        title: a string, or None.

    Returns:
        A `Figure` with one axes.

    Raises:
        ValueError: if series is empty, or if an x and its y differ in length.

    Example:
        >>> fig = curves({"post": ([1, 2], [3, 4])}, xlabel="epoch", ylabel="nats per image")
        >>> fig.axes[0].get_xlabel()
        'epoch'
    """
    if not series:
        raise ValueError("series: expected at least one {label: (x, y)}, got none. Add a curve.")
    drawn = {
        label: [_array(f"series[{label!r}]", values) for values in (x, y)]
        for label, (x, y) in series.items()
    }
    for label, (x, y) in drawn.items():
        if x.ndim != 1 or x.shape != y.shape:
            raise ValueError(
                f"series[{label!r}]: expected x and y of shape (n,), got {x.shape} and {y.shape}. "
                "Give one y for each x."
            )
    fig, ax = plt.subplots()
    for label, (x, y) in drawn.items():
        style = "--" if label in dashed else "-"
        ax.plot(x, y, style, color=(colors or {}).get(label), label=label)
    ax.set(xlabel=xlabel, ylabel=ylabel)
    if title:
        ax.set_title(title)
    if len(series) > 1:
        ax.legend()
    return fig


def film(titles):
    """Lay out the sixteen frames of a film, four by four: square plots that fill the sheet.

    A page shows them one after another where the cell has the tag `film`; on paper, and where
    motion is unwanted, it shows the sheet (book/_static/book.css). For that each frame must be
    a sixteenth of the picture, so show it with `show(fig, margin=0)`.

    Arguments:
        titles: sixteen strings, row by row, each to stand in the corner of its frame.

    Returns:
        A `Figure` with sixteen empty axes in `axes`, row by row.

    Raises:
        ValueError: for another number of titles.

    Example:
        >>> len(film([f"epoch {number}" for number in range(16)]).axes)
        16
    """
    if len(titles) != FRAMES**2:
        raise ValueError(
            f"titles: expected {FRAMES**2} strings, one for each frame, got {len(titles)}. Leave "
            "moments out, or show more."
        )
    # Fine, since the page enlarges each frame.
    fig = plt.figure(figsize=(6.4, 6.4), dpi=180, layout="none")
    side = 1 / FRAMES
    for index, title in enumerate(titles):
        row, column = divmod(index, FRAMES)
        ax = fig.add_axes((column * side, 1 - (row + 1) * side, side, side))
        ax.spines[:].set_visible(False)
        ax.set(xticks=[], yticks=[])
        ax.text(0.05, 0.95, title, transform=ax.transAxes, va="top")
    for at in range(1, FRAMES):
        for x, y in (((0, 1), (at * side,) * 2), ((at * side,) * 2, (0, 1))):
            fig.add_artist(plt.Line2D(x, y, color=NEUTRAL, lw=0.5))
    return fig


def _array(name, values):
    """Return a list, an array or a tensor as a float array."""
    if hasattr(values, "detach"):  # a tensor, perhaps on a graph or on another device
        values = values.detach().cpu().numpy()
    try:
        return np.asarray(values, dtype=float)
    except (TypeError, ValueError):
        raise ValueError(
            f"{name}: expected numbers, got {kind(values)} that holds something else. Give an "
            "array, a tensor or lists of one length."
        ) from None


def _checked_images(images, side):
    """Return the images with shape (n, side, side)."""
    images, side = _array("images", images), whole("side", side)
    if not (images.shape[1:] in [(side * side,), (side, side)] and len(images)):
        raise ValueError(
            f"images: expected shape (n, {side * side}) or (n, {side}, {side}) with n at least 1, "
            f"got {images.shape}. Reshape them, or set side."
        )
    return _finite(images).reshape(-1, side, side)


def _pictures(images, shape):
    """Return pictures with shape (n, height, width), or in colour (n, height, width, 3)."""
    are_bytes = str(getattr(images, "dtype", "")).endswith("uint8")
    images, (channels, height, width) = _array("images", images), shape
    row = (channels * height * width,)
    if channels not in (1, 3) or images.shape[1:] != row or not len(images):
        raise ValueError(
            f"images: expected rows of pictures with 1 or 3 channels, got {images.shape} and shape "
            f"{tuple(shape)}. Lay what has alpha on a background, or give the right shape."
        )
    images = _finite(images) / (255 if are_bytes else 1)
    images = images.clip(0, 1).reshape(-1, channels, height, width)
    return images[:, 0] if channels == 1 else images.transpose(0, 2, 3, 1)


def _finite(images):
    """Return images as they are, refusing what cannot be drawn."""
    if not np.isfinite(images).all():
        raise ValueError(
            "images: expected finite numbers, got NaN or infinity. Look at what made them."
        )
    return images


def _tile(images, columns, line):
    """Lay images of shape (n, height, width, ...) out in rows, a light line between them."""
    n, height, width, *colours = images.shape
    rows = -(-n // columns)
    size = (rows * (height + 1) - 1, columns * (width + 1) - 1, *colours)
    sheet = np.full(size, float(round(line)))  # paper, where the last row is not full
    sheet[height :: height + 1] = sheet[:, width :: width + 1] = line
    for index, image in enumerate(images):
        top, left = (height + 1) * (index // columns), (width + 1) * (index % columns)
        sheet[top : top + height, left : left + width] = image
    return sheet
