"""A report is one page that holds the numbers of its runs, loads nothing, and takes no text for HTML."""

import errno
import os
import re
import shutil
from collections.abc import Callable
from dataclasses import replace
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest

from hil.data.run import Run
from hil.data.runfile import RunWriter
from hil.data.schema import Start
from hil.protocols.errors import DataError, InputError, StorageError
from hil.protocols.messages import Identity, Operation, Receipt, Status, TesterKind
from hil.report import write_report
from hil.series import read_log
from hil.train import Job, train

HOSTILE = """<script>alert(1)</script> "><img src=x onerror='alert(2)'> & </td> {{ 7 * 7 }} $\\frac$"""
LOADS = {"src", "srcset", "href", "data", "action", "poster", "background", "style"}
TITLES = {"hardware": "HARDWARE DATA", "twin": "TWIN DATA", "replay": "REPLAYED DATA", "none": "NO TESTER"}


class Page(HTMLParser):
    """A page: its elements, its text and what it would load."""

    def __init__(self, path: Path) -> None:
        super().__init__()
        self.tags: list[str] = []
        self.loads: list[str] = []
        self.events: list[str] = []
        self.alts: list[str] = []
        self.text = self.style = ""
        self.source = path.read_text(encoding="utf-8")
        self.feed(self.source)
        self.close()

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        self.loads += [value or "" for name, value in attrs if name in LOADS]
        self.events += [name for name, _ in attrs if name.startswith("on")]
        self.alts += [value or "" for name, value in attrs if tag == "img" and name == "alt"]

    def handle_data(self, data: str) -> None:
        if self.tags[-1:] == ["style"] and not self.style:
            self.style = data
        else:
            self.text += data


@pytest.fixture
def page_of(tmp_path: Path) -> Callable[..., Page]:
    """The page on some run files."""

    def make(*runs: Path) -> Page:
        out = tmp_path / "report.html"
        write_report(runs, out)
        return Page(out)

    return make


@pytest.fixture(scope="module")
def digits(digits_run: Any, tmp_path_factory: pytest.TempPathFactory) -> Page:
    """The page on a finished run of the digits."""
    out = tmp_path_factory.mktemp("digits-report") / "report.html"
    write_report([digits_run.path], out)
    return Page(out)


@pytest.fixture
def written(tmp_path: Path, start: Start) -> Callable[..., Path]:
    """A run file without devices that a test fills itself: `written(fill, name="run.h5", config={...})`."""

    def make(fill: Callable[[RunWriter], object] = lambda writer: None, name: str = "run.h5", **known: Any) -> Path:
        writer = RunWriter.create(tmp_path / name, replace(start, **known))
        fill(writer)
        writer.close("completed", {})
        return tmp_path / name

    return make


def two_epochs(writer: RunWriter) -> None:
    for epoch in (1, 2):
        row = {"epoch": epoch, "test_accuracy": 0.9 + epoch / 100, "train_accuracy": 0.9, "loss": 1 / epoch}
        writer.metrics(row, dict.fromkeys(row, ""))


def test_a_page_holds_the_numbers_of_its_run(digits_run: Any, digits: Page) -> None:
    page, result = digits, digits_run.result
    assert f"{result.test_accuracy:.2%}" in page.text
    assert "TWIN DATA" in page.text
    assert "completed" in page.text
    for count in (result.operations, result.set_pulses, result.reset_pulses, result.refreshes):
        assert f"{count:,}" in page.text
    with Run.open(digits_run.path) as run:
        assert run.identity is not None
        assert run.run_id in page.text
        assert run.identity.chip in page.text
        for accuracy in run.metrics["train_accuracy"]:
            assert f"{accuracy:.2%}" in page.text


def test_a_page_shows_every_figure_with_words_for_who_cannot_see_it(digits: Page) -> None:
    assert len(digits.alts) == digits.tags.count("img") == digits.tags.count("figcaption") == 13
    assert all(digits.alts)


def test_conductances_are_those_read_before_training_and_at_the_end(digits_run: Any, digits: Page) -> None:
    with Run.open(digits_run.path) as run:
        first_image = int(np.flatnonzero(run.operations["kind"][:] == Operation.MVM_FORWARD)[0])
        before = run.layer_conductances("layer2", at=first_image)
        after = run.layer_conductances("layer2", at=int(run.metrics["operations"][-1]))
    means = [
        f"{np.nanmean(old) * 1e6:.2f} to {np.nanmean(new) * 1e6:.2f} µS" for old, new in zip(before, after, strict=True)
    ]
    assert f"Mean G+ {means[0]}; G− {means[1]}" in digits.text


