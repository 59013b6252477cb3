"""What a person sees in the terminal: progress while a run goes on, tables at its end."""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from statistics import mean
from typing import TYPE_CHECKING, Any

from rich import filesize
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from rich.table import Table
from rich.text import Text

from hil.report_facts import amounts as in_words

if TYPE_CHECKING:  # they bring torch, which `hil info` does without
    from hil.config import Settings
    from hil.estimate import Amounts
    from hil.logsize import LogPlan
    from hil.train import Job, Result


class Display:
    """Shows a run's progress on standard error, so that standard output is left to the results."""

    def __init__(self, quiet: bool, told: Sequence[str] = ()) -> None:
        """Findings that the user was `told` before are not told again."""
        self._console = Console(stderr=True)
        self._quiet = quiet
        self._told = told
        self._progress = _bar(self._console)
        self._task = self._progress.add_task("")
        self._title = Text()

    @contextmanager
    def run(self, job: "Job") -> Iterator[None]:
        """While a run is made."""
        settings = job.settings
        tester = "floating point" if settings.system == "float" else settings.tester
        title = Text.assemble((job.experiment, "bold"), f" on {tester}, seed {settings.seed} -> {job.out}")
        with self.progress_of(title):
            yield

    @contextmanager
    def progress_of(self, title: str | Text) -> Iterator[None]:
        """While something is done. Shows nothing before it begins, so that what cannot be done leaves one line."""
        self._title = Text(title) if isinstance(title, str) else title
        self._progress = _bar(self._console)
        try:
            yield
        finally:
            if self._progress.live.is_started:
                self._progress.stop()

    def logging(self, plan: "LogPlan") -> None:
        """The log begins."""
        room = f"{filesize.decimal(plan.free)} free"
        self._title.append(f" (log {plan.kind}, about {filesize.decimal(round(plan.size))}, {room})", "dim")
        self._say_title()

    def _say_title(self) -> None:
        """Once; early, because writing the first weights takes a while."""
        if not self._quiet and self._title:
            self._console.print(self._title, soft_wrap=True)
        self._title = Text()

    def begin(self, images: int, epochs: int) -> None:
        """Training begins."""
        fields = {"accuracy": "", "pulses": "", "rate": ""}
        self._task = self._progress.add_task("training", total=images * epochs, **fields)  # type: ignore[arg-type]
        if not self._quiet:
            self._say_title()
            self._progress.start()

    def progress(self, images: int, running_accuracy: float, pulses: int, refreshes: int) -> None:
        """So far."""
        speed = self._progress.tasks[self._task].speed
        self._progress.update(
            self._task,
            completed=images,
            accuracy=f"{running_accuracy:.1%} right",
            pulses=f"{pulses} pulses, {refreshes} refreshes",
            rate=f"{speed:.0f} images/s" if speed else "",
        )

    def epoch(self, number: int, test_accuracy: float) -> None:
        """An epoch has been evaluated."""
        if not self._quiet:
            self._progress.console.print(f"epoch {number}: test accuracy {test_accuracy:.2%}", highlight=False)

    def steps(self, done: int, total: int, what: str) -> None:
        """A procedure has done so many of its steps."""
        if self._quiet:
            return
        if not self._progress.live.is_started:
            self._task = self._progress.add_task("", accuracy="", pulses="", rate="")
            self._say_title()
            self._progress.start()
        self._progress.update(self._task, completed=done, total=total, rate=what)

    def finding(self, text: str) -> None:
        """The run goes wrong."""
        if text not in self._told:
            self._progress.console.print(_warning(text), soft_wrap=True)


def _warning(text: str) -> Text:
    return Text.assemble(("Warning:", "yellow"), f" {text}")


def _bar(console: Console) -> Progress:
    return Progress(
        BarColumn(bar_width=24),
        MofNCompleteColumn(),
        TextColumn("{task.fields[rate]}"),
        TextColumn("{task.fields[accuracy]}"),
        TextColumn("{task.fields[pulses]}"),
        TimeRemainingColumn(),
        console=console,
        transient=True,
    )


def experiment_table(found: "Mapping[str, Settings]") -> None:
    """Name, what it is, what it reproduces."""
    table = Table(box=None, padding=(0, 2, 0, 0))
    for name in ("experiment", "what it is", "what it reproduces"):
        table.add_column(name)
    for name, settings in found.items():
        table.add_row(name, settings.description, settings.reproduces)
    Console().print(table)


def settings_table(settings: "Settings") -> None:
    """Each setting with its value and meaning."""
    table = Table(box=None, padding=(0, 2, 0, 0))
    for name in ("setting", "value", "meaning"):
        table.add_column(name)
    for name, field in type(settings).model_fields.items():
        table.add_row(name, str(settings.model_dump()[name]), field.description)
    Console().print(table)


