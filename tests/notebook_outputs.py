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
import hashlib
import io
import itertools
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
# An absolute path: `/home/ada/1.5`, `C:\Users\ada`, `\\host\share`.
PATH = re.compile(r"""(?<![\w.:/\\])(?:[a-z]:[/\\]|\\\\|/)[^\s/\\'"][^\s'"]*""", re.IGNORECASE)


def differences(reference_outputs, new_outputs, rtol=RTOL):
    """Say how the outputs of a cell differ; the list is empty where they agree."""
    found = moves(reference_outputs, new_outputs, rtol)
    return [problem for share, problem in found if share > 1]


def moves(reference_outputs, new_outputs, rtol=RTOL):
    """Yield what moved, as (share of the tolerance, words): infinite for what has none."""
    reference, new = _by_kind(reference_outputs), _by_kind(new_outputs)
    for kind in sorted({*reference, *new}):
        stored, now = reference[kind], new[kind]
        if kind == "stderr":
            for side, texts in {"the file": stored, "the new run": now}.items():
                for text, _ in texts:
                    yield math.inf, f"stderr: {side} has text on stderr:\n{text}"
        elif len(stored) != len(now):
            yield math.inf, f"{kind}: {len(stored)} in the file, {len(now)} in the new run"
        else:
            compare = _picture if kind == "image/png" else _text_pair
            for number, (left, right) in enumerate(zip(stored, now, strict=True), start=1):
                for share, problem in compare(left, right, rtol):
                    yield share, f"{kind} {number}: {problem}"


def reduced(outputs):
    """Return outputs without their words and pixels: enough to compare two runs with `apart`.

    Of each text a hash of its words and its floats are left, of each picture what was drawn,
    texts in it reduced as well. So nothing of a path or a name is kept, whatever was printed: all
    absolute paths count as the same, because each machine has its own.
    """
    kinds = _by_kind(outputs)
    drawn = [metadata.get("vae_book", {}).get("fingerprint") for _, metadata in kinds["image/png"]]
    texts = {kind: list(map(_text, found)) for kind, found in kinds.items() if kind != "image/png"}
    return {"texts": _bare(texts), "pictures": _bare(drawn)}


def _bare(value):
    if isinstance(value, str):
        words, floats = _parted(PATH.sub("<path>", value))
        digest = hashlib.sha256(words.encode()).hexdigest()[:16]
        return {"words": f"#{digest}", "floats": floats}  # behind a # nothing counts as a float
    if isinstance(value, dict):
        return {key: _bare(item) for key, item in value.items()}
    return [_bare(item) for item in value] if isinstance(value, list) else value


def apart(one, other, rtol=RTOL):
    """Return how far apart two reduced outputs are, as a share of the tolerance."""
    texts = _walk(one["texts"], other["texts"], rtol, "text")
    pictures = _walk(one["pictures"], other["pictures"], max(rtol, FIGURE_RTOL), "picture")
    return max((share for share, _ in itertools.chain(texts, pictures)), default=0.0)


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


def _text_pair(stored, now, rtol):
    both = all(metadata.get("vae_book", {}).get("table") for _, metadata in (stored, now))
    texts = [_text(side) if both else _as_text(side[0]) for side in (stored, now)]
    yield from _text_moves(*texts, rtol)


def _text(output):
    """Return an output as text, a table with its cells one bar apart."""
    value, metadata = output
    text = _as_text(value)
    return _cells(text) if metadata.get("vae_book", {}).get("table") else text


def _cells(text):
    """Return a table with its cells one bar apart; two spaces or more part them when printed."""
    lines = (re.split(" {2,}", line.strip()) for line in text.splitlines())
    return "\n".join(" | ".join(cells) for cells in lines)


def _as_text(value):
    return value if isinstance(value, str) else json.dumps(value, sort_keys=True)


def text_differences(stored, now, rtol=RTOL):
    """Compare two texts: floats within the tolerance, the rest exactly."""
    return [problem for share, problem in _text_moves(stored, now, rtol) if share > 1]


def _parted(text):
    """Return the words of a text, its floats cut out, and the floats."""
    text = text.replace("\N{MINUS SIGN}", "-")
    return FLOAT.sub("<float>", text), FLOAT.findall(text)


