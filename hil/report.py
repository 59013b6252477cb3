"""`hil report`: one HTML page on one or several runs, complete in itself."""

import os
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path

from jinja2 import Environment, FileSystemLoader, StrictUndefined

import hil.report_facts as facts
from hil.data.run import Run
from hil.protocols.errors import InputError, StorageError
from hil.report_figures import Picture, common, conductances, data_of, pulses, source_line, updates
from hil.series import LogSummary, read_log

TEMPLATES = Path(__file__).parent / "templates"
PAGE_BEGINS = b"<!DOCTYPE html>"


@dataclass(frozen=True)
class Section:
    """What the page says of one run."""

    label: str
    path: str
    kind: facts.Kind
    state: str
    accuracy_name: str
    accuracy: str
    summary: Mapping[str, str]
    head: facts.Rows
    conductances: Sequence[Picture]
    pulses: Sequence[Picture]
    updates: Sequence[Picture]
    without_devices: str
    log: LogSummary
    messages: Sequence[str]
    tables: Mapping[str, facts.Rows]
    epochs: tuple[list[str], list[list[str]]]


def write_report(runs: Sequence[Path], out: Path) -> None:
    """Write the page on the runs to `out`; an earlier page there is replaced, other files are not.

    Raises InputError for no runs or an `out` that cannot be, DataError for what is no run file, StorageError where the
    page cannot be written.
    """
    _check(runs, out)
    with ExitStack() as opened:
        page = _page([opened.enter_context(Run.open(path)) for path in runs])
    _store(out, page.encode("utf-8", "replace"))


def _check(runs: Sequence[Path], out: Path) -> None:
    if not runs:
        raise InputError("a report needs a run: name one or several run files")
    folder = out.parent
    if not os.path.isdir(folder):
        raise InputError(f"{out}: there is no folder {folder}: make it, or choose another one")
    if not os.path.lexists(out):
        return
    if not os.path.isfile(out):
        raise InputError(f"{out} is not a file: name a page, such as {out}/report.html")
    try:
        with open(out, "rb") as file:
            begin = file.read(len(PAGE_BEGINS))
    except OSError as error:
        raise StorageError(f"{out} cannot be replaced ({error.strerror}): choose another name") from error
    if begin and begin != PAGE_BEGINS:
        raise InputError(f"{out} exists and is not a report: choose another name")


def _page(runs: Sequence[Run]) -> str:
    sections = [_section(run, label) for run, label in zip(runs, _labels(runs), strict=True)]
    paper = any(run.config.get("data") == "mnist" for run in runs)
    source = source_line(runs[0]) if len(runs) == 1 else ", ".join(dict.fromkeys(map(data_of, runs)))
    metrics = {section.label: run.metrics for section, run in zip(sections, runs, strict=True)}
    environment = Environment(
        loader=FileSystemLoader(TEMPLATES),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    template = environment.get_template("report.html")
    return template.render(sections=sections, common=common(metrics, paper, source))


def _labels(runs: Sequence[Run]) -> list[str]:
    """How the runs are called on the page; every label names the kind of its data, and no two are equal."""
    kinds = [run.tester_kind if run.identity else "float" for run in runs]
    names = [f"{run.path.stem} ({kind})" for run, kind in zip(runs, kinds, strict=True)]
    return [f"{number}: {name}" for number, name in enumerate(names, 1)] if len(runs) > 1 else names


def _section(run: Run, label: str) -> Section:
    log, source = read_log(run), source_line(run)
    missing = _without_devices(run)
    return Section(
        label=label,
        path=str(run.path),
        kind=facts.kind_of(run),
        state=run.state,
        accuracy_name=facts.accuracy_name(run),
        accuracy=facts.accuracy(run),
        summary=facts.summary(run),
        head=facts.head(run),
        conductances=[] if missing else conductances(run, log, source),
        pulses=[] if missing else pulses(run, source),
        updates=updates(run, log, source),
        without_devices=missing,
        log=log,
        messages=[text for _, text in run.messages],
        tables=facts.tables(run),
        epochs=facts.epochs(run),
    )


def _without_devices(run: Run) -> str:
    """Why nothing can be said of single devices, if so."""
    if run.identity is None or run.capabilities is None:
        return "This run had no tester, so there are no devices to show."
    if not run.layers:
        return "The run file does not say where weights lie, so devices cannot be told apart by layer."
    if run.counts["update"]:
        return "The run file holds parallel updates, whose pulses are not counted by device."
    return ""


def _store(out: Path, page: bytes) -> None:
    """The whole page or what was there before, whatever happens."""
    part = out.with_name(f"{out.name}.{os.getpid()}.part")
    try:
        try:
            part.write_bytes(page)
            os.replace(part, out)
        finally:
            part.unlink(missing_ok=True)
    except OSError as error:
        raise StorageError(f"{out} cannot be written ({error.strerror}): check the disk and permissions") from error
