"""The words and numbers of a report: what a run file says of itself, as rows of text."""

import shlex
from collections.abc import Mapping
from dataclasses import asdict
from typing import TYPE_CHECKING, Any, NamedTuple

from hil.data.run import Run
from hil.durations import duration
from hil.protocols.errors import DataError

if TYPE_CHECKING:  # brings torch, which a report on training does without
    from hil.estimate import Amounts

Rows = list[tuple[str, str]]


class Kind(NamedTuple):
    """What the data of a run are, said loudly."""

    name: str  # for style sheets
    title: str
    text: str


KINDS = {
    "hardware": Kind("hardware", "HARDWARE DATA", "measured on a real array"),
    "twin": Kind("twin", "TWIN DATA", "computed by a software twin, not measured on hardware"),
    "replay": Kind("replay", "REPLAYED DATA", "answers of an earlier recording, not a new measurement"),
    "none": Kind("none", "NO TESTER", "floating point on the host, no devices"),
}


def kind_of(run: Run) -> Kind:
    """Of which kind the data are. Raises DataError where the file says two things of that."""
    if (str(run.identity.kind) if run.identity else "none") != run.tester_kind:
        raise DataError(f"{run.path}: tester_kind is {run.tester_kind!r}, but the tester is another: damaged")
    return KINDS[run.tester_kind]


def head(run: Run) -> Rows:
    """What one wants to know first."""
    config, metrics, identity = run.config, run.metrics, run.identity
    epochs = len(metrics.get("epoch", ()))
    tester = "none" if identity is None else f"{identity.model}, chip {identity.chip} ({identity.kind})"
    return [
        ("experiment", str(config.get("experiment", "not named"))),
        ("what it is", str(config.get("description", "not described"))),
        ("reproduces", str(config.get("reproduces", "not said"))),
        ("system", str(config.get("system", "not said"))),
        ("tester", tester),
        ("epochs", f"{epochs} of {config['epochs']}" if "epochs" in config else str(epochs)),
        ("seed", str(run.start.seed)),
        ("started", run.created_utc.replace("T", " ").partition(".")[0].removesuffix("+00:00") + " UTC"),
        ("operations", f"{run.operations.rows:,}"),
        ("device time", device_time(run)),
        ("run file", f"{run.path.name}, {size(run.path.stat().st_size)}"),
    ]


def summary(run: Run) -> dict[str, str]:
    """What runs are compared by."""
    totals = {"SET pulses": "set_pulses", "refreshes": "refreshes"}
    return {
        "accuracy": accuracy(run),
        "epochs": str(len(run.metrics.get("epoch", ()))),
        "seed": str(run.start.seed),
        **{title: f"{run.counts[name]:,}" if name in run.counts else "" for title, name in totals.items()},
        "warnings": str(len(run.messages)),
    }


def accuracy_name(run: Run) -> str:
    """What the accuracy was measured on."""
    return "accuracy on held-out training images" if run.config.get("validation_images") else "test accuracy"


def accuracy(run: Run) -> str:
    """After the last finished epoch."""
    values = run.metrics.get("test_accuracy")
    return "none yet" if values is None or not len(values) else f"{values[-1]:.2%}"


def device_time(run: Run) -> str:
    """Of the last operation that has one."""
    rows = run.operations.rows
    times = run.operations["device_time_ns"][max(rows - 1000, 0) : rows]
    return duration(times.max() * 1e-9) if len(times) and times.max() >= 0 else "none"


def size(count: int) -> str:
    """Bytes, in the unit that suits them."""
    for limit, unit in ((1e9, "GB"), (1e6, "MB"), (1e3, "kB")):
        if count >= limit:
            return f"{count / limit:.3g} {unit}"
    return f"{count} bytes"


def amounts(found: "Amounts") -> dict[str, str]:
    """What is or was asked of a tester."""
    return {
        "operations": f"{found.operations:,}",
        "reads of a cell": f"{found.cell_reads:,}",
        "vectors multiplied": f"{found.products:,}",
        "SET pulses": f"{found.set_pulses:,}",
        "RESET pulses": f"{found.reset_pulses:,}",
        "SET pulses on one cell, at most": f"{found.set_pulses_per_cell:,}",
        "RESET pulses on one cell, at most": f"{found.reset_pulses_per_cell:,}",
        "device time": duration(found.device_seconds),
    }


def tables(run: Run) -> dict[str, Rows]:
    """Provenance: each table has a title and rows."""
    start = run.start
    about = {
        "argv": shlex.join(start.argv),
        "seed": start.seed,
        "git commit": start.git_commit or "not known",
        "run id": run.run_id,
    }
    found = {
        "Counts": run.counts,
        "Configuration": run.config,
        "Notes": start.meta,
        "Origin": about,
        "Versions": start.versions,
        "Host": start.host,
        "Tester": asdict(run.identity) if run.identity else {},
        "Limits and nominal figures of the tester (SI units)": asdict(run.capabilities) if run.capabilities else {},
    }
    return {title: flat(values) for title, values in found.items() if values}


def flat(values: Mapping[str, Any], prefix: str = "") -> Rows:
    """Rows of a nested mapping; inner names follow outer ones."""
    rows: Rows = []
    for key, value in values.items():
        name = f"{prefix}{key}".replace("_", " ")
        rows += flat(value, f"{name}: ") if isinstance(value, Mapping) and value else [(name, shown(value))]
    return rows


def shown(value: Any) -> str:
    """A value for a reader."""
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, int) and abs(value) >= 10_000:
        return f"{value:,}"
    if isinstance(value, float):
        return f"{value:.6g}"
    if isinstance(value, list | tuple):
        return ", ".join(map(shown, value)) or "none"
    return "none" if value is None or value == "" else str(value)


EPOCH_COLUMNS = {
    "epoch": ("epoch", "d"),
    "images": ("images", ",d"),
    "lr": ("learning rate", ".4g"),
    "loss": ("loss", ".4g"),
    "train_accuracy": ("training accuracy", ".2%"),
    "test_accuracy": ("test accuracy", ".2%"),
    "set_pulses": ("SET pulses so far", ",d"),
    "reset_pulses": ("RESET pulses so far", ",d"),
    "refreshes": ("refreshes so far", ",d"),
    "image_period": ("image period (s)", ".3g"),
    "seconds": ("time trained (s)", ".1f"),
}


def epochs(run: Run) -> tuple[list[str], list[list[str]]]:
    """The metrics as a table: names of the columns, rows of texts."""
    names = [name for name in EPOCH_COLUMNS if name in run.metrics]
    columns = [[format(value, EPOCH_COLUMNS[name][1]) for value in run.metrics[name].tolist()] for name in names]
    return [EPOCH_COLUMNS[name][0] for name in names], [list(row) for row in zip(*columns, strict=True)]
