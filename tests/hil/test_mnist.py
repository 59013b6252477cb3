"""The experiment of the paper on real images, shortened; and what is wrong with damaged files."""

import gzip
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner

from hil.cli import main
from hil.config import load_settings
from hil.data.datasets import IDX_FILES
from hil.train import Job, Result, train


@pytest.fixture
def shortened(data_dir: Path, tmp_path: Path, observer: Any) -> Callable[..., Result]:
    """Trains `mnist-mlp` for one epoch of 2,000 images."""

    def run(**changes: object) -> Result:
        short: dict[str, object] = {"train_images": 2000, "epochs": 1}
        settings, text = load_settings("mnist-mlp", [f"{key}={value}" for key, value in (short | changes).items()])
        return train(Job("mnist-mlp", settings, text, tmp_path / "run.h5", data_dir), observer)

    return run


@pytest.mark.parametrize("chip", ["pcm-analog", "pcm-90nm"])
def test_the_network_of_the_paper_learns_on_both_chips(chip: str, shortened: Callable[..., Result]) -> None:
    result = shortened(tester=f"twin:{chip}", reread_images=500)  # 10,000 would be never
    assert (result.weights, result.devices) == (198_760, 397_520)
    assert result.reset_pulses == 397_520 + 2 * result.refreshes
    assert result.test_accuracy > 0.55
    assert result.findings == ()


def test_its_baseline_learns_too(shortened: Callable[..., Result]) -> None:
    result = shortened(system="float")
    assert (result.weights, result.devices) == (198_760, 0)
    assert result.test_accuracy > 0.7


class TestDamagedFiles:
    @pytest.fixture
    def folder(self, data_dir: Path, tmp_path: Path) -> Path:
        """A data directory whose `mnist` is made of links, to be replaced by something else."""
        folder = tmp_path / "data" / "mnist"
        folder.mkdir(parents=True)
        for source in (data_dir / "mnist").iterdir():
            (folder / source.name).symlink_to(source)
        return folder

    @staticmethod
    def content(folder: Path, number: int) -> tuple[Path, bytes]:
        """A data file, plain, in the place of a link."""
        path = folder / IDX_FILES[number]
        packed = path.with_name(f"{path.name}.gz")
        data = path.read_bytes() if path.exists() else gzip.decompress(packed.read_bytes())
        for old in (path, packed):
            old.unlink(missing_ok=True)
        return path, data

    @staticmethod
    def refused(folder: Path, *options: str) -> str:
        """What the command line says of it, after checking that it leaves everything as it was."""
        out = folder.parent / "run.h5"
        out.write_bytes(b"what was there")
        arguments = ["train", "mnist-mlp", "--data-dir", str(folder.parent), "--out", str(out), "--overwrite", *options]
        result = CliRunner().invoke(main, arguments)
        assert (result.exit_code, result.stdout, result.stderr.count("\n")) == (2, "", 1), result.output
        assert out.read_bytes() == b"what was there"
        return result.stderr

    @pytest.mark.parametrize("number", range(4))
    def test_a_missing_file_is_named(self, number: int, folder: Path) -> None:
        path, _ = self.content(folder, number)
        assert f"lacks {path.name}" in self.refused(folder)

    @pytest.mark.parametrize("left", [0, 3, 10, 1000])
    def test_a_truncated_file_is_told_by_its_size(self, left: int, folder: Path) -> None:
        path, data = self.content(folder, 2)
        path.write_bytes(data[:left])
        assert str(path) in self.refused(folder)

    def test_a_truncated_gzip_file_is_told(self, folder: Path) -> None:
        path, data = self.content(folder, 3)
        packed = path.with_name(f"{path.name}.gz")
        packed.write_bytes(gzip.compress(data)[:-100])
        assert "truncated" in self.refused(folder)

    def test_a_changed_byte_is_told_by_the_digest(self, folder: Path) -> None:
        path, data = self.content(folder, 3)
        path.write_bytes(data[:5000] + bytes([data[5000] ^ 1]) + data[5001:])
        assert "SHA-256" in self.refused(folder)

    def test_under_another_name_any_four_files_are_a_data_set(self, folder: Path) -> None:
        path, data = self.content(folder, 3)
        path.write_bytes(data[:5000] + bytes([data[5000] ^ 1]) + data[5001:])
        folder.rename(folder.with_name("mine"))
        options = ["--set", "data=mine", "--set", "train_images=50", "--epochs", "1", "--set", "system=float"]
        out = folder.parent / "run.h5"
        arguments = ["train", "mnist-mlp", "--data-dir", str(folder.parent), "--out", str(out), "--json", *options]
        result = CliRunner().invoke(main, arguments)
        assert result.exit_code == 0, result.output
        assert json.loads(result.stdout)["images"] == 50
