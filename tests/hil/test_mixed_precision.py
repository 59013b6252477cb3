"""The update rule: chi gathers gradients, devices get whole pulses, worn pairs are refreshed."""

from collections.abc import Callable
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
import torch
from pytest_mock import MockerFixture
from torch import nn

from hil.instruments.tester import ArrayTester
from hil.layers import AnalogLinear
from hil.mixed_precision import MixedPrecisionSGD, Refresh
from hil.pairs import DifferentialPairs
from hil.protocols.errors import DivergedError, InputError
from hil.protocols.messages import Operation

EPSILON = 0.096
STEP = 0.77e-6  # S per SET pulse of the ideal chip
READ = 0.6e-9  # S, two roundings of its reads
MakeTester = Callable[..., ArrayTester]
WeightsOf = Callable[[DifferentialPairs], npt.NDArray[np.float64]]


def layer_on(tester: ArrayTester, inputs: int = 3, outputs: int = 2, **options: Any) -> AnalogLinear:
    """A layer with all weights 0."""
    return AnalogLinear(inputs, outputs, tester, initial_weights=torch.zeros(inputs + 1, outputs), **options)


def give(layer: AnalogLinear, gradient: object) -> None:
    """Leave a gradient (rows, columns) at a layer."""
    matrix = np.asarray(gradient, np.float32) * np.ones(layer.weight.shape, np.float32)
    features = len(matrix) - 1
    if (matrix == matrix[0, 0]).all():
        layer.weight.factors.append((np.ones((1, features), np.float32), matrix[:1]))
        return
    x = np.vstack([np.eye(features), np.zeros((1, features))]).astype(np.float32)
    delta = matrix.copy()  # each image also drives the bias
    delta[-1] -= matrix[:-1].sum(0)
    layer.weight.factors.append((x, delta))


def pass_by(layer: AnalogLinear, images: int) -> None:
    """Images without any gradient."""
    features, outputs = layer.in_features, layer.out_features
    layer.weight.factors.append((np.zeros((images, features), np.float32), np.zeros((images, outputs), np.float32)))


def chi_of(optimizer: MixedPrecisionSGD, layer: AnalogLinear) -> npt.NDArray[np.float32]:
    chi: npt.NDArray[np.float32] = optimizer.state[layer.weight]["chi"].numpy()
    return chi


def conductances(layer: AnalogLinear) -> npt.NDArray[np.float32]:
    """G+ and G- of all weights, (2, rows, columns)."""
    pairs = layer.weight.pairs
    return np.stack(pairs.measure(np.arange(len(pairs)))).reshape(2, *pairs.shape)


