"""Write a run file. Its schema, and what may change in it, is described in `data/README.md`."""

import errno
import json
import os
import uuid
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import astuple
from pathlib import Path
from time import monotonic, time_ns
from typing import Any, Self

import h5py
import numpy as np

from hil.data.column_reader import TableReader
from hil.data.columns import Field, Values, let_go, open_file, reason, writing
from hil.data.groups import utc_now, write_array, write_block, write_start, write_text
from hil.data.journal import JournaledFile
from hil.data.log_columns import LogColumns
from hil.data.merging import merge_tail
from hil.data.schema import FORMAT, NONE, READINGS, SHAPES, Start
from hil.data.status import being_written, remove_status, write_status
from hil.data.tail import Tail, tail_path
from hil.data.waiting import LARGEST, MOST, UNANSWERED, Waiting, pack_row
from hil.protocols.errors import InputError, TesterError
from hil.protocols.messages import (
    Operation,
    PulseShape,
    Readings,
    Receipt,
    Region,
)

FLUSH_NS = 1_000_000_000
"""Longest time between two flushes while operations are logged (ns)."""

COMPLETED = "completed"
"""Exit status of a run that is not to be resumed."""

CHECKPOINT_S = 60.0
"""Time between two checkpoints (s): what a resumed run does again at most."""

SIGNATURE = b"\x89HDF\r\n\x1a\n"
"""What every HDF5 file begins with."""


