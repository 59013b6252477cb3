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
    """x (batch, rows), delta (batch, columns) and a matrix (rows, columns)."""
    batch, rows, columns = draw(st.integers(1, 4)), draw(st.integers(1, 9)), draw(st.integers(1, 9))
    return draw(eighths(batch, rows)), draw(eighths(batch, columns)), draw(eighths(rows, columns))


class TestQuantise:
    @staticmethod
    def run(x: F32, top: int, twice: bool = False) -> tuple[bool, npt.NDArray[np.int16], F32]:
        codes = np.zeros((len(x), x.shape[1] * (1 + twice)), np.int16)
        scale = np.zeros(len(x), np.float32)
        return bool(kernels.quantise(x, top, codes, scale, twice)), codes, scale

    @EXACT
    @given(x=arrays(np.float32, (3, 7), elements=st.floats(-1e6, 1e6, width=32)), top=st.sampled_from([1, 127, 32767]))
    def test_codes_reach_the_top_and_miss_no_value_by_more_than_half_a_code(self, x: F32, top: int) -> None:
        done, codes, scale = self.run(x, top)
        peak = np.abs(x).max(1)
        normal = peak > 1e-30  # below, a code's worth is subnormal
        assert done
        assert (np.abs(codes).max(1) == top)[normal].all()
        error = np.abs(codes.astype(float) * scale[:, None].astype(float) - x)
        assert (error <= (scale * 0.5001)[:, None])[normal].all()

    def test_a_vector_of_zeros_has_codes_of_zero_and_a_scale(self) -> None:
        done, codes, scale = self.run(np.zeros((2, 3), np.float32), 127)
        assert done
        assert not codes.any()
        assert (scale == 1).all()

    def test_each_vector_has_its_own_scale(self) -> None:
        _, codes, scale = self.run(np.array([[1, -2], [100, 50]], np.float32), 127)
        assert codes.tolist() == [[64, -127], [127, 64]]
        np.testing.assert_allclose(scale, [2 / 127, 100 / 127])

    def test_with_twice_each_value_drives_two_lines_with_opposite_signs(self) -> None:
        _, codes, _ = self.run(np.array([[1, -2]], np.float32), 127, twice=True)
        assert codes.tolist() == [[64, -64, -127, 127]]

    @pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
    def test_a_value_that_is_not_finite_is_refused(self, bad: float) -> None:
        done, _, _ = self.run(np.array([[1, 2], [3, bad]], np.float32), 127)
        assert not done


class TestCombine:
    @pytest.mark.parametrize("pairwise", [False, True])
    def test_blocks_that_share_outputs_are_added_and_scaled(self, pairwise: bool) -> None:
        rng = np.random.default_rng(3)
        places = np.array([(0, 4), (4, 3), (0, 4), (4, 3), (2, 3)])
        width = 2 if pairwise else 1
        codes = rng.integers(-100, 101, (5, width * int(places[:, 1].sum()))).astype(np.int8)
        scale = rng.random(5).astype(np.float32)
        out = np.full((5, 7), np.nan, np.float32)
        kernels.combine(codes, places, pairwise, 0.25, scale, out)
        wide = codes.astype(float)
        single = wide[:, 0::2] - wide[:, 1::2] if pairwise else wide
        expected, at = np.zeros((5, 7)), 0
        for first, count in places:
            expected[:, first : first + count] += single[:, at : at + count]
            at += count
        np.testing.assert_allclose(out, expected * 0.25 * scale[:, None], rtol=1e-6)


class TestProducts:
    @EXACT
    @given(case=cases())
    def test_both_directions_are_matrix_products(self, case: Case) -> None:
        x, delta, weight = case
        forward, backward = np.empty_like(delta), np.empty_like(x)
        kernels.product(x, weight, forward)
        kernels.transposed_product(delta, weight, backward)
        np.testing.assert_array_equal(forward, x @ weight)
        np.testing.assert_array_equal(backward, delta @ weight.T)

    def test_a_row_without_input_is_not_even_looked_at(self) -> None:
        weight = np.array([[np.nan, np.nan], [1, 2]], np.float32)
        out = np.empty((1, 2), np.float32)
        kernels.product(np.array([[0, 3]], np.float32), weight, out)
        assert out.tolist() == [[3, 6]]


