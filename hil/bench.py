"""Choose a tester by its URI: the one place that knows all of them."""

import os
from importlib.metadata import entry_points
from pathlib import Path
from urllib.parse import parse_qsl

import numpy as np

from hil.data.replay import ReplayTester
from hil.instruments.batching import BatchingTester
from hil.instruments.resource import parse_address
from hil.instruments.tester import ArrayTester
from hil.instruments.wire import open_wire
from hil.mock_hw import chipfile, chiptoml
from hil.mock_hw.array import Chip
from hil.mock_hw.chips import changed, named_chip
from hil.mock_hw.firmware import Firmware
from hil.mock_hw.keeper import ChipFile
from hil.mock_hw.twin import TwinTester, identity_of
from hil.protocols.errors import HilError, InputError
from hil.protocols.messages import Identity

DRIVERS = "hil.testers"
"""Group of the entry points by which other packages add drivers: the scheme of their URIs, and what opens one."""
DEFAULT_CHIP = "pcm-analog"


def open_tester(uri: str = "twin:", seed: int | np.random.SeedSequence = 1) -> ArrayTester:
    """A tester that takes batches of any size.

    `twin:` or `twin:NAME` is a new software chip made with `seed`, and so is `twin:FILE.toml`, with parameters from a
    file (see `hil.mock_hw.chiptoml`); `twin:FILE.h5` is a chip that is kept in a file, which `twin:FILE.h5?chip=NAME`
    makes if it is not there. `?key=value&...` sets `seed` and parameters of a new chip, as in
    `twin:pcm-analog?drift=off&arrays=4`. `tcp://HOST:PORT`, `serial:///DEVICE` and VISA resource strings are testers on
    a wire: see `hil.instruments.resource`. `replay:RUN.h5` answers from the recording of a run. Other packages add
    schemes of their own. Raises `InputError` for what is unknown, `TesterError` where there is no tester.
    """
    return BatchingTester(connect(uri, seed))


def connect(uri: str, seed: int | np.random.SeedSequence) -> ArrayTester:
    """The tester itself, with its limit on batches; see `open_tester`."""
    scheme, colon, rest = uri.partition(":")
    if scheme == "replay" and rest:
        return ReplayTester.open(Path(rest))
    address = parse_address(uri)
    if address is not None:
        return open_wire(address)
    for entry in entry_points(group=DRIVERS, name=scheme):
        driver: ArrayTester = entry.load()(uri)
        return driver
    if scheme != "twin" or not colon:
        raise InputError(
            f"unknown tester {uri!r}; there are twin:NAME, twin:FILE.toml, twin:FILE.h5, tcp://HOST:PORT, "
            "serial:///DEVICE, VISA resource strings, replay:RUN.h5 and what other packages add"
        )
    firmware, identity, file = open_chip(uri, seed)
    return TwinTester(firmware, identity.model, identity.chip, file)


def open_chip(uri: str, seed: int | np.random.SeedSequence) -> tuple[Firmware, Identity, ChipFile | None]:
    """The chip that a `twin:` URI names, switched on, and the file that keeps it, if any: to be released at the end."""
    name, _, query = uri.partition(":")[2].partition("?")
    try:
        changes = dict(parse_qsl(query, keep_blank_values=True, strict_parsing=bool(query)))
    except ValueError as error:
        raise InputError(f"tester {uri!r}: after the question mark, key=value&key=value is expected") from error
    kept = kept_chip(uri)
    if kept is not None:
        return _kept_chip(kept, changes, seed)
    return *_new_chip(name or DEFAULT_CHIP, changes, seed), None


def revive(uri: str, memory: bytes) -> ArrayTester:
    """The twin that `uri` named, as it was when it gave `memory`; a kept chip goes on being kept in its file."""
    firmware, model, chip_id = chipfile.parse(memory)
    path = kept_chip(uri)
    return TwinTester(firmware, model, chip_id, None if path is None else _unchanged(path))


def _unchanged(path: Path) -> ChipFile:
    """The use of a chip's file, in which the chip is about to be replaced."""
    file = ChipFile(path)
    if file.size:
        file.release()
        raise InputError(f"the chip in {path} was served since, so its state cannot be taken back to that of the run")
    return file


def kept_chip(uri: str) -> Path | None:
    """The file in which the chip of a twin is kept, there or not; None for a tester that keeps none."""
    scheme, _, rest = uri.partition(":")
    name = rest.partition("?")[0]
    return Path(name) if scheme == "twin" and name.endswith(".h5") else None


def check_apart(uri: str, run: Path) -> None:
    """Raise `InputError` for a run file that would take the place of the tester's chip, or of the recording that is the
    tester.
    """
    scheme, _, rest = uri.partition(":")
    held, what = kept_chip(uri), "where the chip is kept"
    if scheme == "replay":
        held, what = Path(rest), "the recording that is replayed"
    if held is not None and held.resolve() == run.resolve():
        raise InputError(f"{run} is {what}: choose another name for the run file with --out")


def _kept_chip(
    path: Path, changes: dict[str, str], seed: int | np.random.SeedSequence
) -> tuple[Firmware, Identity, ChipFile]:
    if not os.path.isdir(path.parent) or not os.access(path.parent, os.W_OK):
        raise InputError(f"no folder {path.parent} that can be written, where the chip {path.name} is to be kept")
    if os.path.exists(path):
        if changes:
            raise InputError(
                f"{path} holds a chip already, so {', '.join(changes)} cannot be set; "
                "leave them away or name another file"
            )
    elif "chip" not in changes:
        raise InputError(f"no chip at {path}; twin:{path}?chip={DEFAULT_CHIP} makes a new one there")
    file = ChipFile(path)
    try:
        if changes and file.size:
            raise InputError(f"{path} is gone, and its journal is there: put the chip back, or remove the journal")
        return *(_new_chip(changes.pop("chip"), changes, seed) if changes else _loaded(file)), file
    except HilError:
        file.release()
        raise


def _loaded(file: ChipFile) -> tuple[Firmware, Identity]:
    firmware, model, chip = file.load()
    identity = identity_of(model, chip)
    if file.size:  # what a server that was killed has left
        file.save(firmware, identity)
    return firmware, identity


def _new_chip(name: str, changes: dict[str, str], seed: int | np.random.SeedSequence) -> tuple[Firmware, Identity]:
    if "seed" in changes:
        seed = _seed(changes.pop("seed"))
    sequence = seed if isinstance(seed, np.random.SeedSequence) else np.random.SeedSequence(seed)
    path = Path(name)
    if path.suffix == ".toml":
        chip, name = changed(chiptoml.load(path), changes), path.stem
    else:
        chip = named_chip(name, changes)
    return Firmware(Chip(chip, sequence)), identity_of(name, f"{name}-{sequence.generate_state(1)[0]:08x}")


def _seed(text: str) -> int:
    if not text.isdecimal():
        raise InputError(f"seed={text!r} of a tester: expected a whole number of at least 0")
    return int(text)
