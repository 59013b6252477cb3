"""What a run file holds, in short."""

from dataclasses import asdict
from pathlib import Path
from typing import Any

from hil.data.column_reader import data_errors
from hil.data.run import Run
from hil.data.status import being_written, read_status


def describe(path: Path) -> dict[str, Any]:
    """State, configuration, tester, counts and metrics, JSON-able. Raises `InputError` for what is no run file.

    A run file that is being written is not opened: its status file says how far it is.
    """
    if being_written(path):
        return {"run": str(path), "state": "running"} | read_status(path) | {"metrics": [], "messages": []}
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
            "experiment": config["experiment"],
            "system": config["system"],
            "tester": "none" if identity is None else f"{identity.kind}: {identity.model}, chip {identity.chip}",
            "uri": config["tester"],
            "data": config["data"],
            "seed": config["seed"],
            "epochs": f"{len(rows)} of {config['epochs']}",
            "test_accuracy": rows[-1]["test_accuracy"] if rows else None,
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
            "messages": [text for _, text in run.messages],
        }
