"""One request and its reply over a link that may fail: repeated until it is answered, within bounds."""

import threading
import time
from collections.abc import Sequence
from contextlib import suppress

from hil.instruments.conversation import AskAgain, Conversation
from hil.instruments.link import Link, LinkClosed, LinkError, LinkTimeout
from hil.protocols.errors import TesterError
from hil.protocols.messages import Region
from hil.protocols.requests import (
    Define,
    Describe,
    Description,
    Done,
    Failure,
    Fault,
    GetState,
    Ground,
    ProtocolError,
    Reply,
    Request,
    State,
)

PAUSES = (0.0, 0.05, 0.1, 0.2, 0.5, 1.0, 2.0, 2.0, 2.0, 2.0)
"""Back-off (s) before each repetition, on a line that failed or a tester that is busy. CHOSEN."""
FEW = 3
"""Attempts at the first question, and to ground the lines before the link is let go."""
PASSING = (Fault.BUSY, Fault.CORRUPT)
"""Refusals that say nothing about the request: it may be done the next time."""
MOST_REFUSALS = 4
"""How often a refusal may change before it is believed."""


class LostError(TesterError):
    """The tester did not answer, whatever was tried; what was asked may have been done."""


class StrangerError(TesterError):
    """After the line was lost, the chip is not as it was left."""


