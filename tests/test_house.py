"""The house rules that a machine can watch: formatting, imports that only go down, sizes, words, and the README's promises."""

import ast
import io
import re
import subprocess
import sys
import tokenize
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
MODULES = sorted((ROOT / "tfpar").rglob("*.py"))
MOST_CODE_LINES, MOST_LINES_OF_A_FILE, MOST_LINES_OF_A_FUNCTION = 8437, 400, 40
WRITTEN_OUT = {"run", "manifests"}  # signatures that help and completion show

# Each imports only what stands on earlier lines; what stands on one line may share a package, but is not one circle.
LEVELS = [
    {"errors", "signals"},
    {"validate", "files", "machine", "screen"},
    {"schedule"},
    {"settings"},
    {"arguments", "workers", "prepare", "models", "results"},
    {"kubernetes", "devices"},
    {"engine", "steps"},
    {"train", "check"},
    {"diagnose", "export", "compiling", "fpga"},
    {"scaling", "platforms"},
    {"commands"},
    {"cli"},
    {"__main__"},
]


def text_of(path):
    return path.read_text()


def room(path):
    """Return the package or module directly below `tfpar` that a file belongs to; empty for `tfpar` itself."""
    inside = path.relative_to(ROOT / "tfpar").parts
    return "" if inside == ("__init__.py",) else inside[0].removesuffix(".py")


def imported(path):
    """Return the packages and modules of tfpar that a file imports, also inside functions, without its own."""
    found = set()
    for node in ast.walk(ast.parse(text_of(path))):
        if isinstance(node, ast.ImportFrom) and node.module == "tfpar":
            found |= {name.name for name in node.names if name.name != "__version__"}
        elif isinstance(node, ast.ImportFrom) and (node.module or "").startswith("tfpar."):
            found.add(node.module.split(".")[1])
        elif isinstance(node, ast.Import):
            assert not any(name.name.startswith("tfpar") for name in node.names), path
    return found - {room(path)}


def code_lines(text):
    """Return the numbers of the lines with code, and the tree: neither comments nor docstrings count."""
    tree, documented, lines = ast.parse(text), set(), set()
    for node in ast.walk(tree):
        if isinstance(node, (ast.Module, ast.ClassDef, ast.FunctionDef)) and ast.get_docstring(node, clean=False):
            documented |= set(range(node.body[0].lineno, node.body[0].end_lineno + 1))
    nothing = (tokenize.COMMENT, tokenize.NL, tokenize.NEWLINE, tokenize.INDENT, tokenize.DEDENT, tokenize.ENDMARKER)
    for token in tokenize.generate_tokens(io.StringIO(text).readline):
        if token.type not in nothing:
            lines |= set(range(token.start[0], token.end[0] + 1))
    return lines - documented, tree


def test_ruff():
    for arguments in (["check"], ["format", "--check"]):
        done = subprocess.run(
            [sys.executable, "-m", "ruff", *arguments, "tfpar", "tests", "notebooks"],
            cwd=ROOT,
            capture_output=True,
            text=True,
            timeout=60,
        )
        assert done.returncode == 0, done.stdout


def test_no_import_goes_up():
    level = {name: number for number, names in enumerate(LEVELS) for name in names}
    assert set(level) == {room(path) for path in MODULES} - {""}
    up = {
        (str(path.relative_to(ROOT)), name)
        for path in MODULES
        for name in imported(path)
        if level[name] >= level.get(room(path), 0)
    }
    assert not up


def test_no_circle_inside_a_package():
    for package in {room(path) for path in MODULES if (ROOT / "tfpar" / room(path)).is_dir()} - {""}:
        needs = {}
        for path in (ROOT / "tfpar" / package).glob("*.py"):
            found = set()
            for node in ast.walk(ast.parse(text_of(path))):
                if isinstance(node, ast.ImportFrom) and node.module == f"tfpar.{package}":
                    found |= {name.name for name in node.names}
                elif isinstance(node, ast.ImportFrom) and (node.module or "").startswith(f"tfpar.{package}."):
                    found.add(node.module.split(".")[2])
            needs[path.stem] = found
        while ready := {name for name, found in needs.items() if not found & set(needs)}:
            needs = {name: found for name, found in needs.items() if name not in ready}
        assert not needs, package


def test_a_face_has_a_docstring_with_an_example_and_names_and_nothing_else():
    for path in (ROOT / "tfpar").glob("*/__init__.py"):
        tree = ast.parse(text_of(path))
        names = {
            name.asname or name.name for node in tree.body if isinstance(node, ast.ImportFrom) for name in node.names
        }
        rest = [node for node in tree.body[1:] if not isinstance(node, (ast.ImportFrom, ast.Assign))]
        assert ast.get_docstring(tree) and not rest, path
        assert not names or "Example:" in ast.get_docstring(tree), path
        assert not names & {file.stem for file in path.parent.glob("*.py")}, path


