"""The reference of the wire says what the codecs do: examples hold to the byte, tables are complete."""

import json
import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass, fields, is_dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from hil.protocols import frames, messages, payloads, requests, scpi
from hil.protocols.frames import FrameReader
from hil.protocols.requests import FAULT_TEXT, Failure, Fault, Reply, Request
from hil.protocols.scpi_syntax import MessageReader, forms, split

README = (Path(__file__).parents[2] / "protocols" / "README.md").read_text()
DESCRIPTION = json.loads(re.findall(r"```json\n(.*?)```", README, re.DOTALL)[0])
WORDS: dict[str, Any] = vars(requests) | vars(messages) | {"cells": messages.Cells.of}
WORDS |= {name.lower(): lambda values, name=name: np.array(values, name.lower()) for name in payloads.CODE_NAMES}
WORDS |= {"described": payloads.description_of(json.dumps(DESCRIPTION).encode())}
Plain = Callable[[Any], Any]


@dataclass
class Example:
    """A message of the README and its bytes in both codecs; `text` without a newline."""

    words: str
    message: Any
    frame: bytes
    text: bytes


def frame_bytes(lines: list[str]) -> bytes:
    """Hexadecimal digits up to a remark, or ASCII in quotes."""
    dumped = [line[1:].partition("'")[0].encode() if line[0] == "'" else hex_bytes(line) for line in lines]
    return b"".join(dumped)


def hex_bytes(line: str) -> bytes:
    return bytes.fromhex(line.partition(";")[0])


def text_bytes(lines: list[str]) -> bytes:
    """ASCII, with hexadecimal digits in angle brackets."""
    parts = re.split(r"<([^>]*)>", "".join(lines))
    return b"".join(bytes.fromhex(part) if index % 2 else part.encode() for index, part in enumerate(parts))


def entries(vector: str) -> Iterator[tuple[str, list[str]]]:
    """The words that begin lines, with what follows them and is indented below."""
    for entry in re.split(r"\n+(?=\S)", vector.strip()):
        word, rest = entry.split(maxsplit=1)
        yield word, [line.strip() for line in rest.splitlines()]


def example(half: list[tuple[str, list[str]]]) -> Example:
    assert [word for word, _ in half[1:]] == ["frame", "text"]
    words, frame, text = (lines for _, lines in half)
    said = " ".join(words)
    return Example(said, eval(said, WORDS), frame_bytes(frame), text_bytes(text))


def pair(vector: str) -> tuple[Example, Example]:
    """A request and its reply."""
    found = list(entries(vector))
    assert [found[0][0], found[3][0], len(found)] == ["request", "reply", 6]
    return example(found[:3]), example(found[3:])


PAIRS = [pair(vector) for vector in re.findall(r"```vector\n(.*?)```", README, re.DOTALL)]
NAMES = [request.words.partition("(")[0] + ("-refused" * (reply.words[:7] == "Failure")) for request, reply in PAIRS]
every_pair = pytest.mark.parametrize(("request_", "reply"), PAIRS, ids=NAMES)


def sequence_of(frame: bytes) -> int:
    return int.from_bytes(frame[4:8], "little")


def read_frame(data: bytes) -> frames.Frame:
    reader = FrameReader()
    reader.feed(data)
    (frame,) = reader.frames()
    return frame


@every_pair
def test_a_request_is_written_as_in_the_examples(request_: Example, reply: Example) -> None:
    request: Request = request_.message
    assert b"".join(frames.encode_request(request, sequence_of(request_.frame))) == request_.frame
    assert b"".join(scpi.encode_request(request)) == request_.text


@every_pair
def test_a_request_is_read_as_in_the_examples(
    request_: Example, reply: Example, plain: Plain, requests_in: Callable[[bytes], Iterator[Request]]
) -> None:
    expected = plain(request_.message)
    assert plain(frames.decode_request(read_frame(request_.frame))) == expected
    assert [plain(request) for request in requests_in(request_.text + b"\n")] == [expected]


@every_pair
def test_a_reply_is_written_as_in_the_examples(request_: Example, reply: Example) -> None:
    answer: Reply = reply.message
    command = frames.COMMAND_OF[type(request_.message)]
    assert sequence_of(request_.frame) == sequence_of(reply.frame)
    assert b"".join(frames.encode_reply(command, sequence_of(reply.frame), answer)) == reply.frame
    if isinstance(answer, Failure):
        assert scpi.error_reply(answer, FAULT_TEXT[Fault(answer.code)]) == reply.text
    else:
        assert b"".join(scpi.encode_reply(answer)) == reply.text


@every_pair
def test_a_reply_is_read_as_in_the_examples(request_: Example, reply: Example, plain: Plain) -> None:
    reader = MessageReader()
    reader.feed(reply.text + b"\n")
    (message,) = reader.messages()
    (unit,) = split(message)
    if isinstance(reply.message, Failure):
        found: Reply | None = scpi.decode_error(unit)
    else:
        found = scpi.decode_reply(request_.message, unit)
    assert plain(found) == plain(reply.message)
    assert plain(frames.decode_reply(request_.message, read_frame(reply.frame))) == plain(reply.message)


def test_every_request_and_every_reply_has_an_example() -> None:
    assert {type(request.message) for request, _ in PAIRS} == set(scpi.HEADERS)
    kinds = {type(reply.message).__name__ for _, reply in PAIRS}
    assert kinds == {"Description", "State", "Done", "Echoed", "Readings", "Receipt", "Failure"}


def test_every_command_has_its_section_and_its_numbers() -> None:
    sections = dict(re.findall(r"^### (\S+) \((\w\w)\)$", README, re.MULTILINE))
    assert sections == {header: f"{frames.COMMAND_OF[kind]:02x}" for kind, header in scpi.HEADERS.items()}
    table = re.findall(r"^\| (\w+) \| `(\S+)` \| (\w\w) \|", README, re.MULTILINE)
    assert {header: number for _, header, number in table} == sections
    assert {header: name for name, header, _ in table} == {
        header: kind.__name__ for kind, header in scpi.HEADERS.items()
    }
    for request, _ in PAIRS:
        assert request.text.split()[0].decode() in {*forms(scpi.HEADERS[type(request.message)])}


def test_every_fault_is_in_its_table() -> None:
    rows = re.findall(r"^\| (-?\d+) \| ([A-Z_]+) \| ([^|]+) \|", README, re.MULTILINE)
    assert {(int(code), name, text) for code, name, text in rows} == {(f, f.name, FAULT_TEXT[f]) for f in Fault}


def test_every_type_of_codes_is_in_its_table() -> None:
    assert "| in text | " + " | ".join(f"`{name}`" for name in payloads.CODE_NAMES) + " |" in README


def names_in(message: Any) -> Iterator[str]:
    for field in fields(message):
        yield field.name
        value = getattr(message, field.name)
        if is_dataclass(value):
            yield from names_in(value)


def test_every_key_of_the_description_is_explained() -> None:
    section = README.split("## The description\n")[1].split("\n## ")[0]
    explained = {
        name
        for cell in re.findall(r"^\| (?:- )?(`[^|]*) \|", section, re.MULTILINE)
        for name in re.findall(r"`(\w+)`", cell)
    }
    described = WORDS["described"]
    assert explained == {*names_in(described.identity), *names_in(described.capabilities)}
    assert list(DESCRIPTION["capabilities"]) == [field.name for field in fields(described.capabilities)]
