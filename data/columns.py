"""Append-only columns in an HDF5 file that is read while it is incomplete.

A column is a group of three datasets:

    values      compressed, but for noise; grows by whole chunks only, so that no chunk is written twice
    tail        not compressed, as long as one chunk, written in place: the newest elements
    tail_range  two positions in the column: of the first element of the tail, and after the last one

The second position is the length of the column. A reader takes each element from `values` if it is there and else from
`tail`. In which order these are written does not matter: the file is a `JournaledFile`.
"""

import os
import signal
import struct
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from types import FrameType
from typing import Any, Literal

import h5py
import hdf5plugin
import numpy as np
import numpy.typing as npt
from h5py import h5s

from hil.data.journal import JournaledFile
from hil.protocols.errors import InputError, StorageError

CHUNK_BYTES = 2**18
"""Size of a chunk of a stream of payload before compression."""

ROOM = 8
"""Chunks that a column holds before it writes them. CHOSEN: HDF5 and the disk are quicker with several in a row, since
training leaves their code and data out of the processor's caches. A flush, each second, writes what there is.
"""

ROW_BUFFER = 2**21
"""Bytes of rows that a table holds as rows before it sorts them into its columns. CHOSEN: a flush, each second, is the
usual reason to do so.
"""

METADATA_BLOCK = 2**16
"""HDF5's own bookkeeping lies together in blocks of this size, so that a commit changes few pages."""

Values = npt.NDArray[Any]
Codec = Literal["zstd", "lz4", "none"]


@dataclass(frozen=True, slots=True)
class Field:
    """Name, numpy dtype, unit ("" for pure numbers), meaning and compression of a column, and how many times as large
    as others its chunks are: a stream that grows quickly is written quicker in fewer.
    """

    name: str
    dtype: str
    units: str
    description: str
    codec: Codec = "zstd"
    chunks: int = 1


def open_file(journal: JournaledFile, new: bool) -> Any:
    """An h5py.File whose writes go to the journal. Chunks are not cached: they are written whole, once.

    Raises OSError for what is no HDF5 file.
    """
    return h5py.File(journal, "w" if new else "r+", rdcc_nbytes=0, meta_block_size=METADATA_BLOCK)


def compression(dtype: npt.DTypeLike, codec: Codec = "zstd") -> dict[str, Any]:
    """Options of `create_dataset`: Zstandard after a byte shuffle of wider types (int8 codes shrink best without), or
    LZ4, which is read two to four times as fast, or nothing, for noise. Line numbers (u2) are read faster without a
    shuffle.
    """
    if codec == "none":
        return {}
    size = np.dtype(dtype).itemsize
    if codec == "lz4":  # within Blosc: on a damaged chunk, HDF5's own LZ4 filter prints and that of bitshuffle crashes
        return dict(hdf5plugin.Blosc(cname="lz4", clevel=5, shuffle=int(size > 2)))
    return {**hdf5plugin.Zstd(clevel=1), "shuffle": size > 1}


def write_part(dataset: Any, start: int, values: Values) -> None:
    """As `dataset[start : start + len(values)] = values`, for which h5py takes several times as long."""
    space = dataset.id.get_space()
    space.select_hyperslab((start,), values.shape)
    dataset.id.write(h5s.create_simple(values.shape), space, values)


def describe(dataset: Any, units: str, description: str) -> None:
    """Attach the two attributes that every dataset has."""
    dataset.attrs["units"] = units
    dataset.attrs["description"] = description


@contextmanager
def writing(path: str) -> Iterator[None]:
    """While something is written: holds Ctrl-C back until it is done, and turns what fails into a `StorageError`."""
    try:
        with uninterrupted():
            yield
    except (OSError, RuntimeError) as error:
        raise StorageError(
            f"{path}: cannot be written ({reason(error)}); what was flushed before is intact: "
            "make room or choose another disk"
        ) from error


def let_go(journal: JournaledFile, file: Any) -> None:
    """Close without another commit: what was not flushed is lost, what was is whole."""
    with suppress(OSError, RuntimeError):
        if file is not None:
            file.close()
    journal.close()


_held_back = False  # whether Ctrl-C is: asking `signal` takes longer than many a thing that is protected


@contextmanager
def uninterrupted() -> Iterator[None]:
    """Hold Ctrl-C back: in the middle of h5py's work it would leave HDF5 with half of a change."""
    global _held_back
    if _held_back or threading.current_thread() is not threading.main_thread():
        yield
        return
    caught: list[FrameType | None] = []
    previous = signal.signal(signal.SIGINT, lambda _, frame: caught.append(frame))
    try:
        _held_back = True
        yield
    finally:
        _held_back = False
        signal.signal(signal.SIGINT, previous)
        if caught and callable(previous):
            previous(signal.SIGINT, caught[-1])


