"""Build the book: `python book/build.py [--output DIR]` leaves it in DIR/_build/html.

Jupyter Book does the work, with warnings as errors, on a copy of the sources. What is added here:

- MathJax comes out of its wheel, so that the pages need no network.
- The address of the repository turns on the buttons that need it, and stands in each chapter where
  it says how to get the library. It is `repository: url:` of `_config.yml`, unless the environment
  variable REPOSITORY gives another (or GitHub Actions does).
- SOLUTIONS=0 leaves the solutions of the exercises out, for those who set them.
- `book/finish.py` puts right what the theme has wrong, and adds links, sizes and weights.
- A page that has moved leaves one behind that leads to it.
- The networks of the pages' widgets are written beside them, out of the recorded weights.
"""

import argparse
import importlib.util
import json
import os
import re
import shutil
import subprocess
import sys
import textwrap
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))  # for who calls this file and not `make`

from book import finish  # noqa: E402

MATHJAX = Path("book", "_static", "mathjax")
WIDGETS = Path("book", "_static", "widgets")
# One file typesets; it loads the fonts always, the rest when a formula or the reader asks for it.
MATHJAX_FILES = [
    "tex-mml-chtml.js",
    "output/chtml/fonts/woff-v2/*.woff",
    "input/tex/extensions/*.js",
    "a11y/*.js",
    "sre/mathmaps/base.json",
    "sre/mathmaps/en.json",
]
# Former addresses of pages, without `.html`, and where each is now. A line stays for ever. The
# notebooks for downloading leave nothing behind: only the buttons of the pages link to them.
MOVED = {
    "chapters/01-architecture": "chapters/02-architecture",
    "chapters/02-loss": "chapters/03-loss",
    "chapters/03-code": "chapters/04-code",
    "chapters/04-output": "chapters/05-output",
    "chapters/05-issues": "chapters/06-issues",
    "chapters/06-exact-models": "chapters/07-exact-models",
    "chapters/07-reparameterization": "chapters/08-reparameterization",
    "chapters/08-likelihoods": "chapters/09-likelihoods",
    "chapters/09-how-good-is-it": "chapters/11-how-good-is-it",
    "chapters/10-bug-museum": "chapters/12-bug-museum",
}
# The script keeps what follows the # of an address; without scripts its beginning opens.
REDIRECT = """<!DOCTYPE html>
<html lang="en">
<head>
<meta charset="utf-8">
<title>{title}</title>
<script>location.replace("{target}" + location.search + location.hash)</script>
<noscript><meta http-equiv="refresh" content="0; url={target}"></noscript>
</head>
<body><a href="{target}">{title}</a></body>
</html>
"""
# The two cells below the first of each chapter are known by these ids.
LIBRARY_CELLS = ("library", "library-check")
# A solution in words; one in code is a cell with the tag hide-cell. Both stand among exercises.
SOLUTION = re.compile(r"<details>\s*<summary>The solution</summary>.*?</details>\s*", re.DOTALL)


def copy_mathjax(folder):
    """Copy what the pages use of MathJax from the installed package into a folder."""
    package = importlib.util.find_spec("mathjax").submodule_search_locations[0]
    source = Path(package, "static", "mathjax", "es5")
    for pattern in MATHJAX_FILES:
        files = sorted(source.glob(pattern))
        if not files:
            raise FileNotFoundError(f"the MathJax package holds no {pattern}")
        for file in files:
            target = folder / file.relative_to(source)
            target.parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(file, target)


def repository(environment=os.environ):
    """Return the address of the repository, or "" if none is known."""
    address = environment.get("REPOSITORY", "")
    if not address and environment.get("GITHUB_REPOSITORY"):
        server = environment.get("GITHUB_SERVER_URL", "https://github.com")
        address = f"{server}/{environment['GITHUB_REPOSITORY']}"
    if not address:
        # Read without a YAML package: those who only run the chapters have none.
        settings = (ROOT / "_config.yml").read_text(encoding="utf-8")
        address = re.search(r"^repository:\n +url: *\"(.*)\"", settings, re.MULTILINE).group(1)
    return address.rstrip("/")


def site_address(address, settings=None):
    """Return where the book will be found, or "" if nobody knows.

    It is `html: baseurl:` of `_config.yml`, or for a repository at GitHub its address on Pages.
    """
    settings = settings or (ROOT / "_config.yml").read_text(encoding="utf-8")
    if given := re.search(r'^ +baseurl: *"(.+)"', settings, re.MULTILINE):
        return given[1]
    at_github = re.fullmatch(r"https://github\.com/([^/]+)/([^/]+)", address)
    return "https://{}.github.io/{}".format(*at_github.groups()) if at_github else ""


def how_to_get_the_library(address):
    """Say it in two sentences."""
    if address:
        return (
            "In Colab, or with this notebook alone in an environment of your own, run "
            f"`%pip install git+{address}` in a cell of its own: a kernel that is running finds "
            "it at once. On Binder, and in a clone after `make lab`, it is there."
        )
    return (
        "Clone the repository of the book. In the clone, `make lab` opens the chapters with all "
        "that they need, and `pip install .` puts the library into an environment of your own."
    )


def library_cells(address):
    """Return the cells that say how to get the library: one folded, one that looks for it."""
    how = how_to_get_the_library(address)
    note = (
        "<details>\n<summary>To run this page: how to get its library</summary>\n\n"
        f"The code imports `vae_lib`, the library of this book. {how}\n\n</details>"
    )
    lines = textwrap.wrap(f"vae_lib is not installed here. {how}", 75, break_on_hyphens=False)
    message = ' "\n        "'.join(lines)
    check = (
        "import importlib.util\n\n"
        'if importlib.util.find_spec("vae_lib") is None:\n'
        f'    raise ModuleNotFoundError(\n        "{message}"\n    )'
    )
    found = {"cell_type": "code", "execution_count": None, "outputs": [], "source": check}
    return [
        {"cell_type": "markdown", "id": LIBRARY_CELLS[0], "metadata": {}, "source": note},
        {**found, "id": LIBRARY_CELLS[1], "metadata": {"tags": ["remove-cell"]}},
    ]


