"""Whatever happens to a message, each pulse is applied once, and nothing is drawn or waited for twice."""

from collections.abc import Callable
from threading import Thread
from typing import Any

import numpy as np
import pytest

from hil.instruments.conversation import CONVERSATIONS
from hil.instruments.exchange import Exchange
from hil.instruments.wire import WireTester
from hil.mock_hw.firmware import Firmware
from hil.protocols.errors import LimitError, TesterError
from hil.protocols.messages import Block, Cells, Direction, Operation, PulseBatch, Readings, Receipt, Status, Vectors

CELLS = Cells.of(0, [0, 1, 5], [2, 10 % 8, 7])
BLOCK = Block(0, np.arange(4, dtype=np.uint16), np.array([0, 1], np.uint16), np.array([2, 3], np.uint16), 0, 0)
Damage = Callable[[bytes], Any]


def pulses(bench: Any) -> PulseBatch:
    shape = bench.tester.capabilities().set_pulse
    return PulseBatch(CELLS, Operation.SET, np.array([3, 1, 2], np.uint16), shape)


def program(bench: Any) -> Receipt:
    receipt: Receipt = bench.tester.program(pulses(bench))
    return receipt


def read(bench: Any) -> Readings:
    readings: Readings = bench.tester.read(CELLS)
    return readings


def multiply(bench: Any) -> Readings:
    vectors = Vectors(np.array([[100, -100, 50, 10]], np.int8), np.ones(1, np.float32))
    readings: Readings = bench.tester.mvm(bench.tester.regions()[0], vectors, Direction.FORWARD, 3)
    return readings


def wait(bench: Any) -> Receipt:
    receipt: Receipt = bench.tester.wait(12.5)
    return receipt


OPERATIONS: dict[str, Callable[[Any], Readings | Receipt]] = {
    "program": program,
    "read": read,
    "multiply": multiply,
    "wait": wait,
}


def state(firmware: Firmware) -> tuple[Any, ...]:
    """All that an operation can change."""
    chip = firmware.chip
    counters = (chip.row_reads.tobytes(), chip.column_reads.tobytes())
    return (chip.now_ns, chip.cells.tobytes(), *counters, repr(chip.normals.state()), firmware.last_op_id)


def flip(position: int, bit: int) -> Damage:
    def damage(message: bytes) -> list[bytes]:
        changed = bytearray(message)
        changed[position] ^= 1 << bit
        return [bytes(changed)]

    return damage


def each(places: range, pieces: Callable[[bytes, int], Any]) -> list[Damage]:
    """The damage that makes these pieces of a message, at each place."""

    def at(place: int) -> Damage:
        return lambda message: pieces(message, place)

    return [at(place) for place in places]


def damages(kind: str, message: bytes, step: int = 1) -> list[Damage]:
    """One damage for each place in a message at which it can happen, or for each `step`-th."""
    places = range(0, len(message), step)
    kinds: dict[str, list[Damage]] = {
        "lost": [lambda m: []],
        "doubled": [lambda m: [m, m]],
        "late": [lambda m: ["late", m]],
        "doubled, late": [lambda m: [m, "late", m]],
        "closed before": [lambda m: ["close", m]],
        "split": each(places, lambda m, p: [m[:p], m[p:]]),
        "cut": each(places, lambda m, p: [m[:p]]),
        "cut, the rest late": each(places, lambda m, p: [m[:p], "late", m[p:]]),
        "closed": each(places, lambda m, p: [m[:p], "close"]),
        "byte lost": each(places, lambda m, p: [m[:p] + m[p + 1 :]]),
        "byte more": each(places, lambda m, p: [m[:p] + b"\n" + m[p:]]),
        "bit flipped": [flip(p, (3 * p) % 8) for p in places],
        "any bit flipped": [flip(p, bit) for p in places for bit in range(8)],
    }
    return kinds[kind]


KINDS = [
    "lost", "doubled", "late", "doubled, late", "closed before", "split", "cut", "cut, the rest late", "closed",
    "byte lost", "byte more", "bit flipped",
]  # fmt: skip


def run(bench: Any, operation: str, where: str, damage: Damage | None) -> tuple[Any, ...]:
    """Some operations, with one of them damaged on its way; all that came back, and all that became of the chip."""
    bench.tester.register([BLOCK])
    answers: list[Any] = [read(bench)]
    if damage is not None:
        bench.line.damage[where] = damage
    answers.append(OPERATIONS[operation](bench))
    assert not bench.line.damage, "the damage has not struck"
    answers += [read(bench), program(bench), multiply(bench)]
    return tuple(map(shown, answers)), state(bench.firmware)


