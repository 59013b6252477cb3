"""Two run files side by side: equal devices are told equal, different ones where and by how much they differ."""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest

from hil.bench import connect
from hil.characterize import chosen
from hil.compare import Comparison, Fraction, compare, parting
from hil.compare_report import write_comparison
from hil.evaluate import evaluate, place_of
from hil.procedure import Place, perform
from hil.protocols.errors import InputError
from hil.session import twin_seed
from hil.train import Job, train

CELLS = "0:0-29:0-39"
Measure = Callable[..., Path]


@pytest.fixture(scope="module")
def measure(tmp_path_factory: pytest.TempPathFactory) -> Measure:
    """Measures 1,200 cells of a chip: `measure("twin:pcm-90nm?nu=0.06", seed=2, studies=["drift"], reads=5)`."""

    def make(uri: str, seed: int = 1, studies: Sequence[str] = ("staircase", "drift"), **given: Any) -> Path:
        path = tmp_path_factory.mktemp("measured") / "devices.h5"
        procedure = chosen(studies, CELLS, {"reads": 10} | given)
        perform(procedure, Place(uri, path, seed), connect(uri, twin_seed(seed)))
        return path

    return make


def parts(found: Comparison) -> dict[str, str | None]:
    return {one.name: parting(distances) for one, distances in zip(found.series, found.distances, strict=True)}


def test_two_chips_of_one_kind_do_not_part(measure: Measure) -> None:
    found = compare(measure("twin:pcm-90nm", 1), measure("twin:pcm-90nm", 2))
    assert len(found.series) == 3
    assert set(parts(found).values()) == {None}


@pytest.mark.parametrize(
    ("change", "parting_at"),
    [
        ("mean_offset=0.6e-6", {"conductance": "2 pulses"}),
        ("nu=0.06", {"conductance over that at first": "10 s"}),
        ("read_offset=0.2e-6", {"standard deviation of reads": "0 pulses"}),
    ],
)
def test_chips_part_where_they_differ(measure: Measure, change: str, parting_at: dict[str, str]) -> None:
    found = parts(compare(measure("twin:pcm-90nm"), measure(f"twin:pcm-90nm?{change}", 2)))
    for name, label in parting_at.items():
        assert found[name] == label


def test_distances_tell_means_and_spreads(measure: Measure) -> None:
    found = compare(measure("twin:pcm-90nm", 1), measure("twin:pcm-90nm?mean_offset=0.6e-6", 2))
    last = found.distances[0][-1]
    assert last.label == "20 pulses"
    assert last.means[0] == pytest.approx(9.4e-6, rel=0.05)
    assert last.means[1] < 8e-6
    assert last.distance > 0.2
    assert last.apart


def test_training_runs_are_compared_by_conductances_pulses_and_accuracy(
    make_job: Callable[..., Job], short_run: Path, tmp_path: Path
) -> None:
    other = make_job(out=tmp_path / "b.h5", tester="twin:ideal?arrays=2&rows=80&columns=256")
    train(other)
    found = compare(short_run, other.out)
    names = [one.name for one in found.series]
    assert names == [
        "conductance of layer1",
        "SET pulses on each device of layer1",
        "conductance of layer2",
        "SET pulses on each device of layer2",
    ]
    assert parts(found)["conductance of layer1"] == "start"
    assert [fraction.label for fraction in found.fractions] == ["epoch 1", "epoch 2"]
    assert all(0.005 < fraction.error < 0.05 for fraction in found.fractions)


def test_a_run_does_not_part_from_itself(short_run: Path) -> None:
    found = compare(short_run, short_run)
    assert set(parts(found).values()) == {None}
    assert all(distance.distance == 0 for distances in found.distances for distance in distances)
    assert not any(fraction.apart for fraction in found.fractions)
    assert found.as_dict()["quantities"][0]["parts"] is None


def test_evaluations_are_compared_by_time(short_run: Path, tmp_path: Path) -> None:
    for name in ("a.h5", "b.h5"):
        evaluate(short_run, (25.0, 3600.0), place_of(short_run, None, tmp_path / name, False, ()))
    found = compare(tmp_path / "a.h5", tmp_path / "b.h5")
    assert not found.series
    assert [(one.name, one.label) for one in found.fractions[:3]] == [
        ("test accuracy", "0 s"),
        ("test accuracy", "25 s"),
        ("test accuracy", "1 h"),
    ]


@pytest.mark.parametrize(("values", "apart"), [((0.97, 0.975), False), ((0.97, 0.99), True)])
def test_accuracies_part_beyond_chance(values: tuple[float, float], apart: bool) -> None:
    assert Fraction("test accuracy", "epoch 1", values, 0.004).apart is apart


def test_files_with_nothing_in_common_are_refused(measure: Measure, short_run: Path) -> None:
    with pytest.raises(InputError, match="nothing that could be compared"):
        compare(measure("twin:pcm-90nm", 1), short_run)


NOISY = "twin:pcm-90nm?read_offset=50e-6"


@pytest.mark.parametrize(
    ("uris", "given", "other"),
    [
        (("twin:pcm-90nm",) * 2, {"times": (100.0,)}, {"times": (100.0,)}),
        (("twin:pcm-90nm",) * 2, {"times": (100.0,)}, {"times": (100.0, 1000.0)}),
        (("twin:pcm-90nm",) * 2, {"reads": 1}, {"reads": 1}),
        (("twin:pcm-90nm",) * 2, {"reads": 10}, {"reads": 1}),
        ((NOISY, NOISY), {}, {}),
        (("twin:pcm-90nm", NOISY), {}, {}),
    ],
    ids=["one time", "one time in one", "one read", "one read in one", "noise alone", "noise alone in one"],
)
def test_drift_that_cannot_be_told_is_left_out(
    measure: Measure, uris: tuple[str, str], given: dict[str, Any], other: dict[str, Any]
) -> None:
    paths = [measure(uri, 1, ["drift"], **settings) for uri, settings in zip(uris, (given, other), strict=True)]
    for a, b in (paths, reversed(paths)):
        with pytest.raises(InputError, match="nothing that could be compared"):
            compare(a, b)


def test_what_else_is_there_is_compared_without_drift(measure: Measure, tmp_path: Path) -> None:
    path = measure("twin:pcm-90nm", times=(100.0,))
    found = compare(path, path)
    assert [one.name for one in found.series] == ["conductance", "standard deviation of reads"]
    write_comparison(found, tmp_path / "page.html")


def test_a_file_that_is_no_run_is_refused(short_run: Path, tmp_path: Path) -> None:
    (tmp_path / "x.h5").write_text("nothing")
    with pytest.raises(Exception, match=r"x\.h5") as caught:
        compare(short_run, tmp_path / "x.h5")
    assert isinstance(caught.value, InputError)


def test_any_two_studies_share_what_both_hold(measure: Measure) -> None:
    both: Any = compare(measure("twin:pcm-90nm"), measure("twin:pcm-90nm", 3, ("staircase",)))
    assert [one.name for one in both.series] == ["conductance", "standard deviation of reads"]


def test_other_studies_are_compared_measurement_by_measurement(measure: Measure) -> None:
    path = measure("twin:pcm-90nm", 1, ("reset", "stuck"))
    found = compare(path, path)
    assert [one.name for one in found.series] == ["conductance in the study reset"]
    assert set(parts(found).values()) == {None}
