"""A kept chip survives the death of its process with all that was done, and belongs to one process at a time."""

import os
import resource
import shutil
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pytest

from hil.mock_hw import keeper as keeper_module
from hil.mock_hw.array import Chip
from hil.mock_hw.chips import CHIPS
from hil.mock_hw.firmware import Firmware
from hil.mock_hw.instrument import Instrument
from hil.mock_hw.keeper import ChipFile, Keeper
from hil.mock_hw.twin import identity_of
from hil.protocols import frames
from hil.protocols.errors import InputError
from hil.protocols.messages import Block, Cells, Direction, Operation, PulseBatch, Readings, Region
from hil.protocols.requests import Define, Failure, Fault, Multiply, Program, Read, Request, Wait

MakeChip = Callable[..., Chip]
IDENTITY = identity_of("pcm-analog", "chip-1")
LINES = np.arange(32, dtype=np.uint16)
DEFINE = Define(Region(0, (Block(1, LINES, LINES[:8], LINES[8:16], 0, 0),)))


def request(op_id: int) -> Request:
    """The operation of this id: it is always the same."""
    rng = np.random.default_rng(op_id)
    cells = Cells.of(rng.integers(2, size=20), rng.integers(64, size=20), rng.integers(32, size=20))
    shape, counts = CHIPS["pcm-analog"].set_pulse, rng.integers(1, 4, 20).astype(np.uint16)
    requests: list[Request] = [
        Program(op_id, PulseBatch(cells, Operation.SET, counts, shape)),
        Read(op_id, cells),
        Multiply(op_id, 0, Direction.FORWARD, 4, rng.integers(-127, 128, (3, 32)).astype(np.int8)),
        Wait(op_id, float(10 ** rng.uniform(-6, 2))),
    ]
    return requests[op_id % 4]


def memory(firmware: Firmware) -> tuple[object, ...]:
    """All that a chip remembers."""
    chip, reply = firmware.chip, firmware.last_reply
    codes = reply.codes.tobytes() if isinstance(reply, Readings) else b""
    reads = (chip.row_reads.tobytes(), chip.column_reads.tobytes())
    return (
        chip.cells.tobytes(),
        chip.now_ns,
        repr(chip.normals.state()),
        *reads,
        firmware.last_op_id,
        repr(reply),
        codes,
    )


def die(path: Path, folder: Path) -> Path:
    """What a death at this moment leaves of a chip's files, in a new folder."""
    folder.mkdir()
    for file in path.parent.glob(f"{path.name}*"):
        shutil.copy(file, folder)
    return folder / path.name


@contextmanager
def loaded(path: Path) -> Iterator[Firmware]:
    file = ChipFile(path)
    try:
        yield file.load()[0]
    finally:
        file.release()


@pytest.fixture
def path(tmp_path: Path) -> Path:
    (tmp_path / "kept").mkdir()
    return tmp_path / "kept" / "chip.h5"


@pytest.fixture
def served(make_chip: MakeChip, path: Path) -> Iterator[Instrument]:
    """A twin whose requests are kept, as a server does it."""
    file = ChipFile(path)
    firmware = Firmware(make_chip())
    yield Instrument(firmware, IDENTITY, Keeper(file, firmware, IDENTITY).record)
    file.release()