def reason(error: Exception) -> str:
    """The cause of an h5py error in a few words."""
    if isinstance(error, OSError) and error.errno:
        return os.strerror(error.errno)
    return str(error).partition("\n")[0].strip("'\"") or type(error).__name__


class Column:
    """Writes one column. What is appended stays in memory until it is more than there is room for, or `flush` is
    called.
    """

    def __init__(self, parent: Any, field: Field, chunk_bytes: int) -> None:
        """A column in the h5py group `parent`, continued where it is there. Without dtype in the field, the first
        values give it.

        Nothing is written yet: a new column is created by `create` or by the first append.
        """
        self._parent = parent
        self._field = field
        self._path = f"{parent.file.filename}: {parent.name}/{field.name}"
        self._chunk = chunk_bytes
        self.dtype: np.dtype[Any] | None = None
        """Type of the elements, None until it is known."""
        self.item_size = np.dtype(field.dtype or "u1").itemsize
        """Bytes of an element, as soon as its type is known."""
        self._start = 0  # elements in `values`
        self.length = 0
        """Elements of the column: for those who append to `parts` themselves, without a call for each part."""
        self._room = memoryview(b"")  # of ROOM chunks, which holds elements after them
        self._held = 0  # bytes of them
        self.parts: list[bytes] = []
        """What was appended since the last `gather`."""
        self._flushed = (0, 0)
        if field.name in parent:
            self._continue(parent[field.name])

    def create(self, dtype: npt.DTypeLike) -> None:
        """Create the datasets, empty."""
        dtype = np.dtype(dtype)
        length = self._chunk // dtype.itemsize
        with writing(self._path):
            group = self._parent.create_group(self._field.name)
            options = compression(dtype, self._field.codec)
            values = group.create_dataset("values", (0,), dtype, maxshape=(None,), chunks=(length,), **options)
            tail = group.create_dataset("tail", (length,), dtype)
            tail_range = group.create_dataset("tail_range", data=np.zeros(2, np.int64))
            describe(values, self._field.units, self._field.description)
            describe(tail, self._field.units, "newest elements of the column, at the positions tail_range; see values")
            describe(tail_range, "", "positions of the tail's first element and after its last: the column's length")
        self._attach(group)

    def _attach(self, group: Any) -> None:
        self._values, self._tail, self._range = group["values"], group["tail"], group["tail_range"]
        self.dtype = np.dtype(self._values.dtype.str)  # numpy's own object, which is compared quickest
        self.item_size = self.dtype.itemsize
        self._chunk = len(self._tail) * self.item_size
        self._plain = not self._values.id.get_create_plist().get_nfilters()  # as the file has it: it may be older
        self._room = np.empty(ROOM * self._chunk, np.uint8).data  # takes no memory until it is used

    def _continue(self, group: Any) -> None:
        """Take up a column where it ends: a chunk at most goes back into the room."""
        with writing(self._path):
            self._attach(group)
            if not self._chunk:
                raise InputError(f"{self._path} has no tail: a portable copy is not continued, resume the original")
            first, stop = (int(position) for position in self._range[:])
            length = len(self._tail)
            self._start = len(self._values) // length * length
            rest = self._values[self._start :] if stop == len(self._values) else self._tail[: stop - first]
            self._values.resize((self._start,))
        self._hold(rest.tobytes())
        self.length = stop

    def __len__(self) -> int:
        return self.length

    def append(self, values: Values) -> int:
        """Append an array of the column's dtype, row after row, and return the position of its first element.

        Raises StorageError on another dtype.
        """
        position = self.add(self.packed(values))
        self.gather()
        return position

    def packed(self, values: Values) -> bytes:
        """An array of the column's dtype for `add`, row after row. Raises StorageError on another dtype."""
        if values.dtype is not self.dtype:
            self._check_dtype(values.dtype)
        return values.tobytes()

    def add(self, data: bytes) -> int:
        """Append what was packed, and return the position of its first element. Before anything else is done with the
        column, `gather`.
        """
        position = self.length
        self.length = position + len(data) // self.item_size
        self.parts.append(data)
        return position

    def gather(self) -> None:
        """Take up what was added, and write chunks where there is no room for it."""
        if not self.parts:
            return
        if self.dtype is None:
            self.create(self._field.dtype)
        rest = memoryview(b"".join(self.parts))
        try:
            while rest:
                room = len(self._room) - self._held
                if not room:
                    self._settle(self._held)
                    continue
                self._hold(rest[:room])
                rest = rest[room:]
        finally:
            self.parts[:] = [bytes(rest)] if rest else []

    def _hold(self, data: bytes | memoryview) -> None:
        """Put in the buffer what it has room for."""
        self._room[self._held : self._held + len(data)] = data
        self._held += len(data)

    def _check_dtype(self, dtype: np.dtype[Any]) -> None:
        if self.dtype is None:
            self.create(self._field.dtype or dtype)
        if dtype != self.dtype:
            raise StorageError(f"{self._path} holds {self.dtype}, got {dtype}: a column never changes its type")

    def settle(self) -> None:
        """Move what is left into `values`, for good: before the file is closed."""
        self.gather()
        if self._held:
            self._settle(self._held)

    def flush(self) -> None:
        """Write what `values` does not hold. Raises StorageError, or what h5py raises: many are flushed within one
        `writing`.
        """
        self.gather()
        if self._held >= self._chunk:
            self._settle(self._held // self._chunk * self._chunk)
        start, stop = self._start, self.length
        if (start, stop) == self._flushed:
            return
        first = self._flushed[1] - start if self._flushed[0] == start else 0
        write_part(self._tail, first, self._elements()[first:])
        write_part(self._range, 0, np.array([start, stop]))
        self._flushed = (start, stop)

    def cut(self, length: int) -> None:
        """Forget the elements from position `length` on."""
        self.gather()
        with writing(self._path):
            if length < self._start:
                self._start = length // len(self._tail) * len(self._tail)
                self._held = 0
                self._hold(self._values[self._start : length].tobytes())
            self._held = (length - self._start) * self.item_size
            if self.dtype is not None and len(self._values) > self._start:  # also where chunks could not be written
                self._values.resize((self._start,))
            self.length = length
            self._flushed = (-1, -1)

    def _settle(self, size: int) -> None:
        """Move so many bytes of the room into `values`."""
        elements = self._elements()[: size // self.item_size]
        start, chunk = self._start, len(self._tail)
        whole = len(elements) // chunk * chunk if self._plain and not start % chunk else 0
        with writing(self._path):
            self._values.id.set_extent((start + len(elements),))
            for first in range(0, whole, chunk):  # HDF5 would copy them first
                self._values.id.write_direct_chunk((start + first,), elements[first : first + chunk])
            if len(elements) > whole:
                write_part(self._values, start + whole, elements[whole:])
            self._start += len(elements)
            self._room[: self._held - size] = self._room[size : self._held]
            self._held -= size

    def _elements(self) -> Values:
        """What the room holds."""
        return np.frombuffer(self._room, self.dtype, self._held // self.item_size)


class Table:
    """Writes columns of one length, row by row."""

    def __init__(self, group: Any, fields: Sequence[Field], rows: int) -> None:
        """Columns in the h5py group `group`, continued if they are there; new ones have `rows` elements per chunk."""
        self._columns = {field.name: Column(group, field, rows * np.dtype(field.dtype).itemsize) for field in fields}
        for field, column in zip(fields, self.columns, strict=True):
            if field.name not in group:
                column.create(field.dtype)
        self._dtype = np.dtype([(field.name, field.dtype) for field in fields])
        self.layout = ",".join(field.dtype for field in fields)
        """Types of the fields; a packed row has them one after the other."""
        self.pack = row_struct(fields).pack
        self._first = len(self.columns[0])  # rows in the columns
        self._rows = bytearray()  # rows after them

    def __len__(self) -> int:
        return self._first + len(self._rows) // self._dtype.itemsize

    @property
    def columns(self) -> Sequence[Column]:
        """The columns, in the order of the fields."""
        return tuple(self._columns.values())

    def append(self, *row: Any) -> None:
        """Append one value per field, in the order of the fields. Raises struct.error on a value that does not fit."""
        self.add(self.pack(*row))

    def add(self, rows: bytes) -> None:
        """Append packed rows."""
        self._rows += rows
        if len(self._rows) >= ROW_BUFFER:
            self.sort()

    def extend(self, rows: bytes, skip: int) -> None:
        """Append packed rows but for the first `skip`."""
        self._rows += rows[skip * self._dtype.itemsize :]

    def cut(self, rows: int) -> None:
        """Forget the rows from `rows` on."""
        self.sort()
        for column in self.columns:
            column.cut(rows)
        self._first = rows

    def sort(self) -> None:
        """Hand the buffered rows to the columns. May be repeated after it failed or was interrupted."""
        rows = np.frombuffer(bytes(self._rows), self._dtype)
        for name, column in self._columns.items():
            column.append(rows[name][len(column) - self._first :])
        first = self._first + len(rows)
        self._first = first
        self._rows.clear()


def row_struct(fields: Sequence[Field]) -> struct.Struct:
    """How a row of a table is packed: one value per field, one after the other."""
    return struct.Struct("<" + "".join(_struct_code(np.dtype(field.dtype)) for field in fields))


def _struct_code(dtype: np.dtype[Any]) -> str:
    if dtype.kind == "S":
        return f"{dtype.itemsize}s"
    if dtype.kind == "f":
        return {4: "f", 8: "d"}[dtype.itemsize]
    code = {1: "b", 2: "h", 4: "i", 8: "q"}[dtype.itemsize]
    return code.upper() if dtype.kind == "u" else code
