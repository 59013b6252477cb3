"""The constants of the PCM cell models, each with unit, source and how sure it is."""

from typing import NamedTuple


class PcmParameters(NamedTuple):
    """Statistical model of a PCM cell under partial SET pulses: Nandakumar et al., J. Appl. Phys. 124, 152135 (2018).

    FOUND: read in public source code that implements the paper (`srnn-pcm`, `xbar.py`). RECALLED: from memory. CHOSEN:
    a decision of this project. Every noise source and drift has one flag that switches it off; what the 2018 model
    lacks is off by default.
    """

    memory: float = 2.6
    """Pulses over which the memory of the RESET fades; dimensionless. FOUND."""
    mean_slope: float = -0.084
    """m1: mean step per conductance; dimensionless. FOUND."""
    mean_offset: float = 0.880e-6
    """c1: mean step at zero conductance without memory; S. FOUND."""
    mean_memory: float = 1.40e-6
    """A1: additional mean step while the RESET is remembered; S. FOUND."""
    spread_slope: float = 0.091
    """m2: standard deviation of a step per conductance; dimensionless. FOUND."""
    spread_offset: float = 0.260e-6
    """c2: standard deviation of a step at zero conductance; S. FOUND."""
    spread_memory: float = 2.15e-6
    """A2: additional standard deviation while the RESET is remembered; S. FOUND."""
    read_slope: float = 0.03
    """m3: standard deviation of a read per conductance; dimensionless. FOUND."""
    read_offset: float = 0.13e-6
    """c3: standard deviation of a read at zero conductance; S. FOUND."""
    nu: float = 0.04
    """Drift exponent, independent of the state; dimensionless. FOUND."""
    t0: float = 38.6
    """Time after the pulse at which the model's conductances were read; s. FOUND."""
    t_min: float = 1e-6
    """Youngest age to which the drift law is extrapolated; s. CHOSEN (the model has data from t0 on)."""
    g_min: float = 0.1e-6
    """Lower end of the conductance range; S. FOUND."""
    g_max: float = 25e-6
    """Upper end of the conductance range; S. CHOSEN after Joshi et al., Nat. Commun. 11, 2473 (2020)."""
    reset_mean: float = 0.1e-6
    """Mean conductance after a RESET; S. FOUND."""
    reset_spread: float = 0.01e-6
    """Standard deviation of the conductance after a RESET; S. FOUND (10 % of the mean)."""
    programming_noise: bool = True
    """Whether SET steps scatter."""
    reset_noise: bool = True
    """Whether RESET conductances scatter."""
    read_noise: bool = True
    """Whether reads and MVMs scatter."""
    drift: bool = True
    """Whether conductances drift."""
    step_spread: float = 0.0
    """Device-to-device standard deviation of the mean step, as a fraction; the 2018 model has none. CHOSEN: off."""
    nu_spread: float = 0.0
    """Device-to-device standard deviation of nu, as a fraction; the 2018 model has none. CHOSEN: off."""
    stuck_fraction: float = 0.0
    """Fraction of cells that no pulse changes, half of them at g_min, half at 0.8 g_max. CHOSEN: none."""
    mean_decaying: float = 0.0
    """Additional mean step at zero conductance, which decays exponentially with it; S. CHOSEN: none."""
    decay: float = 4e-6
    """Conductance over which that additional step decays; S. FOUND (aihwkit, PCMPresetDevice)."""
    spread_step: float = 0.0
    """Standard deviation of a step per mean step; dimensionless. CHOSEN: none."""
    inference: bool = False
    """Whether SET pulses are program-and-verify, and drift and read noise those of `InferenceParameters`. `mean_offset`
    is then what one pulse adds to the target.
    """
    flicker: bool = False
    """Whether the noise of reads is correlated in time, with a spectrum of 1/f. Sources: Nandakumar 2018; Joshi 2020
    with a reported exponent of 1.21. 1 is CHOSEN.
    """
    endurance: float = 0.0
    """Median of the RESET pulses that a cell survives; 0: any number. 1e8 to 1e9 are typical. RECALLED."""
    endurance_spread: float = 0.5
    """Standard deviation of the natural logarithm of that number; dimensionless. CHOSEN."""


class InferenceParameters(NamedTuple):
    """Cells under program-and-verify: Joshi et al., Nat. Commun. 11, 2473 (2020).

    All FOUND in aihwkit, `PCMLikeNoiseModel`. x is the target conductance over `g_max`. The powers of x are those of
    the fit at a `g_max` of 25 uS.
    """

    programming_constant: float = 0.26348 / 25
    """Standard deviation of the programmed conductance at x = 0, over g_max; dimensionless."""
    programming_linear: float = 1.9650 / 25
    """Its part that grows with x; dimensionless."""
    programming_square: float = -1.1731 / 25
    """Its part that grows with x squared; dimensionless."""
    target_floor: float = 1e-7
    """Least x of which a logarithm is taken; dimensionless."""
    nu_mean_slope: float = -0.0155
    """Mean drift exponent per ln x; dimensionless."""
    nu_mean_offset: float = 0.0244
    """Mean drift exponent at x = 1, before the limits; dimensionless."""
    nu_mean_min: float = 0.049
    """Lower limit of the mean drift exponent; dimensionless."""
    nu_mean_max: float = 0.1
    """Upper limit of the mean drift exponent; dimensionless."""
    nu_spread_slope: float = -0.0125
    """Standard deviation of the drift exponent per ln x; dimensionless."""
    nu_spread_offset: float = -0.0059
    """Standard deviation of the drift exponent at x = 1, before the limits; dimensionless."""
    nu_spread_min: float = 0.008
    """Lower limit of that standard deviation; dimensionless."""
    nu_spread_max: float = 0.045
    """Upper limit of that standard deviation; dimensionless."""
    read_scale: float = 0.0088
    """Strength of the read noise of a cell at g_max, relative to its conductance; dimensionless."""
    read_power: float = 0.65
    """Power of the programmed conductance over g_max that this strength is divided by; dimensionless."""
    read_power_floor: float = 1e-3
    """Lower limit of that power's value; dimensionless."""
    read_max: float = 0.2
    """Upper limit of the strength; dimensionless."""
    t_read: float = 250e-9
    """Time that a read takes, which is where the noise is cut off; s."""

    def steepest(self) -> float:
        """A drift exponent that no cell reaches: six standard deviations above the largest mean. CHOSEN."""
        return self.nu_mean_max + 6 * self.nu_spread_max
