"""The data set of a run, kept in its file so that the run can be done again from the file alone."""

import zlib
from pathlib import Path
from typing import Protocol

import numpy as np

from hil.config import Settings
from hil.data.columns import Values
from hil.data.datasets import DataSet, hold_out, load, scale
from hil.data.run import Run
from hil.protocols.errors import InputError

KEPT_BYTES = 2**28
"""Size of a data set in memory up to which it is kept: MNIST takes 220 MB, and 13 MB in the file."""

PEAK = 255
"""Grey level that stands for 1."""

PART = 1000
"""Images that are converted at a time."""

PARTS = ("train_images", "train_labels", "test_images", "test_labels")
SNAPSHOT = "data"


class Keeper(Protocol):
    """What takes a snapshot."""

    def snapshot(
        self, name: str, arrays: dict[str, Values], units: dict[str, str], attrs: dict[str, str | int]
    ) -> None:
        """Store arrays."""


def chosen(settings: Settings, data_dir: Path | None) -> DataSet:
    """The images that the settings ask for. Raises `InputError` where there are none, or too few."""
    data = load(settings.data, data_dir)
    if settings.validation_images:
        data = hold_out(data, settings.validation_images)
    if settings.train_images > len(data.train_images):
        raise InputError(f"setting train_images={settings.train_images}: {data.name} has only {len(data.train_images)}")
    count = settings.train_images or len(data.train_images)
    return DataSet(
        data.name,
        data.train_images[:count],
        data.train_labels[:count],
        data.test_images,
        data.test_labels,
        data.classes,
    )


def keep(log: Keeper, data: DataSet) -> None:
    """Store the images, or only their checksum where they are too many."""
    arrays = {part: getattr(data, part) for part in PARTS}
    small = sum(values.nbytes for values in arrays.values()) <= KEPT_BYTES
    attrs: dict[str, str | int] = {"name": data.name, "classes": data.classes, "crc": checksum(data)}
    kept = {part: _as_codes(values) for part, values in arrays.items()} if small else {}
    log.snapshot(SNAPSHOT, kept, dict.fromkeys(kept, ""), attrs)


def kept(run: Run, settings: Settings, data_dir: Path | None) -> DataSet:
    """The images that a run was made with; from `data_dir` where the run does not keep them or it is given.

    Raises `InputError` where those in `data_dir` are others.
    """
    stored = run.snapshot(SNAPSHOT)
    if stored.arrays and data_dir is None:
        parts = {part: _from_codes(part, stored.arrays[part]) for part in PARTS}
        data = DataSet(name=str(stored.attrs["name"]), classes=int(stored.attrs["classes"]), **parts)
        if checksum(data) != int(stored.attrs["crc"]):
            raise InputError(f"the images in {run.path} are damaged: say where {settings.data} is with --data-dir")
        return data
    if data_dir is None and settings.data != "digits":
        raise InputError(f"{run.path} does not hold its data set {settings.data}: say where it is with --data-dir")
    data = chosen(settings, data_dir)
    if checksum(data) != int(stored.attrs["crc"]):
        raise InputError(f"the images of {settings.data} in {data_dir} are not those of {run.path}")
    return data


def _as_codes(values: Values) -> Values:
    """Bytes instead of grey levels, a tenth of their size after compression, where that loses nothing."""
    if values.dtype != np.float32:
        return values
    codes = np.empty(values.shape, np.uint8)
    for start in range(0, len(values), PART):  # all at once would take three times their memory
        part = slice(start, start + PART)
        with np.errstate(invalid="ignore"):  # what is no number is not equal below
            codes[part] = np.rint(values[part] * PEAK).astype(np.uint8)
        if not np.array_equal(scale(codes[part], PEAK), values[part]):
            return values
    return codes


def _from_codes(part: str, values: Values) -> Values:
    return scale(values, PEAK) if part.endswith("images") and values.dtype == np.uint8 else values


def checksum(data: DataSet) -> int:
    """CRC-32 of all images and labels."""
    crc = 0
    for part in PARTS:
        crc = zlib.crc32(np.ascontiguousarray(getattr(data, part)).data.cast("B"), crc)
    return crc
