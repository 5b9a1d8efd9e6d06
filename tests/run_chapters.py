"""Run the chapters and store their outputs: `python -m tests.run_chapters [--fresh] [file ...]`.

A stored output that the tests call equal to the new one is kept, and the file is written in one
canonical form; so running again changes nothing. `--fresh` takes every new output, which is what a
change of style in the figures needs. A chapter that raises is left as it was. A picture that
a page outside the chapters shows is copied to where that page finds it (PICTURES).
"""

import argparse
import base64
import hashlib
import os
import re
import sys
from pathlib import Path

import nbformat
from jupyter_client.manager import AsyncKernelManager
from nbclient import NotebookClient
from nbclient.exceptions import CellExecutionError, CellTimeoutError, DeadKernelError
from nbval.plugin import coalesce_streams

from book import build
from tests import surroundings
from tests.notebook_outputs import differences
from tests.notebook_plugin import KERNEL, Kernels, cell_rtol, code_cells, kernel_options

ROOT = Path(__file__).parents[1]
CHAPTERS = ROOT / "chapters"
PICTURES = {
    "fig-code-walk": ROOT / "book" / "_static" / "walk.png",
    "fig-architecture-network": ROOT / "book" / "_static" / "network.png",
}
CELL_TIMEOUT = 300  # seconds, as in the tests
NOTEBOOK_METADATA = {
    "kernelspec": {
        "display_name": "Python 3 (ipykernel)",
        "language": "python",
        "name": "python3",
    },
    "language_info": {"name": "python"},
}
LABEL = re.compile(r"\([a-z0-9-]+\)=\n")  # a chapter begins with one
CELL_METADATA = ["mystnb", "tags", "vae_book"]
# What pages fold for a tag, JupyterLab folds for these.
FOLDED = {
    "hide-input": {"source_hidden": True},
    "hide-output": {"outputs_hidden": True},
    "hide-cell": {"source_hidden": True, "outputs_hidden": True},
    "remove-cell": {"source_hidden": True},
}


def canonical(nb):
    """Return the one text in which a notebook is stored; nothing in it depends on who saved it."""
    nb = nbformat.from_dict(nb)
    nb.nbformat, nb.nbformat_minor = 4, 5
    nb.metadata = nbformat.from_dict(NOTEBOOK_METADATA)
    if nb.cells and LABEL.match(nb.cells[0].source):
        _put_library_cells(nb)
    taken = set()
    for index, cell in enumerate(nb.cells):
        if cell.get("id") in {None, *taken}:
            cell.id = hashlib.sha256(f"{index} {cell.source}".encode()).hexdigest()[:8]
        taken.add(cell.id)
        kept = {name: cell.metadata[name] for name in CELL_METADATA if cell.metadata.get(name)}
        cell.metadata = nbformat.from_dict(kept)
        if cell.cell_type == "code":
            for tag in kept.get("tags", []):
                cell.metadata.setdefault("jupyter", {}).update(FOLDED.get(tag, {}))
            cell.outputs = [_canonical_output(output, cell) for output in _joined(cell.outputs)]
    nbformat.validate(nb)
    return nbformat.writes(nb).rstrip("\n") + "\n"


def _put_library_cells(nb):
    """Put the cells that say how to get the library below the first cell of a chapter."""
    counts = {cell.id: cell.get("execution_count") for cell in nb.cells if "id" in cell}
    nb.cells = [cell for cell in nb.cells if cell.get("id") not in build.LIBRARY_CELLS]
    note, check = map(nbformat.from_dict, build.library_cells(build.repository({})))
    check.execution_count = counts.get(check.id)
    ran = [cell for cell in code_cells(nb) if cell.execution_count]
    if ran and check.execution_count is None:  # it is new, and those below move down by one
        check.execution_count = 1
        for cell in ran:
            cell.execution_count += 1
    nb.cells[1:1] = [note, check]


def _joined(outputs):
    return coalesce_streams(nbformat.from_dict(list(outputs)))


def _canonical_output(output, cell):
    output.pop("transient", None)
    if output.output_type == "execute_result":
        output.execution_count = cell.execution_count
    if output.output_type == "error":
        output.traceback = [f"{output.ename}: {output.evalue}"]  # the rest holds paths and colours
    return output


def execute(nb, folder):
    """Run a notebook in the current environment, in its own folder, with the tests' settings."""
    surroundings.prepare()
    kernel = AsyncKernelManager(kernel_name=KERNEL, kernel_spec_manager=Kernels())
    client = NotebookClient(nb, km=kernel, timeout=CELL_TIMEOUT)
    options = kernel_options(folder)
    client.extra_arguments = options.pop("extra_arguments")
    # nbclient shuts down only the kernels that it made, unless told to.
    client.execute(cleanup_kc=True, **options)


class FileChanged(Exception):
    """Someone saved the notebook while it ran, and writing it would lose what they saved."""


def run(path, fresh=False):
    """Run the notebook in a file and write it back; return how many cells have new outputs."""
    before = path.read_bytes()
    stored = nbformat.reads(before.decode(), as_version=4)
    new = nbformat.from_dict(stored)
    execute(new, path.parent)
    if path.read_bytes() != before:
        raise FileChanged("it was saved while it ran; run it again")
    changed = 0
    for old_cell, cell in zip(code_cells(stored), code_cells(new), strict=True):
        if differences(old_cell.outputs, cell.outputs, cell_rtol(cell)) or fresh:
            changed += 1
        else:
            cell.outputs = old_cell.outputs
    _write(path, canonical(new))
    for name, file in PICTURES.items():
        if png := picture(new, name):
            file.write_bytes(png)
    return changed


def picture(nb, name):
    """Return the stored PNG of a named figure, or None if the notebook has none of that name."""
    for cell in code_cells(nb):
        if cell.metadata.get("mystnb", {}).get("figure", {}).get("name") == name:
            return base64.b64decode(cell.outputs[0].data["image/png"])


def _write(path, text):
    """Replace a file whole, so that an interrupted run leaves the old one."""
    if path.read_text(encoding="utf-8") == text:
        return
    beside = path.with_name(f".{path.name}.new")
    beside.write_text(text, encoding="utf-8", newline="\n")
    os.replace(beside, path)


def main(arguments=None):
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("files", nargs="*", type=Path, help="notebooks; all chapters if none")
    parser.add_argument("--fresh", action="store_true", help="keep no stored output")
    options = parser.parse_args(arguments)
    for path in options.files or sorted(CHAPTERS.glob("*.ipynb")):
        print(f"{path}: running, which can take minutes", flush=True)
        try:
            changed = run(path, options.fresh)
        except (CellExecutionError, CellTimeoutError, DeadKernelError, FileChanged) as error:
            # The message of nbclient holds the source of the cell and the traceback.
            print(f"{path}: failed, the file is left as it was\n{error}", file=sys.stderr)
            return 1
        print(f"{path}: {changed or 'no'} {'cell has' if changed == 1 else 'cells have'} changed")
    return 0


if __name__ == "__main__":
    sys.exit(main())
