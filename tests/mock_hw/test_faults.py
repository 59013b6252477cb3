"""Faults on purpose: each kind does what it says, when the plan says, and the same ones every time."""

from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from hil.mock_hw.array import Chip
from hil.mock_hw.chips import CHIPS
from hil.mock_hw.faults import FaultPlan, load_plan, parse_plan
from hil.mock_hw.faulty_port import SPLIT_S, faulty_ports
from hil.mock_hw.firmware import Firmware
from hil.mock_hw.instrument import Instrument
from hil.mock_hw.ports import Action, Hangup, Pause, Port
from hil.mock_hw.twin import identity_of
from hil.protocols import frames
from hil.protocols.errors import InputError
from hil.protocols.messages import Cells, Operation, PulseBatch
from hil.protocols.requests import Echo, Failure, Fault, GetState, Program, Reply, Request, Wait
from hil.protocols.scpi import encode_request

MakeChip = Callable[..., Chip]
CELLS = Cells.of(0, np.arange(50), 3)
PULSES = PulseBatch(CELLS, Operation.SET, np.full(50, 3, np.uint16), CHIPS["pcm-analog"].set_pulse)


class Bench:
    """A twin behind faulty ports."""

    def __init__(self, chip: Chip, seed: int = 1, **fault: Any) -> None:
        self.firmware = Firmware(chip)
        self.plan = parse_plan({"seed": seed, "fault": [fault]}, "plan")
        self.changes = 0
        instrument = Instrument(self.firmware, identity_of("pcm-analog", "chip-1"))
        ports = faulty_ports(instrument, "auto", self.plan, self._note)
        self.frames: Port = ports.frames
        self.scpi: Port = ports.scpi

    def _note(self) -> None:
        self.changes += 1

    def frame(self, request: Request) -> list[Action]:
        return list(self.frames.feed(frame_of(request)))

    def message(self, text: bytes) -> list[Action]:
        return list(self.scpi.feed(text + b"\n"))


def frame_of(request: Request) -> bytes:
    return b"".join(frames.encode_request(request, 9))


def reply_of(request: Request, actions: list[Action]) -> Reply:
    """The one whole reply among what is sent."""
    reader = frames.FrameReader()
    reader.feed(joined(actions))
    (frame,) = reader.frames()
    return frames.decode_reply(request, frame)


def joined(actions: list[Action]) -> bytes:
    return b"".join(bytes(action) for action in actions if not isinstance(action, Pause | Hangup))


def pauses(actions: list[Action]) -> list[float]:
    return [action.seconds for action in actions if isinstance(action, Pause)]


def undisturbed(chip: Chip, request: Request) -> bytes:
    return joined(Bench(chip, kind="drop", at=[1000]).frame(request))


class TestWhen:
    def struck(self, chip: Chip, messages: int = 20, **rule: Any) -> list[int]:
        """Which of the first messages are dropped."""
        bench = Bench(chip, kind="drop", **rule)
        return [n for n in range(1, messages + 1) if not bench.frame(GetState())]

    def test_each_so_many_messages(self, make_chip: MakeChip) -> None:
        assert self.struck(make_chip(), every=6) == [6, 12, 18]

    def test_at_given_messages(self, make_chip: MakeChip) -> None:
        assert self.struck(make_chip(), at=[3, 17]) == [3, 17]

    def test_with_a_probability_that_a_seed_decides(self, make_chip: MakeChip) -> None:
        found = self.struck(make_chip(), 2000, probability=0.1)
        assert 140 < len(found) < 260
        assert found == self.struck(make_chip(), 2000, probability=0.1)
        assert found != self.struck(make_chip(), 2000, probability=0.1, seed=2)

    def test_at_most_so_often(self, make_chip: MakeChip) -> None:
        assert self.struck(make_chip(), every=3, count=2) == [3, 6]

    def test_replies_are_counted_apart(self, make_chip: MakeChip) -> None:
        bench = Bench(make_chip(), kind="drop", where="reply", at=[2])
        answered = [bool(bench.message(text)) for text in (b"*CLS", b"*TST?", b"*CLS", b"*TST?", b"*TST?")]
        assert answered == [False, True, False, False, True]

    def test_both_codecs_are_counted_together(self, make_chip: MakeChip) -> None:
        bench = Bench(make_chip(), kind="drop", every=2)
        assert [bool(bench.frame(GetState())), bool(bench.message(b"*TST?"))] == [True, False]

    def test_messages_are_counted_not_pieces(self, make_chip: MakeChip) -> None:
        bench = Bench(make_chip(), kind="drop", at=[2])
        answers = [bench.frames.feed(frame_of(GetState())[at : at + 1]) for at in range(len(frame_of(GetState())))]
        assert [bool(answer) for answer in answers] == [False] * (len(answers) - 1) + [True]
        assert bench.frames.feed(frame_of(GetState()) * 2) != []

    def test_it_tells_how_often(self, make_chip: MakeChip) -> None:
        bench = Bench(make_chip(), kind="drop", every=2)
        for _ in range(5):
            bench.frame(GetState())
        assert bench.plan.summary() == "drop (request) 2; of 5 requests, 3 replies"