def shown(answer: Readings | Receipt) -> tuple[Any, ...]:
    codes = answer.codes.tobytes() if isinstance(answer, Readings) else answer.done
    return (answer.op_id, answer.time_ns, answer.status, codes)


LINES = pytest.mark.parametrize("serial", [False, True], ids=["stream that reconnects", "serial line"])
BOTH_CODECS = pytest.mark.parametrize("codec", ["scpi", "frames"])
BOTH_WAYS = pytest.mark.parametrize("where", ["request", "reply"])


def done_once(make_bench: Any, operation: str, kind: str, where: str, codec: str, serial: bool, step: int) -> None:
    whole = make_bench(codec, serial)
    expected = run(whole, operation, where, None)
    message = (whole.line.sent if where == "request" else whole.line.answered)[2]
    for damage in damages(kind, message, step):
        assert run(make_bench(codec, serial), operation, where, damage) == expected


@LINES
@BOTH_CODECS
@BOTH_WAYS
@pytest.mark.parametrize("kind", KINDS)
def test_pulses_are_applied_once_wherever_their_exchange_is_damaged(
    make_bench: Any, kind: str, where: str, codec: str, serial: bool
) -> None:
    everywhere = kind in ("cut", "cut, the rest late", "closed", "bit flipped")
    done_once(make_bench, "program", kind, where, codec, serial, 1 if everywhere else 5)


@LINES
@BOTH_CODECS
@BOTH_WAYS
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("operation", ["read", "multiply", "wait"])
def test_what_changes_no_cell_draws_once_and_takes_its_time_once(
    make_bench: Any, operation: str, kind: str, where: str, codec: str, serial: bool
) -> None:
    done_once(make_bench, operation, kind, where, codec, serial, 29)


@pytest.mark.torture
@LINES
@BOTH_CODECS
@BOTH_WAYS
@pytest.mark.parametrize("kind", ["split", "byte lost", "byte more", "any bit flipped"])
def test_no_damage_at_all_to_a_programming_exchange_does_harm(
    make_bench: Any, kind: str, where: str, codec: str, serial: bool
) -> None:
    done_once(make_bench, "program", kind, where, codec, serial, 1)


