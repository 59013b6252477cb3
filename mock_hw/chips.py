"""Named chips: what can be built into a twin."""

import math
from dataclasses import asdict, dataclass, field, replace
from typing import Any

from hil.mock_hw.parameters import PcmParameters
from hil.mock_hw.pulses import set_step, target
from hil.mock_hw.records import constants
from hil.protocols.errors import InputError
from hil.protocols.messages import Capabilities, Durations, MvmMode, PulseLimits, PulseShape, Readout

MOST_CELLS = 1 << 28  # 9 GB of state
STEPS = 20  # of the nominal staircase
MOST_STEPS = 4096  # of program-and-verify
PULSE_MARGIN = 0.05  # a current source that reaches 5 % beyond the RESET pulse; CHOSEN


@dataclass(frozen=True)
class ChipParameters:
    """A chip: geometry, converters, timing and the cell model. Full scales are CHOSEN unless they say otherwise."""

    arrays: int = 2
    """Arrays on the chip. CHOSEN (the 90 nm prototype has 3 million cells in several arrays; RECALLED)."""
    rows: int = 512
    """Word lines of an array. FOUND (Le Gallo et al., Nat. Electron. 1, 246 (2018))."""
    columns: int = 2048
    """Bit lines of an array. FOUND (Le Gallo 2018)."""
    mvm: MvmMode = MvmMode.NONE
    """How it multiplies."""
    readout: Readout = Readout.DIFFERENTIAL
    """Whether pairs of bit lines are subtracted before the converter."""
    dac_bits: int = 8
    """Resolution of MVM inputs. RECALLED (8 bits in the paper's experiment)."""
    adc_bits: int = 8
    """Resolution of cell reads and MVM outputs. FOUND (8-bit on-chip converter, Le Gallo 2018)."""
    read_voltage: float = 0.2
    """V on the line at the largest DAC code and in cell reads. FOUND (Sebastian et al., Nat. Commun. 8, 1115 (2017)).
    """
    read_span: float = 25.6e-6
    """S from the smallest to the largest code of a cell read."""
    read_floor: float = -1e-6
    """S at code 0 of a cell read: negative, so that a noisy read of a RESET cell is no saturation."""
    mvm_spans: tuple[float, ...] = (1, 2, 4, 6, 8, 12, 16, 24, 32, 48)
    """Full scales of the MVM converter's gains, in units of `read_voltage` times 8 uS."""
    set_pulse: PulseShape = PulseShape(amplitude=90e-6, width=50e-9)
    """A and s of the partial SET. RECALLED (90 uA, 50 ns); FOUND that 50 to 100 uA at 50 ns is the range (Sebastian
    2017).
    """
    reset_pulse: PulseShape = PulseShape(amplitude=440e-6, width=1e-6)
    """A and s of the RESET. FOUND (Sebastian 2017)."""
    durations: Durations = Durations(read=1e-6, mvm=127e-9, set_pulse=100e-9, reset_pulse=1e-6)
    """Device time (s): a cell read 1 us FOUND (Le Gallo 2018); an MVM 127 ns RECALLED; a SET pulse with as much
    settling CHOSEN.
    """
    largest_batch: int = 65536
    """Cells, pulses or vectors in one operation."""
    cell: PcmParameters = field(default_factory=PcmParameters)
    """The cell model."""

    def capabilities(self) -> Capabilities:
        """What a tester with this chip says of itself."""
        return Capabilities(
            arrays=self.arrays,
            rows=self.rows,
            columns=self.columns,
            mvm=self.mvm,
            readout=self.readout,
            parallel_update=False,
            dac_bits=self.dac_bits,
            adc_bits=self.adc_bits,
            read_voltage=self.read_voltage,
            mvm_ranges=tuple(span * self.read_voltage * 8e-6 for span in self.mvm_spans),
            set_pulse=self.set_pulse,
            reset_pulse=self.reset_pulse,
            pulse_limits=PulseLimits(
                source="current",
                amplitude_max=self.reset_pulse.amplitude * (1 + PULSE_MARGIN),
                width_min=self.set_pulse.width,
                width_max=10 * self.reset_pulse.width,
                edges=False,
            ),
            exactly_once=True,
            verify=False,
            durations=self.durations,
            largest_batch=self.largest_batch,
            staircase=mean_staircase(self.cell, steps_to_top(self.cell) if self.cell.inference else STEPS),
        )


