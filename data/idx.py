"""IDX files, the format of MNIST and its successors: a magic number, the sizes, then one unsigned byte per value.

Format: Y. LeCun, C. Cortes, C. J. C. Burges, "The MNIST database of handwritten digits", section "File formats".
"""

import gzip
import hashlib
import io
import math
import struct
import zlib
from pathlib import Path

import numpy as np
import numpy.typing as npt

from hil.protocols.errors import DataError

UNSIGNED_BYTE = 0x08
"""Type code of the only value type read here; the format also has signed bytes, integers and floats."""

MAX_DIMENSIONS = 3
"""Labels have one dimension, grey images three."""

MAX_BYTES = 2**30
"""A larger content is refused before any memory is taken: twice the largest known set in this format (EMNIST)."""


def read_idx(path: Path, sha256: str | None = None) -> npt.NDArray[np.uint8]:
    """Read one IDX file, gzipped if its name ends in `.gz`, into a read-only array of the sizes its header gives.

    `sha256` (hexadecimal), if given, must be the digest of the uncompressed file.
    Raises DataError if the file cannot be read, is not IDX, or is shorter or longer than its header promises.
    """
    try:
        with gzip.open(path) if path.suffix == ".gz" else path.open("rb") as file:
            header, sizes = _read_header(path, file)
            content = _read_content(path, file, sizes)
    except EOFError as error:
        raise DataError(f"{path}: the gzip data stop before their end: truncated; download the file again") from error
    except (gzip.BadGzipFile, zlib.error) as error:
        raise DataError(f"{path}: not intact gzip data ({error}): download the file again") from error
    except OSError as error:
        raise DataError(f"{path}: cannot be read ({error.strerror}): check the path and its permissions") from error
    if sha256 is not None:
        _check_sha256(path, header, content, sha256)
    return np.frombuffer(content, np.uint8).reshape(sizes)


def _read_header(path: Path, file: io.BufferedIOBase) -> tuple[bytes, tuple[int, ...]]:
    """The header as it stands in the file, and the sizes it gives, one per dimension."""
    magic = file.read(4)
    if len(magic) < 4:
        raise DataError(f"{path}: {len(magic)} bytes, too short for an IDX header: download the file again")
    if magic[:2] != b"\0\0" or magic[2] != UNSIGNED_BYTE or not 1 <= magic[3] <= MAX_DIMENSIONS:
        raise DataError(
            f"{path}: starts with {magic.hex(' ')}, expected 00 00 08 (unsigned bytes) and 01 to 0{MAX_DIMENSIONS} "
            f"(dimensions): not an IDX file of images or labels; a gzipped one must be named .gz"
        )
    packed = file.read(4 * magic[3])
    if len(packed) < 4 * magic[3]:
        raise DataError(f"{path}: ends within the sizes of its {magic[3]} dimensions: download the file again")
    sizes = struct.unpack(f">{magic[3]}I", packed)
    if not 1 <= math.prod(sizes) <= MAX_BYTES:
        raise DataError(
            f"{path}: header gives sizes {sizes}, {math.prod(sizes)} values, expected 1 to {MAX_BYTES}: "
            "the file is empty or damaged; download it again"
        )
    return magic + packed, sizes


def _read_content(path: Path, file: io.BufferedIOBase, sizes: tuple[int, ...]) -> bytes:
    expected = math.prod(sizes)
    content = file.read(expected + 1)  # one more shows trailing bytes, and has gzip check its CRC
    if len(content) != expected:
        found = f"only {len(content)}" if len(content) < expected else "more"
        raise DataError(
            f"{path}: header gives sizes {sizes}, {expected} values, but {found} follow: "
            "the file is damaged; download it again"
        )
    return content


def _check_sha256(path: Path, header: bytes, content: bytes, expected: str) -> None:
    digest = hashlib.sha256(header)
    digest.update(content)
    if digest.hexdigest() != expected:
        raise DataError(
            f"{path}: SHA-256 of the uncompressed file is {digest.hexdigest()}, expected {expected}: "
            "not the published file; download it again, or keep other data in a folder of another name"
        )
