"""House rules that a reader can rely on: size, determinism, silence of the library, no traces of one machine."""

import ast
import re
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
FOLDERS = ("protocols", "instruments", "mock_hw", "data", "hil")
SOURCES = [path for folder in FOLDERS for path in sorted((ROOT / folder).rglob("*.py"))]
TESTS = sorted((ROOT / "tests").rglob("*.py"))
TEXTS = sorted(
    path
    for pattern in ("*", *(f"{folder}/**/*" for folder in (*FOLDERS, "tests")))
    for path in ROOT.glob(pattern)
    if path.suffix in {".py", ".md", ".toml", ".txt"} or path.name == "Makefile"
)
LONGEST_FUNCTION = 60
LONGEST_SOURCE, LONGEST_TEST = 400, 500
MAY_SEE_THE_WALL_CLOCK = {"mock_hw/server.py", "mock_hw/tcp_server.py", "mock_hw/clocks.py"}
SEEDED = {"Generator", "SeedSequence", "BitGenerator", "PCG64", "PCG64DXSM", "Philox", "SFC64", "default_rng"}
MACHINE_PATH = re.compile(r"/(home|root|Users|work)/|[A-Z]:\\Users\\")


def relative(path: Path) -> str:
    return path.relative_to(ROOT).as_posix()


def called_names(tree: ast.AST) -> Iterator[tuple[str, ast.Call]]:
    """The dotted name of every call, with its node."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Call):
            yield ast.unparse(node.func), node


def imported_tops(tree: ast.AST) -> Iterator[str]:
    """The first part of every absolute import."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from (alias.name.partition(".")[0] for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.level == 0:
            yield str(node.module).partition(".")[0]


def unseeded_draws(source: str) -> list[str]:
    """Uses of numpy's or Python's global random state, and generators made without a seed."""
    tree = ast.parse(source)
    attributes = (ast.unparse(node) for node in ast.walk(tree) if isinstance(node, ast.Attribute))
    draws = [
        name
        for name in attributes
        if re.fullmatch(r"(np|numpy)\.random\.\w+", name) and name.rpartition(".")[2] not in SEEDED
    ]
    draws += [
        name for name, call in called_names(tree) if name.endswith("default_rng") and not (call.args or call.keywords)
    ]
    draws += ["import random"] * ("random" in imported_tops(tree))
    return draws


@pytest.mark.parametrize("path", SOURCES + TESTS, ids=relative)
def test_no_function_is_longer_than_a_screen(path: Path) -> None:
    nodes = ast.walk(ast.parse(path.read_text()))
    functions = [node for node in nodes if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef)]
    lengths = [(node.name, (node.end_lineno or 0) - node.lineno + 1) for node in functions]
    assert [(name, length) for name, length in lengths if length > LONGEST_FUNCTION] == []


@pytest.mark.parametrize("path", SOURCES + TESTS, ids=relative)
def test_no_file_outgrows_its_budget(path: Path) -> None:
    assert len(path.read_text().splitlines()) <= (LONGEST_TEST if path in TESTS else LONGEST_SOURCE)


@pytest.mark.parametrize("path", [p for p in SOURCES if not relative(p).startswith("hil/cli")], ids=relative)
def test_only_the_command_line_prints(path: Path) -> None:
    assert "print" not in dict(called_names(ast.parse(path.read_text())))


@pytest.mark.parametrize("path", [p for p in SOURCES if p.parent.name == "mock_hw"], ids=relative)
def test_the_twin_knows_no_time_but_its_own(path: Path) -> None:
    clocks = {"time", "datetime", "asyncio", "sched"} & set(imported_tops(ast.parse(path.read_text())))
    assert not clocks or relative(path) in MAY_SEE_THE_WALL_CLOCK


@pytest.mark.parametrize("path", SOURCES + TESTS, ids=relative)
def test_randomness_comes_from_a_seeded_generator(path: Path) -> None:
    assert unseeded_draws(path.read_text()) == []


@pytest.mark.parametrize(
    "line",
    ["np.random.seed(1)", "x = numpy.random.normal(size=3)", "np.random.default_rng()", "from random import choice"],
)
def test_a_draw_without_a_seed_is_found(line: str) -> None:
    assert unseeded_draws(line)


def test_a_seeded_generator_passes() -> None:
    assert unseeded_draws("import numpy as np\nrng: np.random.Generator = np.random.default_rng(seed)") == []


@pytest.mark.parametrize("path", TEXTS, ids=relative)
def test_no_file_names_a_folder_of_one_machine(path: Path) -> None:
    assert [line for line in path.read_text().splitlines() if MACHINE_PATH.search(line)] == []
