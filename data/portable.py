"""Copy a run file so that every HDF5 program reads it: compression that HDF5 has built in, and columns in one piece."""

import os
import uuid
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import h5py
import numpy as np

from hil.data.column_reader import ColumnReader, data_errors
from hil.data.columns import Values, let_go, open_file, reason
from hil.data.journal import JournaledFile
from hil.data.run import Run
from hil.protocols.errors import InputError, StorageError

BLOCK_BYTES = 2**24
"""About so many bytes of a dataset are in memory at once."""

COLUMN = {"values", "tail", "tail_range"}
"""The datasets of a column; see `columns.py`."""

BUILT_IN = {"compression": "gzip", "compression_opts": 4, "shuffle": True}


def copy_portable(path: Path, out: Path) -> None:
    """Copy a run file of the same schema that needs no plugin: gzip (level 4) after a byte shuffle.

    `values` of each column holds all of it and `tail` nothing, also where the run was interrupted. `out` appears
    complete or not at all. Raises InputError where `out` exists, DataError where `path` is no run file or damaged,
    StorageError where the disk does not take the copy.
    """
    if os.path.lexists(out):
        raise InputError(f"{out} exists: choose another name for the copy")
    with Run.open(path), h5py.File(path, "r") as source, _new_file(out) as copy:  # Run refuses what is no run file
        _copy_group(source, copy.file, copy)


class _Copy:
    """The copy while it is written: through memory, because HDF5 may crash on a full disk."""

    def __init__(self, place: Path, out: Path) -> None:
        self._out = out
        self._journal = JournaledFile(place, True)
        self.file = open_file(self._journal, True)

    def written(self) -> None:
        """To be called often: brings what is in memory to the disk. Raises StorageError where that does not take it."""
        if self._journal.full:
            with _storage_errors(self._out):
                self._journal.commit()

    def finish(self) -> None:
        """Write the rest. Raises OSError."""
        self.file.close()
        self._journal.commit()

    def close(self) -> None:
        """Let go of the file."""
        let_go(self._journal, self.file)


@contextmanager
def _new_file(out: Path) -> Iterator[_Copy]:
    """A file that becomes `out` at the end, or vanishes on an error."""
    place = out.with_name(f".{out.name}.{uuid.uuid4().hex}")
    try:
        with _storage_errors(out):
            copy = _Copy(place, out)
            try:
                yield copy
                copy.finish()
            finally:
                copy.close()
            os.replace(place, out)
    finally:
        place.unlink(missing_ok=True)


@contextmanager
def _storage_errors(out: Path) -> Iterator[None]:
    try:
        yield
    except (OSError, RuntimeError) as error:
        raise StorageError(f"{out}: cannot be written ({reason(error)}): make room or choose another disk") from error


def _copy_group(source: Any, target: Any, copy: _Copy) -> None:
    """The copy is in memory until `written`, which has its own error: all others are of what the source holds."""
    filename = source.file.filename
    with data_errors(filename, source.name):
        _copy_attributes(source, target)
        items = dict(source.items())
    for name, item in items.items():
        with data_errors(filename, f"{name} in {source.name}"):
            _copy_item(item, target, name, copy)


def _copy_item(item: Any, target: Any, name: str | bytes, copy: _Copy) -> None:
    if isinstance(name, bytes):  # as h5py gives what it cannot decode
        raise ValueError("its name is not UTF-8")
    if isinstance(item, h5py.Dataset):
        _copy_dataset(item, target, name, copy)
    elif not isinstance(item, h5py.Group):
        raise ValueError("neither a group nor a dataset")
    elif _is_column(item):
        _copy_column(item, target.create_group(name), copy)
    else:
        _copy_group(item, target.create_group(name), copy)


def _is_column(group: Any) -> bool:
    free = group.name.startswith(("/snapshots/", "/checkpoints/"))  # where arrays have any names
    return not free and all(isinstance(group.get(name), h5py.Dataset) for name in COLUMN)


def _copy_column(source: Any, target: Any, copy: _Copy) -> None:
    column = ColumnReader(source)
    length = len(column)
    _copy_attributes(source, target)
    values = target.create_dataset(
        "values", (length,), column.dtype, maxshape=(None,), chunks=source["values"].chunks, **BUILT_IN
    )
    _copy_blocks(lambda part: column[part], values, copy)
    target.create_dataset("tail", (0,), column.dtype)
    target.create_dataset("tail_range", data=np.array([length, length], np.int64))
    for name in COLUMN:
        _copy_attributes(source[name], target[name])


def _copy_dataset(source: Any, target: Any, name: str, copy: _Copy) -> None:
    if source.size is None or source.size <= 1:
        new = target.create_dataset(name, data=source[()], dtype=source.dtype)
    else:
        options = {"chunks": source.chunks or True, "maxshape": source.maxshape, **BUILT_IN}
        new = target.create_dataset(name, source.shape, source.dtype, **options)
        _copy_blocks(lambda part: source[part], new, copy)
    _copy_attributes(source, new)


def _copy_blocks(load: Callable[[slice], Values], target: Any, copy: _Copy) -> None:
    """Fill a chunked dataset along its first axis, by whole chunks: none is compressed twice."""
    row_bytes = target.dtype.itemsize * int(np.prod(target.shape[1:]))
    chunk = target.chunks[0]
    step = max(1, BLOCK_BYTES // (row_bytes * chunk)) * chunk
    for start in range(0, len(target), step):
        part = slice(start, min(start + step, len(target)))
        target[part] = load(part)
        copy.written()


def _copy_attributes(source: Any, target: Any) -> None:
    for name, value in source.attrs.items():
        target.attrs[name] = value
