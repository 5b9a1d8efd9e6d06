"""One way to print results: aligned text in a terminal, a table on a page.

The tests read such a table cell by cell, so that floats are compared within a tolerance and a
number that gets another width moves nothing.
"""

import sys
from html import escape

__all__ = ["table"]

MOST_DIGITS = 12


def table(columns, *, digits=2, caption=""):
    """Print columns of results, words to the left and numbers to the right.

    Outside IPython the table is printed as text. In a notebook it is the one output of the cell,
    as text and as HTML.

    Arguments:
        columns: `{name: values}`, the values of one length, from left to right. A value is a
            string, an integer, a float, an array or tensor of no dimension, or an object with its
            own `__str__`, such as `vae_lib.evaluation.Estimate`. A name says the unit if it is not
            the caption's.
        digits: decimals of the floats, from 1 to 12, or `{name: decimals}` for some columns, the
            others having 2. A float is never shown as a whole number: round those to integers,
            which the tests compare exactly.
        caption: a line above the table, such as its unit.

    Returns:
        None.

    Raises:
        ValueError: for no column or no row, for columns of unequal length, for digits out of their
            range or of a column that is not there, and for a value that cannot be shown.

    Example:
        >>> table({"network": ["post", "put right"], "ELBO": [-206.613, -99.5]}, caption="nats")
        nats
        network       ELBO
        post       -206.61
        put right   -99.50
    """
    if not columns:
        raise ValueError("columns: expected at least one {name: values}, got none. Add a column.")
    columns = {str(name): list(values) for name, values in columns.items()}
    lengths = {name: len(values) for name, values in columns.items()}
    if len(set(lengths.values())) > 1 or 0 in lengths.values():
        raise ValueError(
            f"columns: expected one length of at least 1, got {lengths}. Give each column a value "
            "for each row."
        )
    places = _places(digits, columns)
    cells = {
        _one_line(name): [_text(value, places[name], name) for value in values]
        for name, values in columns.items()
    }
    words = [all(isinstance(v, str | bool) for v in values) for values in columns.values()]
    caption = _one_line(caption)
    text = _as_text(cells, words, caption)
    if not _display({"text/plain": text, "text/html": _as_html(cells, words, caption)}):
        print(text)


def _places(digits, columns):
    """Return the decimals of each column."""
    given = digits if isinstance(digits, dict) else dict.fromkeys(columns, digits)
    unknown = set(given) - set(columns)
    if unknown:
        raise ValueError(
            f"digits: expected names of columns ({', '.join(columns)}), got "
            f"{', '.join(sorted(map(str, unknown)))}. Name a column as `columns` does."
        )
    for places in given.values():
        if type(places) is not int or not 1 <= places <= MOST_DIGITS:
            raise ValueError(
                f"digits: expected an integer from 1 to {MOST_DIGITS}, got {places!r}. Round "
                "whole numbers to integers instead."
            )
    return dict.fromkeys(columns, 2) | given


def _text(value, places, name):
    """Return one value as it is shown."""
    if getattr(value, "ndim", None) == 0:  # a number of NumPy's, or a tensor of one
        value = value.item()
    if isinstance(value, float):
        return f"{value:z,.{places}f}"  # z: no minus in front of zeros
    if isinstance(value, int) and not isinstance(value, bool):
        return f"{value:,}"
    if type(value).__str__ is object.__str__ and not isinstance(value, bool):
        raise ValueError(
            f"columns[{name!r}]: expected strings, integers, floats or objects with __str__, got "
            f"{type(value).__name__}. Give the words or the number to show."
        )
    return _one_line(value)


def _one_line(value):
    """Return text without line breaks and with single spaces: two would part cells."""
    return " ".join(str(value).split())


def _as_text(cells, words, caption):
    """Return the table as lines of text, two spaces or more between its columns."""
    aligned = []
    for (name, column), left in zip(cells.items(), words, strict=True):
        width = max(map(len, [name, *column]))
        aligned.append([c.ljust(width) if left else c.rjust(width) for c in [name, *column]])
    lines = ["  ".join(row).rstrip() for row in zip(*aligned, strict=True)]
    return "\n".join([caption, *lines] if caption else lines)


def _as_html(cells, words, caption):
    """Return the table as HTML, of the class that pandas made known to notebooks and themes."""
    # In line, because a notebook has a style sheet of its own, which moves words to the right.
    sides = ["left" if left else "right" for left in words]

    def row(tag, texts):
        pairs = zip(sides, texts, strict=True)
        cells = (f'<{tag} style="text-align: {side}">{escape(t)}</{tag}>' for side, t in pairs)
        return f"<tr>{''.join(cells)}</tr>"

    top = [f"<caption>{escape(caption)}</caption>"] if caption else []
    head = f"<thead>{row('th', cells)}</thead>"
    rows = [row("td", texts) for texts in zip(*cells.values(), strict=True)]
    lines = ['<table class="dataframe">', *top, head, "<tbody>", *rows, "</tbody>", "</table>"]
    return "\n".join(lines)


def _display(bundle):
    """Show a bundle in a notebook, marked as a table for the tests; say whether there is one."""
    if "IPython" not in sys.modules:
        return False
    from IPython import get_ipython
    from IPython.display import display

    if get_ipython() is None:
        return False
    display(bundle, raw=True, metadata={"vae_book": {"table": True}})
    return True
