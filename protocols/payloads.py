"""Arrays and descriptions as bytes, little-endian: what both codecs carry in their blocks."""

import json
import math
import struct
from collections.abc import Iterator
from dataclasses import asdict, fields, is_dataclass
from enum import StrEnum
from typing import Any

import numpy as np
import numpy.typing as npt

from hil.protocols.messages import (
    Block,
    Capabilities,
    Cells,
    Codes,
    Durations,
    Identity,
    MvmMode,
    PulseLimits,
    PulseShape,
    PulseTrains,
    Readout,
    Region,
    TesterKind,
)
from hil.protocols.requests import Description, Fault, ProtocolError

Buffer = bytes | bytearray | memoryview
CODE_TYPES = tuple(np.dtype(name) for name in ("<i1", "<u1", "<i2", "<u2", "<i4"))
"""Types of codes; their place in this tuple, or their name (INT8, UINT8, INT16, UINT16, INT32), stands for them."""
CODE_NAMES = tuple(dtype.name.upper() for dtype in CODE_TYPES)
BLOCK = struct.Struct("<HHHHII")
"""A block of a region: array, rows, columns, partners (0 or as many as columns), row offset, column offset."""
LINE = np.dtype("<u2")
MOST_LINES = 2**16
"""Arrays, rows and columns of a chip, and inputs and outputs of a region, at most."""
SHOWN = 40
"""Characters of a wrong value that are quoted."""
_VALUES: dict[Any, tuple[Any, str]] = {
    str: (str, "a text"),
    int: (int, "a whole number"),
    float: (int | float, "a number"),
    bool: (bool, "true or false"),
}
"""How fields of these types are written in a description."""
MOST_CELLS = 2**28
"""Cells of a chip, at most: arrays of this size are made in memory."""


def lines(*vectors: npt.NDArray[np.uint16]) -> bytes:
    """Vectors of line numbers or counts, one after the other."""
    return b"".join([np.asarray(vector, LINE).tobytes() for vector in vectors])


def split_lines(data: Buffer, count: int) -> list[npt.NDArray[np.uint16]]:
    """The `count` equally long vectors in a block. Raises `ProtocolError` on another size."""
    values = _array(data, LINE)
    size, rest = divmod(len(values), count)
    if rest:
        raise ProtocolError(Fault.INVALID_BLOCK, f"{len(data)} bytes are not {count} vectors of 16-bit numbers")
    return [values[size * part : size * (part + 1)] for part in range(count)]


def cells_of(data: Buffer) -> Cells:
    """Cells: arrays, rows, columns."""
    return Cells(*split_lines(data, 3))


def region_bytes(region: Region) -> bytes:
    """The blocks of a region: each a header (see BLOCK), then its rows, columns and partners."""
    return b"".join(_block_bytes(block) for block in region.blocks)


def _block_bytes(block: Block) -> bytes:
    partners = np.empty(0, np.uint16) if block.partners is None else block.partners
    sizes = len(block.rows), len(block.columns), len(partners)
    header = BLOCK.pack(block.array, *sizes, block.row_offset, block.column_offset)
    return header + lines(block.rows, block.columns, partners)


def region_of(handle: int, data: Buffer) -> Region:
    """The region that `region_bytes` described. Raises `ProtocolError` on what is none."""
    return Region(handle, tuple(_blocks(bytes(data))))


def _blocks(data: bytes) -> Iterator[Block]:
    at = 0
    while at < len(data):
        if at + BLOCK.size > len(data):
            raise ProtocolError(Fault.INVALID_BLOCK, f"a region's block header needs {BLOCK.size} bytes")
        array, rows, columns, partners, row_offset, column_offset = BLOCK.unpack_from(data, at)
        at += BLOCK.size
        stop = at + (rows + columns + partners) * LINE.itemsize
        if stop > len(data) or partners not in (0, columns):
            raise ProtocolError(Fault.INVALID_BLOCK, "a region's block ends early, or has too few partner lines")
        values = np.frombuffer(data[at:stop], LINE)
        pair = values[rows + columns :] if partners else None
        yield Block(array, values[:rows], values[rows : rows + columns], pair, row_offset, column_offset)
        at = stop


def code_type(codes: Codes) -> int:
    """The number of a type of codes, in CODE_TYPES."""
    return CODE_TYPES.index(codes.dtype)


def codes_of(data: Buffer, kind: int, rows: int | None = None) -> Codes:
    """Codes of type `kind`: a vector, or a matrix of so many rows. Raises `ProtocolError` where they do not fit."""
    if not 0 <= kind < len(CODE_TYPES):
        raise ProtocolError(Fault.OUT_OF_RANGE, f"type of codes {kind} is outside 0 to {len(CODE_TYPES) - 1}")
    values = _array(data, CODE_TYPES[kind])
    if rows is None:
        return values
    if rows < 1 or not len(values) or len(values) % rows:
        raise ProtocolError(Fault.INVALID_BLOCK, f"{len(values)} codes cannot be shared among {rows} vectors")
    return values.reshape(rows, -1)


