"""Products with the weights of a layer: those of the conductances, to within the converters' resolution."""

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
from pytest_mock import MockerFixture

from hil.instruments.tester import ArrayTester
from hil.pairs import DifferentialPairs
from hil.products import AnalogProducts, HostProducts, gain_for, products, weight_per_ampere
from hil.protocols.errors import DivergedError, InputError, TesterError
from hil.protocols.messages import Direction, Readings

MakeTester = Callable[..., ArrayTester]
WeightsOf = Callable[[DifferentialPairs], npt.NDArray[np.float64]]
READ_ERROR = 1e-4  # weight units, of the truth as read from an ideal chip
BAD = [np.nan, np.inf, -np.inf]


def random_pairs(tester: ArrayTester, rows: int, columns: int, scale: float = 1.0, spread: float = 3e-6) -> Any:
    pairs = DifferentialPairs(tester, rows, columns, scale)
    rng = np.random.default_rng(5)
    pairs.write(np.arange(len(pairs)), (spread * rng.standard_normal(len(pairs))).astype(np.float32))
    return pairs


def with_bias(x: npt.NDArray[np.float32]) -> npt.NDArray[np.float64]:
    """x with the input that is always 1."""
    return np.hstack([x.astype(float), np.ones((len(x), 1))])


def vectors(batch: int, lines: int) -> npt.NDArray[np.float32]:
    """Of very different sizes, one all zero."""
    rng = np.random.default_rng(6)
    size = 10.0 ** np.arange(batch)[:, None] / 100
    size[batch // 2] = 0 if batch > 1 else 1
    return (rng.standard_normal((batch, lines)) * size).astype(np.float32)


@pytest.mark.parametrize("readout", ["differential", "single"])
@pytest.mark.parametrize("bits", [16, 8])
@pytest.mark.parametrize("geometry", [(1, 64, 64), (8, 16, 16)], ids=["one block", "many blocks"])
@pytest.mark.parametrize("scale", [1.0, 0.2])
def test_analog_products_are_those_of_the_conductances(
    readout: str,
    bits: int,
    geometry: tuple[int, int, int],
    scale: float,
    make_tester: MakeTester,
    weights_of: WeightsOf,
) -> None:
    arrays, rows, columns = geometry
    tester = make_tester(arrays=arrays, rows=rows, columns=columns, readout=readout, dac_bits=bits, adc_bits=bits)
    pairs = random_pairs(tester, 33, 10, scale)
    analog = AnalogProducts(pairs, 12.0 * scale, 6.0 * scale)
    exact = make_tester(arrays=arrays, rows=rows, columns=columns, readout=readout)
    weight = weights_of(random_pairs(exact, 33, 10, scale))  # an equal chip, read with 16 bits
    top, wires, row_blocks = 2 ** (bits - 1) - 1, 2 if readout == "single" else 1, -(-33 // rows)
    column_blocks = 1 if columns == 64 else 2
    x, delta = vectors(5, 32), vectors(5, 10)
    for y, driven, matrix, range_, blocks in (
        (analog.forward(x), with_bias(x), weight, 12 * scale, row_blocks),
        (analog.backward(delta), delta.astype(float), weight[:-1].T, 6 * scale, column_blocks),
    ):
        peak = np.abs(driven).max(1)[:, None]
        resolution = peak / top * (np.abs(matrix).sum(0) / 2 + wires * blocks * range_ / 2)
        error = np.abs(y - driven @ matrix)
        assert (error <= 1.001 * resolution + READ_ERROR * scale * np.abs(driven).sum(1)[:, None] + 1e-12).all()
        assert y.any()
    assert [way.saturated for way in analog.conversions.values()] == [0, 0]
    assert analog.conversions[Direction.FORWARD].converted >= 5 * 10


@pytest.mark.parametrize(("level", "saturated"), [(0.2e-6, False), (4e-6, False), (8e-6, True)])
def test_a_calibration_takes_a_range_that_holds_its_outputs(
    level: float, saturated: bool, make_tester: MakeTester, weights_of: WeightsOf
) -> None:
    pairs = DifferentialPairs(make_tester(), 60, 10, 1.0)
    pairs.write(np.arange(len(pairs)), np.full(len(pairs), level, np.float32))
    analog, ones = AnalogProducts(pairs, 4.0, 4.0), np.ones((3, 59), np.float32)
    sums = weights_of(pairs).sum(0)
    assert (sums > 48).all() == saturated  # the largest range, in weight units
    result = analog.calibrate(ones)
    assert bool(analog.calibration.saturated) == saturated
    assert analog.conversions[Direction.FORWARD].converted == 0  # it is no part of training
    np.testing.assert_allclose(result, np.tile(np.minimum(sums, 48), (3, 1)), rtol=0.001)


def test_a_batch_gives_what_its_vectors_give_one_by_one(make_tester: MakeTester) -> None:
    analog = AnalogProducts(random_pairs(make_tester(), 20, 7), 12.0, 4.0)
    x = vectors(5, 19)
    np.testing.assert_array_equal(analog.forward(x), np.concatenate([analog.forward(x[n : n + 1]) for n in range(5)]))


def test_outputs_beyond_the_range_are_held_at_its_end_and_counted(make_tester: MakeTester) -> None:
    pairs = DifferentialPairs(make_tester(), 20, 2, 1.0)
    pairs.write(np.arange(40), np.tile(np.array([8e-6, 0], np.float32), 20))
    analog = AnalogProducts(pairs, 12.0, 4.0)
    y = analog.forward(np.ones((3, 19), np.float32))
    np.testing.assert_allclose(y[:, 0], 12, rtol=1e-3)  # 20 would be right
    assert analog.conversions[Direction.FORWARD].saturated == 3
    assert analog.conversions[Direction.FORWARD].converted == 6


@pytest.mark.parametrize(
    ("output", "span"), [(12.0, 12.0), (4.0, 4.0), (3.9, 4.0), (4.1, 6.0), (0.01, 1.0), (48.0, 48)]
)
def test_the_smallest_range_that_covers_the_output_is_chosen(
    output: float, span: float, make_tester: MakeTester
) -> None:
    capabilities = make_tester().capabilities()
    for scale in (1.0, 0.25):
        full_scale = capabilities.mvm_ranges[gain_for(output * scale, scale, capabilities)]
        assert full_scale * weight_per_ampere(1.0, capabilities) == pytest.approx(span)


def test_an_output_that_no_range_covers_is_refused(make_tester: MakeTester) -> None:
    with pytest.raises(InputError, match=r"50 weight units are beyond the tester's largest range of 48"):
        gain_for(50.0, 1.0, make_tester().capabilities())


@pytest.mark.parametrize("mvm", ["analog", "none"])
@pytest.mark.parametrize("bad", BAD)
def test_a_vector_that_is_not_finite_ends_training(mvm: str, bad: float, make_tester: MakeTester) -> None:
    layer = products(random_pairs(make_tester(mvm=mvm), 3, 2), 12.0, 4.0, 100)
    with pytest.raises(DivergedError, match=r"a forward product .* not finite"):
        layer.forward(np.array([[0, bad]], np.float32))
    with pytest.raises(DivergedError, match=r"a backward product .* not finite"):
        layer.backward(np.array([[bad, 1]], np.float32))


@pytest.mark.parametrize("mvm", ["analog", "none"])
def test_results_are_written_to_the_room_that_is_given(mvm: str, make_tester: MakeTester) -> None:
    layer = products(random_pairs(make_tester(mvm=mvm), 20, 7), 12.0, 4.0, 100)
    for multiply, x, outputs in ((layer.forward, vectors(3, 19), 7), (layer.backward, vectors(3, 7), 19)):
        room = np.full((3, outputs), np.nan, np.float32)
        assert multiply(x, room) is room
        np.testing.assert_array_equal(room, multiply(x))


@pytest.mark.parametrize("mvm", ["analog", "none"])
def test_vectors_that_do_not_fit_are_refused(mvm: str, make_tester: MakeTester) -> None:
    layer = products(random_pairs(make_tester(mvm=mvm), 20, 7), 12.0, 4.0, 100)
    for multiply, lines in ((layer.forward, 20), (layer.forward, 18), (layer.backward, 8), (layer.backward, 6)):
        with pytest.raises(InputError, match=rf"shape \(1, {lines}\): a \w+ product takes \(batch, "):
            multiply(vectors(1, lines))
        with pytest.raises(InputError, match="shape"):
            multiply(vectors(1, lines)[0])


@pytest.mark.parametrize("mvm", ["analog", "none"])
def test_vectors_of_another_layout_or_type_are_taken_as_the_values_they_are(mvm: str, make_tester: MakeTester) -> None:
    layer = products(random_pairs(make_tester(mvm=mvm, read_noise=False, drift=False), 20, 7), 12.0, 4.0, 100)
    for multiply, lines in ((layer.forward, 19), (layer.backward, 7)):
        x = np.rint(vectors(3, lines) * 10)
        wide = np.zeros((3, 2 * lines), np.float32)
        wide[:, ::2] = x
        expected = multiply(x)
        others: list[Any] = [wide[:, ::2], np.asfortranarray(x), x.astype(np.float64), x.astype(np.int64)]
        for other in others:
            np.testing.assert_array_equal(multiply(other), expected)


@pytest.mark.parametrize("mvm", ["analog", "none"])
def test_results_go_nowhere_where_they_find_no_room(mvm: str, make_tester: MakeTester) -> None:
    layer = products(random_pairs(make_tester(mvm=mvm), 20, 7), 12.0, 4.0, 100)
    whole = np.zeros((3, 14), np.float32)
    rooms: list[Any] = [whole[:, :7], whole[:, ::2], np.zeros((3, 7)), whole[:2, :7].copy(), whole[0, :7].copy()]
    for room in rooms:
        with pytest.raises(InputError, match=r"products \(3, 7\) go to a contiguous array of float32, not"):
            layer.forward(vectors(3, 19), room)
    assert not whole.any()


@pytest.mark.parametrize("shape", [(2, 6), (1, 7), (14,)])
def test_an_answer_of_another_shape_is_an_error_of_the_tester(
    shape: tuple[int, ...], make_tester: MakeTester, mocker: MockerFixture
) -> None:
    tester = make_tester()
    layer = products(random_pairs(tester, 20, 7), 12.0, 4.0, 100)
    answer = Readings(1, 0, np.zeros(shape, np.int8), "A", 1.0, 0, 0)
    mocker.patch.object(tester, "mvm", return_value=answer)
    with pytest.raises(TesterError, match="for 2 vectors of 7"):
        layer.forward(vectors(2, 19))


@pytest.mark.parametrize("dtype", [">i2", "<f4", "?", "O"])
def test_an_answer_of_anything_but_integers_is_an_error_of_the_tester(
    dtype: str, make_tester: MakeTester, mocker: MockerFixture
) -> None:
    tester = make_tester()
    layer = products(random_pairs(tester, 20, 7), 12.0, 4.0, 100)
    mocker.patch.object(tester, "mvm", return_value=Readings(1, 0, np.zeros((2, 7), dtype), "A", 1.0, 0, 0))
    with pytest.raises(TesterError, match="the tester gave codes of type"):
        layer.forward(vectors(2, 19))


@pytest.mark.parametrize("dtype", [np.int8, np.int16, np.int32])
def test_answers_of_any_integer_type_and_layout_are_understood(
    dtype: type[np.integer[Any]], make_tester: MakeTester, mocker: MockerFixture
) -> None:
    tester = make_tester()
    layer = products(random_pairs(tester, 20, 7), 12.0, 4.0, 100)
    codes = np.random.default_rng(4).integers(1, 100, (2, 14)).astype(dtype)[:, ::2]
    mocker.patch.object(tester, "mvm", return_value=Readings(1, 0, codes, "A", 1.0, 0, 0))
    out = layer.forward(vectors(2, 19))
    np.testing.assert_allclose(out / out[:, 1:2] * codes[:, 1:2], codes, rtol=1e-6)


def test_the_tester_decides_who_multiplies(make_tester: MakeTester) -> None:
    assert isinstance(products(random_pairs(make_tester(), 3, 2), 12.0, 4.0, 100), AnalogProducts)
    assert isinstance(products(random_pairs(make_tester(mvm="none"), 3, 2), 12.0, 4.0, 100), HostProducts)


class TestHostProducts:
    @pytest.fixture
    def pairs(self, make_tester: MakeTester) -> Any:
        return random_pairs(make_tester(mvm="none"), 20, 7, 0.5)

    def test_products_are_those_of_the_cells_as_read(self, pairs: DifferentialPairs, weights_of: WeightsOf) -> None:
        host, weight = HostProducts(pairs, 100), weights_of(pairs)
        x, delta = vectors(5, 19), vectors(5, 7)
        np.testing.assert_allclose(host.forward(x), with_bias(x) @ weight, rtol=1e-4, atol=1e-6)
        np.testing.assert_allclose(host.backward(delta), delta @ weight[:-1].T, rtol=1e-4, atol=1e-6)

    def test_cells_are_read_once_and_again_only_where_programmed(
        self, pairs: DifferentialPairs, weights_of: WeightsOf, mocker: MockerFixture
    ) -> None:
        host = HostProducts(pairs, 100)
        reads = mocker.spy(pairs.tester, "read")
        x = vectors(1, 19)
        host.forward(x)
        assert [len(call.args[0]) for call in reads.call_args_list] == [280]
        host.backward(vectors(1, 7))
        host.forward(x)
        assert reads.call_count == 1
        for index in ([3, 50], [50, 51]):  # two updates before the next use
            pairs.pulse(np.array(index), np.array([1, -1]))
            host.changed(np.array(index))
        weight = weights_of(pairs)
        reads.reset_mock()
        np.testing.assert_allclose(host.backward(vectors(1, 7)), vectors(1, 7) @ weight[:-1].T, rtol=1e-4, atol=1e-6)
        (call,) = reads.call_args_list
        placement = pairs.placement
        wanted = [(cells.row[n], cells.column[n]) for cells in (placement.plus, placement.minus) for n in (3, 50, 51)]
        assert list(zip(call.args[0].row, call.args[0].column, strict=True)) == wanted

    def test_many_cells_are_read_in_slices(
        self, pairs: DifferentialPairs, weights_of: WeightsOf, mocker: MockerFixture
    ) -> None:
        mocker.patch("hil.pairs.SLICE", 60)
        host, weight = HostProducts(pairs, 100), weights_of(pairs)
        reads = mocker.spy(pairs.tester, "read")
        x = vectors(3, 19)
        np.testing.assert_allclose(host.forward(x), with_bias(x) @ weight, rtol=1e-4, atol=1e-6)
        assert [len(call.args[0]) for call in reads.call_args_list] == [120, 120, 40]

    def test_all_cells_are_read_again_after_so_many_vectors(
        self, pairs: DifferentialPairs, mocker: MockerFixture
    ) -> None:
        host = HostProducts(pairs, 6)
        reads = mocker.spy(pairs.tester, "read")
        at = []
        for _ in range(10):
            host.forward(vectors(2, 19))
            host.backward(vectors(2, 7))
            at.append(reads.call_count)
        assert at == [1, 1, 1, 2, 2, 2, 3, 3, 3, 4]
        assert all(len(call.args[0]) == 280 for call in reads.call_args_list)

    def test_what_is_forgotten_is_read_again(self, pairs: DifferentialPairs, mocker: MockerFixture) -> None:
        host = HostProducts(pairs, 100)
        host.forward(vectors(1, 19))
        reads = mocker.spy(pairs.tester, "read")
        host.forget()
        host.changed(np.array([1]))
        host.forward(vectors(1, 19))
        assert [len(call.args[0]) for call in reads.call_args_list] == [280]

    def test_cells_that_the_host_was_not_told_of_keep_their_old_reading(self, pairs: DifferentialPairs) -> None:
        host = HostProducts(pairs, 100)
        before = host.forward(vectors(1, 19))
        pairs.pulse(np.arange(140), np.full(140, 3))
        np.testing.assert_array_equal(host.forward(vectors(1, 19)), before)

    def test_each_reading_of_a_noisy_chip_gives_other_weights(self, make_tester: MakeTester) -> None:
        pairs = random_pairs(make_tester("pcm-90nm"), 20, 7)
        host = HostProducts(pairs, 100)
        x = vectors(1, 19)
        first, second = host.forward(x), host.forward(x)
        host.forget()
        np.testing.assert_array_equal(first, second)
        assert (host.forward(x) != first).any()


def test_a_layer_of_another_scale_has_weights_in_proportion(make_tester: MakeTester) -> None:
    small, large = (AnalogProducts(random_pairs(make_tester(), 20, 7, s), 12.0 * s, 4.0 * s) for s in (0.1, 1.0))
    x = vectors(1, 19)
    np.testing.assert_allclose(10 * small.forward(x), large.forward(x), rtol=1e-5)


def test_full_scale_in_amperes_is_weight_units_times_the_voltage_on_a_unit(make_tester: MakeTester) -> None:
    capabilities = replace(make_tester().capabilities(), read_voltage=0.5)
    assert 1 / weight_per_ampere(1.0, capabilities) == pytest.approx(0.5 * 8e-6)
