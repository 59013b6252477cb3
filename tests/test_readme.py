"""The README's commands and code work as they stand."""

import re
import shlex
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from hil.mock_hw.faults import load_plan

ROOT = Path(__file__).parent.parent
README = (ROOT / "README.md").read_text()
HIL = Path(sys.executable).with_name("hil")


def run_hil(arguments: list[str], folder: Path) -> None:
    done = subprocess.run([HIL, *arguments], cwd=folder, capture_output=True, text=True, check=False)
    assert done.returncode == 0, f"hil {' '.join(arguments)}: {done.stderr}"


def commands(section: str) -> list[str]:
    """The `hil` commands of a section."""
    text = README.split(f"## {section}\n")[1].split("\n## ")[0]
    return re.findall(r"^\$ (hil .*)$", text, re.MULTILINE)


def test_the_notebook_example_learns(tmp_path: Path) -> None:
    code = re.findall(r"```python\n(.*?)```", README, re.DOTALL)[0]
    done = subprocess.run([sys.executable, "-c", code], cwd=tmp_path, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert float(done.stdout) > 0.8


def test_the_example_of_a_converted_model_works(tmp_path: Path) -> None:
    code = re.findall(r"```python\n(.*?)```", README, re.DOTALL)[1]
    done = subprocess.run([sys.executable, "-c", code], cwd=tmp_path, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert done.stdout.endswith("torch.Size([5, 10])\n")


@pytest.fixture(scope="module")
def quick_start(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder in which the quick start was followed."""
    folder = tmp_path_factory.mktemp("quick-start")
    quick = [command for command in commands("Quick start") if "mnist" not in command]
    assert len(quick) == 6
    for command in quick:
        arguments = shlex.split(command)[1:]
        run_hil([*arguments, "--epochs", "3"] if arguments[0] == "train" else arguments, folder)
    return folder


def test_the_quick_start_runs_as_it_stands(quick_start: Path) -> None:
    assert {path.name for path in (quick_start / "runs").iterdir()} == {"first.h5", "first.html", "baseline.h5"}


def test_the_analysis_example_runs_on_what_the_quick_start_made(quick_start: Path) -> None:
    code = re.findall(r"```python\n(.*?)```", README, re.DOTALL)[2]
    done = subprocess.run([sys.executable, "-c", code], cwd=quick_start, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith("completed 0.4 0.9")
    assert "(" in done.stdout.splitlines()[-1]


@contextmanager
def served(serve: str) -> Iterator[str]:
    """What a command serves at a free port instead of 5025, while it is entered: the address."""
    command = [str(HIL), *shlex.split(serve)[1:]]
    command[command.index("5025")] = "0"
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True) as server:
        try:
            assert server.stdout is not None
            yield server.stdout.readline().strip()
        finally:
            server.terminate()
    assert server.returncode == 0


def test_the_section_on_real_testers_works_as_it_stands(tmp_path: Path) -> None:
    serve, check, train = commands("On a real tester, or a twin that is served as one")
    with served(serve) as uri:
        for later in (check, f"{train} --epochs 1"):
            assert "tcp://127.0.0.1:5025" in later
            run_hil(shlex.split(later.replace("tcp://127.0.0.1:5025", uri))[1:], tmp_path)
    assert (tmp_path / "runs" / "wire.h5").exists()


SHORT = ["--epochs", "1", "--set", "train_images=200", "--seeds", "1"]


def test_the_circle_from_a_chip_to_its_twin_closes(data_dir: Path, tmp_path: Path) -> None:
    serve, *circle = [line for line in commands("From a chip to its twin, and back") if "digits" not in line][:7]
    with served(serve) as uri:
        for command in circle:
            said = {"tcp://127.0.0.1:5025": uri, "~/datasets": shlex.quote(str(data_dir))}
            said |= {"0-99:1900-1999": "0-19:1900-1919", "chip-1": "chip", "twin-1": "twin"}  # one seed, few cells
            for old, new in said.items():
                command = command.replace(old, new)
            arguments = shlex.split(command)[1:]
            run_hil([*arguments, *SHORT] if arguments[0] == "train" else arguments, tmp_path)
    assert {"devices.h5", "devices.html", "chip.toml", "fit.html", "chip.h5", "twin.h5", "compared.html"} <= {
        path.name for path in tmp_path.iterdir()
    }


def test_weights_are_programmed_and_followed_as_it_stands(tmp_path: Path) -> None:
    last = commands("From a chip to its twin, and back")[-5:]
    assert "system=float" in last[0]
    for command in last:
        run_hil(shlex.split(command)[1:], tmp_path)
    assert (tmp_path / "programmed-evaluated.html").exists()


def test_the_plan_of_faults_is_one(tmp_path: Path) -> None:
    (tmp_path / "plan.toml").write_text(re.findall(r"```toml\n(.*?)```", README, re.DOTALL)[0])
    assert load_plan(tmp_path / "plan.toml").strikes("reply") == []


@pytest.mark.parametrize("command", [command for command in commands("Quick start") if "mnist" in command])
def test_the_mnist_commands_are_well_formed(command: str, data_dir: Path, tmp_path: Path) -> None:
    command = command.replace("~/datasets", shlex.quote(str(data_dir)))
    run_hil([*shlex.split(command)[1:], *SHORT], tmp_path)
