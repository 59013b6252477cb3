import gzip
import hashlib
import struct
import time
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pytest

from hil.data.datasets import IDX_FILES, DataSet, hold_out, load
from hil.protocols.errors import DataError, InputError

Bytes = npt.NDArray[np.uint8]
TRAIN_IMAGES, TRAIN_LABELS, TEST_IMAGES, TEST_LABELS = IDX_FILES


def write_idx(path: Path, values: Bytes) -> None:
    content = bytes([0, 0, 8, values.ndim]) + struct.pack(f">{values.ndim}I", *values.shape) + values.tobytes()
    path.write_bytes(gzip.compress(content) if path.suffix == ".gz" else content)


def small_files() -> dict[str, Bytes]:
    rng = np.random.default_rng(1)
    return {
        TRAIN_IMAGES: rng.integers(0, 256, (6, 3, 2), np.uint8),
        TRAIN_LABELS: np.array([0, 1, 2, 0, 1, 2], np.uint8),
        TEST_IMAGES: rng.integers(0, 256, (2, 3, 2), np.uint8),
        TEST_LABELS: np.array([1, 0], np.uint8),
    }


def write_set(folder: Path, files: dict[str, Bytes], suffix: str = "") -> None:
    folder.mkdir()
    for name, values in files.items():
        write_idx(folder / f"{name}{suffix}", values)


def digest(*arrays: npt.NDArray[np.generic]) -> str:
    return hashlib.sha256(b"".join(array.tobytes() for array in arrays)).hexdigest()


@pytest.fixture(scope="module")
def digits() -> DataSet:
    return load("digits", None)


@pytest.mark.parametrize("suffix", ["", ".gz"])
def test_a_folder_of_four_idx_files_is_a_data_set_of_its_name(tmp_path: Path, suffix: str) -> None:
    files = small_files()
    write_set(tmp_path / "fashion-mnist", files, suffix)
    data = load("fashion-mnist", tmp_path)
    assert (data.name, data.classes) == ("fashion-mnist", 3)
    assert data.train_images.dtype == data.test_images.dtype == np.float32
    assert data.train_labels.dtype == data.test_labels.dtype == np.int64
    np.testing.assert_array_equal(data.train_images, files[TRAIN_IMAGES].reshape(6, 6) / np.float32(255))
    np.testing.assert_array_equal(data.test_images, files[TEST_IMAGES].reshape(2, 6) / np.float32(255))
    assert data.train_labels.tolist() == [0, 1, 2, 0, 1, 2]
    assert data.test_labels.tolist() == [1, 0]


def test_plain_and_gzipped_files_may_be_mixed(tmp_path: Path) -> None:
    write_set(tmp_path / "small", small_files())
    write_idx(tmp_path / "small" / f"{TEST_LABELS}.gz", small_files()[TEST_LABELS])
    (tmp_path / "small" / TEST_LABELS).unlink()
    assert load("small", tmp_path).test_labels.tolist() == [1, 0]


def test_black_and_white_become_0_and_1(tmp_path: Path) -> None:
    files = small_files() | {TEST_IMAGES: np.array([[[0, 255]] * 3] * 2, np.uint8)}
    write_set(tmp_path / "small", files)
    assert load("small", tmp_path).test_images.tolist() == [[0.0, 1.0] * 3] * 2


@pytest.mark.parametrize(
    ("file", "values", "message"),
    [
        (TRAIN_LABELS, np.array([0, 1, 2], np.uint8), "6 images, but 3 labels in train-labels-idx1-ubyte"),
        (TEST_LABELS, np.array([0, 1, 2], np.uint8), "2 images, but 3 labels in t10k-labels-idx1-ubyte"),
        (TEST_IMAGES, np.zeros((2, 2, 3), np.uint8), r"images of \(2, 3\) pixels, .* training have \(3, 2\)"),
        (TRAIN_LABELS, np.zeros(6, np.uint8), "all labels are 0, expected two classes or more"),
        (TEST_LABELS, np.array([0, 3], np.uint8), "label 3, but the training labels end at 2"),
        (TEST_IMAGES, np.array([1, 0], np.uint8), "t10k-images-idx3-ubyte: 1 dimensions, expected 3"),
        (TRAIN_LABELS, np.zeros((6, 3, 2), np.uint8), "train-labels-idx1-ubyte: 3 dimensions, expected 1"),
    ],
)
def test_files_that_do_not_fit_each_other_are_refused(tmp_path: Path, file: str, values: Bytes, message: str) -> None:
    write_set(tmp_path / "small", small_files() | {file: values})
    with pytest.raises(DataError, match=message):
        load("small", tmp_path)


def test_a_damaged_file_is_named(tmp_path: Path) -> None:
    write_set(tmp_path / "small", small_files())
    damaged = tmp_path / "small" / TEST_IMAGES
    damaged.write_bytes(damaged.read_bytes()[:-1])
    with pytest.raises(DataError, match=str(damaged)):
        load("small", tmp_path)


def test_files_named_mnist_must_be_the_original_ones(tmp_path: Path) -> None:
    write_set(tmp_path / "mnist", small_files())
    with pytest.raises(DataError, match=r"SHA-256 .* expected ba891046"):
        load("mnist", tmp_path)


