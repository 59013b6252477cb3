"""From the studies in run files to a chip file: a twin with the tester's figures and the fitted cells."""

from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

from hil.data.run import Run
from hil.data.schema import NONE
from hil.fit import Fitted, fit
from hil.measured import Drift, Staircase
from hil.mock_hw.chips import CHIPS, ChipParameters, check_range
from hil.mock_hw.chiptoml import check_loads, save
from hil.mock_hw.parameters import PcmParameters
from hil.pairs import UNIT
from hil.protocols.errors import InputError
from hil.protocols.messages import Capabilities, MvmMode, Operation, TesterKind
from hil.study_data import drift_of, staircase_of, studies_of

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
    """Fit the one staircase and the one drift study in run files of one chip. Raises `InputError` where there are
    others, files without a use, or figures that no twin can have.
    """
    with ExitStack() as opened:
        runs = [opened.enter_context(Run.open(path)) for path in paths]
        (source, staircase), (other, drift) = _study(runs, "staircase", staircase_of), _study(runs, "drift", drift_of)
        for run in runs:
            if run not in (source, other):
                raise InputError(f"{run.path} is of no use to the fit, which has its studies from the others")
        if source.identity is None or other.identity is None or source.capabilities is None:
            raise InputError(f"{source.path} names no tester, so nobody knows what was measured")
        chips = source.identity.chip, other.identity.chip
        if chips[0] != chips[1]:
            raise InputError(
                f"{source.path} was measured on chip {chips[0]}, {other.path} on {chips[1]}: a fit is one of one chip"
            )
        fitted = fit(staircase, drift, seed)
        _, step, zero = source.log.constants[Operation.READ, NONE]
        try:
            chip = _chip(source.capabilities, step, zero, fitted)
            check_loads(chip)
        except InputError as error:
            raise InputError(f"no twin can be made of what is in {source.path}: {error}") from error
        files = " and ".join(dict.fromkeys(run.path.name for run in (source, other)))
        kind = source.identity.kind
        measured = f"{source.identity.vendor} {source.identity.model}, chip {chips[0]} ({kind}), {files}"
    return FittedChip(fitted, staircase, chip, measured, kind, f"{kind} data, {files}")


def save_chip(found: FittedChip, path: Path) -> None:
    """Write the twin as `twin:FILE.toml` takes it. Raises `StorageError`."""
    lines = [f"Fitted to {found.measured}: {found.fitted.cells} cells."]
    lines += [f"Warning: {text}" for text in found.fitted.warnings]
    save(path, found.chip, BASES[found.chip.mvm], found.fitted.intervals, "\n".join(lines))


def _study(runs: Sequence[Run], name: str, load: Callable[[Run], Study]) -> tuple[Run, Study]:
    """The study in the one file that holds it."""
    holders = [run for run in runs if name in studies_of(run)]
    if len(holders) > 1:
        files = " and ".join(str(run.path) for run in holders)
        raise InputError(f"{files} both hold a {name} study: a fit takes one, of as many cells as you like")
    run = holders[0] if holders else runs[0]
    return run, load(run)


def _chip(c: Capabilities, step: float, zero: int, fitted: Fitted) -> ChipParameters:
    """A twin with the tester's geometry, converters and timing, and the fitted cells; `step` (S) and `zero` turn codes
    of reads into conductances. Raises `InputError` for products that no twin makes.

    What the twin has no use for is the base's: batches larger than those of any twin, and converters of products where
    there are no products. `g_max` is that of `PcmParameters` unless the fit found devices above it.
    """
    if c.mvm not in BASES:
        raise InputError(f"the tester multiplies with {c.mvm} inputs, which no twin does")
    check_range("read_voltage", c.read_voltage, f"{c.read_voltage:g}")  # lest spans are divided by 0
    base, multiplies = CHIPS[BASES[c.mvm]], c.mvm != MvmMode.NONE
    spans = tuple(float(f"{full_scale / (c.read_voltage * UNIT):.12g}") for full_scale in c.mvm_ranges)
    return ChipParameters(
        arrays=c.arrays,
        rows=c.rows,
        columns=c.columns,
        mvm=c.mvm,
        readout=c.readout,
        dac_bits=c.dac_bits if multiplies else base.dac_bits,
        adc_bits=c.adc_bits,
        read_voltage=c.read_voltage,
        read_span=step * 2**c.adc_bits,
        read_floor=-zero * step,
        mvm_spans=spans if multiplies else base.mvm_spans,
        set_pulse=c.set_pulse,
        reset_pulse=c.reset_pulse,
        durations=c.durations,
        largest_batch=min(c.largest_batch, base.largest_batch),
        cell=PcmParameters(**PcmParameters()._asdict() | fitted.parameters),
    )