def _text_moves(stored, now, rtol):
    (words, floats), (new_words, new_floats) = _parted(stored), _parted(now)
    if words.splitlines() != new_words.splitlines():
        lines = zip(*([*text.splitlines(), "<end>"] for text in (words, new_words)), strict=False)
        line = next(number for number, (left, right) in enumerate(lines) if left != right)
        old, new = ([*text.splitlines(), "<end>"][line] for text in (stored, now))
        yield math.inf, f"line {line + 1} in the file:\n    {old}\n  and in the new run:\n    {new}"
        return
    for count, (left, right) in enumerate(zip(floats, new_floats, strict=True), start=1):
        if share := _share(left, right, rtol):
            yield (
                share,
                f"number {count} was {left} and is now {right}: {_relative(left, right, rtol)}",
            )


def _share(left, right, rtol):
    """Return how much of what is allowed two printed floats are apart."""
    a, b = (float(text.replace(",", "")) for text in (left, right))
    if a == b:
        return 0.0
    greater = max(abs(a), abs(b))
    unit = min(_unit(left), _unit(right))
    # A unit of `0.5` is a fifth of it: short numbers are settings, and get no such slack.
    slack = 1.0001 * unit if unit <= 0.01 * greater else 0.0
    allowed = max(rtol * greater, slack)
    return abs(a - b) / allowed if allowed else math.inf


def _relative(left, right, rtol):
    a, b = (float(text.replace(",", "")) for text in (left, right))
    return f"relative difference {abs(a - b) / max(abs(a), abs(b)):.1e}, allowed {rtol:.1e}"


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
            yield math.inf, f"{side} does not say what was drawn: use vae_lib.figures.show"
            return
        if is_blank(png, drawn):
            yield math.inf, f"the picture in {side} is blank"
            return
        prints.append(drawn)
    yield from _walk(*prints, max(rtol, FIGURE_RTOL), "figure")


def is_blank(png, drawn):
    """Tell whether a picture has one colour only, or nothing drawn on its axes."""
    artists = [*drawn["artists"], *(a for axes in drawn["axes"] for a in axes["artists"])]
    if not any(artist.get("n", 1) for artist in artists):
        return True
    image = Image.open(io.BytesIO(base64.b64decode(png))).convert("RGB")
    return all(least == greatest for least, greatest in image.getextrema())


def _walk(stored, now, rtol, where):
    """Walk through two fingerprints together and say where they part."""
    if type(stored) is not type(now) and not (is_number(stored) and is_number(now)):
        yield math.inf, f"{where} was {stored!r} and is now {now!r}"
    elif isinstance(stored, dict):
        for key in sorted({*stored, *now}):
            if key in stored and key in now:
                yield from _walk(stored[key], now[key], rtol, f"{where}, {key}")
            else:
                side = "the file" if key in stored else "the new run"
                yield math.inf, f"{where}: {key} is only in {side}"
    elif isinstance(stored, list) and len(stored) != len(now):
        yield math.inf, f"{where}: {len(stored)} in the file, {len(now)} in the new run"
    elif isinstance(stored, list):
        yield from _walk_list(stored, now, rtol, where)
    elif isinstance(stored, str):
        for share, problem in _text_moves(stored, now, rtol):
            yield share, f"{where}: {problem}"
    elif stored != now:
        yield math.inf, f"{where} was {stored!r} and is now {now!r}"


def _walk_list(stored, now, rtol, where):
    """Compare two lists as long; of all their numbers, name the one that moved most."""
    # A value near zero counts for as much as the picture shows of it.
    greatest = max((abs(v) for v in [*stored, *now] if is_number(v)), default=0.0)
    most = (0.0, "")
    for index, (left, right) in enumerate(zip(stored, now, strict=True)):
        if not (is_number(left) and is_number(right)):
            yield from _walk(left, right, rtol, f"{where} {index}")
        elif left != right and abs(left - right) / (rtol * greatest) > most[0]:
            share = f"apart by {abs(left - right) / greatest:.1e} of the greatest"
            said = f"{where} {index} was {left} and is now {right}: {share}, allowed {rtol:.1e}"
            most = abs(left - right) / (rtol * greatest), said
    if most[0]:
        yield most


def is_number(value):
    return isinstance(value, int | float) and not isinstance(value, bool)
