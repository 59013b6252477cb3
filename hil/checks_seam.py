"""Promises of any tester, however it is reached: what it says of itself, reads, ids, device time. Pulses no cell."""

import time
from collections.abc import Callable
from dataclasses import asdict
from functools import partial

import numpy as np

from hil.checking import Failed, Group, Places, Subject, expect, expect_equal
from hil.instruments.tester import ArrayTester
from hil.protocols.errors import LimitError
from hil.protocols.messages import Capabilities, Cells, MvmMode, Readings, Receipt, Status, TesterKind

REPEATS = 10
NOISY = 0.1
"""Spread of repeated reads over the converter's span, beyond which they are not near each other. CHOSEN."""
BEYOND = 10.0
"""How often the largest nominal conductance is beyond belief. CHOSEN."""
LARGEST_SIEMENS = 0.1
"""What no cell has, where the tester tells no nominal conductances. CHOSEN."""


class Seam(Subject):
    """A tester, opened; `pulsed` as in `Line`."""

    def __init__(self, tester: ArrayTester, pulsed: Places = ()) -> None:
        self.tester = tester
        self.pulsed = pulsed
        self.capabilities: Capabilities = tester.capabilities()

    def ready(self) -> None:
        """The tester itself comes into step again."""

    def some_cells(self) -> Cells:
        """Up to 64 cells along the first row."""
        c = self.capabilities
        return Cells.of(0, 0, np.arange(min(64, c.columns, c.largest_batch)))


seam: Group[Seam] = Group("tester")


@seam("its identity is complete", "a run file names the chip that it was made on")
def _identity(seam: Seam) -> str:
    identity = seam.tester.identify()
    for name, value in asdict(identity).items():
        expect(bool(value), f"identity: expected a {name}, got none")
    expect_equal("identity asked for again", seam.tester.identify(), identity)
    return f"{identity.vendor} {identity.model}, serial {identity.serial}, chip {identity.chip} ({identity.kind})"


@seam("its capabilities are possible and constant", "mapping, scaling and limits follow from them")
def _capabilities(seam: Seam) -> str:
    c = seam.capabilities
    for name, kept in _possible(c).items():
        expect(kept, f"capabilities: {name}")
    expect_equal("capabilities asked for again", seam.tester.capabilities(), c)
    return f"{c.arrays} x {c.rows} x {c.columns}, mvm {c.mvm}, {c.dac_bits}-bit DAC, {c.adc_bits}-bit ADC"


@seam("a read gives one code per cell, in siemens", "all that is known of the cells comes from reads")
def _read(seam: Seam) -> str:
    cells = seam.some_cells()
    readings = seam.tester.read(cells)
    expect_equal(f"status of a read of {len(cells)} cells", readings.status.name, Status.COMPLETE.name)
    expect_equal(f"shape of the codes of {len(cells)} cells", readings.codes.shape, (len(cells),))
    expect_equal("unit of a read", readings.unit, "S")
    expect(0 < readings.scale < float("inf"), f"scale of a read: expected above 0, got {readings.scale:g} S per code")
    low, high = int(readings.codes.min()), int(readings.codes.max())
    bits = seam.capabilities.adc_bits
    first = -(1 << bits - 1) if low < 0 else 0
    expect(
        first <= low and high < first + (1 << bits),
        f"codes of a read: expected {bits} bits (adc_bits), got {low} to {high}",
    )
    return f"{len(cells)} cells, codes {low} to {high}"


@seam("conductances are believable", "a scale in microsiemens, or an offset of the wrong sign, spoils every weight")
def _believable(seam: Seam) -> str:
    values = seam.tester.read(seam.some_cells()).values()
    stairs = seam.capabilities.staircase
    top = BEYOND * stairs[-1] if stairs else LARGEST_SIEMENS
    worst = float(np.abs(values).max())
    expect(
        worst <= top,
        f"a cell of {worst:.3g} S: expected up to {top:.3g} S ({'10 times the staircase' if stairs else 'no cell'} "
        "has more); is the scale in S, and the offset right?",
    )
    return f"{values.min():.3g} to {values.max():.3g} S"


@seam("repeated reads are near each other", "a loose contact or a wrong cell shows here")
def _repeated(seam: Seam) -> str:
    cells = seam.some_cells()
    readings = [seam.tester.read(cells) for _ in range(REPEATS)]
    span = readings[0].scale * 2**seam.capabilities.adc_bits
    values = np.stack([reading.values() for reading in readings])
    spread = float(np.median(values.std(0)))
    expect(
        spread <= NOISY * span,
        f"{REPEATS} reads of {len(cells)} cells scatter by {spread:.3g} S in the median, expected up to "
        f"{NOISY * span:.3g} S ({NOISY:.0%} of the converter's span)",
    )
    return f"scatter of {spread:.2g} S in the median"


@seam("operation ids rise strictly", "they tell operations apart, over the life of the chip")
def _ids(seam: Seam) -> str:
    cells = seam.some_cells()
    answers: list[Readings | Receipt] = []
    for _ in range(3):
        answers += [seam.tester.read(cells), seam.tester.wait(0.0)]
    ids = [answer.op_id for answer in answers]
    expect(ids[0] > 0 and ids == sorted(set(ids)), f"operation ids: expected them to rise from above 0, got {ids}")
    return f"{ids[0]} to {ids[-1]}"


