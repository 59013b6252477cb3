"""What was logged since the last flush, in a file beside the run file: one write per operation, so that it survives a
killed process. It is not synchronised with the disk, so a loss of power may take it.

The file holds records, each a header (bytes of its body, CRC-32 of the run id and the body, run id) and a body of
pieces. A piece says to which column or table it belongs, at which position, of what type, and has the bytes. Positions
make it harmless to bring a piece into the run file that is there already.
"""

import os
import struct
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

from hil.data.columns import Column, Field, Table, reason
from hil.data.journal import write_at
from hil.protocols.checksum import crc32
from hil.protocols.errors import StorageError
from hil.protocols.messages import Operation

HEADER = struct.Struct("<II36s")
PIECE = struct.Struct("<BBqI")
"""Lengths of name and type, position, bytes; then name, type and the bytes themselves."""

INTENT = "intent"
"""Name of the piece that announces an operation: its position is the row that the operation will have."""
ANNOUNCED = struct.Struct("<BI")
"""Kind of the operation announced, and its number of cells or slots."""


@dataclass(frozen=True, slots=True)
class Piece:
    """Elements of a column or rows of a table, from `position` on."""

    name: str
    position: int
    dtype: str
    data: bytes


class Tail:
    """Writes the file beside one run file. What is added waits in memory for `write`."""

    def __init__(self, path: Path, run_id: str) -> None:
        """Of the run file `path`; `open` comes before the first `write`."""
        self._path = tail_path(path).absolute()
        self._run = run_id.encode()
        self._seed = crc32(self._run)
        self._handle = -1
        self._size = 0
        self._pieces: list[bytes] = []

    def open(self) -> None:
        """Make the file, empty. Raises OSError."""
        self._handle = os.open(self._path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, 0o666)

    def add(self, name: str, position: int, dtype: str, data: bytes) -> None:
        """A piece of the next record."""
        names, types, text = _label(name, dtype)
        self._pieces += (PIECE.pack(names, types, position, len(data)), text, data)

    def announce(self, row: int, kind: Operation, count: int) -> None:
        """Say which operation comes next; see INTENT."""
        self.add(INTENT, row, "", ANNOUNCED.pack(kind, count))

    def write(self) -> None:
        """Write one record of all that was added. Raises StorageError, after which the earlier ones are intact."""
        if not self._pieces:
            return
        body = b"".join(self._pieces)
        record = HEADER.pack(len(body), crc32(body, self._seed), self._run) + body
        try:
            write_at(self._handle, record, self._size)
        except OSError as error:
            raise StorageError(
                f"{self._path}: cannot be written ({reason(error)}); what was logged before is intact: "
                "make room or choose another disk"
            ) from error
        self._size += len(record)
        self._pieces.clear()

    def empty(self) -> None:
        """Forget all: the run file has it. Raises OSError."""
        self._pieces.clear()
        if self._size:
            os.ftruncate(self._handle, 0)
            self._size = 0

    def close(self) -> None:
        """Let go of the file. Idempotent."""
        if self._handle >= 0:
            os.close(self._handle)
            self._handle = -1


class TailedColumn(Column):
    """A column that also gives its tail what is appended."""

    def __init__(self, parent: Any, field: Field, chunk_bytes: int, name: str, tail: Tail) -> None:
        self._name, self._run_tail = name, tail
        super().__init__(parent, field, chunk_bytes)

    def add(self, data: bytes) -> int:
        position = super().add(data)
        self._run_tail.add(self._name, position, self._type, data)
        return position

    def _attach(self, group: Any) -> None:
        super()._attach(group)
        self._type: str = self._values.dtype.str


class TailedTable(Table):
    """A table that also gives its tail what is appended."""

    def __init__(self, group: Any, fields: tuple[Field, ...], rows: int, name: str, tail: Tail) -> None:
        super().__init__(group, fields, rows)
        self._name, self._run_tail = name, tail

    def add(self, rows: bytes) -> None:
        position = len(self)
        super().add(rows)
        self._run_tail.add(self._name, position, self.layout, rows)


@cache
def _label(name: str, dtype: str) -> tuple[int, int, bytes]:
    """What a piece says of its name and type."""
    return len(name), len(dtype), (name + dtype).encode()


def tail_path(path: Path) -> Path:
    """Where the tail of a run file is."""
    return path.with_name(f"{path.name}.tail")


def read_tail(path: Path, run_id: str) -> Iterator[list[Piece]]:
    """The pieces of each record in the tail of a run file, up to the first that is torn, damaged or of another run."""
    content, run, start = tail_path(path).read_bytes(), run_id.encode(), 0
    while start + HEADER.size <= len(content):
        size, crc, owner = HEADER.unpack_from(content, start)
        start += HEADER.size
        body = content[start : start + size]
        if len(body) < size or owner != run or crc32(body, crc32(run)) != crc:
            return
        yield list(_pieces(body))
        start += size


def _pieces(body: bytes) -> Iterator[Piece]:
    start = 0
    while start < len(body):
        sizes = PIECE.unpack_from(body, start)
        start += PIECE.size
        name, dtype, position, size = start + sizes[0], start + sizes[0] + sizes[1], sizes[2], sizes[3]
        yield Piece(body[start:name].decode(), position, body[name:dtype].decode(), body[dtype : dtype + size])
        start = dtype + size
