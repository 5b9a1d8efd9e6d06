"""What a figure drew, in numbers: a *fingerprint*, which is stored beside the picture.

The tests compare fingerprints, so another curve fails them and another font does not.
"""

import itertools

import numpy as np
from matplotlib.category import StrCategoryLocator
from matplotlib.collections import (
    Collection,
    LineCollection,
    PathCollection,
    PolyCollection,
    QuadMesh,
)
from matplotlib.colors import to_hex
from matplotlib.image import AxesImage
from matplotlib.lines import Line2D
from matplotlib.patches import FancyArrowPatch, Patch, Rectangle
from matplotlib.text import Annotation, Text
from matplotlib.ticker import FixedLocator

__all__ = ["fingerprint"]


def fingerprint(fig):
    """Record what a figure shows, in numbers that no font, resolution or renderer changes.

    Arguments:
        fig: a `matplotlib.figure.Figure`.

    Returns:
        A dictionary that JSON can hold. `axes` lists for each visible axes its title, labels,
        scales, limits, ticks set by hand, legend and artists; `artists` lists what stands on the
        figure itself. An artist is a dictionary with its kind, label, colours, its number of
        finite points `n`, and a sample of its data to six digits. An empty axes has no artists.
        Lists of numbers are for comparing with a tolerance, everything else exactly.

    Example:
        >>> from matplotlib.figure import Figure
        >>> fig = Figure()
        >>> _ = fig.subplots().plot([0, 1, 2], [5, 6, 7], label="y")
        >>> fingerprint(fig)["axes"][0]["artists"][0]["y"]
        [5.0, 6.0, 7.0]
    """
    axes = [ax for top in fig.axes for ax in _with_insets(top)]
    mappables = [artist for ax in axes for artist in [*ax.images, *ax.collections]]
    colorbars = [artist.colorbar.ax for artist in mappables if artist.colorbar]
    return {
        "axes": [_axes(ax, ax in colorbars) for ax in axes if ax.get_visible()],
        "artists": _artists(fig),
        "legend": [text.get_text() for legend in fig.legends for text in legend.get_texts()],
    }


def _with_insets(ax):
    """Return an axes and the axes inside it."""
    return [ax, *(inner for child in ax.child_axes for inner in _with_insets(child))]


def _axes(ax, is_colorbar):
    """Record one axes."""
    legend = ax.get_legend()
    record = {
        "title": " ".join(filter(None, map(ax.get_title, ["left", "center", "right"]))),
        "legend": [text.get_text() for text in legend.get_texts()] if legend else [],
        # How a colour bar is built changes between versions; its label and limits say enough.
        "artists": [{"kind": "colorbar"}] if is_colorbar else _artists(ax),
    }
    for name, axis in {"x": ax.xaxis, "y": ax.yaxis}.items():
        record[f"{name}lim"] = _rounded(axis.get_view_interval())
        record[f"{name}scale"] = axis.get_scale()
        record[f"{name}label"] = axis.get_label_text() if ax.axison else ""
        record[f"{name}ticks"] = _ticks(axis) if ax.axison else []
    return record


def _ticks(axis):
    """Return tick labels set by hand; those that matplotlib chooses depend on the fonts."""
    if isinstance(axis.get_major_locator(), FixedLocator | StrCategoryLocator):
        return [label.get_text() for label in axis.get_ticklabels()]
    return []


def _artists(container):
    """Record the visible artists of an axes or of a figure."""
    names = ["lines", "images", "collections", "patches", "texts", "artists"]
    found = [a for name in names for a in getattr(container, name, []) if a.get_visible()]
    records = []
    # A histogram is one record, not one for each of its bars.
    for colour, group in itertools.groupby(found, _bar_colour):
        same = list(group)
        records += [_bars(same, colour)] if colour else map(_artist, same)
    return records


def _bar_colour(artist):
    """Return the colour of a rectangle, and None for anything else."""
    return _colours(artist.get_facecolor()) if isinstance(artist, Rectangle) else None


def _artist(artist):
    """Record one artist: the first kind that fits, or its class name alone."""
    for kind, name, describe in _KINDS:
        if isinstance(artist, kind):
            label = str(artist.get_label())
            shown = "" if label.startswith("_") else label  # "_child0": no label was given
            return {"kind": name, "label": shown} | describe(artist)
    return {"kind": type(artist).__name__}


def _line(line):
    style = {"colour": _colours(line.get_color()), "style": str(line.get_linestyle())}
    return style | _points(line.get_xdata(orig=False), line.get_ydata(orig=False))


def _image(image):
    pixels = _numbers(image.get_array())
    record = {
        "n": int(np.isfinite(pixels).sum()),
        "shape": " x ".join(map(str, pixels.shape)),
        "extent": _rounded(image.get_extent()),
        "blocks": _block_means(pixels),
        "stats": _stats(pixels),
    }
    return record if pixels.ndim == 3 else record | _color_scale(image)


def _scatter(dots):
    x, y = _numbers(dots.get_offsets()).reshape(-1, 2).T
    record = {
        "n": int((np.isfinite(x) & np.isfinite(y)).sum()),
        "x_stats": _stats(x),
        "y_stats": _stats(y),
        "x_runs": _run_means(x),
        "y_runs": _run_means(y),
        "sizes": _stats(_numbers(dots.get_sizes())),
    }
    return record | _mapped_colours(dots)


