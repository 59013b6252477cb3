"""Where a run file says that weights lie: written down by a run, and taken up again as layers that hold them."""

from collections.abc import Sequence

import numpy as np
import torch

from hil.cells import kept_cells
from hil.config import Settings
from hil.data.columns import Values
from hil.data.datasets import DataSet
from hil.data.run import Run
from hil.feedforward import FeedForward
from hil.instruments.tester import ArrayTester
from hil.layers import AnalogLinear
from hil.loop import CHIP, Log, memory_arrays
from hil.mapping import floorplan
from hil.network import stack
from hil.pairs import UNIT
from hil.passes import accuracy
from hil.products import covered
from hil.protocols.errors import InputError
from hil.writing import untouched

STUCK = "stuck"
"""The snapshot of the stuck cells that a run placed its weights around."""


def keep_chip(log: Log, memory: bytes | None) -> None:
    """Write down a chip that dies with its process, as the run leaves it."""
    if memory is not None:
        log.snapshot(CHIP, memory_arrays(memory), {CHIP: ""})


def kept_memory(run: Run) -> bytes:
    """The chip as the run left it. Raises `InputError` where the file does not hold it."""
    if CHIP in run.snapshots:
        return bytes(run.snapshot(CHIP).arrays[CHIP])
    checkpoint = run.checkpoint
    if checkpoint is not None and CHIP in checkpoint.arrays and checkpoint.operations == run.operations.rows:
        return bytes(checkpoint.arrays[CHIP])
    raise InputError(
        f"{run.path} does not hold its chip as the run left it: it was cut short, or made by an older version"
    )


def keep_layer(log: Log, name: str, layer: AnalogLinear) -> None:
    """Write down where the weights of a layer lie, so that conductances can be told from the log."""
    pairs = layer.weight.pairs
    arrays: dict[str, Values] = {}
    for side, cells in (("plus", pairs.placement.plus), ("minus", pairs.placement.minus)):
        arrays |= {f"{side}_array": cells.array, f"{side}_row": cells.row, f"{side}_column": cells.column}
    rows, columns = pairs.shape
    attrs = {"rows": rows, "columns": columns, "scale": pairs.scale, "unit_siemens": UNIT}
    log.snapshot(name, arrays, dict.fromkeys(arrays, ""), attrs)


def placed_layers(run: Run, settings: Settings, tester: ArrayTester) -> list[AnalogLinear]:
    """The layers of a run on its chip, which holds their weights; nothing is sent. Raises `InputError` where they lie
    elsewhere than they would be placed.
    """
    if STUCK in run.snapshots:
        floorplan(tester).avoid(kept_cells(run, STUCK))
    return [_placed(run, name, settings, tester) for name in run.layers]


def _placed(run: Run, name: str, settings: Settings, tester: ArrayTester) -> AnalogLinear:
    snapshot = run.snapshot(name)
    rows, columns = int(snapshot.attrs["rows"]), int(snapshot.attrs["columns"])
    scale, c = float(snapshot.attrs["scale"]), tester.capabilities()
    layer = AnalogLinear(
        rows - 1,
        columns,
        tester,
        scale=scale,
        initial_weights=torch.zeros(rows, columns),
        forward_range=covered(settings.forward_range, scale, c),
        backward_range=covered(settings.backward_range, scale, c),
        reread_images=settings.reread_images,
        write=untouched,
    )
    places = [snapshot.arrays[f"{side}_{part}"] for side in ("plus", "minus") for part in ("array", "row", "column")]
    plus, minus = layer.weight.pairs.placement.plus, layer.weight.pairs.placement.minus
    found = [plus.array, plus.row, plus.column, minus.array, minus.row, minus.column]
    if not all(np.array_equal(one, other) for one, other in zip(places, found, strict=True)):
        raise InputError(
            f"{run.path}: {name} lies elsewhere than this version would place it: evaluate it with its own"
        )
    return layer


def accuracy_of(settings: Settings, layers: Sequence[AnalogLinear], data: DataSet) -> float:
    """On the test images, of the network that has these layers."""
    model = stack(settings, layers).eval()
    return accuracy(FeedForward(model).forward, data.test_images, data.test_labels)
