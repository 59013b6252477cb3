"""`hil twin`: the software twin as a tester of its own, which other programs reach through TCP or a serial port."""

import signal
from pathlib import Path
from types import FrameType
from typing import TYPE_CHECKING

import click

from hil.cli import friendly, main, printed
from hil.protocols.errors import InputError

if TYPE_CHECKING:
    from hil.mock_hw.ports import Codec
    from hil.mock_hw.server import Server


@main.group()
def twin() -> None:
    """Serve the software twin as a tester of its own.

    \b
    Example:
      hil twin serve --tcp 5025 --twin chip.h5?chip=pcm-analog
    """


@twin.command()
@click.option("--tcp", metavar="[HOST:]PORT", help="Listen there; HOST is 127.0.0.1 unless given, port 0 picks one.")
@click.option("--pty", type=click.Path(path_type=Path), help="Make a pseudo terminal and a link to it at this path.")
@click.option(
    "--twin", "name", default="", help="NAME of a chip or FILE.h5 of a kept one, with ?key=value&... as in twin: URIs."
)
@click.option("--seed", type=click.IntRange(min=0), help="Makes a new chip and its noise; default: 1.")
@click.option("--codec", type=click.Choice(["auto", "scpi", "frames"]), default="auto", help="What it speaks.")
@click.option("--faults", type=click.Path(path_type=Path), help="Plan of the faults that it makes, a .toml file.")
@click.option(
    "--clock",
    default="virtual",
    help="How long operations take: virtual (no time; the default), scaled:N (N times faster than a device) or wall.",
)
@click.option("--json", "as_json", is_flag=True, help="Print the URI as a JSON object.")
@friendly
def serve(
    tcp: str | None,
    pty: Path | None,
    name: str,
    seed: int | None,
    codec: "Codec",
    faults: Path | None,
    clock: str,
    as_json: bool,
) -> None:
    """Serve a twin until Ctrl-C, to one client at a time. Prints one line: the URI by which it is opened.

    A chip kept in a file outlives this process, however that ends, with all that was done to it.

    \b
    Examples:
      hil twin serve --tcp 5025 --twin pcm-90nm
      hil twin serve --pty /tmp/tester --twin chip.h5?chip=pcm-analog --clock wall
    """
    from hil.mock_hw.clocks import parse_clock
    from hil.mock_hw.faults import load_plan
    from hil.serving import serving, tcp_address

    if tcp is not None and pty is None:
        where: tuple[str, int] | Path = tcp_address(tcp)
    elif pty is not None and tcp is None:
        where = pty
    else:
        raise InputError("say where to serve: --tcp HOST:PORT or --pty PATH, one of them")
    plan = load_plan(faults) if faults else None
    with serving(_uri(name, seed), where, codec, parse_clock(clock), plan) as server:
        _stop_on_signals(server)
        click.echo(printed({"uri": server.uri}) if as_json else server.uri)
        if not server.local:
            click.echo("Warning: anyone who reaches this port can use the chip.", err=True)
        click.echo("Serving; Ctrl-C ends it.", err=True)
        server.run()
    if plan is not None:
        click.echo(f"Faults: {plan.summary()}", err=True)
    click.echo("stopped", err=True)


def _stop_on_signals(server: "Server") -> None:
    """The first Ctrl-C or SIGTERM ends the server; further ones are ignored, until the process is gone."""
    numbers = (signal.SIGINT, signal.SIGTERM)

    def stop(number: int, frame: FrameType | None) -> None:
        for each in numbers:
            signal.signal(each, signal.SIG_IGN)
        server.stop()

    for number in numbers:
        signal.signal(number, stop)


def _uri(name: str, seed: int | None) -> str:
    uri = f"twin:{name.removeprefix('twin:')}"
    return uri if seed is None else f"{uri}{'&' if '?' in name else '?'}seed={seed}"