def mean_staircase(p: PcmParameters, pulses: int) -> tuple[float, ...]:
    """Noise-free conductance (S) after 0 to `pulses` SET pulses from RESET."""
    levels, record = [p.reset_mean], constants(p)[0]
    for n in range(1, pulses + 1):
        if p.inference:
            levels.append(float(target(float(n), record)))
        else:
            step = set_step(levels[-1], float(n), 1.0, 0.0, record)
            levels.append(min(max(float(step), p.g_min), p.g_max))
    return tuple(levels)


def steps_to_top(p: PcmParameters) -> int:
    """SET pulses after which the target of program-and-verify is at the end of the conductance range."""
    return math.ceil(p.g_max / p.mean_offset - 1e-6)


# FOUND: aihwkit, PCMPresetDevice, with 10 uS for its weight w = 1. A step decays with w, and scatters by 0.6 times (the
# step + 0.042 + 0.108 w). Left out: that devices differ in range (w_max_dtod), in RESET (reset_dtod), and between up
# and down (up_down_dtod), of which SET pulses have but one. Reads and drift are those of the 2018 model.
AIHWKIT = PcmParameters(
    mean_slope=0.0,
    mean_offset=0.1e-6,
    mean_memory=0.0,
    mean_decaying=2.7235e-6,
    decay=10e-6 / 2.5,
    spread_slope=0.6 * 0.108,
    spread_offset=0.6 * 0.042 * 10e-6,
    spread_memory=0.0,
    spread_step=0.6,
    g_min=0.0,
    g_max=20e-6,
    reset_mean=0.1e-6,
    reset_spread=0.1e-6,
    step_spread=0.2,
)

# aihwkit's PCMLikeNoiseModel, FOUND: a RESET is the programming of the target 0. The steps of the target are CHOSEN.
INFERENCE = PcmParameters(
    inference=True, mean_offset=0.1e-6, reset_mean=0.0, reset_spread=0.26348e-6, t0=20.0, t_min=20.0, g_min=0.0
)

LINEAR = PcmParameters(
    mean_slope=0.0,
    mean_offset=0.77e-6,
    mean_memory=0.0,
    programming_noise=False,
    reset_noise=False,
    read_noise=False,
    drift=False,
)

CHIPS = {
    # Like the paper's chip: cells are read one by one and multiplied on the host.
    "pcm-90nm": ChipParameters(),
    # The same cells in an array that multiplies.
    "pcm-analog": ChipParameters(mvm=MvmMode.ANALOG),
    # Equal noise-free steps and fine converters: what goes wrong here is the algorithm's fault.
    "ideal": ChipParameters(mvm=MvmMode.ANALOG, dac_bits=16, adc_bits=16, cell=LINEAR),
    # The device that aihwkit trains with.
    "pcm-aihwkit": ChipParameters(mvm=MvmMode.ANALOG, cell=AIHWKIT),
    # The device that aihwkit infers with: it programs and verifies by itself.
    "pcm-inference": ChipParameters(mvm=MvmMode.ANALOG, cell=INFERENCE),
}


def named_chip(name: str, overrides: dict[str, str]) -> ChipParameters:
    """A named chip with single parameters replaced, given as text: `{"drift": "off", "arrays": "4"}`.

    Raises `InputError` for an unknown chip or parameter, or a value of the wrong type or range.
    """
    if name not in CHIPS:
        raise InputError(f"unknown chip {name!r}; there are {', '.join(CHIPS)}")
    return changed(CHIPS[name], overrides)


def changed(chip: ChipParameters, overrides: dict[str, str]) -> ChipParameters:
    """The chip with single parameters replaced, as `named_chip`."""
    for key, text in overrides.items():
        chip = _override(chip, key, text)
    check(chip)
    return chip


def _override(chip: ChipParameters, key: str, text: str) -> ChipParameters:
    figures = {name: value for name, value in vars(chip).items() if type(value) in (bool, int, float)}
    cell = chip.cell._asdict()
    if key in figures:
        return replace(chip, **{key: _parse(key, text, figures[key])})
    if key in cell:
        return replace(chip, cell=chip.cell._replace(**{key: _parse(key, text, cell[key])}))
    if key in CHOICES:
        if text not in CHOICES[key]:
            raise InputError(f"chip parameter {key}={text!r}: expected one of {', '.join(CHOICES[key])}")
        return replace(chip, **{key: CHOICES[key][text]})
    known = ", ".join(sorted({*figures, *cell, *CHOICES}))
    raise InputError(f"unknown chip parameter {key!r}; there are {known}")


