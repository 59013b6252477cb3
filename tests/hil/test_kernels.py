"""Each compiled loop does what its plain numpy form does."""

from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from hil import kernels

EXACT = settings(deadline=None, derandomize=True, max_examples=60)
F32 = npt.NDArray[np.float32]
Case = tuple[F32, F32, F32]


def eighths(*shape: int, most: int = 16) -> st.SearchStrategy[F32]:
    """Multiples of 1/8, on which these kernels round nowhere; many are 0."""
    values = st.one_of(st.just(0), st.integers(-most, most))
    return arrays(np.int64, shape, elements=values).map(lambda whole: (whole / 8).astype(np.float32))


@st.composite
def cases(draw: st.DrawFn) -> Case:
    """x (batch, rows - 1), delta (batch, columns) and a matrix (rows, columns)."""
    batch, rows, columns = draw(st.integers(1, 13)), draw(st.integers(2, 9)), draw(st.integers(1, 9))
    return draw(eighths(batch, rows - 1)), draw(eighths(batch, columns)), draw(eighths(rows, columns))


def with_bias(x: F32) -> F32:
    """x with the input that is always 1."""
    return np.hstack([x, np.ones((len(x), 1), np.float32)])


def quantised(x: F32, top: int) -> tuple[npt.NDArray[np.int64], F32]:
    """The plain form of quantisation: codes and scales."""
    peak = np.abs(x).max(1)
    scale = np.where(peak > 0, peak.astype(np.float64) / top, 1).astype(np.float32)
    return np.rint(x / scale[:, None]).astype(np.int64), scale


class TestQuantise:
    @staticmethod
    def inputs(x: F32, top: int) -> tuple[bool, npt.NDArray[np.int16], F32]:
        codes, scale = np.zeros((len(x), x.shape[1] + 1), np.int16), np.zeros(len(x), np.float32)
        return bool(kernels.quantise_inputs(x, top, codes, scale)), codes, scale

    @staticmethod
    def deltas(x: F32, top: int, twice: bool = False) -> tuple[bool, npt.NDArray[np.int16], F32]:
        codes, scale = np.zeros((len(x), x.shape[1] * (1 + twice)), np.int16), np.zeros(len(x), np.float32)
        return bool(kernels.quantise_deltas(x, top, codes, scale)), codes, scale

    @EXACT
    @given(x=arrays(np.float32, (3, 7), elements=st.floats(-1e6, 1e6, width=32)), top=st.sampled_from([1, 127, 32767]))
    def test_codes_and_scales_are_those_of_numpy(self, x: F32, top: int) -> None:
        x[np.abs(x) < 1e-30] = 0  # a code's worth of less is subnormal
        for (done, codes, scale), whole in ((self.inputs(x, top), with_bias(x)), (self.deltas(x, top), x)):
            wanted, unit = quantised(whole, top)
            assert done
            np.testing.assert_array_equal(codes, wanted)
            np.testing.assert_array_equal(scale, unit)

    @pytest.mark.parametrize("lines", [1, 7, 8, 31, 32, 33, 250, 784])
    def test_the_largest_value_gets_the_top_code_wherever_it_is(self, lines: int) -> None:
        x = np.random.default_rng(1).uniform(-1, 1, (lines, lines)).astype(np.float32)
        np.fill_diagonal(x, np.where(np.arange(lines) % 2, 3, -3))
        _, codes, _ = self.inputs(x, 127)
        np.testing.assert_array_equal(np.diag(codes), np.where(np.arange(lines) % 2, 127, -127))
        _, codes, _ = self.deltas(x, 127)
        np.testing.assert_array_equal(np.diag(codes), np.where(np.arange(lines) % 2, 127, -127))

    @EXACT
    @given(x=arrays(np.float32, (3, 7), elements=st.floats(-1e6, 1e6, width=32)), top=st.sampled_from([1, 127, 32767]))
    def test_codes_reach_the_top_and_miss_no_value_by_more_than_half_a_code(self, x: F32, top: int) -> None:
        _, codes, scale = self.deltas(x, top)
        normal = np.abs(x).max(1) > 1e-30
        assert (np.abs(codes).max(1) == top)[normal].all()
        error = np.abs(codes.astype(float) * scale[:, None].astype(float) - x)
        assert (error <= (scale * 0.5001)[:, None])[normal].all()

    def test_without_any_input_the_bias_gets_the_top_code(self) -> None:
        done, codes, scale = self.inputs(np.zeros((1, 3), np.float32), 127)
        assert done
        assert codes.tolist() == [[0, 0, 0, 127]]
        np.testing.assert_allclose(scale, [1 / 127])

    def test_a_delta_of_zeros_has_codes_of_zero_and_a_scale(self) -> None:
        done, codes, scale = self.deltas(np.zeros((2, 3), np.float32), 127)
        assert done
        assert not codes.any()
        assert (scale == 1).all()

    def test_each_vector_has_its_own_scale(self) -> None:
        _, codes, scale = self.deltas(np.array([[1, -2], [100, 50]], np.float32), 127)
        assert codes.tolist() == [[64, -127], [127, 64]]
        np.testing.assert_allclose(scale, [2 / 127, 100 / 127])

    def test_with_twice_each_value_drives_two_lines_with_opposite_signs(self) -> None:
        _, codes, _ = self.deltas(np.array([[1, -2]], np.float32), 127, twice=True)
        assert codes.tolist() == [[64, -64, -127, 127]]

    @pytest.mark.parametrize("bad", [np.nan, -np.nan, np.inf, -np.inf])
    def test_a_value_that_is_not_finite_is_refused(self, bad: float) -> None:
        for place in range(40):
            x = np.ones((2, 40), np.float32)
            x[1, place] = bad
            assert not self.inputs(x, 127)[0]
            assert not self.deltas(x, 127)[0]

    def test_vectors_of_another_length_are_refused(self) -> None:
        x, codes, scale = np.ones((1, 5), np.float32), np.zeros((1, 5), np.int8), np.zeros(1, np.float32)
        with pytest.raises(ValueError, match="do not fit"):
            kernels.quantise_inputs(x, 127, codes, scale)
        with pytest.raises(ValueError, match="do not fit"):
            kernels.quantise_deltas(x[:, :4], 127, codes, scale)


