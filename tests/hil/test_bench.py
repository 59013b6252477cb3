"""A tester is chosen by its URI; a chip in a file is the same chip in every session."""

from importlib.metadata import EntryPoint
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
from pytest_mock import MockerFixture

from hil.bench import connect, open_tester
from hil.instruments.tester import ArrayTester
from hil.protocols.errors import InputError
from hil.protocols.messages import Cells, MvmMode, Operation, PulseBatch, Readout, TesterKind

SMALL = "arrays=1&rows=16&columns=16"
ROW = Cells.of(0, 3, np.arange(16))


def set_pulses(tester: ArrayTester, count: int) -> int:
    """Pulse a row; returns the operation id."""
    counts = np.full(16, count, np.uint16)
    return tester.program(PulseBatch(ROW, Operation.SET, counts, tester.capabilities().set_pulse)).op_id


def levels(tester: ArrayTester) -> npt.NDArray[np.float32]:
    return tester.read(ROW).values()


def whole_chip(uri: str, seed: int = 1) -> npt.NDArray[np.float32]:
    with open_tester(uri, seed) as tester:
        set_pulses(tester, 5)
        return levels(tester)


@pytest.mark.parametrize("uri", ["twin:", "twin:pcm-analog"])
def test_the_analog_chip_is_the_default(uri: str) -> None:
    tester = open_tester(uri)
    assert tester.identify().model == "pcm-analog"
    assert tester.identify().kind == TesterKind.TWIN
    assert tester.capabilities().mvm == MvmMode.ANALOG


@pytest.mark.parametrize("name", ["pcm-90nm", "pcm-analog", "ideal"])
def test_chips_have_names(name: str) -> None:
    assert open_tester(f"twin:{name}?{SMALL}").identify().model == name


def test_parameters_follow_the_question_mark() -> None:
    capabilities = open_tester("twin:pcm-90nm?arrays=3&rows=20&columns=30&mvm=analog&readout=single").capabilities()
    assert (capabilities.arrays, capabilities.rows, capabilities.columns) == (3, 20, 30)
    assert (capabilities.mvm, capabilities.readout) == (MvmMode.ANALOG, Readout.SINGLE)


def test_batches_of_any_size_are_taken() -> None:
    with open_tester(f"twin:ideal?{SMALL}&largest_batch=10") as tester:
        assert len(levels(tester)) == 16


def test_a_seed_makes_the_chip_and_its_noise() -> None:
    uri = f"twin:?{SMALL}"
    np.testing.assert_array_equal(whole_chip(uri, 1), whole_chip(uri, 1))
    assert (whole_chip(uri, 1) != whole_chip(uri, 2)).any()
    assert open_tester(uri, 1).identify().chip != open_tester(uri, 2).identify().chip


def test_a_seed_in_the_uri_goes_before_that_of_the_run() -> None:
    np.testing.assert_array_equal(whole_chip(f"twin:?{SMALL}&seed=2", 1), whole_chip(f"twin:?{SMALL}", 2))


@pytest.mark.parametrize(
    ("uri", "says"),
    [
        ("", "unknown tester ''"),
        ("twin", "unknown tester 'twin'"),
        ("Twin:", "unknown tester 'Twin:'"),
        ("gpu://localhost:1", "unknown tester 'gpu://localhost:1'"),
        ("twin:nonsense", "unknown chip 'nonsense'; there are pcm-90nm, pcm-analog, ideal"),
        ("twin:ideal?rows", "key=value&key=value is expected"),
        ("twin:ideal?rows=4&", "key=value&key=value is expected"),
        ("twin:ideal?rows=many", "rows='many': expected int"),
        ("twin:ideal?rows=0", "rows=0: outside 1 to 65536"),
        ("twin:ideal?nu=nan", "nu=nan: outside"),
        ("twin:ideal?drift=maybe", "drift='maybe': expected on or off"),
        ("twin:ideal?mvm=quantum", "mvm='quantum': expected one of analog, none"),
        ("twin:ideal?colour=red", "unknown chip parameter 'colour'"),
        ("twin:ideal?seed=-1", "seed='-1' of a tester: expected a whole number"),
        ("twin:ideal?seed=x", "seed='x' of a tester"),
        ("twin:ideal?chip=ideal", "unknown chip parameter 'chip'"),
    ],
)
def test_a_bad_uri_is_refused_in_one_line(uri: str, says: str) -> None:
    with pytest.raises(InputError) as caught:
        open_tester(uri)
    assert says in str(caught.value)
    assert "\n" not in str(caught.value)


