"""A run that goes wrong says why, once for each cause and with numbers; a healthy one says nothing."""

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest

from hil.diagnosis import LEARNING_AFTER, WINDOW, Diagnosis, LayerTally
from hil.train import Job, train

HEALTHY = LayerTally(
    name="layer 1",
    weights=5000,
    crossings=1000,
    set_pulses=1200,
    refreshes=100,
    sent=1500,
    at_limit=30,
    converted={"forward": 100_000, "backward": 100_000},
    saturated={"forward": 1000, "backward": 1000},
)
"""What a window of images adds to the totals of a layer."""


COUNTS = ("crossings", "set_pulses", "refreshes", "sent", "at_limit")


def plus(total: LayerTally, more: LayerTally, windows: int = 1) -> LayerTally:
    """The totals after so many windows more."""
    before, new = vars(total), vars(more)
    counts = {key: before[key] + windows * new[key] for key in COUNTS}
    codes = {
        key: {way: before[key][way] + windows * count for way, count in new[key].items()}
        for key in ("converted", "saturated")
    }
    return replace(total, **counts, **codes)  # type: ignore[arg-type]


NOTHING = plus(HEALTHY, HEALTHY, -1)


class Watched:
    """A diagnosis after a healthy first epoch of ten windows; further windows can be added."""

    def __init__(self) -> None:
        self.said: list[str] = []
        self.diagnosis = Diagnosis(10, self.said.append)
        self.images, self.total = 0, NOTHING
        self.windows(HEALTHY, 10)
        self.diagnosis.epoch_done(0.9, 10_000)

    def windows(self, tally: LayerTally, count: int, accuracy: float = 0.9) -> None:
        for _ in range(count):
            self.images += WINDOW
            self.total = plus(self.total, tally)
            self.diagnosis.look([self.total], self.images, WINDOW, accuracy)


@pytest.fixture
def watched() -> Watched:
    return Watched()


def test_more_of_the_same_says_nothing(watched: Watched) -> None:
    watched.windows(HEALTHY, 50)
    watched.diagnosis.epoch_done(0.89, 10_000)
    watched.windows(plus(HEALTHY, HEALTHY), 20)
    assert watched.said == []


@pytest.mark.parametrize(
    ("wrong", "cause", "numbers"),
    [
        ({"set_pulses": 2900, "crossings": 2500}, None, ""),
        (
            {"set_pulses": 9000, "crossings": 8000},
            "pulses per image, layer 1",
            "layer 1, after 11000 images: 9.00 pulses per image, the first epoch's median was 1.20",
        ),
        (
            {"refreshes": 600},
            "refreshes per image, layer 1",
            "layer 1, after 11000 images: 0.60 refreshes per image, the first epoch's median was 0.10",
        ),
        (
            {"set_pulses": 4000},
            "pulses per crossing, layer 1",
            "layer 1, after 11000 images: 4.0 pulses each time chi reaches the granularity (limit 3.0)",
        ),
        (
            {"saturated": {"forward": 35_000, "backward": 1000}},
            "forward saturation, layer 1",
            "layer 1, after 11000 images: 35.0% of forward ADC codes are saturated (limit 30%)",
        ),
        (
            {"saturated": {"forward": 1000, "backward": 6000}},
            "backward saturation, layer 1",
            "layer 1, after 11000 images: 6.0% of backward ADC codes are saturated (limit 5%)",
        ),
        (
            {"at_limit": 400},
            "conductance saturation, layer 1",
            "layer 1, after 11000 images: 26.7% of SET pulses met an end of the conductance range (limit 20%)",
        ),
    ],
)
def test_each_cause_is_told_once_with_its_numbers(
    wrong: dict[str, Any], cause: str | None, numbers: str, watched: Watched
) -> None:
    watched.windows(replace(HEALTHY, **wrong), 4)
    if cause is None:
        assert watched.said == []
        return
    assert len(watched.said) == 1
    assert numbers in watched.said[0]
    assert watched.diagnosis.findings == watched.said
    assert watched.diagnosis.counts == {cause: 4}