class RunWriter:
    """Writes one run file. Everything is synchronous; memory is bounded.

    Every method that writes raises `StorageError` where the disk does not take it.
    """

    def __init__(self, path: Path, journal: JournaledFile, file: Any) -> None:
        """Take over an HDF5 file that has a start; use `create` or `reopen`."""
        self.path = path
        self._journal = journal
        self._file = file
        self._closed = False
        self.status: dict[str, Any] = {"run": str(path), "run_id": file.attrs["run_id"], "state": "running"}
        """What the file beside the run file says of the run while it is going on; the caller adds to it."""
        self.digest: bool = json.loads(file["start/log"].asstr()[()]) == "digest"
        """Whether only a CRC-32 of each product is kept."""
        self.flushed_ns = time_ns()
        self.due_ns = self.flushed_ns + FLUSH_NS
        """When the last flush was and the next is due (UTC); before the last one, a clock was set back."""
        self._checkpoint_at = monotonic() + CHECKPOINT_S
        self.outlives: bool = "start/outlives" in file and json.loads(file["start/outlives"].asstr()[()])
        """Whether the tester outlives the process, so that every answer must: it is written to the tail at once."""
        self._tail = Tail(path, file.attrs["run_id"]) if self.outlives else None
        for name in ("regions", "snapshots", "checkpoints", "sessions"):
            file.require_group(name)
        self._columns = LogColumns(file, self._tail)
        self.streams = self._columns.streams
        """The columns of STREAMS, to append payload to."""
        self.waiting = Waiting(self._columns, self.digest)
        """Operations on their way into the file; whoever adds to its entries calls `take_up` when they are many."""
        self.flush()
        self._shapes = {PulseShape(*row): number for number, row in enumerate(_rows(file["shapes"], SHAPES))}
        self._readings = {(k, g, unit.decode(), *rest) for k, g, unit, *rest in _rows(file["readings"], READINGS)}

    @classmethod
    def create(cls, path: Path, start: Start, overwrite: bool = False, durable: bool = False) -> Self:
        """Create the file. An older file of this name is replaced only if `overwrite`, and once the new one is there.

        With `durable`, what is flushed survives a loss of power and not only of the process. Raises InputError where
        the file exists or its folder does not take it.
        """
        check_out(path, overwrite)
        place = path.with_name(f".{path.name}.{uuid.uuid4().hex}") if overwrite else path
        with _creating(path):
            journal = JournaledFile(place, True, durable)
        file = None
        try:
            with writing(str(path)):
                file = open_file(journal, True)
                write_start(file, start)
                writer = cls(path, journal, file)
                if overwrite:
                    os.replace(place, path)
                    journal.path = path.absolute()
                tail_path(path).unlink(missing_ok=True)  # of an older run of this name
                writer._open_tail()
        except BaseException:
            let_go(journal, file)
            place.unlink(missing_ok=True)
            raise
        return writer

    @classmethod
    def reopen(cls, path: Path, session: Mapping[str, Any], durable: bool = False) -> Self:
        """Go on with a run file. `session` (JSON-able) is added to its record, with how the last one stopped.

        Raises InputError where it cannot be written, or is being written by another process.
        """
        merge_tail(path)
        try:
            journal = JournaledFile(path, False, durable)
        except BlockingIOError as error:
            raise InputError(f"{path} is being written by another process: wait until it is done") from error
        except OSError as error:
            raise InputError(f"{path}: cannot be continued ({reason(error)})") from error
        file = None
        try:
            with writing(str(path)):
                file = open_file(journal, False)
                writer = cls(path, journal, file)
                writer._open_tail()
                writer._begin_session(session)
        except BaseException:
            let_go(journal, file)
            raise
        return writer

    def view(self) -> Any:
        """The h5py.File, for reading what has been flushed."""
        return self._file

    def region(self, region: Region) -> None:
        """Log a region before its first operation; a second time does nothing."""
        regions = self._file["regions"]
        if str(region.handle) in regions:
            return
        with writing(str(self.path)):
            group = regions.create_group(str(region.handle))
            for number, block in enumerate(region.blocks):
                write_block(group.create_group(str(number)), block)
        if self._tail is not None:
            self.flush()  # its operations are in the tail before the next flush

    def intend(self, kind: Operation, count: int) -> None:
        """Announce an operation of so many cells or slots before it is sent, where there is a tail to say it in."""
        if self._tail is not None:
            self._tail.announce(self.waiting.operations, kind, count)
            self._tail.write()

    def operation(
        self,
        kind: Operation,
        payload: Sequence[Values],
        answer: Readings | Receipt | None,
        count: int,
        done: int,
        *,
        region: int = NONE,
        gain: int = NONE,
        shape: int = NONE,
        polarity: int = 0,
    ) -> None:
        """Log an operation with its payload, one array for each of its streams; see OPERATIONS. Without an answer the
        tester failed, and what would come with it is left out of the payload.
        """
        if answer is None:
            answer = UNANSWERED
        now = time_ns()
        row = pack_row(
            answer.op_id, kind, answer.status, answer.time_ns, now, region, gain, shape, polarity,
            count, done, answer.saturated,
        )  # fmt: skip
        packed, entries = self.waiting.packed(kind, payload), self.waiting.entries
        entries.append((row, kind, packed))
        if self._tail is not None:
            self.waiting.take_up()
            self._tail.write()
        if sum(map(len, packed)) > LARGEST or len(entries) >= MOST or not self.flushed_ns <= now < self.due_ns:
            self.take_up()

    def take_up(self) -> None:
        """Put the operations that wait into the columns, and flush those when it is time. Raises TesterError for an
        answer that could not be put; its operation has a row of unknown status.
        """
        self.waiting.take_up()
        if not self.flushed_ns <= time_ns() < self.due_ns or self._journal.full:
            self.flush()
        self.waiting.tell()

    @property
    def operations(self) -> int:
        """Operations logged so far."""
        return self.waiting.operations

    def rows(self, table: str) -> int:
        """Rows of `metrics` or `messages` so far."""
        return len({"metrics": self._columns.metrics or (), "messages": self._columns.tables["messages"]}[table])

    def shape(self, shape: PulseShape) -> int:
        """The row of a pulse shape in shapes."""
        number = self._shapes.get(shape)
        if number is None:
            number = self._shapes[shape] = len(self._shapes)
            self._columns.tables["shapes"].append(*astuple(shape))
        return number

    def check_readings(self, kind: Operation, gain: int, readings: Readings) -> None:
        """Store what turns codes into values once per kind and gain. Raises TesterError if it has changed."""
        if (kind, gain, readings.unit, readings.scale, readings.offset) not in self._readings:
            self._new_readings(kind, gain, (readings.unit, readings.scale, readings.offset))

    def _new_readings(self, kind: Operation, gain: int, constants: tuple[str, float, int]) -> None:
        known = [row[2:] for row in self._readings if row[:2] == (kind, gain)]
        if known:
            raise TesterError(
                f"{kind.name}, gain {gain}: unit, scale and offset of readings were {known[0]}, are {constants}: "
                "they must stay the same in a run; mend the driver"
            )
        self._readings.add((kind, gain, *constants))
        unit, scale, offset = constants
        self._columns.tables["readings"].append(kind, gain, unit.encode(), scale, offset)

    def message(self, text: str) -> None:
        """Log a warning or diagnosis with the time of day."""
        self._columns.message(text)
        if self._tail is not None:
            self._tail.write()

    def remark(self, text: str) -> None:
        """Log a message of the operation that is logged next; both survive, or neither."""
        self._columns.message(text)

    def metrics(self, values: Mapping[str, float], units: Mapping[str, str]) -> None:
        """Log one row, usually an epoch: numbers by name, with the same names and types each time. Flushes.

        Raises InputError on other names or types than those of the first row.
        """
        types = {name: "<i8" if isinstance(value, int | np.integer) else "<f8" for name, value in values.items()}
        columns = self._columns
        if columns.metrics is None:
            _check_names(values, units)
            fields = [
                Field(name, dtype, units[name], f"{name.replace('_', ' ')}, by row") for name, dtype in types.items()
            ]
            with writing(str(self.path)):
                columns.begin_metrics(self._file.create_group("metrics"), fields)
        elif types != columns.metric_types:
            raise InputError(
                f"metrics were {columns.metric_types}, are {types}: names and types stay those of the first"
            )
        columns.log_metrics(values)
        self.flush()

    def snapshot(
        self, name: str, arrays: Mapping[str, Values], units: Mapping[str, str], attrs: Mapping[str, Any] | None = None
    ) -> None:
        """Store arrays by name, each with its unit, and attributes of the whole. Raises InputError on a used name."""
        if name in self._file["snapshots"]:
            raise InputError(f"snapshot {name!r} exists: give each its own name")
        _check_names([name], {name: ""})
        _check_names(arrays, units)
        with writing(str(self.path)):
            group = self._file["snapshots"].create_group(name)
            group.attrs.update(attrs or {})
            for key, values in arrays.items():
                write_array(group, key, values, units[key], f"{key} at {name}")
        self.flush()

    def checkpoint_due(self) -> bool:
        """Whether it is time for a checkpoint."""
        return monotonic() >= self._checkpoint_at

    def checkpoint(self, state: Mapping[str, Any], arrays: Mapping[str, Values]) -> None:
        """Store what the run needs to go on from here, JSON-able state and arrays by name, instead of an older one."""
        with writing(str(self.path)):
            group = self._file["checkpoints"]
            number = max(map(int, group), default=0) + 1
            for older in list(group):
                del group[older]  # its room is taken by the new one, and both changes are committed together
            new = group.create_group(str(number))
            rows = {"operations": self.operations, "metrics": self.rows("metrics"), "messages": self.rows("messages")}
            write_text(new, "state", json.dumps({**state, "rows": rows}), "state of the run (JSON)")
            for key, values in arrays.items():
                write_array(new, key, values, "", f"{key} of the state")
            self._checkpoint_at = monotonic() + CHECKPOINT_S
        self.flush()

    def flush(self) -> None:
        """Bring everything logged so far into the file at once, where a killed process leaves it."""
        with writing(str(self.path)):
            self.waiting.take_up()
            self._columns.flush()
            self._file.flush()
            self._journal.commit()
            if self._tail is not None:
                self._tail.empty()
            self.flushed_ns = time_ns()
            self.due_ns = self.flushed_ns + FLUSH_NS
            write_status(self.path, self.status | {"operations": self.waiting.operations, "bytes": self._journal.size})

    def close(self, exit_status: str, counts: Mapping[str, int]) -> None:
        """Write the stop, with what the run counted, and close the file. Idempotent."""
        if self._closed:
            return
        self._closed = True
        try:
            with writing(str(self.path)):
                self.waiting.take_up()
                self._columns.sort()
                if exit_status == COMPLETED:
                    self._file["checkpoints"].clear()  # nobody goes on from here; columns take the room
                self._columns.settle()
                self._write_stop(exit_status, counts)
                self.flush()
                tail_path(self.path).unlink(missing_ok=True)
        finally:
            if self._tail is not None:
                self._tail.close()
            let_go(self._journal, self._file)
            with suppress(OSError):
                remove_status(self.path)  # it says that the run is going on

    def _open_tail(self) -> None:
        if self._tail is not None:
            self._tail.open()

    def _begin_session(self, session: Mapping[str, Any]) -> None:
        stop = self._file.get("stop", {})
        record = {"utc": utc_now(), **session, "operations": self.waiting.operations}
        record["stop"] = {name: dataset.asstr()[()] for name, dataset in stop.items()}
        number = len(self._file["sessions"]) + 1
        write_text(self._file["sessions"], str(number), json.dumps(record), "a resumption of the run (JSON)")
        if "stop" in self._file:
            del self._file["stop"]
        self.flush()

    def _write_stop(self, exit_status: str, counts: Mapping[str, int]) -> None:
        group = self._file.create_group("stop")
        write_text(group, "utc", utc_now(), "when the run stopped")
        write_text(group, "exit_status", exit_status, "how the run stopped")
        write_text(group, "counts", json.dumps(counts), "what the run counted (JSON)")