def result_table(results: "Sequence[Result]") -> None:
    """A column per run; the mean with its standard error if there are several."""
    rows: dict[str, list[str]] = {
        "seed": [str(result.seed) for result in results],
        "test accuracy": [_percent(result.test_accuracy) for result in results],
        "epochs": [str(result.epochs) for result in results],
        "images per second": [f"{result.images_per_second:.0f}" for result in results],
        "image period": [f"{result.image_period:.3g} s" for result in results],
        "weights": [f"{result.weights:,}" for result in results],
        "devices": [f"{result.devices:,}" for result in results],
        "SET pulses": [f"{result.set_pulses:,}" for result in results],
        "RESET pulses": [f"{result.reset_pulses:,}" for result in results],
        "pairs refreshed": [f"{result.refreshes:,}" for result in results],
        "operations": [f"{result.operations:,}" for result in results],
        "warnings": [_warnings(result) for result in results],
        "run file": [result.run for result in results],
    }
    first = results[0]
    _print_rows(f"{first.experiment}, {first.system}, {first.tester}", rows)
    from hil.campaign import standard_error  # brings torch, which `hil info` does without

    error = standard_error([result.test_accuracy for result in results])
    if error is not None:
        Console().print(
            f"mean test accuracy {mean(r.test_accuracy for r in results):.2%} +- {error:.2%} (standard error)"
        )


def _percent(fraction: float | None) -> str:
    """Of an accuracy; there is none before the first epoch has been evaluated."""
    return "none yet" if fraction is None or fraction != fraction else f"{fraction:.2%}"


def _warnings(result: "Result") -> str:
    """How many causes, and how often each was seen."""
    causes = [f"{cause} ({count}x)" for cause, count in result.finding_counts.items()]
    return "; ".join([f"{len(causes)}", *causes]) if causes else "none"


def info_table(found: Mapping[str, Any]) -> None:
    """What `runinfo.describe` found."""
    counts = ", ".join(
        f"{name.replace('_', ' ')} {count:,}" for name, count in found.get("counts", {}).items() if count
    )
    shown = {
        "test_accuracy": _percent(found.get("test_accuracy")),
        "running_accuracy": _percent(found.get("running_accuracy")),
        "bytes": filesize.decimal(found.get("bytes", 0)),
        "operations": f"{found.get('operations', 0):,}" + (f" ({counts})" if "procedure" in found else ""),
    }
    rows = {
        key.replace("_", " "): [shown.get(key, str(value))]
        for key, value in found.items()
        if not isinstance(value, dict | list)
    }
    _print_rows(str(found["run"]), rows)
    if found["metrics"] and "epoch" in found["metrics"][0]:
        table = Table(box=None, padding=(0, 2, 0, 0))
        names = ("epoch", "lr", "loss", "train_accuracy", "test_accuracy", "set_pulses", "refreshes")
        for name in names:
            table.add_column(name.replace("_", " "), justify="right")
        for row in found["metrics"]:
            table.add_row(*(f"{row[name]:.4g}" if isinstance(row[name], float) else str(row[name]) for name in names))
        Console().print(table)
    print_found(found["found"])
    for text in found["messages"]:
        Console().print(_warning(text), soft_wrap=True)


def print_found(lines: Mapping[str, str]) -> None:
    """What each study found."""
    for study, line in lines.items():
        Console().print(Text.assemble((study, "bold"), f": {line}"), soft_wrap=True)


def amounts_table(
    title: str, columns: "Mapping[str, Amounts]", findings: Sequence[str] = (), err: bool = False
) -> None:
    """What is asked of a tester, by the names of the columns, such as estimate and done."""
    table = Table(box=None, padding=(0, 2, 0, 0))
    for name in ("", *columns):
        table.add_column(name, justify="right" if name else "left")
    rows = [in_words(amounts) for amounts in columns.values()]
    for name in rows[0]:
        table.add_row(name, *(row[name] for row in rows))
    console = Console(stderr=err)
    console.print(Text(title, "bold"), soft_wrap=True)
    console.print(table)
    for text in findings:
        console.print(_warning(text), soft_wrap=True)


def _print_rows(title: str, rows: Mapping[str, Sequence[str]]) -> None:
    table = Table(show_header=False, box=None, padding=(0, 2, 0, 0))
    table.add_column(no_wrap=True)
    for _ in range(max(map(len, rows.values()))):
        table.add_column(overflow="fold")  # a long word is not cut
    for name, values in rows.items():
        table.add_row(name, *map(Text, values))
    Console().print(Text(title, "bold"))
    Console().print(table)
