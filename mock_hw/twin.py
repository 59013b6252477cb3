"""The twin in process: the firmware, called directly."""

from collections.abc import Sequence

from hil.instruments.tester import ArrayTester
from hil.mock_hw import chipfile
from hil.mock_hw.firmware import Firmware
from hil.mock_hw.keeper import ChipFile
from hil.protocols import limits
from hil.protocols.errors import TesterError
from hil.protocols.messages import (
    Block,
    Capabilities,
    Cells,
    Direction,
    Identity,
    PulseBatch,
    PulseTrains,
    Readings,
    Receipt,
    Region,
    TesterKind,
    Vectors,
)


def identity_of(name: str, chip_id: str) -> Identity:
    """What the twin of a chip says of itself, in process and served."""
    return Identity("PCM-HIL", name, "twin", "1", chip_id, TesterKind.TWIN)


class TwinTester(ArrayTester):
    """A tester of a chip that exists in memory; `file` keeps the chip on disk when the tester is closed."""

    def __init__(self, firmware: Firmware, name: str, chip_id: str, file: ChipFile | None = None) -> None:
        self._firmware = firmware
        self._identity = identity_of(name, chip_id)
        self._file = file
        self._regions: list[Region] = []
        self._closed = False

    def identify(self) -> Identity:
        return self._identity

    def capabilities(self) -> Capabilities:
        return self._firmware.capabilities

    def register(self, blocks: Sequence[Block]) -> Region:
        region = Region(len(self._regions), tuple(blocks))
        self._open().define(region)
        self._regions.append(region)
        return region

    def regions(self) -> tuple[Region, ...]:
        return tuple(self._regions)

    def read(self, cells: Cells) -> Readings:
        firmware = self._open()
        return firmware.read(firmware.last_op_id + 1, cells)

    def mvm(self, region: Region, vectors: Vectors, direction: Direction, gain: int) -> Readings:
        firmware = self._open()
        limits.check_registered(self._regions, region)
        return firmware.mvm(firmware.last_op_id + 1, region.handle, vectors, direction, gain)

    def program(self, pulses: PulseBatch) -> Receipt:
        firmware = self._open()
        return firmware.program(firmware.last_op_id + 1, pulses)

    def update(self, region: Region, trains: PulseTrains) -> Receipt:
        self._open()
        raise limits.no_parallel_update()

    def wait(self, seconds: float) -> Receipt:
        firmware = self._open()
        return firmware.wait(firmware.last_op_id + 1, seconds)

    def time_ns(self) -> int:
        return self._firmware.chip.now_ns

    def safe_state(self) -> None:
        """A twin has no lines to ground."""

    def memory(self) -> bytes:
        return chipfile.dump(self._open(), self._identity)

    def close(self) -> None:
        if self._file is not None and not self._closed:
            self._file.save(self._firmware, self._identity)
            self._file.release()
        self._closed = True

    def _open(self) -> Firmware:
        if self._closed:
            raise TesterError(f"tester of chip {self._identity.chip} is closed; open it again")
        return self._firmware
