"""A file whose writes take effect all at once, or not at all: what HDF5 lacks when its writer is killed.

h5py writes into a `JournaledFile`. Whole pages beyond the end of what is committed go to the disk at once: nothing
refers to them yet. Everything else is kept in memory until `commit`, which

    1. writes what else lies beyond that end,
    2. writes the changed pages behind it, as a journal with a checksum of both,
    3. writes the same pages to their places,
    4. cuts the journal off.

Killed before the journal is whole, the file is that of the commit before, with bytes behind its end that HDF5 ignores.
Killed after, `recover` does steps 3 and 4 again. HDF5 itself never sees a write that fails.
"""

import fcntl
import os
import struct
from collections.abc import Iterable, Iterator
from itertools import groupby
from pathlib import Path

from hil.protocols.checksum import crc32
from hil.protocols.errors import DataError

PAGE = 4096
"""Bytes that are written as one: a killed process leaves a page old or new."""

EMPTY = bytes(PAGE)
"""A page that nobody wrote."""

MOST_PAGES = 2048
"""Pages to be written from which on a commit should not wait: 8 MB, so that memory is bounded."""

TRAILER = struct.Struct("<8sqqqqI")
"""The file's last bytes while it has a journal: magic, where the checksum begins, start of the journal, number of its
pages, size of the file, CRC-32 of the file from where it begins to that size, of the journal's body and of the fields.
What step 1 wrote is on the disk before the journal is, so the checksum begins at the size and leaves it out."""
MAGIC = b"hil-jrnl"
NUMBER = struct.Struct("<q")


