"""Read what a run file says of itself at its head: format, start and regions. What is wrong raises DataError, or any
of `column_reader.DAMAGE` where the caller knows more about the place.
"""

import json
from dataclasses import MISSING, fields
from pathlib import Path
from typing import Any

import numpy as np

from hil.data.schema import FORMAT, FORMAT_VERSION, Start
from hil.protocols.errors import DataError
from hil.protocols.messages import Block, Capabilities, LineIndex, Region
from hil.protocols.payloads import MOST_LINES, capabilities_of, identity_of


def check_format(path: Path, attrs: Any) -> None:
    """Raise DataError for what is no run file, or one of another major version."""
    if not np.array_equal(attrs.get("format"), FORMAT):
        raise DataError(f"{path}: not a run file: format is {attrs.get('format')!r:.40}, expected {FORMAT!r}")
    version = text(attrs, "format_version")
    if version.partition(".")[0] != FORMAT_VERSION.partition(".")[0]:
        raise DataError(
            f"{path}: format version {version:.20}, this program reads {FORMAT_VERSION}: use one that reads it"
        )


def text(attrs: Any, name: str) -> str:
    """An attribute that is text."""
    value = attrs[name]
    if not isinstance(value, str):
        raise ValueError(f"{name} is {value!r:.40}, expected text")
    return value


def read_start(group: Any) -> Start:
    """How the run started."""
    names = [field.name for field in fields(Start) if field.name in group or field.default is MISSING]
    texts = {name: group[name].asstr()[()] for name in names}
    parts = {name: stored if name == "config_text" else json.loads(stored) for name, stored in texts.items()}
    for name in ("config", "versions", "host", "meta"):
        if not isinstance(parts[name], dict):
            raise ValueError(f"start/{name} is {parts[name]!r:.40}, expected a table")
    parts["argv"] = tuple(parts["argv"])
    if parts["identity"]:
        parts["identity"] = identity_of(parts["identity"])
    if parts["capabilities"]:
        parts["capabilities"] = capabilities_of(parts["capabilities"])
    return Start(**parts)


def read_regions(group: Any, chip: Capabilities | None) -> dict[int, Region]:
    """The regions by their handles."""
    return {int(handle): _read_region(int(handle), blocks, chip) for handle, blocks in group.items()}


def _read_region(handle: int, group: Any, chip: Capabilities | None) -> Region:
    blocks = sorted(((int(number), block) for number, block in group.items()), key=lambda item: item[0])
    region = Region(handle, tuple(_read_block(block) for _, block in blocks))
    if not blocks:
        raise ValueError(f"region {handle} has no blocks")
    for block in region.blocks:
        _check_block(block, (chip.arrays, chip.rows, chip.columns) if chip else (MOST_LINES,) * 3)
    return region


def _read_block(group: Any) -> Block:
    return Block(
        array=int(group.attrs["array"]),
        rows=_lines(group["rows"]),
        columns=_lines(group["columns"]),
        partners=_lines(group["partners"]) if "partners" in group else None,
        row_offset=int(group.attrs["row_offset"]),
        column_offset=int(group.attrs["column_offset"]),
    )


def _lines(dataset: Any) -> LineIndex:
    if dataset.ndim != 1 or dataset.dtype != np.uint16 or not 0 < len(dataset) <= MOST_LINES:
        raise ValueError(f"{dataset.name} is {dataset}, expected numbers of lines")
    return np.asarray(dataset[:])


def _check_block(block: Block, sizes: tuple[int, ...]) -> None:
    partners = block.columns if block.partners is None else block.partners
    largest = block.array, int(block.rows.max()), int(max(block.columns.max(), partners.max()))
    if block.array < 0 or any(line >= size for line, size in zip(largest, sizes, strict=True)):
        raise ValueError(f"a block reaches to array, row and column {largest} of a chip of {sizes}")
    if len(partners) != len(block.columns):
        raise ValueError(f"a block has {len(block.columns)} bit lines and {len(partners)} partners")
    if not (0 <= block.row_offset <= MOST_LINES and 0 <= block.column_offset <= MOST_LINES):
        raise ValueError(f"a block has the offsets {block.row_offset} and {block.column_offset}")
