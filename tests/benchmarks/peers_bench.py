"""Train the same network here and on IBM's aihwkit, in turn: `make bench-peers DATA_DIR=path/to/data`.

The peer runs in an environment of its own, in one process that is asked for a repetition at a time (`aihwkit_rate.py`).
Both sides see the same images, begin with the same weights, take the same rates for the same loss, and have one thread.
"""

import argparse
import json
import os
import platform
import statistics
import subprocess
import tempfile
from collections.abc import Callable, Mapping
from contextlib import closing
from dataclasses import asdict, dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn
from training_bench import REPETITIONS, Counting, first_of, made_up, prepare, settings_of  # beside this file

from hil.data.datasets import DataSet, load
from hil.data.recording import RecordingTester
from hil.network import build, initial_weights
from hil.passes import AutogradPasses
from hil.train import execute

IMAGES = 10_000
RATES = {1: 0.1, 100: 0.004}
"""Learning rate per image, by the images between two writings of the devices; with 0.01 and 100, aihwkit forgets."""
OURS = "pcm-hil: refresh every 100 images, all noise and drift, full log"
NOTES = """
What is compared is not the same model. aihwkit's has no drift during training and writes no log; it has 7 bits in, 9
bits out and noise on the outputs whatever the weights, where pcm-hil has 8, 8 and the read noise of each device; its
devices differ from one another, those of pcm-hil do not; its biases are digital, those of pcm-hil lie on devices. It
reads all pairs for a refresh check, after every batch in its preset; pcm-hil reads those that were pulsed or are near
the threshold, every 100 images. Where it writes devices every 100 images, it has the rate of a batch of 100.
"""

Outcome = dict[str, float]
"""The images per second (`rate`) and the fraction of them recognised (`accuracy`) in a repetition."""


@dataclass(frozen=True)
class PeerCase:
    """A configuration of the peer; `refresh_every` is in transfers to the devices, `transfer_every` in batches."""

    batch: int
    lr: float
    images: int  # in a repetition
    refresh_every: int = 1
    transfer_every: int = 1


CASES = {
    1: {
        "aihwkit: preset": PeerCase(1, RATES[1], 200),
        "aihwkit: refresh every 100 images": PeerCase(1, RATES[1], 1000, refresh_every=100),
        f"aihwkit: write, refresh every 100 images; rate {RATES[100]:g}": PeerCase(
            1, RATES[100], 2000, transfer_every=100
        ),
    },
    100: {
        "aihwkit: preset, which refreshes every 100 images": PeerCase(100, RATES[100], 10_000),
        "aihwkit: refresh every 10,000 images": PeerCase(100, RATES[100], 10_000, refresh_every=100),
    },
}


class Peer:
    """The process that trains on aihwkit; `file` holds the images."""

    def __init__(self, python: Path, file: Path) -> None:
        script = Path(__file__).with_name("aihwkit_rate.py")
        environment = os.environ | {"OMP_NUM_THREADS": "1"}
        pipe = subprocess.PIPE
        self._process = subprocess.Popen([python, script, file], stdin=pipe, stdout=pipe, text=True, env=environment)
        self.versions = self._answer()

    def run(self, case: PeerCase) -> Outcome:
        """A repetition of a case, on the network that an earlier one has left."""
        if self._process.stdin is not None:
            self._process.stdin.write(json.dumps(asdict(case)) + "\n")
            self._process.stdin.flush()
        return self._answer()

    def _answer(self) -> dict[str, Any]:
        line = self._process.stdout.readline() if self._process.stdout else ""
        if not line:
            raise RuntimeError(f"aihwkit's process ended with status {self._process.wait()}")
        answer: dict[str, Any] = json.loads(line)
        return answer

    def close(self) -> None:
        """End the process."""
        self._process.communicate()