class TestCombine:
    @pytest.mark.parametrize("pairwise", [False, True])
    @pytest.mark.parametrize("outputs", [7, 6])
    def test_blocks_that_share_outputs_are_added_and_scaled(self, pairwise: bool, outputs: int) -> None:
        rng = np.random.default_rng(3)
        places = np.array([(0, 4), (4, 3), (0, 4), (4, 3), (2, 3)])
        width = 2 if pairwise else 1
        codes = rng.integers(-100, 101, (5, width * int(places[:, 1].sum()))).astype(np.int8)
        scale = rng.random(5).astype(np.float32)
        out = np.full((5, outputs), np.nan, np.float32)
        kernels.combine(codes, places, pairwise, 0.25, scale, out)
        wide = codes.astype(float)
        single = wide[:, 0::2] - wide[:, 1::2] if pairwise else wide
        expected, at = np.zeros((5, 7)), 0
        for first, count in places:
            expected[:, first : first + count] += single[:, at : at + count]
            at += count
        np.testing.assert_allclose(out, (expected * 0.25 * scale[:, None])[:, :outputs], rtol=1e-6)


class TestProducts:
    @EXACT
    @given(case=cases())
    def test_both_directions_are_matrix_products(self, case: Case) -> None:
        x, delta, weight = case
        forward, backward = np.empty_like(delta), np.empty_like(x)
        kernels.product(x, weight, forward)
        kernels.transposed_product(delta, weight, backward)
        np.testing.assert_array_equal(forward, with_bias(x) @ weight)
        np.testing.assert_array_equal(backward, delta @ weight[:-1].T)

    def test_a_row_without_input_is_not_even_looked_at(self) -> None:
        weight = np.array([[np.nan, np.nan], [1, 2], [0.5, 0]], np.float32)
        out = np.empty((1, 2), np.float32)
        kernels.product(np.array([[0, 3]], np.float32), weight, out)
        assert out.tolist() == [[3.5, 6]]

    def test_vectors_of_another_length_are_refused(self) -> None:
        weight, x = np.ones((3, 2), np.float32), np.ones((1, 3), np.float32)
        with pytest.raises(ValueError, match="do not fit"):
            kernels.product(x, weight, np.empty((1, 2), np.float32))
        with pytest.raises(ValueError, match="do not fit"):
            kernels.transposed_product(x, weight, np.empty((1, 2), np.float32))


