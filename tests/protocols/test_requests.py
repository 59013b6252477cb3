"""Refusals on the wire: which number each error gets, and which error the host raises for it."""

import pytest

from hil.protocols.errors import DivergedError, HilError, InputError, LimitError, OperationIdError, TesterError
from hil.protocols.requests import (
    ERROR_OF,
    FAULT_TEXT,
    BusyError,
    CutShortError,
    Failure,
    Fault,
    NoRegionError,
    ProtocolError,
    error_of,
    failure_of,
)


@pytest.mark.parametrize(
    ("error", "code"),
    [
        (LimitError("why"), -222),
        (NoRegionError("why"), 3),
        (OperationIdError("why"), 1),
        (CutShortError("why"), 2),
        (BusyError("why"), -213),
        (ProtocolError(Fault.CORRUPT, "why"), -230),
        (ProtocolError(Fault.UNDEFINED_HEADER, "why"), -113),
        (InputError("why"), -222),
        (TesterError("why"), -240),
        (DivergedError("why"), -240),
    ],
)
def test_an_error_of_the_firmware_is_told_by_its_number(error: HilError, code: int) -> None:
    assert failure_of(error) == Failure(code, "why")


@pytest.mark.parametrize("kind", [LimitError, NoRegionError, OperationIdError, CutShortError, BusyError])
def test_an_error_that_has_a_number_is_raised_again_at_the_host(kind: type[HilError]) -> None:
    error = error_of(failure_of(kind("why")))
    assert type(error) is kind
    assert str(error) == "why"


@pytest.mark.parametrize("code", sorted({-32768, -100, 99, 32767} | {*Fault} - {*ERROR_OF}))
def test_any_other_number_is_an_error_of_the_tester(code: int) -> None:
    assert type(error_of(Failure(code, "why"))) is TesterError


def test_every_fault_has_a_text_that_one_line_of_scpi_holds() -> None:
    assert set(FAULT_TEXT) == set(Fault)
    assert all(text.isascii() and not set(text) & set('";\n') for text in FAULT_TEXT.values())
