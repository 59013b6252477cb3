"""Promises of matrix-vector products, on whatever the cells of a small region hold. Pulses no cell."""

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from hil.checking import Group, NotApplicable, expect, expect_equal
from hil.checks_seam import Seam, expect_elapsed, expect_refused
from hil.protocols.messages import Block, Capabilities, Codes, Direction, MvmMode, Readings, Readout, Region, Vectors

products: Group[Seam] = Group("products")
FORWARD, BACKWARD = Direction.FORWARD, Direction.BACKWARD
VECTORS = 32
"""Equal vectors in a batch, so that noise is measured and averaged."""
SIGMAS = 6
NEAR_ZERO = 0.05
"""Share of the converter's range that its offset may have. CHOSEN."""
UNEVEN = 0.1
"""How far gains, directions and levels may be from each other. CHOSEN."""

Values = npt.NDArray[np.float64]


@dataclass(frozen=True)
class Product:
    """Mean outputs (A) over equal vectors, their standard errors, and half a step of the converter."""

    mean: Values
    error: Values
    rounding: float


@products("its outputs are in ampere, scaled by the range", "the host computes weights from them")
def _scale(seam: Seam) -> str:
    c, region = seam.capabilities, _region(seam)
    for gain, full_scale in enumerate(c.mvm_ranges):
        readings = _multiply(seam, region, np.zeros(region.rows), FORWARD, gain)
        expect_equal("unit of a product", readings.unit, "A")
        expect_equal(
            f"shape of {VECTORS} products", readings.codes.shape, (len(readings.codes), region.outputs(FORWARD))
        )
        step = full_scale / c.adc_top
        expect(
            abs(readings.scale / step - 1) < 1e-3,
            f"scale at gain {gain}: expected {step:.4g} A (range {full_scale:.3g} A over {c.adc_top} codes), "
            f"got {readings.scale:.4g} A",
        )
    return f"{len(c.mvm_ranges)} ranges"


@products("a product of zeros is near zero", "an offset adds up over all layers")
def _zeros(seam: Seam) -> str:
    region = _region(seam)
    gain = len(seam.capabilities.mvm_ranges) - 1
    full_scale = seam.capabilities.mvm_ranges[gain]
    worst = float(np.abs(_multiply(seam, region, np.zeros(region.rows), FORWARD, gain).values().mean(0)).max())
    expect(
        worst <= NEAR_ZERO * full_scale,
        f"product of zeros: {worst:.3g} A, expected up to {NEAR_ZERO:.0%} of the range of {full_scale:.3g} A",
    )
    return f"up to {worst:.2g} A of {full_scale:.2g} A"


@products("two equal products agree", "training takes what differs for learning")
def _equal(seam: Seam) -> str:
    region = _region(seam)
    codes = np.full(region.rows, seam.capabilities.dac_top)
    gain = _gain(seam, region, codes, FORWARD)
    first, second = (_product(seam, region, codes, FORWARD, gain) for _ in range(2))
    apart = np.abs(first.mean - second.mean)
    bound = SIGMAS * np.hypot(first.error, second.error) + 2 * first.rounding + UNEVEN * np.abs(first.mean)
    _expect_within("two equal products differ", apart, bound)
    return f"within {apart.max():.2g} A"


@products("twice the input gives twice the output", "the network is computed with products that are linear")
def _linear(seam: Seam) -> str:
    region, half = _region(seam), seam.capabilities.dac_top // 2
    if half == 0:
        raise NotApplicable("the DAC has one level (dac_bits: 2)")
    gain = _gain(seam, region, np.full(region.rows, 2 * half), FORWARD)
    once, twice = (_product(seam, region, np.full(region.rows, k * half), FORWARD, gain) for k in (1, 2))
    apart = np.abs(twice.mean - 2 * once.mean)
    bound = SIGMAS * np.hypot(twice.error, 2 * once.error) + 3 * once.rounding + UNEVEN * np.abs(twice.mean)
    _expect_within("outputs for twice the input are off twice those for it", apart, bound)
    return f"within {apart.max():.2g} A of up to {np.abs(twice.mean).max():.2g} A"


