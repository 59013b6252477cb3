"""A chip on disk: loading goes on exactly where saving stopped; nothing else passes for a chip."""

import json
import resource
import tracemalloc
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest

from hil.mock_hw import chipfile
from hil.mock_hw.array import Chip
from hil.mock_hw.firmware import Firmware
from hil.mock_hw.parameters import PcmParameters
from hil.protocols.errors import InputError, StorageError
from hil.protocols.messages import (
    Block,
    Cells,
    Direction,
    Identity,
    Operation,
    PulseBatch,
    Readings,
    Receipt,
    Region,
    TesterKind,
    Vectors,
)

MakeChip = Callable[..., Chip]
IDENTITY = Identity("PCM-HIL", "pcm-analog", "twin", "1", "chip-1", TesterKind.TWIN)
VARIANTS: dict[str, dict[str, Any]] = {
    "default": {},
    "spread": {"nu_spread": 0.2, "step_spread": 0.3, "stuck_fraction": 0.1},
    "fine converters": {"adc_bits": 12, "dac_bits": 10},
    "silent": {"read_noise": False, "programming_noise": False, "reset_noise": False, "drift": False},
}
Step = Callable[[Firmware, int], Readings | Receipt]


def steps(count: int) -> Iterator[Step]:
    """Operations of every kind, always the same ones."""
    rng = np.random.default_rng(4)
    for n in range(count):
        cells = Cells.of(rng.integers(2, size=50), rng.integers(64, size=50), rng.integers(32, size=50))
        counts = rng.integers(1, 4, 50).astype(np.uint16)
        codes, seconds = rng.integers(-127, 128, (7, 20)).astype(np.int8), float(10 ** rng.uniform(-6, 5))
        yield [_program(cells, counts), _wait(seconds), _read(cells), _multiply(codes)][n % 4]


def _program(cells: Cells, counts: Any) -> Step:
    return lambda f, n: f.program(n, PulseBatch(cells, Operation.SET, counts, f.capabilities.set_pulse))


def _wait(seconds: float) -> Step:
    return lambda f, n: f.wait(n, seconds)


def _read(cells: Cells) -> Step:
    return lambda f, n: f.read(n, cells)


def _multiply(codes: Any) -> Step:
    return lambda f, n: f.mvm(n, 0, Vectors(codes, np.ones(7, np.float32)), Direction.FORWARD, 4)


def register(firmware: Firmware) -> None:
    lines = np.arange(8, dtype=np.uint16)
    firmware.define(Region(0, (Block(1, np.arange(20, dtype=np.uint16), lines, lines + np.uint16(8), 0, 0),)))


def bytes_of(answer: Readings | Receipt | None) -> tuple[str, bytes]:
    return repr(answer), answer.codes.tobytes() if isinstance(answer, Readings) else b""


@pytest.fixture
def firmware(make_chip: MakeChip) -> Firmware:
    firmware = Firmware(make_chip())
    register(firmware)
    return firmware


@pytest.fixture
def path(firmware: Firmware, tmp_path: Path) -> Path:
    """A saved chip."""
    path = tmp_path / "chip.h5"
    firmware.read(1, Cells.of(0, np.arange(5), 0))
    chipfile.save(path, firmware, IDENTITY)
    return path


@pytest.mark.parametrize("stop", [0, 1, 2, 3, 4, 17])
@pytest.mark.parametrize("changes", VARIANTS.values(), ids=VARIANTS.keys())
def test_a_loaded_chip_goes_on_as_if_it_had_never_stopped(
    make_chip: MakeChip, tmp_path: Path, changes: dict[str, Any], stop: int
) -> None:
    path = tmp_path / "chip.h5"
    firmware, other = Firmware(make_chip(**changes)), Firmware(make_chip(**changes))
    register(firmware)
    register(other)
    for op_id, step in enumerate(steps(stop + 12), start=1):
        if op_id == stop + 1:
            chipfile.save(path, other, IDENTITY)
            other = chipfile.load(path)[0]
            register(other)
        assert bytes_of(step(firmware, op_id)) == bytes_of(step(other, op_id))
    assert other.chip.cells.tobytes() == firmware.chip.cells.tobytes()
    assert np.array_equal(other.chip.row_reads, firmware.chip.row_reads)
    assert np.array_equal(other.chip.nu, firmware.chip.nu)
    assert other.chip.parameters == firmware.chip.parameters
    assert other.chip.now_ns == firmware.chip.now_ns


