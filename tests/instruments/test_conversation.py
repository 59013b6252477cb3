"""Which of the bytes that come back are the reply to the newest request."""

import numpy as np
import pytest

from hil.instruments.conversation import AskAgain, FrameConversation, ScpiConversation
from hil.protocols import frames, scpi
from hil.protocols.messages import Cells, Receipt, Status
from hil.protocols.requests import (
    Echoed,
    Failure,
    Fault,
    GetState,
    Ground,
    ProtocolError,
    Read,
    State,
    Wait,
)

NO_ERROR = b';0,"No error"\n'
OLD, NEW = State(7, 100, 1, False), State(8, 200, 2, True)


def nonce_of(request: list[bytes | bytearray | memoryview]) -> bytes:
    message = b"".join(request)
    return message[message.index(b"#18") + 3 :][:8]


def answer(nonce: bytes, state: State) -> bytes:
    return b"".join([*scpi.encode_reply(Echoed(nonce)), b";", *scpi.encode_reply(state), NO_ERROR])


def test_a_late_answer_to_the_same_question_is_passed_over() -> None:
    host = ScpiConversation()
    old = nonce_of(host.request(GetState()))
    new = nonce_of(host.request(GetState()))
    host.feed(answer(old, OLD))
    assert host.reply() is None
    host.feed(answer(new, NEW))
    assert host.reply() == NEW


def test_a_late_answer_to_an_operation_is_passed_over() -> None:
    host = ScpiConversation()
    host.request(Wait(8, 1.0))
    for op_id in (7, 8):
        receipt = Receipt(op_id, 5, Status.COMPLETE, 0)
        host.feed(b"".join([*scpi.encode_reply(receipt), NO_ERROR]))
        assert host.reply() == (receipt if op_id == 8 else None)


def test_frames_with_another_sequence_number_are_passed_over() -> None:
    host = FrameConversation()
    (first,) = _frames(host.request(GetState()))
    (second,) = _frames(host.request(GetState()))
    host.feed(b"".join(frames.encode_reply(first.command, first.sequence, OLD)))
    assert host.reply() is None
    host.feed(b"".join(frames.encode_reply(second.command, second.sequence, NEW)))
    assert host.reply() == NEW


def _frames(parts: list[bytes | bytearray | memoryview]) -> list[frames.Frame]:
    reader = frames.FrameReader()
    reader.feed(b"".join(parts))
    return list(reader.frames())


def test_a_refusal_is_believed_when_it_comes_twice_to_the_same_request() -> None:
    host, request = ScpiConversation(), Read(3, Cells.of(0, np.arange(2), 0))
    refusal = b'-222,"Data out of range;cell (0, 9, 0)"\n'
    host.request(request)
    host.feed(refusal)  # may belong to an earlier request
    with pytest.raises(AskAgain):
        host.reply()
    nonce = nonce_of(host.request(request))
    echo = b"".join(scpi.encode_reply(Echoed(nonce)))
    host.feed(echo + b";" + refusal)
    assert host.reply() == Failure(Fault.OUT_OF_RANGE, "cell (0, 9, 0)")


def test_another_request_makes_a_refusal_be_asked_for_twice_again() -> None:
    host = ScpiConversation()
    host.request(Wait(1, 1.0))
    host.feed(b'-222,"Data out of range;no"\n')
    with pytest.raises(AskAgain):
        host.reply()
    host.request(Wait(1, 2.0))
    host.feed(b'-222,"Data out of range;no"\n')
    with pytest.raises(AskAgain):
        host.reply()


@pytest.mark.parametrize("message", [b"\n", b"1,2,3\n", b"1;2;3;4\n", b'#15hello;0,"No error"\n', b'0,"No error"\n'])
def test_what_is_no_answer_to_an_operation_is_an_error(message: bytes) -> None:
    host = ScpiConversation()
    host.request(Wait(1, 1.0))
    host.feed(message)
    with pytest.raises(ProtocolError):
        host.reply()


@pytest.mark.parametrize("host", [ScpiConversation(), FrameConversation()])
def test_what_was_heard_is_shown_in_part_and_printable(host: ScpiConversation | FrameConversation) -> None:
    assert host.heard() == ""
    host.request(Ground())
    host.feed(b"HTTP/1.1 400 Bad Request\r\nServer: \xff" + b"x" * 500)
    assert host.reply() is None
    assert "HTTP/1.1 400" in host.heard() or "xxx" in host.heard()
    assert host.heard().isprintable()
    assert len(host.heard()) < 100


def test_requests_that_are_no_operations_are_preceded_by_a_fresh_echo() -> None:
    host = ScpiConversation()
    first, second = (b"".join(host.request(GetState())) for _ in range(2))
    assert first.startswith(b"DIAG:ECHO? ")
    assert first != second