class JournaledFile:
    """A file-like object for `h5py.File`, open for reading and writing; nobody else can open the file meanwhile.

    With `durable`, a commit survives a loss of power as well. Raises OSError, also where another process has the file.
    """

    def __init__(self, path: Path, new: bool, durable: bool = False) -> None:
        self._handle = os.open(path, os.O_RDWR | os.O_CLOEXEC | (os.O_CREAT | os.O_EXCL if new else 0), 0o666)
        try:
            fcntl.flock(self._handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
            _apply(self._handle)
            self._end = os.fstat(self._handle).st_size  # of what is committed
            if durable and new:
                _sync_folder(path.parent)
        except BaseException:
            os.close(self._handle)
            raise
        self.path = path.absolute()
        self._durable = durable
        self._size = self._end
        self._position = 0
        self._pages: dict[int, bytearray] = {}
        self._ahead: set[int] = set()  # pages beyond the end that the disk has already
        self._torn = False  # whether the file may be half of a commit, whose journal lies behind it
        self.full = False
        """Whether so much waits for the next commit that it should come now."""

    @property
    def size(self) -> int:
        """Bytes of the file, with what was written since the last commit."""
        return self._size

    def commit(self) -> None:
        """Bring all writes into the file at once. Raises OSError, after which the file is that of the last commit.

        Also refuses a file that was removed or replaced since: what goes there would be lost.
        """
        if not os.path.samestat(os.stat(self.path), os.fstat(self._handle)):
            raise OSError("another file has taken its place")
        self._mend()
        first_new = self._first_new
        changed = sorted(number for number in self._pages if number < first_new)
        try:
            for start, data in self._runs(self._new_pages(first_new)):
                write_at(self._handle, data[: self._size - start], start)
            if changed:
                self._sync()
                self._write_journal(changed)
        except OSError:
            os.ftruncate(self._handle, max(self._end, PAGE * (max(self._ahead, default=-1) + 1)))
            raise
        self._torn = bool(changed)
        self._sync()
        for start, data in self._runs(changed):
            write_at(self._handle, data, start)
        if changed:
            self._sync()
        os.ftruncate(self._handle, self._size)
        self._torn = False
        self._end = self._size
        self._pages.clear()
        self._ahead.clear()
        self.full = False

    def close(self) -> None:
        """Let go of the file; writes that were not committed are forgotten. Idempotent."""
        if self._handle >= 0:
            os.close(self._handle)
            self._handle = -1

    def seek(self, offset: int, whence: int = os.SEEK_SET) -> int:
        """As of a file."""
        self._position = offset + {os.SEEK_SET: 0, os.SEEK_CUR: self._position, os.SEEK_END: self._size}[whence]
        return self._position

    def tell(self) -> int:
        """As of a file."""
        return self._position

    def read(self, size: int = -1) -> bytes:
        """As of a file, with what was written since the last commit."""
        stop = self._size if size < 0 else min(self._position + size, self._size)
        parts = [bytes(self._page(number)[begin:end]) for number, begin, end in _parts(self._position, stop)]
        self._position = max(stop, self._position)
        return b"".join(parts)

    def readinto(self, buffer: memoryview) -> int:
        """As of a file, with what was written since the last commit."""
        data = self.read(len(buffer))
        buffer[: len(data)] = data
        return len(data)

    def write(self, data: bytes | memoryview) -> int:
        """As of a file."""
        view = memoryview(data).cast("B")
        start = self._position
        stop = start + len(view)
        # Whole pages only: what shares a page with other writes waits for the commit.
        begin, end = max(-(-start // PAGE), self._first_new) * PAGE, stop // PAGE * PAGE
        if begin < end and self._write_ahead(view[begin - start : end - start], begin):
            self._keep(view[: begin - start], start)
            self._keep(view[end - start :], end)
        else:
            self._keep(view, start)
        self._position = stop
        self._size = max(self._size, stop)
        self.full = len(self._pages) > MOST_PAGES
        return len(view)

    def _write_ahead(self, view: memoryview, start: int) -> bool:
        """Write to the disk pages that nothing refers to before the next commit; whether that was done.

        A failure is told by the commit, which tries again.
        """
        if self._torn or not self._end:
            return False
        try:
            write_at(self._handle, view, start)
        except OSError:
            return False
        numbers = range(start // PAGE, (start + len(view)) // PAGE)
        self._ahead.update(numbers)
        for number in self._pages.keys() & numbers:
            del self._pages[number]
        return True

    def _keep(self, view: memoryview, start: int) -> None:
        """Write to the pages in memory."""
        for number, begin, end in _parts(start, start + len(view)):
            offset = number * PAGE + begin - start
            part = view[offset : offset + end - begin]
            if end - begin == PAGE:
                self._pages[number] = bytearray(part)
                continue
            if number not in self._pages:
                self._pages[number] = bytearray(self._page(number))
            self._pages[number][begin:end] = part

    def truncate(self, size: int) -> int:
        """As of a file, but in memory only."""
        for number in [number for number in self._pages if number * PAGE >= size]:
            del self._pages[number]
        self._ahead = {number for number in self._ahead if number * PAGE < size}
        self._size = size
        return size

    def flush(self) -> None:
        """Does nothing: only a commit writes."""

    def _page(self, number: int) -> bytes | bytearray:
        if number in self._pages:
            return self._pages[number]
        known = PAGE if number in self._ahead else max(min(PAGE, self._end - number * PAGE), 0)
        return os.pread(self._handle, known, number * PAGE).ljust(PAGE, b"\0")

    def _mend(self) -> None:
        """Finish a commit that failed after its journal was whole, before that is written over. Raises OSError."""
        if self._torn:
            _apply(self._handle)
            self._end = os.fstat(self._handle).st_size
            self._torn = False

    @property
    def _first_new(self) -> int:
        """The first page that is not part of what is committed."""
        return -(-self._end // PAGE)

    def _new_pages(self, first: int) -> Iterator[int]:
        """What is to be written from a page on: pages in memory, and those that nobody wrote, so that no room lacks."""
        for number in range(first, -(-self._size // PAGE)):
            if number in self._pages or number not in self._ahead:
                yield number

    def _runs(self, numbers: Iterable[int]) -> Iterator[tuple[int, bytes]]:
        """Pages that lie together, as one: where they begin, and their bytes."""
        for _, run in groupby(enumerate(numbers), lambda page: page[1] - page[0]):
            found = [number for _, number in run]
            yield found[0] * PAGE, b"".join(self._pages.get(number, EMPTY) for number in found)

    def _write_journal(self, numbers: list[int]) -> None:
        start = -(-max(self._size, self._end) // PAGE) * PAGE
        body = b"".join([*map(NUMBER.pack, numbers), *(self._pages[number] for number in numbers)])
        fields = (MAGIC, self._size, start, len(numbers), self._size)
        crc = _checksum(fields, b"", body)
        os.ftruncate(self._handle, start)  # what was written ahead and then cut off would lie behind it
        write_at(self._handle, body + TRAILER.pack(*fields, crc), start)

    def _sync(self) -> None:
        if self._durable:
            os.fsync(self._handle)


def recover(path: Path) -> bool:
    """Finish the commit in which the file's writer was killed; whether there was one.

    Raises DataError where the file has to be mended and cannot be written, BlockingIOError where it is being written.
    """
    with path.open("rb") as file:
        file.seek(max(os.fstat(file.fileno()).st_size - TRAILER.size, 0))
        if file.read(len(MAGIC)) != MAGIC:
            return False
    try:
        handle = os.open(path, os.O_RDWR | os.O_CLOEXEC)
    except OSError as error:
        raise DataError(
            f"{path}: its writer was killed while it wrote, and the file cannot be mended where it is "
            f"({error.strerror}): copy it to where it can be written"
        ) from error
    try:
        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        return _apply(handle)
    finally:
        os.close(handle)


def _apply(handle: int) -> bool:
    """Carry out the journal at the end of a file, if there is a whole one."""
    end = os.fstat(handle).st_size
    trailer = os.pread(handle, TRAILER.size, max(end - TRAILER.size, 0))
    if len(trailer) < TRAILER.size or not trailer.startswith(MAGIC):
        return False
    *fields, crc = TRAILER.unpack(trailer)
    _, new_start, start, count, size = fields
    if not 0 <= start < end or end - start != count * (NUMBER.size + PAGE) + TRAILER.size:
        return False
    new, body = _read(handle, new_start, size), _read(handle, start, end - TRAILER.size)
    if _checksum(tuple(fields), new, body) != crc:
        return False
    pages = memoryview(body)[count * NUMBER.size :]
    for index, (number,) in enumerate(NUMBER.iter_unpack(body[: count * NUMBER.size])):
        write_at(handle, pages[index * PAGE : (index + 1) * PAGE], number * PAGE)
    os.fsync(handle)
    os.ftruncate(handle, size)
    return True


def _checksum(fields: tuple[object, ...], new: bytes, body: bytes) -> int:
    return crc32(TRAILER.pack(*fields, 0), crc32(body, crc32(new)))


def _read(handle: int, start: int, stop: int) -> bytes:
    return os.pread(handle, max(stop - start, 0), start) if start >= 0 else b""


def _parts(start: int, stop: int) -> Iterator[tuple[int, int, int]]:
    """The pages that hold the bytes from start to stop: number, first byte and end within the page."""
    for number in range(start // PAGE, -(-stop // PAGE)):
        yield number, max(start - number * PAGE, 0), min(stop - number * PAGE, PAGE)


def write_at(handle: int, data: "bytes | bytearray | memoryview", offset: int) -> None:
    """Write all of it: with one call, where the disk takes it. Raises OSError."""
    view = memoryview(data)
    while view:
        written = os.pwrite(handle, view, offset)
        view, offset = view[written:], offset + written


def _sync_folder(folder: Path) -> None:
    handle = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