@BOTH_CODECS
@pytest.mark.parametrize("done", [0, 1, 2, 3])
def test_a_reboot_in_mid_batch_leaves_an_uncertain_receipt_and_no_pulse_is_sent_again(
    make_bench: Any, codec: str, done: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    bench = make_bench(codec)
    bench.tester.register([BLOCK])
    before = bench.firmware.chip.count("set_count")
    original = bench.firmware.program
    monkeypatch.setattr(
        bench.firmware,
        "program",
        lambda op_id, p: original(op_id, p, done if op_id > bench.firmware.last_op_id else None),
    )
    bench.line.damage["reply"] = lambda m: ["close"]  # it went down with the tester
    receipt = program(bench)
    assert (receipt.status, receipt.op_id) == (Status.UNKNOWN, 1)
    monkeypatch.undo()
    sent = bench.firmware.chip.count("set_count") - before
    assert sent.sum() == [0, 3, 4, 6][done]
    assert multiply(bench).status == Status.COMPLETE  # its regions were told again
    assert program(bench).op_id == 3


@BOTH_CODECS
@pytest.mark.parametrize("operation", ["read", "multiply"])
def test_what_changes_no_cell_is_begun_again_after_a_reboot(make_bench: Any, codec: str, operation: str) -> None:
    bench = make_bench(codec)
    bench.tester.register([BLOCK])

    def reboot(message: bytes) -> list[Any]:
        bench.firmware.last_reply = None
        bench.firmware.boot()
        return ["close"]

    bench.line.damage["reply"] = reboot
    answer = OPERATIONS[operation](bench)
    assert (answer.status, answer.op_id) == (Status.COMPLETE, 2)


@BOTH_CODECS
def test_a_reboot_between_operations_that_nobody_saw_costs_no_product(make_bench: Any, codec: str) -> None:
    bench = make_bench(codec)
    bench.tester.register([BLOCK])
    first = multiply(bench)
    bench.firmware.boot()
    assert multiply(bench).op_id == first.op_id + 1


@BOTH_CODECS
def test_a_tester_that_keeps_no_replies_is_never_asked_twice_for_pulses(
    make_bench: Any, codec: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    for where in ("request", "reply"):
        bench = make_bench(codec)
        object.__setattr__(bench.tester.capabilities(), "exactly_once", False)
        bench.line.damage[where] = lambda m: []
        assert program(bench).status == Status.UNKNOWN
        assert bench.firmware.chip.count("set_count").sum() == (0 if where == "request" else 6)
        assert program(bench).status == Status.COMPLETE


@BOTH_CODECS
@pytest.mark.parametrize("exactly_once", [True, False])
def test_a_refusal_takes_no_id_and_is_told_as_it_is(make_bench: Any, codec: str, exactly_once: bool) -> None:
    bench = make_bench(codec)
    object.__setattr__(bench.tester.capabilities(), "exactly_once", exactly_once)
    huge = PulseBatch(CELLS, Operation.SET, np.full(3, 65535, np.uint16), pulses(bench).shape)
    many = PulseBatch(
        Cells.concatenate([CELLS] * 30), Operation.SET, np.full(90, 65535, np.uint16), pulses(bench).shape
    )
    with pytest.raises(LimitError, match="in one operation are beyond the limit of"):
        bench.tester.program(many)
    assert bench.firmware.last_op_id == 0
    assert bench.tester.program(huge).op_id == 1


@BOTH_CODECS
def test_a_tester_that_is_gone_is_an_error_after_so_many_attempts(make_bench: Any, codec: str) -> None:
    bench = make_bench(codec, attempts=3)
    bench.line.port.feed = lambda data: []
    with pytest.raises(TesterError, match="was not answered"):
        program(bench)
    del bench.line.port.feed
    assert program(bench).op_id == 1


@LINES
@BOTH_CODECS
@pytest.mark.parametrize("used", ["forgotten", "by someone else"])
def test_a_chip_that_is_not_as_it_was_left_is_not_gone_on_with(
    make_bench: Any, codec: str, serial: bool, used: str
) -> None:
    bench, other = make_bench(codec, serial), make_bench(codec, serial)
    for _ in range(3):
        program(bench)
    if used == "by someone else":
        for _ in range(5):
            program(other)
    bench.line.port = other.line.port  # a server that was started anew, or another chip in the socket
    bench.line.damage["request"] = lambda m: ["close"]
    before = other.firmware.last_op_id
    with pytest.raises(TesterError, match=f"last operation is {before}, where 3 was done"):
        program(bench)
    assert other.firmware.last_op_id == before
    bench.tester.close()


@BOTH_CODECS
def test_a_tester_without_lasting_memory_is_gone_on_with_after_a_reboot(make_bench: Any, codec: str) -> None:
    bench = make_bench(codec)
    object.__setattr__(bench.firmware.capabilities, "exactly_once", False)
    bench.tester = WireTester(Exchange(bench.line, CONVERSATIONS[codec](), 1.0, pauses=(0.0,) * 3))
    for _ in range(3):
        program(bench)

    def reboot(message: bytes) -> list[Any]:
        bench.firmware.last_op_id, bench.firmware.last_reply = 0, None
        bench.firmware.boot()
        return ["close"]

    bench.line.damage["reply"] = reboot
    assert (program(bench).status, read(bench).op_id) == (Status.UNKNOWN, 4)


@BOTH_CODECS
def test_threads_may_share_a_driver(make_bench: Any, codec: str) -> None:
    bench = make_bench(codec)
    answers: list[Any] = []

    def work() -> None:
        answers.extend(operation(bench) for _ in range(20) for operation in (read, program, wait))

    threads = [Thread(target=work) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(answer.op_id for answer in answers) == list(range(1, 241))
    assert bench.firmware.chip.count("set_count").sum() == 80 * 6


@BOTH_CODECS
def test_a_batch_is_one_round_trip(make_bench: Any, codec: str) -> None:
    bench = make_bench(codec)
    region = bench.tester.register([BLOCK])
    bench.line.sent.clear()
    bench.line.answered.clear()
    vectors = Vectors(np.ones((50, 4), np.int8), np.ones(50, np.float32))
    assert bench.tester.mvm(region, vectors, Direction.FORWARD, 3).codes.shape == (50, 2)
    for operation in (program, read, wait):
        operation(bench)
    assert len(bench.line.sent) == len(bench.line.answered) == 4
