"""Compare the outputs of a cell with those that are stored: what counts as the same?

- Text is compared exactly with its floats cut out, and the floats at the relative tolerance `RTOL`.
  A number cannot be known better than one unit of its last printed digit, so that much is allowed
  too, up to 1 % of the number. Integers, words and the number of outputs are exact.
- A picture must carry what was drawn (`vae_lib.figures.show`), and that is compared, not pixels: a
  list of numbers at `FIGURE_RTOL` of its greatest, all else like text. A blank picture differs.
- A table of `vae_lib.results` is compared cell by cell, each like text: how far apart its columns
  stand follows from the widths of its numbers.
- Text on stderr, on either side, is a difference.
"""

import base64
import io
import json
import math
import re
from collections import defaultdict

import nbformat
from nbval.plugin import coalesce_streams
from PIL import Image

RTOL = 1e-3
FIGURE_RTOL = 5e-3

# `-1.5`, `1,234.5` and `1e-07` are floats; the integer `60,000`, the version `2.13.0` and the
# colour `#009e73` are not.
FLOAT = re.compile(
    r"[ \t]*(?<![\w.#])([-+]?(?:\d+(?:,\d{3})*\.\d+(?:e[-+]?\d+)?|\d+\.?e[-+]?\d+))(?!\d|\.\d)",
    re.IGNORECASE,
)


def differences(reference_outputs, new_outputs, rtol=RTOL):
    """Say how the outputs of a cell differ; the list is empty where they agree."""
    reference, new = _by_kind(reference_outputs), _by_kind(new_outputs)
    problems = []
    for kind in sorted({*reference, *new}):
        stored, now = reference[kind], new[kind]
        if kind == "stderr":
            for side, texts in {"the file": stored, "the new run": now}.items():
                problems += [f"stderr: {side} has text on stderr:\n{text}" for text, _ in texts]
        elif len(stored) != len(now):
            problems.append(f"{kind}: {len(stored)} in the file, {len(now)} in the new run")
        elif kind == "image/png":
            problems += _each(kind, _picture, stored, now, rtol)
        else:
            problems += _each(kind, _text_pair, stored, now, rtol)
    return problems


def _by_kind(outputs):
    """Sort outputs by kind; each is a pair of its value and its metadata."""
    kinds = defaultdict(list)
    # A copy, because nbval joins pieces of a stream in place.
    for output in coalesce_streams(nbformat.from_dict(list(outputs))):
        if output["output_type"] == "stream":
            kinds[output["name"]].append((output["text"], {}))
        elif output["output_type"] == "error":
            kinds["error name"].append((output["ename"], {}))
            kinds["error text"].append((output["evalue"], {}))
        else:
            for kind, value in output["data"].items():
                kinds[kind].append((value, output["metadata"]))
    return kinds


def _each(kind, compare, stored, now, rtol):
    for number, (left, right) in enumerate(zip(stored, now, strict=True), start=1):
        for problem in compare(left, right, rtol):
            yield f"{kind} {number}: {problem}"


def _text_pair(stored, now, rtol):
    texts = [_as_text(value) for value, _ in (stored, now)]
    if all(metadata.get("vae_book", {}).get("table") for _, metadata in (stored, now)):
        texts = map(_cells, texts)
    return text_differences(*texts, rtol)


def _cells(text):
    """Return a table with its cells one bar apart; two spaces or more part them when printed."""
    lines = (re.split(" {2,}", line.strip()) for line in text.splitlines())
    return "\n".join(" | ".join(cells) for cells in lines)


def _as_text(value):
    return value if isinstance(value, str) else json.dumps(value, sort_keys=True)


