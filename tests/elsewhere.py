"""Test the oldest and the newest versions that pyproject.toml allows: `make elsewhere`.

For each, an environment of its own in outputs/elsewhere, and in it the unit tests of the library
and two chapters, by `pytest --vae-report`. At the end a table of what was tried, and how far the
chapters moved from the pinned environment. PyTorch stays that of the Makefile unless --torch names
another: its builds are large.
"""

import argparse
import subprocess
import sys
import tomllib

from tests import compare
from tests.surroundings import ROOT

PLACE = ROOT / "outputs" / "elsewhere"
TESTED = [
    *(f"tests/test_{name}.py" for name in ("data", "distributions", "evaluation", "figures")),
    *(f"tests/test_{name}.py" for name in ("fingerprints", "model", "objectives", "training")),
    "chapters/01-first-vae.ipynb",
    "chapters/12-bug-museum.ipynb",
]
SHOWN = ("torch", "numpy", "matplotlib", "safetensors", "pytest", "ipykernel")


def needed():
    """Return what the library and its tests need, as pyproject.toml has it, without torch."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    lines = [*project["dependencies"], *project["optional-dependencies"]["test"]]
    return [line for line in lines if not line.startswith("torch")]


def environment(name, python, torch):
    """Make an environment; return its Python."""
    folder = PLACE / name
    interpreter = folder / "bin" / "python"
    if not interpreter.exists():
        subprocess.run([python, "-m", "venv", str(folder)], check=True)
    wanted = needed()
    if name.startswith("oldest"):
        wanted = [line.replace(">=", "==") for line in wanted]
    pip = [str(interpreter), "-m", "pip", "-q", "--disable-pip-version-check", "install"]
    upgrade = ["--upgrade", "--upgrade-strategy", "eager"]
    subprocess.run([*pip, *upgrade, f"torch=={torch}", *wanted], check=True)
    return interpreter


def test(name, interpreter):
    """Run the tests; return the report, whether all passed, and the end of what was said."""
    report = PLACE / f"{name}.json"
    command = [str(interpreter), "-m", "pytest", "-q", "-p", "no:cacheprovider", *TESTED]
    done = subprocess.run(
        [*command, f"--vae-report={report}"],
        cwd=ROOT,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        encoding="utf-8",
    )
    return report, done.returncode == 0, "\n".join(done.stdout.splitlines()[-15:])


def main():
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--python", nargs="+", default=[sys.executable], help="interpreters")
    parser.add_argument("--torch", default="2.13.0", help="the version of PyTorch")
    parser.add_argument("--only", choices=("oldest", "newest"), help="one end of the bounds")
    asked = parser.parse_args()
    PLACE.mkdir(parents=True, exist_ok=True)
    reports = {"pinned": test("pinned", sys.executable)}
    for python in asked.python:
        version = subprocess.check_output([python, "-c", VERSION], encoding="utf-8").strip()
        for end in (asked.only,) if asked.only else ("oldest", "newest"):
            name = f"{end}-{version}"
            reports[name] = test(name, environment(name, python, asked.torch))
    rows(reports)
    sys.exit(not all(passed for _, passed, _ in reports.values()))


VERSION = "import sys; print('%d.%d' % sys.version_info[:2])"


def rows(reports):
    """Print a row for each environment, and what failed."""
    print("| | Python | " + " | ".join(SHOWN) + " | outcome | moved at most |")
    print("|---" * (len(SHOWN) + 4) + "|")
    pinned = compare.read(reports["pinned"][0])
    for name, (file, passed, said) in reports.items():
        found = compare.read(file)
        versions = [found["environment"][package] for package in ("python", *SHOWN)]
        moved, _ = compare.compare(pinned, found)
        outcome = "passed" if passed else "FAILED"
        share = f"{max(moved.values(), default=0.0):.2f}"
        print(f"| {name} | " + " | ".join([*map(str, versions), outcome, share]) + " |")
        if not passed:
            print(said, file=sys.stderr)


if __name__ == "__main__":
    main()
