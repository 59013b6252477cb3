"""What studies found is told in one line each, with how much it rests on; figures show it as it is."""

import json
import re
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from click.testing import CliRunner, Result

from hil.cli import main
from hil.data.run import Run
from hil.measured import Reads
from hil.protocols.errors import InputError
from hil.report import write_report
from hil.studies import STUDIES
from hil.study_data import Rows, reads_of, rows_of
from hil.study_figures import pictures_of
from hil.study_found import cycles, drift, endurance, failed, found
from hil.study_plots import Axis, Band, band_figure, histogram_figure, map_figure

CHIP = "twin:pcm-analog?arrays=1&rows=32&columns=32"


def hil(*arguments: str) -> Result:
    return CliRunner().invoke(main, arguments)


def line(path: Path, study: str) -> str:
    with Run.open(path) as run:
        return found(run, study)


def numbers(text: str) -> list[float]:
    return [float(number.replace(",", "")) for number in re.findall(r"-?\d[\d,]*(?:\.\d+)?(?:e-?\d+)?", text)]


def test_the_line_on_a_staircase_is_its_last_step(studied: Callable[..., Path]) -> None:
    path = studied("staircase", reads=5, pulses=3)
    with Run.open(path) as run:
        last = reads_of(run, rows_of(run, "staircase")).mean[-1] * 1e6
    assert line(path, "staircase") == f"{last.mean():.2f} +- {last.std():.2f} uS after 3 pulses"
    assert line(studied("staircase", reads=5, pulses=1), "staircase").endswith("uS after 1 pulse")


def test_the_line_on_readings_beyond_the_range_says_how_many(studied: Callable[..., Path]) -> None:
    text = line(studied("staircase", "read_span=6e-6&read_floor=0", reads=5, pulses=10), "staircase")
    assert re.search(
        r" after 10 pulses; [\d,]+ of 56,320 readings of the staircase study \(\d+\.\d%\) met an end", text
    )


def test_the_line_on_read_noise_has_level_and_noise(studied: Callable[..., Path]) -> None:
    level, noise = numbers(line(studied("read-noise", reads=30), "read-noise"))
    assert level == pytest.approx(0.1, abs=0.05)
    assert noise == pytest.approx(0.133, abs=0.02)
    assert line(studied("read-noise", reads=1), "read-noise").endswith("one read tells no noise")


def test_the_line_on_resets_has_mean_spread_and_how_many(studied: Callable[..., Path]) -> None:
    mean, spread, count, most = numbers(line(studied("reset", cycles=3), "reset"))
    assert mean == pytest.approx(0.1, abs=0.01)
    assert count == 3
    assert 0 < spread < most


def test_the_line_on_drift_says_of_how_many_cells(studied: Callable[..., Path]) -> None:
    nu, spread, cells, all_cells = numbers(line(studied("drift", "nu=0.05&nu_spread=0.3"), "drift"))
    assert nu == pytest.approx(0.05, abs=0.003)
    assert spread == pytest.approx(0.015, rel=0.3)
    assert 900 < cells < all_cells == 1024


def test_drift_of_few_cells_is_said_to_be_that(studied: Callable[..., Path], tmp_path: Path) -> None:
    path = studied("drift", "nu=0.6")
    said = line(path, "drift")
    assert "only these stay above 0.5 uS, fewer than half)" in said
    _, _, cells, all_cells = numbers(said)[:4]
    assert 0 < cells < all_cells / 2
    write_report([path], tmp_path / "page.html")
    assert "fewer than half" in (tmp_path / "page.html").read_text()


def reads_at(levels: list[list[float]], count: int = 1) -> Reads:
    mean = np.array(levels) * 1e-6
    return Reads(count, mean, np.full(mean.shape, np.nan), mean, np.geomspace(1, 10, len(mean)), 1e-7)


def rows_at(pulses: list[int], cycle: list[int]) -> Rows:
    return Rows(**dict.fromkeys(Rows.__dataclass_fields__, np.array(cycle)) | {"pulses": np.array(pulses)})


