"""A chip's memory on disk: every cell, device time, noise, the last operation id and its reply, in one atomic write."""

import io
import json
import os
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import asdict
from pathlib import Path
from typing import Any

import h5py
import hdf5plugin
import numpy as np
import numpy.typing as npt

from hil.mock_hw import chips
from hil.mock_hw.array import Chip
from hil.mock_hw.firmware import Firmware, fingerprint
from hil.mock_hw.records import CARRY, CELL
from hil.protocols.errors import InputError, StorageError
from hil.protocols.messages import Identity, Operation, Readings, Receipt, Status

FORMAT = "hil-chip"
VERSION = 1
CELL_ARRAYS = CELL.names or ()
COUNTS = CARRY.names or ()
ARRAYS = (*CELL_ARRAYS, "step_scale", "nu", "row_reads", "column_reads")
"""All arrays that make up a chip's state."""
PART = 2**18
"""Cells that are copied at a time, so that a dump takes little more memory than what it gives."""


def save(path: Path, firmware: Firmware, identity: Identity) -> None:
    """Replace the file at once: a reader sees the old chip or the new one, never a part. Raises `StorageError`."""
    replace_file(path, dump(firmware, identity))  # in memory first: on a full disk HDF5 crashes when it closes the file


def replace_file(path: Path, content: bytes) -> None:
    """Replace a chip's file at once, as `save`."""
    temporary = path.with_name(path.name + ".part")
    try:
        with temporary.open("wb") as part:
            part.write(content)
            part.flush()
            os.fsync(part.fileno())
        os.replace(temporary, path)
    except OSError as error:
        with suppress(OSError):
            temporary.unlink()
        raise StorageError(f"cannot save the chip to {path}: {error}") from error


def dump(firmware: Firmware, identity: Identity) -> bytes:
    """What a chip file holds."""
    content = io.BytesIO()
    with h5py.File(content, "w") as file:
        _write(file, firmware, identity)
    return content.getvalue()


def load(path: Path) -> tuple[Firmware, str, str]:
    """The firmware with its chip, switched on, the chip's model name and id. Raises `InputError` for a file that holds
    no chip.
    """
    try:
        firmware, model, chip = _parse(path, str(path))
        firmware.boots += 1
        return firmware, model, chip
    except (OSError, RuntimeError, LookupError, ValueError, TypeError, AttributeError) as error:
        raise InputError(f"{path} cannot be read as a chip: {error}") from error


def parse(content: bytes) -> tuple[Firmware, str, str]:
    """As `load`, from what `dump` gave, without being switched on again; it is grounded, and knows no regions."""
    return _parse(io.BytesIO(content), "the memory of a chip")


def _parse(source: Path | io.BytesIO, name: str) -> tuple[Firmware, str, str]:
    with h5py.File(source, "r") as file:
        if file.attrs.get("format") != FORMAT:
            raise InputError(f"{name} holds no chip (a run file?); expected a file written by a twin")
        if file.attrs["format_version"] != VERSION:
            raise InputError(f"{name} has chip format {file.attrs['format_version']}; this version reads {VERSION}")
        return _read(file)


def _write(file: h5py.File, firmware: Firmware, identity: Identity) -> None:
    chip, reply = firmware.chip, firmware.last_reply
    file.attrs.update({"format": FORMAT, "format_version": VERSION, "model": identity.model, "chip": identity.chip})
    about = {
        "parameters": chips.to_json(chip.parameters),
        "now_ns": chip.now_ns,
        "normals": chip.normals.state(),
        "key": chip.constants["key"][0],
        "last_op_id": firmware.last_op_id,
        "last_operation": firmware.last_operation,
        "last_content": fingerprint(firmware.last_content),
        "boots": firmware.boots,
        "receipt": asdict(reply) if isinstance(reply, Receipt) else None,
        "readings": {k: v for k, v in asdict(reply).items() if k != "codes"} if isinstance(reply, Readings) else None,
    }
    file["about"] = json.dumps(about, default=_plain)
    if isinstance(reply, Readings):
        file["reply_codes"] = reply.codes
    for name in ARRAYS:
        shape, kind = _kind(chip, name)
        stored = file.create_dataset(f"arrays/{name}", shape, kind, chunks=True, **hdf5plugin.Bitshuffle(cname="lz4"))
        for part in _parts(shape[0]):
            stored[part] = _part(chip, name, part)


def _parts(count: int) -> Iterator[slice]:
    for start in range(0, count, PART):
        yield slice(start, min(start + PART, count))


def _values(chip: Chip, name: str) -> npt.NDArray[Any]:
    """An array of the chip's state, where it lies; of counts without what is carried."""
    return np.asarray(chip.cells[name] if name in CELL_ARRAYS else vars(chip)[name])


def _kind(chip: Chip, name: str) -> tuple[tuple[int, ...], np.dtype[Any]]:
    """The shape and type with which an array is stored."""
    values = _values(chip, name)
    return values.shape, np.dtype(np.uint32) if name in COUNTS else values.dtype


def _part(chip: Chip, name: str, part: slice) -> npt.NDArray[Any]:
    """A part of an array as it is stored, counts whole."""
    return chip.count(name, part).astype(np.uint32) if name in COUNTS else _values(chip, name)[part]


def _set_part(chip: Chip, name: str, part: slice, values: npt.NDArray[Any]) -> None:
    """Take up what `_part` gave."""
    if name in COUNTS:
        chip.cells[name][part] = values & 255
        carried = np.flatnonzero(values > 255)  # the other carries are not written to, so that they take no memory
        chip.carries[name][part][carried] = values[carried] >> 8
    else:
        _values(chip, name)[part] = values


def _plain(value: Any) -> Any:
    if isinstance(value, np.ndarray):
        return {"uint64": [int(item) for item in value]}
    return value.item() if isinstance(value, np.generic) else value


def _arrays(value: dict[str, Any]) -> Any:
    return np.array(value["uint64"], np.uint64) if value.keys() == {"uint64"} else value


def _read(file: h5py.File) -> tuple[Firmware, str, str]:
    about = json.loads(file["about"][()], object_hook=_arrays)
    chip = Chip(chips.from_json(about["parameters"]), np.random.SeedSequence(0))
    for name in ARRAYS:
        stored, (shape, kind) = file[f"arrays/{name}"], _kind(chip, name)
        if stored.shape != shape or stored.dtype != kind:
            raise ValueError(f"arrays/{name} is {stored.dtype} {stored.shape}, expected {kind} {shape}")
        for part in _parts(shape[0]):
            _set_part(chip, name, part, stored[part])
    chip.normals.restore(about["normals"])
    chip.constants["key"] = about.get("key", 0)
    chip.now_ns = about["now_ns"]
    firmware = Firmware(chip)
    firmware.last_op_id = about["last_op_id"]
    firmware.last_content = about.get("last_content", 0)
    firmware.boots = about.get("boots", 0)
    if about["last_operation"]:
        firmware.last_operation = Operation(about["last_operation"])
    if about["receipt"]:
        firmware.last_reply = Receipt(**about["receipt"] | {"status": Status(about["receipt"]["status"])})
    if about["readings"]:
        status = Status(about["readings"]["status"])
        firmware.last_reply = Readings(**about["readings"] | {"status": status, "codes": file["reply_codes"][()]})
    return firmware, str(file.attrs["model"]), str(file.attrs["chip"])
