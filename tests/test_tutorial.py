"""The tutorial's words: every page complete, its program grows by diffs, and the Chinese pages follow the English ones.

Nothing here runs a page: `test_notebooks.py` and `pytest --nbval notebooks` do. The tests by hand run the programs of the diffs.
"""

from __future__ import annotations

import ast
import importlib.util
import re
import subprocess
import sys
from pathlib import Path

import pytest

nbformat = pytest.importorskip("nbformat")
pytest.importorskip("jupytext")
pytest.importorskip("nbclient")

ROOT = Path(__file__).resolve().parents[1]
TUTORIAL = ROOT / "tutorial"
ENGLISH = sorted((TUTORIAL / "en").glob("[0-9][0-9]_*.md"))
CHINESE = sorted((TUTORIAL / "zh").glob("[0-9][0-9]_*.md"))
TRANSLATED = ("keras.md", "pytorch.md", "traps.md")
OTHERS = [TUTORIAL / name for name in ("README.md", "glossary.md", *TRANSLATED, *(f"zh/{name}" for name in TRANSLATED))]
SECTIONS = {
    "en": [
        "What you'll do",
        "What you'll learn",
        "What you need",
        "In practice",
        "See that it holds",
        "Exercises",
        "Go on",
    ],
    "zh": ["你要做的事", "你会学到", "需要什么", "实践中", "验证结论", "练习", "下一步"],
}
INVARIANTS = ("same weights: True", "same order: True", "exact metrics: True", "replicas in sync: True")
WITHOUT_PROGRAM = {"00_why", "06_workers", "10_scale"}  # it comes later; it starts several times; nothing is trained
FENCE = re.compile(r"^```.*?^```$", re.M | re.S)

each_page = pytest.mark.parametrize("page", ENGLISH + CHINESE, ids=lambda page: f"{page.parent.name}-{page.stem}")
each_english = pytest.mark.parametrize("page", ENGLISH, ids=lambda page: page.stem)
each_chinese = pytest.mark.parametrize("page", CHINESE, ids=lambda page: page.stem)
each_text = pytest.mark.parametrize(
    "page", ENGLISH + CHINESE + OTHERS, ids=lambda page: str(page.relative_to(TUTORIAL).with_suffix(""))
)


