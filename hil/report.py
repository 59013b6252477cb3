"""`hil report`: one HTML page on one or several runs, complete in itself."""

from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path

import hil.report_facts as facts
from hil.data.run import Run
from hil.findings import page_of
from hil.pages import check_place, rendered, store
from hil.protocols.errors import InputError
from hil.report_figures import Picture, common, conductances, data_of, pulses, source_line, updates
from hil.series import LogSummary, read_log


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
    if not runs:
        raise InputError("a report needs a run: name one or several run files")
    check_place(out)
    with ExitStack() as opened:
        page = _page([opened.enter_context(Run.open(path)) for path in runs])
    store(out, page)


def _page(runs: Sequence[Run]) -> str:
    """The page on runs that one command made. Raises `InputError` for others, and for a command that has no report."""
    made = {run.config.get("procedure", "train"): run.path.name for run in runs}
    if len(made) > 1:
        kinds = " and ".join(f"{name} (hil {procedure})" for procedure, name in made.items())
        raise InputError(f"{kinds} do not go on one page: write a report on each kind")
    procedure = next(iter(made))
    if procedure not in PAGES:
        raise InputError(f"there is no report on runs of hil {procedure}, only on those of {', '.join(PAGES)}")
    return PAGES[procedure](runs)


def _training(runs: Sequence[Run]) -> str:
    sections = [_section(run, label) for run, label in zip(runs, _labels(runs), strict=True)]
    paper = any(run.config.get("data") == "mnist" for run in runs)
    source = source_line(runs[0]) if len(runs) == 1 else ", ".join(dict.fromkeys(map(data_of, runs)))
    metrics = {section.label: run.metrics for section, run in zip(sections, runs, strict=True)}
    return rendered("report.html", sections=sections, common=common(metrics, paper, source))


def _studies(runs: Sequence[Run]) -> str:
    from hil.report_studies import section  # brings torch, which a report on training does without

    sections = [section(run, label) for run, label in zip(runs, _labels(runs), strict=True)]
    return rendered("studies.html", sections=sections)


def _evaluation(runs: Sequence[Run]) -> str:
    from hil.evaluate_report import evaluation

    return page_of(evaluation(_only(runs), _labels(runs)[0]))


def _programming(runs: Sequence[Run]) -> str:
    from hil.evaluate_report import programming

    return page_of(programming(_only(runs), _labels(runs)[0]))


def _only(runs: Sequence[Run]) -> Run:
    if len(runs) > 1:
        raise InputError(f"a page holds one run of hil {runs[0].config['procedure']}; hil compare takes two")
    return runs[0]


PAGES = {"train": _training, "characterize": _studies, "evaluate": _evaluation, "program": _programming}
"""How the page on the runs of each command is made."""


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
