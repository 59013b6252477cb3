"""Tables at the end of what was done with devices."""

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from rich.console import Console
from rich.table import Table
from rich.text import Text

from hil.durations import duration

if TYPE_CHECKING:
    from hil.compare import Comparison
    from hil.fit import Fitted
    from hil.fitted_chip import FittedChip


def programmed_table(found: Mapping[str, Any]) -> None:
    """How program-and-verify went, from `runinfo.describe`."""
    for row in found["metrics"]:
        counts = {
            "devices": f"{row['cells']:,}",
            "converged": f"{row['converged']:.2%}",
            "verifications of a device": f"{row['mean_iterations']:.2f} on average",
            "error when all were done": f"{row['mean_error'] * 1e6:+.2f} uS, standard deviation "
            f"{row['error_spread'] * 1e6:.2f} uS",
            "SET pulses": f"{row['set_pulses']:,}",
            "RESET pulses": f"{row['reset_pulses']:,}",
            "test accuracy": percent(row["test_accuracy"]),
            "run file": str(found["run"]),
        }
        print_table([], [list(item) for item in counts.items()])


def drift_table(found: Mapping[str, Any]) -> None:
    """Accuracy over time, from `runinfo.describe`."""
    rows = [
        [
            duration(row["time"]),
            percent(row["test_accuracy"]),
            percent(row["compensated_accuracy"]),
            ", ".join(f"{value:.3f}" for name, value in row.items() if name.startswith("factor_")),
        ]
        for row in found["metrics"]
    ]
    print_table(["after", "test accuracy", "with drift compensation", "its factor, by layer"], rows)
    Console().print(f"run file {found['run']}", soft_wrap=True, highlight=False)


def print_table(names: Sequence[str], rows: Sequence[Sequence[str]]) -> None:
    """Rows of text under names, if any."""
    table = Table(show_header=bool(names), box=None, padding=(0, 2, 0, 0))
    for name in names:
        table.add_column(name)
    for row in rows:
        table.add_row(*map(Text, row))
    Console().print(table)


def percent(fraction: float | None) -> str:
    """Of an accuracy, if there is one."""
    return "not measured" if fraction is None or fraction != fraction else f"{fraction:.2%}"


def fit_table(found: "FittedChip") -> None:
    """Parameters with their intervals."""
    print_table(*fit_rows(found.fitted))


def fit_rows(fitted: "Fitted") -> tuple[list[str], list[list[str]]]:
    """Names of columns, and a row for each parameter."""
    rows = []
    for name, value in fitted.parameters.items():
        unit, size = UNITS.get(name, ("", 1.0))
        interval = fitted.intervals.get(name)
        span = "" if interval is None else f"{interval[0] / size:.4g} to {interval[1] / size:.4g}"
        rows.append([name, f"{value / size:.4g}", span, unit])
    return ["parameter", "fitted", "95 % interval", "unit"], rows


UNITS = dict.fromkeys(
    (
        "reset_mean",
        "reset_spread",
        "mean_offset",
        "mean_memory",
        "spread_offset",
        "spread_memory",
        "read_offset",
        "g_min",
        "g_max",
    ),
    ("uS", 1e-06),
) | {"t0": ("s", 1.0), "memory": ("pulses", 1.0)}
"""Units that parameters are shown in, and their size."""


def comparison_table(found: "Comparison") -> None:
    """What is how far apart, at the step where it is farthest, and where it parts."""
    from hil.compare import parting  # brings scipy

    first, second = found.labels
    names = ["quantity", "farthest at", first, second, "distance (KS)", "parts at"]
    rows = []
    for series, distances in zip(found.series, found.distances, strict=True):
        worst = max(distances, key=lambda distance: distance.distance)
        means = [f"{spread_of(*pair, series.unit)}" for pair in zip(worst.means, worst.spreads, strict=True)]
        rows.append([series.name, worst.label, *means, f"{worst.distance:.3f}", parting(distances) or "nowhere"])
    for fraction in found.fractions:
        values = [f"{value:.2%}" for value in fraction.values]
        points = f"{100 * (fraction.values[1] - fraction.values[0]):+.2f} +- {100 * fraction.error:.2f} points"
        rows.append([fraction.name, fraction.label, *values, points, fraction.label if fraction.apart else "nowhere"])
    print_table(names, rows)


def spread_of(mean: float, spread: float, unit: str) -> str:
    """Mean and standard deviation, conductances in uS."""
    size, unit = (1e-6, " uS") if unit == "S" else (1.0, "")
    return f"{mean / size:.3g} +- {spread / size:.2g}{unit}"
