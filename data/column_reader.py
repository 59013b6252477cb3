"""Read the columns of a run file; see `columns.py` for what a column is."""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import numpy as np

from hil.data.columns import Values, reason
from hil.protocols.errors import DataError


class ColumnReader:
    """Reads one column; `column[3]`, `column[a:b]` and `column[:]` load what they name and no more."""

    def __init__(self, group: Any) -> None:
        """Raises DataError if `group` is not a column."""
        with data_errors(group.file.filename, group.name):
            self._values, self._tail = group["values"], group["tail"]
            self._start, self._stop = (int(position) for position in group["tail_range"][:])
            self._settled = len(self._values)
            self.dtype: np.dtype[Any] = self._values.dtype
            self.units: str = self._values.attrs["units"]
            self.description: str = self._values.attrs["description"]
        if not 0 <= self._start <= self._settled or self._stop - self._start > len(self._tail):
            raise DataError(
                f"{group.file.filename}: {group.name}: {len(self._values)} values and a tail from {self._start} to "
                f"{self._stop} do not fit together: the file is damaged"
            )

    def __len__(self) -> int:
        return self._stop

    def __getitem__(self, part: int | slice) -> Any:
        if isinstance(part, slice):
            start, stop, step = part.indices(self._stop)
            if step < 1:
                raise IndexError(f"step {step}: a column is read forwards; reverse what was read")
            return self._load(start, max(start, stop))[::step]
        index = range(self._stop)[part]
        return self._load(index, index + 1)[0]

    def _load(self, start: int, stop: int) -> Values:
        with data_errors(self._values.file.filename, self._values.name):
            if stop <= self._settled:
                return np.asarray(self._values[start:stop])
            tail = np.asarray(self._tail[max(start, self._settled) - self._start : stop - self._start])
            if start >= self._settled:
                return tail
            return np.concatenate([self._values[start : self._settled], tail])


class TableReader(Mapping[str, ColumnReader]):
    """Reads columns of one length by their names. A row exists once all its columns have it."""

    def __init__(self, group: Any, names: Sequence[str]) -> None:
        """Raises DataError if `group` lacks one of the columns."""
        with data_errors(group.file.filename, group.name):
            self._columns = {name: ColumnReader(group[name]) for name in names}
        self.rows = min((len(column) for column in self._columns.values()), default=0)

    def __getitem__(self, name: str) -> ColumnReader:
        return self._columns[name]

    def __iter__(self) -> Iterator[str]:
        return iter(self._columns)

    def __len__(self) -> int:
        return len(self._columns)


@contextmanager
def data_errors(path: str, what: str) -> Iterator[None]:
    """Turn what h5py raises on a damaged or foreign file into a `DataError`."""
    try:
        yield
    except (OSError, RuntimeError, KeyError, ValueError, TypeError) as error:
        raise DataError(f"{path}: {what} cannot be read ({reason(error)}): damaged, or not a run file") from error
