"""A commit takes effect all at once, wherever its process is killed or the power fails."""

import itertools
import os
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest

from hil.data import journal as journal_module
from hil.data.columns import Column, Field, open_file
from hil.data.journal import PAGE, JournaledFile, recover
from hil.protocols.errors import DataError

Change = Callable[[int], None]
SYNC = "sync"


@dataclass
class Disk:
    """What a journal did to its file: changes no larger than a page, syncs, and the bytes at each commit."""

    changes: list[Change | str] = field(default_factory=list)
    commits: list[tuple[int, bytes]] = field(default_factory=list)  # changes so far, bytes of the file

    def lay(self, path: Path, changes: list[Change]) -> None:
        """Make the file that these changes leave."""
        handle = os.open(path, os.O_RDWR | os.O_CREAT | os.O_TRUNC)
        for change in changes:
            change(handle)
        os.close(handle)


def pwrite(data: bytes, offset: int) -> Change:
    return lambda handle: (os.pwrite(handle, data, offset), None)[1]


def ftruncate(size: int) -> Change:
    return lambda handle: os.ftruncate(handle, size)


@pytest.fixture
def disk(monkeypatch: pytest.MonkeyPatch) -> Disk:
    disk = Disk()
    write, cut, sync = journal_module.write_at, os.ftruncate, os.fsync

    def write_pages(handle: int, data: bytes, offset: int) -> None:
        write(handle, data, offset)
        for start in range(0, len(data), PAGE):
            disk.changes.append(pwrite(bytes(data[start : start + PAGE]), offset + start))

    def cut_off(handle: int, size: int) -> None:
        cut(handle, size)
        disk.changes.append(ftruncate(size))

    def wait(handle: int) -> None:
        sync(handle)
        disk.changes.append(SYNC)

    monkeypatch.setattr(journal_module, "write_at", write_pages)
    monkeypatch.setattr("hil.data.journal.os.ftruncate", cut_off)
    monkeypatch.setattr("hil.data.journal.os.fsync", wait)
    return disk


@contextmanager
def failing_once(function: str, call: int) -> Iterator[None]:
    """A disk on which one call of a function of `os` fails; they are counted from 0."""
    real, calls = getattr(os, function), itertools.count()

    def fails_once(*arguments: Any) -> Any:
        if next(calls) == call:
            raise OSError(5, "Input/output error")
        return real(*arguments)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(f"hil.data.journal.os.{function}", fails_once)
        yield


def write_columns(path: Path, disk: Disk, durable: bool) -> None:
    """Two columns and some groups that grow, committed many times."""
    journal = JournaledFile(path, True, durable)
    file = open_file(journal, True)
    rng = np.random.default_rng(1)
    columns = [Column(file, Field(name, "<i4", "", ""), 4 * PAGE) for name in "ab"]
    for round_ in range(12):
        for column in columns:
            column.append(rng.integers(0, 2**31, int(rng.integers(0, 9000)), np.int32))
            column.flush()
        file.create_group(f"group{round_}").attrs["number"] = round_
        file.flush()
        journal.commit()
        disk.commits.append((len(disk.changes), path.read_bytes()))
    file.close()
    journal.close()


def states(disk: Disk, number: int) -> tuple[bytes, bytes]:
    """The commit before a change and the one that it belongs to."""
    before, after = b"", b""
    for count, content in disk.commits:
        before, after = after, content
        if number < count:
            break
    return before, after


def assert_whole(path: Path, before: bytes, after: bytes) -> None:
    """HDF5 ignores what lies behind the end that its superblock tells."""
    recover(path)
    found = path.read_bytes()
    assert found[: len(before)] == before or found[: len(after)] == after


def test_a_kill_at_any_moment_leaves_one_commit_or_the_next(tmp_path: Path, disk: Disk) -> None:
    write_columns(tmp_path / "run.h5", disk, durable=False)
    changes = [change for change in disk.changes if not isinstance(change, str)]
    assert len(changes) > 300
    copy = tmp_path / "copy.h5"
    for number in range(len(changes)):
        disk.lay(copy, changes[:number])
        assert_whole(copy, *states(disk, number))


