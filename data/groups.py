"""Write what a run file holds besides columns: its start, regions, texts and arrays."""

import json
import uuid
from dataclasses import asdict
from datetime import UTC, datetime
from typing import Any

from hil.data.columns import Values, compression, describe
from hil.data.schema import FORMAT, FORMAT_VERSION, Start
from hil.protocols.messages import Block

ARRAY_CHUNK = 2**20
"""Bytes of a chunk of a snapshot."""


def write_start(file: Any, start: Start) -> None:
    """What identifies the file, and how the run starts."""
    kind = start.identity.kind if start.identity else "none"
    file.attrs.update(
        {
            "format": FORMAT,
            "format_version": FORMAT_VERSION,
            "run_id": str(uuid.uuid4()),
            "created_utc": utc_now(),
            "tester_kind": str(kind),
        }
    )
    group = file.create_group("start")
    write_text(group, "config_text", start.config_text, "configuration as it was given (TOML)")
    for name, value in asdict(start).items():
        if name != "config_text":
            write_text(group, name, json.dumps(value), f"{name.replace('_', ' ')} (JSON)")


def utc_now() -> str:
    """The time of day, ISO 8601."""
    return datetime.now(UTC).isoformat()


def write_array(group: Any, name: str, values: Values, units: str, description: str) -> None:
    """Compressed in chunks of about a megabyte along the first axis."""
    options: dict[str, Any] = {}
    if values.size > 1:
        rows = max(1, ARRAY_CHUNK * len(values) // max(values.nbytes, 1))
        options = {"chunks": (min(rows, len(values)), *values.shape[1:]), **compression(values.dtype)}
    describe(group.create_dataset(name, data=values, **options), units, description)


def write_text(group: Any, name: str, text: str, description: str) -> None:
    """A text."""
    describe(group.create_dataset(name, data=text), "", description)


def write_block(group: Any, block: Block) -> None:
    """A block of a region."""
    group.attrs.update({"array": block.array, "row_offset": block.row_offset, "column_offset": block.column_offset})
    describe(group.create_dataset("rows", data=block.rows), "", "word lines of the block")
    describe(group.create_dataset("columns", data=block.columns), "", "bit lines of the block")
    if block.partners is not None:
        describe(group.create_dataset("partners", data=block.partners), "", "bit lines subtracted from columns")