class TestAccumulate:
    @staticmethod
    def run(
        chi: F32, x: F32, delta: F32, granularity: float = 0.5, most: int = 65535, rate: float = 0.5
    ) -> tuple[int, F32, dict[int, int]]:
        """Weights to pulse, chi after it, and pulses by flat index."""
        chi = chi.copy()
        index, pulses = np.zeros(chi.size, np.int32), np.zeros(chi.size, np.int32)
        suspects = np.zeros(chi.size, np.bool_)
        count = kernels.accumulate(chi, x, delta, 0, len(chi), rate, granularity, most, index, pulses, suspects)
        assert np.flatnonzero(suspects).tolist() == index[: max(count, 0)].tolist()
        return count, chi, dict(zip(index[:count].tolist(), pulses[:count].tolist(), strict=True))

    @EXACT
    @given(case=cases(), most=st.sampled_from([1, 2, 65535]), granularity=st.sampled_from([0.25, 0.5, 4.0]))
    def test_it_is_a_dense_step_with_truncated_pulses_taken_off(
        self, case: Case, most: int, granularity: float
    ) -> None:
        x, delta, weight = case
        driven = np.any(with_bias(x), axis=0, keepdims=True).T  # only rows with input are looked at
        chi = np.where(driven, weight, 0).astype(np.float32)
        count, after, pulses = self.run(chi, x, delta, granularity, most)
        dense = chi - 0.5 * (with_bias(x).T @ delta)
        p = np.clip(np.trunc(dense / granularity), -most, most).astype(int)
        expected = {int(n): int(p.flat[n]) for n in np.flatnonzero(p)}
        assert pulses == expected
        assert count == len(expected)
        np.testing.assert_array_equal(after, dense - p * granularity)

    def test_chi_below_the_granularity_is_kept_and_nothing_sent(self) -> None:
        count, chi, _ = self.run(np.zeros((2, 2), np.float32), *_vectors([0.0], [0.9, -0.9]), granularity=0.5)
        assert count == 0
        np.testing.assert_allclose(chi, [[0.0, 0.0], [-0.45, 0.45]])

    def test_chi_at_the_granularity_is_sent(self) -> None:
        _, chi, pulses = self.run(np.zeros((2, 2), np.float32), *_vectors([1.0], [1.0, -1.0]), granularity=0.5)
        assert pulses == {0: -1, 1: 1, 2: -1, 3: 1}
        assert not chi.any()

    @pytest.mark.parametrize("granularity", [0.096, 0.7])  # rounded to float32, one is above and one below
    def test_a_granularity_that_is_no_float32_is_met_as_it_is(self, granularity: float) -> None:
        near = np.float32(granularity)
        for chi in (np.nextafter(near, np.float32(0)), near, np.nextafter(near, np.float32(1))):
            _, after, pulses = self.run(np.full((1, 1), chi), *_vectors([], [0.0]), granularity=granularity)
            assert pulses == ({0: 1} if float(chi) >= granularity else {})
            assert after == np.float32(float(chi) - granularity * len(pulses))

    def test_with_one_pulse_at_most_chi_keeps_the_rest(self) -> None:
        _, chi, pulses = self.run(np.zeros((1, 2), np.float32), *_vectors([], [4.0, -3.0]), granularity=0.5, most=1)
        assert pulses == {0: -1, 1: 1}
        np.testing.assert_allclose(chi, [[-1.5, 1.0]])

    def test_a_row_without_input_is_left_alone_whatever_its_chi(self) -> None:
        chi = np.array([[7.0, 7.0], [0.0, 0.0]], np.float32)
        count, after, _ = self.run(chi, *_vectors([0.0], [0.1, 0.1]), granularity=0.5)
        assert count == 0
        assert after[0].tolist() == [7.0, 7.0]

    def test_bands_of_rows_amount_to_the_whole(self) -> None:
        rng = np.random.default_rng(5)
        start = rng.standard_normal((7, 3)).astype(np.float32)
        x, delta = rng.standard_normal((2, 6)).astype(np.float32), rng.standard_normal((2, 3)).astype(np.float32)
        _, whole, pulses = self.run(start, x, delta)
        chi, suspects = start.copy(), np.zeros(21, np.bool_)
        found: dict[int, int] = {}
        for first, end in ((0, 3), (3, 6), (6, 7)):
            index, counts = np.zeros(9, np.int32), np.zeros(9, np.int32)
            count = kernels.accumulate(chi, x, delta, first, end, 0.5, 0.5, 65535, index, counts, suspects)
            found |= dict(zip(index[:count].tolist(), counts[:count].tolist(), strict=True))
        assert found == pulses
        np.testing.assert_array_equal(chi, whole)

    def test_small_steps_add_up_to_what_one_large_step_does(self) -> None:
        x, delta = _vectors([], [-0.0625])
        chi = np.zeros((1, 1), np.float32)
        sent = 0
        for _ in range(64):
            _, chi, pulses = self.run(chi, x, delta, granularity=0.5)
            sent += pulses.get(0, 0)
        assert sent * 0.5 + float(chi[0, 0]) == 64 * 0.5 * 0.0625

    def test_a_gradient_of_another_shape_is_refused(self) -> None:
        for x, delta in (_vectors([1.0, 1.0], [1.0]), _vectors([1.0], [1.0, 1.0])):
            with pytest.raises(ValueError, match="does not fit"):
                self.run(np.zeros((2, 1), np.float32), x, delta)

    @pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
    def test_a_gradient_that_is_not_finite_leaves_chi_as_it_was(self, bad: float) -> None:
        chi = np.ones((2, 2), np.float32)
        count, after, _ = self.run(chi, *_vectors([1.0], [0.5, bad]))
        assert count == kernels.NOT_FINITE
        np.testing.assert_array_equal(after, chi)

    @pytest.mark.parametrize("batch", [1, 7, 100])
    def test_real_figures_agree_with_numpy_but_for_rounding(self, batch: int) -> None:
        rng = np.random.default_rng(4)
        chi = (0.05 * rng.standard_normal((785, 250))).astype(np.float32)
        x = np.where(rng.random((batch, 784)) < 0.19, rng.random((batch, 784)), 0).astype(np.float32)
        delta = (0.2 / batch**0.5 * rng.standard_normal((batch, 250))).astype(np.float32)
        _, after, pulses = self.run(chi, x, delta, 0.096, 65535, 0.4)
        dense = chi - 0.4 * (with_bias(x).astype(float).T @ delta)
        sent = np.zeros(chi.size)
        sent[list(pulses)] = list(pulses.values())
        np.testing.assert_allclose(after + 0.096 * sent.reshape(chi.shape), dense, atol=1e-6)
        touched = np.abs(after[with_bias(x).any(0)])
        assert touched.max() <= 0.096 * (1 + 1e-6)
        assert len(pulses) > 1000


