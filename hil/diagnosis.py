"""Say why a run goes wrong: once per cause, with numbers."""

from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from statistics import median
from typing import Any

WINDOW = 1000
"""Images between two looks."""
TIMES_MEDIAN = 5.0
"""Pulses and refreshes per image are far above normal at so many times the median of the first epoch."""
FEW = 0.1
"""Pulses or refreshes per image below which a median is no measure of what is normal."""
PULSES_PER_CROSSING = 3.0
"""More pulses than this each time chi reaches the granularity: the steps are too large for the devices."""
REFRESH_STORM = 0.02
"""Fraction of all pairs refreshed per 100 images from which on weights are rewritten faster than they are trained."""
SATURATED = {"forward": 0.3, "backward": 0.05, "conductance": 0.2}
"""Fraction of ADC codes, and of SET pulses, that may meet an end of the range. Many outputs may: a sigmoid hides it."""
FALL = 0.02
"""Accuracy lost since the best evaluation,"""
STANDARD_ERRORS = 4.0
"""where it is more than so many standard errors of that evaluation."""
CHANCE = 2.0
"""A network that learns is right so many times more often than by chance,"""
LEARNING_AFTER = 5000
"""after so many images."""


@dataclass(frozen=True)
class LayerTally:
    """Running totals of one layer."""

    name: str
    weights: int
    crossings: int
    set_pulses: int
    refreshes: int
    sent: int  # SET pulses, those of refreshes too
    at_limit: int  # SET pulses that met an end of the conductance range
    converted: dict[str, int]  # ADC codes by direction
    saturated: dict[str, int]  # of these, at an end of the range


@dataclass
class Diagnosis:
    """Watches running totals and accuracies; `findings` holds what was said, `counts` how often each cause was seen."""

    classes: int
    report: Callable[[str], None]
    findings: list[str] = field(default_factory=list)
    counts: dict[str, int] = field(default_factory=dict)
    _last: list[LayerTally] = field(default_factory=list)
    _rates: dict[str, list[float]] = field(default_factory=dict)
    _normal: dict[str, float] = field(default_factory=dict)
    _best: float = 0.0
    _images: int = 0

    def state(self) -> dict[str, Any]:
        """For `restore`."""
        own = {name: value for name, value in vars(self).items() if name not in ("classes", "report", "_last")}
        return own | {"_last": [asdict(tally) for tally in self._last]}

    def restore(self, state: dict[str, Any]) -> None:
        """Go on from what `state()` gave."""
        vars(self).update(state)
        self._last = [LayerTally(**tally) for tally in state["_last"]]

    def look(self, tallies: list[LayerTally], images: int, since: int, running_accuracy: float) -> None:
        """Compare the totals after `images` with those `since` images ago."""
        for now, before in zip(tallies, self._last or tallies, strict=True):
            if self._last:
                self._look_at(now, before, images, since)
        self._last = tallies
        self._images = images
        if images >= LEARNING_AFTER:
            self._look_at_accuracy(running_accuracy, "running accuracy")

    def _look_at_accuracy(self, accuracy: float, what: str) -> None:
        chance = 1 / self.classes
        if accuracy < CHANCE * chance:
            self._found(
                "not learning",
                f"{what} is {accuracy:.1%} after {self._images} images (chance is {chance:.1%}): "
                "the rate may be too high or the initial weights too large",
            )

    def epoch_done(self, accuracy: float, images: int) -> None:
        """Take the first epoch's medians as normal; compare the accuracy, measured on so many images, with the best."""
        if not self._normal:
            self._normal = {key: median(values) for key, values in self._rates.items()}
            if self._images >= WINDOW:
                self._look_at_accuracy(accuracy, "accuracy")
        chance = STANDARD_ERRORS * (self._best * (1 - self._best) / images) ** 0.5
        if accuracy < self._best - max(FALL, chance):
            self._found("accuracy falling", f"accuracy fell to {accuracy:.2%} from {self._best:.2%}")
        self._best = max(self._best, accuracy)

    def _look_at(self, now: LayerTally, before: LayerTally, images: int, since: int) -> None:
        pulses, crossings = now.set_pulses - before.set_pulses, now.crossings - before.crossings
        refreshes, at = now.refreshes - before.refreshes, f"{now.name}, after {images} images"
        self._compare(now.name, "pulses per image", pulses / since, at)
        self._compare(now.name, "refreshes per image", refreshes / since, at)
        if crossings and pulses / crossings > PULSES_PER_CROSSING:
            self._found(
                f"pulses per crossing, {now.name}",
                f"{at}: {pulses / crossings:.1f} pulses each time chi reaches the granularity "
                f"(limit {PULSES_PER_CROSSING}): lower the rate or raise the granularity",
            )
        if refreshes / now.weights * 100 / since > REFRESH_STORM:
            self._found(
                f"refresh storm, {now.name}",
                f"{at}: {refreshes * 100 / since:.0f} of {now.weights} pairs refreshed per 100 images "
                f"(limit {REFRESH_STORM:.0%}): weights are rewritten faster than they are trained; lower the rate",
            )
        for direction, total in now.converted.items():
            self._saturation(
                now.name,
                direction,
                total - before.converted[direction],
                now.saturated[direction] - before.saturated[direction],
                at,
            )
        self._saturation(now.name, "conductance", now.sent - before.sent, now.at_limit - before.at_limit, at)

    def _compare(self, name: str, what: str, rate: float, at: str) -> None:
        key = f"{what}, {name}"
        if not self._normal:
            self._rates.setdefault(key, []).append(rate)
        elif rate > TIMES_MEDIAN * max(self._normal.get(key, 0.0), FEW):
            self._found(key, f"{at}: {rate:.2f} {what}, the first epoch's median was {self._normal.get(key, 0.0):.2f}")

    def _saturation(self, name: str, kind: str, total: int, saturated: int, at: str) -> None:
        if total >= WINDOW and saturated / total > SATURATED[kind]:
            what = (
                "SET pulses met an end of the conductance range"
                if kind == "conductance"
                else f"{kind} ADC codes are saturated"
            )
            self._found(
                f"{kind} saturation, {name}", f"{at}: {saturated / total:.1%} of {what} (limit {SATURATED[kind]:.0%})"
            )

    def _found(self, cause: str, text: str) -> None:
        if cause not in self.counts:
            self.findings.append(text)
            self.report(text)
        self.counts[cause] = self.counts.get(cause, 0) + 1
