"""Bring the tail that a killed process left beside its run file into it."""

import os
from pathlib import Path
from typing import Any

import numpy as np

from hil.data.columns import let_go, open_file, writing
from hil.data.head import check_format, text
from hil.data.integrity import check_file
from hil.data.journal import JournaledFile
from hil.data.log_columns import TABLES, LogColumns
from hil.data.remarks import in_doubt
from hil.data.tail import ANNOUNCED, INTENT, Piece, read_tail, tail_path
from hil.protocols.errors import DataError
from hil.protocols.messages import Operation


def merge_tail(path: Path) -> bool:
    """Write what is in the tail of a run file into it, and remove the tail; whether there was one to be merged.

    A run file that is being written, that cannot be written, or that is damaged is left alone. Raises StorageError
    where the disk does not take it, DataError where another version of this program wrote the tail.
    """
    if not tail_path(path).exists() or not os.access(path.parent, os.W_OK):
        return False
    try:
        journal = JournaledFile(path, False, durable=True)  # before the tail is removed, the disk has what it held
    except OSError:
        return False
    file = None
    try:
        if not tail_path(path).exists():
            return False  # its writer was just closing
        try:
            file = open_file(journal, False)
            check_format(path, file.attrs)
            check_file(file)
        except (OSError, RuntimeError, DataError):
            return False
        with writing(str(path)):
            if "stop" not in file:  # else its writer was killed when all was in the file
                columns = LogColumns(file)
                _Merge(path, columns).run(text(file.attrs, "run_id"))
                columns.flush()
                file.flush()
                journal.commit()
            tail_path(path).unlink()
        return True
    finally:
        let_go(journal, file)


class _Merge:
    """Applies records in their order, each as a whole."""

    def __init__(self, path: Path, columns: LogColumns) -> None:
        self._path, self._columns = path, columns
        self._announced: Piece | None = None

    def run(self, run_id: str) -> None:
        for record in read_tail(self._path, run_id):
            pieces = [piece for piece in record if piece.name != INTENT]
            if any(piece.position > self._length(piece) for piece in pieces):
                break  # the file is older than its tail
            for piece in pieces:
                self._apply(piece)
            for piece in record:
                if piece.name == INTENT:
                    self._announced = piece
        self._remark()

    def _length(self, piece: Piece) -> int:
        known: dict[str, Any] = {**self._columns.streams, **self._columns.tables}
        if piece.name not in known or (piece.name in TABLES and known[piece.name].layout != piece.dtype):
            raise DataError(
                f"{tail_path(self._path)}: what it says of {piece.name!r} is not known to this program: "
                "merge it with the version that wrote it"
            )
        return len(known[piece.name])

    def _apply(self, piece: Piece) -> None:
        have = self._length(piece) - piece.position
        if piece.name in TABLES:
            self._columns.tables[piece.name].extend(piece.data, have)
        else:
            self._columns.streams[piece.name].append(np.frombuffer(piece.data, piece.dtype)[have:])

    def _remark(self) -> None:
        """Say which operation nobody knows the end of."""
        piece = self._announced
        if piece is not None and piece.position == len(self._columns.tables["operations"]):
            kind, count = ANNOUNCED.unpack(piece.data)
            self._columns.message(in_doubt(piece.position, Operation(kind), count))
