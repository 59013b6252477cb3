"""Append-only columns in an HDF5 file that stays readable, up to the last flush, when its writer is killed.

A column is a group of three datasets:

    values      compressed; grows by whole chunks only (a killed writer corrupts a compressed chunk that grows)
    tail        not compressed, as long as one chunk, written in place: the newest elements
    tail_range  two positions in the column: of the first element of the tail, and after the last one

The second position is the length of the column. It is written last; a reader takes each element from `values` if it is
there and else from `tail`. So a kill leaves the elements of the last flush, or more. One gap remains: HDF5 writes its
own index in several steps when it is flushed after a chunk or object was added; a kill between them may damage it.
"""

import os
import struct
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import h5py
import hdf5plugin
import numpy as np
import numpy.typing as npt

from hil.protocols.errors import StorageError

CHUNK_BYTES = 2**18
"""Size of a chunk of a stream of payload before compression."""

ROW_BUFFER = 2**16
"""Bytes of rows that a table holds as rows before it sorts them into its columns."""

MARGIN = 2**16
"""Room for what HDF5 adds to a piece of data (bytes): headers, indexes, the growth of an incompressible chunk."""

Values = npt.NDArray[Any]


@dataclass(frozen=True, slots=True)
class Field:
    """Name, numpy dtype, unit ("" for pure numbers) and meaning of a column."""

    name: str
    dtype: str
    units: str
    description: str


def _write_in_order(plist: Any) -> None:
    """Driver settings: without the sieve buffer, raw data reach the system in the order in which they are written."""
    plist.set_fapl_sec2()
    plist.set_sieve_buf_size(0)


h5py.register_driver("hil-ordered", _write_in_order)


def create_file(path: os.PathLike[str]) -> Any:
    """A new HDF5 file for columns, open for writing; an h5py.File. Raises OSError, also where `path` exists.

    Chunks are not cached, so that a full disk shows when a chunk is written, not at some later flush. Two aligned
    int64 never straddle a page, so that a killed writer cannot leave half a tail_range.
    """
    return h5py.File(path, "x", driver="hil-ordered", rdcc_nbytes=0, alignment_threshold=16, alignment_interval=16)


def reserve(file: Any, size: int) -> None:
    """Let the file grow so that HDF5 finds room for `size` bytes. Raises OSError where the disk is full.

    HDF5 writes where its file ends before it makes the file as long: if the disk is full or the writer is killed in
    between, nobody can open it again. So the file is always made longer first, before HDF5 knows of the data.
    """
    handle = file.id.get_vfd_handle()
    end = os.fstat(handle).st_size
    needed = file.id.get_filesize() + size + MARGIN
    while end < needed:
        end += os.pwrite(handle, bytes(needed - end), end)


def compression(dtype: npt.DTypeLike) -> dict[str, Any]:
    """Options of `create_dataset`: Zstandard, after a byte shuffle of wider types (int8 codes shrink best without)."""
    return {**hdf5plugin.Zstd(clevel=1), "shuffle": np.dtype(dtype).itemsize > 1}


def describe(dataset: Any, units: str, description: str) -> None:
    """Attach the two attributes that every dataset has."""
    dataset.attrs["units"] = units
    dataset.attrs["description"] = description


@contextmanager
def storage_errors(path: str) -> Iterator[None]:
    """Turn what h5py raises when it cannot write into a `StorageError`."""
    try:
        yield
    except (OSError, RuntimeError) as error:
        raise StorageError(
            f"{path}: cannot be written ({reason(error)}); what was flushed before is intact: "
            "make room or choose another disk"
        ) from error


def reason(error: Exception) -> str:
    """The cause of an h5py error in a few words."""
    if isinstance(error, OSError) and error.errno:
        return os.strerror(error.errno)
    return str(error).partition("\n")[0].strip("'\"") or type(error).__name__


