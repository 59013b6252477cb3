import gzip
import hashlib
import struct
import tracemalloc
from pathlib import Path

import numpy as np
import pytest

from hil.data.idx import MAX_BYTES, read_idx
from hil.protocols.errors import DataError

IMAGES = np.arange(2 * 3 * 4, dtype=np.uint8).reshape(2, 3, 4)
CONTENT = bytes([0, 0, 8, 3]) + struct.pack(">3I", 2, 3, 4) + IMAGES.tobytes()


def header(*sizes: int) -> bytes:
    return bytes([0, 0, 8, len(sizes)]) + struct.pack(f">{len(sizes)}I", *sizes)


@pytest.fixture(params=["images", "images.gz"])
def path(request: pytest.FixtureRequest, tmp_path: Path) -> Path:
    return tmp_path / str(request.param)


def write(path: Path, content: bytes) -> None:
    path.write_bytes(gzip.compress(content) if path.suffix == ".gz" else content)


def test_plain_and_gzipped_files_give_the_array_of_the_header_sizes(path: Path) -> None:
    write(path, CONTENT)
    values = read_idx(path)
    assert values.dtype == np.uint8
    np.testing.assert_array_equal(values, IMAGES)


def test_labels_have_one_dimension(path: Path) -> None:
    write(path, header(3) + b"\5\0\x09")
    assert read_idx(path).tolist() == [5, 0, 9]


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "0 bytes, too short"),
        (CONTENT[:3], "3 bytes, too short"),
        (b"PK\3\4" + CONTENT[4:], "starts with 50 4b 03 04, expected 00 00 08"),
        (b"\0\0\x0d" + CONTENT[3:], "starts with 00 00 0d 03"),
        (b"\0\0\x08\0" + CONTENT[4:], "starts with 00 00 08 00"),
        (b"\0\0\x08\4" + CONTENT[4:], "starts with 00 00 08 04"),
        (CONTENT[:15], "ends within the sizes of its 3 dimensions"),
        (header(0, 28, 28), r"sizes \(0, 28, 28\), 0 values, expected 1 to"),
        (CONTENT[:-1], r"sizes \(2, 3, 4\), 24 values, but only 23 follow"),
        (CONTENT[:16], "24 values, but only 0 follow"),
        (CONTENT + b"\0", "24 values, but more follow"),
    ],
)
def test_content_that_is_not_the_promised_idx_is_refused_by_path(path: Path, content: bytes, message: str) -> None:
    write(path, content)
    with pytest.raises(DataError, match=message) as caught:
        read_idx(path)
    assert str(path) in str(caught.value)


@pytest.mark.parametrize("sizes", [(2**32 - 1,) * 3, (MAX_BYTES + 1,)])
def test_absurd_sizes_are_refused_before_memory_is_taken(path: Path, sizes: tuple[int, ...]) -> None:
    write(path, header(*sizes) + b"\0" * 10)
    tracemalloc.start()
    with pytest.raises(DataError, match=f"expected 1 to {MAX_BYTES}"):
        read_idx(path)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 2**20


def test_decompression_stops_one_byte_beyond_the_promised_size(tmp_path: Path) -> None:
    path = tmp_path / "images.gz"
    write(path, header(100) + bytes(50 * 2**20))
    tracemalloc.start()
    with pytest.raises(DataError, match="100 values, but more follow"):
        read_idx(path)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 2**20


def test_a_gzip_file_cut_at_any_byte_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "images.gz"
    whole = gzip.compress(CONTENT)
    for length in range(len(whole)):
        path.write_bytes(whole[:length])
        with pytest.raises(DataError, match="download the file again"):
            read_idx(path)


def test_a_flipped_bit_of_a_gzip_file_is_refused_or_harmless(tmp_path: Path) -> None:
    path = tmp_path / "images.gz"
    whole = gzip.compress(CONTENT)
    refused = 0
    for bit in range(8 * len(whole)):
        flipped = int.from_bytes(whole, "little") ^ 1 << bit
        path.write_bytes(flipped.to_bytes(len(whole), "little"))
        try:
            values = read_idx(path)
        except DataError:
            refused += 1
        else:  # a bit of the time stamp, or of the padding behind the data
            np.testing.assert_array_equal(values, IMAGES)
    assert refused > 6 * len(whole)


@pytest.mark.parametrize("content", [CONTENT, gzip.compress(CONTENT) + b"rubbish"])
def test_a_gz_name_with_content_that_is_not_gzip_is_refused(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "images.gz"
    path.write_bytes(content)
    with pytest.raises(DataError, match="not intact gzip data"):
        read_idx(path)


def test_gzip_content_under_a_plain_name_is_refused_with_the_remedy(tmp_path: Path) -> None:
    path = tmp_path / "images"
    path.write_bytes(gzip.compress(CONTENT))
    with pytest.raises(DataError, match=r"a gzipped one must be named \.gz"):
        read_idx(path)


def test_a_missing_file_and_a_folder_cannot_be_read(path: Path) -> None:
    with pytest.raises(DataError, match="No such file"):
        read_idx(path)
    path.mkdir()
    with pytest.raises(DataError, match="Is a directory"):
        read_idx(path)


def test_the_digest_is_that_of_the_uncompressed_file(path: Path) -> None:
    write(path, CONTENT)
    np.testing.assert_array_equal(read_idx(path, hashlib.sha256(CONTENT).hexdigest()), IMAGES)


def test_another_digest_is_refused_naming_both(path: Path) -> None:
    write(path, CONTENT)
    found, expected = hashlib.sha256(CONTENT).hexdigest(), hashlib.sha256(b"").hexdigest()
    with pytest.raises(DataError, match=f"{found}, expected {expected}"):
        read_idx(path, expected)
