"""What a report says of the studies in a run file."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import hil.report_facts as facts
from hil.characterize import stored
from hil.data.run import Run
from hil.estimate import counted
from hil.protocols.errors import InputError
from hil.protocols.messages import MvmMode
from hil.report_figures import Picture
from hil.runinfo import in_words
from hil.studies import STUDIES
from hil.study_data import cells_of, is_stuck, rows_of, studies_of
from hil.study_figures import pictures_of
from hil.study_found import some, stuck


@dataclass(frozen=True)
class Part:
    """One study on the page."""

    name: str
    about: str
    settings: str
    notes: Sequence[str]
    pictures: Sequence[Picture]


@dataclass(frozen=True)
class Section:
    """One run file on the page."""

    label: str
    kind: facts.Kind
    state: str
    cells: str
    head: facts.Rows
    studies: Sequence[Part]
    amounts: Sequence[tuple[str, str, str]]  # name, estimate, done
    messages: Sequence[str]
    tables: Mapping[str, facts.Rows]


def section(run: Run, label: str) -> Section:
    """All that is said of a run file of studies."""
    return Section(
        label=label,
        kind=facts.kind_of(run),
        state=run.state,
        cells=f"{len(cells_of(run)):,}" if "cells" in run.snapshots else "none yet",
        head=_head(run),
        studies=[_part(run, study) for study in studies_of(run)],
        amounts=_amounts(run),
        messages=[text for _, text in run.messages],
        tables=facts.tables(run),
    )


def _head(run: Run) -> facts.Rows:
    shared = ("tester", "seed", "started", "operations", "device time", "run file")
    rows = dict(facts.head(run))
    return [("which cells", str(run.config["cells"])), *((name, rows[name]) for name in shared)]


def _part(run: Run, study: str) -> Part:
    """A study with its figures, or with why there are none."""
    notes: list[str] = []
    pictures: Sequence[Picture] = ()
    try:
        pictures = pictures_of(run, study)
        notes.append(_note(run, study))
    except InputError as error:
        notes.append(f"{error}.")
    about = _about(run, study)
    settings = in_words(run.config["studies"][study]) or "nothing to set"
    return Part(study, about[0].upper() + about[1:], settings, notes, pictures)


def _about(run: Run, study: str) -> str:
    """What a study tells, of such a tester."""
    if study == "linearity" and run.capabilities is not None and run.capabilities.mvm == MvmMode.NONE:
        return "reads of RESET cells: their offset"
    return STUDIES[study].about


def _note(run: Run, study: str) -> str:
    if study == "stuck":
        return f"Stuck: {stuck(is_stuck(run))}."
    return f"{some(len(rows_of(run, study)), 'measurement')}."


def _amounts(run: Run) -> list[tuple[str, str, str]]:
    if run.capabilities is None:
        return []
    expected = facts.amounts(stored(run.config).estimate(run.capabilities).amounts)
    done = facts.amounts(counted(run))
    return [(name, expected[name], done[name]) for name in expected]
