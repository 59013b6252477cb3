"""A served twin is ready when it says so: nothing is compiled while a host waits."""

import subprocess
import sys

import pytest

SCRIPT = """
import sys, threading
import numpy as np
from hil.bench import open_tester
from hil.mock_hw import array, firmware, matrix, pulses, readout
from hil.protocols.messages import Block, Cells, Direction, Operation, PulseBatch, Vectors
from hil.serving import serving

modules = array, firmware, matrix, pulses, readout
kernels = [value for module in modules for value in vars(module).values() if hasattr(value, "signatures")]
with serving(sys.argv[1], ("127.0.0.1", 0), sys.argv[2]) as server:
    before = [len(kernel.signatures) for kernel in kernels]
    thread = threading.Thread(target=server.run)
    thread.start()
    tester = open_tester(server.uri)
    c, lines = tester.capabilities(), np.arange(20, dtype=np.uint16)
    if c.mvm == "analog":
        region = tester.register((Block(0, lines, lines[:10], lines[10:], 0, 0),))
        for direction, size in zip(Direction, (20, 10)):
            tester.mvm(region, Vectors(np.ones((3, size), c.dac_dtype), np.ones(3, np.float32)), direction, 0)
    cells = Cells.of(0, lines, 3)
    for kind, shape in ((Operation.SET, c.set_pulse), (Operation.RESET, c.reset_pulse)):
        tester.program(PulseBatch(cells, kind, np.ones(20, np.uint16), shape))
    tester.read(cells)
    tester.close()
    server.stop()
    thread.join()
assert sum(before) > 4
assert [len(kernel.signatures) for kernel in kernels] == before
"""


@pytest.mark.parametrize("codec", ["scpi", "frames"])
@pytest.mark.parametrize("chip", ["pcm-analog", "pcm-90nm", "pcm-analog?adc_bits=12&dac_bits=10&nu_spread=0.2"])
def test_nothing_is_compiled_after_a_server_is_ready(chip: str, codec: str) -> None:
    subprocess.run([sys.executable, "-c", SCRIPT, f"twin:{chip}", codec], check=True, timeout=120)