class TestMessages:
    def test_a_dropped_request_is_not_done(self, make_chip: MakeChip) -> None:
        bench = Bench(make_chip(), kind="drop", every=1)
        assert bench.frame(Wait(1, 1.0)) == []
        assert bench.firmware.last_op_id == 0

    def test_a_dropped_reply_is_to_what_was_done(self, make_chip: MakeChip) -> None:
        bench = Bench(make_chip(), kind="drop", where="reply", every=1)
        assert bench.frame(Wait(1, 1.0)) == []
        assert bench.firmware.last_op_id == 1

    @pytest.mark.parametrize("kind", ["delay", "late"])
    @pytest.mark.parametrize("where", ["request", "reply"])
    def test_a_late_answer_is_whole(self, make_chip: MakeChip, kind: str, where: str) -> None:
        chip = make_chip()
        actions = Bench(chip, kind=kind, where=where, every=1, seconds=0.3).frame(GetState())
        assert actions[0] == Pause(0.3)
        assert joined(actions) == undisturbed(chip, GetState())

    @pytest.mark.parametrize("where", ["request", "reply"])
    def test_a_duplicate_is_answered_or_sent_twice(self, make_chip: MakeChip, where: str) -> None:
        bench = Bench(make_chip(), kind="duplicate", where=where, every=1)
        sent = joined(bench.frame(Wait(1, 1.0)))
        half = len(sent) // 2
        assert sent[:half] == sent[half:] != b""
        assert bench.firmware.chip.now_ns == 1_000_000_000

    def test_one_bit_of_a_corrupt_reply_differs(self, make_chip: MakeChip) -> None:
        chip = make_chip()
        whole = undisturbed(chip, Echo(b"data"))
        bench = Bench(chip, kind="corrupt", where="reply", every=1)
        found = [joined(bench.frame(Echo(b"data"))) for _ in range(20)]
        flipped = [int.from_bytes(reply) ^ int.from_bytes(whole) for reply in found]
        assert [bits.bit_count() for bits in flipped] == [1] * 20
        assert len(set(flipped)) > 10

    def test_a_corrupt_request_is_not_done(self, make_chip: MakeChip) -> None:
        bench = Bench(make_chip(), kind="corrupt", every=1)
        for n in range(1, 30):
            bench.frame(Wait(n, 1.0))
            bench.frames.abandon()
        assert bench.firmware.last_op_id == 0

    def test_a_truncated_message_waits_for_its_rest(self, make_chip: MakeChip) -> None:
        chip = make_chip()
        bench = Bench(chip, kind="truncate", at=[1, 2, 3])
        assert [bench.frame(Wait(n, 1.0)) for n in (1, 2)] == [[], []]
        assert bench.frames.waits
        bench.frames.abandon()
        assert not bench.frames.waits
        assert bench.firmware.last_op_id == 0

    def test_a_truncated_reply_is_the_beginning_of_one(self, make_chip: MakeChip) -> None:
        chip = make_chip()
        whole = undisturbed(chip, GetState())
        found = joined(Bench(chip, kind="truncate", where="reply", every=1).frame(GetState()))
        assert whole.startswith(found)
        assert len(found) < len(whole)

    @pytest.mark.parametrize("where", ["request", "reply"])
    def test_a_split_message_is_whole(self, make_chip: MakeChip, where: str) -> None:
        chip = make_chip()
        actions = Bench(chip, kind="split", where=where, every=1).frame(Echo(bytes(100)))
        assert joined(actions) == undisturbed(chip, Echo(bytes(100)))
        assert pauses(actions) == [SPLIT_S, SPLIT_S]
        assert len(actions) == (5 if where == "reply" else 3)

    @pytest.mark.parametrize("where", ["request", "reply"])
    def test_a_connection_is_cut_amid_a_message(self, make_chip: MakeChip, where: str) -> None:
        chip = make_chip()
        bench = Bench(chip, kind="close", where=where, every=1)
        actions = bench.frame(Wait(1, 1.0))
        assert actions[-1] == Hangup()
        assert bench.firmware.last_op_id == (where == "reply")
        assert len(joined(actions)) < len(undisturbed(chip, Wait(2, 1.0)))

    def test_what_comes_behind_a_cut_is_lost(self, make_chip: MakeChip) -> None:
        bench = Bench(make_chip(), kind="close", at=[1])
        assert bench.frames.feed(frame_of(Wait(1, 1.0)) + frame_of(Wait(2, 1.0)))[-1] == Hangup()
        assert bench.firmware.last_op_id == 0


