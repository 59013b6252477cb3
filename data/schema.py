"""What a run file holds, in tables and streams; `data/README.md` says what it means."""

from dataclasses import dataclass
from typing import Any

from hil.data.columns import Field
from hil.protocols.messages import Capabilities, Identity

FORMAT = "hil-run"
FORMAT_VERSION = "1.3"
OPERATION_CHUNK = 2**15
"""Rows per chunk of the operations, and from one row of the marks to the next."""

NONE = -1
"""Stands for no region, gain or pulse shape, and for the operation id and time that a failed tester did not tell."""

OPERATIONS = (
    Field("op_id", "<i8", "", "operation id; -1: the tester failed and did not tell", "lz4"),
    Field("kind", "u1", "", "1 read, 2 MVM forward, 3 MVM backward, 4 SET, 5 RESET, 6 wait, 7 update", "lz4"),
    Field("status", "u1", "", "0 complete, 1 partial: the first `done` parts, 2 unknown", "lz4"),
    Field("device_time_ns", "<i8", "ns", "device time at the end; -1: the tester failed and did not tell", "lz4"),
    Field("host_time_ns", "<i8", "ns", "UTC since 1970 when the host had the answer", "lz4"),
    Field("region", "<i4", "", "region of an MVM or update, else -1", "lz4"),
    Field("gain", "i1", "", "ADC gain of an MVM, else -1", "lz4"),
    Field("shape", "<i2", "", "row of shapes of a SET or RESET, else -1", "lz4"),
    Field("polarity", "i1", "", "polarity of an update, else 0", "lz4"),
    Field("count", "<u4", "", "cells read, vectors, cells pulsed, slots of an update; 1 for a wait", "lz4"),
    Field("done", "<u4", "", "cells or vectors answered; pulses applied", "lz4"),
    Field(
        "saturated", "<u4", "", "codes at an end of the converter's range; pulses at an end of the conductance", "lz4"
    ),
    Field("offset", "<i8", "", "position of the first element in the streams of what was asked", "lz4"),
    Field("output_offset", "<i8", "", "position of the first code in read/codes or mvm/outputs, else 0", "lz4"),
    Field("scale_offset", "<i8", "", "position of the first element in mvm/scales, else 0", "lz4"),
)

STREAMS = {
    field.name: field
    for field in (
        Field("read/array", "<u2", "", "array of each cell read", "lz4"),
        Field("read/row", "<u2", "", "word line of each cell read", "lz4"),
        Field("read/column", "<u2", "", "bit line of each cell read", "lz4"),
        Field("read/codes", "", "", "conductance code of each cell read; see readings; dtype as the tester gives it"),
        Field("mvm/inputs", "", "", "DAC codes, vector after vector; int8, or int16 for more than 8 bits", "lz4", 2),
        Field("mvm/scales", "<f4", "", "what one DAC code stands for on the host, one per vector"),
        Field(
            "mvm/outputs",
            "",
            "",
            "ADC codes, vector after vector; see readings; dtype as the tester gives it",
            "none",
            2,
        ),
        Field("mvm/digest", "<u4", "", "in a digest: CRC-32 of the inputs, scales and outputs of one operation"),
        Field("program/array", "<u2", "", "array of each cell pulsed", "lz4"),
        Field("program/row", "<u2", "", "word line of each cell pulsed", "lz4"),
        Field("program/column", "<u2", "", "bit line of each cell pulsed", "lz4"),
        Field("program/counts", "<u2", "", "pulses on each cell pulsed", "lz4"),
        Field("update/trains", "u1", "", "bits of the word lines, slot after slot, then those of the bit lines"),
        Field("wait/seconds", "<f8", "s", "device time that was let pass"),
        Field("messages/text", "u1", "", "UTF-8 text of all messages, one after the other"),
    )
}

MARKS = (
    Field("read", "<i8", "", "length of read/row when another 2^15 operations were logged"),
    Field("program", "<i8", "", "length of program/row when another 2^15 operations were logged"),
)

SHAPES = (
    Field("amplitude", "<f8", "A or V", "amplitude of the pulse; the unit is that of the pulse source"),
    Field("width", "<f8", "s", "width of the pulse"),
    Field("rise", "<f8", "s", "rise time of the pulse"),
    Field("fall", "<f8", "s", "fall time of the pulse"),
)

READINGS = (
    Field("kind", "u1", "", "kind of operation, as in operations"),
    Field("gain", "i1", "", "ADC gain; -1 for reads"),
    Field("unit", "S16", "", "unit of the values: value = (code - zero) * scale"),
    Field("scale", "<f8", "", "value of one code, in the unit of this row"),
    Field("zero", "<i8", "", "code of the value 0"),
)

MESSAGES = (
    Field("time_ns", "<i8", "ns", "UTC since 1970"),
    Field("offset", "<i8", "", "position of the first byte in text"),
    Field("size", "<u4", "", "length in bytes"),
)


@dataclass(frozen=True)
class Start:
    """What a run starts from; all but the text must be JSON-able."""

    config: dict[str, Any]  # resolved
    config_text: str  # verbatim TOML
    argv: tuple[str, ...]
    seed: int
    versions: dict[str, str]
    host: dict[str, Any]  # python, platform, CPU capability
    git_commit: str | None
    meta: dict[str, str]
    identity: Identity | None  # None: no tester
    capabilities: Capabilities | None
    log: str = "full"  # or "digest": of a product only a CRC-32 is kept
    outlives: bool = False  # the tester outlives the process that drives it
