"""Measure how long it takes to characterise a chip and to fit its twin, by the commands themselves."""

import statistics
import subprocess
import sys
import time
from pathlib import Path

from training_bench import REPETITIONS, verdict

HIL = Path(sys.executable).with_name("hil")
STUDIES = ["--study", "staircase", "--study", "drift", "--cells", "0:0-99:0-99"]
MOST_MEASURING, MOST_FITTING = 10.0, 30.0
"""s."""


def seconds_of(*arguments: str) -> float:
    """What a command takes."""
    began = time.perf_counter()
    subprocess.run([str(HIL), *arguments], check=True, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    return time.perf_counter() - began


def report_studies(folder: Path) -> None:
    """Print both times."""
    run, chip = str(folder / "devices.h5"), str(folder / "chip.toml")
    measuring = ["characterize", "twin:pcm-analog", *STUDIES, "--out", run, "--overwrite"]
    fitting = ["fit", run, "--out", chip, "--overwrite"]
    times = [(seconds_of(*measuring), seconds_of(*fitting)) for _ in range(REPETITIONS)]
    measured, fitted = (statistics.median(column) for column in zip(*times, strict=True))
    print("10,000 cells, 20 pulses, 50 reads after each, and drift at 5 times, by commands of their own")
    print(f"  `hil characterize`: {measured:.1f} s (at most {MOST_MEASURING:g}: {verdict(measured <= MOST_MEASURING)})")
    print(f"  `hil fit`: {fitted:.1f} s (at most {MOST_FITTING:g}: {verdict(fitted <= MOST_FITTING)})\n")
