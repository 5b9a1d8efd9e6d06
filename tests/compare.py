"""Hold two environments against each other, by the reports of `pytest --vae-report FILE`.

    python -m tests.compare A.json B.json

Says which cells moved between the two, by how much of their tolerance. Exit status: 0 alike, 1
moved, 2 not comparable.
"""

import argparse
import json
import math
import sys
from pathlib import Path

from tests.notebook_outputs import apart
from tests.report import FORMAT

ALIKE, MOVED, NOT_COMPARABLE = 0, 1, 2
SHOWN = 10


class NotComparable(Exception):
    """Two files that say nothing about each other."""


def read(path):
    """Return a report, or raise `NotComparable`."""
    try:
        report = json.loads(Path(path).read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        reason = getattr(error, "strerror", None) or "it is not JSON"
        raise NotComparable(f"{path}: {reason}; expected a file of pytest --vae-report") from None
    if not isinstance(report, dict) or report.get("format") != FORMAT:
        raise NotComparable(
            f"{path}: expected a report of format {FORMAT}; write it with pytest --vae-report"
        )
    return report


def compare(one, other):
    """Return how far each cell moved, and the tests that ended otherwise.

    Raises:
        NotComparable: the reports are of two versions of the book, or have no test in common.
    """
    both = one["tests"].keys() & other["tests"].keys()
    if not both:
        raise NotComparable("no test is in both reports; run the same files in both environments")
    cells = one["cells"].keys() & other["cells"].keys()
    changed = [n for n in cells if one["cells"][n]["source"] != other["cells"][n]["source"]]
    if one["book"] != other["book"] or changed:
        raise NotComparable(
            "the reports are of two versions of the book; test the same checkout in both"
        )
    moved = {
        name: apart(*(report["cells"][name]["outputs"] for report in (one, other)), rtol)
        for name in cells
        for rtol in [one["cells"][name]["rtol"]]
    }
    outcomes = {
        name: (one["tests"][name], other["tests"][name])
        for name in both
        if one["tests"][name] != other["tests"][name]
    }
    return moved, outcomes


def describe(report):
    """Name an environment in a line."""
    found = report["environment"]
    names = {"python": "Python", "torch": "torch", "numpy": "NumPy", "matplotlib": "matplotlib"}
    versions = ", ".join(f"{word} {found[name]}" for name, word in names.items())
    arithmetic = ", ".join(found[name] for name in ("system", "processor", "instruction set"))
    return f"{versions}; {arithmetic}, threads: {found['threads']}"


def show(moved):
    for name, share in moved:
        words = f"{share:.2f} of the tolerance" if math.isfinite(share) else "other words"
        print(f"  {name}: {words}")


def main(arguments=None):
    """Compare two files; return the exit status."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("one", metavar="A.json")
    parser.add_argument("other", metavar="B.json")
    parser.add_argument(
        "--within",
        type=float,
        default=1.0,
        metavar="SHARE",
        help="alike is what moved by at most this share of its tolerance: 1, or 0 for not at all",
    )
    asked = parser.parse_args(arguments)
    try:
        one, other = read(asked.one), read(asked.other)
        moved, outcomes = compare(one, other)
    except NotComparable as error:
        print(f"not comparable: {error}", file=sys.stderr)
        return NOT_COMPARABLE
    print(f"A: {describe(one)}\nB: {describe(other)}")
    both = one["tests"].keys() & other["tests"].keys()
    alone = one["tests"].keys() ^ other["tests"].keys()
    print(f"in both: {len(both)} tests, {len(moved)} of them cells; in one only: {len(alone)}")
    for name, (here, there) in outcomes.items():
        print(f"  {name}: {here} in A, {there} in B")
    order = sorted(((n, s) for n, s in moved.items() if s), key=lambda item: (-item[1], item[0]))
    beyond = [(name, share) for name, share in order if share > asked.within]
    show(beyond)
    if less := order[len(beyond) :]:
        print(f"{len(less)} cells moved, and not beyond; most of all")
        show(less[:SHOWN])
    if beyond or outcomes:
        print(f"moved: {len(beyond)} cells beyond {asked.within:g} of the tolerance")
        return MOVED
    print("alike")
    return ALIKE


if __name__ == "__main__":
    sys.exit(main())
