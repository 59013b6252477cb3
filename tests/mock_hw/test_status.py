"""Error queue and status registers."""

import pytest

from hil.mock_hw.status import QUEUE_SIZE, Register, StatusSystem
from hil.protocols.requests import Failure, Fault

UNKNOWN = Failure(Fault.UNDEFINED_HEADER, "FOO?")


@pytest.fixture
def status() -> StatusSystem:
    """After power came on and its event was read."""
    status = StatusSystem()
    status.clear()
    return status


def drain(status: StatusSystem) -> list[Failure]:
    return list(iter(status.next_error, None))


def test_power_on_is_an_event_and_nothing_else_is_set() -> None:
    status = StatusSystem()
    assert (status.byte(False), status.error_count, status.next_error()) == (0, 0, None)
    assert [status.standard.take() for _ in range(2)] == [128, 0]


@pytest.mark.parametrize(
    ("code", "bit"),
    [(-100, 32), (-113, 32), (-199, 32), (-200, 16), (-222, 16), (-300, 8), (-363, 8), (-410, 4), (-499, 4), (1, 8)],
)
def test_an_error_sets_the_event_of_its_class(status: StatusSystem, code: int, bit: int) -> None:
    status.push(Failure(code, ""))
    assert status.standard.take() == bit


@pytest.mark.parametrize("fault", Fault)
def test_every_fault_has_a_class(status: StatusSystem, fault: Fault) -> None:
    status.push(Failure(fault, ""))
    assert status.standard.take() in (8, 16, 32)


def test_errors_come_out_in_the_order_in_which_they_went_in(status: StatusSystem) -> None:
    errors = [Failure(-222, "first"), Failure(3, "second"), Failure(-222, "first")]
    for error in errors:
        status.push(error)
    assert status.error_count == 3
    assert drain(status) == errors
    assert status.error_count == 0


def test_an_overflow_takes_the_place_of_the_newest_error_and_keeps_the_oldest(status: StatusSystem) -> None:
    assert QUEUE_SIZE == 20
    errors = [Failure(-222, str(number)) for number in range(25)]
    for error in errors[:20]:
        status.push(error)
    assert status.standard.take() == 16
    for error in errors[20:]:
        status.push(error)
    assert status.standard.take() == 16 | 8
    assert status.error_count == 20
    assert drain(status) == [*errors[:19], Failure(-350, "")]


def test_a_queue_that_overflowed_takes_errors_again_once_there_is_room(status: StatusSystem) -> None:
    for number in range(21):
        status.push(Failure(-222, str(number)))
    status.next_error()
    status.push(UNKNOWN)
    assert drain(status)[-2:] == [Failure(-350, ""), UNKNOWN]


def test_events_stay_until_they_are_read() -> None:
    register = Register(0xFF)
    register.latch(1)
    register.latch(32)
    assert [register.take() for _ in range(2)] == [33, 0]


def test_a_register_takes_only_the_bits_that_it_has() -> None:
    register = Register(0x7FFF)
    register.set_enable(0xFFFF)
    register.latch(0x8001)
    assert (register.enable, register.take()) == (0x7FFF, 1)


def test_the_status_byte_tells_what_is_so(status: StatusSystem) -> None:
    assert status.byte(answer_waits=True) == 16
    status.push(UNKNOWN)
    assert status.byte(answer_waits=False) == 4
    status.standard.set_enable(16)
    assert status.byte(answer_waits=False) == 4
    status.standard.set_enable(32)
    assert status.byte(answer_waits=False) == 4 | 32


@pytest.mark.parametrize(("name", "bit"), [("operation", 128), ("questionable", 8)])
def test_a_summary_shows_enabled_events_until_they_are_read(status: StatusSystem, name: str, bit: int) -> None:
    register = {"operation": status.operation, "questionable": status.questionable}[name]
    register.latch(1 << 4)
    assert status.byte(False) == 0
    register.set_enable(1 << 4)
    assert status.byte(False) == bit
    register.take()
    assert status.byte(False) == 0


@pytest.mark.parametrize(("mask", "byte"), [(0, 4), (4, 68), (8, 4), (255, 68), (64, 4)])
def test_a_bit_that_is_enabled_requests_service(status: StatusSystem, mask: int, byte: int) -> None:
    status.push(UNKNOWN)
    status.set_service(mask)
    assert status.byte(False) == byte


def test_the_request_for_service_cannot_be_enabled_itself(status: StatusSystem) -> None:
    status.set_service(255)
    assert status.service == 255 - 64


def all_enabled(status: StatusSystem) -> None:
    for register in (status.standard, status.operation, status.questionable):
        register.set_enable(1)
        register.latch(1)
    status.set_service(4)
    status.push(UNKNOWN)


def masks(status: StatusSystem) -> tuple[int, ...]:
    return status.standard.enable, status.service, status.operation.enable, status.questionable.enable


def test_clearing_forgets_errors_and_events_and_keeps_what_is_enabled(status: StatusSystem) -> None:
    all_enabled(status)
    assert status.byte(False) == 128 + 64 + 32 + 8 + 4
    status.clear()
    assert (status.byte(False), status.error_count) == (0, 0)
    assert masks(status) == (1, 4, 1, 1)


def test_a_preset_disables_the_registers_of_scpi_only_and_forgets_nothing(status: StatusSystem) -> None:
    all_enabled(status)
    status.preset()
    assert masks(status) == (1, 4, 0, 0)
    assert (status.error_count, status.operation.take(), status.questionable.take()) == (1, 1, 1)
