"""Columns hold what was appended, and after a kill what was flushed."""

import shutil
import signal
import struct
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from hil.data import columns
from hil.data.column_reader import ColumnReader, TableReader
from hil.data.columns import Codec, Column, Field, Table, open_file, uninterrupted
from hil.data.journal import JournaledFile
from hil.protocols.errors import DataError, StorageError

CHUNK = 8
ROOM = columns.ROOM * CHUNK
FIELD = Field("x", "<i4", "A", "a current")
ROW = (Field("n", "<i8", "", "number"), Field("kind", "u1", "", "kind"), Field("unit", "S4", "", "unit"))


@contextmanager
def journaled(path: Path, new: bool = True) -> Iterator[Any]:
    """An HDF5 file for columns; its `commit` is kept beside it."""
    journal = JournaledFile(path, new)
    with open_file(journal, new) as file:
        COMMIT[file] = journal.commit
        yield file
    journal.close()


COMMIT: dict[Any, Callable[[], None]] = {}


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "columns.h5"


@pytest.fixture
def file(path: Path) -> Iterator[Any]:
    with journaled(path) as opened:
        yield opened


def new_column(file: Any) -> Column:
    column = Column(file, FIELD, CHUNK * 4)
    column.create(FIELD.dtype)
    return column


def flush(file: Any, *columns: Column) -> None:
    for column in columns:
        column.flush()
    file.flush()
    COMMIT[file]()


@contextmanager
def as_a_killed_writer_leaves_it(path: Path) -> Iterator[Any]:
    """A copy of the bytes that the system has, which is what remains of the file when its writer is killed now."""
    copy = path.with_suffix(".copy.h5")
    shutil.copyfile(path, copy)
    with h5py.File(copy, "r") as opened:
        yield opened


def read(path: Path, part: Any = slice(None)) -> Any:
    with as_a_killed_writer_leaves_it(path) as copy:
        return ColumnReader(copy["x"])[part]


def failing(error: BaseException) -> Callable[..., None]:
    """A function that does nothing but raise."""

    def fail(*_: Any, **__: Any) -> None:
        raise error

    return fail


def numbers(start: int, stop: int) -> np.ndarray[Any, np.dtype[np.int32]]:
    return np.arange(start, stop, dtype=np.int32)


@settings(max_examples=60, deadline=None)
@given(sizes=st.lists(st.integers(0, 3 * CHUNK), max_size=12), flushes=st.lists(st.booleans(), min_size=12))
def test_what_was_flushed_is_read_back_and_nothing_else(
    tmp_path_factory: pytest.TempPathFactory, sizes: list[int], flushes: list[bool]
) -> None:
    path = tmp_path_factory.mktemp("columns") / "columns.h5"
    with journaled(path) as file:
        column = new_column(file)
        flush(file, column)
        total = flushed = 0
        for size, flush_now in zip(sizes, flushes, strict=False):
            assert column.append(numbers(total, total + size)) == total
            total += size
            if flush_now:
                flush(file, column)
                flushed = total
            np.testing.assert_array_equal(read(path), numbers(0, flushed))
        column.settle()
        flush(file, column)
        np.testing.assert_array_equal(read(path), numbers(0, total))
        assert file["x/values"].shape == (total,)  # once settled, other programs see the whole column in one dataset


@pytest.mark.parametrize("closed", [False, True])
@pytest.mark.parametrize("size", [0, 3, CHUNK, 2 * CHUNK + 1])
def test_a_column_is_continued_where_it_ended(path: Path, size: int, closed: bool) -> None:
    with journaled(path) as file:
        column = new_column(file)
        column.append(numbers(0, size))
        if closed:
            column.settle()
        flush(file, column)
    with journaled(path, new=False) as file:
        column = Column(file, FIELD, CHUNK * 4)
        assert len(column) == size
        assert column.append(numbers(size, 2 * size + 1)) == size
        flush(file, column)
        np.testing.assert_array_equal(read(path), numbers(0, 2 * size + 1))
        assert file["x/values"].shape[0] % CHUNK == 0  # no chunk is compressed twice


@pytest.mark.parametrize("now", ["zstd", "none"])
@pytest.mark.parametrize("before", ["lz4", "none"])
def test_a_column_goes_on_with_the_compression_that_it_has(path: Path, before: Codec, now: Codec) -> None:
    with journaled(path) as file:
        column = Column(file, replace(FIELD, codec=before), CHUNK * 4)
        column.append(numbers(0, 2 * CHUNK + 3))
        column.settle()
        flush(file, column)
    with journaled(path, new=False) as file:
        column = Column(file, replace(FIELD, codec=now), CHUNK * 4)
        column.append(numbers(2 * CHUNK + 3, 5 * CHUNK + 1))
        column.settle()
        values = file["x/values"].id
        assert values.get_create_plist().get_nfilters() == (before != "none")
        assert before != "none" or values.get_storage_size() == 6 * CHUNK * 4
        flush(file, column)
    np.testing.assert_array_equal(read(path), numbers(0, 5 * CHUNK + 1))