def _mesh(mesh):
    corners = _numbers(mesh.get_coordinates())
    cells = _numbers(mesh.get_array())
    record = {"n": int(np.isfinite(cells).sum()), "stats": _stats(cells)}
    record["blocks"] = _block_means(cells) if cells.ndim > 1 else _run_means(cells)
    extent = [corners[..., 0].min(), corners[..., 0].max()]
    record["extent"] = _rounded([*extent, corners[..., 1].min(), corners[..., 1].max()])
    return record | _color_scale(mesh)


def _collection(collection):
    vertices = [path.vertices for path in collection.get_paths()]
    x, y = np.concatenate([np.empty((0, 2)), *vertices]).T
    record = _points(x, y) | {"paths": len(vertices)} | _mapped_colours(collection)
    return record | {"offsets": _stats(_numbers(collection.get_offsets()))}


def _bars(rectangles, colour):
    boxes = [[r.get_x(), r.get_y(), r.get_width(), r.get_height()] for r in rectangles]
    record = {"kind": "bars", "colour": colour, "n": len(boxes)}
    for name, values in zip(["x", "y", "width", "height"], _numbers(boxes).T, strict=True):
        record |= {name: _sample(values), f"{name}_stats": _stats(values)}
    return record


def _arrow(arrow):
    # Its path is measured on the screen, so take the two ends that it was given.
    ends = getattr(arrow, "_posA_posB", None) or [arrow.xy1, arrow.xy2]
    return {"colour": _colours(arrow.get_edgecolor()), "ends": _rounded(np.ravel(ends))}


def _patch(patch):
    x, y = patch.get_patch_transform().transform(patch.get_path().vertices).T
    return {"colour": _colours(patch.get_facecolor())} | _points(x, y)


def _text(text):
    record = {"text": text.get_text(), "colour": _colours(text.get_color())}
    record["at"] = _rounded(text.get_position())
    if isinstance(text, Annotation):
        record["points_to"] = _rounded(text.xy)
    return record


_KINDS = [
    (Line2D, "line", _line),
    (AxesImage, "image", _image),
    (PathCollection, "scatter", _scatter),
    (QuadMesh, "mesh", _mesh),
    (LineCollection, "segments", _collection),
    (PolyCollection, "area", _collection),
    (Collection, "collection", _collection),
    (FancyArrowPatch, "arrow", _arrow),
    (Patch, "patch", _patch),
    (Text, "text", _text),
]


def _points(x, y):
    """Record points that are joined: a sample of them, and figures that all of them enter."""
    x, y = _numbers(x).ravel(), _numbers(y).ravel()
    return {
        "n": int((np.isfinite(x) & np.isfinite(y)).sum()),
        "x": _sample(x),
        "y": _sample(y),
        "x_stats": _stats(x),
        "y_stats": _stats(y),
    }


def _mapped_colours(collection):
    """Record the colours of a collection: mapped from numbers, or its own."""
    if collection.get_array() is not None:
        values = _numbers(collection.get_array()).ravel()
        return {"values": _run_means(values)} | _color_scale(collection)
    faces = collection.get_facecolor()
    return {"colour": _colours(faces if len(faces) else collection.get_edgecolor())}


def _color_scale(mappable):
    """Record how numbers become colours."""
    limits = [np.nan if limit is None else limit for limit in mappable.get_clim()]
    norm = type(mappable.norm).__name__
    return {"cmap": mappable.get_cmap().name, "norm": norm, "clim": _rounded(limits)}


def _colours(color):
    """Return one colour, or the different ones of an array, as text."""
    if isinstance(color, np.ndarray) and color.ndim == 2:
        different = sorted({to_hex(row, keep_alpha=True) for row in color})
        return " ".join(different[:12])
    return to_hex(color, keep_alpha=True)


def _numbers(values):
    """Return values as floats, what is masked as nan."""
    return np.ma.filled(np.ma.asarray(values, dtype=float), np.nan)


def _rounded(values):
    """Round to six significant digits; JSON has no nan, so that becomes text."""
    values = np.asarray(values, dtype=float).ravel()
    return [float(f"{v:.6g}") + 0.0 if np.isfinite(v) else str(v) for v in values]


def _sample(values, most=33):
    """Take evenly spaced values, both ends among them."""
    where = np.linspace(0, len(values) - 1, min(len(values), most)).round().astype(int)
    return _rounded(values[where])


def _stats(values):
    """Return mean, standard deviation, least and greatest of the finite values."""
    finite = values[np.isfinite(values)]
    if not finite.size:
        return []
    return _rounded([finite.mean(), finite.std(), finite.min(), finite.max()])


def _run_means(values, most=16):
    """Return the means of consecutive runs, so that the order counts."""
    if not len(values):
        return []
    return _rounded([run.mean() for run in np.array_split(values, min(most, len(values)))])


def _block_means(pixels, most=8):
    """Return the means of at most 8 x 8 blocks of an image, each colour apart."""
    bands = np.array_split(pixels, min(most, len(pixels)), axis=0)
    columns = min(most, pixels.shape[1])
    blocks = [block for band in bands for block in np.array_split(band, columns, axis=1)]
    return _rounded([block.mean(axis=(0, 1)) for block in blocks])
