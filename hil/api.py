"""What a notebook needs, in one import."""

from hil.bench import open_tester
from hil.convert import convert
from hil.data.datasets import load
from hil.data.run import Run
from hil.layers import AnalogLinear
from hil.mixed_precision import MixedPrecisionSGD, Refresh
from hil.programming import Verify, program_and_verify
from hil.protocols.messages import Direction
from hil.writing import Verified

__all__ = [
    "AnalogLinear",
    "Direction",
    "MixedPrecisionSGD",
    "Refresh",
    "Run",
    "Verified",
    "Verify",
    "convert",
    "load",
    "open_tester",
    "program_and_verify",
]