def test_pulses_by_device_add_up_to_those_of_the_run(digits_run: Any, digits: Page) -> None:
    sizes = {"1": 65 * 64, "2": 65 * 10}
    found = re.findall(
        r"Layer (\d): how many devices had.*?SET G\+: mean ([\d.]+).*?SET G−: mean ([\d.]+)", digits.text
    )
    total = sum(sizes[layer] * (float(plus) + float(minus)) for layer, plus, minus in found)
    assert len(found) == 2
    assert total == pytest.approx(digits_run.result.set_pulses, abs=0.005 * 2 * sum(sizes.values()))


def test_images_are_counted_in_the_log(digits_run: Any, digits_run_by_reading: Any) -> None:
    for finished in (digits_run, digits_run_by_reading):
        with Run.open(finished.path) as run:
            log = read_log(run)
            kinds, done = run.operations["kind"][log.training :], run.operations["done"][log.training :]
        assert log.images[-1] == pytest.approx(finished.result.images, abs=1)
        counted = (log.pulses * np.diff(log.images, prepend=0)).sum()
        assert counted == pytest.approx(done[kinds == Operation.SET].sum(), abs=20)


def test_a_page_loads_nothing(digits_run: Any, written: Callable[..., Path], page_of: Callable[..., Page]) -> None:
    page = page_of(digits_run.path, written(two_epochs))
    assert {load[:5] for load in page.loads} == {"data:", "#run-"}
    assert not {"script", "link", "iframe", "object", "embed", "base", "video"} & set(page.tags)
    assert "url(" not in page.style
    assert "@import" not in page.style


def test_text_of_a_run_stays_text(written: Callable[..., Path], page_of: Callable[..., Page]) -> None:
    def fill(writer: RunWriter) -> None:
        writer.message(HOSTILE)
        two_epochs(writer)

    texts = {"meta": {HOSTILE: HOSTILE}, "argv": (HOSTILE,), "config": {"experiment": HOSTILE, HOSTILE: [HOSTILE]}}
    page = page_of(written(fill, name='_<b onclick="x">$y.h5', **texts))
    assert not {"script", "b onclick"} & set(page.tags)
    assert page.events == []
    assert {load[:5] for load in page.loads} == {"data:"}
    assert page.text.count(HOSTILE) >= 6
    assert '_<b onclick="x">$y' in page.text


@pytest.mark.parametrize("name", ["run 中文 \U0001f600.h5", "a" * 200 + ".h5", "_$.h5"])
def test_any_name_of_a_file_can_be_shown(name: str, written: Callable[..., Path], page_of: Callable[..., Page]) -> None:
    assert name in page_of(written(two_epochs, name)).text


@pytest.mark.parametrize("kind", [*TesterKind, None])
def test_the_kind_of_the_data_is_said_loudly_and_no_other(
    kind: TesterKind | None, written: Callable[..., Path], page_of: Callable[..., Page]
) -> None:
    identity = Identity("v", "m", "s", "f", "c", kind) if kind else None
    page = page_of(written(identity=identity))
    assert [title for title in TITLES.values() if title in page.text] == [TITLES[kind or "none"]]


def test_a_file_that_passes_twin_data_for_hardware_is_refused(
    written: Callable[..., Path], page_of: Callable[..., Page]
) -> None:
    path = written(identity=Identity("v", "m", "s", "f", "c", TesterKind.TWIN))
    with h5py.File(path, "r+") as file:
        file.attrs["tester_kind"] = "hardware"
    with pytest.raises(DataError, match="tester_kind is 'hardware'"):
        page_of(path)


def test_a_floating_point_run_shows_what_applies(
    make_job: Callable[..., Job], observer: Any, page_of: Callable[..., Page]
) -> None:
    job = make_job(system="float")
    result = train(job, observer)
    page = page_of(job.out)
    assert f"{result.test_accuracy:.2%}" in page.text
    assert "This run had no tester" in page.text
    assert page.tags.count("img") == 2


