"""Build the book: `python book/build.py [--output DIR]` leaves it in DIR/_build/html.

Jupyter Book does the work, with warnings as errors. What is added here: MathJax comes out of its
wheel, so that the pages need no network; and the address of the repository, if the environment
variable REPOSITORY gives one (or GitHub Actions does), turns on the buttons that need it.
"""

import argparse
import importlib.util
import os
import shutil
import subprocess
import sys
from pathlib import Path

import yaml

ROOT = Path(__file__).resolve().parents[1]
MATHJAX = ROOT / "book" / "_static" / "mathjax"
# One file typesets; it loads the fonts always, the rest when a formula or the reader asks for it.
MATHJAX_FILES = [
    "tex-mml-chtml.js",
    "output/chtml/fonts/woff-v2/*.woff",
    "input/tex/extensions/*.js",
    "a11y/*.js",
    "sre/mathmaps/base.json",
    "sre/mathmaps/en.json",
]
# Jupyter Book's own says neither what it is nor in which language, and cannot be clicked.
FIRST_PAGE = """<!DOCTYPE html>
<html lang="en">
<head>
<meta charset="utf-8">
<title>The VAE book</title>
<meta http-equiv="refresh" content="0; url=book/index.html">
</head>
<body><a href="book/index.html">The VAE book</a></body>
</html>
"""


def copy_mathjax():
    """Copy what the pages use of MathJax from the installed package into the static files."""
    package = importlib.util.find_spec("mathjax").submodule_search_locations[0]
    source = Path(package, "static", "mathjax", "es5")
    for pattern in MATHJAX_FILES:
        files = sorted(source.glob(pattern))
        if not files:
            raise FileNotFoundError(f"the MathJax package holds no {pattern}")
        for file in files:
            target = MATHJAX / file.relative_to(source)
            if not target.exists() or target.stat().st_size != file.stat().st_size:
                target.parent.mkdir(parents=True, exist_ok=True)
                shutil.copyfile(file, target)


def repository():
    """Return the address of the repository, or "" if none is known."""
    address = os.environ.get("REPOSITORY", "")
    if not address and os.environ.get("GITHUB_REPOSITORY"):
        server = os.environ.get("GITHUB_SERVER_URL", "https://github.com")
        address = f"{server}/{os.environ['GITHUB_REPOSITORY']}"
    return address.rstrip("/")


def configuration(output):
    """Return the path of the configuration to build with."""
    path = ROOT / "_config.yml"
    address = repository()
    if not address:
        return path
    config = yaml.safe_load(path.read_text(encoding="utf-8"))
    config["repository"] = {"url": address, "branch": "main"}
    config["html"] |= {"use_repository_button": True, "use_issues_button": True}
    config["launch_buttons"] = {
        "binderhub_url": "https://mybinder.org",
        "notebook_interface": "jupyterlab",
    }
    written = output / "_build" / "config.yml"
    written.parent.mkdir(parents=True, exist_ok=True)
    written.write_text(yaml.safe_dump(config, sort_keys=False), encoding="utf-8")
    return written


def build(output=ROOT):
    """Build into `output` and return its first page; raise RuntimeError if it fails."""
    copy_mathjax()
    # --all: a page that was built with a warning would not warn again, and so pass, the next time.
    command = [
        sys.executable, "-c", "from jupyter_book.cli.main import main; main()",
        "build", str(ROOT), "-W", "-n", "--keep-going", "--all", "-q",
        "--path-output", str(output), "--config", str(configuration(output)),
    ]  # fmt: skip
    run = subprocess.run(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
    if run.returncode:
        raise RuntimeError(run.stdout)
    first = output / "_build" / "html" / "index.html"
    first.write_text(FIRST_PAGE, encoding="utf-8")
    return first


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--output", type=Path, default=ROOT, help="the folder to build in")
    output = parser.parse_args().output.resolve()
    try:
        first = build(output)
    except RuntimeError as error:
        sys.exit(f"{error}\nthe book was not built")
    print(f"The book is built. Open {first} in a browser.")
