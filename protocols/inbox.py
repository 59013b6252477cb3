"""Bytes as they come, in memory that is used again: to get it anew for each large block costs more than a copy."""

from hil.protocols.payloads import Buffer

SMALL = 1 << 12
KEPT = 1 << 23
"""Bytes of memory that are kept for the next message."""


class Inbox:
    """A queue of bytes: the first `size` of `store`; what lies behind them is no part of it."""

    def __init__(self) -> None:
        self.store = bytearray(SMALL)
        self.size = 0

    def add(self, data: Buffer) -> None:
        """Take bytes at the end."""
        stop = self.size + len(data)
        if stop > len(self.store):
            self.store = self.store[: self.size] + bytearray(max(len(self.store), stop - self.size))
        self.store[self.size : stop] = data
        self.size = stop

    def first(self, count: int) -> bytes:
        """A copy of the first so many."""
        return bytes(memoryview(self.store)[: min(count, self.size)])

    def drop(self, count: int) -> None:
        """Forget the first so many."""
        rest = self.size - count
        if rest:
            self.store[:rest] = self.store[count : self.size]
        elif len(self.store) > KEPT:
            self.store = bytearray(SMALL)
        self.size = rest

    def clear(self) -> None:
        """Forget all."""
        self.drop(self.size)
