"""`hil characterize`: measure devices by studies."""

import sys
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from hil.cli import INTERRUPTED, friendly, main, printed
from hil.protocols.errors import InputError

if TYPE_CHECKING:
    from hil.estimate import Estimate
    from hil.procedure import Outcome


class WithStudies(click.Command):
    """Lists the studies in its help."""

    def format_epilog(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        from hil.studies import STUDIES

        with formatter.section("Studies"):
            formatter.write_dl([(name, study.about) for name, study in STUDIES.items()])


@main.command(cls=WithStudies)
@click.argument("uri")
@click.option("--study", "names", multiple=True, required=True, metavar="NAME", help="A study; may be repeated.")
@click.option(
    "--cells",
    multiple=True,
    default=["0:0-31:0-31"],
    show_default=True,
    metavar="ARRAY:ROWS:COLUMNS",
    help="Which cells, such as 0:0-99:0-99, or all; several with commas, or repeated.",
)
@click.option("--out", type=click.Path(path_type=Path), help="Run file.")
@click.option("--reads", type=int, help="Reads of each cell in a row.")
@click.option("--pulses", type=int, help="SET pulses after a RESET.")
@click.option("--cycles", type=int, help="How often it is done again.")
@click.option("--interval", metavar="TIME", help="Device time from a pulse to the reads, such as 38.6 or 1min.")
@click.option("--times", metavar="TIME,...", help="When drift is read, after the last pulse: 1s,10s,1h,1d.")
@click.option("--seed", type=click.IntRange(min=0), default=1, help="Makes a new twin and its noise; default: 1.")
@click.option("--overwrite", is_flag=True, help="Replace the run file if it exists.")
@click.option("--durable", is_flag=True, help="Wait for the disk each second: what is logged survives a power loss.")
@click.option("--dry-run", is_flag=True, help="Say what it costs, and stop.")
@click.option("--meta", multiple=True, metavar="KEY=VALUE", help="Note kept in the run file; may be repeated.")
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object at the end.")
@friendly
def characterize(
    uri: str,
    names: tuple[str, ...],
    cells: tuple[str, ...],
    out: Path | None,
    seed: int,
    overwrite: bool,
    durable: bool,
    dry_run: bool,
    meta: tuple[str, ...],
    as_json: bool,
    **given: Any,
) -> None:
    """Measure the devices of the tester at URI by the studies NAME, and keep every reading in a run file.

    All studies use the same cells, one after the other. Each has its own number of reads, pulses and cycles, unless
    they are given. What it costs the devices is said before it begins.

    \b
    Example:
      hil characterize twin:pcm-analog --study staircase --study drift --cells 0:0-99:0-99 --out devices.h5
      hil report devices.h5
    """
    if out is None and not dry_run:
        raise InputError("say where the measurements are to be kept: --out RUN.h5")
    from hil.bench import connect
    from hil.campaign import parse_note
    from hil.characterize import chosen
    from hil.data.runfile import check_out
    from hil.display import Display
    from hil.procedure import Place, perform
    from hil.session import outlives, released_on_error, twin_seed

    procedure = chosen(names, ",".join(cells), _parsed(given))
    notes = dict(map(parse_note, meta))
    if out is not None and not dry_run:
        check_out(out, overwrite)
    raw = connect(uri, twin_seed(seed))
    with released_on_error(raw):
        estimate = procedure.estimate(raw.capabilities())
    if not as_json:
        _show_estimate(uri, estimate, final=dry_run)
    if dry_run:
        if outlives(raw):
            raw.close()
        if as_json:
            click.echo(printed({"estimate": asdict(estimate.amounts), "findings": estimate.findings}))
        return
    display = Display(quiet=as_json, told=() if as_json else estimate.findings)
    with display.progress_of(f"{uri} -> {out}"):
        outcome = perform(
            procedure, Place(uri, Path(out or ""), seed, overwrite, durable, _argv(), notes), raw, display
        )
    _show(outcome, as_json)


def resume_studies(run: Path, tester: str | None, durable: bool, as_json: bool) -> None:
    """Go on with the studies in a run file."""
    from hil.display import Display
    from hil.resume import resume_procedure

    display = Display(quiet=as_json)
    with display.progress_of(f"{run} goes on"):
        outcome = resume_procedure(run, display, tester, durable, _argv())
    _show(outcome, as_json)


def _argv() -> tuple[str, ...]:
    return tuple(sys.argv)


def _parsed(given: Mapping[str, Any]) -> dict[str, Any]:
    """What was given, as numbers."""
    from hil.durations import parse_time, parse_times

    parsers = {"interval": parse_time, "times": parse_times}
    return {key: parsers.get(key, int)(value) for key, value in given.items() if value is not None}


def _show_estimate(uri: str, estimate: "Estimate", final: bool) -> None:
    from hil.display import amounts_table

    amounts_table(f"characterize {uri}", {"estimate": estimate.amounts}, estimate.findings, err=not final)


def _show(outcome: "Outcome", as_json: bool) -> None:
    """What was found, and what was done, beside what was expected."""
    from hil.characterize import stored
    from hil.data.run import Run
    from hil.display import amounts_table, print_found
    from hil.estimate import counted
    from hil.study_found import findings

    with Run.open(outcome.run) as run:
        if run.capabilities is None:
            return
        estimate = stored(run.config).estimate(run.capabilities)
        done, messages, lines = counted(run), [text for _, text in run.messages], findings(run)
    if as_json:
        amounts = {"estimate": asdict(estimate.amounts), "done": asdict(done)}
        click.echo(printed(vars(outcome) | amounts | {"found": lines, "findings": messages}))
    else:
        amounts_table(outcome.run, {"estimate": estimate.amounts, "done": done})
        print_found(lines)
    if outcome.interrupted:
        click.echo(
            f"Interrupted after {outcome.operations:,} operations. {outcome.run} holds them: "
            f"`hil resume {outcome.run}` goes on.",
            err=True,
        )
        sys.exit(INTERRUPTED)