def test_the_loss_of_power_at_any_moment_leaves_a_commit_of_a_durable_file(tmp_path: Path, disk: Disk) -> None:
    """Until it is synced, any part of what was written may be there or not."""
    write_columns(tmp_path / "run.h5", disk, durable=True)
    copy, chance = tmp_path / "copy.h5", np.random.default_rng(1)
    synced: list[Change] = []
    loose: list[Change] = []
    for number, change in enumerate(list(disk.changes)):  # recovery adds its own
        if isinstance(change, str):
            synced, loose = synced + loose, []
            continue
        loose.append(change)
        disk.lay(copy, synced + [change for change in loose if chance.random() < 0.7])
        before, after = states(disk, number)
        earlier = states(disk, number - len(loose))[0]
        recover(copy)
        found = copy.read_bytes()
        assert any(found[: len(content)] == content for content in (after, before, earlier))


def test_nothing_is_written_before_the_commit(tmp_path: Path) -> None:
    path = tmp_path / "run.h5"
    journal = JournaledFile(path, True)
    with open_file(journal, True) as file:
        file.create_group("later")
        file.flush()
        assert path.stat().st_size == 0
        journal.commit()
        shutil.copyfile(path, tmp_path / "copy.h5")
    journal.close()
    with h5py.File(tmp_path / "copy.h5") as copy:
        assert list(copy) == ["later"]


def test_pages_beyond_the_end_are_written_at_once_and_count_from_the_commit_on(tmp_path: Path) -> None:
    path = tmp_path / "run.h5"
    journal = JournaledFile(path, True)
    journal.write(b"a" * 100)
    journal.commit()
    journal.seek(PAGE)
    journal.write(b"b" * 3 * PAGE)
    journal.seek(50)
    journal.write(b"c" * 2 * PAGE)  # the page that begins before the end waits, and the last one, which is not whole
    assert path.read_bytes() == b"a" * 100 + bytes(PAGE - 100) + b"c" * PAGE + b"b" * 2 * PAGE
    journal.commit()
    assert path.read_bytes() == b"a" * 50 + b"c" * 2 * PAGE + b"b" * (2 * PAGE - 50)
    journal.close()


def test_chunks_that_share_pages_go_to_the_disk_once(tmp_path: Path, disk: Disk) -> None:
    path = tmp_path / "run.h5"
    journal = JournaledFile(path, True)
    journal.write(b"a" * 100)
    journal.commit()
    before = len(disk.changes)
    chunks = [bytes([number]) * (10 * PAGE + 1000) for number in range(8)]
    for chunk in chunks:
        journal.write(chunk)
    journal.seek(PAGE + 10)
    journal.write(b"b" * 5)  # in a page that the disk has already
    assert journal.read(5) == chunks[0][:5]
    journal.commit()
    expected = bytearray(b"a" * 100 + b"".join(chunks))
    expected[PAGE + 10 : PAGE + 15] = b"b" * 5
    assert path.read_bytes() == expected
    assert len(disk.changes) - before < 8 * 11 + 10  # pages, those of the journal and the end of the file
    journal.close()