def ours(batch: int, data: DataSet, weights: list[torch.Tensor], path: Path) -> Outcome:
    """A run as `hil train` makes it, without its evaluation."""
    setup, writer = prepare(settings_of(f"lr={RATES[batch]}", f"batch_size={batch}"), data, path)
    observer = Counting()
    result = execute(replace(setup, weights=weights), writer, lambda tester: RecordingTester(tester, writer), observer)
    return {"rate": result.images_per_second, "accuracy": observer.running_accuracy}


def trained(data: DataSet) -> list[torch.Tensor]:
    """Weights after all images once, in floating point, one by one: those of a fresh network are not typical."""
    settings = settings_of("system=float")
    sizes = [data.train_images.shape[1], *settings.hidden, data.classes]
    model = build(settings, initial_weights(settings, sizes, np.random.SeedSequence(1), None), None)
    network = AutogradPasses(model, torch.optim.SGD(model.parameters(), lr=RATES[1]))
    targets = np.eye(data.classes, dtype=np.float32)[data.train_labels]
    for k in range(len(targets)):
        network.train(data.train_images[k : k + 1], targets[k : k + 1])
    layers = [layer for layer in model if isinstance(layer, nn.Linear)]
    return [torch.cat([layer.weight.detach().T, layer.bias.detach()[None]]) for layer in layers]


def save(path: Path, data: DataSet, weights: list[torch.Tensor]) -> None:
    """Write what the peer trains on."""
    targets = np.eye(data.classes, dtype=np.float32)[data.train_labels]
    np.savez(path, data.train_images, targets, *(matrix.numpy() for matrix in weights))


def report(sides: Mapping[str, Callable[[], Outcome]]) -> None:
    """Run all in turn and print the medians; the first is ours."""
    for run in sides.values():
        run()  # warm up
    outcomes: dict[str, list[Outcome]] = {name: [] for name in sides}
    for _ in range(REPETITIONS):
        for name, run in sides.items():
            outcomes[name].append(run())
    medians = {name: statistics.median(each["rate"] for each in those) for name, those in outcomes.items()}
    for name, median in medians.items():
        rates, accuracy = [each["rate"] for each in outcomes[name]], outcomes[name][-1]["accuracy"]
        ratio = "" if name == OURS else f"; pcm-hil is {medians[OURS] / median:.1f} x as fast"
        print(f"{name:65} {median:6.0f} images/s ({min(rates):.0f} to {max(rates):.0f}), {accuracy:.0%} right{ratio}")


def compare(peer_python: Path, data_dir: Path | None) -> None:
    """Measure and print everything."""
    data = first_of(load("mnist", data_dir) if data_dir else made_up(IMAGES), IMAGES)
    weights = trained(data)
    with tempfile.TemporaryDirectory() as name:
        images, run = Path(name) / "images.npz", Path(name) / "run.h5"
        save(images, data, weights)
        with closing(Peer(peer_python, images)) as peer:
            introduce(data, peer)
            for batch, cases in CASES.items():
                print(f"\nbatch {batch}, learning rate {RATES[batch]:g} per image")
                theirs = {case: partial(peer.run, settings) for case, settings in cases.items()}
                report({OURS: partial(ours, batch, data, weights, run)} | theirs)
    print(NOTES, end="")


def introduce(data: DataSet, peer: Peer) -> None:
    """Print on what and with what this is measured."""
    versions = f"python {platform.python_version()}, numpy {np.__version__}, torch {torch.__version__}"
    theirs = ", ".join(f"{name} {version}" for name, version in peer.versions.items())
    print(f"{platform.machine()}, {os.cpu_count()} CPUs, {versions}; the peer: {theirs}")
    print(f"784-250-10 sigmoid network, half the sum of squares, {data.name} images, one thread; ", end="")
    print(f"medians of {REPETITIONS} repetitions in turns (least to most)")


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("peer", type=Path, help="the Python of an environment that holds aihwkit")
    parser.add_argument("--data-dir", type=Path)
    options = parser.parse_args()
    torch.set_num_threads(1)
    compare(options.peer, options.data_dir)


if __name__ == "__main__":
    main()