def _vectors(x: list[float], delta: list[float]) -> tuple[Any, Any]:
    return np.array([x], np.float32), np.array([delta], np.float32)


class TestAddresses:
    places = np.arange(3 * 20, dtype=np.uint16).reshape(3, 20)  # of 10 weights

    @EXACT
    @given(
        pulses=arrays(np.int32, 8, elements=st.integers(-3, 3)),
        stuck=st.one_of(st.just(np.zeros(0, np.bool_)), arrays(np.bool_, 20)),
        seed=st.integers(0, 99),
    )
    def test_pulses_go_to_one_device_of_each_weight_unless_it_is_stuck(
        self, pulses: npt.NDArray[np.int32], stuck: npt.NDArray[np.bool_], seed: int
    ) -> None:
        index = np.random.default_rng(seed).integers(0, 10, 8).astype(np.int32)
        out = np.zeros((4, 8), np.uint16)
        count, total = kernels.address(index, pulses, self.places, stuck, out)
        devices = np.where(pulses < 0, index + 10, index)
        keep = pulses != 0
        if len(stuck):
            keep &= ~stuck[devices]
        np.testing.assert_array_equal(out[:3, :count], self.places[:, devices[keep]])
        np.testing.assert_array_equal(out[3, :count], np.abs(pulses[keep]))
        assert total == np.abs(pulses[keep]).sum()

    def test_the_most_pulses_that_a_message_carries_are_not_cut(self) -> None:
        out = np.zeros((4, 1), np.uint16)
        kernels.address(np.array([3]), np.array([-65535], np.int32), self.places, np.zeros(0, np.bool_), out)
        assert out[:, 0].tolist() == [13, 33, 53, 65535]

    def test_pairs_are_all_positive_devices_then_all_negative_ones(self) -> None:
        index = np.array([7, 0, 3], np.int32)
        out = np.zeros((3, 6), np.uint16)
        kernels.address_pairs(index, self.places, out)
        np.testing.assert_array_equal(out, self.places[:, [7, 0, 3, 17, 10, 13]])


class TestScore:
    @EXACT
    @given(
        outputs=arrays(np.float32, (5, 4), elements=st.floats(-10, 10, width=32)),
        labels=arrays(np.int64, 5, elements=st.integers(0, 3)),
    )
    def test_loss_and_hits_are_those_of_numpy(self, outputs: F32, labels: npt.NDArray[np.int64]) -> None:
        targets = np.eye(4, dtype=np.float32)[labels]
        loss, hits = kernels.score(outputs, targets, labels)
        assert hits == np.count_nonzero(outputs.argmax(1) == labels)
        assert loss == pytest.approx(0.5 * np.square(outputs - targets, dtype=np.float64).sum(), rel=1e-12)

    @pytest.mark.parametrize("bad", [np.nan, np.inf])
    def test_an_output_that_is_not_finite_makes_the_loss_so(self, bad: float) -> None:
        outputs = np.array([[0.5, bad]], np.float32)
        loss, _ = kernels.score(outputs, np.eye(2, dtype=np.float32)[:1], np.array([0]))
        assert not loss < np.inf


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
def test_finite_values_are_told_from_others(bad: float) -> None:
    values = np.full((2, 37), 1e30, np.float32)
    assert kernels.all_finite(values)
    for place in range(37):
        values[1, place] = bad
        assert not kernels.all_finite(values)
        values[1, place] = 0
