"""Data sets of labelled images: scikit-learn's digits, built in, and folders of four IDX files such as MNIST.

Images are held as float32 (4 bytes per pixel: 220 MB for MNIST), so that a training loop takes them as they are.
"""

from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import numpy.typing as npt

from hil.data.idx import read_idx
from hil.protocols.errors import DataError

SPLIT_SEED = 20_260_101
"""Seed of the splits made here. Never the seed of a run, so that all runs train and test on the same images."""

DIGITS_TEST_SHARE = 1 / 5
"""Share of each class of the digits that is kept for testing."""

IDX_FILES = ("train-images-idx3-ubyte", "train-labels-idx1-ubyte", "t10k-images-idx3-ubyte", "t10k-labels-idx1-ubyte")

MNIST_SHA256 = {
    "train-images-idx3-ubyte": "ba891046e6505d7aadcbbe25680a0738ad16aec93bde7f9b65e87a2fc25776db",
    "train-labels-idx1-ubyte": "65a50cbbf4e906d70832878ad85ccda5333a97f0f4c3dd2ef09a8a9eef7101c5",
    "t10k-images-idx3-ubyte": "0fa7898d509279e482958e8ce81c8e77db3f2f8254e26661ceb7762c4d494ce7",
    "t10k-labels-idx1-ubyte": "ff7bcfd416de33731a308c3f266cc351222c34898ecbeaf847f06e48f7ec33f2",
}
"""Digests of the uncompressed original files."""

Images = npt.NDArray[np.float32]
Labels = npt.NDArray[np.int64]


@dataclass(frozen=True, eq=False)
class DataSet:
    """Labelled images, split into a training and a test part; a row of images is one image, row after row."""

    name: str
    train_images: Images
    """(train, features), from 0 to 1"""
    train_labels: Labels
    """(train,), from 0 to classes - 1"""
    test_images: Images
    """(test, features), from 0 to 1"""
    test_labels: Labels
    """(test,), from 0 to classes - 1"""
    classes: int


def load(name: str, data_dir: Path | None = None) -> DataSet:
    """Load `digits` (built in), or the data set in the folder `data_dir/name`, which holds the four files `IDX_FILES`.

    The files may be gzipped (`.gz`). Those of `mnist` must be the original ones, by their SHA-256.
    Raises DataError if there is no such data set, or if its files are damaged or do not fit each other.
    """
    if name == "digits":
        return _load_digits()
    paths = _find_files(name, data_dir)
    known = MNIST_SHA256 if name == "mnist" else {}
    contents = [read_idx(path, known.get(file)) for file, path in paths.items()]
    _check_fit(list(paths.values()), contents)
    train_images, train_labels, test_images, test_labels = contents
    return DataSet(
        name,
        scale(train_images, 255),
        train_labels.astype(np.int64),
        scale(test_images, 255),
        test_labels.astype(np.int64),
        classes=int(train_labels.max()) + 1,
    )


def hold_out(data: DataSet, count: int) -> DataSet:
    """Replace the test part by `count` images taken out of the training part, to choose settings without the test part.

    Which images are taken depends only on the size of the training part; a smaller count takes a subset of a larger.
    Raises DataError unless `count` is from 1 to the number of training images - 1.
    """
    available = len(data.train_labels)
    if not 1 <= count < available:
        raise DataError(
            f"cannot hold out {count} images of {data.name!r}: it has {available} for training; "
            f"hold out 1 to {available - 1}"
        )
    order = _fixed_permutation(available)
    held, kept = order[:count], np.sort(order[count:])
    return replace(
        data,
        train_images=data.train_images[kept],
        train_labels=data.train_labels[kept],
        test_images=data.train_images[held],
        test_labels=data.train_labels[held],
    )


