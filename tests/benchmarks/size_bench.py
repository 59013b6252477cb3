"""Measure what size costs: time per image and memory, from 10^4 to 10^8 devices, each in a process of its own."""

import json
import math
import subprocess
import sys
from typing import Any

import torch
from memory import own_peak

SIZES = (10**4, 10**5, 10**6, 10**7, 10**8)
DENSITY = 0.2
"""Share of an image's pixels that are not 0; MNIST's is 0.19."""
AGED = 1e5
"""Age of the devices (s)."""
ROWS, COLUMNS = 512, 2048
"""Lines of the largest array."""


WITH_TORCH = own_peak()


def chip_for(width: int) -> str:
    """A twin with little more than the devices of a network of `width` inputs and hidden units."""
    rows, pairs = min(ROWS, width + 1), min(COLUMNS // 2, width + 10)
    arrays = math.ceil((width + 1) / rows) * math.ceil((width + 10) / pairs)
    return f"twin:pcm-analog?arrays={arrays}&rows={rows}&columns={2 * pairs}"


def network(devices: int) -> dict[str, Any]:
    """Train a network of `width`-`width`-10 on made-up images, as `hil train` does but without a log."""
    import numpy as np
    from training_bench import settings_of, unlogged

    from hil.data.datasets import DataSet

    width = round(math.sqrt(devices / 2))
    images = max(40, min(3000, 2 * 10**9 // devices))
    rng = np.random.default_rng(1)
    pixels = rng.random((images, width), np.float32)
    pixels *= rng.random(pixels.shape, np.float32) < DENSITY
    labels = rng.integers(0, 10, images)
    data = DataSet("made-up", pixels, labels, pixels[:1], labels[:1], 10)
    settings = settings_of(f"hidden=[{width}]", f"tester={chip_for(width)}", f"lr={0.1 / width}", "refresh_images=0")
    rate = unlogged(settings, data, aged=AGED)  # fresh devices of a large chip all drift at once
    return {"width": width, "seconds": 1 / rate.images, "pulses": rate.pulses, "memory": own_peak() - WITH_TORCH}


def chip(devices: int) -> dict[str, Any]:
    """A chip with so many devices, all of them in use by products."""
    import numpy as np

    from hil.bench import connect
    from hil.protocols.messages import Block, Direction, Vectors

    arrays = math.ceil(devices / (ROWS * COLUMNS))
    tester = connect(f"twin:pcm-analog?arrays={arrays}", 1)
    rows, lines = np.arange(ROWS, dtype=np.uint16), np.arange(COLUMNS, dtype=np.uint16)
    blocks = [Block(n, rows, lines[::2], lines[1::2], n * ROWS, 0) for n in range(arrays)]
    region = tester.register(blocks)
    tester.wait(1.0)
    tester.mvm(region, Vectors(np.ones((1, arrays * ROWS), np.int8), np.ones(1, np.float32)), Direction.FORWARD, 9)
    return {"devices": arrays * ROWS * COLUMNS, "memory": own_peak() - WITH_TORCH}


def child(what: str, devices: int) -> Any:
    """What a process of its own measures."""
    command = [sys.executable, __file__, what, str(devices)]
    return json.loads(subprocess.run(command, check=True, stdout=subprocess.PIPE).stdout)


def report_size() -> None:
    """Print the table."""
    print("cost against size: an image through the network and its update, all noise and drift, not logged")
    print(f"{'devices':>12} {'active weights':>15} {'us per image':>13} {'ns per active weight':>21} {'pulses':>7}")
    for devices in SIZES:
        result = child("network", devices)
        active = (DENSITY * result["width"] + 1) * result["width"]
        seconds = result["seconds"]
        print(
            f"{devices:12,} {active:15,.0f} {1e6 * seconds:13,.0f} {1e9 * seconds / active:21.2f} "
            f"{result['pulses']:7.1f}   {result['memory'] / 1e6:,.0f} MB with the host's part"
        )
    result = child("chip", SIZES[-1])
    each = result["memory"] / result["devices"]
    print(
        f"a chip of {result['devices']:,} devices, all in use by products: {each:.1f} bytes per device (at most 25)\n"
    )


if __name__ == "__main__":
    torch.set_num_threads(1)
    print(json.dumps({"network": network, "chip": chip}[sys.argv[1]](int(sys.argv[2]))))
