"""The image period: how fast images pass in device time."""

from hil.instruments.tester import ArrayTester


class Pace:
    """Lets device time pass so that every image takes at least the period (s); images that take longer are not hurried.

    One period passes at once, so that fresh weights have drifted before the first image as they do between images.
    """

    def __init__(self, tester: ArrayTester, period: float) -> None:
        self._tester = tester
        self._period_ns = round(period * 1e9)
        self._images = self._spent_ns = 0
        tester.wait(period)
        self._last_ns = tester.time_ns()

    def begin(self) -> None:
        """The next image begins now; what went before was no image."""
        self._last_ns = self._tester.time_ns()

    def images_done(self, count: int) -> None:
        """Wait until these images' time is up."""
        now = self._tester.time_ns()
        rest = self._last_ns + count * self._period_ns - now
        if rest > 0:
            now = self._tester.wait(rest * 1e-9).time_ns
        self._spent_ns += now - self._last_ns
        self._images += count
        self._last_ns = now

    def state(self) -> dict[str, int]:
        """For `restore`."""
        return {"images": self._images, "spent_ns": self._spent_ns, "last_ns": self._last_ns}

    def restore(self, state: dict[str, int]) -> None:
        """Go on from what `state()` gave."""
        self._images, self._spent_ns, self._last_ns = state["images"], state["spent_ns"], state["last_ns"]

    @property
    def period(self) -> float:
        """The mean period so far (s): longer than asked for where the operations took longer."""
        return self._spent_ns * 1e-9 / max(self._images, 1)
