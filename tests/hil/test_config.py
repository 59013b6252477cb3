"""Settings come from TOML and `key=value`; whatever is wrong is said in one line."""

from pathlib import Path

import pytest

from hil.config import BUILT_IN, Settings, experiments, load_settings
from hil.protocols.errors import InputError

ALL = list(Settings.model_fields)
POSITIVE = ["lr", "initial_spread", "weight_scale", "granularity", "refresh_above", "refresh_below"]
POSITIVE += ["forward_range", "backward_range"]
FIGURES = [*POSITIVE, "lr_decay", "image_period"]
COUNTS = ["epochs", "batch_size", "reread_images"]
WHOLE = [*COUNTS, "seed", "train_images", "validation_images", "max_pulses", "refresh_images"]


def test_the_built_in_experiments_are_whole() -> None:
    found = experiments()
    assert found.keys() >= {"digits", "mnist-mlp"}
    for name, settings in found.items():
        assert settings.description, name
        assert settings.reproduces, name
        assert load_settings(name, ())[0] == settings


def test_the_experiment_of_the_paper_has_its_network_and_method() -> None:
    settings = experiments()["mnist-mlp"]
    assert (settings.data, settings.hidden, settings.batch_size) == ("mnist", (250,), 1)
    assert (settings.activation, settings.output, settings.weight_scale) == ("sigmoid", "sigmoid", 1.0)
    assert (settings.refresh_images, settings.refresh_above, settings.refresh_below) == (100, 8e-6, 6e-6)


def test_the_text_of_the_file_comes_along_verbatim() -> None:
    assert load_settings("digits", ["lr=0.1"])[1] == (BUILT_IN / "digits.toml").read_text()


@pytest.mark.parametrize(
    ("change", "key", "value"),
    [
        ("lr=0.125", "lr", 0.125),
        ("lr=1", "lr", 1.0),
        ("lr=1e-3", "lr", 1e-3),
        ("epochs=3", "epochs", 3),
        ("hidden=[100, 50]", "hidden", (100, 50)),
        ("hidden=[]", "hidden", ()),
        ("scan_stuck=true", "scan_stuck", True),
        ("system=float", "system", "float"),
        ('system="float"', "system", "float"),
        ("tester=twin:pcm-90nm?rows=4&seed=1", "tester", "twin:pcm-90nm?rows=4&seed=1"),
        ("data=fashion-mnist", "data", "fashion-mnist"),
        (" lr =2.0", "lr", 2.0),
        ("seed=99999999999999999999", "seed", 99999999999999999999),
    ],
)
def test_a_change_is_toml_or_plain_text(change: str, key: str, value: object) -> None:
    settings, _ = load_settings("digits", [change])
    assert vars(settings)[key] == value
    assert type(vars(settings)[key]) is type(value)


def test_the_last_change_wins() -> None:
    assert load_settings("digits", ["lr=1.0", "lr=2.0"])[0].lr == 2.0


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ("lr", "'lr' is not of the form key=value"),
        ("=1", "'=1' is not of the form key=value"),
        ("", "'' is not of the form key=value"),
        ("learning=1", "unknown setting 'learning'"),
        ("lr_deca=1", "unknown setting 'lr_deca'; did you mean 'lr_decay'?"),
        ("model_config=1", "unknown setting 'model_config'"),
        ("activation=gelu", "setting activation='gelu': input should be 'sigmoid', 'tanh' or 'relu'"),
        ("output=softmax", "setting output='softmax'"),
        ("system=analog", "setting system='analog'"),
        ("hidden=64", "setting hidden=64"),
        ("hidden=[64, 0]", "setting hidden.1=0"),
        ("hidden=[6.5]", "setting hidden.0=6.5"),
        ("hidden=[true]", "setting hidden.0=True"),
        ("data=5", "setting data=5"),
        ("tester=1", "setting tester=1"),
        ("scan_stuck=1", "setting scan_stuck=1"),
        ("scan_stuck=yes", "setting scan_stuck='yes'"),
        ("max_pulses=65536", "setting max_pulses=65536"),
        ("image_period=1e7", "setting image_period=10000000.0"),
        ("lr_decay=1.01", "setting lr_decay=1.01"),
        ("lr_decay=0", "setting lr_decay=0"),
        ("lr={}", "setting lr={}"),
    ],
)
def test_a_wrong_change_is_refused_by_name_and_value(change: str, says: str) -> None:
    with pytest.raises(InputError) as caught:
        load_settings("digits", [change])
    assert says in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("key", FIGURES)
