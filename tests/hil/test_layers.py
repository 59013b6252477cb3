"""Analog layers are torch modules: on a chip without faults they do what `nn.Linear` does, in any model."""

from collections.abc import Callable
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
import torch
from pytest_mock import MockerFixture
from torch import nn

from hil.instruments.tester import ArrayTester
from hil.layers import INITIAL_SPREAD, AnalogLinear, AnalogWeight
from hil.mixed_precision import MixedPrecisionSGD
from hil.pairs import DifferentialPairs
from hil.protocols.errors import InputError

MakeTester = Callable[..., ArrayTester]
WeightsOf = Callable[[DifferentialPairs], npt.NDArray[np.float64]]


@pytest.fixture(params=["differential", "single", "serial"])
def kind(request: pytest.FixtureRequest) -> dict[str, str]:
    """Parameters of a chip."""
    return {"mvm": "none"} if request.param == "serial" else {"readout": request.param}


def analog(tester: ArrayTester, inputs: int, outputs: int, **options: Any) -> AnalogLinear:
    generator = torch.Generator().manual_seed(7)
    weights = 0.3 * torch.randn(inputs + 1, outputs, generator=generator)
    return AnalogLinear(inputs, outputs, tester, initial_weights=weights, **options)


def digital(layer: AnalogLinear, weights_of: WeightsOf) -> nn.Linear:
    """A `nn.Linear` with the weights that the devices hold."""
    weights = torch.from_numpy(weights_of(layer.weight.pairs).astype(np.float32))
    linear = nn.Linear(layer.in_features, layer.out_features)
    linear.weight.data, linear.bias.data = weights[:-1].T.contiguous(), weights[-1].clone()
    return linear


def gradient_of(weight: AnalogWeight) -> torch.Tensor:
    return sum(
        (torch.from_numpy(np.vstack([x.T @ delta, delta.sum(0)])) for x, delta in weight.factors),
        torch.zeros(weight.shape),
    )


def images(*shape: int, seed: int = 8) -> torch.Tensor:
    return torch.rand(*shape, generator=torch.Generator().manual_seed(seed))


def test_outputs_and_gradients_are_those_of_a_linear_layer(
    kind: dict[str, str], make_tester: MakeTester, weights_of: WeightsOf
) -> None:
    layer = analog(make_tester(**kind), 20, 6)
    linear = digital(layer, weights_of)
    results = []
    for module in (layer, linear):
        x = images(5, 20).requires_grad_()
        y = module(x)
        nn.functional.cross_entropy(y, torch.arange(5)).backward()
        results.append((y.detach(), x.grad))
    (y, x_grad), (linear_y, linear_x_grad) = results
    torch.testing.assert_close(y, linear_y, atol=2e-3, rtol=0)
    torch.testing.assert_close(x_grad, linear_x_grad, atol=2e-3, rtol=0)
    assert linear.weight.grad is not None
    assert linear.bias.grad is not None
    gradient = gradient_of(layer.weight)
    torch.testing.assert_close(gradient[:-1], linear.weight.grad.T, atol=2e-3, rtol=0)
    torch.testing.assert_close(gradient[-1], linear.bias.grad, atol=2e-3, rtol=0)


def test_ordinary_layers_before_and_between_get_the_gradients_of_a_digital_model(
    kind: dict[str, str], make_tester: MakeTester, weights_of: WeightsOf
) -> None:
    tester = make_tester(columns=128, **kind)
    torch.manual_seed(9)
    convolution, norm = nn.Conv2d(1, 2, 3), nn.LayerNorm(12)
    first, second = analog(tester, 32, 12), analog(tester, 12, 4)
    copies = [digital(first, weights_of), digital(second, weights_of)]
    gradients = []
    for one, two in ((first, second), copies):
        model = nn.Sequential(convolution, nn.Flatten(), one, norm, nn.Tanh(), nn.Dropout(0.0), two)
        model.zero_grad()
        loss = nn.functional.smooth_l1_loss(model(images(3, 1, 6, 6)), torch.ones(3, 4))
        loss.backward()
        ordinary = (*convolution.parameters(), *norm.parameters())
        gradients.append([parameter.grad.clone() for parameter in ordinary if parameter.grad is not None])
    assert len(gradients[0]) == 4
    for ours, digitals in zip(*gradients, strict=True):
        torch.testing.assert_close(ours, digitals, atol=3e-3, rtol=0.01)


def test_a_mixed_model_learns_with_a_ready_made_loss(make_tester: MakeTester) -> None:
    tester = make_tester("pcm-analog", rows=80, columns=128)
    torch.manual_seed(10)
    model = nn.Sequential(
        AnalogLinear(16, 12, tester), nn.ReLU(), nn.Linear(12, 8), nn.Tanh(), AnalogLinear(8, 3, tester)
    )
    optimizer = MixedPrecisionSGD(model.parameters(), lr=0.1)
    x = images(60, 16)
    labels = x[:, :3].argmax(1)
    losses = []
    for _ in range(150):
        optimizer.zero_grad()
        loss = nn.functional.cross_entropy(model(x), labels)
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert np.mean(losses[-10:]) < 0.7 * np.mean(losses[:5])


