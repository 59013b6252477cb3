"""From what was asked on the command line to the runs to be made, and from their results to one summary."""

import os
from collections import Counter
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from statistics import mean, stdev
from typing import Any

from hil.bench import check_apart, kept_chip
from hil.config import load_settings
from hil.protocols.errors import InputError
from hil.train import Job, Result

RUNS = Path("runs")


def plan(
    experiment: str,
    *,
    tester: str | None = None,
    data_dir: Path | None = None,
    out: Path | None = None,
    overwrite: bool = False,
    durable: bool = False,
    epochs: int | None = None,
    seed: int | None = None,
    seeds: int = 1,
    changes: Sequence[str] = (),
    meta: Sequence[str] = (),
    argv: tuple[str, ...] = (),
) -> list[Job]:
    """The runs: one, or one for each of `seeds` seeds. Raises `InputError` if any of them could not be made or kept."""
    settings, text = load_settings(experiment, changes)
    chosen = {"tester": tester, "epochs": epochs, "seed": seed}
    settings = settings.model_copy(update={key: value for key, value in chosen.items() if value is not None})
    notes = dict(parse_note(note) for note in meta)
    name = Path(experiment).stem
    if out is not None and os.path.isdir(out):
        raise InputError(f"{out} is a folder: name a run file with --out, such as {out / name}.h5")
    if seeds > 1 and kept_chip(settings.tester) and "?" in settings.tester:
        raise InputError(
            f"tester {settings.tester}: the first of {seeds} runs would make the chip, and the others find it there: "
            "make it by a run of its own, then name it without what follows the question mark"
        )
    jobs = []
    for number in range(settings.seed, settings.seed + seeds):
        path = out or RUNS / f"{name}-{number}.h5"
        if out is not None and seeds > 1:
            path = out.with_name(f"{out.stem}-{number}{out.suffix}")
        if os.path.exists(path) and not overwrite:
            raise InputError(f"{path} exists: choose another name with --out, or give --overwrite to replace it")
        check_apart(settings.tester, path)
        one = settings.model_copy(update={"seed": number})
        _make_folder(path.parent)
        jobs.append(Job(name, one, text, path, data_dir, overwrite, durable, argv, notes))
    return jobs


def _make_folder(folder: Path) -> None:
    try:
        folder.mkdir(exist_ok=True)
    except OSError as error:
        raise InputError(f"folder {folder} cannot be made ({error.strerror}): name a run file with --out") from error


def parse_note(text: str) -> tuple[str, str]:
    """Key and value of a `--meta`."""
    key, equals, value = text.partition("=")
    if not equals or not key:
        raise InputError(f"--meta {text!r} is not of the form key=value")
    return key, value


def standard_error(values: Sequence[float]) -> float | None:
    """Of the mean; None for a single value."""
    return stdev(values) / len(values) ** 0.5 if len(values) > 1 else None


def summary(results: Sequence[Result]) -> dict[str, Any]:
    """One run's result; of several, the means, totals and all findings, with each run's own under `runs`."""
    rows = [asdict(result) for result in results]
    if len(rows) == 1:
        return rows[0]
    accuracies = [result.test_accuracy for result in results]
    means = {key: mean(row[key] for row in rows) for key in ("test_accuracy", "images_per_second", "image_period")}
    totals = {
        key: sum(row[key] for row in rows)
        for key in ("set_pulses", "reset_pulses", "refreshes", "operations", "images")
    }
    findings = {
        "findings": tuple(dict.fromkeys(text for result in results for text in result.findings)),
        "finding_counts": dict(sum((Counter(result.finding_counts) for result in results), Counter[str]())),
    }
    seeds = {"seeds": [result.seed for result in results], "standard_error": standard_error(accuracies)}
    return rows[0] | means | totals | findings | seeds | {"interrupted": rows[-1]["interrupted"], "runs": rows}
