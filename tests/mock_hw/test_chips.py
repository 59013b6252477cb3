"""Named chips, and single parameters given as text."""

import json
from typing import Any

import pytest

from hil.mock_hw.chips import CHIPS, ChipParameters, from_json, mean_staircase, named_chip, to_json
from hil.protocols.errors import InputError
from hil.protocols.messages import MvmMode, Readout


@pytest.mark.parametrize("name", CHIPS)
def test_a_name_without_overrides_is_the_built_in_chip(name: str) -> None:
    assert named_chip(name, {}) is CHIPS[name]


def test_the_papers_chip_reads_cells_and_the_analog_one_multiplies() -> None:
    assert CHIPS["pcm-90nm"].capabilities().mvm == MvmMode.NONE
    assert CHIPS["pcm-analog"].capabilities().mvm == MvmMode.ANALOG
    assert CHIPS["pcm-90nm"].cell == CHIPS["pcm-analog"].cell


@pytest.mark.parametrize(
    ("key", "text", "value"),
    [
        ("arrays", "4", 4),
        ("adc_bits", "12", 12),
        ("largest_batch", "65536", 65536),
        ("read_voltage", "0.3", 0.3),
        ("read_floor", "-2e-6", -2e-6),
        ("mvm", "none", MvmMode.NONE),
        ("readout", "single", Readout.SINGLE),
    ],
)
def test_a_parameter_of_the_chip_can_be_overridden(key: str, text: str, value: Any) -> None:
    chip = named_chip("pcm-analog", {key: text})
    assert vars(chip) == vars(CHIPS["pcm-analog"]) | {key: value}
    assert type(vars(chip)[key]) is type(value)


@pytest.mark.parametrize(
    ("key", "text", "value"),
    [
        ("drift", "off", False),
        ("drift", "FALSE", False),
        ("read_noise", "on", True),
        ("nu", "0", 0.0),
        ("nu_spread", "0.2", 0.2),
        ("stuck_fraction", "1", 1.0),
        ("g_max", "3e-5", 3e-5),
        ("mean_slope", "-0.1", -0.1),
    ],
)
def test_a_parameter_of_the_cells_can_be_overridden(key: str, text: str, value: Any) -> None:
    chip = named_chip("pcm-analog", {key: text})
    assert chip.cell == CHIPS["pcm-analog"].cell._replace(**{key: value})
    assert type(chip.cell._asdict()[key]) is type(value)
    assert vars(chip).keys() == vars(CHIPS["pcm-analog"]).keys()


def test_overrides_add_up_and_leave_the_built_in_chip_alone() -> None:
    chip = named_chip("pcm-90nm", {"rows": "8", "columns": "4", "drift": "off"})
    assert (chip.rows, chip.columns, chip.cell.drift) == (8, 4, False)
    assert CHIPS["pcm-90nm"] == ChipParameters()


def test_an_unknown_chip_is_refused_with_the_known_ones() -> None:
    with pytest.raises(InputError, match=r"unknown chip 'pcm-45nm'; there are pcm-90nm, pcm-analog, ideal"):
        named_chip("pcm-45nm", {})


@pytest.mark.parametrize("key", ["drfit", "", "cell", "mvm_spans", "set_pulse", "durations", "__class__"])
def test_an_unknown_parameter_is_refused_with_the_known_ones(key: str) -> None:
    with pytest.raises(InputError, match=r"unknown chip parameter .*; there are .*drift, .*rows") as caught:
        named_chip("ideal", {key: "1"})
    assert repr(key) in str(caught.value)


@pytest.mark.parametrize(
    ("key", "text"),
    [
        ("arrays", "two"),
        ("arrays", "2.0"),
        ("arrays", "0"),
        ("rows", "-1"),
        ("rows", "65537"),
        ("adc_bits", "1"),
        ("dac_bits", "17"),
        ("read_voltage", "0"),
        ("read_voltage", "0,2"),
        ("read_span", "0"),
        ("read_floor", "1e-6"),
        ("read_floor", "-1"),
        ("nu", "-0.01"),
        ("nu", "nan"),
        ("nu", "inf"),
        ("t0", "0"),
        ("t_min", "0"),
        ("memory", "0"),
        ("g_min", "1"),
        ("stuck_fraction", "1.5"),
        ("drift", "1"),
        ("drift", ""),
        ("mvm", "binary"),
        ("readout", "both"),
    ],
)
def test_a_value_of_the_wrong_type_or_range_is_refused_by_name(key: str, text: str) -> None:
    with pytest.raises(InputError, match=key) as caught:
        named_chip("pcm-analog", {key: text})
    assert text.removesuffix(".0") in str(caught.value)


def test_a_chip_too_large_for_memory_is_refused_before_it_is_built() -> None:
    with pytest.raises(InputError, match="a twin has at most"):
        named_chip("pcm-analog", {"arrays": "60000"})


@pytest.mark.parametrize("name", CHIPS)
def test_parameters_survive_json(name: str) -> None:
    chip = named_chip(name, {"nu": "0.05", "rows": "9", "readout": "single", "read_noise": "off"})
    assert from_json(json.loads(json.dumps(to_json(chip)))) == chip


def test_ranges_scale_with_the_read_voltage() -> None:
    capabilities = named_chip("pcm-analog", {"read_voltage": "0.1"}).capabilities()
    assert capabilities.mvm_ranges[0] == pytest.approx(0.1 * 8e-6)


def test_the_nominal_staircase_rises_to_the_papers_ten_pulses() -> None:
    steps = mean_staircase(CHIPS["pcm-90nm"].cell, 10)
    assert steps[0] == pytest.approx(0.1e-6)
    assert steps[10] == pytest.approx(7.76e-6, abs=0.005e-6)
    assert (steps[10] - steps[0]) / 10 == pytest.approx(0.766e-6, abs=0.0005e-6)