def test_a_commit_that_failed_amid_its_pages_can_be_finished_until_the_next_one_is(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "run.h5"
    journal = JournaledFile(path, True)
    journal.write(b"a" * 8 * PAGE)
    journal.commit()
    for page in (1, 3, 5):  # none beside another
        journal.seek(page * PAGE)
        journal.write(b"b" * PAGE)
    with failing_once("pwrite", 2), pytest.raises(OSError, match="Input/output"):  # after journal and first page
        journal.commit()
    journal.seek(8 * PAGE)
    journal.write(b"c" * 4 * PAGE)  # would lie where the journal does
    copy = tmp_path / "copy.h5"
    shutil.copyfile(path, copy)
    assert recover(copy)
    second = b"".join((b"b" if page in (1, 3, 5) else b"a") * PAGE for page in range(8))
    assert copy.read_bytes() == second

    real = os.pwrite

    def full(handle: int, data: bytes, offset: int) -> int:
        if bytes(data[:1]) == b"c":
            raise OSError(28, "No space left on device")
        return real(handle, data, offset)

    with monkeypatch.context() as patch:
        patch.setattr("hil.data.journal.os.pwrite", full)
        with pytest.raises(OSError, match="No space"):
            journal.commit()
    assert path.read_bytes() == second  # the failed commit was finished first
    journal.commit()
    journal.close()
    assert path.read_bytes() == second + b"c" * 4 * PAGE


def test_a_kill_after_chunks_were_cut_off_again_leaves_one_commit_or_the_next(tmp_path: Path, disk: Disk) -> None:
    path, copy = tmp_path / "run.h5", tmp_path / "copy.h5"
    journal = JournaledFile(path, True)
    journal.write(b"a" * 4 * PAGE)
    journal.commit()
    before = path.read_bytes()
    journal.write(b"b" * 20 * PAGE)
    journal.truncate(4 * PAGE)
    for page in (1, 3):
        journal.seek(page * PAGE)
        journal.write(b"c" * PAGE)
    journal.commit()
    after = path.read_bytes()
    changes = [change for change in disk.changes if not isinstance(change, str)]
    for number in range(4, len(changes) + 1):
        disk.lay(copy, changes[:number])
        assert_whole(copy, before, after)
    journal.close()


@pytest.mark.parametrize("function", ["fsync", "ftruncate"])
def test_nothing_goes_where_a_commit_is_that_may_have_to_be_finished(tmp_path: Path, function: str) -> None:
    path, copy = tmp_path / "run.h5", tmp_path / "copy.h5"
    journal = JournaledFile(path, True, durable=True)
    journal.write(b"a" * 2 * PAGE)
    journal.commit()
    journal.seek(0)
    journal.write(b"b" * PAGE)  # refers to the next
    journal.seek(2 * PAGE)
    journal.write(b"B" * 2 * PAGE)
    with failing_once(function, 1), pytest.raises(OSError, match="Input/output"):  # after the journal
        journal.commit()
    journal.seek(2 * PAGE)
    journal.write(b"C" * 2 * PAGE)
    shutil.copyfile(path, copy)
    assert recover(copy)
    assert copy.read_bytes() == b"b" * PAGE + b"a" * PAGE + b"B" * 2 * PAGE
    journal.commit()
    assert path.read_bytes() == b"b" * PAGE + b"a" * PAGE + b"C" * 2 * PAGE
    journal.close()


def test_a_chunk_that_the_disk_does_not_take_is_told_by_the_commit(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "run.h5"
    journal = JournaledFile(path, True)
    journal.write(b"a" * PAGE)
    journal.commit()
    journal.write(b"b" * PAGE)
    with monkeypatch.context() as patch:
        patch.setattr("hil.data.journal.os.pwrite", lambda *_: (_ for _ in ()).throw(OSError(28, "No space left")))
        assert journal.write(b"c" * 2 * PAGE) == 2 * PAGE
        with pytest.raises(OSError, match="No space"):
            journal.commit()
    assert path.read_bytes()[:PAGE] == b"a" * PAGE
    journal.seek(0)
    assert journal.read() == b"a" * PAGE + b"b" * PAGE + b"c" * 2 * PAGE
    journal.commit()  # there is room again
    assert path.read_bytes() == b"a" * PAGE + b"b" * PAGE + b"c" * 2 * PAGE
    journal.close()


def test_a_new_file_stays_empty_until_it_is_committed(tmp_path: Path) -> None:
    journal = JournaledFile(tmp_path / "run.h5", True)
    journal.write(b"a" * 2 * PAGE)
    assert (tmp_path / "run.h5").read_bytes() == b""
    journal.close()


def test_what_was_cut_off_does_not_come_back(tmp_path: Path) -> None:
    path = tmp_path / "run.h5"
    journal = JournaledFile(path, True)
    journal.write(b"a" * PAGE)
    journal.commit()
    journal.write(b"b" * 4 * PAGE)
    journal.truncate(2 * PAGE)
    journal.seek(6 * PAGE)
    journal.write(b"c")
    journal.seek(0)
    expected = b"a" * PAGE + b"b" * PAGE + bytes(4 * PAGE) + b"c"
    assert journal.read() == expected
    journal.commit()
    journal.close()
    assert path.read_bytes() == expected


def test_room_that_nobody_wrote_is_taken_all_the_same(tmp_path: Path) -> None:
    """So that no room lacks when it is written to."""
    path = tmp_path / "run.h5"
    journal = JournaledFile(path, True)
    journal.write(b"a" * PAGE)
    journal.commit()
    journal.seek(100 * PAGE)
    journal.write(b"b" * PAGE)
    journal.commit()
    journal.close()
    assert path.stat().st_blocks * 512 >= path.stat().st_size == 101 * PAGE


@pytest.mark.parametrize("growth", [0, 400])
def test_it_reads_what_was_written_like_a_file(growth: int, tmp_path: Path) -> None:
    chance = np.random.default_rng(1)
    with (tmp_path / "plain").open("w+b") as plain:
        journal = JournaledFile(tmp_path / "journaled", True)
        for number in range(300):
            offset, size = int(chance.integers(60_000 + growth * number)), int(chance.integers(9_000))
            for file in (plain, journal):
                file.seek(offset)
                file.write(bytes([number % 256]) * size)
                file.seek(offset)
            offset = int(chance.integers(60_000 + growth * number))
            assert plain.seek(offset) == journal.seek(offset)
            assert plain.read(5_000) == journal.read(5_000)
            if number % 20 == 0:
                journal.commit()
        assert plain.seek(0, os.SEEK_END) == journal.seek(0, os.SEEK_END)
        journal.commit()
        journal.close()
        plain.flush()
        assert (tmp_path / "plain").read_bytes() == (tmp_path / "journaled").read_bytes()


def test_a_commit_that_fails_leaves_the_last_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "run.h5"
    journal = JournaledFile(path, True)
    journal.write(memoryview(b"a" * 9000))
    journal.commit()
    journal.seek(0)
    journal.write(memoryview(b"b" * 20_000))

    def full(handle: int, data: bytes, offset: int) -> int:
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr("hil.data.journal.os.pwrite", full)
        with pytest.raises(OSError, match="No space"):
            journal.commit()
    assert path.read_bytes()[:9000] == b"a" * 9000
    journal.commit()  # there is room again
    assert path.read_bytes() == b"b" * 20_000
    journal.close()


@pytest.mark.parametrize("vanish", [lambda path: shutil.rmtree(path.parent), lambda path: path.unlink()])
def test_a_file_that_was_removed_is_not_written_on(tmp_path: Path, vanish: Callable[[Path], None]) -> None:
    path = tmp_path / "runs" / "run.h5"
    path.parent.mkdir()
    journal = JournaledFile(path, True)
    journal.write(memoryview(b"a"))
    vanish(path)
    with pytest.raises(FileNotFoundError):
        journal.commit()
    journal.close()


def test_a_file_that_was_replaced_is_not_written_on(tmp_path: Path) -> None:
    path = tmp_path / "run.h5"
    journal = JournaledFile(path, True)
    path.unlink()
    path.write_text("another")
    with pytest.raises(OSError, match="another file has taken its place"):
        journal.commit()
    journal.close()
    assert path.read_text() == "another"


@pytest.fixture
def torn(tmp_path: Path, disk: Disk) -> Path:
    """A file whose writer was killed between the journal and the pages."""
    path = tmp_path / "torn.h5"
    write_columns(tmp_path / "run.h5", disk, durable=False)
    changes = [change for change in disk.changes if not isinstance(change, str)]
    disk.lay(path, changes[: disk.commits[-1][0] - 2])
    return path


def test_recovery_is_needed_once(torn: Path) -> None:
    assert recover(torn)
    assert not recover(torn)
    with h5py.File(torn) as file:
        assert "group11" in file


@pytest.mark.skipif(os.geteuid() == 0 and sys.platform == "linux", reason="root may write everywhere")
def test_a_file_that_cannot_be_mended_where_it_is_is_told(torn: Path) -> None:
    torn.chmod(0o444)
    with pytest.raises(DataError, match="copy it to where it can be written"):
        recover(torn)


def test_two_processes_cannot_write_one_file(tmp_path: Path) -> None:
    path = tmp_path / "run.h5"
    journal = JournaledFile(path, True)
    program = (
        "import sys, pathlib; from hil.data.journal import JournaledFile as J; J(pathlib.Path(sys.argv[1]), False)"
    )
    done = subprocess.run([sys.executable, "-c", program, str(path)], capture_output=True, text=True, check=False)
    assert "BlockingIOError" in done.stderr
    journal.close()
