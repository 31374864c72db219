"""What no policy can beat in `fleet_policies.py`: every request alone on a fast replica that holds all it could.

    python benchmarks/fleet_floor.py               # time to the first token in ms, mean over five seeds of 3,000

Prefill of the prompt's last span (the rest has been sent before, where the mix shares anything), nothing in line,
nobody beside. Turns of a session count as arriving with its first, since when they do depends on the fleet.
"""

from __future__ import annotations

import argparse
from statistics import fmean

import numpy as np

from fleet_policies import COST, MIXES, WARM_UP, fleet, mixes_here, requests_of
from weighbridge.workload.requests import END, SimulatedRequest

SHARES = (0.5, 0.95, 0.99)


def alone(request: SimulatedRequest, block: int, seen: set[int]) -> float:
    """Seconds; blocks of spans in `seen` are cached, and its own are seen from then on."""
    known = 0
    for span in request.prompt:
        if span.name not in seen:
            break
        known += span.length
    seen.update(span.name for span in request.prompt)
    seen.add(request.answer)
    known = min(known // block * block, request.prompt_tokens - 1)
    return COST.prefill_seconds(request.prompt_tokens - known, known)


def floors(mix: str, seed: int, number: int) -> list[float]:
    requests = requests_of(mix, seed, number)
    settings = fleet("weigh", mix).replicas[0].settings
    begin = requests[0].at + WARM_UP * (max(one.at for one in requests) - requests[0].at)
    seen: set[int] = {END}
    found = []
    for request in requests:
        if not settings.enable_prefix_cache:
            seen.clear()
        seconds = alone(request, settings.block_size, seen)
        if request.at >= begin:
            found.append(seconds)
    return [float(one) for one in np.quantile(found, SHARES)]


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--requests", type=int, default=3000)
    options = parser.parse_args()
    for mix in mixes_here(list(MIXES)):
        by_seed = [floors(mix, seed, options.requests) for seed in range(options.seeds)]
        means = [fmean(column) * 1e3 for column in zip(*by_seed, strict=True)]
        print(
            f"{mix:14}"
            + "".join(f"   p{share * 100:.0f} {ms:7.0f}" for share, ms in zip(SHARES, means, strict=True))
        )


if __name__ == "__main__":
    main()
