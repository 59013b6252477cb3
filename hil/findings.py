"""Pages of findings: a title, whose data they are, numbers, and parts with a table and figures each."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import hil.report_facts as facts
from hil.pages import rendered, store
from hil.report_figures import Picture

Table = tuple[Sequence[str], Sequence[Sequence[str]]]
"""Names of columns, and rows of texts."""


@dataclass(frozen=True)
class Part:
    """One thing that was found."""

    name: str
    text: str
    pictures: Sequence[Picture] = ()
    table: Table | None = None


@dataclass(frozen=True)
class Findings:
    """What a page shows."""

    title: str
    kinds: Sequence[tuple[str, facts.Kind]]
    """Whose data, and of which kind they are."""
    results: Sequence[tuple[str, str]]
    """What one looks for first."""
    parts: Sequence[Part]
    messages: Sequence[str] = ()
    tables: Mapping[str, facts.Rows] = field(default_factory=dict)
    """Where it comes from."""


def page_of(findings: Findings) -> str:
    """The page."""
    return rendered("findings.html", page=findings)


def write_findings(findings: Findings, out: Path) -> None:
    """Write the page; an earlier page at `out` is replaced, other files are not. Raises as `hil.pages.store`."""
    store(out, page_of(findings))
