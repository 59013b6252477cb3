"""Train a sigmoid network on aihwkit's devices, as often as asked: `aihwkit_rate.py IMAGES.npz`.

Runs where aihwkit is installed, and needs nothing else of this project. The file holds images (n, features), targets
(n, classes) and the initial weights of each layer (features + 1, outputs), whose last row is the bias. The first line
written tells the versions; then each line read asks for a repetition, a JSON object with the fields of `Case` and the
number of `images`, and is answered by the images per second (`rate`) and the fraction of them that were recognised
before their update (`accuracy`). Cases keep their network from one repetition to the next.
"""

import json
import sys
import time
from dataclasses import dataclass
from functools import cache
from typing import Any

import aihwkit
import numpy as np
import torch
from aihwkit.nn import AnalogLinear
from aihwkit.optim import AnalogSGD
from aihwkit.simulator.presets import MixedPrecisionPCMPreset
from torch import nn


@dataclass(frozen=True)
class Case:
    """A configuration; what is not named here is as the preset has it."""

    batch: int
    lr: float  # per image, for half the sum of squares
    refresh_every: int  # transfers to the devices
    transfer_every: int  # batches


class Training:
    """A network, its optimizer and its place in the images."""

    def __init__(self, case: Case, weights: list[torch.Tensor]) -> None:
        self._case = case
        layers = [layer for matrix in weights for layer in (analog(matrix, case), nn.Sigmoid())]
        self._model = nn.Sequential(*layers)
        self._optimizer = AnalogSGD(self._model.parameters(), lr=case.lr)
        self._order = np.random.default_rng(1)

    def run(self, count: int, images: torch.Tensor, targets: torch.Tensor) -> dict[str, float]:
        """Train on so many images."""
        order = torch.from_numpy(self._order.integers(0, len(images), count))
        hits = torch.zeros((), dtype=torch.int64)
        began = time.perf_counter()
        for batch in order.split(self._case.batch):
            self._optimizer.zero_grad()
            outputs = self._model(images[batch])
            loss = 0.5 * ((outputs - targets[batch]) ** 2).sum()
            loss.backward()
            self._optimizer.step()
            hits += (outputs.argmax(1) == targets[batch].argmax(1)).sum()
        return {"rate": count / (time.perf_counter() - began), "accuracy": hits.item() / count}


def analog(weights: torch.Tensor, case: Case) -> Any:
    """A layer on pairs of PCM devices."""
    config = MixedPrecisionPCMPreset()
    config.device.transfer_every = case.transfer_every
    config.device.device.refresh_every = case.refresh_every
    layer = AnalogLinear(weights.shape[0] - 1, weights.shape[1], rpu_config=config)
    layer.set_weights(weights[:-1].T, weights[-1])
    return layer


def main() -> None:
    torch.set_num_threads(1)
    with np.load(sys.argv[1]) as file:
        images, targets, *weights = (torch.from_numpy(values) for values in file.values())
    training = cache(lambda case: Training(case, weights))
    print(json.dumps({"aihwkit": aihwkit.__version__, "torch": torch.__version__}), flush=True)
    for line in sys.stdin:
        asked = json.loads(line)
        count = asked.pop("images")
        answer = training(Case(**asked)).run(count, images, targets)
        print(json.dumps(answer), flush=True)


if __name__ == "__main__":
    main()