class TestAccumulate:
    @staticmethod
    def run(
        chi: F32, x: F32, delta: F32, granularity: float = 0.5, most: int = 65535, rate: float = 0.5
    ) -> tuple[int, F32, dict[int, int]]:
        """Weights to pulse, chi after it, and pulses by flat index."""
        chi = chi.copy()
        index, pulses = np.zeros(chi.size, np.int32), np.zeros(chi.size, np.int32)
        count = kernels.accumulate(chi, x, delta, rate, granularity, most, index, pulses)
        return count, chi, dict(zip(index[:count].tolist(), pulses[:count].tolist(), strict=True))

    @EXACT
    @given(case=cases(), most=st.sampled_from([1, 2, 65535]), granularity=st.sampled_from([0.25, 0.5, 4.0]))
    def test_it_is_a_dense_step_with_truncated_pulses_taken_off(
        self, case: Case, most: int, granularity: float
    ) -> None:
        x, delta, weight = case
        driven = np.any(x, axis=0, keepdims=True).T  # only rows with input are looked at
        chi = np.where(driven, weight, 0).astype(np.float32)
        count, after, pulses = self.run(chi, x, delta, granularity, most)
        dense = chi - 0.5 * (x.T @ delta)
        p = np.clip(np.trunc(dense / granularity), -most, most).astype(int)
        expected = {int(n): int(p.flat[n]) for n in np.flatnonzero(p)}
        assert pulses == expected
        assert count == len(expected)
        np.testing.assert_array_equal(after, dense - p * granularity)

    def test_chi_below_the_granularity_is_kept_and_nothing_sent(self) -> None:
        count, chi, _ = self.run(np.zeros((1, 2), np.float32), *_vectors([1.0], [0.9, -0.9]), granularity=0.5)
        assert count == 0
        np.testing.assert_allclose(chi, [[-0.45, 0.45]])

    def test_chi_at_the_granularity_is_sent(self) -> None:
        _, chi, pulses = self.run(np.zeros((1, 2), np.float32), *_vectors([1.0], [1.0, -1.0]), granularity=0.5)
        assert pulses == {0: -1, 1: 1}
        assert not chi.any()

    def test_with_one_pulse_at_most_chi_keeps_the_rest(self) -> None:
        _, chi, pulses = self.run(np.zeros((1, 2), np.float32), *_vectors([1.0], [4.0, -3.0]), granularity=0.5, most=1)
        assert pulses == {0: -1, 1: 1}
        np.testing.assert_allclose(chi, [[-1.5, 1.0]])

    def test_a_row_without_input_is_left_alone_whatever_its_chi(self) -> None:
        chi = np.array([[7.0, 7.0], [0.0, 0.0]], np.float32)
        count, after, _ = self.run(chi, *_vectors([0.0, 1.0], [0.1, 0.1]), granularity=0.5)
        assert count == 0
        assert after[0].tolist() == [7.0, 7.0]

    def test_small_steps_add_up_to_what_one_large_step_does(self) -> None:
        x, delta = _vectors([1.0], [-0.0625])
        chi = np.zeros((1, 1), np.float32)
        sent = 0
        for _ in range(64):
            _, chi, pulses = self.run(chi, x, delta, granularity=0.5)
            sent += pulses.get(0, 0)
        assert sent * 0.5 + float(chi[0, 0]) == 64 * 0.5 * 0.0625

    @pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
    def test_a_gradient_that_is_not_finite_leaves_chi_as_it_was(self, bad: float) -> None:
        chi = np.ones((2, 2), np.float32)
        count, after, _ = self.run(chi, *_vectors([1.0, 1.0], [0.5, bad]))
        assert count == kernels.NOT_FINITE
        np.testing.assert_array_equal(after, chi)

    def test_real_figures_agree_with_numpy_but_for_rounding(self) -> None:
        rng = np.random.default_rng(4)
        chi = (0.05 * rng.standard_normal((785, 250))).astype(np.float32)
        x = np.where(rng.random((7, 785)) < 0.19, rng.random((7, 785)), 0).astype(np.float32)
        delta = (0.1 * rng.standard_normal((7, 250))).astype(np.float32)
        _, after, pulses = self.run(chi, x, delta, 0.096, 65535, 0.4)
        dense = chi - 0.4 * (x.astype(float).T @ delta)
        sent = np.zeros(chi.size)
        sent[list(pulses)] = list(pulses.values())
        np.testing.assert_allclose(after + 0.096 * sent.reshape(chi.shape), dense, atol=1e-6)
        touched = np.abs(after[x.any(0)])
        assert touched.max() <= 0.096 * (1 + 1e-6)
        assert len(pulses) > 1000


def _vectors(x: list[float], delta: list[float]) -> tuple[Any, Any]:
    return np.array([x], np.float32), np.array([delta], np.float32)


@pytest.mark.parametrize(("values", "finite"), [([0.0, 1e30], True), ([0.0, np.nan], False), ([np.inf, 0.0], False)])
def test_finite_values_are_told_from_others(values: list[float], finite: bool) -> None:
    assert kernels.all_finite(np.array([values], np.float32)) == finite