def test_no_exponent_is_made_up() -> None:
    nothing = rows_at([-1, -1], [1, 1])
    assert drift(nothing, reads_at([[0.1, 0.2], [0.1, 0.2]])) == (
        "no drift exponent: none of 2 cells stays above 0.5 uS"
    )
    assert drift(nothing, reads_at([[5.0, 6.0]])) == "no drift exponent: it takes reads at two times"


def test_a_cell_that_pulses_moved_and_no_longer_move_has_failed() -> None:
    low = np.array([[0.1, 0.1, 0.1, 9.0], [0.1, 9.0, 0.1, 9.0]]) * 1e-6
    high = np.array([[8.0, 9.0, 8.0, 9.0], [8.0, 9.0, 0.2, 9.0]]) * 1e-6
    assert failed(low, high) == 2  # stuck high, and low; the last was stuck before


def test_endurance_tells_the_first_and_the_last_whole_cycle() -> None:
    rows = rows_at([0, 5, 0, 5, 0], [1, 1, 10, 10, 20])
    reads = reads_at([[0.1, 0.1], [8.0, 6.0], [0.2, 0.2], [7.0, 7.0], [0.3, 0.3]])
    assert cycles(rows, reads)[0].tolist() == [1, 10]
    assert endurance(rows, reads) == (
        "cycle 1 and cycle 10: median after SET 7.00 uS, then 7.00 uS, after RESET 0.10 uS, then 0.20 uS; "
        "0 of 2 cells failed"
    )
    with pytest.raises(InputError, match="no cycle of the endurance study is whole yet"):
        endurance(rows_at([0], [1]), reads_at([[0.1, 0.1]]))


def test_the_line_on_a_map_tells_persistent_spread_from_that_of_cycles(studied: Callable[..., Path]) -> None:
    mean, persistent, cycle = numbers(line(studied("map", "step_spread=0.2", cycles=8), "map"))
    assert mean == pytest.approx(7.8, abs=0.3)
    assert cycle == pytest.approx(2.47, rel=0.15)
    assert 0.8 < persistent < 1.7


def test_the_line_on_products_has_gain_offset_and_deviation(studied: Callable[..., Path]) -> None:
    gain, offset, largest = numbers(line(studied("linearity", cells="0:0-7:0-15"), "linearity"))
    assert gain == pytest.approx(1, abs=0.02)
    assert abs(offset) < 2
    assert 0 < largest < 20
    said = line(studied("linearity", "mvm=none", cells="0:0-7:0-15"), "linearity")
    assert said.startswith("the tester does not multiply; mean of RESET cells 0.1")


def test_the_line_on_stuck_cells_counts_them(studied: Callable[..., Path]) -> None:
    said = line(studied("stuck", "stuck_fraction=0.05"), "stuck")
    stuck, cells, percent = numbers(said)
    assert cells == 1024
    assert percent == pytest.approx(stuck / 10.24, abs=0.05)


def test_the_command_prints_what_it_found_and_info_tells_it_again(tmp_path: Path, monkeypatch: Any) -> None:
    monkeypatch.chdir(tmp_path)
    options = [item for name in STUDIES for item in ("--study", name)] + ["--reads", "3", "--cycles", "3", "--pulses=4"]
    command = ["characterize", CHIP, *options, "--cells", "0:0-7:0-7", "--out", "run.h5", "--overwrite"]
    shown, lines = hil(*command).stdout, json.loads(hil(*command, "--json").stdout)["found"]
    assert list(lines) == list(STUDIES)
    told = hil("info", "run.h5")
    assert json.loads(hil("info", "run.h5", "--json").stdout)["found"] == lines
    for name, text in lines.items():
        assert text.isascii()
        assert f"{name}: {text}\n" in shown
        assert f"{name}: {text}\n" in told.stdout


