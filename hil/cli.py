"""The command line. Each command is a short shell over a function that can be called without it."""

import json
import math
import sys
from collections.abc import Callable
from functools import wraps
from pathlib import Path
from typing import Any, ParamSpec

import click

from hil.protocols.errors import HilError

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
    if results[-1].interrupted:
        stopped = results[-1]
        click.echo(
            f"Interrupted after {stopped.images} images. {stopped.run} holds the run up to there: "
            f"see `hil info {stopped.run}`; the same command with --overwrite starts again.",
            err=True,
        )
        sys.exit(INTERRUPTED)


@main.command()
@click.argument("run", type=click.Path(path_type=Path))
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object.")
@friendly
def info(run: Path, as_json: bool) -> None:
    """Say what the run file RUN holds: configuration, tester, counts, accuracy, and how the run ended.

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
