"""Measure devices by studies: a procedure whose run file the fits, reports and comparisons work on."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

from hil.cells import keep_cells, parse_cells
from hil.desk import Desk
from hil.estimate import Estimate, estimate
from hil.procedure import Bench
from hil.protocols.errors import InputError
from hil.protocols.messages import Capabilities
from hil.studies import NAME, STUDIES, Settings


@dataclass(frozen=True)
class Characterize:
    """Some studies, one after the other, on some cells."""

    studies: tuple[tuple[str, Settings], ...]
    cells: str
    """As `hil.cells.parse_cells` takes it."""

    @property
    def name(self) -> str:
        return NAME

    def config(self) -> dict[str, Any]:
        """The cells, and the studies with what can be set of each."""
        used = {name: {key: vars(settings)[key] for key in STUDIES[name].defaults} for name, settings in self.studies}
        return {"cells": self.cells, "studies": used}

    def check(self, capabilities: Capabilities) -> None:
        self.estimate(capabilities)

    def estimate(self, capabilities: Capabilities) -> Estimate:
        """What it costs on such a tester. Raises `InputError` where it cannot be done."""
        return _estimate(self, capabilities)

    def run(self, bench: Bench) -> None:
        self.perform(bench, self.estimate(bench.tester.capabilities()).amounts.operations)

    def perform(self, bench: Bench, total: int) -> None:
        """All studies, of which it is known that they take `total` operations."""
        cells = parse_cells(self.cells, bench.tester.capabilities())
        keep_cells(bench.log, "cells", cells)
        for number, (name, settings) in enumerate(self.studies):
            STUDIES[name].run(Desk(bench, number, name, cells, settings, total))
        bench.observer.steps(total, total, "done")


@lru_cache(maxsize=1)
def _estimate(procedure: Characterize, capabilities: Capabilities) -> Estimate:
    return estimate(lambda bench: procedure.perform(bench, 0), capabilities)


def chosen(names: Sequence[str], cells: str, given: Mapping[str, Any]) -> Characterize:
    """The studies of these names, with what was `given` for all that have a use for it.

    Raises `InputError` for an unknown study, one that is named twice, a value that makes no sense or is of no use.
    """
    for name in names:
        if name not in STUDIES:
            raise InputError(f"unknown study {name!r}; there are {', '.join(STUDIES)}")
        if names.count(name) > 1:
            raise InputError(f"study {name} is named twice: a second one needs a run file of its own")
    for key in given:
        if not any(key in STUDIES[name].defaults for name in names):
            users = [name for name, study in STUDIES.items() if key in study.defaults]
            raise InputError(f"{key} is of no use to {', '.join(names)}, only to {', '.join(users)}")
    return Characterize(tuple((name, _settings(name, given)) for name in names), cells)


def _settings(name: str, given: Mapping[str, Any]) -> Settings:
    study = STUDIES[name]
    return study.settings(**{key: value for key, value in given.items() if key in study.defaults})


def stored(config: Mapping[str, Any]) -> Characterize:
    """From what a run file says of itself. Raises `InputError` where this version does not know it."""
    try:
        known = {name: dict(values) for name, values in config["studies"].items()}
        for values in known.values():
            if "times" in values:
                values["times"] = tuple(values["times"])
        studies = tuple((name, STUDIES[name].settings(**values)) for name, values in known.items())
        return Characterize(studies, str(config["cells"]))
    except (LookupError, TypeError, AttributeError) as error:
        raise InputError(f"the studies {config.get('studies')!r} are not known to this version: {error}") from error
