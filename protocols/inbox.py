"""Bytes as they come, joined once enough of them are there: a large block is copied once."""

from hil.protocols.payloads import Buffer


class Inbox:
    """A queue of bytes."""

    def __init__(self) -> None:
        self._chunks: list[bytes] = []
        self._size = 0

    def __len__(self) -> int:
        return self._size

    def add(self, data: Buffer) -> None:
        """Take bytes at the end."""
        self._chunks.append(bytes(data))
        self._size += len(data)

    def joined(self) -> bytes:
        """All of them."""
        if len(self._chunks) != 1:
            self._chunks = [b"".join(self._chunks)]
        return self._chunks[0]

    def drop(self, count: int) -> None:
        """Forget the first so many."""
        rest = self.joined()[count:]
        self._chunks = [rest]
        self._size = len(rest)

    def clear(self) -> None:
        """Forget all."""
        self._chunks.clear()
        self._size = 0
