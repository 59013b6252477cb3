"""Each defect that is seeded in a served twin is found by the checks that were made for it."""

import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from hil.check import Report, run_checks
from hil.mock_hw import frame_port, scpi_port, status
from hil.mock_hw.array import Chip
from hil.mock_hw.firmware import Firmware
from hil.mock_hw.frame_port import FramePort
from hil.mock_hw.ports import Codec
from hil.mock_hw.scpi_port import ScpiPort
from hil.mock_hw.server import Server
from hil.mock_hw.status import StatusSystem
from hil.mock_hw.tcp_server import TcpServer
from hil.protocols import scpi
from hil.protocols.errors import LimitError, OperationIdError
from hil.protocols.frames import HEADER, MAGIC, OVERHEAD, START, Frame, FrameReader
from hil.protocols.messages import Cells
from hil.protocols.payloads import Buffer
from hil.protocols.requests import Failure
from hil.serving import serving

SMALL = "?arrays=2&rows=64&columns=32"
SLOW = ("half a block is forgotten after 0.5 s", "half a frame is forgotten after 0.5 s")
TIMEOUT = 0.12


@contextmanager
def served(chip: str, codec: Codec = "auto", path: Path | None = None) -> Iterator[Server]:
    """A small twin that a thread serves, at a port of this machine or at a pseudo terminal."""
    with serving(f"twin:{chip}{SMALL}", path or ("127.0.0.1", 0), codec) as server:
        thread = threading.Thread(target=server.run)
        thread.start()
        try:
            yield server
        finally:
            server.stop()
            thread.join()


Break = Callable[[pytest.MonkeyPatch], None]


@dataclass(frozen=True)
class Defect:
    """How a twin is broken, and the checks that must find it."""

    break_: Break
    codec: Codec
    found_by: set[str]
    slow: bool = False


def patch(owner: Any, name: str, value: Any) -> Break:
    return lambda monkeypatch: monkeypatch.setattr(owner, name, value)


def wrap(owner: Any, name: str, wrapper: Callable[..., Any]) -> Break:
    """Puts `wrapper(original, *arguments)` in the place of a function."""

    def break_(monkeypatch: pytest.MonkeyPatch) -> None:
        original = getattr(owner, name)
        monkeypatch.setattr(owner, name, lambda *arguments: wrapper(original, *arguments))

    return break_


def both(*breaks: Break) -> Break:
    """Several at once."""

    def break_(monkeypatch: pytest.MonkeyPatch) -> None:
        for one in breaks:
            one(monkeypatch)

    return break_


def failures(report: Report) -> dict[str, str]:
    return {outcome.name: outcome.detail for outcome in report.failed}


class LineReader:
    """Takes every newline for the end of a message."""

    in_block = False

    def __init__(self) -> None:
        self._data = b""

    def clear(self) -> None:
        self._data = b""

    def feed(self, data: Buffer) -> None:
        self._data += bytes(data)

    def messages(self) -> Iterator[bytes]:
        *lines, self._data = self._data.split(b"\n")
        yield from lines


class TrustingReader:
    """Takes whatever comes for frames, one behind the other."""

    def __init__(self) -> None:
        self._data = b""

    @property
    def partial(self) -> bool:
        return bool(self._data)

    def clear(self) -> None:
        self._data = b""

    def feed(self, data: Buffer) -> None:
        self._data += bytes(data)

    def frames(self) -> Iterator[Frame]:
        while len(self._data) >= OVERHEAD:
            *_, command, sequence, length = HEADER.unpack_from(self._data)
            if len(self._data) < OVERHEAD + length:
                return
            yield Frame(command, sequence, memoryview(self._data)[START : START + length])
            self._data = self._data[OVERHEAD + length :]


class StrictReader(FrameReader):
    """Drops what does not begin with a frame, up to the end."""

    def feed(self, data: Buffer) -> None:
        if self.partial or bytes(data[:2]) == MAGIC:
            super().feed(data)


def run_again(repeated: Any, self: Any, op_id: int, operation: Any, content: Any) -> Any:
    """As `_repeated`, but an id that is equal to the last one runs."""
    if op_id == self.last_op_id and operation == self.last_operation:
        self.last_op_id -= 1
    return repeated(self, op_id, operation, content)


def new_draw(repeated: Any, self: Any, op_id: int, operation: Any, content: Any) -> Any:
    """As `run_again`, but no time passes."""
    self.again = op_id == self.last_op_id and operation == self.last_operation
    return run_again(repeated, self, op_id, operation, content)


def no_time_again(spend: Any, self: Any, count: int, seconds: float) -> None:
    if not self.again:
        spend(self, count, seconds)


def accept_lower(repeated: Any, self: Any, op_id: int, operation: Any, content: Any) -> Any:
    if op_id < self.last_op_id:
        self.last_op_id = op_id - 1
    return repeated(self, op_id, operation, content)