def configuration(address):
    """Return the text of Jupyter Book's configuration."""
    import yaml

    text = (ROOT / "_config.yml").read_text(encoding="utf-8")
    if not address:
        return text
    config = yaml.safe_load(text)
    config["repository"] |= {"url": address}
    config["html"] |= {"use_repository_button": True, "use_issues_button": True}
    config["html"]["baseurl"] = site_address(address)
    config["launch_buttons"] = {
        "binderhub_url": "https://mybinder.org",
        "notebook_interface": "jupyterlab",
    }
    return yaml.safe_dump(config, sort_keys=False)


def without_solutions(cells):
    """Return the cells of a chapter without the solutions of its exercises."""
    kept, among_exercises = [], False
    for cell in cells:
        if cell["cell_type"] == "markdown":
            parts = []
            for part in re.split(r"^(?=## )", "".join(cell["source"]), flags=re.MULTILINE):
                if part.startswith("## "):
                    among_exercises = part.splitlines()[0].strip() == "## Exercises"
                parts.append(SOLUTION.sub("", part) if among_exercises else part)
            cell = cell | {"source": "".join(parts).splitlines(keepends=True)}
        elif among_exercises and "hide-cell" in cell["metadata"].get("tags", []):
            continue
        kept.append(cell)
    return kept


def copy_sources(source, address, solutions=True):
    """Copy what the pages are made of, and write the address into it.

    Args:
        source: the folder to write, made anew.
        address: the address of the repository, or "".
        solutions: whether those of the exercises are kept.

    Raises:
        RuntimeError: a chapter that was saved as no `make run` leaves it.
    """
    shutil.rmtree(source, ignore_errors=True)
    for folder in ("book", "chapters", "tests"):  # a page shows a piece of a test
        leave = shutil.ignore_patterns(".*", "__pycache__")
        shutil.copytree(ROOT / folder, source / folder, ignore=leave, copy_function=shutil.copyfile)
    for path in source.rglob("*"):
        if path.is_dir():
            path.chmod(0o755)  # the checkout's may be read-only
    shutil.copyfile(ROOT / "_toc.yml", source / "_toc.yml")
    (source / "_config.yml").write_text(configuration(address), encoding="utf-8")
    cells = {cell["id"]: cell["source"] for cell in library_cells(address)}
    for path in source.glob("chapters/*.ipynb"):
        nb = json.loads(path.read_text(encoding="utf-8"))
        outputs = [output for cell in nb["cells"] for output in cell.get("outputs", [])]
        if said := sum(output.get("name") == "stderr" for output in outputs):
            raise RuntimeError(
                f"chapters/{path.name} was saved with {said} texts on stderr, as bars and warnings "
                f"leave them: make run ARGS=chapters/{path.name} stores it without"
            )
        for cell in nb["cells"]:
            if cell.get("id") in cells:
                cell["source"] = cells[cell["id"]].splitlines(keepends=True)
        if not solutions:
            nb["cells"] = without_solutions(nb["cells"])
        text = json.dumps(nb, ensure_ascii=False, indent=1) + "\n"
        path.write_text(text, encoding="utf-8")


def redirect(site, former, present):
    """Leave a page at its former address that leads to the present one."""
    page = (site / f"{present}.html").read_text(encoding="utf-8")
    title = re.search(r"<title>\s*(.*?)\s*</title>", page, re.DOTALL).group(1)
    path = site / f"{former}.html"
    target = os.path.relpath(site / f"{present}.html", path.parent).replace(os.sep, "/")
    path.write_text(REDIRECT.format(title=title, target=target), encoding="utf-8")


def output_of(command, environment):
    """Run a command; raise RuntimeError with what it said if it fails."""
    run = subprocess.run(
        command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, encoding="utf-8", env=environment
    )
    if run.returncode:
        raise RuntimeError(run.stdout)


def build(output=ROOT, solutions=True):
    """Build into `output` and return its first page; raise RuntimeError if it fails."""
    source, site = output / "_build" / "source", output / "_build" / "html"
    copy_sources(source, repository(), solutions)
    copy_mathjax(source / MATHJAX)
    # What runs here uses the library beside it, whatever is installed.
    paths = filter(None, [str(ROOT), os.environ.get("PYTHONPATH")])
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(paths)}
    output_of([sys.executable, "-m", "book.export_weights", str(source / WIDGETS)], environment)
    # --all: a page that was built with a warning would not warn again, and so pass, the next time.
    command = [
        sys.executable, "-c", "from jupyter_book.cli.main import main; main()",
        "build", str(source), "-W", "-n", "--keep-going", "--all", "-q",
        "--path-output", str(output),
    ]  # fmt: skip
    try:
        output_of(command, environment)
    except RuntimeError as error:
        raise RuntimeError(str(error).replace(str(source), str(ROOT))) from None
    finish.finish(site, site_address(repository()))
    # Jupyter Book's own says neither what it is nor in which language, and cannot be clicked.
    redirect(site, "index", "book/index")
    for former, present in MOVED.items():
        redirect(site, former, present)
    return site / "index.html"


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--output", type=Path, default=ROOT, help="the folder to build in")
    output = parser.parse_args().output.resolve()
    try:
        first = build(output, os.environ.get("SOLUTIONS") != "0")
    except RuntimeError as error:
        sys.exit(f"{error}\nthe book was not built")
    print(f"The book is built. Open {first} in a browser.")