@pytest.mark.parametrize("count", [1, 2, 3, 4])
def test_the_last_id_and_its_reply_are_kept(firmware: Firmware, tmp_path: Path, count: int) -> None:
    path, todo = tmp_path / "chip.h5", list(steps(count))
    replies = [step(firmware, op_id) for op_id, step in enumerate(todo, start=1)]
    chipfile.save(path, firmware, IDENTITY)
    loaded, model, chip_id = chipfile.load(path)
    register(loaded)
    assert (loaded.last_op_id, model, chip_id) == (count, "pcm-analog", "chip-1")
    before = loaded.chip.now_ns, repr(loaded.chip.normals.state())
    again = todo[-1](loaded, count)
    assert type(again) is type(replies[-1])
    assert bytes_of(again) == bytes_of(replies[-1])
    assert (loaded.chip.now_ns, repr(loaded.chip.normals.state())) == before


def test_a_chip_without_history_has_no_reply(make_chip: MakeChip, tmp_path: Path) -> None:
    chipfile.save(tmp_path / "new.h5", Firmware(make_chip()), IDENTITY)
    loaded, _, _ = chipfile.load(tmp_path / "new.h5")
    assert (loaded.last_op_id, loaded.last_operation, loaded.last_reply) == (0, None, None)


def test_saving_again_replaces_the_file_and_leaves_no_other(firmware: Firmware, path: Path) -> None:
    firmware.wait(2, 60.0)
    chipfile.save(path, firmware, IDENTITY)
    assert chipfile.load(path)[0].chip.now_ns == firmware.chip.now_ns
    assert [file.name for file in path.parent.iterdir()] == ["chip.h5"]


@pytest.mark.parametrize("size", [0, 5000, 20000])
def test_a_failing_write_leaves_the_old_file_and_nothing_else(firmware: Firmware, path: Path, size: int) -> None:
    before = path.read_bytes()
    firmware.wait(2, 60.0)
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, limits[1]))
    try:
        with pytest.raises(StorageError, match=r"cannot save the chip to .*chip\.h5: .*too large"):
            chipfile.save(path, firmware, IDENTITY)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert path.read_bytes() == before
    assert [file.name for file in path.parent.iterdir()] == ["chip.h5"]


@pytest.mark.parametrize("place", ["missing/chip.h5", "chip.h5/chip.h5"])
def test_a_folder_that_is_none_is_named(firmware: Firmware, path: Path, place: str) -> None:
    with pytest.raises(StorageError, match=place):
        chipfile.save(path.parent / place, firmware, IDENTITY)


def refused(path: Path) -> str:
    with pytest.raises(InputError) as caught:
        chipfile.load(path)
    assert str(path) in str(caught.value)
    return str(caught.value)


@pytest.mark.parametrize("kept", [0, 1, 8, 100, 2048, 0.3, 0.6, 0.9, 0.999])
def test_a_truncated_file_is_refused_by_path(path: Path, kept: float) -> None:
    content = path.read_bytes()
    path.write_bytes(content[: kept if isinstance(kept, int) else int(kept * len(content))])
    refused(path)


def test_what_is_no_chip_is_refused_by_path(tmp_path: Path) -> None:
    refused(tmp_path / "missing.h5")
    refused(tmp_path)
    text = tmp_path / "notes.txt"
    text.write_text("G = 5 uS\n")
    refused(text)
    other = tmp_path / "run.h5"
    with h5py.File(other, "w") as file:
        file["accuracy"] = [0.9]
    assert "holds no chip" in refused(other)