@pytest.mark.parametrize("name", ["", ".", "..", "../mnist", "a/b", "/mnist", "a\\b"])
def test_a_name_that_is_not_a_plain_folder_name_is_refused(tmp_path: Path, name: str) -> None:
    with pytest.raises(DataError, match="no path"):
        load(name, tmp_path)


def test_a_folder_without_a_data_directory_is_refused() -> None:
    with pytest.raises(
        DataError, match="data set 'mnist' needs a data directory: give one \\(--data-dir\\), or take 'digits'"
    ):
        load("mnist", None)


def test_an_unknown_name_is_refused_with_the_names_there_are(tmp_path: Path) -> None:
    write_set(tmp_path / "small", small_files())
    write_set(tmp_path / "another", small_files(), ".gz")
    (tmp_path / "empty").mkdir()
    (tmp_path / "minst").write_text("a file, no folder")
    with pytest.raises(DataError, match=f"'minst': no folder .* in {tmp_path}; there is: digits, another, small"):
        load("minst", tmp_path)


@pytest.mark.parametrize("name", ["x" * 300, "with\0null"])
def test_a_name_that_no_folder_can_have_is_unknown(tmp_path: Path, name: str) -> None:
    with pytest.raises(DataError, match="no folder of this name"):
        load(name, tmp_path)


def test_a_missing_data_directory_is_named(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=f"{tmp_path / 'absent'} cannot be read"):
        load("mnist", tmp_path / "absent")


def test_missing_files_are_named(tmp_path: Path) -> None:
    write_set(tmp_path / "small", small_files())
    (tmp_path / "small" / TRAIN_LABELS).unlink()
    (tmp_path / "small" / TEST_LABELS).unlink()
    with pytest.raises(DataError, match=f"small lacks {TRAIN_LABELS}, {TEST_LABELS} "):
        load("small", tmp_path)


def test_digits_are_1797_images_from_0_to_1_split_by_class(digits: DataSet) -> None:
    assert (digits.name, digits.classes) == ("digits", 10)
    assert digits.train_images.shape == (1438, 64)
    assert digits.test_images.shape == (359, 64)
    assert digits.train_images.min() == 0
    assert digits.train_images.max() == 1
    test_share = np.bincount(digits.test_labels) / np.bincount(np.append(digits.train_labels, digits.test_labels))
    np.testing.assert_allclose(test_share, 0.2, atol=0.003)


def test_digits_are_mixed_so_that_their_first_images_stand_for_all(digits: DataSet) -> None:
    assert len(set(digits.test_labels[:50])) == 10
    assert len(set(digits.train_labels[:50])) == 10


def test_no_digit_is_lost_or_in_both_parts(digits: DataSet) -> None:
    from sklearn.datasets import load_digits

    images = load_digits().data / np.float32(16)
    split = np.concatenate([digits.train_images, digits.test_images])
    assert sorted(map(tuple, split)) == sorted(map(tuple, images))


def test_the_split_of_digits_is_the_same_on_every_machine(digits: DataSet) -> None:
    found = digest(digits.train_images, digits.train_labels, digits.test_images, digits.test_labels)
    assert found == "37474f304a8f3174ea6471a0906ff8a9d0a432dd830f1f239d31779362348192"


def test_hold_out_moves_training_images_into_the_test_part(digits: DataSet) -> None:
    data = hold_out(digits, 200)
    assert (data.name, data.classes) == ("digits", 10)
    assert (len(data.train_images), len(data.test_images)) == (1238, 200)
    before = zip(map(tuple, digits.train_images), digits.train_labels, strict=True)
    after = [
        *zip(map(tuple, data.train_images), data.train_labels, strict=True),
        *zip(map(tuple, data.test_images), data.test_labels, strict=True),
    ]
    assert sorted(after) == sorted(before)


def test_hold_out_takes_the_same_images_each_time_and_more_for_a_larger_count(digits: DataSet) -> None:
    smaller, larger = hold_out(digits, 100), hold_out(digits, 200)
    np.testing.assert_array_equal(smaller.test_images, larger.test_images[:100])
    np.testing.assert_array_equal(smaller.train_images, hold_out(digits, 100).train_images)


@pytest.mark.parametrize("count", [-1, 0, 1438])
def test_hold_out_of_none_or_all_is_refused(digits: DataSet, count: int) -> None:
    with pytest.raises(InputError, match=f"cannot hold out {count} images of 'digits': .* hold out 1 to 1437"):
        hold_out(digits, count)


def test_mnist_is_read_whole_and_quickly(data_dir: Path) -> None:
    begin = time.perf_counter()
    data = load("mnist", data_dir)
    duration = time.perf_counter() - begin
    assert data.train_images.shape == (60_000, 784)
    assert data.test_images.shape == (10_000, 784)
    assert data.classes == 10
    assert data.train_labels[:10].tolist() == [5, 0, 4, 1, 9, 2, 1, 3, 1, 4]
    assert data.test_labels[:10].tolist() == [7, 2, 1, 0, 4, 1, 4, 9, 5, 9]
    assert data.train_images.mean() == pytest.approx(0.1307, abs=1e-4)  # the known mean of its pixels
    assert duration < 5  # s; alone on a machine it takes about 0.6
