"""What a check of a tester is, and what comes of it."""

from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass
from enum import StrEnum
from typing import Generic, TypeVar

from hil.protocols.messages import Capabilities, Cells

SHOWN = 40
"""Bytes of a message that are quoted."""

Places = tuple[tuple[int, int, int], ...]
"""Cells as a user names them: array, row and column of each."""


class Result(StrEnum):
    """What came of a check."""

    PASSED = "passed"
    FAILED = "failed"
    NOT_APPLICABLE = "not applicable"


@dataclass(frozen=True, slots=True)
class Outcome:
    """What came of one check; `detail` says what was seen, or what was wrong and what was expected."""

    group: str
    name: str
    why: str
    result: Result
    detail: str

    @property
    def tried(self) -> bool:
        """Whether it says something about the tester."""
        return self.result != Result.NOT_APPLICABLE


class Failed(Exception):
    """A promise that was not kept: what was done, what was expected, and what came instead."""


class NotApplicable(Exception):
    """A check that says nothing about this tester, and why."""


class Subject(ABC):
    """What a group of checks is about."""

    in_step = True
    """Cleared after a check that failed, which may have left anything on the line."""

    @abstractmethod
    def ready(self) -> None:
        """Leave behind what an earlier check has left."""


Some = TypeVar("Some", bound=Subject)
Some_contra = TypeVar("Some_contra", bound=Subject, contravariant=True)


@dataclass(frozen=True)
class Check(Generic[Some_contra]):
    """Tries out one promise. `function` returns what it saw, or raises `Failed`, `NotApplicable` or any other error."""

    group: str
    name: str
    why: str
    """Why it matters to a host."""
    function: Callable[[Some_contra], str]
    programs: bool
    """Whether it pulses cells, so that it must be allowed."""

    def outcome(self, result: Result, detail: str) -> Outcome:
        """What came of it."""
        return Outcome(self.group, self.name, self.why, result, detail)


class Group(Generic[Some]):
    """Checks under one heading, in the order in which they are made."""

    def __init__(self, name: str) -> None:
        self.name = name
        self.checks: list[Check[Some]] = []

    def __call__(
        self, name: str, why: str, programs: bool = False
    ) -> Callable[[Callable[[Some], str]], Callable[[Some], str]]:
        """Makes a function the check of this name."""

        def add(function: Callable[[Some], str]) -> Callable[[Some], str]:
            self.checks.append(Check(self.name, name, why, function, programs))
            return function

        return add


def attempt(check: Check[Some], subject: Some) -> Outcome:
    """Make a check. Whatever it raises is a failure with that text; the next one finds the line as new."""
    try:
        subject.ready()
        return check.outcome(Result.PASSED, check.function(subject))
    except NotApplicable as reason:
        return check.outcome(Result.NOT_APPLICABLE, str(reason))
    except Failed as failure:
        detail = str(failure)
    except Exception as error:  # of any kind: what a tester sends can break whatever takes it
        detail = str(error) or type(error).__name__
    subject.in_step = False
    return check.outcome(Result.FAILED, detail)


def last_cells(capabilities: Capabilities) -> Places:
    """Those that are pulsed where none are named: the last four of the last row of the last array."""
    c = capabilities
    count = min(4, c.columns, c.largest_batch)
    return tuple((c.arrays - 1, c.rows - 1, column) for column in range(c.columns - count, c.columns))


def cells_at(places: Places) -> Cells:
    """Cells, of their places."""
    return Cells.of(*zip(*places, strict=True))


def named(places: Places) -> str:
    """Cells, for a person."""
    return "cells " + ", ".join(":".join(map(str, place)) for place in places)


def expect(kept: bool, otherwise: str) -> None:
    """Raises `Failed` where a promise was not kept."""
    if not kept:
        raise Failed(otherwise)


def expect_equal(what: str, got: object, expected: object) -> None:
    """Raises `Failed` that names both where they differ."""
    if got != expected:
        raise Failed(f"{what}: expected {shown(expected)}, got {shown(got)}")


def expect_echo(what: str, sent: bytes, back: bytes) -> None:
    """Raises `Failed` that says where they differ, unless the same bytes came back."""
    if back == sent:
        return
    at = first_difference(sent, back)
    raise Failed(
        f"{what}: sent {len(sent)} bytes, got {len(back)} back, different from byte {at} on: "
        f"expected {shown(sent[at:]) if sent[at:] else 'the end'}, got {shown(back[at:]) if back[at:] else 'the end'}"
    )


def first_difference(one: bytes, other: bytes) -> int:
    """The first byte in which they differ; the length of the shorter where it is the beginning of the longer."""
    pairs = enumerate(zip(one, other, strict=False))
    return next((at for at, (a, b) in pairs if a != b), min(len(one), len(other)))


def shown(value: object) -> str:
    """A value on one line; of long bytes the beginning and the size; what is no text as hexadecimal."""
    if not isinstance(value, bytes):
        return str(value)
    part = value[:SHOWN]
    text = part.hex(" ") if part[:1] > b"\x7f" else repr(part)[1:]
    return text if len(value) <= SHOWN else f"{text}... ({len(value)} bytes)"