class TestTheTester:
    def test_a_busy_tester_does_nothing(self, make_chip: MakeChip) -> None:
        bench = Bench(make_chip(), kind="busy", at=[1, 3])
        assert reply_of(Wait(1, 1.0), bench.frame(Wait(1, 1.0))) == Failure(Fault.BUSY, "busy: try again")
        assert bench.firmware.last_op_id == 0
        assert bench.frame(Wait(1, 1.0)) != []
        assert bench.firmware.last_op_id == 1
        assert bench.message(b"".join(encode_request(Wait(2, 1.0)))) == []
        assert joined(bench.message(b"SYST:ERR?")) == b'-213,"Init ignored;busy: try again"\n'

    @pytest.mark.parametrize("codec", ["frames", "scpi"])
    def test_power_fails_amid_a_programming(self, make_chip: MakeChip, codec: str) -> None:
        done = []
        for seed in range(6):
            bench = Bench(make_chip(), seed, kind="reboot", at=[1])
            program = Program(1, PULSES)
            message = b"".join(encode_request(program)) + b"\n"
            actions = bench.scpi.feed(message) if codec == "scpi" else bench.frame(program)
            assert (list(actions), bench.changes) == ([Hangup()], 1)
            assert (bench.firmware.boots, bench.firmware.last_op_id) == (2, 1)
            again = reply_of(program, bench.frame(program))
            assert isinstance(again, Failure)
            assert again.code == Fault.CUT_SHORT
            pulsed = np.flatnonzero(bench.firmware.chip.count("set_count"))
            assert list(pulsed) == list(bench.firmware.chip.locate(CELLS)[: len(pulsed)])
            done.append(len(pulsed))
        assert len(set(done)) > 3

    @pytest.mark.parametrize("text", [b"ARR:STAT?", b"*IDN?", b"*ESE 1;*FOO;ARR:STAT?;ARR:STAT?"])
    def test_any_other_request_is_lost_in_a_reboot(self, make_chip: MakeChip, text: bytes) -> None:
        bench = Bench(make_chip(), kind="reboot", at=[2])
        bench.message(b"*ESE 4;*BAR")
        assert bench.message(text) == [Hangup()]
        assert bench.firmware.boots == 2
        assert joined(bench.message(b"*ESE?;*ESR?;SYST:ERR:COUN?")) == b"0;128;0\n"

    def test_cells_become_stuck(self, make_chip: MakeChip) -> None:
        bench = Bench(make_chip(), kind="stuck", cells=3, at=[2])
        bench.frame(GetState())
        assert bench.firmware.chip.cells["stuck"].sum() == 0
        bench.frame(GetState())
        assert (bench.firmware.chip.cells["stuck"].sum(), bench.changes) == (3, 1)

    def test_more_cells_than_there_are_cannot_become_stuck(self, make_chip: MakeChip) -> None:
        with pytest.raises(InputError, match="lets 5000 cells become stuck; the chip has 4096"):
            Bench(make_chip(), kind="stuck", cells=5000, every=1)


def test_the_same_plan_and_messages_give_the_same_faults(make_chip: MakeChip) -> None:
    kinds = ("drop", "duplicate", "corrupt", "truncate", "split", "close", "busy", "reboot", "stuck")
    rules = [{"kind": kind, "probability": 0.05} for kind in kinds]
    rules += [{"kind": kind, "probability": 0.05, "where": "reply"} for kind in kinds[:6]]
    runs = []
    for _ in range(2):
        firmware, plan = Firmware(make_chip()), parse_plan({"seed": 3, "fault": rules}, "plan")
        port = faulty_ports(Instrument(firmware, identity_of("", "")), "frames", plan, lambda: None).frames
        actions = [port.feed(frame_of(Program(n, PULSES) if n % 2 else Echo(bytes(n)))) for n in range(1, 400)]
        runs.append((repr(actions), plan.summary(), firmware.chip.cells.tobytes()))
    assert runs[0] == runs[1]
    struck = Counter(
        {word: int(n) for word, _, n in (part.split() for part in plan.summary().split(";")[0].split(","))}
    )
    assert set(struck) == set(kinds)


