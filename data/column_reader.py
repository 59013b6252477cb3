"""Read the columns of a run file; see `columns.py` for what a column is."""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import cached_property
from typing import Any

import numpy as np

from hil.data.columns import Values, reason
from hil.protocols.errors import DataError

BLOCK = 2**18
"""Elements that are read and worked on at a time."""

LONGEST_REASON = 200


class ColumnReader:
    """Reads one column; `column[3]`, `column[a:b]` and `column[:]` load what they name and no more."""

    def __init__(self, group: Any) -> None:
        """Raises DataError if `group` is not a column."""
        self._file, self._name = group.file.filename, group.name
        with data_errors(self._file, self._name):
            self._values, self._tail = group["values"], group["tail"]
            self._start, self._stop = (int(position) for position in group["tail_range"][:])
            self._settled = len(self._values)
            self.dtype: np.dtype[Any] = self._values.dtype
            if self._values.ndim != 1 or self._tail.ndim != 1 or self._tail.dtype != self.dtype:
                raise ValueError(f"values and tail are {self._values} and {self._tail}, expected vectors of one type")
            if not 0 <= self._start <= min(self._settled, self._stop) or self._stop - self._start > len(self._tail):
                raise ValueError(
                    f"{self._settled} values and a tail from {self._start} to {self._stop} do not fit together"
                )

    @cached_property
    def units(self) -> str:
        """Unit of the elements; empty for pure numbers."""
        return self._text("units")

    @cached_property
    def description(self) -> str:
        """What the elements mean."""
        return self._text("description")

    def _text(self, name: str) -> str:
        with data_errors(self._file, self._name):
            return str(self._values.attrs[name])

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

    def ranges(self, offsets: Values, sizes: Values, block: int = BLOCK) -> Values:
        """The elements offsets[i] to offsets[i] + sizes[i], one range after the other, of ranges that ascend and are
        disjoint. Reads what lies within `block` elements at once. Raises DataError where the column lacks them.
        """
        offsets, ends = offsets.astype(np.int64), self.check_ranges(offsets, sizes)
        filled = np.concatenate([[0], np.cumsum(ends - offsets)])
        values = np.empty(filled[-1], self.dtype)
        first = 0
        while first < len(offsets):
            last = max(first + 1, int(np.searchsorted(ends, offsets[first] + block, "right")))
            loaded = self[int(offsets[first]) : int(ends[last - 1])]
            start, stop = filled[first], filled[last]
            if len(loaded) > stop - start:
                shift = offsets[first:last] - offsets[first] - (filled[first:last] - start)
                loaded = loaded[np.arange(stop - start) + np.repeat(shift, np.diff(filled[first : last + 1]))]
            values[start:stop] = loaded
            first = last
        return values

    def check_ranges(self, offsets: Values, sizes: Values) -> Values:
        """The ends of ranges. Raises DataError unless they ascend, are disjoint and lie within the column."""
        sizes = sizes.astype(np.int64)
        within = bool(((offsets >= 0) & (sizes >= 0) & (sizes <= self._stop) & (offsets <= self._stop - sizes)).all())
        if not within or (offsets[1:] < (offsets + sizes)[:-1]).any():
            raise DataError(
                f"{self._file}: operations name elements of {self._name} beyond its "
                f"{self._stop}, or out of order: the file is damaged"
            )
        return np.asarray(offsets + sizes, np.int64)

    def _load(self, start: int, stop: int) -> Values:
        with data_errors(self._file, self._name):
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

    def all(self) -> list[tuple[Any, ...]]:
        """Every row of a small table."""
        return list(zip(*(column[: self.rows].tolist() for column in self._columns.values()), strict=True))

    def __len__(self) -> int:
        return len(self._columns)


DAMAGE = (OSError, RuntimeError, LookupError, ValueError, TypeError, AttributeError, ArithmeticError, MemoryError)
"""What h5py, numpy and our own decoding raise where a file is not what it should be."""


@contextmanager
def data_errors(path: str, what: str) -> Iterator[None]:
    """Turn what is raised on a damaged or foreign file into a `DataError`."""
    try:
        yield
    except DAMAGE as error:
        raise DataError(
            f"{path}: {what} cannot be read ({reason(error)[:LONGEST_REASON]}): damaged, or not a run file; "
            "take another copy of it"
        ) from error
