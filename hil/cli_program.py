"""`hil program` and `hil evaluate`: weights onto a chip, and what becomes of them there."""

import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from hil.cli import INTERRUPTED, beside, friendly, main, printed

if TYPE_CHECKING:
    from hil.procedure import Outcome


@main.command()
@click.argument("weights", type=click.Path(path_type=Path))
@click.option("--tester", default="twin:", help="URI of the tester; default: twin:")
@click.option("--out", type=click.Path(path_type=Path), help="Run file; default: beside WEIGHTS, .h5.")
@click.option("--overwrite", is_flag=True, help="Replace the run file if it exists.")
@click.option(
    "--experiment", help="What the network belongs to: its accuracy is measured, and `hil evaluate` knows it."
)
@click.option("--set", "changes", multiple=True, metavar="KEY=VALUE", help="Change a setting of the experiment.")
@click.option("--data-dir", type=click.Path(path_type=Path), help="Folder that holds mnist/ and other data sets.")
@click.option("--margin", type=float, help="S by which a device may read off its target; default: 0.8e-6.")
@click.option("--iterations", type=int, help="Most readings and pulses of a device; default: 20.")
@click.option("--settle", type=float, help="s of device time from a pulse to its verification; default: 1.")
@click.option("--reads", type=int, help="Readings averaged in a verification; default: 1.")
@click.option("--seed", type=click.IntRange(min=0), default=1, help="Makes a new twin and its noise; default: 1.")
@click.option("--durable", is_flag=True, help="Wait for the disk each second: what is logged survives a power loss.")
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object at the end.")
@friendly
def program(
    weights: Path,
    tester: str,
    out: Path | None,
    overwrite: bool,
    experiment: str | None,
    changes: tuple[str, ...],
    data_dir: Path | None,
    seed: int,
    durable: bool,
    as_json: bool,
    **verify: Any,
) -> None:
    """Write the linear layers in WEIGHTS, a safetensors file, onto a chip by program-and-verify.

    NAME.weight and NAME.bias are a layer, as in torch's state_dict of a stack of layers. The largest weight of a layer
    becomes 8 uS. The activations are those of the experiment: a network of others needs --set activation=relu or
    --set output=linear.

    \b
    Example:
      hil train mnist-mlp --data-dir data --set system=float --out float.h5
      hil export float.h5 --weights mnist.safetensors
      hil program mnist.safetensors --experiment mnist-mlp --data-dir data --out programmed.h5
    """
    from hil.display import Display
    from hil.procedure import Place
    from hil.program_weights import program_weights
    from hil.programming import Verify
    from hil.tables import programmed_table

    how = Verify(**{key: value for key, value in verify.items() if value is not None})
    place = Place(tester, out or beside(weights, ".h5"), seed, overwrite, durable, tuple(sys.argv))
    display = Display(quiet=as_json)
    with display.progress_of(f"{weights} onto {tester} -> {place.out}"):
        outcome = program_weights(weights, place, how, experiment, changes, data_dir, display)
    _show(outcome, as_json, programmed_table)


@main.command()
@click.argument("run", type=click.Path(path_type=Path))
@click.option(
    "--times", default="25s,1h,1d,30d,1y", help="When, since the end of the run: numbers with s, min, h, d or y."
)
@click.option("--tester", help="Where the chip of the run is now, if it is a real or served one and has moved.")
@click.option("--out", type=click.Path(path_type=Path), help="Run file; default: RUN-evaluated.h5.")
@click.option("--overwrite", is_flag=True, help="Replace the run file if it exists.")
@click.option("--data-dir", type=click.Path(path_type=Path), help="Folder of data sets, if RUN holds none.")
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object at the end.")
@friendly
def evaluate(
    run: Path, times: str, tester: str | None, out: Path | None, overwrite: bool, data_dir: Path | None, as_json: bool
) -> None:
    """Follow the accuracy of the network that RUN left on its chip as the devices drift, with and without correction.

    A twin that ran in process is taken from RUN, and a copy of it ages at once; a real chip is waited for.

    \b
    Example:
      hil evaluate runs/digits-1.h5 --times 25s,1h,1d,30d,1y
    """
    from hil.display import Display
    from hil.durations import parse_times
    from hil.evaluate import evaluate as follow
    from hil.evaluate import place_of
    from hil.tables import drift_table

    place = place_of(run, tester, out, overwrite, tuple(sys.argv))
    display = Display(quiet=as_json)
    with display.progress_of(f"{run} over time -> {place.out}"):
        outcome = follow(run, parse_times(times), place, data_dir, display)
    _show(outcome, as_json, drift_table)


def _show(outcome: "Outcome", as_json: bool, table: Any) -> None:
    from hil.runinfo import describe

    found = describe(Path(outcome.run))
    if as_json:
        click.echo(printed(vars(outcome) | {"metrics": found["metrics"]}))
    else:
        table(found)
    if outcome.interrupted:
        click.echo(f"Interrupted. {outcome.run} holds what was done.", err=True)
        sys.exit(INTERRUPTED)