def take_other(check_same: Any, self: Any, op_id: int, operation: Any, content: Any) -> None:
    """What was asked before is not compared."""
    try:
        check_same(self, op_id, operation, content)
    except OperationIdError:
        if op_id < self.last_op_id:
            raise


def takes_an_id(read: Any, self: Any, op_id: int, cells: Cells) -> Any:
    try:
        return read(self, op_id, cells)
    except LimitError:
        self.last_op_id = max(op_id, self.last_op_id)
        raise


def clip(locate: Any, self: Any, cells: Cells) -> Any:
    p = self.parameters
    clipped = [
        np.minimum(lines, size - 1)
        for lines, size in zip((cells.array, cells.row, cells.column), (p.arrays, p.rows, p.columns), strict=True)
    ]
    return locate(self, Cells(*(lines.astype(np.uint16) for lines in clipped)))


def with_reply(**changes: Callable[[Any], Any]) -> Callable[..., Any]:
    """Changes fields of what a function returns."""

    def wrapper(function: Any, *arguments: Any) -> Any:
        reply = function(*arguments)
        return replace(reply, **{name: change(getattr(reply, name)) for name, change in changes.items()})

    return wrapper


def on_a_break(do: Callable[[Any], None]) -> Break:
    """Something else that happens when the client's connection ends."""

    def wrapper(lose: Any, self: Any) -> None:
        lose(self)
        do(self._firmware)

    return wrap(TcpServer, "_lose_client", wrapper)


def forget_reply(firmware: Any) -> None:
    firmware.last_reply = None


def without(command: str) -> Break:
    def wrapper(common: Any, self: Any) -> Any:
        return {name: handler for name, handler in common(self).items() if name != command}

    return wrap(ScpiPort, "_common", wrapper)


def newest_first(self: Any) -> Failure | None:
    return self._errors.pop() if self._errors else None


def drop_newest(push: Any, self: Any, failure: Failure) -> None:
    if len(self._errors) < status.QUEUE_SIZE:
        push(self, failure)


def from_the_root(find: Any, self: Any, header: bytes) -> Any:
    self._path = b":"
    return find(self, header)


def a_line_each(answer: Any, self: Any, message: bytes) -> Any:
    return [part for unit in message.split(b";:") for part in answer(self, unit)]


def spoil(encode: Any, *arguments: Any) -> Any:
    whole = b"".join(encode(*arguments))
    return [whole[:-1] + bytes([whole[-1] ^ 1])] if whole else []


def serve_the_newest(accept: Any, self: Any) -> None:
    if self._client is not None:
        self._lose_client()
    accept(self)


def same_number(encode: Any, command: int, sequence: int, reply: Any) -> Any:
    return encode(command, 1, reply)


WRONG_SUM, FLIPPED = (
    "a wrong checksum is refused, and nothing is done",
    "a flipped bit anywhere in a request is noticed",
)
REPEATED, STORED = "a repeated id gets the same reply, byte by byte", "a stored reply outlives the connection"
OUTSIDE, READS_TIME = "what is out of range is refused and takes no id", "device time moves by the reads told"
BLOCKS, COMPOUND = "blocks carry any bytes", "messages may hold several units"
GARBAGE, GROUNDED = "garbage before a frame is passed over", "the lines are grounded when asked"
REMEMBERED, BOOTS = "a region may be defined twice, and is remembered", "the count of boots stays the same"
LEVELS, RECEIPTS = "SET raises the conductance and RESET lowers it", "a receipt counts the pulses"