PLAN = """
seed = 4
[[fault]]
kind = "late"
where = "reply"
every = 50
seconds = 3
[[fault]]
kind = "stuck"
at = [3, 17]
cells = 2
count = 1
"""
BAD_PLANS = {
    "no TOML": ("seed = ", "cannot be read as a plan of faults"),
    "key": ("color = 1", "unknown key 'color'; there are seed, fault"),
    "seed": ("seed = -1", "seed=-1: expected a whole number"),
    "no table": ("fault = 3", r"expected tables \[\[fault\]\]"),
    "no kind": ("[[fault]]\nevery = 2", "fault 1: kind is missing; there are drop"),
    "kind": ('[[fault]]\nkind = "explode"\nevery = 2', "kind='explode': expected one of drop"),
    "key of a fault": ('[[fault]]\nkind = "drop"\neach = 2', "fault 1: unknown key 'each'; there are kind"),
    "where": ('[[fault]]\nkind = "drop"\nevery = 2\nwhere = "here"', "where='here': expected request or reply"),
    "no time": ('[[fault]]\nkind = "drop"', "say when, by one of every, probability and at"),
    "two times": ('[[fault]]\nkind = "drop"\nevery = 2\nat = [1]', "say when, by one of"),
    "every": ('[[fault]]\nkind = "drop"\nevery = 0', "every=0: expected a whole number of at least 1"),
    "switch": ('[[fault]]\nkind = "drop"\nevery = true', "every=True: expected"),
    "probability": (
        '[[fault]]\nkind = "drop"\nprobability = 1.5',
        "probability=1.5: expected a number above 0, up to 1",
    ),
    "nan": ('[[fault]]\nkind = "drop"\nprobability = nan', "probability=nan: expected"),
    "at": ('[[fault]]\nkind = "drop"\nat = [0]', r"at=\[0\]: expected numbers of messages, counted from 1"),
    "no seconds": ('[[fault]]\nkind = "late"\nevery = 1', "seconds belongs to delay and late, which need it"),
    "seconds": ('[[fault]]\nkind = "drop"\nevery = 1\nseconds = 1', "seconds belongs to delay and late"),
    "long": ('[[fault]]\nkind = "late"\nevery = 1\nseconds = 1e9', r"seconds=1000000000\.0: expected .* up to 3600"),
    "cells": ('[[fault]]\nkind = "drop"\nevery = 1\ncells = 2', "cells belongs to stuck"),
    "busy reply": ('[[fault]]\nkind = "busy"\nevery = 1\nwhere = "reply"', "busy befalls the tester"),
    "second": ('[[fault]]\nkind = "drop"\nevery = 1\n[[fault]]\nkind = "drop"', "fault 2: say when"),
}


def test_a_plan_is_a_file(tmp_path: Path) -> None:
    (tmp_path / "plan.toml").write_text(PLAN)
    plan = load_plan(tmp_path / "plan.toml")
    for _ in range(3):
        plan.strikes("request")
    assert plan.summary() == "late (reply) 0, stuck (request) 1; of 3 requests, 0 replies"


@pytest.mark.parametrize(("text", "says"), BAD_PLANS.values(), ids=BAD_PLANS.keys())
def test_a_bad_plan_is_refused_in_one_line(tmp_path: Path, text: str, says: str) -> None:
    (tmp_path / "plan.toml").write_text(text)
    with pytest.raises(InputError, match=says) as caught:
        load_plan(tmp_path / "plan.toml")
    assert "plan.toml" in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("content", [None, b"\xff"])
def test_a_plan_that_cannot_be_read_is_named(tmp_path: Path, content: bytes | None) -> None:
    if content is not None:
        (tmp_path / "plan.toml").write_bytes(content)
    with pytest.raises(InputError, match=r"plan\.toml cannot be read as a plan of faults"):
        load_plan(tmp_path / "plan.toml")


def test_an_empty_plan_does_nothing(make_chip: MakeChip) -> None:
    assert FaultPlan((), 1).summary() == "none; of 0 requests, 0 replies"