@products("forward and backward agree", "errors are propagated through the transposed product")
def _transposed(seam: Seam) -> str:
    region, top = _region(seam), seam.capabilities.dac_top
    sums, bounds = [], []
    for way in (FORWARD, BACKWARD):
        codes = np.full(region.inputs(way), top)
        product = _product(seam, region, codes, way, _gain(seam, region, codes, way))
        sums.append(float(product.mean.sum()))
        bounds.append(SIGMAS * float(np.sqrt((product.error**2).sum())) + len(product.mean) * product.rounding)
    bound = sum(bounds) + UNEVEN * max(map(abs, sums))
    expect(
        abs(sums[0] - sums[1]) <= bound,
        f"all lines driven alike: {sums[0]:.3g} A come out forward and {sums[1]:.3g} A backward in sum, expected equal "
        f"within {bound:.2g} A",
    )
    return f"{sums[0]:.3g} A and {sums[1]:.3g} A in sum"


@products("device time moves by the products told", "drift is computed from it")
def _time(seam: Seam) -> str:
    region = _region(seam)
    codes, count = np.zeros(region.rows), min(VECTORS, seam.capabilities.largest_batch)
    expected = count * seam.capabilities.durations.mvm
    return expect_elapsed(seam, f"{count} products", lambda: _multiply(seam, region, codes, FORWARD, 0), expected)


@products("a product that is out of range is refused and takes no id", "a host trusts that nothing happened")
def _refused(seam: Seam) -> str:
    c, region, tester = seam.capabilities, _region(seam), seam.tester
    zeros = np.zeros((1, region.rows), c.dac_dtype)
    above = np.full((1, region.rows), c.dac_top + 1, np.int32)
    gains = len(c.mvm_ranges)
    return expect_refused(
        seam,
        {
            f"DAC code {c.dac_top + 1}": lambda: tester.mvm(region, _vectors(above), FORWARD, 0),
            f"gain {gains} of {gains}": lambda: tester.mvm(region, _vectors(zeros), FORWARD, gains),
            "gain -1": lambda: tester.mvm(region, _vectors(zeros), FORWARD, -1),
            "a code too few": lambda: tester.mvm(region, _vectors(zeros[:, 1:]), FORWARD, 0),
            f"a region of array {c.arrays}": lambda: tester.register([_block(c, c.arrays)]),
        },
    )


def _region(seam: Seam) -> Region:
    """A small region, registered once. Raises `NotApplicable` where the array does no analog products."""
    c = seam.capabilities
    if c.mvm != MvmMode.ANALOG:
        raise NotApplicable(f"this array does no analog products (mvm: {c.mvm})")
    if c.readout == Readout.DIFFERENTIAL and c.columns < 2:
        raise NotApplicable("one bit line has no partner (readout: differential)")
    known = seam.tester.regions()
    return known[0] if known else seam.tester.register([_block(c, 0)])


def _block(c: Capabilities, array: int) -> Block:
    rows = np.arange(min(16, c.rows), dtype=np.uint16)
    if c.readout == Readout.SINGLE:
        return Block(array, rows, np.arange(min(4, c.columns), dtype=np.uint16), None, 0, 0)
    lines = np.arange(min(8, c.columns - c.columns % 2), dtype=np.uint16)
    return Block(array, rows, lines[::2], lines[1::2], 0, 0)


def _vectors(codes: Codes) -> Vectors:
    return Vectors(codes, np.ones(len(codes), np.float32))


def _multiply(seam: Seam, region: Region, codes: npt.ArrayLike, way: Direction, gain: int) -> Readings:
    """Products of a batch of equal vectors."""
    c = seam.capabilities
    repeated = np.repeat(np.asarray(codes, c.dac_dtype)[None], min(VECTORS, c.largest_batch), 0)
    return seam.tester.mvm(region, _vectors(repeated), way, gain)


def _gain(seam: Seam, region: Region, codes: npt.ArrayLike, way: Direction) -> int:
    """The finest range in which no output saturates."""
    for gain in range(len(seam.capabilities.mvm_ranges)):
        if _multiply(seam, region, codes, way, gain).saturated == 0:
            return gain
    raise NotApplicable("outputs are beyond the largest range: the cells conduct too well for so many rows")


def _product(seam: Seam, region: Region, codes: npt.ArrayLike, way: Direction, gain: int) -> Product:
    readings = _multiply(seam, region, codes, way, gain)
    values = readings.values().astype(np.float64)
    return Product(values.mean(0), values.std(0) / np.sqrt(len(values)), readings.scale / 2)


def _expect_within(what: str, apart: Values, bound: Values) -> None:
    worst = int(np.argmax(apart - bound))
    expect(
        bool((apart <= bound).all()),
        f"{what}: by {apart[worst]:.3g} A at output {worst}, expected up to {bound[worst]:.3g} A",
    )
