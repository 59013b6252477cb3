"""Load what studies measured from a run file."""

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from hil.cells import flat_of, kept_cells
from hil.data.history import siemens
from hil.data.run import LoggedOperation, Run
from hil.data.schema import NONE
from hil.measured import Drift, Floats, Reads, Staircase
from hil.protocols.errors import DataError, InputError
from hil.protocols.messages import Capabilities, Cells, Operation, Readings, Region, Status, Vectors
from hil.studies import NAME
from hil.study_linearity import crossings, ramp

I64 = npt.NDArray[np.int64]


@dataclass(frozen=True)
class Rows:
    """The measurements of one study so far, in order: the columns of its metrics."""

    step: I64
    cycle: I64
    pulses: I64
    age_s: Floats
    operation: I64
    reads: I64
    cells: I64

    def __len__(self) -> int:
        return len(self.step)


def studies_of(run: Run) -> tuple[str, ...]:
    """Names of the studies that a run was to make; none where it is no run of studies."""
    return tuple(run.config["studies"]) if run.config.get("procedure") == NAME else ()


def rows_of(run: Run, study: str) -> Rows:
    """The measurements of a study. Raises `InputError` where the run was not to make it."""
    names = studies_of(run)
    if study not in names:
        raise InputError(f"{run.path} holds no {study} study: hil characterize URI --study {study} --out RUN.h5")
    columns = Rows.__dataclass_fields__
    if not run.metrics:
        none = np.empty(0, np.int64)
        return Rows(**dict.fromkeys(columns, none))  # type: ignore[arg-type]
    chosen = run.metrics["study"] == names.index(study)
    return Rows(**{name: run.metrics[name][chosen] for name in columns})


def cells_of(run: Run) -> Cells:
    """The cells that were studied, in the order of every measurement."""
    return kept_cells(run, "cells")


def is_stuck(run: Run) -> npt.NDArray[np.bool_]:
    """Which of the studied cells (cells,) the study `stuck` found. Raises `InputError` where it was not made."""
    if "stuck" not in run.snapshots:
        raise InputError(f"{run.path} holds no finished stuck study: hil characterize URI --study stuck --out RUN.h5")
    return np.isin(flat_of(cells_of(run), _chip(run)), flat_of(kept_cells(run, "stuck"), _chip(run)))


def staircase_of(run: Run) -> Staircase:
    """The study `staircase`. Raises `InputError` where the run holds none, or not all of it, and `DataError` where an
    operation was not done in full.
    """
    rows = rows_of(run, "staircase")
    _check_all(run, "staircase", len(rows), run.config["studies"]["staircase"]["pulses"] + 1)
    return Staircase(rows.pulses, reads_of(run, rows))


def drift_of(run: Run) -> Drift:
    """The study `drift`; raises as `staircase_of`."""
    rows = rows_of(run, "drift")
    _check_all(run, "drift", len(rows), len(run.config["studies"]["drift"]["times"]))
    return Drift(run.snapshot("drift").arrays["pulses"].astype(np.int64), reads_of(run, rows))


def _check_all(run: Run, study: str, found: int, expected: int) -> None:
    if found < expected:
        raise InputError(
            f"{run.path} holds {found} of the {expected} measurements of its {study} study ({run.state}): "
            f"finish it with hil resume {run.path}"
        )


def reads_of(run: Run, rows: Rows) -> Reads:
    """The reads of cells in some measurements, which have as many each; memory is bounded by one measurement.

    Raises `DataError` where an operation since the measurement before was not done in full.
    """
    _check_any(run, rows)
    parts = [_reads(run, rows, index) for index in range(len(rows))]
    return Reads(
        count=parts[0].count,
        mean=np.concatenate([part.mean for part in parts]),
        variance=np.concatenate([part.variance for part in parts]),
        covariance=np.concatenate([part.covariance for part in parts]),
        age=np.concatenate([part.age for part in parts]),
        quantum=parts[0].quantum,
        cut_off=sum(part.cut_off for part in parts),
    )


def _check_any(run: Run, rows: Rows) -> None:
    if not len(rows):
        raise InputError(f"{run.path} holds no measurement of this study yet: finish it with hil resume {run.path}")


def _reads(run: Run, rows: Rows, index: int) -> Reads:
    first, reads, cells = (int(column[index]) for column in (rows.operation, rows.reads, rows.cells))
    stop = first + reads * _parts(run, cells)
    _check_complete(run, first, stop)
    offset = int(run.operations["output_offset"][first])
    values = siemens(run.log, run.log.load("read/codes", offset, reads * cells)).reshape(1, reads, cells)
    _, quantum, _ = run.log.constants[Operation.READ, NONE]
    cut_off = int(run.operations["saturated"][first:stop].sum())
    return Reads.of(values, np.array([_age(run, first, stop)]), quantum, cut_off)