@contextmanager
def _creating(path: Path) -> Iterator[None]:
    """Turn what the folder does not take into an InputError."""
    try:
        yield
    except OSError as error:
        raise InputError(f"{path}: cannot be created ({reason(error)}): give a folder that can be written") from error


def check_out(path: Path, overwrite: bool) -> None:
    """Raise InputError for a place where `RunWriter.create` will not make a run file."""
    if os.path.isdir(path):
        raise InputError(f"{path} is a folder: name a run file, such as {path}/run.h5")
    with _creating(path):
        os.stat(os.path.join(path.parent, "."))
        if not os.access(path.parent, os.W_OK):
            raise PermissionError(errno.EACCES, os.strerror(errno.EACCES))
    if not os.path.exists(path):
        return
    if not overwrite:
        raise InputError(f"{path} exists: choose another name, or give --overwrite to replace it")
    if being_written(path):
        raise InputError(f"{path} is being written by another process: choose another name")
    _check_replaceable(path)


def _rows(group: Any, fields: Iterable[Field]) -> list[tuple[Any, ...]]:
    """What a small table holds."""
    return TableReader(group, [field.name for field in fields]).all()


def _check_replaceable(path: Path) -> None:
    """Raise InputError for a file that is no run file, not even a damaged one: nobody meant to lose it."""
    try:
        with h5py.File(path, "r") as file:
            replaceable = file.attrs.get("format") == FORMAT
    except OSError:
        with path.open("rb") as stream:
            replaceable = stream.read(len(SIGNATURE)) == SIGNATURE
    if not replaceable:
        raise InputError(f"{path} is no run file, so it is not overwritten: choose another name")


def _check_names(names: Iterable[str], units: Mapping[str, str]) -> None:
    for name in names:
        if not name or "/" in name or name == ".":
            raise InputError(f"name {name!r}: a metric, snapshot or array needs a name without '/'")
        if name not in units:
            raise InputError(f"{name!r} has no unit; give one, an empty one for a pure number")
