"""The grammar of SCPI messages (IEEE 488.2, chapters 7 and 8): units, parameters, blocks, long and short forms."""

import re
from collections.abc import Iterator
from dataclasses import dataclass
from functools import lru_cache
from itertools import product
from typing import NamedTuple

from hil.protocols.inbox import Inbox
from hil.protocols.payloads import Buffer
from hil.protocols.requests import Fault, ProtocolError

LARGEST_BLOCK = 1 << 28
"""Bytes in the blocks of a message; more overrun the input buffer."""
LONGEST_TEXT = 1 << 16
"""Bytes of a message outside its blocks."""

_END = re.compile(rb'\n|#[0-9]|"[^"\n]*"?|\'[^\'\n]*\'?')
_OPAQUE = re.compile(rb'#[1-9]|(?:"[^"\n]*")+|(?:\'[^\'\n]*\')+')
_HOLE = b"\0"
_HASH = ord("#")
_NUMBER = re.compile(rb"[+-]?(\d+\.?\d*|\.\d+)([eE][+-]?\d+)?$")
_BEFORE_HEADER = (b" ", b"\t", b":")
_HEX = {b"H": 16, b"Q": 8, b"B": 2}


class MessageReader:
    """Takes bytes as they come, and gives whole messages: up to a newline that is in no block and no string."""

    def __init__(self, longest_text: int = LONGEST_TEXT, largest_block: int = LARGEST_BLOCK) -> None:
        self._longest_text, self._largest_block = longest_text, largest_block
        self._inbox = Inbox()
        self._start_again()

    def _start_again(self) -> None:
        self._at = 0  # all before it has been looked at
        self._in_blocks = 0
        self._need = 0  # length of the buffer up to the end of a block that is coming

    @property
    def partial(self) -> bool:
        """Whether a message has begun and is not complete."""
        return self._inbox.size > 0

    @property
    def in_block(self) -> bool:
        """Whether the rest of a block is awaited."""
        return self._need > self._inbox.size

    def clear(self) -> None:
        """Forget what is not complete."""
        self._inbox.clear()
        self._start_again()

    def text(self) -> bytes:
        """The beginning of what is not complete."""
        return self._inbox.first(200)

    def feed(self, data: Buffer) -> None:
        """Take bytes."""
        self._inbox.add(data)

    def messages(self) -> Iterator[bytes]:
        """The messages that are complete, with their newline. Raises `ProtocolError` where one is too long, and forgets
        it.
        """
        while not self.in_block:
            stop = self._find_end()
            if stop is None:
                return
            message = self._inbox.first(stop + 1)
            self._inbox.drop(stop + 1)
            self._start_again()
            yield message

    def _find_end(self) -> int | None:
        """Position of the newline that ends the message; None where it has not come yet."""
        inbox = self._inbox
        while (found := _END.search(inbox.store, self._at, inbox.size)) is not None:
            what = found.group()
            if what == b"\n":
                return found.start()
            if what[:1] == b"#":
                if not self._pass_block(found.start()):
                    return None
            elif len(what) > 1 and what[-1] == what[0]:
                self._at = found.end()
            elif found.end() == inbox.size:
                break  # the rest of the string may come
            else:
                self._at = found.start() + 1  # a quote that is never closed in its line is none
        self._check_length(inbox.size - self._in_blocks)
        return None

    def _pass_block(self, start: int) -> bool:
        """Go behind the block at `start`; False where it is not all there."""
        inbox = self._inbox
        digits = inbox.store[start + 1] - ord("0")
        header = inbox.store[start + 2 : min(start + 2 + digits, inbox.size)]
        if digits == 0 or (header and not header.isdigit()):
            self._at = start + 2  # no definite-length block: what it is, its reader will say
            return True
        if len(header) < digits:
            return False
        size = int(header)
        if self._in_blocks + size > self._largest_block:
            self.clear()
            raise ProtocolError(Fault.INPUT_OVERRUN, f"a block of {size} bytes is beyond {self._largest_block} in all")
        self._at = self._need = start + 2 + digits + size
        self._in_blocks += size
        return self._need <= inbox.size

    def _check_length(self, size: int) -> None:
        if size > self._longest_text and not self.in_block:
            self.clear()
            raise ProtocolError(Fault.INPUT_OVERRUN, f"{size} bytes without a newline are beyond {self._longest_text}")


@dataclass(slots=True)
class Element:
    """A parameter or a field of a reply: its text without blanks, and the data of its block if it is one."""

    text: bytes
    block: memoryview | None


@dataclass(slots=True)
class Unit:
    """A message unit: its elements, and the bytes that a checksum in the last of them covers: from the unit's first
    letter to the comma before it.

    In a command, the header stands before the first element's text.
    """

    elements: list[Element]
    checked: memoryview


class _Opaque(NamedTuple):
    """A block or a string: what stands between separators and holds none."""

    block: memoryview | None
    text: bytes
    size: int


def split(message: bytes) -> list[Unit]:
    """The units of a message, with or without its newline. Raises `ProtocolError` on a block that is none."""
    view = memoryview(message)
    text, opaque = _without_opaque(message, view)
    units: list[Unit] = []
    start = 0
    for unit in text.split(b";"):
        parts = unit.split(b",")
        before_last = start + len(unit) - len(parts[-1])
        stop = start + len(unit)
        if _HOLE in unit:
            sizes = [part.size - len(_HOLE) for part in opaque[: unit.count(_HOLE)]]
            stop += sum(sizes)
            before_last += sum(sizes[: len(sizes) - parts[-1].count(_HOLE)])
            elements = [_element(part, opaque) for part in parts]
        else:
            elements = [Element(part.strip(), None) for part in parts]
        first = _first_letter(message, start)
        units.append(Unit(elements, view[first : max(first, before_last - 1)]))
        start = stop + 1
    return units