@pytest.mark.parametrize("value", ["nan", "inf", "-inf", "-1.0", "fast", "true", "[]", '"1"'])
def test_a_figure_is_a_finite_number_above_nought(key: str, value: str) -> None:
    with pytest.raises(InputError, match=f"setting {key}="):
        load_settings("digits", [f"{key}={value}"])


@pytest.mark.parametrize("key", POSITIVE)
def test_a_figure_of_nought_is_refused(key: str) -> None:
    with pytest.raises(InputError, match=f"setting {key}=0"):
        load_settings("digits", [f"{key}=0"])


@pytest.mark.parametrize("key", WHOLE)
@pytest.mark.parametrize("value", ["-1", "1.0", "2.5", "many", "true", "nan"])
def test_a_count_is_a_whole_number(key: str, value: str) -> None:
    with pytest.raises(InputError, match=f"setting {key}="):
        load_settings("digits", [f"{key}={value}"])


@pytest.mark.parametrize("key", WHOLE)
def test_a_count_of_none_is_refused_only_where_it_means_nothing(key: str) -> None:
    if key in COUNTS:
        with pytest.raises(InputError, match=f"setting {key}=0"):
            load_settings("digits", [f"{key}=0"])
    else:
        assert vars(load_settings("digits", [f"{key}=0"])[0])[key] == 0


def test_every_setting_says_what_it_is() -> None:
    assert [name for name in ALL if not Settings.model_fields[name].description] == []


def test_settings_cannot_be_changed_by_accident() -> None:
    settings = experiments()["digits"]
    with pytest.raises(ValueError, match="frozen"):
        settings.lr = 1.0


class TestFiles:
    def test_an_experiment_of_ones_own_is_a_file(self, tmp_path: Path) -> None:
        text = (BUILT_IN / "digits.toml").read_text().replace("epochs = 15", "epochs = 2")
        path = tmp_path / "mine.toml"
        path.write_text(text)
        settings, verbatim = load_settings(str(path), ["lr=0.2"])
        assert (settings.epochs, settings.lr) == (2, 0.2)
        assert verbatim == text

    def test_an_unknown_experiment_is_told_what_there_is(self) -> None:
        with pytest.raises(InputError, match=r"unknown experiment 'digit'; there are digits, .*did you mean 'digits'"):
            load_settings("digit", ())

    @pytest.mark.parametrize(
        ("text", "says"),
        [
            (b"lr = ", "is not valid TOML"),
            (b"lr = 1\nlr = 2", "is not valid TOML"),
            (b"\xff\xfe", "cannot be read"),
            (b"", "does not set description, which has no default"),
            (b"[training]\nlr = 1", "unknown setting 'training'"),
        ],
    )
    def test_a_file_that_is_no_experiment_is_refused_in_one_line(self, text: bytes, says: str, tmp_path: Path) -> None:
        path = tmp_path / "bad.toml"
        path.write_bytes(text)
        with pytest.raises(InputError) as caught:
            load_settings(str(path), ())
        assert says in str(caught.value)
        assert "\n" not in str(caught.value)

    @pytest.mark.parametrize("name", ["missing.toml", "folder.toml", "x" * 300 + ".toml"])
    def test_a_file_that_cannot_be_read_is_refused(self, name: str, tmp_path: Path) -> None:
        (tmp_path / "folder.toml").mkdir()
        with pytest.raises(InputError, match="cannot be read"):
            load_settings(str(tmp_path / name), ())

    @pytest.mark.parametrize("name", ["", ".", "../digits", "experiments/digits", "digits.TOML", "/etc/passwd"])
    def test_a_name_that_is_none_of_ours_is_no_file(self, name: str) -> None:
        with pytest.raises(InputError, match="unknown experiment"):
            load_settings(name, ())
