"""Settings of an experiment: TOML files, overridden by `key=value`."""

import difflib
import tomllib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from hil.protocols.errors import InputError

BUILT_IN = Path(__file__).parent / "experiments"

Positive = Annotated[float, Field(gt=0, allow_inf_nan=False)]
Count = Annotated[int, Field(ge=1)]


class Settings(BaseModel):
    """All that determines a run but the data files. SI units; weights and ranges in weight units."""

    model_config = ConfigDict(extra="forbid", frozen=True, strict=True)

    description: str = Field(description="what it is, one line")
    reproduces: str = Field(description="what it stands for, and where that was published")
    data: str = Field(description="name of the data set")
    validation_images: Annotated[int, Field(ge=0)] = Field(
        0, description="training images held out and evaluated instead of the test set"
    )
    train_images: Annotated[int, Field(ge=0)] = Field(0, description="use only so many training images; 0 is all")
    hidden: tuple[Count, ...] = Field(description="sizes of the hidden layers")
    activation: Literal["sigmoid", "tanh", "relu"] = Field("sigmoid", description="after each hidden layer")
    output: Literal["sigmoid", "linear"] = Field("sigmoid", description="after the last layer")
    system: Literal["mixed-precision", "float"] = Field(
        "mixed-precision", description="update rule; float is the digital baseline"
    )
    tester: str = Field("twin:pcm-analog", description="URI of the tester")
    epochs: Count = Field(description="passes over the training images")
    seed: Annotated[int, Field(ge=0)] = Field(1, description="determines data order, initial weights and the twin")
    batch_size: Count = Field(1, description="images per update")
    lr: Positive = Field(description="learning rate per image, for the loss 1/2 sum of squares")
    lr_decay: Annotated[float, Field(gt=0, le=1)] = Field(
        1.0, description="factor on the learning rate after each epoch"
    )
    image_period: Annotated[float, Field(ge=0, le=1e6)] = Field(0.4, description="s of device time per image, at least")
    initial_spread: Positive = Field(0.1, description="standard deviation of the weights aimed at in the beginning")
    initial_writing: Literal["blind", "verified"] = Field(
        "blind", description="how these are written: open loop, or by program-and-verify"
    )
    weight_scale: Positive = Field(1.0, description="weight of one device unit (8 uS)")
    granularity: Positive = Field(0.096, description="epsilon, in device units")
    max_pulses: Annotated[int, Field(ge=0, le=65535)] = Field(
        0, description="most pulses per weight and update; 0 is no limit"
    )
    refresh_images: Annotated[int, Field(ge=0)] = Field(100, description="images between refresh checks; 0 is never")
    refresh_above: Positive = Field(8e-6, description="S, a pair with a larger device may be refreshed")
    refresh_below: Positive = Field(6e-6, description="S, if its difference is smaller than this")
    forward_range: Positive = Field(12.0, description="largest output of a layer per unit of input")
    backward_range: Positive = Field(4.0, description="largest output going back per unit of delta")
    reread_images: Count = Field(10_000, description="images between readings of all cells, where the host multiplies")
    scan_stuck: bool = Field(False, description="look for stuck cells first, and place weights around them")
    log: Literal["auto", "full", "digest"] = Field(
        "auto", description="what is kept of each product: all of it, or a checksum; auto is all, up to 10 kB per image"
    )


def experiments() -> dict[str, Settings]:
    """The built-in experiments by name."""
    return {path.stem: _parse(path.read_text(), path.stem, ()) for path in sorted(BUILT_IN.glob("*.toml"))}


def load_settings(experiment: str, changes: Sequence[str]) -> tuple[Settings, str]:
    """Settings of a built-in experiment or of a TOML file, with `key=value` changes; and the file's text.

    Raises `InputError` for an unknown experiment, an unknown key or a value of the wrong type or range.
    """
    path = Path(experiment) if experiment.endswith(".toml") else BUILT_IN / f"{experiment}.toml"
    names = [known.stem for known in sorted(BUILT_IN.glob("*.toml"))]
    if not experiment.endswith(".toml") and experiment not in names:
        raise InputError(
            f"unknown experiment {experiment!r}; there are {', '.join(names)}, "
            f"or give a .toml file{_near(experiment, names)}"
        )
    try:
        text = path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise InputError(f"experiment {experiment} cannot be read: {error}") from error
    return _parse(text, experiment, changes), text


def _parse(text: str, name: str, changes: Sequence[str]) -> Settings:
    try:
        values = tomllib.loads(text)
    except tomllib.TOMLDecodeError as error:
        raise InputError(f"experiment {name} is not valid TOML: {error}") from error
    values.update(_change(change) for change in changes)
    return _checked(values, name)


def stored_settings(config: Mapping[str, Any], name: str) -> Settings:
    """The settings of a run file. Raises `InputError` where this version does not know them."""
    return _checked({key: value for key, value in config.items() if key != "experiment"}, name)


def _checked(values: dict[str, Any], name: str) -> Settings:
    for key in values:
        if key not in Settings.model_fields:
            near = _near(key, list(Settings.model_fields))
            raise InputError(f"unknown setting {key!r}{near or '; `hil experiments digits` lists all'}")
    try:
        return Settings.model_validate(_as_python(values))
    except ValidationError as error:
        first = error.errors()[0]
        key = ".".join(map(str, first["loc"]))
        if first["type"] == "missing":
            raise InputError(f"experiment {name} does not set {key}, which has no default") from error
        raise InputError(f"setting {key}={first['input']!r}: {first['msg'][0].lower()}{first['msg'][1:]}") from error


def _change(text: str) -> tuple[str, Any]:
    """`key=value` with the value in TOML, or else as plain text."""
    key, equals, value = text.partition("=")
    if not equals or not key:
        raise InputError(f"{text!r} is not of the form key=value")
    try:
        return key.strip(), tomllib.loads(f"value = {value}")["value"]
    except tomllib.TOMLDecodeError:
        return key.strip(), value


def _as_python(values: dict[str, Any]) -> dict[str, Any]:
    """TOML's arrays as tuples, for strict validation."""
    return {key: tuple(value) if isinstance(value, list) else value for key, value in values.items()}


def _near(word: str, known: Sequence[str]) -> str:
    close = difflib.get_close_matches(word, known, 1)
    return f"; did you mean {close[0]!r}?" if close else ""
