"""What a notebook needs, in one import."""

from hil.bench import open_tester
from hil.data.datasets import load
from hil.data.run import Run
from hil.layers import AnalogLinear
from hil.mixed_precision import MixedPrecisionSGD, Refresh
from hil.protocols.messages import Direction

__all__ = ["AnalogLinear", "Direction", "MixedPrecisionSGD", "Refresh", "Run", "load", "open_tester"]