def text_differences(stored, now, rtol=RTOL):
    """Compare two texts: floats within the tolerance, the rest exactly."""
    stored, now = (text.replace("\N{MINUS SIGN}", "-") for text in (stored, now))
    words = [FLOAT.sub("<float>", text).splitlines() for text in (stored, now)]
    if words[0] != words[1]:
        lines = zip([*words[0], "<end>"], [*words[1], "<end>"], strict=False)
        line = next(number for number, (left, right) in enumerate(lines) if left != right)
        old, new = ([*text.splitlines(), "<end>"][line] for text in (stored, now))
        return [f"line {line + 1} in the file:\n    {old}\n  and in the new run:\n    {new}"]
    pairs = zip(FLOAT.findall(stored), FLOAT.findall(now), strict=True)
    return [
        f"number {count} was {left} and is now {right}: {apart}"
        for count, (left, right) in enumerate(pairs, start=1)
        if (apart := _apart(left, right, rtol))
    ]


def _apart(left, right, rtol):
    """Say how far two printed floats are apart, or nothing if that is allowed."""
    a, b = (float(text.replace(",", "")) for text in (left, right))
    greater = max(abs(a), abs(b))
    unit = min(_unit(left), _unit(right))
    # A unit of `0.5` is a fifth of it: short numbers are settings, and get no such slack.
    slack = 1.0001 * unit if unit <= 0.01 * greater else 0.0
    if math.isclose(a, b, rel_tol=rtol, abs_tol=slack):
        return None
    return f"relative difference {abs(a - b) / greater:.1e}, allowed {rtol:.1e}"


def _unit(text):
    """Return one unit of the last printed digit: 0.01 for `3.14`, 1e-9 for `1.4e-08`."""
    digits, _, exponent = text.lower().partition("e")
    return 10.0 ** (int(exponent or 0) - len(digits.partition(".")[2]))


def _picture(stored, now, rtol):
    """Compare two pictures by what was drawn."""
    prints = []
    for side, (png, metadata) in {"the file": stored, "the new run": now}.items():
        drawn = metadata.get("vae_book", {}).get("fingerprint")
        if drawn is None:
            return [f"{side} does not say what was drawn: show it with vae_lib.figures.show"]
        if is_blank(png, drawn):
            return [f"the picture in {side} is blank"]
        prints.append(drawn)
    return list(_drawn_differently(*prints, max(rtol, FIGURE_RTOL), "figure"))


def is_blank(png, drawn):
    """Tell whether a picture has one colour only, or nothing drawn on its axes."""
    artists = [*drawn["artists"], *(a for axes in drawn["axes"] for a in axes["artists"])]
    if not any(artist.get("n", 1) for artist in artists):
        return True
    image = Image.open(io.BytesIO(base64.b64decode(png))).convert("RGB")
    return all(least == greatest for least, greatest in image.getextrema())


def _drawn_differently(stored, now, rtol, where):
    """Walk through two fingerprints together and say where they part."""
    if type(stored) is not type(now) and not (is_number(stored) and is_number(now)):
        yield f"{where} was {stored!r} and is now {now!r}"
    elif isinstance(stored, dict):
        for key in sorted({*stored, *now}):
            if key in stored and key in now:
                yield from _drawn_differently(stored[key], now[key], rtol, f"{where}, {key}")
            else:
                yield f"{where}: {key} is only in {'the file' if key in stored else 'the new run'}"
    elif isinstance(stored, list) and len(stored) != len(now):
        yield f"{where}: {len(stored)} in the file, {len(now)} in the new run"
    elif isinstance(stored, list):
        # A value near zero counts for as much as the picture shows of it.
        greatest = max((abs(v) for v in [*stored, *now] if is_number(v)), default=0.0)
        for index, (left, right) in enumerate(zip(stored, now, strict=True)):
            if not (is_number(left) and is_number(right)):
                yield from _drawn_differently(left, right, rtol, f"{where} {index}")
            elif abs(left - right) > rtol * greatest:
                share = f"apart by {abs(left - right) / greatest:.1e} of the greatest"
                yield f"{where} {index} was {left} and is now {right}: {share}, allowed {rtol:.1e}"
                return  # the rest of a list that differs says no more
    elif isinstance(stored, str):
        yield from (f"{where}: {problem}" for problem in text_differences(stored, now, rtol))
    elif stored != now:
        yield f"{where} was {stored!r} and is now {now!r}"


def is_number(value):
    return isinstance(value, int | float) and not isinstance(value, bool)