class TestChi:
    def test_chi_loses_rate_times_gradient_and_what_the_pulses_stand_for(self, make_tester: MakeTester) -> None:
        layer = layer_on(make_tester())
        optimizer = MixedPrecisionSGD(layer.parameters(), lr=0.5, granularity=EPSILON)
        gradient = np.random.default_rng(11).uniform(-1, 1, (4, 2))
        before = conductances(layer)
        give(layer, gradient)
        optimizer.step()
        wanted = -0.5 * gradient
        p = np.trunc(wanted / EPSILON)
        np.testing.assert_allclose(chi_of(optimizer, layer), wanted - p * EPSILON, atol=1e-6)
        moved = np.stack([np.maximum(p, 0), np.maximum(-p, 0)]) * STEP
        np.testing.assert_allclose(conductances(layer) - before, moved, atol=2 * READ)
        counts = optimizer.counts(layer.weight)
        assert counts.crossings == np.count_nonzero(p)
        assert counts.set_pulses == np.abs(p).sum()
        assert layer.weight.pairs.sent[Operation.SET] == np.abs(p).sum()

    def test_steps_too_small_for_a_pulse_add_up(self, make_tester: MakeTester) -> None:
        layer = layer_on(make_tester())
        optimizer = MixedPrecisionSGD(layer.parameters(), lr=0.1, granularity=EPSILON)
        pulses = []
        for _ in range(20):
            give(layer, -0.25)
            optimizer.step()
            pulses.append(optimizer.counts(layer.weight).set_pulses // 8)
        assert pulses == [int(0.025 * n / EPSILON + 1e-9) for n in range(1, 21)]
        total = chi_of(optimizer, layer) + pulses[-1] * EPSILON
        np.testing.assert_allclose(total, 0.5, rtol=1e-5)

    def test_max_pulses_limits_a_step_and_chi_keeps_the_rest(self, make_tester: MakeTester) -> None:
        layer = layer_on(make_tester())
        optimizer = MixedPrecisionSGD(layer.parameters(), lr=1.0, granularity=EPSILON, max_pulses=1)
        give(layer, -5.5 * EPSILON)
        optimizer.step()
        np.testing.assert_allclose(chi_of(optimizer, layer), 4.5 * EPSILON, rtol=1e-5)
        assert optimizer.counts(layer.weight).set_pulses == 8
        give(layer, 1e-9)
        optimizer.step()
        np.testing.assert_allclose(chi_of(optimizer, layer), 3.5 * EPSILON, rtol=1e-5)

    def test_a_large_layer_is_updated_in_bands_of_rows(self, make_tester: MakeTester, mocker: MockerFixture) -> None:
        results = []
        for most in (2**20, 5, 1):  # weights at a time, of 4 x 2
            mocker.patch("hil.mixed_precision.SLICE", most)
            layer = layer_on(make_tester())
            optimizer = MixedPrecisionSGD(layer.parameters(), lr=0.5)
            sent = mocker.spy(layer.weight.pairs, "pulse")
            give(layer, np.random.default_rng(11).uniform(-1, 1, (4, 2)))
            optimizer.step()
            results.append((chi_of(optimizer, layer).tolist(), conductances(layer).tolist()))
            assert sent.call_count == {2**20: 1, 5: 2, 1: 4}[most]
        assert results[0] == results[1] == results[2]

    def test_chi_is_in_device_units_whatever_the_scale(self, make_tester: MakeTester) -> None:
        layer = layer_on(make_tester(), scale=0.25, forward_range=3.0, backward_range=1.0)
        optimizer = MixedPrecisionSGD(layer.parameters(), lr=0.01)
        give(layer, -1.0)
        optimizer.step()
        np.testing.assert_allclose(chi_of(optimizer, layer), 0.04, rtol=1e-5)

    def test_several_backward_passes_count_as_one_batch(self, make_tester: MakeTester) -> None:
        x = torch.rand(6, 3, generator=torch.Generator().manual_seed(12))
        results = []
        for parts in ([x], [x[:1], x[1:4], x[4:]]):
            layer = layer_on(make_tester())
            optimizer = MixedPrecisionSGD(layer.parameters(), lr=0.05)
            for part in parts:
                ((layer(part) - 1) ** 2).sum().backward()
            optimizer.step()
            results.append((chi_of(optimizer, layer).copy(), conductances(layer)))
        np.testing.assert_allclose(results[0][0], results[1][0], atol=1e-6)
        np.testing.assert_array_equal(results[0][1], results[1][1])
        assert optimizer.counts(layer.weight).set_pulses

    def test_zero_grad_forgets_analog_gradients(self, make_tester: MakeTester) -> None:
        layer = layer_on(make_tester())
        optimizer = MixedPrecisionSGD(layer.parameters(), lr=1.0)
        layer(torch.ones(1, 3)).sum().backward()
        optimizer.zero_grad()
        optimizer.step()
        assert not chi_of(optimizer, layer).any()

    def test_a_gradient_is_used_once(self, make_tester: MakeTester) -> None:
        layer = layer_on(make_tester())
        optimizer = MixedPrecisionSGD(layer.parameters(), lr=0.01)
        give(layer, 1.0)
        optimizer.step()
        optimizer.step()
        np.testing.assert_allclose(chi_of(optimizer, layer), -0.01, rtol=1e-5)

    def test_a_gradient_that_is_not_finite_ends_training(self, make_tester: MakeTester) -> None:
        layer = layer_on(make_tester())
        optimizer = MixedPrecisionSGD(layer.parameters(), lr=0.01)
        (layer(torch.ones(1, 3)) * float("nan")).sum().backward()
        with pytest.raises(DivergedError, match="gradient is not finite"):
            optimizer.step()


class TestRefresh:
    @staticmethod
    def worn(tester: ArrayTester, images: int = 10, up: int = 12, down: int = 8, **rule: Any) -> tuple[Any, Any]:
        """A layer whose first bias has had pulses up and down, one image from its refresh."""
        layer = layer_on(tester)
        optimizer = MixedPrecisionSGD(layer.parameters(), lr=1.0, refresh=Refresh(images, **rule))
        for pulses in (up + 0.1, -down - 0.3):  # chi ends at -0.2 epsilon
            delta = np.array([[-pulses * EPSILON, 0]], np.float32)
            layer.weight.factors.append((np.zeros((1, 3), np.float32), delta))
            optimizer.step()
        pass_by(layer, images - 3)
        optimizer.step()
        return layer, optimizer

    @staticmethod
    def one_image_more(layer: AnalogLinear, optimizer: MixedPrecisionSGD, images: int = 1) -> None:
        pass_by(layer, images)
        optimizer.step()

    def test_a_worn_pair_is_reset_and_its_difference_written_again(self, make_tester: MakeTester) -> None:
        layer, optimizer = self.worn(make_tester())
        before, chi = conductances(layer), chi_of(optimizer, layer).copy()
        np.testing.assert_allclose(before[:, 3, 0], [0.1e-6 + 12 * STEP, 0.1e-6 + 8 * STEP], atol=READ)
        self.one_image_more(layer, optimizer)
        after = conductances(layer)
        np.testing.assert_allclose(after[:, 3, 0], [0.1e-6 + 4 * STEP, 0.1e-6], atol=READ)
        after[:, 3, 0] = before[:, 3, 0]
        np.testing.assert_array_equal(after, before)
        np.testing.assert_array_equal(chi_of(optimizer, layer), chi)
        assert chi.any()
        counts = optimizer.counts(layer.weight)
        assert (counts.refreshes, counts.set_pulses) == (1, 20)
        assert layer.weight.pairs.sent == {Operation.SET: 24, Operation.RESET: 16 + 2}  # 16 when it was made

    @pytest.mark.parametrize(
        ("up", "down", "why"),
        [
            (10, 8, "no device is above 8 uS"),
            (14, 4, "the difference is above 6 uS"),
            (4, 14, "the difference is below -6 uS"),
        ],
    )
    def test_a_pair_that_is_not_worn_is_left(self, up: int, down: int, why: str, make_tester: MakeTester) -> None:
        layer, optimizer = self.worn(make_tester(), up=up, down=down)
        before = conductances(layer)
        self.one_image_more(layer, optimizer)
        np.testing.assert_array_equal(conductances(layer), before, err_msg=why)
        assert optimizer.counts(layer.weight).refreshes == 0

    def test_the_limits_can_be_chosen(self, make_tester: MakeTester) -> None:
        layer, optimizer = self.worn(make_tester(), up=4, down=2, above=3e-6, below=2e-6)
        self.one_image_more(layer, optimizer)
        assert optimizer.counts(layer.weight).refreshes == 1

    def test_a_layer_that_the_host_multiplies_reads_a_refreshed_pair_again(
        self, make_tester: MakeTester, mocker: MockerFixture
    ) -> None:
        tester = make_tester(mvm="none")
        layer, optimizer = self.worn(tester)
        layer(torch.ones(1, 3))
        self.one_image_more(layer, optimizer)
        reads = mocker.spy(tester, "read")
        layer(torch.ones(1, 3))
        assert [len(call.args[0]) for call in reads.call_args_list] == [2]

    def test_images_are_counted_by_the_batch(self, make_tester: MakeTester) -> None:
        layer, optimizer = self.worn(make_tester(), images=100)
        self.one_image_more(layer, optimizer, images=7)
        assert optimizer.counts(layer.weight).refreshes == 1
        layer, optimizer = self.worn(make_tester(), images=100)
        optimizer.step()  # no image
        assert optimizer.counts(layer.weight).refreshes == 0

    def test_a_check_reads_only_pairs_that_were_pulsed_or_were_near_the_limit(
        self, make_tester: MakeTester, mocker: MockerFixture
    ) -> None:
        for up, down, again in ((10, 8, True), (5, 2, False), (12, 8, False)):
            tester = make_tester()
            layer, optimizer = self.worn(tester, up=up, down=down)
            reads = mocker.spy(tester, "read")
            self.one_image_more(layer, optimizer, images=10)
            assert [len(call.args[0]) for call in reads.call_args_list] == [2]
            self.one_image_more(layer, optimizer, images=10)
            assert [len(call.args[0]) for call in reads.call_args_list] == ([2, 2] if again else [2])

    def test_without_refresh_nothing_is_read_or_reset(self, make_tester: MakeTester, mocker: MockerFixture) -> None:
        tester = make_tester()
        layer = layer_on(tester)
        optimizer = MixedPrecisionSGD(layer.parameters(), lr=1.0, refresh=None)
        reads = mocker.spy(tester, "read")
        for sign in (1, -1) * 100:
            give(layer, sign * 10 * EPSILON)
            optimizer.step()
        assert layer.weight.pairs.sent[Operation.RESET] == 16
        reads.assert_not_called()


class TestModels:
    def test_ordinary_parameters_get_plain_sgd(self, make_tester: MakeTester) -> None:
        torch.manual_seed(13)
        linear = nn.Linear(3, 3)
        layer = layer_on(make_tester())
        model = nn.Sequential(linear, layer)
        copies = [parameter.detach().clone() for parameter in linear.parameters()]
        optimizer = MixedPrecisionSGD(model.parameters(), lr=0.05)
        layer.weight.pairs.write(np.arange(8), np.full(8, 4e-6, np.float32))
        (model(torch.rand(4, 3)) ** 2).sum().backward()
        optimizer.step()
        for parameter, copy in zip(linear.parameters(), copies, strict=True):
            assert parameter.grad is not None
            assert parameter.grad.any()
            torch.testing.assert_close(parameter.detach(), copy - 0.05 * parameter.grad, rtol=0, atol=0)

    def test_groups_have_their_own_rates(self, make_tester: MakeTester) -> None:
        tester = make_tester()
        layers = [layer_on(tester), layer_on(tester)]
        groups = [{"params": layers[0].parameters(), "lr": 0.01}, {"params": layers[1].parameters()}]
        optimizer = MixedPrecisionSGD(groups, lr=0.02)  # type: ignore[arg-type]
        for layer in layers:
            give(layer, -1.0)
        optimizer.step()
        for layer, rate in zip(layers, (0.01, 0.02), strict=True):
            np.testing.assert_allclose(chi_of(optimizer, layer), rate, rtol=1e-5)

    def test_layers_of_a_model_may_lie_on_two_testers(self, make_tester: MakeTester) -> None:
        testers = make_tester(), make_tester("pcm-90nm", seed=2)
        torch.manual_seed(14)
        layers = AnalogLinear(5, 4, testers[0]), AnalogLinear(4, 2, testers[1])
        model = nn.Sequential(layers[0], nn.Sigmoid(), layers[1])
        optimizer = MixedPrecisionSGD(model.parameters(), lr=0.5)
        before = [tester.wait(0).op_id for tester in testers]
        for _ in range(5):
            ((model(torch.rand(3, 5)) - 1) ** 2).sum().backward()
            optimizer.step()
        for layer, tester, earlier in zip(layers, testers, before, strict=True):
            assert layer.weight.pairs.tester is tester
            assert optimizer.counts(layer.weight).set_pulses > 0
            assert tester.wait(0).op_id > earlier + 5

    def test_a_closure_gives_the_loss_as_in_torch(self, make_tester: MakeTester) -> None:
        layer = layer_on(make_tester())
        optimizer = MixedPrecisionSGD(layer.parameters(), lr=0.01)

        def closure() -> Any:
            optimizer.zero_grad()
            loss = ((layer(torch.ones(1, 3)) - 2) ** 2).sum()
            loss.backward()
            return loss.detach()

        assert float(optimizer.step(closure) or 0) == pytest.approx(8.0, abs=0.01)
        np.testing.assert_allclose(chi_of(optimizer, layer), 0.04, rtol=0.01)

    def test_a_schedule_of_torch_changes_the_rate(self, make_tester: MakeTester) -> None:
        layer = layer_on(make_tester())
        optimizer = MixedPrecisionSGD(layer.parameters(), lr=0.02)
        schedule = torch.optim.lr_scheduler.ExponentialLR(optimizer, 0.5)
        for _ in range(2):
            give(layer, -1.0)
            optimizer.step()
            schedule.step()
        np.testing.assert_allclose(chi_of(optimizer, layer), 0.03, rtol=1e-5)

    @pytest.mark.parametrize(
        "wrong", [{"lr": 0.0}, {"lr": -1.0}, {"lr": float("nan")}, {"lr": 1.0, "granularity": 0.0}]
    )
    def test_figures_that_must_be_positive_are_checked(self, wrong: dict[str, float], make_tester: MakeTester) -> None:
        with pytest.raises(InputError, match="above 0"):
            MixedPrecisionSGD(layer_on(make_tester()).parameters(), **wrong)  # type: ignore[arg-type]

    def test_a_limit_of_no_pulses_is_refused(self, make_tester: MakeTester) -> None:
        with pytest.raises(InputError, match="max_pulses=0"):
            MixedPrecisionSGD(layer_on(make_tester()).parameters(), lr=1.0, max_pulses=0)
