"""The direct passes and torch's graph: the same operations, the same chi, the same conductances, bit for bit."""

from collections.abc import Callable
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
import torch
from torch import nn

from hil.data.recording import RecordingTester
from hil.data.runfile import RunWriter
from hil.data.schema import Start
from hil.feedforward import ACTIVATIONS, FeedForward
from hil.instruments.tester import ArrayTester
from hil.kernels import sigmoid_backward
from hil.layers import AnalogLinear
from hil.mixed_precision import MixedPrecisionSGD, Refresh
from hil.pace import Pace
from hil.passes import AutogradPasses, DirectPasses, Passes, accuracy, passes

MakeTester = Callable[..., ArrayTester]
IMAGES = 70
SIZES = (17, 9, 7, 4)


def network(tester: ArrayTester, activation: type[nn.Module]) -> nn.Sequential:
    torch.manual_seed(15)
    layers = [AnalogLinear(inputs, outputs, tester) for inputs, outputs in pairwise(SIZES)]
    return nn.Sequential(layers[0], activation(), layers[1], activation(), layers[2], nn.Sigmoid())


def samples() -> tuple[npt.NDArray[np.float32], npt.NDArray[np.float32]]:
    rng = np.random.default_rng(16)
    images = np.where(rng.random((IMAGES, SIZES[0])) < 0.4, rng.random((IMAGES, SIZES[0])), 0).astype(np.float32)
    return images, np.eye(SIZES[-1], dtype=np.float32)[rng.integers(0, SIZES[-1], IMAGES)]


@pytest.mark.parametrize("activation", ACTIVATIONS, ids=lambda kind: kind.__name__)
@pytest.mark.parametrize("batch", [1, 7])
@pytest.mark.parametrize("chip", ["pcm-analog", "pcm-90nm"])
def test_both_paths_train_bit_for_bit_alike(
    chip: str,
    batch: int,
    activation: type[nn.Module],
    make_tester: MakeTester,
    start: Start,
    log_of: Callable[[Path], dict[str, npt.NDArray[Any]]],
    tmp_path: Path,
) -> None:
    images, targets = samples()
    outputs, chis, logs = [], [], []
    for path in (DirectPasses, AutogradPasses):
        file = tmp_path / path.__name__
        writer = RunWriter.create(file, start)
        tester = RecordingTester(make_tester(chip, rows=12, columns=64), writer)  # several blocks
        model = network(tester, activation)
        optimizer = MixedPrecisionSGD(model.parameters(), lr=1.0, granularity=0.01, refresh=Refresh(14, 3e-6, 4e-6))
        way: Passes = path(model, optimizer)
        pace = Pace(tester, 0.1)
        seen = []
        for first in range(0, IMAGES, batch):
            seen.append(way.train(images[first : first + batch], targets[first : first + batch]).copy())
            pace.images_done(batch)
        seen.append(way.evaluate(images))
        layers = [layer for layer in model if isinstance(layer, AnalogLinear)]
        assert all(optimizer.counts(layer.weight).set_pulses for layer in layers)
        assert sum(optimizer.counts(layer.weight).refreshes for layer in layers)
        writer.close("completed", {})
        outputs.append(np.concatenate(seen))
        chis.append([optimizer.state[layer.weight]["chi"].numpy() for layer in layers])
        logs.append(log_of(file))
    np.testing.assert_array_equal(outputs[0], outputs[1])
    for chi, other in zip(*chis, strict=True):
        np.testing.assert_array_equal(chi, other)
    assert logs[0].keys() == logs[1].keys()
    assert len(logs[0]["operations/op_id"]) > IMAGES // batch
    for name, column in logs[0].items():
        np.testing.assert_array_equal(column, logs[1][name], err_msg=name)


def test_torchs_default_type_of_floats_changes_nothing(make_tester: MakeTester) -> None:
    images, targets = samples()
    model = network(make_tester("pcm-analog"), nn.Sigmoid)
    way = DirectPasses(model, MixedPrecisionSGD(model.parameters(), lr=1.0, granularity=0.01))
    torch.set_default_dtype(torch.float64)
    try:
        assert way.train(images[:3], targets[:3]).dtype == np.float32
    finally:
        torch.set_default_dtype(torch.float32)