@pytest.mark.parametrize(
    "program",
    [
        "from tfpar.cli import main; main(['--help'])",
        "from tfpar.cli import main; main(['launch', '--help'])",
        "from tfpar.cli import main; main(['fpga', '--help'])",
        "from tfpar.cli import main; main('kubernetes --workers 2 --gpus 0 --image i -- train digits'.split())",
        "from tfpar.cli import main; main('train digits --stage 1@0.1 --shards 0'.split())",
        "from tfpar.cli import main; main('scaling --step-ms 348 --batch 128 --gradient-mb 102 --machine 8xV100-EDR --devices 64'.split())",
        "import tfpar.scaling",
        "import tfpar.workers.launcher",
        "import tfpar.diagnose.doctor",
    ],
)
def test_light_commands_do_not_import_tensorflow(program):
    told = f"import sys\ntry:\n    {program}\nfinally:\n    print(*sorted({{'tensorflow', 'keras'}} & set(sys.modules)), sep='', end='|')"
    done = subprocess.run([sys.executable, "-c", told], cwd=ROOT, capture_output=True, text=True, timeout=60)
    assert done.stdout.splitlines()[-1].endswith("|") and not done.stdout.splitlines()[-1].endswith(("w|", "s|")), (
        done.stdout
    )


def test_sizes():
    counted = {str(path.relative_to(ROOT)): code_lines(text_of(path)) for path in MODULES}
    long_files = [name for name in counted if len((ROOT / name).read_text().splitlines()) > MOST_LINES_OF_A_FILE]
    long_functions = {
        f"{name}: {node.name}": size
        for name, (lines, tree) in counted.items()
        for node in ast.walk(tree)
        if isinstance(node, ast.FunctionDef) and node.name not in WRITTEN_OUT
        if (size := sum(node.lineno <= line <= node.end_lineno for line in lines)) > MOST_LINES_OF_A_FUNCTION
    }
    assert not long_files and not long_functions
    assert sum(len(lines) for lines, _ in counted.values()) <= MOST_CODE_LINES


def test_the_lesson_can_be_printed():
    """`grep -rn "data-parallel:" tfpar` names every line that exists only because of data parallelism."""
    assert sum("# data-parallel: " in line for path in MODULES for line in text_of(path).splitlines()) >= 8


def test_what_belongs_at_the_top_level():
    listed = subprocess.run(
        ["git", "ls-tree", "--name-only", "HEAD"], cwd=ROOT, capture_output=True, text=True, timeout=60
    ).stdout.split()
    wanted = {"pyproject.toml", "tutorial", "notebooks", "tfpar", "tests", "README.md", "LICENSE", "CHANGELOG.md"}
    assert {name for name in listed if not name.startswith(".")} <= wanted


# ---- words

WORDS = re.compile(
    r"\b(dealt? to|all the same|without a word|in silence|for ever|at hand|takes another way|mends?|mended|mending)\b"
    r"|(?:^|[.!?] )(What|Who|Whoever) (?!is\b|are\b|does\b|do\b|did\b)[^.?!\n]* (is|are)\b[^?\n]*\.",
    re.IGNORECASE,
)


def prose():
    """Yield (place, text) of everything that is read: docstrings, comments and messages, README and pages, without their code."""
    for path in MODULES:
        tokens = tokenize.generate_tokens(io.StringIO(text_of(path)).readline)
        for token in tokens:
            if token.type in (tokenize.STRING, tokenize.COMMENT):
                yield f"{path.relative_to(ROOT)}:{token.start[0]}", token.string
    pages = [*(ROOT / "tutorial").glob("*.md"), *(ROOT / "tutorial" / "en").glob("*.md")]
    for path in [ROOT / "README.md", *sorted(pages)]:
        yield str(path.relative_to(ROOT)), re.sub(r"```.*?```", "", text_of(path), flags=re.DOTALL)


def test_the_words_of_the_field():
    found = [f"{place}: {' '.join(hit.group().split())}" for place, text in prose() for hit in WORDS.finditer(text)]
    assert not found, "\n".join(found)


# ---- the README


def readme():
    return (ROOT / "README.md").read_text()


@pytest.mark.slow
def test_the_readmes_diff_is_short_and_both_sides_run(digits, tmp_path):
    diff = re.search(r"```diff\n(.*?)```", readme(), re.DOTALL)[1].splitlines()
    assert len([line for line in diff if line[:1] in "+-"]) <= 12
    before = "\n".join(line[1:] for line in diff if not line.startswith("+"))
    after = "\n".join(line[1:] for line in diff if not line.startswith("-"))
    for name, program in (("before", before), ("after", after)):
        program = program.replace("data/digits", str(digits.directory)).replace("epochs=10", "epochs=1")
        done = subprocess.run(
            [sys.executable, "-c", program], cwd=tmp_path, capture_output=True, text=True, timeout=180
        )
        assert done.returncode == 0, (name, done.stderr[-2000:])


def test_the_readmes_map_names_what_is_there():
    tree = re.search(r"```\ntfpar/\n(.*?)```", readme(), re.DOTALL)[1]
    assert len(tree.splitlines()) <= 25
    named = set(re.findall(r"\w+\.py|\w+(?=/)", tree.split("tutorial/")[0]))
    there = {path.name for path in (ROOT / "tfpar").iterdir() if path.is_dir() or path.suffix == ".py"}
    assert named == there - {"__init__.py", "__pycache__"}


def test_ci_runs_both_commands_of_the_readme():
    commands = re.findall(r"^python3 -m venv .*$", readme(), re.MULTILINE)
    assert [command.split(" && ")[-1].split()[0] for command in commands] == ["tfpar", "pytest"]
    assert "/^python3 -m venv /p' README.md" in (ROOT / ".ci" / "run").read_text()