class Column:
    """Writes one column. What is appended stays in memory until a chunk is full or `flush` is called."""

    def __init__(self, parent: Any, field: Field, chunk_bytes: int) -> None:
        """A column in the h5py group `parent`. Without dtype in the field, the first values give it.

        Nothing is written yet: the column is created by `create` or by the first append.
        """
        self._parent = parent
        self._field = field
        self._path = f"{parent.file.filename}: {parent.name}/{field.name}"
        self._chunk = chunk_bytes
        self._dtype: np.dtype[Any] | None = None
        self._size = 1
        self._start = 0  # elements in `values`
        self._buffer = bytearray()  # elements after them, less than a chunk; several times as fast as a numpy buffer
        self._flushed = (0, 0)

    def create(self, dtype: npt.DTypeLike) -> None:
        """Create the datasets, empty."""
        dtype = np.dtype(dtype)
        length = self._chunk // dtype.itemsize
        units = self._field.units
        with storage_errors(self._path):
            reserve(self._parent.file, self._chunk)
            group = self._parent.create_group(self._field.name)
            self._values = group.create_dataset(
                "values", (0,), dtype, maxshape=(None,), chunks=(length,), **compression(dtype)
            )
            # Written at once: its place in the file is then fixed, and no later flush can lack the room for it.
            self._tail = group.create_dataset("tail", data=np.zeros(length, dtype))
            self._range = group.create_dataset("tail_range", data=np.zeros(2, np.int64))
            describe(self._values, units, self._field.description)
            describe(self._tail, units, "newest elements of the column, at the positions tail_range; see values")
            describe(self._range, "", "positions of the tail's first element and after its last: the column's length")
        self._chunk = length * dtype.itemsize
        self._size = dtype.itemsize
        self._dtype = dtype

    def __len__(self) -> int:
        return self._start + len(self._buffer) // self._size

    def append(self, values: Values) -> int:
        """Append an array of the column's dtype, row after row, and return the position of its first element.

        Raises StorageError on another dtype, or where a full chunk cannot be written (then the array has been taken).
        """
        if values.dtype is not self._dtype:
            self._check_dtype(values.dtype)
        buffer = self._buffer
        position = self._start + len(buffer) // self._size
        buffer += values.tobytes()
        if len(buffer) >= self._chunk:
            self._settle_chunks()
        return position

    def _check_dtype(self, dtype: np.dtype[Any]) -> None:
        if self._dtype is None:
            self.create(self._field.dtype or dtype)
        if dtype != self._dtype:
            raise StorageError(f"{self._path} holds {self._dtype}, got {dtype}: a column never changes its type")

    def settle(self) -> None:
        """Move what is left into `values`, for good: before the file is closed."""
        self._settle_chunks()
        if self._buffer:
            self._settle(len(self._buffer))

    def flush(self) -> None:
        """Write what `values` does not hold. The file must have been flushed since the last chunk was settled."""
        start, stop = self._start, len(self)
        if (start, stop) == self._flushed:
            return
        first = self._flushed[1] - start if self._flushed[0] == start else 0
        with storage_errors(self._path):
            self._tail[first : stop - start] = np.frombuffer(self._buffer[first * self._size :], self._dtype)
            self._range[:] = (start, stop)
        self._flushed = (start, stop)

    def _settle_chunks(self) -> None:
        while len(self._buffer) >= self._chunk:
            self._settle(self._chunk)

    def _settle(self, size: int) -> None:
        stop = self._start + size // self._size
        with storage_errors(self._path):
            reserve(self._parent.file, size)
            self._values.resize((stop,))
            try:
                self._values[self._start :] = np.frombuffer(self._buffer[:size], self._dtype)
            except BaseException:  # also an interrupt: rows without values must not stay
                self._values.resize((self._start,))
                raise
        self._start = stop
        del self._buffer[:size]


class Table:
    """Writes columns of one length, row by row."""

    def __init__(self, group: Any, fields: Sequence[Field], rows: int) -> None:
        """Create columns in the h5py group `group`, with `rows` elements per chunk."""
        self._columns = {field.name: Column(group, field, rows * np.dtype(field.dtype).itemsize) for field in fields}
        for field, column in zip(fields, self.columns, strict=True):
            column.create(field.dtype)
        self._dtype = np.dtype([(field.name, field.dtype) for field in fields])
        self._pack = struct.Struct("<" + "".join(_struct_code(np.dtype(field.dtype)) for field in fields)).pack
        self._first = 0  # rows in the columns
        self._rows = bytearray()  # rows after them

    def __len__(self) -> int:
        return self._first + len(self._rows) // self._dtype.itemsize

    @property
    def columns(self) -> Sequence[Column]:
        """The columns, in the order in which they must be flushed."""
        return tuple(self._columns.values())

    def append(self, *row: Any) -> None:
        """Append one value per field, in the order of the fields. Raises struct.error on a value that does not fit."""
        self._rows += self._pack(*row)
        if len(self._rows) >= ROW_BUFFER:
            self.sort()

    def sort(self) -> None:
        """Hand the buffered rows to the columns. May be repeated after it failed or was interrupted."""
        rows = np.frombuffer(bytes(self._rows), self._dtype)
        for name, column in self._columns.items():
            column.append(rows[name][len(column) - self._first :])
        first = self._first + len(rows)
        self._first = first
        self._rows.clear()


def _struct_code(dtype: np.dtype[Any]) -> str:
    if dtype.kind == "S":
        return f"{dtype.itemsize}s"
    if dtype.kind == "f":
        return {4: "f", 8: "d"}[dtype.itemsize]
    code = {1: "b", 2: "h", 4: "i", 8: "q"}[dtype.itemsize]
    return code.upper() if dtype.kind == "u" else code
