"""`hil compare`: two run files side by side."""

from pathlib import Path

import click

from hil.cli import friendly, main, printed


@main.command()
@click.argument("first", type=click.Path(path_type=Path))
@click.argument("second", type=click.Path(path_type=Path))
@click.option("--out", type=click.Path(path_type=Path), help="A page with the distributions side by side.")
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object.")
@friendly
def compare(first: Path, second: Path, out: Path | None, as_json: bool) -> None:
    """Compare the run files FIRST and SECOND: a twin's and a chip's, or those of two chips.

    Of what both measured it tells how far the distributions are apart, and where they part: conductances, noise of
    reads and drift of two studies; conductances, pulses and accuracy of two training runs; accuracy over time.

    \b
    Example:
      hil compare chip.h5 twin.h5 --out compared.html
    """
    from hil.compare import compare as find

    found = find(first, second)
    if out is not None:
        from hil.compare_report import write_comparison

        write_comparison(found, out)
    if as_json:
        click.echo(printed(found.as_dict()))
        return
    from hil.tables import comparison_table

    comparison_table(found)
    if out is not None:
        click.echo(str(out))