def test_a_run_that_ended_before_its_first_epoch_still_makes_a_page(
    make_job: Callable[..., Job], observer: Any, tmp_path: Path, page_of: Callable[..., Page]
) -> None:
    job, killed = make_job(), tmp_path / "killed.h5"

    def stop(*_: Any) -> None:
        shutil.copyfile(job.out, killed)
        raise DataError("the <array> was unplugged")

    observer.progress = stop
    with pytest.raises(DataError):
        train(job, observer)
    failed, interrupted = page_of(job.out), page_of(killed)
    assert "failed: DataError: the <array> was unplugged" in failed.text
    assert "interrupted" in interrupted.text
    for page in (failed, interrupted):
        assert "No epoch was finished" in page.text
        assert "0 of 2" in page.text
    assert "SET pulses on each device" in failed.text
    assert "at the start; one noisy reading each" in failed.text


def test_several_runs_are_compared_and_then_shown_one_by_one(
    digits_run: Any, written: Callable[..., Path], page_of: Callable[..., Page]
) -> None:
    page = page_of(digits_run.path, written(two_epochs, "second.h5"))
    assert "2 runs compared" in page.text
    for label in ("1: run (twin)", "2: second (float)"):
        assert f"Run {label}" in page.text
    assert re.search(r"1: run \(twin\): [\d.]+% at the end.*2: second \(float\): 92.00% at the end", page.text)
    assert ("TWIN DATA" in page.text, "NO TESTER" in page.text) == (True, True)


@pytest.mark.parametrize(("data", "shown"), [("mnist", True), ("digits", False)])
def test_the_published_accuracy_belongs_to_its_data_set(
    data: str, shown: bool, written: Callable[..., Path], page_of: Callable[..., Page]
) -> None:
    page = page_of(written(two_epochs, config={"data": data}))
    assert ("97.73 % on MNIST with PCM hardware, Nandakumar" in page.text) is shown


def test_operations_in_doubt_are_counted_and_the_first_fifty_listed(
    written: Callable[..., Path], page_of: Callable[..., Page]
) -> None:
    def fill(writer: RunWriter) -> None:
        for number in range(100):
            status = Status.UNKNOWN if number % 2 else Status.COMPLETE
            writer.operation(Operation.WAIT, [np.array([1.0])], Receipt(number, number, status, 0), 1, 1)
        writer.operation(Operation.WAIT, [np.array([1.0])], Receipt(100, 100, Status.PARTIAL, 0), 1, 1)

    page = page_of(written(fill, identity=Identity("v", "m", "s", "f", "c", TesterKind.TWIN)))
    assert "51 operations were not answered in full; here are the first 50" in " ".join(page.text.split())
    assert page.text.count("unknown") == 50


def test_a_whole_run_has_no_operation_in_doubt(digits: Page) -> None:
    assert re.search(r"Operations in doubt\s+none", digits.text)


def test_an_earlier_page_is_replaced(written: Callable[..., Path], tmp_path: Path) -> None:
    out = tmp_path / "report.html"
    write_report([written(two_epochs)], out)
    before = out.read_bytes()
    write_report([written(two_epochs, "other.h5")], out)
    assert out.read_bytes() != before


def test_a_page_that_cannot_be_written_leaves_the_earlier_one(
    written: Callable[..., Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_: Any) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    run, out = written(two_epochs), tmp_path / "pages" / "report.html"
    out.parent.mkdir()
    write_report([run], out)
    before = out.read_bytes()
    monkeypatch.setattr(os, "replace", full)
    with pytest.raises(StorageError, match=r"report\.html cannot be written \(No space left"):
        write_report([run], out)
    assert out.read_bytes() == before
    assert os.listdir(out.parent) == ["report.html"]


def test_what_cannot_be_a_page_is_refused(written: Callable[..., Path], tmp_path: Path) -> None:
    run = written()
    whole = run.read_bytes()
    with pytest.raises(InputError, match="name one or several run files"):
        write_report([], tmp_path / "report.html")
    with pytest.raises(InputError, match="there is no folder"):
        write_report([run], tmp_path / "missing" / "report.html")
    with pytest.raises(InputError, match="is not a file"):
        write_report([run], tmp_path)
    with pytest.raises(InputError, match=r"run\.h5 exists and is not a report"):
        write_report([run], run)
    assert run.read_bytes() == whole


def test_what_is_no_run_file_is_told_and_leaves_no_page(written: Callable[..., Path], tmp_path: Path) -> None:
    foreign, out = tmp_path / "foreign.h5", tmp_path / "report.html"
    foreign.write_bytes(b"nonsense")
    with pytest.raises(DataError, match=r"foreign\.h5"):
        write_report([written(), foreign], out)
    assert not out.exists()
