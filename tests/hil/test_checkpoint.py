"""State goes into JSON and arrays and comes back the same; layers and optimizers keep theirs as torch does."""

import json
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from hil.checkpoint import pack, unpack
from hil.instruments.tester import ArrayTester
from hil.layers import AnalogLinear
from hil.mixed_precision import MixedPrecisionSGD, Refresh

MakeTester = Callable[..., ArrayTester]


def test_a_state_comes_back_as_it_was() -> None:
    state = {
        "numbers": [1, 2.5, float("nan"), None, True],
        0: {"tensor": torch.arange(6).reshape(2, 3), "scalar": np.float32(1.5)},
        "array": np.array([[1, 2]], np.int8),
        "nothing": {},
    }
    packed, arrays = pack(state)
    back = unpack(json.loads(json.dumps(packed)), arrays)
    assert str(back["numbers"]) == str(state["numbers"])
    assert torch.equal(back[0]["tensor"], torch.arange(6).reshape(2, 3))
    assert back[0]["scalar"] == 1.5
    assert (back["array"].dtype, back["array"].tolist(), back["nothing"]) == (np.int8, [[1, 2]], {})
    assert all(isinstance(values, np.ndarray) for values in arrays.values())


def network(tester: ArrayTester) -> tuple[nn.Sequential, MixedPrecisionSGD]:
    torch.manual_seed(1)
    model = nn.Sequential(
        AnalogLinear(6, 5, tester), nn.Sigmoid(), nn.Linear(5, 4), AnalogLinear(4, 3, tester), nn.Sigmoid()
    )
    return model, MixedPrecisionSGD(model.parameters(), lr=0.5, refresh=Refresh(images=7, above=1e-6))


def steps(model: nn.Module, optimizer: MixedPrecisionSGD, first: int, count: int) -> list[Any]:
    outputs = []
    for number in range(first, first + count):
        x = torch.from_numpy(np.random.default_rng(number).random((1, 6), np.float32))
        optimizer.zero_grad()
        y = model(x)
        (y - 1).square().sum().backward()
        optimizer.step()
        outputs.append(y.detach().numpy().tolist())
    return outputs


@pytest.mark.parametrize("chip", ["ideal", "pcm-90nm"])
def test_a_network_goes_on_from_its_state(make_tester: MakeTester, chip: str) -> None:
    """On an equal chip that was brought to the same state by the same operations."""
    model, optimizer = network(make_tester(chip))
    other, other_optimizer = network(make_tester(chip))
    steps(model, optimizer, 0, 20)
    steps(other, other_optimizer, 0, 20)
    kept = (model.state_dict(), optimizer.state_dict())
    packed, arrays = pack(kept)
    for parameter in other.parameters():
        if "chi" in other_optimizer.state.get(parameter, {}):
            other_optimizer.state[parameter]["chi"].fill_(0.05)  # lost
    other[2].weight.data.zero_()  # type: ignore[operator]
    model_state, optimizer_state = unpack(json.loads(json.dumps(packed)), arrays)
    other.load_state_dict(model_state)
    other_optimizer.load_state_dict(optimizer_state)
    assert steps(other, other_optimizer, 20, 20) == steps(model, optimizer, 20, 20)
    for one, two in zip(model.parameters(), other.parameters(), strict=True):
        if "chi" in optimizer.state.get(one, {}):
            assert torch.equal(optimizer.state[one]["chi"], other_optimizer.state[two]["chi"])


def test_chi_is_still_shared_with_torch_after_loading(make_tester: MakeTester) -> None:
    model, optimizer = network(make_tester())
    optimizer.load_state_dict(optimizer.state_dict())
    before = {weight: optimizer.state[weight]["chi"].clone() for weight in optimizer.state}
    steps(model, optimizer, 0, 1)
    assert any(not torch.equal(chi, optimizer.state[weight]["chi"]) for weight, chi in before.items())


def test_weights_may_be_added_later(make_tester: MakeTester) -> None:
    tester = make_tester()
    first, second = AnalogLinear(6, 5, tester), AnalogLinear(5, 3, tester)
    optimizer = MixedPrecisionSGD(first.parameters(), lr=0.5)
    optimizer.add_param_group({"params": list(second.parameters()), "lr": 0.1})
    steps(nn.Sequential(first, second), optimizer, 0, 5)
    assert optimizer.counts(second.weight).crossings > 0


def test_a_state_without_a_layer_is_refused_by_torch(make_tester: MakeTester) -> None:
    model, _ = network(make_tester())
    state = model.state_dict()
    del state["0._extra_state"]
    with pytest.raises(RuntimeError, match=r"Missing key.*0\._extra_state"):
        model.load_state_dict(state)