def _build():
    spec = importlib.util.spec_from_file_location("build_notebooks", ROOT / "notebooks" / "build.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def _prose(page: Path) -> str:
    return FENCE.sub("", page.read_text())


def _headings(page: Path) -> list[tuple[int, str]]:
    return [(len(marks), text) for marks, text in re.findall(r"^(#+) (.*)$", _prose(page), re.M)]


# ---- every page


@each_page
def test_page_has_its_sections_in_order(page):
    wanted = SECTIONS[page.parent.name]
    assert [text for _, text in _headings(page) if text in wanted] == wanted


@each_page
def test_page_has_three_exercises_and_a_question(page):
    """Each exercise has a cell that `nbval` runs, and an answer that stays folded; one more folded answer is the question's."""
    text, heading = page.read_text(), "Exercises" if page.parent.name == "en" else "练习"
    exercises = re.split(r"^\*\*(\d)\.\*\*", text.split(f"\n## {heading}\n")[1].split("\n## ")[0], flags=re.M)[1:]
    numbers, parts = exercises[::2], exercises[1::2]
    assert len(numbers) >= 3 and numbers == [str(number) for number in range(1, len(numbers) + 1)]
    assert all("\n```python\n" in part and part.count("<details>") == 1 for part in parts)
    assert text.count("<details>") == text.count("</details>") == len(parts) + 1


def _broken(text: str, folder: Path) -> list[str]:
    links = [link for link in re.findall(r"\]\(([^)\s#]+)", text) if "://" not in link]
    return [link for link in links if not (folder / link).exists()]


@each_text
def test_links_lead_to_files(page):
    assert not _broken(page.read_text(), page.parent)


@each_page
def test_links_of_notebooks_lead_to_files(page):
    place = _build().notebook_of(page)
    cells = nbformat.read(str(place), as_version=4).cells
    texts = [cell.source for cell in cells if cell.cell_type == "markdown"]
    assert any("](" in text for text in texts)
    assert not [link for text in texts for link in _broken(text, place.parent)]


def test_a_broken_link_is_found():
    assert _broken("[here](glossary.md) [there](nowhere.md) [away](https://example.org)", TUTORIAL) == ["nowhere.md"]


@each_page
def test_page_leads_to_the_next(page):
    following = sorted(each.name for each in ENGLISH if each.name > page.name)
    links = re.findall(r"\]\((\d\d_\w+\.md)\)", page.read_text().rsplit("\n## ", 1)[1])
    assert not following or following[0] in links


@each_text
def test_terms_are_those_of_the_glossary(page):
    rows = (TUTORIAL / "glossary.md").read_text().split("## Not written")[1]
    banned = [word for row in re.findall(r"^\| (.*?) \|", rows, re.M)[2:] for word in re.split(r", |、", row)]
    assert len(banned) > 25
    text = _prose(page).split("## Not written")[0]
    code = re.sub(r"`[^`]*`", "", text)  # what others call it may be named as code
    found = [word for word in banned if re.search(rf"\b{word}" if word.isascii() else word, code, re.I)]
    assert not found


@each_english
def test_an_invariant_is_printed(page):
    if page.stem in ("01_prepare", "10_scale"):  # nothing is trained there that could be compared
        return
    notebook = nbformat.read(str(_build().notebook_of(page)), as_version=4)
    shown = [output.get("text", "") for cell in notebook.cells for output in cell.get("outputs", [])]
    assert any(claim in text for text in shown for claim in INVARIANTS)


def test_index_names_every_page():
    index = (TUTORIAL / "README.md").read_text()
    for page in ENGLISH + CHINESE:
        notebook = _build().notebook_of(page).relative_to(ROOT).as_posix()
        assert f"]({page.parent.name}/{page.name})" in index, page
        assert f"](../{notebook})" in index, page


# ---- the messages that tfpar prints


def _templates() -> str:
    """Return all texts of tfpar's source, with a NUL for each value that is filled in."""
    texts = []
    for path in (ROOT / "tfpar").rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.JoinedStr):
                texts.append("".join(map(_constant_part, node.values)))
            elif isinstance(node, ast.Constant) and isinstance(node.value, str):
                texts.append(re.sub(r"\{[^{}]*\}", "\0", node.value))  # for str.format
    return "\n".join(" ".join(text.split()) for text in texts)


def _constant_part(part: ast.expr) -> str:
    """Return a part of an f-string as it is printed: NUL for a value, `s` for the plural in `{'s'[: count > 1]}`."""
    if isinstance(part, ast.Constant):
        return part.value
    return "s" if ast.unparse(part.value).startswith("'s'[") else "\0"


