"""The images of a run are in its file, without loss, or are known by their checksum."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from hil.config import Settings, load_settings
from hil.data.datasets import DataSet
from hil.data.run import Run
from hil.data.runfile import RunWriter
from hil.data.schema import Start
from hil.images import PARTS, chosen, keep, kept
from hil.protocols.errors import InputError


@pytest.fixture
def settings() -> Settings:
    return load_settings("digits", ["train_images=100", "validation_images=30"])[0]


def written(path: Path, start: Start, data: DataSet) -> Run:
    writer = RunWriter.create(path, start)
    keep(writer, data)
    writer.close("completed", {})
    return Run.open(path)


@pytest.mark.parametrize("levels", [16, 255, 1000])
def test_images_come_back_bit_for_bit(tmp_path: Path, start: Start, settings: Settings, levels: int) -> None:
    data = chosen(settings, None)
    grey = np.rint(data.train_images * levels).astype(np.float32)
    data = DataSet("digits", grey / np.float32(levels), data.train_labels, data.test_images, data.test_labels, 10)
    with written(tmp_path / "run.h5", start, data) as run:
        assert run.snapshot("data").arrays["train_images"].dtype == (np.uint8 if levels == 255 else np.float32)
        back = kept(run, settings, None)
        for part in PARTS:
            np.testing.assert_array_equal(getattr(back, part), getattr(data, part), strict=True)


def test_a_large_set_is_known_by_its_checksum(
    tmp_path: Path, start: Start, settings: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("hil.images.KEPT_BYTES", 1000)
    with written(tmp_path / "run.h5", start, chosen(settings, None)) as run:
        assert run.snapshot("data").arrays == {}
        assert kept(run, settings, None).train_images.shape == (100, 64)
        other = load_settings("digits", ["train_images=101", "validation_images=30"])[0]
        with pytest.raises(InputError, match=r"images of digits in None are not those of .*run\.h5"):
            kept(run, other, None)
        elsewhere: Any = settings.model_copy(update={"data": "mnist"})
        with pytest.raises(InputError, match="does not hold its data set mnist: say where it is with --data-dir"):
            kept(run, elsewhere, None)