def test_initial_weights_are_drawn_from_torch_unless_given(make_tester: MakeTester, weights_of: WeightsOf) -> None:
    drawn = []
    for seed in (1, 1, 2):
        torch.manual_seed(seed)
        drawn.append(weights_of(AnalogLinear(40, 20, make_tester(), scale=0.5).weight.pairs))
    np.testing.assert_array_equal(drawn[0], drawn[1])
    assert (drawn[0] != drawn[2]).any()
    steps = 0.096 / np.sqrt(12)  # rounding to whole pulses
    assert drawn[0].std() == pytest.approx(0.5 * np.hypot(INITIAL_SPREAD, steps), rel=0.1)


def test_the_last_row_of_the_initial_weights_is_the_bias(make_tester: MakeTester) -> None:
    weights = torch.tensor([[0.0, 0.0], [0.0, 0.0], [0.4, -0.8]])
    layer = AnalogLinear(2, 2, make_tester(), initial_weights=weights)
    np.testing.assert_allclose(layer(torch.zeros(1, 2)).detach().numpy(), [[0.4, -0.8]], atol=0.05)


@pytest.mark.parametrize("shape", [(2, 21), (20, 2), (21, 3), (42,)])
def test_initial_weights_of_another_shape_are_refused(shape: tuple[int, ...], make_tester: MakeTester) -> None:
    with pytest.raises(InputError, match="initial weights"):
        AnalogLinear(20, 2, make_tester(), initial_weights=torch.zeros(shape))


@pytest.mark.parametrize("shape", [(20,), (2, 3, 20), (0, 20)])
def test_leading_dimensions_are_kept_as_by_a_linear_layer(shape: tuple[int, ...], make_tester: MakeTester) -> None:
    layer = analog(make_tester(mvm="none"), 20, 6)
    assert layer(torch.rand(shape)).shape == nn.Linear(20, 6)(torch.rand(shape)).shape


@pytest.mark.parametrize("shape", [(5, 1), (5, 19), (5, 21), ()])
def test_input_with_another_number_of_features_is_refused(shape: tuple[int, ...], make_tester: MakeTester) -> None:
    with pytest.raises(InputError, match=r"the layer takes \(\.\.\., 20\)"):
        analog(make_tester(), 20, 6)(torch.rand(shape))


def test_no_backward_product_is_made_for_inputs_that_need_no_gradient(
    make_tester: MakeTester, mocker: MockerFixture
) -> None:
    layer = analog(make_tester(), 20, 6)
    backward = mocker.spy(layer.weight.products, "backward")
    layer(images(2, 20)).sum().backward()
    backward.assert_not_called()
    layer(images(2, 20).requires_grad_()).sum().backward()
    backward.assert_called_once()


def test_frozen_weights_collect_no_gradients(make_tester: MakeTester) -> None:
    layer = analog(make_tester(), 20, 6)
    layer.weight.requires_grad_(False)
    x = images(2, 20).requires_grad_()
    layer(x).sum().backward()
    assert layer.weight.factors == []
    assert x.grad is not None
    assert x.grad.any()


def test_nothing_is_kept_without_a_graph(make_tester: MakeTester) -> None:
    layer = analog(make_tester(), 20, 6)
    with torch.no_grad():
        assert not layer(images(2, 20)).requires_grad
    assert layer.weight.factors == []


def test_eval_makes_a_host_multiplied_layer_read_all_its_cells_again(
    make_tester: MakeTester, mocker: MockerFixture
) -> None:
    tester = make_tester("pcm-90nm")
    model = nn.Sequential(analog(tester, 20, 6))
    model(images(1, 20))
    reads = mocker.spy(tester, "read")
    model.train()(images(1, 20))
    assert reads.call_count == 0
    model.eval()(images(1, 20))
    assert [len(call.args[0]) for call in reads.call_args_list] == [2 * 21 * 6]


def test_the_handle_counts_as_a_parameter_and_takes_no_memory(make_tester: MakeTester) -> None:
    layer = analog(make_tester(), 20, 6)
    assert sum(parameter.numel() for parameter in layer.parameters()) == 21 * 6
    assert layer.weight.untyped_storage().nbytes() == 4


def test_printing_a_model_names_the_chip(make_tester: MakeTester) -> None:
    tester = make_tester()
    assert f"AnalogLinear(20, 6, chip={tester.identify().chip})" in str(nn.Sequential(analog(tester, 20, 6)))


def test_a_range_that_the_tester_lacks_is_refused(make_tester: MakeTester) -> None:
    with pytest.raises(InputError, match="largest range"):
        analog(make_tester(), 20, 6, forward_range=1000.0)
