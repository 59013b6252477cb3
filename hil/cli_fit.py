"""`hil fit`: from measured devices to a twin."""

import os
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from hil.cli import friendly, main, printed
from hil.protocols.errors import InputError

if TYPE_CHECKING:
    from hil.fitted_chip import FittedChip


@main.command()
@click.argument("runs", nargs=-1, required=True, type=click.Path(path_type=Path))
@click.option("--out", required=True, type=click.Path(path_type=Path), help="The chip, a .toml file.")
@click.option("--overwrite", is_flag=True, help="Replace it if it exists.")
@click.option("--report", type=click.Path(path_type=Path), help="A page with plots of how well it fits.")
@click.option("--seed", type=click.IntRange(min=0), default=0, help="Of the bootstrap; default: 0.")
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object.")
@friendly
def fit(runs: tuple[Path, ...], out: Path, overwrite: bool, report: Path | None, seed: int, as_json: bool) -> None:
    """Fit a twin to the staircase and drift studies in RUNS, files of one chip, and write it to a .toml file.

    Each parameter has a 95 % interval. Warnings say in which ways the devices are not as the model says.

    \b
    Example:
      hil characterize tcp://bench:5025 --study staircase --study drift --cells 0:0-99:0-99 --out devices.h5
      hil fit devices.h5 --out chip.toml --report chip.html
      hil train digits --tester twin:chip.toml
    """
    if out.suffix != ".toml":
        raise InputError(f"--out {out}: the name of a chip file ends with .toml, so that twin:{out.stem}.toml is one")
    if os.path.exists(out) and not overwrite:
        raise InputError(f"{out} exists: choose another name, or give --overwrite to replace it")
    from hil.fitted_chip import fit_runs, save_chip
    from hil.pages import check_place

    if report is not None:
        check_place(report)

    found = fit_runs(runs, seed)
    save_chip(found, out)
    if report is not None:
        from hil.fit_report import write_fit_report

        write_fit_report(found, report)
    if as_json:
        click.echo(printed(_summary(found, out)))
        return
    from hil.tables import fit_table

    fit_table(found)
    for text in found.fitted.warnings:
        click.echo(f"Warning: {text}", err=True)
    click.echo(f"twin:{out}")


def _summary(found: "FittedChip", out: Path) -> dict[str, Any]:
    fitted = found.fitted
    return {
        "chip": str(out),
        "measured": found.measured,
        "cells": fitted.cells,
        "parameters": fitted.parameters,
        "intervals": fitted.intervals,
        "warnings": fitted.warnings,
    }
