"""The command line. Each command is a short shell over a function that can be called without it."""

import json
import math
import sys
from collections.abc import Callable
from functools import wraps
from pathlib import Path
from typing import TYPE_CHECKING, Any, ParamSpec

import click

from hil.protocols.errors import HilError, InputError

if TYPE_CHECKING:
    from hil.train import Result

# Torch, numba and the like are imported by the commands that need them, so that `hil --help` answers at once.

INTERRUPTED = 130
P = ParamSpec("P")


def friendly(command: Callable[P, None]) -> Callable[P, None]:
    """Turn our own errors into one line and their exit code."""

    @wraps(command)
    def run(*args: P.args, **kwargs: P.kwargs) -> None:
        try:
            command(*args, **kwargs)
        except HilError as error:
            click.echo(f"Error: {error}", err=True)
            sys.exit(error.exit_code)
        except KeyboardInterrupt:
            click.echo("Interrupted.", err=True)
            sys.exit(INTERRUPTED)

    return run


class OneLineErrors(click.Group):
    """A group whose commands answer a wrong option in one line, like all other errors."""

    def invoke(self, ctx: click.Context) -> Any:
        try:
            return super().invoke(ctx)
        except click.UsageError as error:
            path = error.ctx.command_path if error.ctx else ctx.command_path
            raise click.UsageError(f"{error.format_message()} See `{path} --help`.") from error


def beside(path: Path, suffix: str) -> Path:
    """The default name of what is made of a file, such as its report. Raises `InputError` for a path without a name."""
    if not path.name:
        raise InputError(f"{path} is a folder: give the name of a file")
    return path.with_suffix(suffix)


def printed(value: Any) -> str:
    """JSON on one line; a number that is not finite, which JSON does not know, is null."""
    return json.dumps(_finite(value))


