"""Build the notebooks: tutorial/en/NN_*.md -> notebooks/NN_*.ipynb, executed, with their outputs.

One direction only: the Markdown is the source, a notebook is a product, and nobody edits it by hand. Built twice on
one machine, a notebook is the same but for the times it prints.

Example:
    $ python notebooks/build.py                  # all pages, about two minutes on two CPU cores
    $ python notebooks/build.py 01 03_engine     # those whose names begin so
"""

from __future__ import annotations

import hashlib
import re
import sys
import tempfile
import time
from pathlib import Path

import jupytext
import nbclient
import nbformat

ROOT = Path(__file__).resolve().parents[1]
PAGES = ROOT / "tutorial" / "en"
NOTEBOOKS = ROOT / "notebooks"
CELL_SECONDS = 300  # a cell that takes longer hangs
METADATA = {
    "kernelspec": {"display_name": "Python 3", "language": "python", "name": "python3"},
    "language_info": {"name": "python"},
}


def main(names: list[str]) -> int:
    """Build the named pages, or all; return the exit status."""
    found = sorted(PAGES.glob("[0-9][0-9]_*.md"))
    pages = [page for page in found if not names or any(page.stem.startswith(name) for name in names)]
    unknown = [name for name in names if not any(page.stem.startswith(name) for page in found)]
    if unknown or not pages:
        named = ", ".join(page.stem for page in found)
        print(f"no such page: {', '.join(unknown)}; there are {named}", file=sys.stderr)
        return 2
    for page in pages:
        started = time.monotonic()
        try:
            notebook = executed(read(page))
        except nbclient.exceptions.CellExecutionError as error:
            print(f"{page.relative_to(ROOT)}: a cell failed\n{error}", file=sys.stderr)
            return 1
        nbformat.write(notebook, NOTEBOOKS / f"{page.stem}.ipynb")
        print(f"{page.stem}: {time.monotonic() - started:.0f} seconds")
    return 0


def read(page: Path) -> nbformat.NotebookNode:
    """Return a page as a notebook without outputs, the same every time it is read."""
    notebook = jupytext.read(page)
    # Without Jupytext's own entries and the version of Python: they say nothing and would change with every machine.
    notebook.metadata = METADATA
    seen: dict[str, int] = {}
    for cell in notebook.cells:
        cell.metadata = {}
        if cell.cell_type == "markdown":
            cell.source = _from_notebooks(cell.source)
        # Jupytext draws random ids. Named after its text, an untouched cell keeps its id when others come and go.
        digest = hashlib.sha256(cell.source.encode()).hexdigest()[:8]
        seen[digest] = seen.get(digest, 0) + 1
        cell.id = f"{digest}-{seen[digest]}"
    return notebook


def _from_notebooks(text: str) -> str:
    """Return a page's text with its links as they must be beside the notebooks: to these, to pictures, and to the root."""
    text = text.replace("](../pictures/", "](../tutorial/pictures/").replace("](../../", "](../")
    return re.sub(r"\]\((\d\d_\w+)\.md\)", r"](\1.ipynb)", text)


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
