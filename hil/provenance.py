"""What a run file says of where it comes from."""

import os
import platform
import subprocess
from importlib.metadata import version
from pathlib import Path

import torch

PACKAGES = ("pcm-hil", "numpy", "torch", "numba", "h5py", "hdf5plugin", "scikit-learn")


def versions() -> dict[str, str]:
    """Versions of what computes the results."""
    return {"python": platform.python_version()} | {name: version(name) for name in PACKAGES}


def host() -> dict[str, str | int]:
    """The machine: results are promised to repeat bit for bit on the same CPU capability only."""
    return {
        "platform": platform.platform(),
        "machine": platform.machine(),
        "cpu_capability": torch.backends.cpu.get_cpu_capability(),
        "cpus": os.cpu_count() or 1,
    }


def git_commit() -> str | None:
    """Commit of the checkout that the code runs from, with `+` if it has changes; None outside a checkout."""
    folder = Path(__file__).parent
    try:
        commit = _git(folder, "rev-parse", "HEAD")
        tracked = _git(folder, "ls-files", "--error-unmatch", Path(__file__).name)
        return commit + ("+" if _git(folder, "status", "--porcelain", "-uno") else "") if tracked else None
    except (OSError, subprocess.SubprocessError):
        return None


def _git(folder: Path, *arguments: str) -> str:
    done = subprocess.run(["git", *arguments], cwd=folder, capture_output=True, text=True, timeout=10, check=True)
    return done.stdout.strip()
