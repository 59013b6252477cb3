"""A chip described by a file: strict when it is read, short when it is written."""

from dataclasses import replace
from enum import Enum
from pathlib import Path
from typing import Any

import pytest

from hil.bench import open_tester
from hil.mock_hw import chiptoml
from hil.mock_hw.chips import CHIPS, CHOICES, ChipParameters, from_json, to_json
from hil.protocols.errors import InputError, StorageError
from hil.protocols.messages import Durations, MvmMode, PulseShape, Readout

FULL = """
base = "pcm-analog"
arrays = 1
rows = 8
columns = 8
mvm = "none"
readout = "single"
mvm_spans = [1, 2.5]

[set_pulse]
amplitude = 100e-6

[reset_pulse]
width = 2e-6

[durations]
read = 0
mvm = 2e-7

[cell]
nu = 0.05
flicker = true
endurance = 1_000_000
"""


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "slot3.toml"


def test_a_file_changes_what_it_names_of_a_chip_and_nothing_else(path: Path) -> None:
    path.write_text(FULL)
    chip, base = chiptoml.load(path), CHIPS["pcm-analog"]
    assert chip == replace(
        base,
        arrays=1,
        rows=8,
        columns=8,
        mvm=MvmMode.NONE,
        readout=Readout.SINGLE,
        mvm_spans=(1.0, 2.5),
        set_pulse=PulseShape(100e-6, 50e-9),
        reset_pulse=PulseShape(440e-6, 2e-6),
        durations=Durations(0.0, 2e-7, 100e-9, 1e-6),
        cell=base.cell._replace(nu=0.05, flicker=True, endurance=1e6),
    )
    assert type(chip.cell.endurance) is type(chip.durations.read) is float


REFUSED = {
    "": 'it does not name the chip that it changes: base = "pcm-90nm"',
    "rowz = 4": "unknown chip parameter 'rowz'; did you mean 'rows'?",
    "zzzz = 4": "unknown chip parameter 'zzzz'; there are adc_bits, arrays, ",
    "[cell]\ndrfit = true": "unknown chip parameter 'drfit'; did you mean 'drift'?",
    "[colour]": "unknown chip parameter 'colour'",
    'base = "pcm-45nm"': "unknown chip base='pcm-45nm'; there are pcm-90nm, pcm-analog",
    "base = 3": "unknown chip base=3",
    "rows = 4.0": "rows=4.0: expected a whole number",
    "rows = true": "rows=True: expected a whole number",
    "rows = 0": "rows=0: outside 1 to 65536",
    "read_voltage = '0.2'": "read_voltage='0.2': expected a number",
    "read_voltage = nan": "read_voltage=nan: outside",
    "mvm = 'quantum'": "mvm='quantum': expected one of analog, none",
    "[durations]\nmvm = 'none'": "mvm='none': expected a number",
    "mvm = true": "mvm=True: expected one of analog, none",
    "mvm_spans = 3": "mvm_spans=3: expected a list of numbers",
    "mvm_spans = []": "mvm_spans=[]: expected rising numbers above 0",
    "mvm_spans = [2, 1]": "mvm_spans=[2, 1]: expected rising numbers above 0",
    "mvm_spans = [0, 1]": "mvm_spans=[0, 1]: expected rising numbers above 0",
    "mvm_spans = ['a']": "mvm_spans='a': expected a number",
    "cell = 1": "cell=1: expected a table",
    "durations = []": "durations=[]: expected a table",
    "[cell]\nnu = 2": "nu=2: outside 0.0 to 1.0",
    "[cell]\nnu = true": "nu=True: expected a number",
    "[cell]\ndrift = 1": "drift=1: expected true or false",
    "[cell]\ng_min = 1": "g_min=1 must be below g_max",
    "[set_pulse]\namplitude = 0": "amplitude=0: outside",
    "[set_pulse]\namplitude = 1.0": "the SET pulse must be no higher",
    "[set_pulse]\nlength = 1.0": "unknown chip parameter 'length'",
    "rows = ": "cannot be read as a chip: Invalid value",
    "rows = 1\nrows = 2": "cannot be read as a chip: Cannot overwrite",
}


@pytest.mark.parametrize("text", REFUSED)
def test_what_is_wrong_is_named_in_one_line(path: Path, text: str) -> None:
    path.write_text(text if not text or text.startswith("base") else f'base = "pcm-90nm"\n{text}')
    with pytest.raises(InputError) as caught:
        chiptoml.load(path)
    message = str(caught.value)
    assert message.startswith(str(path))
    assert REFUSED[text] in message
    assert "\n" not in message


