"""The image period: how fast images pass in device time."""

from hil.instruments.tester import ArrayTester


class Pace:
    """Lets device time pass so that image k ends no earlier than k periods (s) after the start; images that take longer are not hurried."""

    def __init__(self, tester: ArrayTester, period: float) -> None:
        self._tester = tester
        self._period_ns = round(period * 1e9)
        self._start_ns = self._due_ns = tester.time_ns()
        self._images = 0

    def images_done(self, count: int) -> None:
        """Wait until these images' time is up."""
        self._images += count
        self._due_ns += count * self._period_ns
        rest = self._due_ns - self._tester.time_ns()
        if rest > 0:
            self._tester.wait(rest * 1e-9)

    @property
    def period(self) -> float:
        """The mean period so far (s): longer than asked for where the operations took longer."""
        return (self._tester.time_ns() - self._start_ns) * 1e-9 / max(self._images, 1)
