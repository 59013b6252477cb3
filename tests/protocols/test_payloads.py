"""Arrays and descriptions as bytes: they come back, and what is none is refused."""

import json
from collections.abc import Callable
from contextlib import suppress
from itertools import chain
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from hil.mock_hw.chips import CHIPS
from hil.protocols import payloads
from hil.protocols.messages import Block, Identity, Region, TesterKind
from hil.protocols.requests import Description, Fault, ProtocolError

Plain = Callable[[Any], Any]
MODERATE = settings(max_examples=100, deadline=None)
DESCRIPTION = Description(
    Identity("Example", "PCM-1", "12", "1.0", "chip-3", TesterKind.TWIN), CHIPS["pcm-analog"].capabilities()
)


@given(data=st.data())
@MODERATE
def test_a_description_comes_back_whole(any_description: st.SearchStrategy[Description], data: st.DataObject) -> None:
    description = data.draw(any_description)
    told = payloads.describe(description)
    assert told.isascii()
    assert payloads.description_of(told) == description


def test_a_description_may_be_spaced_and_ordered_otherwise() -> None:
    found = json.loads(payloads.describe(DESCRIPTION))
    assert payloads.description_of(json.dumps(found, indent=2, sort_keys=True).encode()) == DESCRIPTION


def leaves(tree: dict[str, Any], *path: str) -> list[tuple[str, ...]]:
    """The paths to all keys."""
    inner = [leaves(value, *path, key) for key, value in tree.items() if isinstance(value, dict)]
    return [*((*path, key) for key in tree), *chain(*inner)]


PATHS = leaves(json.loads(payloads.describe(DESCRIPTION)))


def changed(path: tuple[str, ...], change: Callable[[dict[str, Any], str], object]) -> bytes:
    """The description, with one key changed."""
    tree = json.loads(payloads.describe(DESCRIPTION))
    holder = tree
    for key in path[:-1]:
        holder = holder[key]
    change(holder, path[-1])
    return json.dumps(tree).encode()


def refused(data: bytes) -> None:
    with pytest.raises(ProtocolError, match="description cannot be read") as caught:
        payloads.description_of(data)
    assert caught.value.fault == Fault.INVALID_BLOCK


@pytest.mark.parametrize("path", [path for path in PATHS if path[-1] not in ("rise", "fall")], ids=".".join)
def test_a_description_without_one_key_is_refused(path: tuple[str, ...]) -> None:
    refused(changed(path, lambda holder, key: holder.pop(key)))


@pytest.mark.parametrize("path", [path for path in PATHS if len(path) > 1], ids=".".join)
def test_a_description_with_a_key_too_many_is_refused(path: tuple[str, ...]) -> None:
    refused(changed(path, lambda holder, key: holder.update({key + "x": 1})))


@pytest.mark.parametrize(
    "data", [b"", b"{}", b"[]", b"1", b"\xff", b'{"identity":[],"capabilities":{}}', b"[" * 100_000], ids=repr
)
def test_what_is_no_description_is_refused(data: bytes) -> None:
    refused(data)


def test_the_description_of_another_kind_or_mode_is_refused() -> None:
    for path in (("identity", "kind"), ("capabilities", "mvm"), ("capabilities", "readout")):
        refused(changed(path, lambda holder, key: holder.update({key: "other"})))


@given(data=st.data(), junk=st.binary(max_size=80))
@MODERATE
def test_a_region_comes_back_whole_and_nothing_else_is_one(
    any_region: st.SearchStrategy[Region], plain: Plain, data: st.DataObject, junk: bytes
) -> None:
    region = data.draw(any_region)
    assert plain(payloads.region_of(region.handle, payloads.region_bytes(region))) == plain(region)
    with suppress(ProtocolError):
        assert payloads.region_bytes(payloads.region_of(1, junk)) == junk


def test_a_block_cut_anywhere_is_refused() -> None:
    lines = np.arange(5, dtype=np.uint16)
    whole = payloads.region_bytes(Region(1, (Block(0, lines, lines, lines, 0, 0),)))
    for stop in range(1, len(whole)):
        with pytest.raises(ProtocolError):
            payloads.region_of(1, whole[:stop])


def test_a_block_needs_one_partner_for_each_column_or_none() -> None:
    with pytest.raises(ProtocolError, match="too few partner lines"):
        payloads.region_of(1, payloads.BLOCK.pack(0, 1, 2, 1, 0, 0) + bytes(8))


@given(st.binary(max_size=60), st.integers(1, 4))
def test_vectors_share_a_block_equally_or_are_refused(data: bytes, count: int) -> None:
    if len(data) % (2 * count):
        with pytest.raises(ProtocolError):
            payloads.split_lines(data, count)
    else:
        assert payloads.lines(*payloads.split_lines(data, count)) == data


@given(st.binary(max_size=60), st.integers(-1, 300), st.none() | st.integers(0, 9))
def test_codes_fit_their_type_and_number_of_vectors_or_are_refused(data: bytes, kind: int, rows: int | None) -> None:
    try:
        codes = payloads.codes_of(data, kind, rows)
    except ProtocolError:
        return
    assert codes.tobytes() == data
    assert payloads.code_type(codes) == kind
    assert codes.ndim == (1 if rows is None else 2)


@pytest.mark.parametrize("dtype", ["i8", "u4", "f4", ">i2", "?"])
def test_codes_of_another_type_are_not_sent(dtype: str) -> None:
    with pytest.raises(ValueError, match="not in tuple"):
        payloads.code_type(np.zeros(1, dtype))


@given(st.binary(max_size=40), st.binary(max_size=40), st.integers(-1, 8))
def test_trains_have_whole_bytes_in_each_slot_or_are_refused(rows: bytes, columns: bytes, slots: int) -> None:
    try:
        trains = payloads.trains_of(rows, columns, slots, 1)
    except ProtocolError:
        return
    assert (trains.rows.tobytes(), trains.columns.tobytes()) == (rows, columns)
    assert len(trains.rows) == len(trains.columns) == slots


@pytest.mark.parametrize(
    "changes",
    [
        {"rows": "x"}, {"rows": 0}, {"rows": True}, {"arrays": 2**16, "rows": 2**16}, {"read_voltage": "0.2"},
        {"read_voltage": float("nan")}, {"largest_batch": 0.5}, {"staircase": ["a"]}, {"durations": {}},
        {"mvm": "perhaps"}, {"exactly_once": "false"}, {"verify": 1},
    ],
)  # fmt: skip
def test_capabilities_that_cannot_be_are_refused(changes: dict[str, object]) -> None:
    said = json.loads(payloads.describe(DESCRIPTION))
    said["capabilities"] |= changes
    with pytest.raises(ProtocolError, match="description cannot be read"):
        payloads.description_of(json.dumps(said).encode())