@pytest.mark.parametrize("content", [b"\xff\xfe", None])
def test_a_file_that_is_no_text_or_not_there_is_named(path: Path, content: bytes | None) -> None:
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(InputError, match=r"slot3\.toml cannot be read as a chip: "):
        chiptoml.load(path)


@pytest.mark.parametrize("base", CHIPS)
@pytest.mark.parametrize("name", CHIPS)
def test_what_is_saved_loads_equal(path: Path, name: str, base: str) -> None:
    chiptoml.save(path, CHIPS[name], base, {}, "")
    assert chiptoml.load(path) == CHIPS[name]


def other(key: str, value: Any) -> Any:
    """Another value that a parameter may have; of a part, with all of its fields changed."""
    match value:
        case dict():
            return {name: other(name, item) for name, item in value.items()}
        case Enum():
            return next(choice for choice in CHOICES[key].values() if choice != value)
        case tuple():
            return (1.0, 2.5)
        case bool():
            return not value
        case int():
            return value - 1
        case _:
            return value * 0.9 if value else 1e-6


def leaves(values: dict[str, Any]) -> list[Any]:
    return [leaf for item in values.values() for leaf in (leaves(item) if isinstance(item, dict) else [item])]


@pytest.mark.parametrize("base", CHIPS)
def test_every_parameter_goes_through_a_file(path: Path, base: str) -> None:
    known = to_json(CHIPS[base])
    chip = from_json({key: other(key, value) for key, value in known.items()})
    assert not any(new == old for new, old in zip(leaves(to_json(chip)), leaves(known), strict=True))
    chiptoml.save(path, chip, base, {}, "")
    assert chiptoml.load(path) == chip
    chiptoml.check_loads(chip)


def test_a_chip_that_would_not_load_is_named_before_it_is_saved() -> None:
    with pytest.raises(InputError, match="adc_bits=24: outside 2 to 16"):
        chiptoml.check_loads(replace(CHIPS["ideal"], adc_bits=24))


def test_a_saved_file_says_only_what_differs_and_how_sure_it_is(path: Path) -> None:
    base = CHIPS["pcm-analog"]
    cell = base.cell._replace(nu=0.1 + 0.2, drift=False, memory=3.0)
    chip: ChipParameters = replace(base, rows=9, mvm=MvmMode.NONE, cell=cell)
    intervals = {"nu": (0.28, 0.3200001), "g_max": (1e-6, 2e-6)}
    chiptoml.save(path, chip, "pcm-analog", intervals, "Fitted to chip 7\n\nrun of May")
    assert path.read_text().splitlines() == [
        "# Fitted to chip 7",
        "#",
        "# run of May",
        'base = "pcm-analog"',
        "rows = 9",
        'mvm = "none"',
        "",
        "[cell]",
        "memory = 3.0",
        "nu = 0.30000000000000004  # 95 %: 0.28 to 0.32",
        "drift = false",
    ]
    assert chiptoml.load(path) == chip


def test_a_file_that_cannot_be_written_is_named(tmp_path: Path) -> None:
    with pytest.raises(StorageError, match=r"cannot save the chip to .*missing/chip\.toml"):
        chiptoml.save(tmp_path / "missing" / "chip.toml", CHIPS["ideal"], "ideal", {}, "")


class TestAsTester:
    def test_it_is_named_after_its_file_and_takes_changes(self, path: Path) -> None:
        path.write_text(FULL)
        with open_tester(f"twin:{path}?rows=5&drift=off&seed=3") as tester:
            assert tester.identify().model == "slot3"
            assert tester.identify().chip.startswith("slot3-")
            assert (tester.capabilities().rows, tester.capabilities().columns) == (5, 8)

    def test_a_kept_chip_is_made_of_it(self, path: Path) -> None:
        path.write_text(FULL)
        kept = f"twin:{path.with_suffix('.h5')}"
        open_tester(f"{kept}?chip={path}").close()
        path.unlink()
        with open_tester(kept) as tester:
            assert (tester.identify().model, tester.capabilities().rows) == ("slot3", 8)

    def test_a_missing_file_and_a_bad_change_are_refused(self, path: Path) -> None:
        with pytest.raises(InputError, match=r"slot3\.toml cannot be read as a chip: No such file"):
            open_tester(f"twin:{path}")
        path.write_text(FULL)
        with pytest.raises(InputError, match="rows=0: outside 1 to 65536"):
            open_tester(f"twin:{path}?rows=0")