@pytest.mark.parametrize("settled", [False, True])
@pytest.mark.parametrize("codec", ["zstd", "none"])
def test_a_column_goes_on_after_it_was_settled(file: Any, path: Path, codec: Codec, settled: bool) -> None:
    column = Column(file, replace(FIELD, codec=codec), CHUNK * 4)
    column.append(numbers(0, CHUNK + 3))
    if settled:
        column.settle()
    column.append(numbers(CHUNK + 3, 4 * CHUNK))
    flush(file, column)
    np.testing.assert_array_equal(read(path), numbers(0, 4 * CHUNK))


@pytest.mark.parametrize("codec", ["zstd", "none"])
def test_chunks_are_written_several_at_a_time(file: Any, path: Path, codec: Codec) -> None:
    column = Column(file, replace(FIELD, codec=codec), CHUNK * 4)
    for stop in range(CHUNK, ROOM + 1, CHUNK):
        column.append(numbers(len(column), stop))
        assert file["x/values"].shape == (0,)
    column.append(numbers(ROOM, ROOM + 2 * CHUNK + 1))
    assert file["x/values"].shape == (ROOM,)
    flush(file, column)
    assert file["x/values"].shape == (ROOM + 2 * CHUNK,)
    column.append(numbers(len(column), 2 * ROOM))
    flush(file, column)
    np.testing.assert_array_equal(read(path), numbers(0, 2 * ROOM))


