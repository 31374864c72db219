"""How long placing the experts of a large model takes: 58 layers x 256 experts (DeepSeek-V3), skewed loads.

    python benchmarks/moe_placement.py [--repeats 5]

Prints the best and the median time of EPLB and of the improved method, which also keeps what moves small, and how
even both are. Needs an idle machine.
"""

from __future__ import annotations

import argparse
import statistics
import time

import numpy as np

from weighbridge.planner.experts.local_search import balance
from weighbridge.planner.experts.placement import Devices, balancedness, eplb, static_placement

LAYERS, EXPERTS = 58, 256
FLEETS = (
    Devices(320, 320, 40, 8),
    Devices(320, 640, 40, 8),
    Devices(320, 640),
    Devices(64, 320, 8, 8),
    Devices(32, 320),
)


def skewed(rng: np.random.Generator) -> np.ndarray:
    """Loads by power laws, a milder or steeper one in every layer, other experts first."""
    ranks = np.arange(1.0, EXPERTS + 1)
    rows = [rng.permutation(ranks ** -rng.uniform(0.2, 1.6)) for _ in range(LAYERS)]
    loads: np.ndarray = np.stack(rows) * rng.uniform(0.5, 1.5, (LAYERS, EXPERTS)) * 1e5
    return loads


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--repeats", type=int, default=5)
    repeats = parser.parse_args().repeats
    loads = skewed(np.random.default_rng(1))
    for devices in FLEETS:
        current = static_placement(LAYERS, EXPERTS, devices.replicas)
        methods = {
            "eplb": lambda devices=devices: eplb(loads, devices),
            "balance": lambda devices=devices, current=current: balance(loads, devices, current=current),
        }
        for name, method in methods.items():
            seconds = []
            for _ in range(repeats):
                started = time.perf_counter()
                placement = method()
                seconds.append(time.perf_counter() - started)
            even = float(balancedness(loads, placement, devices.gpus).mean())
            print(
                f"{devices.gpus:4} GPUs, {devices.replicas} slots, {devices.nodes} nodes: {name:8} "
                f"best {min(seconds):.2f} s, median {statistics.median(seconds):.2f} s, balancedness {even:.3f}",
                flush=True,
            )


if __name__ == "__main__":
    main()
