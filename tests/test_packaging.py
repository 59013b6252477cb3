"""The installed project: every folder lands in the wheel, and the wheel runs in an environment of its own."""

import os
import shutil
import subprocess
import sys
import tomllib
import venv
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())
FOLDERS = {name: ROOT / folder for name, folder in PROJECT["tool"]["setuptools"]["package-dir"].items()}
BUILD_INPUTS = ("pyproject.toml", "README.md", "LICENSE", "protocols", "instruments", "mock_hw", "data", "hil")
WITHOUT_TORCH = ("hil.protocols", "hil.instruments", "hil.mock_hw", "hil.data")


def modules_of(package: str) -> list[str]:
    files = sorted(FOLDERS[package].glob("*.py"))
    return [package if file.stem == "__init__" else f"{package}.{file.stem}" for file in files]


def run(*command: str | Path, cwd: Path) -> subprocess.CompletedProcess[str]:
    """Run a command with nothing of this checkout on its path; wide, so that tables are not cut."""
    environment = {key: value for key, value in os.environ.items() if not key.startswith(("PYTHON", "VIRTUAL_ENV"))}
    environment["COLUMNS"] = "200"
    return subprocess.run(
        [str(part) for part in command], cwd=cwd, env=environment, capture_output=True, text=True, check=False
    )


def output_of(*command: str | Path, cwd: Path) -> str:
    """The standard output of a command that must succeed."""
    result = run(*command, cwd=cwd)
    assert result.returncode == 0, f"{command} ended with {result.returncode}:\n{result.stdout}\n{result.stderr}"
    return result.stdout


def test_every_folder_with_modules_is_a_declared_package() -> None:
    assert set(PROJECT["tool"]["setuptools"]["packages"]) == set(FOLDERS)
    holding_code = {path.parent.name for path in ROOT.glob("*/*.py")} - {"tests"}
    assert holding_code <= {folder.name for folder in FOLDERS.values()}


def test_folders_are_flat_since_sub_packages_would_be_missing_from_the_wheel() -> None:
    nested = [path for folder in FOLDERS.values() for path in folder.glob("*/**/*.py")]
    assert nested == []


def test_hil_is_a_namespace_so_that_the_other_folders_can_be_part_of_it() -> None:
    assert not (ROOT / "hil/__init__.py").exists()
    assert [name for name, folder in FOLDERS.items() if not (folder / "py.typed").exists()] == []


@pytest.mark.parametrize("package", WITHOUT_TORCH)
def test_a_bench_computer_needs_no_torch_to_use(package: str, tmp_path: Path) -> None:
    code = f"import sys, {', '.join(modules_of(package))}; print('torch' in sys.modules)"
    assert output_of(sys.executable, "-c", code, cwd=tmp_path) == "False\n"


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A wheel, built from a copy of the sources: a `build/` folder left in the checkout could add stale modules."""
    source, target = tmp_path_factory.mktemp("source"), tmp_path_factory.mktemp("wheel")
    for name in BUILD_INPUTS:
        if (ROOT / name).is_dir():
            shutil.copytree(ROOT / name, source / name, ignore=shutil.ignore_patterns("__pycache__"))
        else:
            shutil.copy(ROOT / name, source / name)
    output_of(sys.executable, "-m", "build", "--wheel", "--no-isolation", "--outdir", target, source, cwd=target)
    return next(target.glob("*.whl"))


@pytest.fixture(scope="module")
def installed(wheel: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """The programs folder of a new environment with the wheel and what it needs; removed afterwards: it is large."""
    environment = tmp_path_factory.mktemp("environment")
    venv.create(environment, with_pip=True)
    programs = environment / ("Scripts" if os.name == "nt" else "bin")
    pip = (programs / "python", "-m", "pip", "install", "--quiet", "-c", ROOT / "constraints.txt")
    if run(*pip, "--dry-run", "--no-deps", "click", cwd=environment).returncode:
        pytest.skip("no package index answers, so nothing can be installed")
    output_of(*pip, "--no-compile", wheel, cwd=environment)
    yield programs
    shutil.rmtree(environment)


@pytest.mark.timeout(600)
def test_the_installed_wheel_runs_on_its_own(installed: Path, tmp_path: Path) -> None:
    assert "experiments" in output_of(installed / "hil", "--help", cwd=tmp_path)

    listing = output_of(installed / "hil", "experiments", cwd=tmp_path)
    names = [path.stem for path in (ROOT / "hil/experiments").glob("*.toml")]
    assert names
    assert [name for name in names if name not in listing] == []


@pytest.mark.timeout(600)
def test_the_installed_modules_are_those_of_the_wheel(installed: Path, tmp_path: Path) -> None:
    modules = [module for package in FOLDERS for module in modules_of(package)]
    code = f"import sys, {', '.join(modules)}\nfor name in {modules}: print(sys.modules[name].__file__)"
    files = output_of(installed / "python", "-c", code, cwd=tmp_path).splitlines()
    assert len(files) == len(modules)
    assert [file for file in files if not Path(file).is_relative_to(installed.parent)] == []