def _load_digits() -> DataSet:
    from sklearn.datasets import load_digits  # takes a second, so only where it is used

    images, labels = load_digits(return_X_y=True)
    order = _fixed_permutation(len(labels))
    is_test = np.zeros(len(labels), dtype=bool)
    for digit in range(10):
        members = order[labels[order] == digit]
        is_test[members[: round(len(members) * DIGITS_TEST_SHARE)]] = True
    train, test = (np.flatnonzero(part) for part in (~is_test, is_test))
    train, test = (part[_fixed_permutation(len(part))] for part in (train, test))  # neither by class nor by writer
    return DataSet(
        "digits",
        scale(images[train], 16),
        labels[train].astype(np.int64),
        scale(images[test], 16),
        labels[test].astype(np.int64),
        classes=10,
    )


def _fixed_permutation(count: int) -> npt.NDArray[np.int64]:
    """The same on every machine: numpy promises to keep the raw stream of PCG64, not what a Generator makes of it."""
    return np.argsort(np.random.PCG64(SPLIT_SEED).random_raw(count), kind="stable")


def scale(images: npt.NDArray[np.uint8] | npt.NDArray[np.float64], peak: int) -> Images:
    """Images (n, ...) with values from 0 to `peak`, as rows (n, features) from 0 to 1."""
    scaled = images.reshape(len(images), -1).astype(np.float32)
    scaled /= peak
    return scaled


def _find_files(name: str, data_dir: Path | None) -> dict[str, Path]:
    """The four files of a data set, each plain if there is a plain one, else gzipped."""
    if name in ("", ".", "..") or "/" in name or "\\" in name:
        raise DataError(f"data set {name!r}: give 'digits' or the name of a folder in the data directory, no path")
    if data_dir is None:
        raise DataError(
            f"data set {name!r} needs a data directory: give one (--data-dir), or take 'digits', which is built in"
        )
    try:
        folder = _find_folder(name, data_dir)
        missing = _missing(folder)
    except OSError as error:
        raise DataError(
            f"data set {name!r}: {error.filename} cannot be read ({error.strerror}): "
            "give a data directory that can, or take 'digits', which is built in"
        ) from error
    if missing:
        raise DataError(
            f"data set {name!r}: {folder} lacks {', '.join(missing)} (or the same with .gz): download them into it"
        )
    return {file: folder / file if (folder / file).is_file() else folder / f"{file}.gz" for file in IDX_FILES}


def _find_folder(name: str, data_dir: Path) -> Path:
    folders = {entry.name: entry for entry in sorted(data_dir.iterdir()) if entry.is_dir()}
    if name not in folders:
        usable = ["digits", *(entry.name for entry in folders.values() if not _missing(entry))]
        raise DataError(
            f"data set {name!r}: no folder of this name in {data_dir}; there is: {', '.join(usable)}. "
            f"Take one of these, or add the folder with the files {', '.join(IDX_FILES)}, gzipped or not"
        )
    return folders[name]


def _missing(folder: Path) -> list[str]:
    return [file for file in IDX_FILES if not ((folder / file).is_file() or (folder / f"{file}.gz").is_file())]


def _check_fit(paths: list[Path], contents: list[npt.NDArray[np.uint8]]) -> None:
    """Raise DataError unless the four contents, in the order of IDX_FILES, make one data set."""
    for path, values, dimensions in zip(paths, contents, (3, 1, 3, 1), strict=True):
        if values.ndim != dimensions:
            raise DataError(f"{path}: {values.ndim} dimensions, expected {dimensions}: is it another file, renamed?")
    for images, labels in ((0, 1), (2, 3)):
        if len(contents[images]) != len(contents[labels]):
            raise DataError(
                f"{paths[images]}: {len(contents[images])} images, but {len(contents[labels])} labels in "
                f"{paths[labels].name}: they must be as many; take both from one data set"
            )
    train_images, train_labels, test_images, test_labels = contents
    if train_images.shape[1:] != test_images.shape[1:]:
        raise DataError(
            f"{paths[2]}: images of {test_images.shape[1:]} pixels, but those for training have "
            f"{train_images.shape[1:]}: take both from one data set"
        )
    if train_labels.max() < 1:
        raise DataError(f"{paths[1]}: all labels are 0, expected two classes or more: use other data")
    if test_labels.max() > train_labels.max():
        raise DataError(
            f"{paths[3]}: label {test_labels.max()}, but the training labels end at {train_labels.max()}: "
            "take both from one data set"
        )
