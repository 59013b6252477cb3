"""How large a run's log will be, and whether it is kept in full."""

import os
import shutil
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path

from hil.config import Settings
from hil.data.datasets import DataSet
from hil.images import KEPT_BYTES
from hil.mapping import Floorplan
from hil.protocols.errors import InputError
from hil.protocols.messages import Capabilities, MvmMode, Region

FULL_BYTES = 10_000
"""Bytes of products per image up to which they are kept in full by default."""
INPUTS, OUTPUTS = 0.6, 1.0
"""What compression leaves of DAC and ADC codes (measured on MNIST; tests/benchmarks/bench.py prints the whole)."""
OPERATION = 12.0
"""Bytes of one row of the operations after compression (measured)."""
PULSES = 120.0
"""Bytes of an image's pulses and refresh reads after compression (measured, mnist-mlp)."""
TAILS = 6e6
"""Bytes of the newest elements of all columns, which lie uncompressed."""
IMAGES = 0.055
"""What is left of images in memory when the run file keeps them (measured on MNIST)."""
CELL = 2.5
"""Bytes of a cell of the chip in a checkpoint (measured)."""
DIGEST = 4.0
"""Bytes of a checksum."""


@dataclass(frozen=True)
class LogPlan:
    """How a run is logged: full or digest; its expected size and the free space (bytes)."""

    kind: str
    size: float
    free: int


def plan_log(settings: Settings, data: DataSet, capabilities: Capabilities | None, out: Path) -> LogPlan:
    """Choose how a run is logged. Raises `InputError` where the disk has no room for it."""
    inputs, outputs, operations = _payload(settings, data, capabilities)
    raw = inputs + outputs
    kind = settings.log
    if kind == "auto":
        kind = "full" if raw <= FULL_BYTES else "digest"
    products = INPUTS * inputs + OUTPUTS * outputs if kind == "full" else DIGEST * operations
    per_image = products + OPERATION * (operations + 3) + PULSES if capabilities else 0.0
    images = settings.epochs * (len(data.train_images) + len(data.test_images) / 2)
    size = per_image * images + _fixed(data, capabilities)
    free = shutil.disk_usage(out.parent if os.path.isdir(out.parent) else Path()).free
    if size > free:
        raise InputError(
            f"{out}: the log will take about {_readable(size)} and the disk has {_readable(free)} left: make room, "
            "choose another disk with --out, train fewer epochs, or keep checksums of products only (--set log=digest)"
        )
    return LogPlan(kind, size, free)


def _fixed(data: DataSet, capabilities: Capabilities | None) -> float:
    """What a run file takes however short the run is."""
    kept = data.train_images.nbytes + data.test_images.nbytes
    size = IMAGES * kept if kept <= KEPT_BYTES else 0.0
    if capabilities is not None:
        size += TAILS + CELL * capabilities.arrays * capabilities.rows * capabilities.columns
    return size


def _readable(size: float) -> str:
    return f"{size / 1e9:.1f} GB" if size >= 1e9 else f"{size / 1e6:.1f} MB"


def _payload(settings: Settings, data: DataSet, capabilities: Capabilities | None) -> tuple[float, float, int]:
    """DAC codes and ADC codes per training image (bytes), and products; without analog products there are none."""
    if capabilities is None or capabilities.mvm != MvmMode.ANALOG:
        return 0.0, 0.0, 0
    sizes = [data.train_images.shape[1], *settings.hidden, data.classes]
    plan, inputs, outputs, operations = Floorplan(capabilities), 0, 0, 0
    for number, (lines, columns) in enumerate(pairwise(sizes)):
        region = Region(number, plan.place(lines + 1, columns).blocks)
        passes = (0, 1) if number else (0,)  # the first layer has no product going back
        inputs += sum((region.rows, region.columns)[way] for way in passes)
        outputs += sum(sum(len(block.columns if way == 0 else block.rows) for block in region.blocks) for way in passes)
        operations += len(passes)
    adc, dac = (1 if bits <= 8 else 2 for bits in (capabilities.adc_bits, capabilities.dac_bits))
    return float(inputs * dac), float(outputs * adc), operations