class TestKeptChips:
    @pytest.fixture
    def path(self, tmp_path: Path) -> Path:
        return tmp_path / "chip.h5"

    @pytest.fixture
    def new(self, path: Path) -> str:
        return f"twin:{path}?chip=pcm-analog&{SMALL}"

    def test_a_chip_remembers_its_conductances_time_and_operations(self, path: Path, new: str) -> None:
        with open_tester(f"{new}&read_noise=off&drift=off") as tester:
            last = set_pulses(tester, 7)
            before, time, chip = levels(tester), tester.time_ns(), tester.identify()
        assert (before > 1e-6).all()
        with open_tester(f"twin:{path}") as tester:
            assert tester.identify() == chip
            assert tester.time_ns() == time
            np.testing.assert_array_equal(levels(tester), before)
            assert set_pulses(tester, 3) == last + 3
        with open_tester(f"twin:{path}") as tester:
            assert (levels(tester) > before).any()

    def test_sessions_in_a_row_are_as_one_long_session(self, path: Path, new: str) -> None:
        first, second = [], []
        with open_tester(new, 5) as tester:
            for _ in range(3):
                set_pulses(tester, 2)
                first.append(levels(tester))
        path.unlink()
        for session in range(3):
            with open_tester(f"twin:{path}" if session else new, 5) as tester:
                set_pulses(tester, 2)
                second.append(levels(tester))
        np.testing.assert_array_equal(first, second)

    def test_a_chip_that_is_not_there_is_made_only_when_it_is_said_which(self, path: Path) -> None:
        with pytest.raises(InputError, match=r"no chip at .*chip\.h5; twin:.*\?chip=pcm-analog makes a new one"):
            open_tester(f"twin:{path}")
        assert not path.exists()

    @pytest.mark.parametrize("change", ["chip=ideal", "seed=1", "drift=off"])
    def test_what_a_kept_chip_is_cannot_be_changed(self, change: str, path: Path, new: str) -> None:
        open_tester(new).close()
        kept = path.read_bytes()
        with pytest.raises(InputError, match=f"holds a chip already, so {change.partition('=')[0]} cannot be set"):
            open_tester(f"twin:{path}?{change}")
        assert path.read_bytes() == kept

    def test_a_folder_that_is_not_there_is_named(self, tmp_path: Path) -> None:
        with pytest.raises(InputError, match=r"no folder .*missing that can be written, where the chip chip\.h5"):
            open_tester(f"twin:{tmp_path}/missing/chip.h5?chip=ideal")

    @pytest.mark.parametrize("content", [b"", b"nonsense", b"\x89HDF\r\n\x1a\n" + bytes(100)])
    def test_a_file_that_holds_no_chip_is_refused_and_left(self, content: bytes, path: Path) -> None:
        path.write_bytes(content)
        with pytest.raises(InputError, match=r"chip\.h5 cannot be read as a chip"):
            open_tester(f"twin:{path}")
        assert path.read_bytes() == content

    def test_a_run_file_is_no_chip(self, digits_run: Any) -> None:
        with pytest.raises(InputError, match="holds no chip"):
            open_tester(f"twin:{digits_run.path}")

    def test_a_name_too_long_for_a_file_is_refused(self) -> None:
        with pytest.raises(InputError, match=r"no chip at x+"):
            open_tester(f"twin:{'x' * 300}.h5")


def test_other_packages_add_drivers_by_the_scheme_of_their_uris(mocker: MockerFixture) -> None:
    known = {"labchip": EntryPoint("labchip", "hil.data.replay:ReplayTester.open", "hil.testers")}
    find = mocker.patch(
        "hil.bench.entry_points", side_effect=lambda group, name: [known[name]] if name in known else []
    )
    driver = mocker.patch("hil.data.replay.ReplayTester.open")
    assert connect("labchip:slot3", 1) is driver.return_value
    driver.assert_called_once_with("labchip:slot3")
    assert find.call_args.kwargs["group"] == "hil.testers"
