"""Faults that a twin makes on purpose: a plan, drawn from a seed, of what goes wrong with which message."""

import math
import tomllib
from collections import Counter
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

import numpy as np

from hil.protocols.errors import InputError

OF_MESSAGES = ("drop", "delay", "late", "duplicate", "corrupt", "truncate", "split", "close")
"""Kinds that befall a message on its way, in either direction."""
OF_THE_TESTER = ("busy", "reboot", "stuck")
"""Kinds that befall the tester when a request comes."""
LONGEST_S = 3600.0


@dataclass(frozen=True)
class FaultRule:
    """One kind of fault and when it strikes: at each `every`-th message, with a `probability`, or `at` these messages,
    counted from 1.
    """

    kind: str
    where: str = "request"
    every: int = 0
    probability: float = 0.0
    at: tuple[int, ...] = ()
    seconds: float = 0.0
    """By which the message is late (delay: still in time for its client; late: not)."""
    cells: int = 1
    """That become stuck."""
    count: int = 0
    """Strikes at most so often; 0 for no limit."""


class FaultPlan:
    """Rules, and what they drew and did so far. The same plan and the same messages give the same faults."""

    def __init__(self, rules: tuple[FaultRule, ...], seed: int) -> None:
        self._rules = [(rule, np.random.default_rng([seed, index])) for index, rule in enumerate(rules)]
        self._seen: Counter[str] = Counter()
        self._struck = [0] * len(rules)
        self.most_stuck = max((rule.cells for rule in rules if rule.kind == "stuck"), default=0)
        """Cells that become stuck at one time."""

    def strikes(self, where: str) -> list[tuple[FaultRule, np.random.Generator]]:
        """What befalls the next message there: rules, each with the generator for its details."""
        self._seen[where] += 1
        found = []
        for index, (rule, rng) in enumerate(self._rules):
            if rule.where == where and self._is_due(rule, rng, self._struck[index]):
                self._struck[index] += 1
                found.append((rule, rng))
        return found

    def _is_due(self, rule: FaultRule, rng: np.random.Generator, struck: int) -> bool:
        number = self._seen[rule.where]
        drawn = rule.probability > 0 and rng.random() < rule.probability  # drawn for each message, struck or not
        due = drawn or number in rule.at or (rule.every > 0 and number % rule.every == 0)
        return due and not 0 < rule.count <= struck

    def summary(self) -> str:
        """How often each rule struck, among how many messages."""
        struck = [f"{rule.kind} ({rule.where}) {n}" for (rule, _), n in zip(self._rules, self._struck, strict=True)]
        return f"{', '.join(struck) or 'none'}; of {self._seen['request']} requests, {self._seen['reply']} replies"


def load_plan(path: Path) -> FaultPlan:
    """The plan in a TOML file. Raises `InputError` on what is none."""
    try:
        values = tomllib.loads(path.read_text())
    except (OSError, ValueError) as error:
        reason = error.strerror if isinstance(error, OSError) else error
        raise InputError(f"{path} cannot be read as a plan of faults: {reason}") from error
    return parse_plan(values, str(path))


def parse_plan(values: dict[str, Any], name: str) -> FaultPlan:
    """The plan in a table as of TOML; `name` is used in errors."""
    _check_keys(values, ("seed", "fault"), name)
    tables, seed = values.get("fault", []), values.get("seed", 1)
    if type(seed) is not int or seed < 0:
        raise InputError(f"{name}: seed={seed!r}: expected a whole number of at least 0")
    if not isinstance(tables, list) or not all(isinstance(table, dict) for table in tables):
        raise InputError(f"{name}: expected tables [[fault]]")
    return FaultPlan(tuple(_rule(table, f"{name}: fault {n}") for n, table in enumerate(tables, start=1)), seed)


def _rule(table: dict[str, Any], name: str) -> FaultRule:
    _check_keys(table, tuple(field.name for field in fields(FaultRule)), name)
    for key, value in table.items():
        expected, is_good = _CHECKS[key]
        if not is_good(value):
            raise InputError(f"{name}: {key}={value!r}: expected {expected}")
    arguments: dict[str, Any] = {key: tuple(value) if key == "at" else value for key, value in table.items()}
    rule = FaultRule(**arguments)
    _check_rule(rule, table, name)
    return rule


def _check_rule(rule: FaultRule, table: dict[str, Any], name: str) -> None:
    """What no single value shows."""
    if len(table.keys() & {"every", "probability", "at"}) != 1:
        raise InputError(f"{name}: say when, by one of every, probability and at")
    if rule.kind in OF_THE_TESTER and rule.where != "request":
        raise InputError(f"{name}: {rule.kind} befalls the tester, so that where must be request")
    if (rule.kind in ("delay", "late")) != ("seconds" in table):
        raise InputError(f"{name}: seconds belongs to delay and late, which need it")
    if "cells" in table and rule.kind != "stuck":
        raise InputError(f"{name}: cells belongs to stuck")


def _check_keys(table: dict[str, Any], known: tuple[str, ...], name: str) -> None:
    for key in table:
        if key not in known:
            raise InputError(f"{name}: unknown key {key!r}; there are {', '.join(known)}")
    if "kind" in known and "kind" not in table:
        raise InputError(f"{name}: kind is missing; there are {', '.join(OF_MESSAGES + OF_THE_TESTER)}")


def _is_count(value: Any) -> bool:
    return type(value) is int and value >= 1


def _is_within(value: Any, top: float) -> bool:
    return type(value) in (int, float) and math.isfinite(value) and 0 < value <= top


_CHECKS: dict[str, tuple[str, Any]] = {
    "kind": (f"one of {', '.join(OF_MESSAGES + OF_THE_TESTER)}", lambda v: v in OF_MESSAGES + OF_THE_TESTER),
    "where": ("request or reply", lambda v: v in ("request", "reply")),
    "every": ("a whole number of at least 1", _is_count),
    "probability": ("a number above 0, up to 1", lambda v: _is_within(v, 1.0)),
    "at": ("numbers of messages, counted from 1", lambda v: isinstance(v, list) and v and all(map(_is_count, v))),
    "seconds": (f"a number above 0, up to {LONGEST_S:g}", lambda v: _is_within(v, LONGEST_S)),
    "cells": ("a whole number of at least 1", _is_count),
    "count": ("a whole number of at least 1", _is_count),
}
