"""A chip that is kept in a file: one process uses it at a time, and a served one survives the death of its process."""

import errno
import fcntl
import json
import os
from collections.abc import Iterator, Sequence
from contextlib import suppress
from io import FileIO
from pathlib import Path

from hil.mock_hw import chipfile
from hil.mock_hw.firmware import Firmware
from hil.mock_hw.instrument import perform
from hil.protocols.errors import HilError, InputError, StorageError
from hil.protocols.frames import Frame, FrameReader, decode_request, encode_request, pack
from hil.protocols.messages import Identity
from hil.protocols.payloads import Buffer
from hil.protocols.requests import Define, Request

LARGEST_JOURNAL = 16 << 20
"""Bytes of requests after which the chip is saved and the journal begins anew. CHOSEN."""
READ_SIZE = 64 * 1024
ABOUT = 0x7F
"""Command of the journal's first frame, which no request has: of which chip it is, and since which operation."""


class ChipFile:
    """Exclusive use of a chip's file, until `release`. Raises `InputError` while another has it.

    Beside it lies its journal, `chip.h5.journal`: the lock, and the requests that the saved chip has not seen. It is
    removed at the end.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self._journal = path.with_name(path.name + ".journal")
        self._file = _locked(self._journal, path)
        self.size = os.fstat(self._file.fileno()).st_size
        """Bytes of the journal."""

    def load(self) -> tuple[Firmware, str, str]:
        """The chip as it was when its last user ended or died, just switched on; see `chipfile.load`."""
        firmware, model, chip = chipfile.load(self.path)
        if self.size:
            _repeat(self._journal, firmware, chip)
        return firmware, model, chip

    def save(self, firmware: Firmware, identity: Identity) -> None:
        """Save the chip; the journal is then empty. A death between the two is harmless: what the chip has seen is not
        done again.
        """
        chipfile.save(self.path, firmware, identity)
        self._file.truncate(0)
        self.size = 0

    def append(self, parts: Sequence[Buffer]) -> None:
        """Add to the journal, in one write; a failed one leaves it as it was. Raises `StorageError`.

        It is then with the operating system: it survives the process, not a loss of the computer's power.
        """
        content = b"".join(parts)
        try:
            if self._file.write(content) != len(content):
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        except OSError as error:
            self._file.truncate(self.size)
            raise StorageError(f"cannot write {self._journal}: {error.strerror}; nothing was done") from error
        self.size += len(content)

    def release(self) -> None:
        """Let others use it. A journal that holds requests is left for them."""
        if self._file.closed:
            return
        if self.size == 0:
            with suppress(OSError):
                self._journal.unlink()
        self._file.close()


class Keeper:
    """Keeps a chip that is served: each request is in the journal before it is done."""

    def __init__(self, file: ChipFile, firmware: Firmware, identity: Identity) -> None:
        self._file, self._firmware, self._identity = file, firmware, identity
        self.save()

    def record(self, request: Request) -> None:
        """Note a request that is to be done next. Raises `StorageError`."""
        if not 0 < self._file.size < LARGEST_JOURNAL:
            self.save()
        self._file.append(encode_request(request, 0))

    def save(self) -> None:
        """Save the chip and begin a new journal, which starts with the regions that are defined."""
        self._file.save(self._firmware, self._identity)
        about = {"chip": self._identity.chip, "last_op_id": self._firmware.last_op_id}
        parts = pack(ABOUT, 0, json.dumps(about).encode())
        for region in self._firmware.regions.values():
            parts += encode_request(Define(region), 0)
        self._file.append(parts)

    def save_last(self) -> None:
        """Save the chip, and begin no journal."""
        self._file.save(self._firmware, self._identity)


def _locked(journal: Path, path: Path) -> FileIO:
    """The journal, opened for this process alone."""
    while True:
        try:
            file = open(journal, "ab", buffering=0)  # noqa: SIM115
        except OSError as error:
            raise StorageError(f"cannot write {journal}: {error.strerror}") from error
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            file.close()
            raise InputError(f"{path} is in use by another process, or by another tester of this one") from None
        with suppress(FileNotFoundError):
            if os.path.samestat(os.fstat(file.fileno()), journal.stat()):
                return file
        file.close()  # its last user removed it in between


def _repeat(journal: Path, firmware: Firmware, chip: str) -> None:
    """Do the requests of a journal again, then switch off and on. What was written in part at its end is passed over:
    that request was never done.
    """
    frames = _frames(journal)
    first = next(frames, None)
    if first is None:
        return
    _check_about(first, journal, firmware, chip)
    boots = firmware.boots
    for frame in frames:
        with suppress(HilError):  # refused, as it was then; so is what the saved chip had done before
            perform(firmware, decode_request(frame))
    firmware.boot()
    firmware.boots = boots


def _frames(journal: Path) -> Iterator[Frame]:
    reader = FrameReader()
    with journal.open("rb") as file:
        while data := file.read(READ_SIZE):
            reader.feed(data)
            for frame in reader.frames():
                if reader.skipped:
                    raise InputError(f"{journal} is damaged: remove it to go on from the chip as it was last saved")
                yield frame


def _check_about(frame: Frame, journal: Path, firmware: Firmware, chip: str) -> None:
    try:
        about = json.loads(bytes(frame.payload)) if frame.command == ABOUT else {}
        belongs = about["chip"] == chip and about["last_op_id"] <= firmware.last_op_id
    except (ValueError, LookupError, TypeError):
        belongs = False
    if not belongs:
        raise InputError(
            f"{journal} does not go on from the chip beside it ({chip}, last operation {firmware.last_op_id}): "
            "put the chip's newest file back, or remove the journal"
        )