def test_gradients_of_several_batches_add_up_on_both_paths(make_tester: MakeTester) -> None:
    images, targets = samples()
    chis = []
    for direct in (True, False):
        model = network(make_tester("pcm-analog", columns=128), nn.Sigmoid)
        optimizer = MixedPrecisionSGD(model.parameters(), lr=1.0, granularity=100.0)
        stack = FeedForward(model)
        for first in (0, 7, 14):
            x, wanted = images[first : first + 7], targets[first : first + 7]
            if direct:
                outputs = stack.forward(x)
                stack.gradient[:] = outputs - wanted
                stack.backward()
            else:
                batch = torch.from_numpy(x.copy())
                outputs = model(batch)
                (0.5 * (outputs - torch.from_numpy(wanted)) ** 2).sum().backward()
                batch.zero_()  # as a loader does that fills one batch again and again
        optimizer.step()
        chis.append(
            [optimizer.state[layer.weight]["chi"].numpy() for layer in model if isinstance(layer, AnalogLinear)]
        )
    for chi, other in zip(*chis, strict=True):
        assert chi.any()
        np.testing.assert_array_equal(chi, other)


def test_a_plain_stack_takes_the_direct_path_and_others_the_graph(make_tester: MakeTester) -> None:
    tester = make_tester(columns=256)
    plain = nn.Sequential(AnalogLinear(4, 3, tester), nn.Tanh(), AnalogLinear(3, 2, tester))
    mixed = nn.Sequential(AnalogLinear(4, 3, tester), nn.Tanh(), nn.Linear(3, 2))
    assert isinstance(passes(plain, MixedPrecisionSGD(plain.parameters(), lr=1.0)), DirectPasses)
    assert isinstance(passes(plain, torch.optim.SGD(plain.parameters(), lr=1.0)), AutogradPasses)
    assert isinstance(passes(mixed, MixedPrecisionSGD(mixed.parameters(), lr=1.0)), AutogradPasses)


def test_only_stacks_of_analog_layers_and_known_activations_are_supported(make_tester: MakeTester) -> None:
    tester = make_tester(columns=256)
    layer = AnalogLinear(3, 3, tester)

    class Unknown(nn.Sigmoid):
        """Whatever its forward does, the direct path does not know it."""

    assert FeedForward.supports(nn.Sequential(layer))
    assert FeedForward.supports(nn.Sequential(layer, nn.ReLU(), AnalogLinear(3, 2, tester), nn.Sigmoid()))
    for other in (
        nn.Sequential(),
        layer,
        nn.Sequential(nn.Sigmoid(), layer),
        nn.Sequential(layer, nn.Softmax(1)),
        nn.Sequential(layer, nn.Tanh(), nn.Sigmoid()),
        nn.Sequential(layer, Unknown()),
        nn.Sequential(layer, nn.Sequential(AnalogLinear(3, 2, tester))),
        nn.Sequential(nn.Linear(3, 3)),
    ):
        assert not FeedForward.supports(other)


def test_accuracy_is_the_fraction_of_largest_outputs_at_the_label() -> None:
    class Echo:
        """Answers with its input, and counts."""

        calls = 0

        def train(self, images: Any, targets: Any) -> Any:
            raise NotImplementedError

        def evaluate(self, images: Any) -> Any:
            self.calls += 1
            return images

    echo = Echo()
    images = np.eye(4, dtype=np.float32)[[0, 1, 2, 3, 0, 1, 2]]
    assert accuracy(echo.evaluate, images, np.array([0, 1, 2, 3, 1, 2, 2]), batch=3) == 5 / 7
    assert echo.calls == 3


@pytest.mark.parametrize("features", [1, 7, 8, 15, 16, 250])
def test_the_derivative_of_a_sigmoid_has_the_bits_of_torchs(features: int) -> None:
    rng = np.random.default_rng(features)
    gradient, output = rng.normal(0, 3, (40, features)).astype(np.float32), rng.random((40, features), np.float32)
    output[0] = 0
    output[1] = 1
    expected = torch.ops.aten.sigmoid_backward(torch.from_numpy(gradient), torch.from_numpy(output)).numpy()
    sigmoid_backward(gradient, output)
    assert gradient.tobytes() == expected.tobytes()
