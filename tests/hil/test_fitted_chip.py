"""The twin that a fit makes opens, holds what was measured, and is refused before it is saved if it cannot."""

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import h5py
import pytest
from click.testing import CliRunner

from hil.bench import connect
from hil.characterize import chosen
from hil.cli import main
from hil.fit_report import simulated
from hil.fitted_chip import FittedChip, fit_runs, save_chip
from hil.mock_hw import chiptoml
from hil.mock_hw.chips import CHIPS
from hil.mock_hw.parameters import PcmParameters
from hil.procedure import Place, perform
from hil.session import twin_seed

SMALL = "arrays=1&rows=10&columns=30"
WIDE = "read_span=102e-6"
LARGE = "mean_offset=4e-6&g_max=60e-6"
"""Devices that SET pulses bring beyond the model's range."""


def measured(path: Path, name: str, *changes: str) -> Path:
    """Staircase and drift of all cells of a small chip."""
    uri = f"twin:{name}?{'&'.join((SMALL, *changes))}"
    procedure = chosen(["staircase", "drift"], "all", {"reads": 10})
    perform(procedure, Place(uri, path), connect(uri, twin_seed(1)))
    return path


@pytest.fixture
def fitted(tmp_path: Path) -> Callable[..., FittedChip]:
    """The fit to a small chip with some parameters changed: `fitted("pcm-analog", "nu=0.05")`."""

    def fit(name: str, *changes: str) -> FittedChip:
        return fit_runs([measured(tmp_path / "run.h5", name, *changes)])

    return fit


@pytest.fixture(scope="module")
def serial_run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A chip that is read cell by cell; to be copied before it is changed."""
    return measured(tmp_path_factory.mktemp("serial") / "run.h5", "pcm-90nm")


@pytest.fixture
def told(serial_run: Path, tmp_path: Path) -> Callable[..., Path]:
    """The run of a tester that tells other capabilities: `told(adc_bits=24)`."""

    def tell(**changes: Any) -> Path:
        path = tmp_path / "told.h5"
        path.write_bytes(serial_run.read_bytes())
        with h5py.File(path, "r+") as file:
            capabilities = file["start/capabilities"]
            capabilities[()] = json.dumps(json.loads(capabilities[()]) | changes)
        return path

    return tell


@pytest.mark.parametrize("changes", [(), (WIDE,)])
def test_a_chip_of_the_models_range_keeps_it(changes: tuple[str, ...], fitted: Callable[..., FittedChip]) -> None:
    found = fitted("pcm-analog", *changes)
    assert found.chip.cell.g_max == PcmParameters().g_max
    assert "g_max" not in found.fitted.parameters
    assert found.fitted.warnings == ()


def test_devices_above_the_models_range_are_not_held_down_in_the_twin(fitted: Callable[..., FittedChip]) -> None:
    found = fitted("pcm-analog", WIDE, LARGE)
    level = found.staircase.reads.mean
    assert found.chip.cell.g_max == found.fitted.parameters["g_max"] == level.max() == pytest.approx(60e-6, rel=0.04)
    assert simulated(found.chip, 20)[-1].mean() == pytest.approx(level[-1].mean(), rel=0.05)
    (warning,) = found.fitted.warnings
    assert f"cells were read at up to {level.max() * 1e6:.1f} uS, above the model's 25 uS" in warning


def test_readings_beyond_the_read_range_are_told_by_study(fitted: Callable[..., FittedChip]) -> None:
    found = fitted("pcm-analog", LARGE)
    staircase, drift = (line for line in found.fitted.warnings if "met an end of the read range" in line)
    assert staircase.startswith(f"{found.staircase.reads.cut_off:,} of 63,000 readings of the staircase study (")
    assert " of 15,000 readings of the drift study (" in drift


def test_reset_cells_at_the_lower_end_of_the_read_range_are_no_fault(fitted: Callable[..., FittedChip]) -> None:
    found = fitted("pcm-analog", "read_floor=0")
    assert found.staircase.reads.cut_off > 0
    assert not any("read range" in line for line in found.fitted.warnings)


@pytest.mark.parametrize(
    "changes",
    [
        {"largest_batch": 1_000_000},
        {"mvm_ranges": [], "dac_bits": 1},
        {"durations": {"read": 1e-6, "mvm": 2e-7, "set_pulse": 1e-7, "reset_pulse": 1e-6}},
    ],
)
def test_what_a_tester_has_beyond_a_twin_does_not_spoil_the_file(
    changes: dict[str, Any], told: Callable[..., Path], tmp_path: Path
) -> None:
    found = fit_runs([told(**changes)])
    save_chip(found, tmp_path / "chip.toml")
    chip = chiptoml.load(tmp_path / "chip.toml")
    assert chip == found.chip
    base = CHIPS["pcm-90nm"]
    assert replace(chip, cell=base.cell, durations=base.durations) == replace(base, arrays=1, rows=10, columns=30)


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"adc_bits": 24}, "adc_bits=24: outside 2 to 16"),
        ({"mvm": "analog", "dac_bits": 1}, "dac_bits=1: outside 2 to 16"),
        ({"mvm": "analog", "mvm_ranges": []}, "mvm_spans=[]: expected rising numbers above 0"),
        ({"read_voltage": 0.0}, "read_voltage=0: outside"),
    ],
)
def test_what_no_twin_can_have_is_one_line_and_no_file(
    changes: dict[str, Any], says: str, told: Callable[..., Path], tmp_path: Path
) -> None:
    run, out = told(**changes), tmp_path / "chip.toml"
    result = CliRunner().invoke(main, ["fit", str(run), "--out", str(out)])
    assert result.exit_code == 2
    assert f"no twin can be made of what is in {run}: chip parameter {says}" in result.stderr
    assert len(result.stderr.splitlines()) == 1
    assert not out.exists()
