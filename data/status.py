"""The live state of a run, for other processes: a small JSON file beside the run file."""

import fcntl
import json
import os
import socket
from collections.abc import Mapping
from datetime import UTC, datetime
from pathlib import Path
from typing import Any


def status_path(path: Path) -> Path:
    """Where the state of a run file is."""
    return path.with_name(f"{path.name}.status.json")


def write_status(path: Path, status: Mapping[str, Any]) -> None:
    """Replace the state of the run file `path` at once: a reader sees the old one or the new one. Raises OSError."""
    about = {"utc": datetime.now(UTC).isoformat(), "host": socket.gethostname(), "process": os.getpid()}
    place = status_path(path)
    temporary = place.with_name(f"{place.name}.part")
    temporary.write_text(json.dumps({**status, **about}) + "\n")
    os.replace(temporary, place)


def remove_status(path: Path) -> None:
    """The run has stopped: its file says how."""
    status_path(path).unlink(missing_ok=True)


def being_written(path: Path) -> bool:
    """Whether a process has the run file open for writing."""
    try:
        with path.open("rb") as file:
            fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except BlockingIOError:
        return True
    except OSError:
        return False
    return False


def read_status(path: Path) -> dict[str, Any]:
    """The state of the run file `path`; empty where there is none."""
    try:
        found = json.loads(status_path(path).read_text())
    except (OSError, ValueError):
        return {}
    return found if isinstance(found, dict) else {}