class TestDeath:
    def test_what_was_done_is_done_again(self, served: Instrument, path: Path, tmp_path: Path) -> None:
        served.answer(DEFINE)
        for op_id in range(1, 20):
            served.answer(request(op_id))
            with loaded(die(path, tmp_path / str(op_id))) as firmware:
                assert memory(firmware) == memory(served.firmware)

    def test_it_is_a_power_up(self, served: Instrument, path: Path, tmp_path: Path) -> None:
        served.answer(DEFINE)
        served.answer(request(1))
        with loaded(die(path, tmp_path / "dead")) as firmware:
            assert (firmware.boots, firmware.regions, firmware.grounded) == (2, {}, True)

    def test_each_power_up_counts(self, served: Instrument, path: Path, tmp_path: Path) -> None:
        dead = die(path, tmp_path / "0")
        for count in range(1, 4):
            file = ChipFile(dead)
            firmware = file.load()[0]
            assert firmware.boots == count + 1
            Keeper(file, firmware, IDENTITY)
            dead = die(dead, tmp_path / str(count))
            file.release()

    def test_what_was_refused_is_refused_again(self, served: Instrument, path: Path, tmp_path: Path) -> None:
        for asked in (request(2), request(1), request(1), request(3), request(1), Wait(4, -1.0), request(2)):
            served.answer(asked)
        with loaded(die(path, tmp_path / "dead")) as firmware:
            assert memory(firmware) == memory(served.firmware)

    def test_regions_of_before_the_last_saving_are_known(
        self, served: Instrument, path: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(keeper_module, "LARGEST_JOURNAL", 1500)
        served.answer(DEFINE)
        sizes = []
        for op_id in range(1, 60):
            assert not isinstance(served.answer(request(op_id)), Failure)
            sizes.append(path.with_name("chip.h5.journal").stat().st_size)
            with loaded(die(path, tmp_path / str(op_id))) as firmware:
                assert memory(firmware) == memory(served.firmware)
        assert max(sizes) < 2500
        assert (np.diff(sizes) < 0).sum() > 3

    def test_between_saving_and_emptying_the_journal_is_no_bad_moment(
        self, served: Instrument, path: Path, tmp_path: Path
    ) -> None:
        served.answer(DEFINE)
        for op_id in range(1, 9):
            served.answer(request(op_id))
        dead = die(path, tmp_path / "dead")
        with loaded(dead) as firmware:
            file = ChipFile(tmp_path / "other.h5")
            file.save(firmware, IDENTITY)
            file.release()
        shutil.move(tmp_path / "other.h5", dead)
        assert dead.with_name("chip.h5.journal").stat().st_size > 0
        with loaded(dead) as firmware:
            assert memory(firmware) == memory(served.firmware)

    def test_a_record_that_was_written_in_part_was_not_done(
        self, served: Instrument, path: Path, tmp_path: Path
    ) -> None:
        served.answer(DEFINE)
        served.answer(request(4))
        before, journal = memory(served.firmware), path.with_name("chip.h5.journal")
        start = journal.stat().st_size
        served.answer(request(5))
        whole, dead = journal.read_bytes(), die(path, tmp_path / "dead")
        for size in range(start, len(whole)):
            dead.with_name("chip.h5.journal").write_bytes(whole[:size])
            with loaded(dead) as firmware:
                assert memory(firmware) == before
        assert memory(served.firmware) != before

    def test_a_journal_without_a_whole_beginning_is_none(self, served: Instrument, path: Path, tmp_path: Path) -> None:
        before, dead = memory(served.firmware), die(path, tmp_path / "dead")
        whole = path.with_name("chip.h5.journal").read_bytes()
        for size in range(len(whole)):
            dead.with_name("chip.h5.journal").write_bytes(whole[:size])
            with loaded(dead) as firmware:
                assert memory(firmware) == before


class TestWhatIsRefused:
    def test_a_journal_that_is_damaged_amid_is_not_guessed_at(
        self, served: Instrument, path: Path, tmp_path: Path
    ) -> None:
        for op_id in (4, 5):
            served.answer(request(op_id))
        dead = die(path, tmp_path / "dead")
        journal = dead.with_name("chip.h5.journal")
        content = bytearray(journal.read_bytes())
        content[-1] ^= 1
        journal.write_bytes(content + b"".join(frames.encode_request(request(8), 0)))
        with pytest.raises(InputError, match=r"journal is damaged: remove it"), loaded(dead):
            pass
        assert journal.read_bytes().startswith(content)

    def test_a_journal_of_another_chip_or_of_a_later_state(
        self, served: Instrument, path: Path, tmp_path: Path, make_chip: MakeChip
    ) -> None:
        older = die(path, tmp_path / "older")
        served.answer(request(4))
        for name, firmware, chip in (("other", Firmware(make_chip()), "chip-2"), ("later", served.firmware, "chip-1")):
            file = ChipFile(tmp_path / f"{name}.h5")
            Keeper(file, firmware, identity_of("pcm-analog", chip))
            file.release()
        for journal in (tmp_path / "other.h5.journal", tmp_path / "later.h5.journal"):
            shutil.copy(journal, older.with_name("chip.h5.journal"))
            with (
                pytest.raises(InputError, match=r"does not go on from the chip beside it \(chip-1, last operation 0\)"),
                loaded(older),
            ):
                pass

    def test_a_request_that_cannot_be_noted_is_not_done(self, served: Instrument, path: Path, tmp_path: Path) -> None:
        served.answer(request(4))
        before = memory(served.firmware)
        journal = path.with_name("chip.h5.journal")
        limits = resource.getrlimit(resource.RLIMIT_FSIZE)
        resource.setrlimit(resource.RLIMIT_FSIZE, (journal.stat().st_size + 10, limits[1]))
        try:
            answer = served.answer(request(5))
        finally:
            resource.setrlimit(resource.RLIMIT_FSIZE, limits)
        assert isinstance(answer, Failure)
        assert (answer.code, "nothing was done" in answer.text) == (Fault.HARDWARE, True)
        assert memory(served.firmware) == before
        served.answer(request(8))
        with loaded(die(path, tmp_path / "dead")) as firmware:
            assert memory(firmware) == memory(served.firmware)


class TestLock:
    def test_one_user_at_a_time(self, path: Path) -> None:
        file = ChipFile(path)
        with pytest.raises(InputError, match=r"chip\.h5 is in use by another process"):
            ChipFile(path)
        code = f"from pathlib import Path; from hil.mock_hw.keeper import ChipFile; ChipFile(Path({str(path)!r}))"
        other = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
        assert "chip.h5 is in use by another process" in other.stderr
        file.release()
        ChipFile(path).release()

    def test_nothing_is_left_of_it(self, path: Path) -> None:
        file = ChipFile(path)
        file.release()
        file.release()
        assert os.listdir(path.parent) == []

    def test_a_chip_saved_at_the_end_has_no_journal(self, make_chip: MakeChip, path: Path) -> None:
        file, firmware = ChipFile(path), Firmware(make_chip())
        Keeper(file, firmware, IDENTITY).save_last()
        file.release()
        assert os.listdir(path.parent) == ["chip.h5"]


SERVER = """
import sys
from pathlib import Path
from hil.mock_hw import keeper
from hil.mock_hw.clocks import Clock
from hil.mock_hw.instrument import Instrument
from hil.mock_hw.ports import make_ports
from hil.mock_hw.tcp_server import TcpServer
from hil.mock_hw.twin import identity_of

keeper.LARGEST_JOURNAL = 20_000
file = keeper.ChipFile(Path(sys.argv[1]))
firmware, model, chip = file.load()
identity = identity_of(model, chip)
instrument = Instrument(firmware, identity, keeper.Keeper(file, firmware, identity).record)
server = TcpServer(instrument, make_ports(instrument, "frames"), Clock(), "127.0.0.1", 0)
print(server.uri, flush=True)
server.run()
"""


def work_until_killed(server: "subprocess.Popen[str]", first: int, count: int) -> int:
    """Send operations from `first` on, and kill the server amid the last of so many; the last id that was answered."""
    assert server.stdout is not None
    host, _, port = server.stdout.readline().strip().removeprefix("tcp://").partition(":")
    with socket.create_connection((host, int(port)), 10) as line:
        for asked in (DEFINE, *map(request, range(first, first + count))):
            line.sendall(b"".join(frames.encode_request(asked, 1)))
            assert line.recv(10_000)[3] != frames.FAILURE
        line.sendall(b"".join(frames.encode_request(request(first + count), 1)))
        time.sleep(count % 7 * 1e-4)
        server.kill()
    server.wait(10)
    return first + count - 1


def test_a_killed_server_has_lost_nothing(make_chip: MakeChip, path: Path) -> None:
    rng, reference = np.random.default_rng(2), Instrument(Firmware(make_chip()), IDENTITY)
    file = ChipFile(path)
    file.save(reference.firmware, IDENTITY)
    file.release()
    for _ in range(3):
        first = reference.firmware.last_op_id + 1
        with subprocess.Popen([sys.executable, "-c", SERVER, str(path)], stdout=subprocess.PIPE, text=True) as server:
            answered = work_until_killed(server, first, int(rng.integers(1, 400)))
        with loaded(path) as firmware:
            assert firmware.last_op_id in (answered, answered + 1)
            reference.firmware.boot()
            for asked in (DEFINE, *map(request, range(first, firmware.last_op_id + 1))):
                reference.answer(asked)
            assert memory(firmware) == memory(reference.firmware)