def _finite(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _finite(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_finite(item) for item in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


@click.group(cls=OneLineErrors, context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 110})
@click.version_option(package_name="pcm-hil")
def main() -> None:
    """Train neural networks on phase-change-memory arrays: on a real tester, or on its software twin.

    \b
    Example:
      hil train digits
      hil info runs/digits-1.h5
    """


@main.command()
@click.argument("name", required=False)
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object.")
@friendly
def experiments(name: str | None, as_json: bool) -> None:
    """List the built-in experiments and what each reproduces; with NAME, the settings of one and what they mean.

    \b
    Example:
      hil experiments mnist-mlp
    """
    from hil.config import experiments as built_in
    from hil.config import load_settings

    found = {name: load_settings(name, ())[0]} if name else built_in()
    if as_json:
        click.echo(printed({name: settings.model_dump(mode="json") for name, settings in found.items()}))
        return
    from hil.display import experiment_table, settings_table

    if name:
        settings_table(found[name])
    else:
        experiment_table(found)


@main.command()
@click.argument("experiment")
@click.option("--tester", help="URI of the tester, such as twin:pcm-90nm or twin:chip.h5; default: the experiment's.")
@click.option("--data-dir", type=click.Path(path_type=Path), help="Folder that holds mnist/ and other data sets.")
@click.option("--out", type=click.Path(path_type=Path), help="Run file; default: runs/EXPERIMENT-SEED.h5.")
@click.option("--overwrite", is_flag=True, help="Replace the run file if it exists.")
@click.option("--durable", is_flag=True, help="Wait for the disk each second: what is logged survives a power loss.")
@click.option("--epochs", type=click.IntRange(min=1), help="Passes over the training images.")
@click.option("--seed", type=click.IntRange(min=0), help="Seed of the run, or of the first one of several.")
@click.option(
    "--seeds",
    type=click.IntRange(min=1),
    default=1,
    help="Make so many runs and print the mean and its standard error.",
)
@click.option("--set", "changes", multiple=True, metavar="KEY=VALUE", help="Change a setting; may be repeated.")
@click.option("--meta", multiple=True, metavar="KEY=VALUE", help="Note kept in the run file; may be repeated.")
@click.option(
    "--json", "as_json", is_flag=True, help="Print one JSON object at the end, and nothing else, on standard output."
)
@friendly
def train(experiment: str, as_json: bool, **options: Any) -> None:
    """Train the network of EXPERIMENT, a built-in one or a .toml file, and keep everything in a run file.

    \b
    Example:
      hil train mnist-mlp --data-dir data --tester twin:pcm-90nm --set image_period=1e-3
    """
    if options["tester"]:
        from hil.instruments.resource import parse_address

        parse_address(options["tester"])  # a malformed address is told before torch and the like are imported
    from hil.campaign import plan, summary
    from hil.display import Display, result_table

    display = Display(quiet=as_json)
    results = []
    for job in plan(experiment, argv=tuple(sys.argv), **options):
        with display.run(job):
            from hil.train import train as run

            results.append(run(job, display))
        if results[-1].interrupted:
            break
    if as_json:
        click.echo(printed(summary(results)))
    else:
        result_table(results)
    _end_if_interrupted(results[-1])


def _end_if_interrupted(result: "Result") -> None:
    if result.interrupted:
        click.echo(
            f"Interrupted after {result.images} images. {result.run} holds the run up to there: "
            f"`hil resume {result.run}` goes on.",
            err=True,
        )
        sys.exit(INTERRUPTED)


@main.command()
@click.argument("run", type=click.Path(path_type=Path))
@click.option("--tester", help="Where the tester of the run is now, if it is a real or served one and has moved.")
@click.option("--data-dir", type=click.Path(path_type=Path), help="Folder of data sets, if RUN holds none.")
@click.option("--durable", is_flag=True, help="Wait for the disk each second: what is logged survives a power loss.")
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object at the end.")
@friendly
def resume(run: Path, tester: str | None, data_dir: Path | None, durable: bool, as_json: bool) -> None:
    """Go on with the run in RUN, or its studies of devices, where it was interrupted, killed or failed.

    The finished run is the same as one that never stopped.

    \b
    Example:
      hil resume runs/mnist-mlp-1.h5
    """
    from hil.runinfo import procedure_of

    if procedure_of(run) is not None:
        from hil.cli_characterize import resume_studies

        resume_studies(run, tester, durable, as_json)
        return
    from hil.display import Display, result_table
    from hil.resume import resume as go_on

    display = Display(quiet=as_json)
    with display.progress_of(f"{run} goes on"):
        result = go_on(run, display, tester, data_dir, durable, tuple(sys.argv))
    if as_json:
        from hil.campaign import summary

        click.echo(printed(summary([result])))
    else:
        result_table([result])
    _end_if_interrupted(result)


@main.command()
@click.argument("run", type=click.Path(path_type=Path))
@click.option("--verify", "mode", flag_value="verify", default="verify", help="Stop at the first difference (default).")
@click.option("--follow", "mode", flag_value="follow", help="Go on after differences and report the largest.")
@click.option("--data-dir", type=click.Path(path_type=Path), help="Folder of data sets, if RUN holds none.")
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object at the end.")
@friendly
def replay(run: Path, mode: str, data_dir: Path | None, as_json: bool) -> None:
    """Do the host's part of the training in RUN again, with the recording as the tester.

    Prints "identical" or the first difference (exit code 1). Identity is promised on equal versions and CPU capability;
    elsewhere, --follow tells how far the two are apart.

    \b
    Example:
      hil replay runs/digits-1.h5 --verify
    """
    from hil.runinfo import procedure_of

    done = procedure_of(run)
    if done is not None:
        raise InputError(f"{run} is of hil {done}: only training runs (hil train) are replayed")
    from hil.display import Display
    from hil.replay import follow, verify

    display = Display(quiet=as_json)
    with display.progress_of(f"replay of {run}"):
        verdict = (follow if mode == "follow" else verify)(run, display, data_dir)
    click.echo(printed(verdict.as_dict()) if as_json else str(verdict))
    if verdict.interrupted:
        sys.exit(INTERRUPTED)


@main.command()
@click.argument("runs", nargs=-1, required=True, type=click.Path(path_type=Path))
@click.option("--out", type=click.Path(path_type=Path), help="The page; default: beside the first run, .html.")
@friendly
def report(runs: tuple[Path, ...], out: Path | None) -> None:
    """Write one self-contained page with plots of the run files RUNS.

    \b
    Example:
      hil report runs/digits-1.h5 runs/digits-2.h5 --out digits.html
    """
    from hil.report import write_report

    page = out or beside(runs[0], ".html")
    write_report(runs, page)
    click.echo(str(page))


@main.command()
@click.argument("run", type=click.Path(path_type=Path))
@click.option(
    "--out",
    type=click.Path(path_type=Path),
    help="Folder for Parquet tables of operations, pulses, readings and metrics.",
)
@click.option("--portable", type=click.Path(path_type=Path), help="A copy that is read without a compression plug-in.")
@click.option("--weights", type=click.Path(path_type=Path), help="The final weights as a safetensors file.")
@friendly
def export(run: Path, out: Path | None, portable: Path | None, weights: Path | None) -> None:
    """Write the run in RUN for other programs.

    \b
    Example:
      hil export runs/digits-1.h5 --out tables --portable digits-portable.h5
    """
    from hil.data.portable import copy_portable
    from hil.export import export_tables

    if out is None and portable is None and weights is None:
        raise click.UsageError("say what to write: --out DIR, --portable FILE, --weights FILE or several.")
    if out is not None:
        for name, rows in export_tables(run, out).items():
            click.echo(f"{out / name}: {rows} rows")
    if portable is not None:
        copy_portable(run, portable)
        click.echo(str(portable))
    if weights is not None:
        from hil.data.run import Run
        from hil.weights import write_weights

        with Run.open(run) as opened:
            write_weights(opened, weights)
        click.echo(str(weights))


@main.command()
@click.argument("run", type=click.Path(path_type=Path))
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object.")
@friendly
def info(run: Path, as_json: bool) -> None:
    """Say what the run file RUN holds: configuration, tester, counts, accuracy, and how the run ended.

    Of a run that is going on, says how far it is.

    \b
    Example:
      hil info runs/digits-1.h5
    """
    from hil.runinfo import describe

    found = describe(run)
    if as_json:
        click.echo(printed(found))
        return
    from hil.display import info_table

    info_table(found)


# Commands with files of their own add themselves to `main`.
import hil.cli_characterize  # noqa: E402
import hil.cli_check  # noqa: E402
import hil.cli_compare  # noqa: E402
import hil.cli_fit  # noqa: E402
import hil.cli_program  # noqa: E402
import hil.cli_twin  # noqa: E402, F401
