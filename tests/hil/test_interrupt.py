"""Ctrl-C, wherever it strikes."""

import signal
import sys
from typing import Any

import pytest

from hil.interrupt import Interrupt


class StruckWhileDropped:
    """Gets a Ctrl-C in its destructor, where Python can raise nothing."""

    def __del__(self) -> None:
        signal.raise_signal(signal.SIGINT)


def drop() -> None:
    StruckWhileDropped()


def test_the_first_is_only_noted_and_the_second_is_raised() -> None:
    with Interrupt() as interrupt:
        assert not interrupt.requested
        signal.raise_signal(signal.SIGINT)
        assert interrupt.requested
        with pytest.raises(KeyboardInterrupt):
            signal.raise_signal(signal.SIGINT)
        signal.raise_signal(signal.SIGINT)


def test_none_is_raised_while_it_is_held() -> None:
    with Interrupt() as interrupt:
        interrupt.hold()
        for _ in range(3):
            signal.raise_signal(signal.SIGINT)
    assert interrupt.requested


def test_one_that_is_lost_in_a_destructor_says_nothing_and_the_next_is_raised(capsys: Any) -> None:
    with Interrupt() as interrupt:
        signal.raise_signal(signal.SIGINT)
        drop()
        assert interrupt.requested
        with pytest.raises(KeyboardInterrupt):
            signal.raise_signal(signal.SIGINT)
    assert capsys.readouterr() == ("", "")


def test_other_errors_in_destructors_are_shown_as_before(monkeypatch: pytest.MonkeyPatch) -> None:
    class Fails:
        def __del__(self) -> None:
            raise OSError("full")

    shown: list[Any] = []
    monkeypatch.setattr(sys, "unraisablehook", lambda lost: shown.append(lost.exc_type))
    hook = sys.unraisablehook
    with Interrupt():
        Fails()
    assert shown == [OSError]
    assert sys.unraisablehook is hook