def change(name: str, values: Any) -> Callable[[h5py.File], None]:
    def act(file: h5py.File) -> None:
        del file[name]
        if values is not None:
            file[name] = values

    return act


DAMAGE: dict[str, Callable[[h5py.File], None]] = {
    "a later format": lambda file: file.attrs.__setitem__("format_version", 99),
    "no version": lambda file: file.attrs.__delitem__("format_version"),
    "no chip name": lambda file: file.attrs.__delitem__("chip"),
    "no description": change("about", None),
    "a description that is no JSON": change("about", "{"),
    "an empty description": change("about", "{}"),
    "a description that is a list": change("about", "[1]"),
    "a description of numbers": change("about", np.arange(3)),
    "an array missing": change("arrays/conductance", None),
    "an array of another type": change("arrays/conductance", np.zeros(4096)),
    "an array of another size": change("arrays/conductance", np.zeros(10, np.float32)),
    "an array of another shape": change("arrays/row_reads", np.zeros((64, 2), np.uint64)),
    "a group for an array": lambda file: (change("arrays/nu", None)(file), file.create_group("arrays/nu"))[0],
    "no codes of the last reply": change("reply_codes", None),
}


@pytest.mark.parametrize("damage", DAMAGE.values(), ids=DAMAGE.keys())
def test_a_damaged_file_is_refused_by_path(path: Path, damage: Callable[[h5py.File], None]) -> None:
    with h5py.File(path, "r+") as file:
        damage(file)
    refused(path)


def test_counts_of_pulses_and_reads_come_back_whole(make_chip: MakeChip) -> None:
    firmware = Firmware(make_chip())
    cells = Cells.of(0, [1, 2], 3)
    counts = np.array([5, 1000], np.uint16)
    for n in range(1, 601, 2):
        firmware.program(n, PulseBatch(cells, Operation.SET, counts, firmware.capabilities.set_pulse))
        firmware.read(n + 1, cells)
    again, _, _ = chipfile.parse(chipfile.dump(firmware, IDENTITY))
    places = again.chip.locate(cells)
    assert again.chip.count("set_count")[places].tolist() == [1500, 300_000]
    assert again.chip.count("read_count")[places].tolist() == [300, 300]
    assert again.chip.count("reset_count").sum() == 0


@pytest.mark.parametrize("size", [7, 2048, 4095])
def test_a_chip_is_the_same_whatever_the_parts_it_is_copied_in(
    make_chip: MakeChip, monkeypatch: pytest.MonkeyPatch, size: int
) -> None:
    firmware = Firmware(make_chip(**VARIANTS["spread"]))
    register(firmware)
    for n, step in enumerate(steps(40), 1):
        step(firmware, n)
    firmware.chip.carries["set_count"][::5] = 3
    monkeypatch.setattr(chipfile, "PART", size)
    again, _, _ = chipfile.parse(chipfile.dump(firmware, IDENTITY))
    for name in ("cells", "carries", "step_scale", "nu", "row_reads", "column_reads"):
        np.testing.assert_array_equal(getattr(again.chip, name), getattr(firmware.chip, name))


def test_a_dump_takes_little_more_memory_than_what_it_gives(make_chip: MakeChip) -> None:
    firmware = Firmware(make_chip(arrays=8, rows=512, columns=512))
    tracemalloc.start()
    content = chipfile.dump(firmware, IDENTITY)
    most = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert most < len(content) + firmware.chip.cells.nbytes / 4


def test_a_chip_of_before_flicker_is_loaded_without_a_key(path: Path) -> None:
    new = {"flicker", "inference", "endurance", "endurance_spread", "mean_decaying", "decay", "spread_step"}
    with h5py.File(path, "r+") as file:
        about = json.loads(file["about"][()])
        assert about.pop("key") > 2**32
        cell = about["parameters"]["cell"]
        about["parameters"]["cell"] = {name: value for name, value in cell.items() if name not in new}
        change("about", json.dumps(about))(file)
    chip = chipfile.load(path)[0].chip
    assert chip.constants["key"][0] == 0
    assert chip.parameters.cell == PcmParameters()
