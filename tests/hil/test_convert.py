"""A trained torch model on a tester, and its weights in files."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import nn

from hil.convert import convert
from hil.data.run import Run
from hil.instruments.tester import ArrayTester
from hil.layers import AnalogLinear
from hil.programming import Verify
from hil.protocols.errors import InputError
from hil.train import Job, train
from hil.weights import read_weights, write_weights
from hil.writing import Verified, blind

MakeTester = Callable[..., ArrayTester]


@pytest.fixture
def model() -> nn.Sequential:
    torch.manual_seed(1)
    return nn.Sequential(nn.Linear(6, 5), nn.Tanh(), nn.Linear(5, 3, bias=False))


def test_a_converted_model_computes_nearly_the_same(make_tester: MakeTester, model: nn.Sequential) -> None:
    x = torch.rand(20, 6)
    with make_tester() as tester:
        write = Verified(Verify(margin=0.4e-6, settle=0))
        analog = convert(model, tester, write=write).eval()
        y, wanted = analog(x).detach(), model(x).detach()
    assert [type(layer) for layer in analog.children()] == [AnalogLinear, nn.Tanh, AnalogLinear]
    assert isinstance(model[0], nn.Linear)  # the model itself stays
    assert np.corrcoef(y.numpy().ravel(), wanted.numpy().ravel())[0, 1] > 0.98
    assert [len(report.converged) for report in write.reports] == [2 * 7 * 5, 2 * 6 * 3]
    assert all(report.converged.all() for report in write.reports)


def test_the_largest_weight_becomes_one_device_unit(make_tester: MakeTester, model: nn.Sequential) -> None:
    with make_tester() as tester:
        analog = convert(model, tester, write=blind)
    first = next(analog.children())
    assert isinstance(first, AnalogLinear)
    largest = max(float(value.abs().max()) for name, value in model.state_dict().items() if name.startswith("0."))
    assert first.weight.pairs.scale == pytest.approx(largest)


def test_a_model_that_is_one_layer_is_converted(make_tester: MakeTester) -> None:
    with make_tester() as tester:
        assert isinstance(convert(nn.Linear(3, 2), tester), AnalogLinear)


def test_a_converted_model_can_be_trained_further(make_tester: MakeTester, model: nn.Sequential) -> None:
    with make_tester() as tester:
        analog = convert(model, tester)
        analog(torch.rand(4, 6)).square().sum().backward()
        assert all(layer.weight.factors for layer in analog.modules() if isinstance(layer, AnalogLinear))


def broken(model: nn.Sequential) -> nn.Sequential:
    model.state_dict()["2.weight"][0, 0] = torch.nan
    return model


@pytest.mark.parametrize(
    ("change", "error"),
    [
        (lambda model: nn.Tanh(), "no nn.Linear"),
        (broken, "layer '2' has weights that are not finite"),
        (lambda model: nn.Sequential(model[0], nn.Linear(5, 500)), "too small"),
    ],
)
def test_a_model_that_cannot_be_converted_is_refused_before_anything_is_sent(
    make_tester: MakeTester, model: nn.Sequential, change: Any, error: str
) -> None:
    with make_tester() as tester:
        with pytest.raises(InputError, match=error):
            convert(change(model), tester)
        assert tester.time_ns() == 0


def test_weights_of_a_state_dict_are_read_in_the_order_of_their_numbers(tmp_path: Path) -> None:
    layers = {10: nn.Linear(4, 2), 2: nn.Linear(5, 4, bias=False)}
    tensors = {
        f"{number}.{key}": value for number, layer in layers.items() for key, value in layer.state_dict().items()
    }
    save_file(tensors, tmp_path / "w.safetensors")
    found = read_weights(tmp_path / "w.safetensors")
    assert [(name, tuple(matrix.shape)) for name, matrix in found.items()] == [("2", (6, 4)), ("10", (5, 2))]
    assert torch.equal(found["10"][:-1].T, layers[10].weight)
    assert torch.equal(found["10"][-1], layers[10].bias)
    assert not found["2"][-1].any()


@pytest.mark.parametrize(
    ("tensors", "error"),
    [
        ({}, "no layer"),
        ({"a.weight": torch.ones(2, 3), "b.weight": torch.ones(2, 3)}, "layer a gives 2 outputs, layer b takes 3"),
        ({"a.weight": torch.ones(2, 3, 3, 3)}, r"shape \(2, 3, 3, 3\)"),
        ({"a.weight": torch.ones(2, 3), "a.bias": torch.ones(3)}, r"a.bias has shape \(3,\); \(2,\) is expected"),
        ({"a.weight": torch.ones(2, 3), "norm": torch.ones(3)}, "tensor 'norm' belongs to no linear layer"),
        ({"a.weight": torch.full((2, 3), torch.inf)}, "not finite"),
    ],
)
def test_a_file_of_other_weights_is_refused(tmp_path: Path, tensors: dict[str, torch.Tensor], error: str) -> None:
    save_file(tensors, tmp_path / "w.safetensors")
    with pytest.raises(InputError, match=error):
        read_weights(tmp_path / "w.safetensors")


@pytest.mark.parametrize("content", [None, b"", b"not weights", b"\xff" * 100])
def test_a_file_that_is_none_is_refused(tmp_path: Path, content: bytes | None) -> None:
    path = tmp_path / "w.safetensors"
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(InputError, match="cannot be read as a safetensors file"):
        read_weights(path)


@pytest.mark.parametrize("system", ["float", "mixed-precision"])
def test_the_final_weights_of_a_run_fit_its_network(tmp_path: Path, make_job: Callable[..., Job], system: str) -> None:
    job = make_job(system=system)
    train(job)
    with Run.open(job.out) as run:
        write_weights(run, tmp_path / "w.safetensors")
        with pytest.raises(InputError, match="exists"):
            write_weights(run, tmp_path / "w.safetensors")
        expected = run.weights("layer1") if run.layers else None
    hidden = job.settings.hidden[0]
    network = nn.Sequential(nn.Linear(64, hidden), nn.Sigmoid(), nn.Linear(hidden, 10))
    network.load_state_dict(load_file(tmp_path / "w.safetensors"))
    matrix = read_weights(tmp_path / "w.safetensors")["0"]
    assert matrix.shape == (65, hidden)
    if expected is not None:
        np.testing.assert_array_equal(matrix.numpy(), expected)


def test_layers_of_small_weights_take_the_largest_range_of_the_tester(make_tester: MakeTester) -> None:
    torch.manual_seed(1)
    model = nn.Sequential(nn.Linear(30, 20), nn.Linear(20, 3))  # torch's own start: weights up to 0.2
    x = torch.rand(20, 30)
    with make_tester() as tester:
        analog = convert(model, tester).eval()
        y, wanted = analog(x).detach().numpy(), model(x).detach().numpy()
    assert np.corrcoef(y.ravel(), wanted.ravel())[0, 1] > 0.95
