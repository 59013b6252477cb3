"""What a run file holds, in short."""

from dataclasses import asdict
from pathlib import Path
from typing import Any

from hil.data.column_reader import data_errors
from hil.data.run import Run
from hil.data.status import being_written, read_status
from hil.durations import written


def describe(path: Path) -> dict[str, Any]:
    """State, configuration, tester, counts and metrics, JSON-able. Raises `InputError` for what is no run file.

    A run file that is being written is not opened: its status file says how far it is.
    """
    if being_written(path):
        return {"run": str(path), "state": "running"} | read_status(path) | {"metrics": [], "found": {}, "messages": []}
    with Run.open(path) as run, data_errors(str(path), "the summary"):
        config, metrics = run.config, run.metrics
        rows = [
            dict(zip(metrics, row, strict=True))
            for row in zip(*(values.tolist() for values in metrics.values()), strict=True)
        ]
        identity = run.identity
        return {
            "run": str(path),
            "state": run.state,
            "tester": "none" if identity is None else f"{identity.kind}: {identity.model}, chip {identity.chip}",
            "uri": config["tester"],
            "seed": config["seed"],
            **(_training(config, rows) if config.get("procedure") is None else _procedure(config, rows)),
            "operations": run.operations.rows,
            "bytes": path.stat().st_size,
            "started": run.created_utc,
            "resumed": len(run.sessions),
            "log": run.start.log,
            "identity": asdict(identity) if identity else {},
            "config": config,
            "meta": run.start.meta,
            "counts": run.counts,
            "metrics": rows,
            "found": _found(run),
            "messages": [text for _, text in run.messages],
        }


def procedure_of(path: Path) -> str | None:
    """The command that made a run file, such as `characterize`; None of training. Raises `InputError` as `describe`."""
    with Run.open(path) as run:
        return run.config.get("procedure")


def _training(config: dict[str, Any], rows: list[dict[str, Any]]) -> dict[str, Any]:
    return {
        "experiment": config["experiment"],
        "system": config["system"],
        "data": config["data"],
        "epochs": f"{len(rows)} of {config['epochs']}",
        "test_accuracy": rows[-1]["test_accuracy"] if rows else None,
    }


def _procedure(config: dict[str, Any], rows: list[dict[str, Any]]) -> dict[str, Any]:
    """What is no part of every run file, in words."""
    own = {key: setting(key, value) for key, value in config.items() if key not in ("tester", "seed", "network")}
    if "network" in config:
        own["data"] = config["network"]["data"]
    return own | {"measurements": len(rows)}


def setting(key: str, value: Any) -> str:
    """What a setting is, with its unit."""
    if key in ("interval", "settle"):
        return written(value)
    if key == "times":
        return ",".join(map(written, value))
    return f"{value * 1e6:g} uS" if key == "margin" else in_words(value)


def _found(run: Run) -> dict[str, str]:
    """What studies found."""
    if run.config.get("procedure") != "characterize":
        return {}
    from hil.study_found import findings  # brings torch, which other runs do without

    return findings(run)


def in_words(value: Any) -> str:
    """Settings for a reader: `staircase (reads 50, pulses 20), stuck` of a mapping of mappings."""
    if isinstance(value, dict):
        return ", ".join(_entry(key, item) for key, item in value.items())
    return f"{value:g}" if isinstance(value, float) else str(value)


def _entry(key: str, value: Any) -> str:
    if isinstance(value, dict):
        return f"{key} ({in_words(value)})" if value else key
    return f"{key} {setting(key, value)}"