def _check_complete(run: Run, first: int, stop: int) -> None:
    """Raise DataError where an operation before `stop` was not done in full, since the measurement before `first`."""
    before = run.metrics["operation"][run.metrics["operation"] < first]
    begin = int(before.max(initial=0))
    status = run.operations["status"][begin:stop]
    bad = np.flatnonzero(status != Status.COMPLETE)
    if len(bad):
        row = begin + int(bad[0])
        kind, how = Operation(run.operations["kind"][row]).name, Status(status[bad[0]]).name.lower()
        raise DataError(f"{run.path}: operation {row} ({kind}) is {how}, so this measurement is not whole: do it again")


def _age(run: Run, first: int, stop: int) -> float:
    """Mean time (s) from the end of the last pulse to the middle of the reads; NaN where nothing was pulsed."""
    pulsed = np.flatnonzero(np.isin(run.operations["kind"][:first], (Operation.SET, Operation.RESET)))
    if not len(pulsed):
        return float("nan")
    times = run.operations["device_time_ns"][first - 1 : stop] - run.operations["device_time_ns"][int(pulsed[-1])]
    return float((times[1:] + times[:-1]).mean() / 2) * 1e-9


@dataclass(frozen=True)
class Linearity:
    """Products with one driven line: the mean current (A) of each output (lines, codes, outputs) over the voltages
    (codes,) of the ramp, the line fitted to it, and what reads of the cells let expect.
    """

    voltage: Floats
    """V (codes,)."""
    current: Floats
    """A (lines, codes, outputs), mean over the repetitions; NaN where a code was at an end of the converter's range."""
    gain: Floats
    """S (lines, outputs): slope of the line."""
    offset: Floats
    """A (lines, outputs): current of the line at 0 V."""
    conductance: Floats
    """S (lines, outputs): what the slope should be, from single reads."""

    @property
    def deviation(self) -> Floats:
        """A (lines, codes, outputs): current above the line."""
        return self.current - self.offset[:, None] - self.gain[:, None] * self.voltage[:, None]


def linearity_of(run: Run) -> list[Linearity]:
    """The study `linearity`, for each array one; none where the tester does not multiply. Raises as `reads_of`."""
    rows = rows_of(run, "linearity")
    _check_any(run, rows)
    means = _reads(run, rows, 0).mean[0]
    regions = np.array([run.operations["region"][int(row)] for row in rows.operation[1:]], np.int64)
    chosen = {int(region): rows.operation[1:][regions == region] for region in np.unique(regions)}
    return [_grid(run, run.regions[region], first, int(rows.reads[0]), means) for region, first in chosen.items()]


def _grid(run: Run, region: Region, operations: I64, repetitions: int, means: Floats) -> Linearity:
    """The lines that were driven so far, one after the other."""
    lines = [_line(run, int(first), line, repetitions) for line, first in enumerate(operations)]
    voltage, current = lines[0][0], np.stack([values for _, values in lines])
    away = voltage - voltage.mean()
    gain = np.einsum("c,lco->lo", away, current) / np.square(away).sum()
    block = region.blocks[0]
    conductance = _at(run, crossings(block, block.columns), means)
    if block.partners is not None:
        conductance = conductance - _at(run, crossings(block, block.partners), means)
    conductance = conductance.reshape(len(block.rows), -1)[: len(lines)]
    return Linearity(voltage, current, gain, current.mean(1) - gain * voltage.mean(), conductance)


def _line(run: Run, first: int, line: int, repetitions: int) -> tuple[Floats, Floats]:
    """Voltages (codes,) on a driven line, and the mean currents (codes, outputs)."""
    codes = len(ramp(_chip(run)))
    stop = first + _parts(run, codes * repetitions)
    _check_complete(run, first, stop)
    operations = [run.operation(row) for row in range(first, stop)]
    voltage = np.concatenate([_vectors(o).codes[:, line] * _vectors(o).scale.astype(np.float64) for o in operations])
    current = np.concatenate([_current(o, _chip(run).adc_top) for o in operations])
    return voltage[:codes], current.reshape(repetitions, codes, -1).mean(0)


def _vectors(operation: LoggedOperation) -> Vectors:
    if not isinstance(operation.request, Vectors):
        raise DataError(f"operation {operation.op_id} is no product, as the study says: the file is damaged")
    return operation.request


def _current(operation: LoggedOperation, top: int) -> Floats:
    """Currents (vectors, outputs) in A; NaN at an end of the converter's range."""
    if not isinstance(operation.answer, Readings):
        raise DataError(f"operation {operation.op_id} has no answer: the file is damaged")
    inside = np.abs(operation.answer.codes.astype(np.int64) - operation.answer.offset) < top
    return np.where(inside, operation.answer.values().astype(np.float64), np.nan)


def _at(run: Run, wanted: Cells, means: Floats) -> Floats:
    """The means of some of the studied cells."""
    known = flat_of(cells_of(run), _chip(run))
    order = np.argsort(known)
    found: Floats = means[order[np.searchsorted(known[order], flat_of(wanted, _chip(run)))]]
    return found


def _chip(run: Run) -> Capabilities:
    if run.capabilities is None:
        raise DataError(f"{run.path} names no tester, and holds studies: damaged")
    return run.capabilities


def _parts(run: Run, size: int) -> int:
    """Operations that a batch of so many cells or vectors was sent in."""
    return -(-size // _chip(run).largest_batch)