class Exchange:
    """Asks a tester. Whatever was asked may be asked again with the same id: the firmware does it once.

    After anything went wrong, nothing is sent before the link is reset and the tester has answered a fresh question, so
    that a late answer never passes for another one. If the tester was switched on meanwhile, it is told its regions. If
    it has forgotten operations, or done others, it is not the same any more: `StrangerError`.
    """

    def __init__(
        self, link: Link, conversation: Conversation, timeout: float, pauses: Sequence[float] | None = None
    ) -> None:
        """`timeout` (s): of a request that takes no time itself; `pauses`: see PAUSES."""
        self.link = link
        self._conversation = conversation
        self._timeout = timeout
        self._pauses = PAUSES if pauses is None else pauses
        self.lock = threading.RLock()
        """Held for a transaction; a caller holds it from taking an operation id to the answer."""
        self._in_step = False
        self._boot: int | None = None
        self.last_op_id = 0
        """The last operation whose end is known; the caller keeps it up to date."""
        self.remembers = True
        """Whether its last operation id outlives a reboot."""
        self.regions: list[Region] = []
        """Known to the tester, and told again after a reboot."""

    def open(self) -> State:
        """Come into step with the tester, in one attempt. Raises `LinkError` or `TesterError` where it is none."""
        with self.lock:
            try:
                state = self._come_into_step(first=True)
            except ProtocolError as error:
                raise TesterError(f"{self.link.name} answers, but not as a tester: {error}{self._heard()}") from error
            except LinkClosed as error:
                raise TesterError(f"{error}{self._heard() or '; is this the port of a tester?'}") from error
            except LinkError as error:
                raise TesterError(f"{error}{self._heard()}") from error
            self.last_op_id = state.last_op_id
            return state

    def ask(self, request: Request, seconds: float = 0.0, answer_bytes: int = 0, repeat: bool = True) -> Reply:
        """The reply to a request that takes `seconds` of device time. Raises `LostError` where none comes.

        Without `repeat`, a request that may have been begun is not sent again.
        """
        with self.lock:
            for pause in (None, *self._pauses):
                if pause is not None:
                    time.sleep(pause)
                try:
                    if not self._in_step:
                        self._come_into_step()
                except (LinkError, ProtocolError) as error:
                    last: TesterError = error
                    continue
                try:
                    reply = self._ask_in_step(request, seconds, answer_bytes, repeat)
                except (LinkError, ProtocolError) as error:
                    last = error
                    if repeat:
                        continue
                    break
                if not isinstance(reply, Failure) or reply.code not in PASSING:
                    return reply
                last = TesterError(reply.text)
            raise LostError(self._lost(request, last)) from last

    def state(self) -> State:
        """Where the chip stands."""
        reply = self.ask(GetState())
        if isinstance(reply, State):
            return reply
        raise TesterError(f"{self.link.name} does not tell its state: {reply}")

    def recover(self) -> State:
        """Where the chip stands, after the line has been reset and the tester told its regions, if need be."""
        self._in_step = False
        return self.state()

    def describe(self) -> Description:
        """Who answers, and what it can do. Raises `TesterError` where the tester cannot say so soon."""
        reply = self._ask_soon(Describe())
        if isinstance(reply, Description):
            return reply
        raise TesterError(f"{self.link.name} does not describe itself: {reply}{self._heard()}")

    def ground(self) -> bool:
        """Ground all lines; False where the tester cannot be reached soon."""
        return isinstance(self._ask_soon(Ground()), Done)

    def _ask_soon(self, request: Request) -> Reply | TesterError:
        """The reply in one of a few attempts, or why there is none."""
        last = TesterError("no answer")
        with self.lock:
            for _ in range(FEW):
                try:
                    if not self._in_step:
                        self._come_into_step()
                    return self._ask_in_step(request, 0.0, 0)
                except (LinkError, ProtocolError) as error:
                    last = error
                except StrangerError as error:
                    return error
        return last

    def close(self) -> None:
        """Let go of the link."""
        self.link.close()

    def _ask_in_step(self, request: Request, seconds: float, answer_bytes: int, repeat: bool = True) -> Reply:
        for _ in range(MOST_REFUSALS if repeat else 1):
            try:
                return self._once(request, seconds, answer_bytes, repeat)
            except AskAgain:
                self._in_step = True
        raise ProtocolError(Fault.CORRUPT, "refused, each time for another reason")

    def _once(self, request: Request, seconds: float, answer_bytes: int, repeat: bool) -> Reply:
        self._in_step = False  # until the answer is there
        parts = self._conversation.request(request, repeat)
        size = sum(map(len, parts)) + answer_bytes
        deadline = time.monotonic() + self._timeout + seconds + size / self.link.bytes_per_second
        self.link.send(parts, deadline - time.monotonic())
        while (reply := self._conversation.reply()) is None:
            self._conversation.feed(self._receive(deadline, self._timeout + seconds))
        self._in_step = True
        return reply

    def _receive(self, deadline: float, seconds: float) -> bytes:
        with suppress(LinkTimeout):
            left = deadline - time.monotonic()
            if left > 0:
                return self.link.receive(left)
        raise LinkTimeout(f"{self.link.name}: no answer within {seconds:g} s")

    def _come_into_step(self, first: bool = False) -> State:
        self.link.reset(self._timeout)
        end = self._conversation.clear()
        if end:
            self.link.send([end], self._timeout)
        state = self._ask_in_step(GetState(), 0.0, 0)
        if not isinstance(state, State):
            raise ProtocolError(Fault.CORRUPT, f"it does not tell its state: {state}")
        if not first:
            self._recognise(state)
        if self._boot is not None and state.boot != self._boot:
            for region in self.regions:
                self._tell(region)
        self._boot = state.boot
        return state

    def _recognise(self, state: State) -> None:
        """Raises `StrangerError` where the chip has not done what was done, or more than the operation in doubt."""
        if self.remembers and not self.last_op_id <= state.last_op_id <= self.last_op_id + 1:
            raise StrangerError(
                f"{self.link.name}: the chip's last operation is {state.last_op_id}, where {self.last_op_id} was done: "
                "it is another one, has forgotten, or was used by someone else"
            )

    def _tell(self, region: Region) -> None:
        reply = self._ask_in_step(Define(region), 0.0, 0)
        if not isinstance(reply, Done):
            raise ProtocolError(Fault.CORRUPT, f"region {region.handle} is refused after a reboot: {reply}")

    def _heard(self) -> str:
        heard = self._conversation.heard()
        return f"; it said {heard}" if heard else ""

    def _lost(self, request: Request, error: TesterError) -> str:
        what = type(request).__name__.lower()
        return f"{self.link.name}: {what} was not answered: {error}{self._heard()}"
