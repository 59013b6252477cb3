"""The source of normals: a state that can be stored and continued."""

import numpy as np
import numpy.typing as npt
import pytest
from scipy import stats

import hil.mock_hw.normals as normals
from hil.mock_hw.normals import BLOCK, EDGES, HEIGHTS, LAYERS, SPARE, NormalSource, skip_to, ziggurat


def source(seed: int = 1) -> NormalSource:
    return NormalSource(np.random.SeedSequence(seed))


def test_the_values_are_standard_normal_in_single_precision() -> None:
    values = source().take(100_000)
    assert values.dtype == np.float32
    assert stats.kstest(values, "norm").pvalue > 1e-4


def test_all_layers_have_the_same_area() -> None:
    assert len(EDGES) == LAYERS + 1
    areas = EDGES[1:-1] * np.diff(HEIGHTS[1:])
    np.testing.assert_allclose(areas, EDGES[0] * HEIGHTS[1], rtol=1e-9)


def test_moments_body_and_tails_are_those_of_the_normal_distribution() -> None:
    normal, count = source(3), 1 << 23
    values = np.concatenate([normal.take(1 << 20).astype(np.float64) for _ in range(count >> 20)])
    for power, expected, variance in ((1, 0, 1), (2, 1, 2), (3, 0, 15), (4, 3, 96)):
        assert abs((values**power).mean() - expected) < 5 * np.sqrt(variance / count)
    edges = np.concatenate([[-np.inf], np.linspace(-4.2, 4.2, 200), [np.inf]])
    expected_counts = np.diff(stats.norm.cdf(edges)) * count
    counts = np.histogram(values, edges)[0]
    assert stats.chi2.sf((((counts - expected_counts) ** 2) / expected_counts).sum(), len(counts) - 1) > 1e-4
    for beyond in (3.6, 3.7, 4.0, 4.5):  # the tail begins at 3.65
        mean = 2 * stats.norm.sf(beyond) * count
        assert abs((np.abs(values) > beyond).sum() - mean) < 5 * np.sqrt(mean)


def test_neighbouring_values_are_independent() -> None:
    values = source(4).take(1 << 20).astype(np.float64)
    for lag in (1, 2, 3, LAYERS):
        for a, b in ((values[:-lag], values[lag:]), (np.abs(values[:-lag]), np.abs(values[lag:]))):
            assert abs(np.corrcoef(a, b)[0, 1]) < 5 / np.sqrt(len(a))


def words_of(generator: np.random.SFC64) -> npt.NDArray[np.uint64]:
    state: npt.NDArray[np.uint64] = generator.state["state"]["state"].copy()
    return state


def test_compiled_and_plain_python_make_the_same_normals_of_the_same_state(monkeypatch: pytest.MonkeyPatch) -> None:
    states = words_of(np.random.SFC64(5)), words_of(np.random.SFC64(5))
    compiled, plain = np.empty(19_000, np.float32), np.empty(19_000, np.float32)
    ziggurat(states[0], EDGES, HEIGHTS, compiled)
    for function in ("next_word", "uniform"):
        monkeypatch.setattr(normals, function, getattr(normals, function).py_func)
    with np.errstate(over="ignore"):
        ziggurat.py_func(states[1], EDGES, HEIGHTS, plain)
    np.testing.assert_allclose(plain, compiled, rtol=1e-6)
    assert np.array_equal(*states)


def test_the_words_are_those_of_numpys_generator() -> None:
    ours, numpys = words_of(np.random.SFC64(6)), np.random.SFC64(6)
    start = int(ours[3])
    skip_to(np.uint64(start + 20_000), ours)
    numpys.random_raw(20_000)
    assert np.array_equal(ours, words_of(numpys))
    ziggurat(ours, EDGES, HEIGHTS, np.empty(5000, np.float32))
    drawn = int(ours[3]) - start - 20_000
    assert 5000 < drawn < 5200  # one of a hundred normals needs another word
    numpys.random_raw(drawn)
    assert np.array_equal(ours, words_of(numpys))


def test_where_a_block_begins_follows_from_the_length_of_those_before() -> None:
    ours, numpys = source(7), np.random.SFC64(np.random.SeedSequence(7))
    ours.take(2)
    ours.take(BLOCK)  # what is left of the first block is too short for it
    numpys.random_raw(BLOCK + SPARE + BLOCK // 32)
    assert np.array_equal(ours.state()["generator"]["state"]["state"], words_of(numpys))


def test_the_same_requests_after_the_same_seed_give_the_same_values() -> None:
    first, second = source(), source()
    for count in (3, 0, BLOCK - 1, 10, 3 * BLOCK, 1):
        assert np.array_equal(first.take(count), second.take(count))


def test_another_seed_gives_other_values() -> None:
    assert not np.array_equal(source(1).take(10), source(2).take(10))


def test_no_value_is_handed_out_twice() -> None:
    normal = source()
    values = np.concatenate([normal.take(count).copy() for count in (1000, BLOCK, 1000, 5, BLOCK + 5, 7)])
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