def test_nothing_is_lost_or_doubled_where_a_chunk_could_not_be_written(
    file: Any, path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    column = new_column(file)
    column.append(numbers(0, 3))
    with monkeypatch.context() as patch:
        patch.setattr(columns, "write_part", failing(OSError(28, "No space left on device")))
        for stop in (2 * ROOM + CHUNK, 2 * ROOM + CHUNK + 2):
            with pytest.raises(StorageError, match="make room"):
                column.append(numbers(len(column), stop))
        with pytest.raises(StorageError, match="make room"):
            column.flush()
    column.append(numbers(len(column), 3 * ROOM))
    assert len(column) == 3 * ROOM
    flush(file, column)
    np.testing.assert_array_equal(read(path), numbers(0, 3 * ROOM))


def test_ctrl_c_is_held_back_to_the_end_of_the_outermost() -> None:
    done = []

    def one_within_the_other() -> None:
        with uninterrupted():
            with uninterrupted():
                signal.raise_signal(signal.SIGINT)
                done.append("within")
            done.append("after")
        done.append("never")

    for _ in range(2):
        with pytest.raises(KeyboardInterrupt):
            one_within_the_other()
    assert done == ["within", "after"] * 2
    with pytest.raises(KeyboardInterrupt):
        signal.raise_signal(signal.SIGINT)


@pytest.mark.parametrize("written", [False, True])
@pytest.mark.parametrize("length", [2 * CHUNK + 1, 2 * CHUNK, CHUNK + 3, 0])
def test_a_column_that_was_cut_goes_on_from_there(file: Any, path: Path, length: int, written: bool) -> None:
    column = new_column(file)
    column.append(numbers(0, 2 * CHUNK + 5))
    if written:
        flush(file, column)
    assert file["x/values"].shape == (2 * CHUNK * written,)
    column.cut(length)
    assert column.append(numbers(length, 4 * CHUNK)) == length
    flush(file, column)
    np.testing.assert_array_equal(read(path), numbers(0, 4 * CHUNK))


def test_a_column_is_cut_where_its_chunks_could_not_be_written(
    file: Any, path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    column = new_column(file)
    column.append(numbers(1, 2 * CHUNK + 4))
    with monkeypatch.context() as patch:
        patch.setattr(columns, "write_part", failing(OSError(28, "No space left on device")))
        with pytest.raises(StorageError, match="make room"):
            column.flush()
    column.cut(5)
    flush(file, column)
    np.testing.assert_array_equal(read(path), numbers(1, 6))
    assert file["x/values"].shape == (0,)


@pytest.mark.parametrize("settled", [False, True])
def test_a_part_of_a_column_is_read_like_a_part_of_an_array(file: Any, path: Path, settled: bool) -> None:
    column = new_column(file)
    column.append(numbers(0, 21))
    if settled:
        column.settle()
    flush(file, column)
    whole = numbers(0, 21)
    with as_a_killed_writer_leaves_it(path) as copy:
        reader = ColumnReader(copy["x"])
        assert len(reader) == 21
        assert (reader.units, reader.description, reader.dtype.str) == ("A", "a current", "<i4")
        for part in (slice(3, 7), slice(14, 20), slice(18, 99), slice(-4, None), slice(1, None, 3), slice(9, 2)):
            np.testing.assert_array_equal(reader[part], whole[part])
        assert [reader[0], reader[15], reader[16], reader[-1]] == [0, 15, 16, 20]
        with pytest.raises(IndexError):
            reader[21]
        with pytest.raises(IndexError, match="step -1"):
            reader[::-1]


def test_matrices_are_stored_row_after_row(file: Any, path: Path) -> None:
    column = new_column(file)
    matrix = numbers(0, 12).reshape(3, 4)
    column.append(matrix.T)  # not contiguous
    flush(file, column)
    np.testing.assert_array_equal(read(path), matrix.T.ravel())


def test_an_appended_array_may_change_afterwards(file: Any, path: Path) -> None:
    column = new_column(file)
    values = numbers(0, 3)
    column.append(values)
    values[:] = -1
    flush(file, column)
    np.testing.assert_array_equal(read(path), [0, 1, 2])


def test_the_first_values_give_the_type_where_the_field_has_none(file: Any, path: Path) -> None:
    column = Column(file, Field("x", "", "", "codes"), 32)
    flush(file, column)
    assert "x" not in file
    column.append(np.array([1.5], np.float32))
    flush(file, column)
    assert read(path, 0) == 1.5
    with pytest.raises(StorageError, match=r"x holds float32, got int8"):
        column.append(np.zeros(1, np.int8))


@pytest.mark.parametrize("positions", [(CHUNK, CHUNK + 2), (-1, 2), (0, CHUNK + 1), (3, 2)])
def test_a_tail_that_does_not_fit_its_chunks_is_damage(file: Any, path: Path, positions: tuple[int, int]) -> None:
    flush(file, new_column(file))
    file["x/tail_range"][:] = positions
    flush(file)
    with pytest.raises(DataError, match="do not fit together"):
        read(path)


def test_a_column_without_its_datasets_is_damage(file: Any, path: Path) -> None:
    flush(file, new_column(file))
    del file["x/tail"]
    flush(file)
    with pytest.raises(DataError, match=r"/x cannot be read \(.*tail.*doesn't exist"):
        read(path)


def test_rows_become_columns_of_equal_length(file: Any, path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(columns, "ROW_BUFFER", 1000)
    table = Table(file, ROW, 4)
    for number in range(3000):  # more than the table holds as rows
        table.append(number, number % 7, b"A")
    assert len(table) == 3000
    table.sort()
    flush(file, *table.columns)
    with as_a_killed_writer_leaves_it(path) as copy:
        reader = TableReader(copy, [field.name for field in ROW])
        assert reader.rows == 3000
        np.testing.assert_array_equal(reader["n"][:], np.arange(3000))
        np.testing.assert_array_equal(reader["kind"][:], np.arange(3000) % 7)
        assert set(reader["unit"][:]) == {b"A"}


def test_a_row_exists_only_once_all_its_columns_have_it(file: Any, path: Path) -> None:
    table = Table(file, ROW, 4)
    table.append(1, 2, b"A")
    table.sort()
    flush(file, *table.columns)
    table.append(2, 3, b"A")
    table.sort()
    flush(file, *table.columns[:2])  # killed before the last column
    with as_a_killed_writer_leaves_it(path) as copy:
        assert TableReader(copy, [field.name for field in ROW]).rows == 1


def test_rows_are_sorted_once_though_sorting_was_interrupted(
    file: Any, path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    table = Table(file, ROW, 4)
    table.append(1, 2, b"A")
    with monkeypatch.context() as patch:
        patch.setattr(table.columns[1], "append", failing(KeyboardInterrupt()))
        with pytest.raises(KeyboardInterrupt):
            table.sort()
    table.append(2, 3, b"A")
    table.sort()
    flush(file, *table.columns)
    with as_a_killed_writer_leaves_it(path) as copy:
        reader = TableReader(copy, ["n", "kind"])
        assert (reader["n"][:].tolist(), reader["kind"][:].tolist()) == ([1, 2], [2, 3])


def test_a_number_too_large_for_its_field_is_an_error(file: Any) -> None:
    table = Table(file, ROW, 4)
    with pytest.raises(struct.error):
        table.append(1, 256, b"A")
    assert len(table) == 0
