"""A run file says which code on which machine made it."""

import json
import re
import runpy
import shutil
import subprocess
import sys
from importlib.metadata import version
from pathlib import Path

from hil import provenance


def test_versions_are_those_installed() -> None:
    found = provenance.versions()
    assert found["pcm-hil"] == version("pcm-hil")
    assert found["python"] == ".".join(map(str, sys.version_info[:3]))
    assert found.keys() >= {"numpy", "torch", "numba", "h5py"}


def test_the_machine_is_described_in_json() -> None:
    assert json.loads(json.dumps(provenance.host()))["cpu_capability"]


def git(folder: Path, *arguments: str) -> None:
    identity = ["-c", "user.name=x", "-c", "user.email=x@x"]
    subprocess.run(["git", *identity, *arguments], cwd=folder, check=True, capture_output=True)


def commit_seen_by(code: Path) -> str | None:
    """What the function says in a copy of its module."""
    commit: str | None = runpy.run_path(str(code))["git_commit"]()
    return commit


def test_the_commit_is_that_of_the_checkout_with_a_mark_for_changes(tmp_path: Path) -> None:
    code = tmp_path / "provenance.py"
    shutil.copy(provenance.__file__, code)
    assert commit_seen_by(code) is None
    git(tmp_path, "init")
    git(tmp_path, "commit", "--allow-empty", "-m", "unrelated")
    assert commit_seen_by(code) is None, "the file is not part of that checkout"
    git(tmp_path, "add", ".")
    git(tmp_path, "commit", "-m", "mine")
    clean = commit_seen_by(code)
    assert re.fullmatch(r"[0-9a-f]{40}", clean or "")
    code.write_text(code.read_text() + "# changed\n")
    assert commit_seen_by(code) == f"{clean}+"