def _is_printed(message: str, templates: str) -> bool:
    """Tell whether the constant parts of a message are in the source.

    `N`, `NAME`, numbers and the like are values. A message may be joined from two texts, at a `;` or in the middle of a part.
    """
    values = (
        r"\b(?:N|NAME|SIG\w+|train_step|gradient_accumulation_steps|steps_per_epoch)\b|\b\d[\d.,]*\b|\([^)]*\)|'[^']*'"
    )
    words = [part.split() for part in re.split(rf"{values}|;|=", message) if len(part.split()) > 1]
    return bool(words) and all(_pieces(part, templates) <= 1 + (len(part) + 2) // 5 for part in words)


def _pieces(words: list[str], templates: str) -> float:
    """Return in how many pieces these words are found, each as long as possible and at least two words long."""
    if not words:
        return 0
    for end in range(len(words), 1, -1):
        if " ".join(words[:end]) in templates:
            return 1 + _pieces(words[end:], templates)
    return float("inf")


def _cells(page: Path, column: int) -> list[str]:
    return [row[1:-1].split(" | ")[column] for row in page.read_text().splitlines() if row.startswith("| ")]


def _messages_of_tfpar(page: Path) -> list[str]:
    """Return the messages of tfpar that a page quotes: in traps.md the column Message of its section, in keras.md what an error says."""
    if page.name == "traps.md":
        section = re.search(r"^## tfpar$(.*?)^## ", page.read_text(), re.M | re.S)[1]
        rows = [row for row in section.splitlines() if row.startswith("| `")]
        return [quoted for row in rows for quoted in re.findall(r"`([^`]+)`", row[1:-1].split(" | ")[0])]
    quoted = [text for cell in _cells(page, 1) for text in re.findall(r"`([^`]+)`", cell)]
    return [text for text in quoted if len(text.split()) > 2 and not text.startswith("TypeError")]


@pytest.mark.parametrize("name", ["traps.md", "zh/traps.md", "keras.md", "zh/keras.md"])
def test_messages_of_tfpar_are_those_that_it_prints(name):
    templates, messages = _templates(), _messages_of_tfpar(TUTORIAL / name)
    assert len(messages) > 25
    assert not [message for message in messages if not _is_printed(message, templates)]


def test_a_message_that_tfpar_does_not_print_is_found():
    templates = _templates()
    assert _is_printed("4 shards cannot be divided evenly among 3 replicas", templates)
    assert not _is_printed("4 shards cannot be shared out among 3 replicas", templates)
    assert not _is_printed("the shards do not divide the batch", templates)


def test_traps_are_the_same_in_chinese():
    english, chinese = ((TUTORIAL / name).read_text() for name in ("traps.md", "zh/traps.md"))
    quoted = [_messages_of_tfpar(TUTORIAL / name) for name in ("traps.md", "zh/traps.md")]
    assert quoted[0] == quoted[1]
    assert english.count("\n| ") == chinese.count("\n| ")


# ---- the program that grows


def _sides(page: Path) -> tuple[list[str], list[str]]:
    """Return the program before and after a page, from its diff."""
    lines = re.search(r"^```diff\n(.*?)^```$", page.read_text(), re.M | re.S)[1].splitlines()
    before, after = ([line[1:] for line in lines if line[:1] != mark] for mark in "+-")
    return before, after


def test_each_stage_continues_the_program_of_the_one_before():
    program: list[str] = []
    for page in ENGLISH:
        if page.stem in WITHOUT_PROGRAM:
            continue
        before, after = _sides(page)
        assert before == program, page.stem
        compile("\n".join(after), page.stem, "exec")
        program = after
    assert len(program) > 10


@pytest.mark.by_hand
@pytest.mark.parametrize(
    "page", [page for page in ENGLISH if page.stem not in WITHOUT_PROGRAM], ids=lambda page: page.stem
)
def test_the_program_of_each_stage_runs(page, tmp_path):
    program = "\n".join(_sides(page)[1])
    done = subprocess.run([sys.executable, "-c", program], cwd=tmp_path, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr[-2000:]


# ---- the Chinese pages


def test_every_page_is_there_in_chinese():
    assert {page.name for page in CHINESE} == {page.name for page in ENGLISH}


@each_chinese
def test_chinese_page_follows_the_newest_english_one(page):
    english = TUTORIAL / "en" / page.name
    said = re.search(r"^ *follows: (\w+)$", page.read_text(), re.M)
    assert said, f"{page.name} does not say which English version it follows"
    assert said[1] == _build().stamp(english), (
        f"zh/{page.name} is out of date: look at what changed in en/{page.name}, then write its new stamp "
        "(python notebooks/build.py --stamps)"
    )


@each_chinese
def test_code_is_the_same_byte_for_byte(page):
    english = TUTORIAL / "en" / page.name
    assert FENCE.findall(page.read_text()) == FENCE.findall(english.read_text())
    assert [level for level, _ in _headings(page)] == [level for level, _ in _headings(english)]


@each_chinese
def test_chinese_notebook_has_the_outputs_of_the_english_one(page):
    build = _build()
    english = nbformat.read(str(build.notebook_of(TUTORIAL / "en" / page.name)), as_version=4)
    expected = build.with_outputs(build.read(page), english)
    written = nbformat.read(str(build.notebook_of(page)), as_version=4)
    assert written == nbformat.reads(nbformat.writes(expected), as_version=4), "run: python notebooks/build.py --words"


def test_outputs_are_not_given_to_other_code():
    build = _build()
    pages = [build.read(page) for page in ENGLISH[:2]]
    with pytest.raises(build.Mismatch, match="code cell 1 "):
        build.with_outputs(*pages)
