"""What a step costs when it does nothing: python -m benchmarks.flow.overhead"""

from __future__ import annotations

import time

from weighbridge.flow import Flow, flow, step

STEPS = 1000


@step(effect="pure")
async def trivial(n: int) -> int:
    return n


@flow
async def awaited() -> None:
    for n in range(STEPS):
        await trivial(n)


@flow
async def at_once() -> None:
    for promise in [trivial(n) for n in range(STEPS)]:
        await promise


@flow
async def chained() -> None:
    n: int = 0
    for _ in range(STEPS):
        n = trivial(n)  # type: ignore[assignment]
    await n  # type: ignore[misc]


def main() -> None:
    flows: list[Flow[[], None]] = [awaited, at_once, chained]
    for one in flows:
        seconds = []
        for _ in range(15):
            began = time.perf_counter()
            one.run()
            seconds.append(time.perf_counter() - began)
        middle = sorted(seconds)[len(seconds) // 2]
        best, usual = min(seconds) * 1e6 / STEPS, middle * 1e6 / STEPS
        print(f"{one.name:8} {best:6.1f} us a step at best, {usual:6.1f} in the middle")


if __name__ == "__main__":
    main()
