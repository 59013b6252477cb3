"""The source of normals: a state that can be stored and continued."""

import numpy as np
import pytest
from scipy import stats

from hil.mock_hw.normals import BLOCK, NormalSource


def source(seed: int = 1) -> NormalSource:
    return NormalSource(np.random.SeedSequence(seed))


def test_the_values_are_standard_normal_in_single_precision() -> None:
    values = source().take(100_000)
    assert values.dtype == np.float32
    assert stats.kstest(values, "norm").pvalue > 1e-4


def test_the_same_requests_after_the_same_seed_give_the_same_values() -> None:
    first, second = source(), source()
    for count in (3, 0, BLOCK - 1, 10, 3 * BLOCK, 1):
        assert np.array_equal(first.take(count), second.take(count))


def test_another_seed_gives_other_values() -> None:
    assert not np.array_equal(source(1).take(10), source(2).take(10))


def test_no_value_is_handed_out_twice() -> None:
    normals = source()
    values = np.concatenate([normals.take(count).copy() for count in (1000, BLOCK, 1000, 5, BLOCK + 5, 7)])
    assert len(np.unique(values)) > 0.98 * len(values)  # single precision repeats a few by chance
    windows = np.lib.stride_tricks.sliding_window_view(values, 4)
    assert len(np.unique(windows, axis=0)) == len(windows)


@pytest.mark.parametrize("before", [[], [10], [BLOCK], [BLOCK - 1, 5], [3 * BLOCK], [3 * BLOCK, 1], [7, BLOCK + 1, 7]])
def test_a_restored_source_goes_on_as_if_it_had_never_stopped(before: list[int]) -> None:
    original = source()
    for count in before:
        original.take(count)
    restored = source(99)
    restored.take(5)
    restored.restore(original.state())
    for count in (1, 100, BLOCK, 2 * BLOCK, 3):
        assert np.array_equal(restored.take(count), original.take(count))


def test_a_stored_state_is_not_changed_by_drawing_on() -> None:
    original = source()
    original.take(10)
    state = original.state()
    expected = original.take(BLOCK).copy()
    original.take(5 * BLOCK)
    for _ in range(2):
        restored = source(99)
        restored.restore(state)
        assert np.array_equal(restored.take(BLOCK), expected)
        restored.take(5 * BLOCK)
