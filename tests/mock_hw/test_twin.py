"""The twin in process: the seed and the commands decide everything."""

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from hil.mock_hw import chipfile
from hil.mock_hw.keeper import ChipFile
from hil.mock_hw.twin import TwinTester
from hil.protocols.errors import StorageError, TesterError
from hil.protocols.messages import (
    Block,
    Cells,
    Direction,
    Operation,
    PulseBatch,
    Readings,
    Receipt,
    TesterKind,
    Vectors,
)

MakeTwin = Callable[..., TwinTester]
CELLS = Cells.of([0, 1] * 40, np.arange(80) % 64, np.arange(80) % 8)


def run(twin: TwinTester, steps: int = 12) -> bytes:
    """Operations of every kind; all that they answered and all that they left behind."""
    lines = np.arange(16, dtype=np.uint16)
    region = twin.register([Block(1, np.arange(30, dtype=np.uint16), lines[::2], lines[1::2], 0, 0)])
    c, rng = twin.capabilities(), np.random.default_rng(3)
    answers: list[Readings | Receipt] = []
    for step in range(steps):
        kind = Operation.RESET if step % 4 == 3 else Operation.SET
        counts = rng.integers(1, 4, len(CELLS)).astype(np.uint16)
        answers.append(
            twin.program(PulseBatch(CELLS, kind, counts, c.set_pulse if kind == Operation.SET else c.reset_pulse))
        )
        answers.append(twin.wait(float(10 ** rng.uniform(-6, 6))))
        answers.append(twin.read(CELLS))
        for way in Direction:
            codes = rng.integers(-127, 128, (9, region.inputs(way))).astype(np.int8)
            answers.append(twin.mvm(region, Vectors(codes, np.ones(9, np.float32)), way, 3))
    return b"".join(
        repr(answer).encode() + (answer.codes.tobytes() if isinstance(answer, Readings) else b"") for answer in answers
    )


@pytest.mark.parametrize("changes", [{}, {"nu_spread": 0.2, "step_spread": 0.2, "stuck_fraction": 0.1}])
def test_the_same_seed_and_the_same_commands_give_the_same_bytes(
    make_twin: MakeTwin, changes: dict[str, float]
) -> None:
    assert run(make_twin(seed=5, **changes)) == run(make_twin(seed=5, **changes))


def test_another_seed_gives_another_chip_and_other_noise(make_twin: MakeTwin) -> None:
    assert run(make_twin(seed=5)) != run(make_twin(seed=6))


def test_the_size_of_batches_decides_nothing_about_a_chip_without_noise_and_drift(make_twin: MakeTwin) -> None:
    whole, halves = make_twin("ideal"), make_twin("ideal")
    shape = whole.capabilities().set_pulse
    pulses = PulseBatch(CELLS, Operation.SET, np.full(len(CELLS), 3, np.uint16), shape)
    whole.program(pulses)
    for part in (slice(0, 40), slice(40, None)):
        halves.program(pulses[part])
    assert np.array_equal(whole.read(CELLS).codes, halves.read(CELLS).codes)


def test_it_never_passes_for_hardware(make_twin: MakeTwin) -> None:
    assert make_twin().identify().kind == TesterKind.TWIN


def with_file(twin: TwinTester, path: Path) -> TwinTester:
    """The same twin, kept on disk."""
    return TwinTester(vars(twin)["_firmware"], "pcm-analog", "chip-7", ChipFile(path))


def test_closing_keeps_the_chip_on_disk_once(make_twin: MakeTwin, tmp_path: Path) -> None:
    path = tmp_path / "chip.h5"
    with with_file(make_twin(), path) as twin:
        twin.wait(7.0)
        assert not path.exists()
    firmware, model, chip_id = chipfile.load(path)
    assert (firmware.chip.now_ns, model, chip_id) == (7_000_000_000, "pcm-analog", "chip-7")
    path.unlink()
    twin.close()
    assert not path.exists()


def test_a_chip_that_could_not_be_saved_is_not_lost(make_twin: MakeTwin, tmp_path: Path) -> None:
    twin = with_file(make_twin(), tmp_path / "chip.h5")
    in_the_way = tmp_path / "chip.h5.part"
    in_the_way.mkdir()
    with pytest.raises(StorageError, match=r"chip\.h5"):
        twin.close()
    in_the_way.rmdir()
    twin.close()
    assert (tmp_path / "chip.h5").exists()


def test_a_closed_twin_says_which_chip_it_was(make_twin: MakeTwin) -> None:
    twin = make_twin()
    twin.close()
    with pytest.raises(TesterError, match="chip-1 is closed"):
        twin.wait(0.0)