@seam("device time never goes back", "the order of events follows it")
def _never_back(seam: Seam) -> str:
    cells = seam.some_cells()
    answers: list[Readings | Receipt] = []
    for _ in range(3):
        answers += [seam.tester.read(cells), seam.tester.wait(0.0)]
    times = [answer.time_ns for answer in answers]
    expect(times[0] >= 0 and times == sorted(times), f"device times (ns) of operations: expected to rise, got {times}")
    return f"{times[-1] * 1e-9:.6g} s now"


@seam("device time moves by the reads told", "drift is computed from it")
def _time_of_reads(seam: Seam) -> str:
    cells, c = seam.some_cells(), seam.capabilities
    expected = len(cells) * c.durations.read
    return expect_elapsed(seam, f"a read of {len(cells)} cells", lambda: seam.tester.read(cells), expected)


@seam("a wait of 1 ms passes 1 ms of device time", "drift is computed from it")
def _wait(seam: Seam) -> str:
    return expect_elapsed(seam, "a wait of 1 ms", lambda: seam.tester.wait(1e-3), 1e-3)


@seam("what is out of range is refused and takes no id", "a host trusts that nothing happened")
def _refused(seam: Seam) -> str:
    c, tester = seam.capabilities, seam.tester
    sizes = {"array": c.arrays, "row": c.rows, "column": c.columns}
    wrong: dict[str, Callable[[], object]] = {"wait of -1 s": lambda: tester.wait(-1.0)}
    for axis, (name, size) in enumerate(sizes.items()):
        if size < 1 << 16:
            cells = Cells.of(*(size if axis == other else 0 for other in range(3)))
            wrong[f"read of {name} {size}, counted from 0, of {size}"] = partial(tester.read, cells)
    wrong["read of no cells"] = lambda: tester.read(Cells.of([], [], []))
    return expect_refused(seam, wrong)


@seam("the safe state may be asked for twice", "it is what everything ends with")
def _safe_state(seam: Seam) -> str:
    before = seam.tester.wait(0.0)
    seam.tester.safe_state()
    seam.tester.safe_state()
    after = seam.tester.wait(0.0)
    expect_equal("operation id of the first operation after two safe states", after.op_id, before.op_id + 1)
    return "and the next operation is done"


def expect_elapsed(seam: Seam, what: str, operate: Callable[[], Readings | Receipt], expected: float) -> str:
    """Raises `Failed` unless device time moves by `expected` seconds, within a factor of 2.

    The clock of hardware may go on between operations; that of a twin stands still.
    """
    before = seam.tester.wait(0.0).time_ns
    start = time.monotonic()
    elapsed = (operate().time_ns - before) * 1e-9
    idle = time.monotonic() - start if seam.tester.identify().kind == TesterKind.HARDWARE else 0.0
    expect(elapsed >= 0, f"{what}: device time went back by {-elapsed:.3g} s")
    expect(
        expected / 2 <= elapsed <= 2 * expected + idle,
        f"{what}: {elapsed:.3g} s of device time passed, expected {expected:.3g} s within a factor of 2",
    )
    return f"{elapsed:.3g} s for {what}"


def expect_refused(seam: Seam, wrong: dict[str, Callable[[], object]]) -> str:
    """Raises `Failed` unless each request is refused with `LimitError`, and none takes an operation id."""
    before = seam.tester.wait(0.0)
    for what, request in wrong.items():
        try:
            request()
        except LimitError:
            continue
        raise Failed(f"{what}: expected to be refused (LimitError), and it was done")
    after = seam.tester.wait(0.0)
    expect_equal(f"operation id after {', '.join(wrong)} were refused", after.op_id, before.op_id + 1)
    return f"{len(wrong)} requests"


def _possible(c: Capabilities) -> dict[str, bool]:
    """What capabilities must be, in words, and whether they are."""
    limits, times = c.pulse_limits, c.durations
    pulses = (c.set_pulse, c.reset_pulse)
    return {
        f"arrays, rows and columns must be 1 to 65536, not {c.arrays}, {c.rows}, {c.columns}": all(
            1 <= size <= 65536 for size in (c.arrays, c.rows, c.columns)
        ),
        f"largest_batch must be at least 1, not {c.largest_batch}": c.largest_batch >= 1,
        f"converters have 2 to 16 bits, not {c.dac_bits} (DAC) and {c.adc_bits} (ADC)": all(
            2 <= bits <= 16 for bits in (c.dac_bits, c.adc_bits)
        ),
        f"read_voltage must be above 0, not {c.read_voltage:g} V": c.read_voltage > 0,
        f"mvm_ranges must rise, not {c.mvm_ranges}": list(c.mvm_ranges) == sorted(set(c.mvm_ranges)),
        f"mvm is {c.mvm}, so mvm_ranges must not be empty": c.mvm == MvmMode.NONE or bool(c.mvm_ranges),
        f"nominal pulses must be within amplitude_max {limits.amplitude_max:g}": all(
            0 < pulse.amplitude <= limits.amplitude_max for pulse in pulses
        ),
        f"nominal pulses must be {limits.width_min:g} to {limits.width_max:g} s wide": all(
            limits.width_min <= pulse.width <= limits.width_max for pulse in pulses
        ),
        "durations must not be negative": min(times.read, times.mvm, times.set_pulse, times.reset_pulse) >= 0,
        "the staircase must not fall": list(c.staircase) == sorted(c.staircase),
    }