DEFECTS: dict[str, Defect] = {
    "blocks end at a newline": Defect(patch(scpi_port, "MessageReader", LineReader), "scpi", {BLOCKS}),
    "checksums of text are not checked": Defect(patch(scpi, "_check", lambda unit: None), "scpi", {WRONG_SUM, FLIPPED}),
    "frames are believed as they come": Defect(
        patch(frame_port, "FrameReader", TrustingReader),
        "frames",
        {"a frame with a wrong checksum is passed over", "another version of frames is passed over", GARBAGE, FLIPPED},
    ),
    "a repeated id is done again": Defect(
        wrap(Firmware, "_repeated", run_again), "scpi", {REPEATED, STORED, "a repeated id pulses once"}
    ),
    "a repeated id is drawn again": Defect(
        both(wrap(Firmware, "_repeated", new_draw), wrap(Firmware, "_spend", no_time_again)),
        "frames",
        {REPEATED, STORED},
    ),
    "a lower id is done": Defect(wrap(Firmware, "_repeated", accept_lower), "frames", {"a lower id is refused"}),
    "a used id is not compared": Defect(
        wrap(Firmware, "_check_same", take_other), "scpi", {"a repeated id with other content is refused"}
    ),
    "the stored reply is lost with the connection": Defect(on_a_break(forget_reply), "scpi", {STORED}),
    "regions are lost with the connection": Defect(on_a_break(Firmware.forget_regions), "scpi", {REMEMBERED}),
    "it boots with each connection": Defect(on_a_break(Firmware.boot), "frames", {BOOTS, REMEMBERED}),
    "*OPC? is missing": Defect(without("*OPC?"), "scpi", {"*OPC?, *TST?, *WAI and *RST are there"}),
    "*ESR? is missing": Defect(without("*ESR?"), "scpi", {"*ESR? has a bit for each class of errors"}),
    "*WAI is missing": Defect(without("*WAI"), "scpi", {"*OPC?, *TST?, *WAI and *RST are there"}),
    "*ESE is missing": Defect(without("*ESE"), "scpi", {"*ESE and *SRE keep what is set"}),
    "errors come newest first": Defect(
        patch(StatusSystem, "next_error", newest_first), "scpi", {"the error queue is first in, first out"}
    ),
    "a full queue drops the newest": Defect(
        wrap(StatusSystem, "push", drop_newest), "scpi", {"a full error queue ends with -350"}
    ),
    "all errors are execution errors": Defect(
        patch(status, "class_bit", lambda code: 16), "scpi", {"*ESR? has a bit for each class of errors"}
    ),
    "*CLS clears nothing": Defect(
        patch(StatusSystem, "clear", lambda self: None), "scpi", {"*CLS clears the error queue"}
    ),
    "the path is not followed": Defect(
        wrap(ScpiPort, "_find", from_the_root), "scpi", {"a header continues at the node of the one before"}
    ),
    "responses come on a line each": Defect(wrap(ScpiPort, "_answer", a_line_each), "scpi", {COMPOUND}),
    "a refused read takes an id": Defect(wrap(Firmware, "read", takes_an_id), "scpi", {OUTSIDE}),
    "cells outside are clipped": Defect(wrap(Chip, "locate", clip), "frames", {OUTSIDE}),
    "device time stands still": Defect(
        patch(Firmware, "_spend", lambda self, count, seconds: None),
        "frames",
        {READS_TIME, "a wait of 1 ms passes 1 ms of device time", "device time moves by the products told"},
    ),
    "device time goes back": Defect(
        wrap(Firmware, "read", with_reply(time_ns=lambda now: 10**15 - now)), "scpi", {"device time never goes back"}
    ),
    "readings are in microsiemens": Defect(
        wrap(Firmware, "read", with_reply(scale=lambda scale: 1e6 * scale)), "scpi", {"conductances are believable"}
    ),
    "readings are in ampere": Defect(
        wrap(Firmware, "read", with_reply(unit=lambda unit: "A")),
        "frames",
        {"a read gives one code per cell, in siemens"},
    ),
    "products have the scale of another range": Defect(
        wrap(Firmware, "mvm", with_reply(scale=lambda scale: 2 * scale)),
        "scpi",
        {"its outputs are in ampere, scaled by the range"},
    ),
    "products have an offset": Defect(
        wrap(Firmware, "mvm", with_reply(codes=lambda codes: codes + np.int8(20))),
        "scpi",
        {"a product of zeros is near zero", "twice the input gives twice the output", "forward and backward agree"},
    ),
    "the lines are not grounded": Defect(patch(Firmware, "ground", lambda self: None), "frames", {GROUNDED}),
    "half a block is awaited for ever": Defect(
        patch(ScpiPort, "abandon", lambda self: None), "scpi", {"half a block is forgotten after 0.5 s"}, slow=True
    ),
    "half a frame is awaited for ever": Defect(
        patch(FramePort, "abandon", lambda self: None), "frames", {"half a frame is forgotten after 0.5 s"}, slow=True
    ),
    "checksums of replies are wrong": Defect(
        wrap(scpi_port, "encode_reply", spoil), "scpi", {"a reply's checksum covers it", "it opens"}
    ),
    "checksums of frames sent are wrong": Defect(
        wrap(frame_port, "encode_reply", spoil), "frames", {"checksums of its replies are right", "it opens"}
    ),
    "sequence numbers are not echoed": Defect(
        wrap(frame_port, "encode_reply", same_number), "frames", {"a reply has its request's sequence number"}
    ),
    "noise swallows the next frame": Defect(patch(frame_port, "FrameReader", StrictReader), "frames", {GARBAGE}),
    "a second connection takes over": Defect(
        wrap(TcpServer, "_accept", serve_the_newest), "scpi", {"a second connection is refused while the first works"}
    ),
    "SET pulses are not counted": Defect(
        wrap(Firmware, "program", with_reply(done=lambda done: 0)), "scpi", {RECEIPTS}
    ),
    "pulses do nothing": Defect(patch(Chip, "program", lambda self, pulses, flat, total: 0), "frames", {LEVELS}),
}


@pytest.mark.parametrize("name", DEFECTS)
def test_a_defect_is_found(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    defect = DEFECTS[name]
    defect.break_(monkeypatch)
    with served("pcm-analog", defect.codec) as server:
        report = run_checks(server.uri, True, timeout=TIMEOUT, leave_out=() if defect.slow else SLOW)
    found = failures(report)
    assert defect.found_by <= found.keys()
