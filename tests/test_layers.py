"""The folders form layers: a module imports only from the folders that its own may see."""

import ast
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
MAY_IMPORT = {
    "protocols": {"hil.protocols"},
    "instruments": {"hil.instruments", "hil.protocols"},
    "mock_hw": {"hil.mock_hw", "hil.protocols", "hil.instruments.tester"},
    "data": {"hil.data", "hil.instruments", "hil.protocols"},
    "hil": {"hil"},
}
MAPPED = set(MAY_IMPORT) - {"hil"}
ONLY_IN_HIL = {"torch", "click", "rich", "matplotlib"}
OPTIONAL = "zlib_ng"  # in protocols/checksum.py, with a substitute where it is missing
SOURCES = [path for folder in MAY_IMPORT for path in sorted((ROOT / folder).rglob("*.py"))]
TESTS = sorted((ROOT / "tests").rglob("*.py"))


def relative(path: Path) -> str:
    return str(path.relative_to(ROOT))


def package_of(path: Path) -> list[str]:
    """The package that holds a file: `hil.instruments` for `instruments/tester.py`, `hil` for `hil/train.py`."""
    folder = path.relative_to(ROOT).parts[0]
    return ["hil"] if folder == "hil" else ["hil", folder]


def imported_names(source: str, package: list[str]) -> Iterator[str]:
    """Every imported name in full: `from hil.data import replay` gives `hil.data.replay`, and so do relative forms."""
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            base = package[: len(package) - node.level + 1] if node.level else []
            start = ".".join([*base, *([node.module] if node.module else [])])
            yield from (f"{start}.{alias.name}" for alias in node.names)


def fault_of(name: str, folder: str) -> str | None:
    """Why a module of `folder` must not import `name`, or None where it may."""
    top = name.partition(".")[0]
    if top in MAPPED:
        return f"`{name}` would be a second copy of the module: import it as hil.{name}"
    if top in ONLY_IN_HIL and folder != "hil":
        return f"`{top}` belongs to hil/ alone"
    if top == "hil" and not any(f"{name}.".startswith(f"{allowed}.") for allowed in MAY_IMPORT[folder]):
        return f"{folder}/ must not see `{name}`; it may import {', '.join(sorted(MAY_IMPORT[folder]))}"
    if folder == "protocols" and top not in {*sys.stdlib_module_names, "numpy", "hil", OPTIONAL}:
        return f"protocols/ needs only the standard library and numpy, not `{top}`"
    return None


def faults_in(source: str, path: Path) -> list[str]:
    folder = path.relative_to(ROOT).parts[0]
    names = imported_names(source, package_of(path))
    return [fault for name in names if (fault := fault_of(name, folder))]


@pytest.mark.parametrize("path", SOURCES, ids=relative)
def test_imports_respect_the_layers(path: Path) -> None:
    assert faults_in(path.read_text(), path) == []


@pytest.mark.parametrize("path", SOURCES, ids=relative)
def test_modules_are_named_in_full_rather_than_taken_from_the_namespace(path: Path) -> None:
    nodes = ast.walk(ast.parse(path.read_text()))
    assert not [node.lineno for node in nodes if isinstance(node, ast.ImportFrom) and node.module == "hil"]


@pytest.mark.parametrize("path", TESTS, ids=relative)
def test_tests_import_the_folders_as_parts_of_hil(path: Path) -> None:
    tops = {name.partition(".")[0] for name in imported_names(path.read_text(), ["tests"])}
    assert not tops & MAPPED


@pytest.mark.parametrize(
    ("file", "line"),
    [
        ("instruments/wire.py", "from hil.mock_hw.array import Array"),
        ("instruments/wire.py", "from hil.train import train"),
        ("instruments/wire.py", "from ..data.replay import ReplayTester"),
        ("instruments/wire.py", "import protocols.messages"),
        ("instruments/wire.py", "import torch"),
        ("mock_hw/twin.py", "from hil.instruments.wire import WireTester"),
        ("mock_hw/twin.py", "from hil.instruments import wire"),
        ("mock_hw/twin.py", "import hil.data.recorder"),
        ("mock_hw/twin.py", "from hil import data"),
        ("data/run_file.py", "from torch.utils import data"),
        ("protocols/scpi.py", "import scipy.stats"),
        ("hil/train.py", "from data.replay import ReplayTester"),
    ],
)
def test_a_forbidden_import_is_found(file: str, line: str) -> None:
    assert len(faults_in(line, ROOT / file)) == 1


@pytest.mark.parametrize(
    ("file", "line"),
    [
        ("instruments/wire.py", "from .tester import ArrayTester"),
        ("mock_hw/twin.py", "from hil.instruments.tester import ArrayTester"),
        ("mock_hw/twin.py", "from hil.instruments import tester"),
        ("protocols/scpi.py", "import numpy as np, struct"),
        ("hil/train.py", "import torch, hil.mock_hw.array, hil.data.recorder"),
    ],
)
def test_an_allowed_import_passes(file: str, line: str) -> None:
    assert faults_in(line, ROOT / file) == []
