"""`hil check`: conformance and health of a tester."""

import sys
from itertools import groupby
from typing import TYPE_CHECKING

import click

from hil.cli import friendly, main, printed
from hil.protocols.errors import InputError

if TYPE_CHECKING:
    from hil.check import Report
    from hil.checking import Outcome

STYLES = {"passed": "green", "failed": "bold red", "not applicable": "dim"}


@main.command()
@click.argument("uri")
@click.option("--allow-programming", is_flag=True, help="Also pulse a few cells; they are left RESET.")
@click.option(
    "--cells",
    multiple=True,
    metavar="ARRAY:ROW:COLUMN",
    help="A cell to be pulsed; may be repeated. Default: the last four of the last row of the last array.",
)
@click.option("--timeout", type=click.FloatRange(min=0.01, max=3600.0), help="Wait so long (s) for an answer.")
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object.")
@friendly
def check(uri: str, allow_programming: bool, cells: tuple[str, ...], timeout: float | None, as_json: bool) -> None:
    """Find out whether the tester at URI keeps its promises: the bytes on its line, its reads, products and ids.

    Takes operation ids and device time; pulses no cell unless that is allowed. The exit code is 1 where a check fails.

    \b
    Example:
      hil check tcp://192.168.0.7:5025
      hil check serial:///dev/ttyUSB0?codec=frames --allow-programming --cells 0:511:2040
    """
    from rich.console import Console
    from rich.text import Text

    from hil.check import run_checks

    if cells and not allow_programming:
        raise InputError("--cells names cells to be pulsed: add --allow-programming, or leave it away")
    places = tuple(_place(text) for text in cells)
    with Console(stderr=True).status("") as line:
        report = run_checks(uri, allow_programming, places, timeout, lambda name: line.update(Text(name)))
    if as_json:
        click.echo(printed(report.as_dict()))
    else:
        _print(report)
    if report.failed:
        sys.exit(1)


def _place(text: str) -> tuple[int, int, int]:
    parts = text.split(":")
    if len(parts) != 3 or not all(part.isascii() and part.isdecimal() and len(part) < 6 for part in parts):
        raise InputError(f"--cells {text}: expected ARRAY:ROW:COLUMN, counted from 0, as in 0:511:2040")
    array, row, column = map(int, parts)
    return array, row, column


def _print(report: "Report") -> None:
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    table = Table(box=None, padding=(0, 2, 0, 0))
    for name in ("group", "check", "result", "detail"):
        table.add_column(name)
    for outcome, count in _rows(report):
        name = outcome.name if count == 1 else f"{count} checks"
        table.add_row(outcome.group, Text(name), Text(outcome.result, STYLES[outcome.result]), Text(outcome.detail))
    console = Console()
    console.print(table)
    console.print(str(report), highlight=False)


def _rows(report: "Report") -> "list[tuple[Outcome, int]]":
    """A row for each check; one for all of a group that are left out for the same reason."""
    rows = []
    for _, found in groupby(report.outcomes, lambda one: (one.group, one.name if one.tried else one.detail)):
        outcomes = list(found)
        rows.append((outcomes[0], len(outcomes)))
    return rows
