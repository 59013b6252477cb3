"""From the studies in run files to a chip file: a twin with the tester's figures and the fitted cells."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

from hil.data.run import Run
from hil.fit import Fitted, fit
from hil.measured import Drift, Staircase
from hil.mock_hw.chips import ChipParameters, check
from hil.mock_hw.chiptoml import save
from hil.mock_hw.parameters import PcmParameters
from hil.protocols.errors import InputError
from hil.protocols.messages import Capabilities, MvmMode, Operation, Readings, TesterKind
from hil.study_data import drift_of, staircase_of

Study = TypeVar("Study", Staircase, Drift)
BASES = {MvmMode.ANALOG: "pcm-analog", MvmMode.NONE: "pcm-90nm"}
"""The named chips that a fitted one is told as a change of."""


@dataclass(frozen=True)
class FittedChip:
    """A fit, what it was made from, and the twin that comes of it."""

    fitted: Fitted
    staircase: Staircase
    chip: ChipParameters
    measured: str
    """The chip and files that it was made from."""
    kind: TesterKind
    source: str
    """What stands under a figure."""


def fit_runs(paths: Sequence[Path], seed: int = 0) -> FittedChip:
    """Fit the staircase and drift studies in run files of one chip. Raises `InputError` where they are not there."""
    staircase, source = _study(paths, staircase_of)
    drift, other = _study(paths, drift_of)
    with Run.open(source) as run, Run.open(other) as second:
        if run.identity is None or second.identity is None or run.capabilities is None:
            raise InputError(f"{source} names no tester, so nobody knows what was measured")
        if run.identity.chip != second.identity.chip:
            raise InputError(
                f"{source} was measured on chip {run.identity.chip}, {other} on {second.identity.chip}: "
                "a fit is one of one chip"
            )
        fitted = fit(staircase, drift, seed)
        chip = _chip(run.capabilities, _first_reading(run), fitted)
        files = " and ".join(dict.fromkeys(path.name for path in (source, other)))
        kind = run.identity.kind
        measured = f"{run.identity.vendor} {run.identity.model}, chip {run.identity.chip} ({kind}), {files}"
    return FittedChip(fitted, staircase, chip, measured, kind, f"{kind} data, {files}")


def save_chip(found: FittedChip, path: Path) -> None:
    """Write the twin as `twin:FILE.toml` takes it. Raises `StorageError`."""
    lines = [f"Fitted to {found.measured}: {found.fitted.cells} cells."]
    lines += [f"Warning: {text}" for text in found.fitted.warnings]
    save(path, found.chip, BASES[found.chip.mvm], found.fitted.intervals, "\n".join(lines))


def _study(paths: Sequence[Path], load: Callable[[Run], Study]) -> tuple[Study, Path]:
    """The study in the first file that holds it."""
    missing: InputError | None = None
    for path in paths:
        with Run.open(path) as run:
            try:
                return load(run), path
            except InputError as error:
                missing = missing or error
    raise missing or InputError("a fit needs a run file with studies: hil characterize makes one")


def _first_reading(run: Run) -> Readings:
    """What turns codes of cell reads into S."""
    kinds = run.operations["kind"][: run.operations.rows]
    answer = run.operation(int((kinds == Operation.READ).argmax())).answer
    if not isinstance(answer, Readings):
        raise InputError(f"{run.path}: its first reading was not answered")
    return answer


def _chip(c: Capabilities, reading: Readings, fitted: Fitted) -> ChipParameters:
    """A twin with the tester's geometry, converters and timing, and the fitted cells. Raises `InputError` where there
    can be none.
    """
    if c.mvm not in BASES:
        raise InputError(f"the tester multiplies with {c.mvm} inputs, which no twin does")
    chip = ChipParameters(
        arrays=c.arrays,
        rows=c.rows,
        columns=c.columns,
        mvm=c.mvm,
        readout=c.readout,
        dac_bits=c.dac_bits,
        adc_bits=c.adc_bits,
        read_voltage=c.read_voltage,
        read_span=reading.scale * 2**c.adc_bits,
        read_floor=-reading.offset * reading.scale,
        mvm_spans=tuple(float(f"{full_scale / (c.read_voltage * SPAN):.12g}") for full_scale in c.mvm_ranges),
        set_pulse=c.set_pulse,
        reset_pulse=c.reset_pulse,
        durations=c.durations,
        largest_batch=c.largest_batch,
        cell=PcmParameters(**PcmParameters()._asdict() | fitted.parameters),
    )
    check(chip)
    return chip


SPAN = 8e-6
"""S that the spans of a twin's converter are counted in."""
