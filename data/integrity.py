"""Refuse an HDF5 file that is not what it says, before anything of it is believed or memory is taken for it."""

import math
from collections.abc import Iterator
from typing import Any

from h5py import h5d, h5g, h5l, h5o, h5t

from hil.data.column_reader import data_errors

LARGEST_CHUNK = 2**27
"""Bytes of a chunk before compression, at most: HDF5 takes that much memory for it."""

TEXT_SIZE = 16
"""Bytes that stand in a dataset for a text, which is kept elsewhere in the file."""

TYPES = (h5t.INTEGER, h5t.FLOAT, h5t.STRING, h5t.ENUM)
LAYOUTS = (h5d.COMPACT, h5d.CONTIGUOUS, h5d.CHUNKED)  # not virtual: that is made of other files


def check_file(file: Any) -> None:
    """Check all groups and datasets of an h5py.File. Raises DataError where one is damaged or lies elsewhere.

    Links are hard and make a tree: none leads out of the file or back. Datasets hold numbers or text, lie in the file
    and have all the values that their shapes promise.
    """
    for name, dataset in _datasets(file):
        with data_errors(file.filename, name):
            _check_dataset(dataset, file.id.get_filesize())


def _datasets(file: Any) -> Iterator[tuple[str, h5d.DatasetID]]:
    """The datasets by their names."""
    found: list[tuple[str, Any]] = [("", file.id)]
    known = {h5o.get_info(file.id).addr}
    while found:
        name, group = found.pop()
        with data_errors(file.filename, name or "/"):
            members = [(f"{name}/{link.decode(errors='replace')}", _member(group, link)) for link in group]
            addresses = [h5o.get_info(member).addr for _, member in members]
            if known & set(addresses) or len(set(addresses)) < len(addresses):
                raise ValueError("an object has two names")
        known.update(addresses)
        found += [(name, member) for name, member in members if isinstance(member, h5g.GroupID)]
        yield from ((name, member) for name, member in members if isinstance(member, h5d.DatasetID))


def _member(group: Any, link: bytes) -> Any:
    if group.links.get_info(link).type != h5l.TYPE_HARD:
        raise ValueError(f"{link.decode(errors='replace')} is a link to elsewhere")
    return h5o.open(group, link)


def _check_dataset(dataset: h5d.DatasetID, file_size: int) -> None:
    """Raise ValueError where something is wrong."""
    plist, kind = dataset.get_create_plist(), dataset.get_type()
    layout = plist.get_layout()
    if layout not in LAYOUTS or plist.get_external_count():
        raise ValueError("its values lie in another file")
    if kind.get_class() not in TYPES:
        raise ValueError("neither numbers nor text")
    shape = dataset.shape
    if shape is None:
        raise ValueError("it has no values")
    item_size = TEXT_SIZE if kind.get_class() == h5t.STRING and kind.is_variable_str() else kind.get_size()
    size = math.prod(shape) * item_size
    if layout == h5d.CHUNKED:
        _check_chunks(dataset, shape, plist.get_chunk(), item_size)
    elif dataset.get_storage_size() == 0 and size <= LARGEST_CHUNK:
        return  # never written: its values are zero
    elif size != dataset.get_storage_size() or size > file_size:
        raise ValueError(f"{size} bytes are missing: its shape is {shape}")


def _check_chunks(dataset: h5d.DatasetID, shape: tuple[int, ...], chunk: tuple[int, ...], item_size: int) -> None:
    if math.prod(chunk) * item_size > LARGEST_CHUNK:
        raise ValueError(f"its chunks of {chunk} are larger than {LARGEST_CHUNK} bytes")
    chunks = math.prod(-(-length // step) for length, step in zip(shape, chunk, strict=True))
    if chunks != dataset.get_num_chunks():
        raise ValueError(f"it has {dataset.get_num_chunks()} chunks of {chunk}, its shape {shape} needs {chunks}")