def check(chip: ChipParameters) -> None:
    """What no single parameter shows; raises `InputError`."""
    cells = chip.arrays * chip.rows * chip.columns
    if cells > MOST_CELLS:
        raise InputError(
            f"{chip.arrays} x {chip.rows} x {chip.columns} is {cells} cells; a twin has at most {MOST_CELLS}"
        )
    if chip.cell.g_min >= chip.cell.g_max:
        raise InputError(f"chip parameter g_min={chip.cell.g_min:g} must be below g_max={chip.cell.g_max:g}")
    if -chip.read_floor >= chip.read_span:
        raise InputError(f"chip parameter read_floor={chip.read_floor:g} must be above -read_span={-chip.read_span:g}")
    if chip.set_pulse.amplitude > chip.reset_pulse.amplitude or chip.set_pulse.width > chip.reset_pulse.width:
        raise InputError("chip parameters: the SET pulse must be no higher and no longer than the RESET pulse")
    if chip.cell.inference and chip.cell.g_max > MOST_STEPS * chip.cell.mean_offset:
        raise InputError(
            f"chip parameter mean_offset={chip.cell.mean_offset:g}: with inference=on, {MOST_STEPS} pulses must reach "
            f"g_max={chip.cell.g_max:g}"
        )


CHOICES: dict[str, dict[str, Any]] = {
    "mvm": {mode.value: mode for mode in (MvmMode.ANALOG, MvmMode.NONE)},
    "readout": {readout.value: readout for readout in Readout},
}
SWITCH = {"on": True, "true": True, "off": False, "false": False}
LIMITS: dict[str, tuple[float, float]] = {
    "dac_bits": (2, 16),
    "adc_bits": (2, 16),
    "mean_slope": (-1.0, 1.0),
    "memory": (1e-3, 1e6),
    "t0": (1e-9, 1e6),
    "t_min": (1e-9, 1e6),
    "read_voltage": (1e-6, 1e6),
    "read_span": (1e-12, 1.0),
    "read_floor": (-1.0, 0.0),
    "nu": (0.0, 1.0),
    "step_spread": (0.0, 1.0),
    "nu_spread": (0.0, 1.0),
    "stuck_fraction": (0.0, 1.0),
    "amplitude": (1e-12, 1e6),
    "width": (1e-12, 1e6),
    "decay": (1e-9, 1.0),
    "endurance": (0.0, 1e15),
    "endurance_spread": (0.0, 10.0),
}


def _parse(key: str, text: str, default: bool | int | float) -> Any:
    """`text` as a value of the type of `default`, within its limits: counts from 1 to 65536, figures not negative."""
    if isinstance(default, bool):
        if text.lower() not in SWITCH:
            raise InputError(f"chip parameter {key}={text!r}: expected on or off")
        return SWITCH[text.lower()]
    try:
        value = type(default)(text)
    except ValueError:
        raise InputError(f"chip parameter {key}={text!r}: expected {type(default).__name__}") from None
    check_range(key, value, text)
    return value


def check_range(key: str, value: int | float, text: str) -> None:
    """Raises `InputError` for a value, given as `text`, that a parameter cannot have."""
    low, high = LIMITS.get(key, (1, 65536) if isinstance(value, int) else (0.0, 1e6))
    if not low <= value <= high:
        raise InputError(f"chip parameter {key}={text}: outside {low} to {high}")


def to_json(chip: ChipParameters) -> dict[str, Any]:
    """All parameters as plain values, for a file."""
    return asdict(chip) | {"cell": chip.cell._asdict()}


def from_json(values: dict[str, Any]) -> ChipParameters:
    """The chip that `to_json` wrote."""
    return ChipParameters(
        **values
        | {
            "mvm": MvmMode(values["mvm"]),
            "readout": Readout(values["readout"]),
            "mvm_spans": tuple(values["mvm_spans"]),
            "set_pulse": PulseShape(**values["set_pulse"]),
            "reset_pulse": PulseShape(**values["reset_pulse"]),
            "durations": Durations(**values["durations"]),
            "cell": PcmParameters(**values["cell"]),
        }
    )