def test_a_study_that_found_nothing_yet_says_why(studied: Callable[..., Path], monkeypatch: Any) -> None:
    monkeypatch.setattr("hil.desk.Desk.measure", lambda *_, **__: None)
    found = json.loads(hil("info", str(studied("drift")), "--json").stdout)["found"]
    assert "holds no measurement of this study yet" in found["drift"]


def test_a_linearity_study_without_a_product_yet_says_so_and_goes_on(tmp_path: Path, monkeypatch: Any) -> None:
    def interrupt(display: Any, done: int, total: int, what: str) -> None:
        if what == "linearity: reading":
            signal.raise_signal(signal.SIGINT)

    monkeypatch.chdir(tmp_path)
    says = "linearity: run.h5 holds no product of its linearity study yet: finish it with hil resume run.h5\n"
    with monkeypatch.context() as patch:
        patch.setattr("hil.display.Display.steps", interrupt)
        command = ["characterize", CHIP, "--study", "linearity", "--reads", "1", "--cells", "0:0-7:0-7"]
        cut = hil(*command, "--out", "run.h5")
    assert (cut.exit_code, says in cut.stdout) == (130, True)
    assert says in hil("info", "run.h5").stdout
    assert hil("report", "run.h5", "--out", "page.html").exit_code == 0
    page = Path("page.html").read_text()
    assert "holds no product of its linearity study yet" in page
    assert "does not multiply" not in page
    assert hil("resume", "run.h5").exit_code == 0
    assert line(Path("run.h5"), "linearity").startswith("gain ")


def test_a_warning_that_was_told_before_is_not_told_again(tmp_path: Path) -> None:
    command = ["characterize", f"{CHIP}&mvm=none", "--study", "linearity", "--cells", "0:0-3:0-3"]
    shown = hil(*command, "--out", str(tmp_path / "a.h5"))
    assert shown.stderr.count("does not multiply") == 1
    quiet = hil(*command, "--out", str(tmp_path / "b.h5"), "--json")
    assert quiet.stderr.count("does not multiply") == 1
    write_report([tmp_path / "a.h5"], tmp_path / "page.html")
    page = (tmp_path / "page.html").read_text()
    assert "Reads of RESET cells: their offset" in page
    assert "Products with one driven line" not in page


@pytest.mark.parametrize("log", [False, True])
@pytest.mark.parametrize("last", [1, 2, 5])
def test_pulses_and_cycles_have_whole_ticks(log: bool, last: int) -> None:
    at = np.arange(1.0, last + 1)
    band = Band("cells", at, at, at, at)
    (axes,) = band_figure(Axis("cycles", log, whole=True), Axis("y"), [band], [], "").axes
    ticks = axes.get_xticks()
    assert len(ticks) > 0
    assert not (ticks % 1).any()


def test_bins_of_readings_take_equally_many_codes(studied: Callable[..., Path], monkeypatch: Any) -> None:
    seen: list[Any] = []

    def keeping(x: Any, values: Any, edges: Any, source: str) -> Any:
        seen.append((values, edges))
        return histogram_figure(x, values, edges, source)

    monkeypatch.setattr("hil.study_figures.histogram_figure", keeping)
    with Run.open(studied("staircase", reads=2, pulses=4)) as run:
        pictures_of(run, "staircase")
    (values, edges), *_ = seen
    codes = np.arange(edges[0] + 0.025, edges[-1], 0.05)  # means of two reads lie half a code of 0.1 uS apart
    assert len(set(np.histogram(codes, edges)[0])) == 1
    for levels in values.values():
        assert np.histogram(levels, edges)[0].sum() == levels.size


def test_few_cells_far_apart_have_markers_and_a_scale() -> None:
    image = np.full((300, 300), np.nan)
    image[0, 0] = image[200, 299] = 5.0
    axes, scale = map_figure(image, (-0.5, 299.5, 299.5, -0.5), "conductance", "").axes
    offsets = np.asarray(axes.collections[0].get_offsets())
    assert offsets.tolist() == [[0.0, 0.0], [299.0, 200.0]]
    assert np.ptp(scale.get_ylim()) == pytest.approx(1)