def trains_of(rows: Buffer, columns: Buffer, slots: int, polarity: int) -> PulseTrains:
    """Pulse trains of so many slots."""
    if slots < 1 or len(rows) % slots or len(columns) % slots:
        raise ProtocolError(Fault.INVALID_BLOCK, f"{len(rows)} and {len(columns)} bytes cannot be {slots} slots")
    byte = np.dtype("u1")
    return PulseTrains(_array(rows, byte).reshape(slots, -1), _array(columns, byte).reshape(slots, -1), polarity)


def _array(data: Buffer, dtype: np.dtype[Any]) -> npt.NDArray[Any]:
    if len(data) % dtype.itemsize:
        raise ProtocolError(Fault.INVALID_BLOCK, f"{len(data)} bytes are no whole number of {dtype.name}")
    return np.frombuffer(data, dtype)


def describe(description: Description) -> bytes:
    """Identity and capabilities as JSON, with the names of `messages`."""
    return json.dumps(asdict(description), separators=(",", ":")).encode()


def description_of(data: Buffer) -> Description:
    """What `describe` wrote. Raises `ProtocolError` on what is none."""
    try:
        found = json.loads(bytes(data))
        _check_value("description", Description, found)
        return Description(identity_of(found["identity"]), capabilities_of(found["capabilities"]))
    except (ValueError, LookupError, TypeError, RecursionError) as error:
        raise ProtocolError(Fault.INVALID_BLOCK, f"the tester's description cannot be read: {error}") from error


def _check_value(name: str, kind: Any, value: Any) -> None:
    """Raises ValueError that names the key where a value cannot be that of a field of this type."""
    if is_dataclass(kind):
        _check_keys(name, kind, value)
    elif kind in _VALUES:
        types, what = _VALUES[kind]
        if not isinstance(value, types) or isinstance(value, bool) != (kind is bool) or not _is_finite(value):
            raise ValueError(f"key {name!r} is {_shown(value)}, expected {what}")
    elif kind == tuple[float, ...]:
        if not isinstance(value, list) or not all(isinstance(v, int | float) and _is_finite(v) for v in value):
            raise ValueError(f"key {name!r} is {_shown(value)}, expected a list of numbers")
    elif issubclass(kind, StrEnum) and value not in list(kind):
        raise ValueError(f"key {name!r} is {_shown(value)}, expected one of {', '.join(kind)}")


def _is_finite(value: Any) -> bool:
    return not isinstance(value, float) or math.isfinite(value)


def _check_keys(name: str, kind: Any, value: Any) -> None:
    """Of a dataclass, written as an object: exactly its fields."""
    if not isinstance(value, dict):
        raise ValueError(f"key {name!r} is {_shown(value)}, expected an object")
    for field in fields(kind):
        if field.name not in value:
            raise ValueError(f"key {field.name!r} is missing in {name!r}")
        _check_value(field.name, field.type, value[field.name])
    for key in value.keys() - {field.name for field in fields(kind)}:
        raise ValueError(f"key {key!r} in {name!r} is not known")


def _shown(value: Any) -> str:
    """As in JSON, the beginning of it."""
    text = json.dumps(value)
    return text if len(text) <= SHOWN else f"{text[:SHOWN]}..."


def identity_of(values: Any) -> Identity:
    """From what `asdict` gives, as JSON. Raises ValueError on what is none."""
    _check_value("identity", Identity, values)
    return Identity(**values | {"kind": TesterKind(values["kind"])})


def capabilities_of(values: Any) -> Capabilities:
    """From what `asdict` gives, as JSON. Raises ValueError on what is none."""
    _check_value("capabilities", Capabilities, values)
    parsed = {
        "mvm": MvmMode(values["mvm"]),
        "readout": Readout(values["readout"]),
        "set_pulse": PulseShape(**values["set_pulse"]),
        "reset_pulse": PulseShape(**values["reset_pulse"]),
        "pulse_limits": PulseLimits(**values["pulse_limits"]),
        "durations": Durations(**values["durations"]),
        "mvm_ranges": tuple(values["mvm_ranges"]),
        "staircase": tuple(values["staircase"]),
    }
    c = Capabilities(**values | parsed)
    _check_sizes(c.arrays, c.rows, c.columns)
    if min(c.largest_batch, c.dac_bits, c.adc_bits) < 1:
        raise ValueError("the largest batch and the bits of the converters must be above 0")
    return c


def _check_sizes(*sizes: int) -> None:
    """Arrays, rows and columns."""
    if not all(0 < size <= MOST_LINES for size in sizes):
        raise ValueError(f"a chip of {sizes} arrays, rows and columns")
    if math.prod(sizes) > MOST_CELLS:
        raise ValueError(f"a chip of {sizes} has more than {MOST_CELLS} cells")
