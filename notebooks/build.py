"""Build the notebooks: tutorial/en/NN_*.md -> notebooks/NN_*.ipynb, executed, with their outputs, and the Chinese ones.

One direction only: the Markdown is the source, a notebook is a product, and nobody edits it by hand. Built twice on
one machine, a notebook is the same but for the times it prints. A Chinese page has the code cells of the English one,
byte for byte, so tutorial/zh/NN_*.md + the outputs of the English run -> notebooks/zh/NN_*.ipynb, without a second run.

Example:
    $ python notebooks/build.py                  # all pages, about seven minutes on two CPU cores
    $ python notebooks/build.py 01 03_engine     # those whose names begin so
    $ python notebooks/build.py --words          # runs nothing: new words, and the outputs of code that did not change
    $ python notebooks/build.py --stamps         # which English version each Chinese page should say it follows
"""

from __future__ import annotations

import hashlib
import os
import re
import sys
import tempfile
import time
from pathlib import Path

import jupytext
import nbclient
import nbformat

ROOT = Path(__file__).resolve().parents[1]
TUTORIAL = ROOT / "tutorial"
NOTEBOOKS = ROOT / "notebooks"
CELL_SECONDS = 300  # a cell that takes longer hangs
METADATA = {
    "kernelspec": {"display_name": "Python 3", "language": "python", "name": "python3"},
    "language_info": {"name": "python"},
}


class Mismatch(Exception):
    """Two notebooks that must have the same code do not."""


def main(arguments: list[str]) -> int:
    """Build the named pages, or all; return the exit status."""
    options = {name for name in arguments if name.startswith("--")}
    names = [name for name in arguments if name not in options]
    found = sorted((TUTORIAL / "en").glob("[0-9][0-9]_*.md"))
    pages = [page for page in found if not names or any(page.stem.startswith(name) for name in names)]
    unknown = [name for name in names if not any(page.stem.startswith(name) for page in found)]
    if unknown or not pages or options - {"--words", "--stamps"}:
        named = ", ".join(page.stem for page in found)
        print(f"no such page: {', '.join(unknown) or options}; there are {named}", file=sys.stderr)
        return 2
    try:
        for page in pages:
            started = time.monotonic()
            if "--stamps" in options:
                print(f"{page.stem}  follows: {stamp(page)}")
                continue
            _build(page, words="--words" in options)
            print(f"{page.stem}: {time.monotonic() - started:.0f} seconds")
    except nbclient.exceptions.CellExecutionError as error:
        print(f"{page.relative_to(ROOT)}: a cell failed\n{error}", file=sys.stderr)
        return 1
    except Mismatch as error:
        print(f"{page.relative_to(ROOT)}: {error}", file=sys.stderr)
        return 1
    return 0


def _build(page: Path, *, words: bool) -> None:
    place = notebook_of(page)
    told = read(page)
    english = with_outputs(told, nbformat.read(str(place), as_version=4)) if words else executed(told)
    nbformat.write(english, place)
    chinese = TUTORIAL / "zh" / page.name
    if chinese.exists():
        notebook_of(chinese).parent.mkdir(exist_ok=True)
        nbformat.write(with_outputs(read(chinese), english), notebook_of(chinese))


def notebook_of(page: Path) -> Path:
    """Return where a page's notebook is: notebooks/ for English, notebooks/zh/ for Chinese."""
    folder = NOTEBOOKS if page.parent.name == "en" else NOTEBOOKS / page.parent.name
    return folder / f"{page.stem}.ipynb"


def stamp(page: Path) -> str:
    """Return what a translation writes into its first lines to say which version of a page it follows."""
    return hashlib.sha256(page.read_bytes()).hexdigest()[:12]


def read(page: Path) -> nbformat.NotebookNode:
    """Return a page as a notebook without outputs, the same every time it is read."""
    notebook = jupytext.read(page)
    # Without Jupytext's own entries and the version of Python: they say nothing and would change with every machine.
    notebook.metadata = METADATA
    seen: dict[str, int] = {}
    for cell in notebook.cells:
        cell.metadata = {}
        if cell.cell_type == "markdown":
            cell.source = _seen_from_notebook(cell.source, page)
        # Jupytext draws random ids. Named after its text, an untouched cell keeps its id when others come and go.
        digest = hashlib.sha256(cell.source.encode()).hexdigest()[:8]
        seen[digest] = seen.get(digest, 0) + 1
        cell.id = f"{digest}-{seen[digest]}"
    return notebook


def _seen_from_notebook(text: str, page: Path) -> str:
    """Return a page's text with its links as they must be beside the notebook; pages become notebooks."""

    def moved(match: re.Match) -> str:
        target = Path(os.path.normpath(page.parent / match[1]))
        if target.parent.parent == TUTORIAL and re.match(r"\d\d_\w+\.md$", target.name):
            target = notebook_of(target)
        return f"]({Path(os.path.relpath(target, notebook_of(page).parent)).as_posix()}{match[2] or ''})"

    return re.sub(r"\]\((?!\w+:)([^)#\s]+)(#[^)\s]*)?\)", lambda match: moved(match), text.replace("\r", ""))


def with_outputs(notebook: nbformat.NotebookNode, ran: nbformat.NotebookNode) -> nbformat.NotebookNode:
    """Give a notebook the outputs of another one with the same code.

    Raises:
        Mismatch: the code differs; the message names the first cell that does.
    """
    codes, outputs = ([cell for cell in each.cells if cell.cell_type == "code"] for each in (notebook, ran))
    for number, (cell, other) in enumerate(zip(codes, outputs, strict=False), start=1):
        if cell.source != other.source:
            raise Mismatch(f"code cell {number} is not the one that was run:\n{cell.source}")
        cell.outputs, cell.execution_count = other.outputs, other.execution_count
    if len(codes) != len(outputs):
        raise Mismatch(f"{len(codes)} code cells, {len(outputs)} were run")
    return notebook


def executed(notebook: nbformat.NotebookNode) -> nbformat.NotebookNode:
    """Run all cells in a new kernel and keep what they show.

    Raises:
        nbclient.exceptions.CellExecutionError: a cell failed; the message holds the cell and its traceback.
    """
    with tempfile.TemporaryDirectory() as directory:  # what a page writes goes with it
        client = nbclient.NotebookClient(
            notebook,
            kernel_name=METADATA["kernelspec"]["name"],
            timeout=CELL_SECONDS,
            coalesce_streams=True,  # how text is cut into messages depends on the moment
            record_timing=False,
            resources={"metadata": {"path": directory}},
        )
        client.execute()
    notebook.metadata = METADATA  # the kernel adds its versions
    for cell in notebook.cells:
        if cell.cell_type == "code":
            # TensorFlow's notes about the machine: they differ from one to the next, and teach nothing.
            cell.outputs = [output for output in cell.outputs if output.get("name") != "stderr"]
    return notebook


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
