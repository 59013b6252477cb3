"""The constants of a PCM cell model, each with unit, source and how sure it is."""

from typing import NamedTuple


class PcmParameters(NamedTuple):
    """Statistical model of a PCM cell under partial SET pulses: Nandakumar et al., J. Appl. Phys. 124, 152135 (2018).

    FOUND: read in public source code that implements the paper (`srnn-pcm`, `xbar.py`). CHOSEN: a decision of this
    project. Every noise source and drift has one flag that switches it off.
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