def _without_opaque(message: bytes, view: memoryview) -> tuple[bytes, list[_Opaque]]:
    """The message with a hole in the place of each block and string, and these."""
    texts: list[bytes] = []
    opaque: list[_Opaque] = []
    at = 0
    while (found := _OPAQUE.search(message, at)) is not None:
        start = found.start()
        texts.append(message[at:start])
        if message[start] == _HASH:
            block, at = _block(view, start)
            opaque.append(_Opaque(block, b"", at - start))
        else:
            at = found.end()
            opaque.append(_Opaque(None, found.group(), at - start))
    texts.append(message[at:] if at else message)
    text = _HOLE.join(texts)
    if text.count(_HOLE) != len(opaque):
        raise ProtocolError(Fault.INVALID_CHARACTER, "a byte 0 outside a block")
    return text, opaque


def _element(text: bytes, opaque: list[_Opaque]) -> Element:
    """An element with the first of these in the place of its hole, if it has one."""
    if _HOLE not in text:
        return Element(text.strip(), None)
    part = opaque.pop(0)
    before, _, after = text.partition(_HOLE)
    if after.strip():
        raise ProtocolError(Fault.INVALID_BLOCK, f"{after[:20]!r} follows a block or string")
    return Element((before + part.text).strip(), part.block)


def _first_letter(message: bytes, start: int) -> int:
    """Behind blanks and the colon that leads a header to the root."""
    while message[start : start + 1] in _BEFORE_HEADER:
        start += 1
    return start


def _block(view: memoryview, start: int) -> tuple[memoryview, int]:
    """The data of the definite-length block at `start`, and where it ends."""
    digits = view[start + 1] - ord("0")
    first = start + 2 + digits
    header = bytes(view[start + 2 : first])
    if len(header) < digits or not header.isdigit():
        raise ProtocolError(Fault.INVALID_BLOCK, f"block length {header!r} is not {digits} digits")
    stop = first + int(header)
    if stop > len(view):
        raise ProtocolError(Fault.INVALID_BLOCK, f"a block of {int(header)} bytes has only {len(view) - first}")
    return view[first:stop], stop


def block_header(size: int) -> bytes:
    """What stands before a definite-length block of so many bytes."""
    digits = b"%d" % size
    return b"#%d%s" % (len(digits), digits)


def quoted(text: str) -> bytes:
    """A string of ASCII characters, in double quotes."""
    printable = "".join(character if 32 <= ord(character) < 127 else "?" for character in text)
    return b'"' + printable.replace('"', '""').encode() + b'"'


def unquoted(text: bytes) -> str:
    """What is in a quoted string."""
    return text[1:-1].replace(b'""', b'"').decode("ascii", "replace")


def integer(text: bytes) -> int:
    """A whole number: decimal, or #H, #Q, #B. Raises `ProtocolError` on anything else."""
    if text.isdigit() and len(text) < 20:
        return int(text)
    if text[:1] == b"#" and text[1:2].upper() in _HEX and text[2:].isalnum():
        try:
            return int(text[2:], _HEX[text[1:2].upper()])
        except ValueError:
            raise ProtocolError(Fault.DATA_TYPE, f"{_shown(text)} is no number") from None
    value = number(text)
    if not value.is_integer():
        raise ProtocolError(Fault.DATA_TYPE, f"{_shown(text)} is no whole number")
    try:
        return int(text) if text.lstrip(b"+-").isdigit() else int(value)
    except ValueError:
        raise ProtocolError(Fault.DATA_TYPE, f"{_shown(text)}... has more digits than a number can have") from None


def number(text: bytes) -> float:
    """A decimal number without a suffix. Raises `ProtocolError` on anything else."""
    if _NUMBER.match(text):
        return float(text)
    if not text:
        raise ProtocolError(Fault.MISSING_PARAMETER, "a parameter is empty")
    if text[:1].isdigit():
        raise ProtocolError(Fault.SUFFIX, f"{_shown(text)}: give the number in SI units, without a suffix")
    raise ProtocolError(Fault.DATA_TYPE, f"{_shown(text)} where a number is expected")


@lru_cache(256)
def choice(text: bytes, *patterns: str) -> int:
    """Which of the words is meant, in its long or short form ("RESet"). Raises `ProtocolError` if none is."""
    word = text.upper()
    for index, pattern in enumerate(patterns):
        if word in (pattern.upper().encode(), short(pattern).encode()):
            return index
    raise ProtocolError(Fault.ILLEGAL_VALUE, f"{_shown(text)} is none of {', '.join(patterns)}")


def _shown(text: bytes) -> str:
    return text[:30].decode("ascii", "replace")


def short(word: str) -> str:
    """The short form of a word: its capital letters, and what is no letter."""
    return "".join(character for character in word if not character.islower())


@lru_cache(256)
def forms(pattern: str) -> tuple[str, ...]:
    """All ways to write a header in capital letters: each word long or short, words in brackets or not at all.

    "SYSTem:ERRor[:NEXT]?" gives SYSTEM:ERROR:NEXT?, SYST:ERR? and so on.
    """
    query = "?" if pattern.endswith("?") else ""
    words = re.findall(r"\[:?(\w+)\]|([*\w]+)", pattern)
    choices = [
        {optional.upper(), short(optional), ""} if optional else {word.upper(), short(word)} for optional, word in words
    ]
    return tuple(":".join(word for word in combination if word) + query for combination in product(*choices))
