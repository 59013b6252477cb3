"""A chip described by a TOML file: what it changes of a named chip.

    base = "pcm-analog"
    rows = 256

    [cell]
    nu = 0.05              # 95 %: 0.046 to 0.054

Further tables are set_pulse, reset_pulse and durations. The keys are the fields of `ChipParameters` and its parts.
"""

import difflib
import json
import tomllib
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from hil.mock_hw.chipfile import replace_file
from hil.mock_hw.chips import CHIPS, CHOICES, ChipParameters, check, check_range, from_json, to_json
from hil.protocols.errors import InputError


def load(path: Path) -> ChipParameters:
    """The chip in the file. Raises `InputError`, which names file and key, for what is none."""
    try:
        values = tomllib.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        reason = error.strerror if isinstance(error, OSError) else error
        raise InputError(f"{path} cannot be read as a chip: {reason}") from error
    try:
        if "base" not in values:
            raise InputError(f"it does not name the chip that it changes: base = {json.dumps(next(iter(CHIPS)))}")
        base = values.pop("base")
        if not isinstance(base, str) or base not in CHIPS:
            raise InputError(f"unknown chip base={base!r}; there are {', '.join(CHIPS)}")
        chip = from_json(_merged(to_json(CHIPS[base]), values))
        check(chip)
    except InputError as error:
        raise InputError(f"{path}: {error}") from error
    return chip


def check_loads(chip: ChipParameters) -> None:
    """Raises `InputError` for a chip that `load` would refuse, were it saved."""
    check(from_json(_merged(to_json(ChipParameters()), _plain(chip))))


def save(
    path: Path, chip: ChipParameters, base: str, intervals: Mapping[str, tuple[float, float]], header: str
) -> None:
    """Write, under the comment `header`, what differs between `chip` and the chip named `base`; the file is replaced at
    once. Parameters in `intervals` get their 95 % confidence interval as a comment. Raises `StorageError`.
    """
    lines = [f"# {line}".rstrip() for line in header.splitlines()]
    lines.append(f"base = {json.dumps(base)}")
    values, known = _plain(chip), _plain(CHIPS[base])
    tables = {key: value for key, value in values.items() if isinstance(value, dict)}
    lines += _differing({key: value for key, value in values.items() if key not in tables}, known, intervals)
    for name, table in tables.items():
        entries = list(_differing(table, known[name], intervals))
        lines += ["", f"[{name}]", *entries] if entries else []
    replace_file(path, ("\n".join(lines) + "\n").encode())


def _plain(chip: ChipParameters) -> dict[str, Any]:
    """All parameters in the types of JSON, which those of TOML are written like."""
    values: dict[str, Any] = json.loads(json.dumps(to_json(chip)))
    return values


def _differing(
    values: Mapping[str, Any], known: Mapping[str, Any], intervals: Mapping[str, tuple[float, float]]
) -> Iterator[str]:
    for key, value in values.items():
        if value != known[key]:
            comment = "  # 95 %: {:g} to {:g}".format(*intervals[key]) if key in intervals else ""
            yield f"{key} = {json.dumps(value)}{comment}"


def _merged(base: Mapping[str, Any], values: Mapping[str, Any]) -> dict[str, Any]:
    """The parameters of `base`, replaced where `values` has a good value."""
    merged = dict(base)
    for key, value in values.items():
        if key not in base:
            near = difflib.get_close_matches(key, base, 1)
            hint = f"did you mean {near[0]!r}?" if near else f"there are {', '.join(sorted(base))}"
            raise InputError(f"unknown chip parameter {key!r}; {hint}")
        merged[key] = _typed(key, value, base[key])
    return merged


def _typed(key: str, value: Any, base: Any) -> Any:
    """`value` in the type of the one that it replaces."""
    if isinstance(base, dict):
        return _merged(base, _expected(key, value, dict, "a table"))
    if isinstance(base, tuple):
        spans = [_typed(key, span, 0.0) for span in _expected(key, value, list, "a list of numbers")]
        if not spans or spans[0] <= 0 or sorted(set(spans)) != spans:
            raise InputError(f"chip parameter {key}={value!r}: expected rising numbers above 0")
        return spans
    if isinstance(base, str):
        if not isinstance(value, str) or value not in CHOICES[key]:
            raise InputError(f"chip parameter {key}={value!r}: expected one of {', '.join(CHOICES[key])}")
        return value
    if isinstance(base, bool):
        return _expected(key, value, bool, "true or false")
    if isinstance(base, int):
        check_range(key, _expected(key, value, int, "a whole number"), str(value))
        return value
    number = float(value) if type(value) is int else _expected(key, value, float, "a number")
    check_range(key, number, str(value))
    return number


def _expected(key: str, value: Any, kind: type, what: str) -> Any:
    if type(value) is not kind:
        raise InputError(f"chip parameter {key}={value!r}: expected {what}")
    return value
