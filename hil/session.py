"""A tester with its log, from the moment it is opened until it is let go of."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from hil.data.schema import Start
from hil.instruments.batching import BatchingTester
from hil.instruments.tester import ArrayTester
from hil.loop import Log
from hil.mock_hw.twin import TwinTester
from hil.protocols.messages import TesterKind
from hil.provenance import git_commit, host, versions


def twin_seed(seed: int) -> np.random.SeedSequence:
    """The seed of the twin in a run."""
    return np.random.SeedSequence(seed).spawn(2)[0]


def outlives(raw: ArrayTester | None) -> bool:
    """Whether a tester, unlike a twin in this process or a recording, goes on existing when the process is killed."""
    if raw is None or isinstance(raw, TwinTester):  # whose memory takes a while to write down
        return False
    return raw.identify().kind != TesterKind.REPLAY and raw.memory() is None


def start_of(
    config: dict[str, Any],
    seed: int,
    argv: tuple[str, ...],
    meta: dict[str, str],
    tester: ArrayTester | None,
    config_text: str = "",
    log: str = "full",
) -> Start:
    """What a run file begins with."""
    return Start(
        config=config,
        config_text=config_text,
        argv=argv,
        seed=seed,
        versions=versions(),
        host=host(),
        git_commit=git_commit(),
        meta=meta,
        identity=tester.identify() if tester else None,
        capabilities=tester.capabilities() if tester else None,
        log=log,
        outlives=outlives(tester),
    )


@contextmanager
def released_on_error(raw: ArrayTester | None) -> Iterator[None]:
    """Let go of a tester that others may want, where the run cannot begin. A twin's chip is left as it was kept."""
    try:
        yield
    except BaseException:
        if raw is not None and outlives(raw):
            raw.close()
        raise


@dataclass
class Ending:
    """How a run file is closed."""

    status: str = "failed"
    counts: dict[str, int] = field(default_factory=dict)


@contextmanager
def recorded(
    raw: ArrayTester | None, wrap: Callable[[ArrayTester], ArrayTester], log: Log
) -> Iterator[tuple[ArrayTester | None, Ending]]:
    """The tester with its log. Whatever happens, it ends in its safe state and the file is closed with how it ended."""
    ending = Ending()
    try:
        with raw if raw is not None else nullcontext():
            yield (None if raw is None else BatchingTester(wrap(raw))), ending
    except KeyboardInterrupt:
        ending.status = "interrupted"
        raise
    except BaseException as error:
        ending.status = f"failed: {type(error).__name__}: {error}"
        raise
    finally:
        log.close(ending.status, ending.counts)