def test_a_refresh_storm_is_told_from_a_high_rate_of_a_small_layer() -> None:
    watched = Watched()
    watched.windows(replace(HEALTHY, refreshes=1100), 3)  # 110 of 5000 pairs in 100 images
    storm = [text for text in watched.said if "pairs refreshed per 100 images" in text]
    assert len(storm) == 1
    assert "110 of 5000 pairs refreshed per 100 images (limit 2%)" in storm[0]
    assert watched.diagnosis.counts["refresh storm, layer 1"] == 3


def test_a_storm_is_seen_in_the_first_epoch_already() -> None:
    said: list[str] = []
    diagnosis = Diagnosis(10, said.append)
    for window in range(3):
        diagnosis.look([plus(NOTHING, replace(HEALTHY, refreshes=2000), window)], window * WINDOW, WINDOW, 0.5)
    assert len(said) == 1


def test_each_layer_is_told_of_by_itself() -> None:
    said: list[str] = []
    diagnosis = Diagnosis(10, said.append)
    bad = replace(HEALTHY, at_limit=900)
    for window in range(4):
        worse = plus(NOTHING, bad, window)
        layers = [plus(NOTHING, HEALTHY, window), *(replace(worse, name=f"layer {n}") for n in (2, 3))]
        diagnosis.look(layers, window * WINDOW, WINDOW, 0.5)
    assert [text.partition(",")[0] for text in said] == ["layer 2", "layer 3"]


def test_few_codes_are_no_ground_for_alarm(watched: Watched) -> None:
    few = {"converted": {"forward": 900, "backward": 900}, "saturated": {"forward": 900, "backward": 900}}
    watched.windows(replace(HEALTHY, **few), 3)  # type: ignore[arg-type]
    assert watched.said == []


def test_falling_accuracy_is_told_with_what_it_was(watched: Watched) -> None:
    watched.diagnosis.epoch_done(0.885, 10_000)
    assert watched.said == []
    watched.diagnosis.epoch_done(0.87, 10_000)
    watched.diagnosis.epoch_done(0.5, 10_000)
    assert watched.said == ["accuracy fell to 87.00% from 90.00%"]


def test_a_fall_within_the_statistics_of_a_small_test_set_is_not_told() -> None:
    said: list[str] = []
    diagnosis = Diagnosis(10, said.append)
    diagnosis.epoch_done(0.96, 359)
    diagnosis.epoch_done(0.925, 359)  # 3.4 standard errors
    assert said == []
    diagnosis.epoch_done(0.91, 359)
    assert len(said) == 1


@pytest.mark.parametrize(("accuracy", "told"), [(0.15, True), (0.25, False)])
def test_a_network_that_does_not_learn_is_told_of_after_a_while(accuracy: float, told: bool) -> None:
    said: list[str] = []
    diagnosis = Diagnosis(10, said.append)
    diagnosis.look([], LEARNING_AFTER - 1, WINDOW, accuracy)
    assert said == []
    diagnosis.look([], LEARNING_AFTER, WINDOW, accuracy)
    diagnosis.look([], LEARNING_AFTER + WINDOW, WINDOW, accuracy)
    assert len(said) == told
    assert not told or f"running accuracy is 15.0% after {LEARNING_AFTER} images (chance is 10.0%)" in said[0]


@pytest.mark.parametrize("run", ["digits_run", "digits_run_by_reading"])
def test_a_healthy_run_has_no_findings(run: str, request: pytest.FixtureRequest) -> None:
    made = request.getfixturevalue(run)
    assert made.result.findings == ()
    assert made.watcher.findings == []


@pytest.mark.parametrize(("system", "batch"), [("mixed-precision", 1), ("float", 10)])
def test_a_wild_learning_rate_is_told_of(system: str, batch: int, make_job: Callable[..., Job], observer: Any) -> None:
    job = make_job(train_images=1400, epochs=4, lr=100.0, system=system, batch_size=batch)
    result = train(job, observer)
    assert result.test_accuracy < 0.3
    assert any("accuracy is 1" in text or "accuracy is 9" in text for text in result.findings)
    assert observer.findings == list(result.findings)
    assert len(set(result.findings)) == len(result.findings)
    if system != "float":
        assert any("pulses each time chi reaches the granularity" in text for text in result.findings)
        assert any("ADC codes are saturated" in text for text in result.findings)
