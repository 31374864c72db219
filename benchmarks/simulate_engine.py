"""The simulator against this engine: four loads recorded, two to calibrate on, the other two predicted.

    python benchmarks/simulate_engine.py --record loads.json     # serves the default model; the machine alone, 8 min
    python benchmarks/simulate_engine.py --predict loads.json

The loads are recorded in turn, five times over (A B C D A B C D ...), so that a machine that drifts drifts for
all of them; a load's figures are the medians of its five runs, and how far the runs lie apart is printed beside the
errors: no prediction can be closer than a recording is to its repetition. Lengths vary (lognormal), because equal
requests in a closed loop fall into step, and which step they fall into is chance.

Calibration sees the two calibration loads alone: how long each of their iterations took, from the end of the one
before, and what their requests took on the wire. `cost.fit` makes the step cost of that; nothing is tuned. An iteration
then takes what the step cost says times a factor drawn, with a seed, from those of the calibration loads (measured
over predicted): without noise the requests of a closed loop fall into step after all. And the scheduler reads a
`StepClock` that learns as the live one does, since how large its chunks are depends on what it has seen. `--exact`
leaves both out.
"""

from __future__ import annotations

import argparse
import json
import math
import random
import subprocess
import sys
import time
import urllib.request
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import mean, median
from typing import Any

from weighbridge.bench import serve
from weighbridge.cost import Sample, StepClock, StepCost, fit
from weighbridge.simulator.fleet import SimulatedEngine, SimulatedFleet, SimulatedReplicaSpec, Simulation
from weighbridge.simulator.stepping import Stepping, SteppingScheduler
from weighbridge.workload.arrivals import poisson
from weighbridge.workload.quantiles import quantiles
from weighbridge.workload.requests import SimulatedRequest, Span, TraceRow


@dataclass(frozen=True)
class Load:
    """`clients` in a closed loop, or Poisson arrivals at `rate` a second; mean lengths in tokens."""

    clients: int | None
    rate: float | None
    requests: int
    prompt: int
    output: int

    def arrivals(self, name: str) -> list[TraceRow]:
        rng = random.Random(f"load {name}")
        sized = [
            TraceRow(0.0, _length(rng, self.prompt, 0.6, 2000), _length(rng, self.output, 0.5, 400))
            for _ in range(self.requests)
        ]
        return sized if self.rate is None else poisson(sized, self.rate, rng)


def _length(rng: random.Random, average: int, sigma: float, most: int) -> int:
    drawn = rng.lognormvariate(math.log(average) - sigma * sigma / 2, sigma)
    return min(max(round(drawn), 8), most)


#: Between a third and nine tenths of what the machine can do.
LOADS = {
    "A: Poisson 2.0/s, 220 to 64": Load(None, 2.0, 60, 220, 64),
    "B: closed loop of 6, 150 to 72": Load(6, None, 80, 150, 72),
    "C: Poisson 3.0/s, 120 to 48": Load(None, 3.0, 80, 120, 48),
    "D: closed loop of 3, 450 to 96": Load(3, None, 32, 450, 96),
}
CALIBRATION = tuple(LOADS)[:2]
ROUNDS = 5
SIMULATED_RUNS = 15
KV_TOKENS = 60_000
Figures = dict[str, float]


# -- recording -----------------------------------------------------------------------------------------


def serve_recording(port: int, path: Path) -> None:
    """`weighbridge serve`, with the time of every iteration and every first token written to `path` at the end."""
    from weighbridge.cli import main as weighbridge
    from weighbridge.engine import engine
    from weighbridge.engine.batch import Batch, Sampled
    from weighbridge.engine.loop import EngineLoop

    iterations: list[list[float]] = []
    first: dict[str, list[float]] = {}

    class RecordingLoop(EngineLoop):
        """Notes when each iteration ended, how long it kept the engine (from the end of the one before, or from
        when there was work), and how long it computed, which is what the engine's own clock sees."""

        _free_since = _computed = 0.0

        def _execute(self, batch: Batch) -> Sampled:
            began = time.monotonic()
            sampled = super()._execute(batch)
            self._computed = time.monotonic() - began
            return sampled

        def _wait_for_work(self) -> None:
            idle = not self._scheduler.has_work()
            super()._wait_for_work()
            if idle:
                self._free_since = time.monotonic()

        def _iterate(self, batch: Batch) -> None:
            sampling = [piece.request for piece in batch.slices if piece.samples]
            super()._iterate(batch)
            ended = time.monotonic()
            iterations.append([ended, ended - self._free_since, self._computed, *batch.work])
            self._free_since = ended
            for request in sampling:
                first.setdefault(request.id, [request.arrival, ended])

    engine.EngineLoop = RecordingLoop  # type: ignore[misc]
    sys.argv = ["weighbridge", "serve", "--port", str(port), "--no-speculate"]
    try:
        weighbridge()
    finally:
        path.write_text(json.dumps({"iterations": iterations, "first": list(first.values())}))


def record(path: Path, port: int) -> None:
    log = path.with_suffix(".iterations.json")
    server = subprocess.Popen([sys.executable, __file__, "--serve", str(log), "--port", str(port)])
    url = f"http://127.0.0.1:{port}"
    runs: list[dict[str, Any]] = []
    try:
        _wait(url, server)
        _send(url, Load(8, None, 24, 200, 32), "warm", seed=1)  # kernels warm, memory faulted in
        for turn in range(ROUNDS):
            for number, (name, load) in enumerate(LOADS.items()):
                runs.append(_send(url, load, name, seed=1000 + 10 * turn + number))
                print(turn, name, json.dumps(runs[-1]["measured"]), flush=True)
    finally:
        server.terminate()
        server.wait(60)
    engine = json.loads(log.read_text())
    for run in runs:
        began, ended = run["span"]
        run["iterations"] = [one for one in engine["iterations"] if began <= one[0] - one[1] < ended]
        waited = [after - arrival for arrival, after in engine["first"] if began <= arrival < ended]
        run["wire"] = run["mean TTFT"] - mean(waited)
    path.write_text(json.dumps(runs))
    log.unlink()


def _wait(url: str, server: subprocess.Popen[bytes]) -> None:
    for _ in range(600):
        if server.poll() is not None:
            sys.exit("the server did not start")
        try:
            with urllib.request.urlopen(f"{url}/health", timeout=2):
                return
        except OSError:
            time.sleep(0.2)
    sys.exit("the server did not start in time")


def _send(url: str, load: Load, name: str, seed: int) -> dict[str, Any]:
    """One load against the server. The span is on the machine's monotonic clock, which the server reads too."""
    began = time.monotonic()
    options = serve.ServeOptions(url, None, load.arrivals(name), concurrency=load.clients, seed=seed)
    report = serve.run(options)
    good = report.good
    assert len(good) == len(report.answers), "a request failed"
    ttft = [one.ttft for one in good]
    tokens = sum(one.output_tokens for one in good)
    measured = figures(ttft, [one.tpot or 0.0 for one in good], tokens, report.seconds)
    span = [began, time.monotonic()]
    return {"load": name, "measured": measured, "span": span, "mean TTFT": mean(ttft)}


def figures(ttft: Sequence[float], tpot: Sequence[float], tokens: int, seconds: float) -> Figures:
    first, each = quantiles(ttft, (0.5, 0.95)), quantiles(tpot, (0.5, 0.95))
    return {
        "TTFT p50": first[0],
        "TTFT p95": first[1],
        "TPOT p50": each[0],
        "TPOT p95": each[1],
        "output tokens/s": tokens / seconds,
    }


# -- prediction ----------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Calibration:
    """What the calibration loads show. `noise`: of each iteration, measured over predicted seconds, and the share
    of its time that it computed."""

    cost: StepCost
    wire: float  # mean seconds of a request outside the engine, before its first token
    noise: tuple[tuple[float, float], ...]
    runs: tuple[tuple[Sample, ...], ...]  # as the engine's own clock saw them


def calibrate(runs: Sequence[dict[str, Any]], loads: Sequence[str]) -> Calibration:
    """Of the runs of `loads` alone."""
    seen = [run for run in runs if run["load"] in loads]
    kept = [one for run in seen for one in run["iterations"]]
    samples = [_sample(one, one[1]) for one in kept]
    cost = fit(samples)
    expected = [cost.predict(one) for one in samples]
    return Calibration(
        cost,
        median(run["wire"] for run in seen),
        tuple((one[1] / told, one[2] / one[1]) for one, told in zip(kept, expected, strict=True)),
        tuple(tuple(_sample(one, one[2]) for one in run["iterations"]) for run in seen),
    )


def _sample(iteration: Sequence[float], seconds: float) -> Sample:
    tokens, sequences, context, pairs = map(int, iteration[3:])
    return Sample(tokens, sequences, context, seconds, prompt_pairs=pairs)


@dataclass(frozen=True, slots=True, kw_only=True)
class LearningReplica(SimulatedReplicaSpec):
    """Its scheduler reads a clock that learns, as the live engine's does."""

    clock: StepClock

    def scheduler(self) -> Stepping:
        return SteppingScheduler(self.settings, self.clock)


class Machine(StepCost):
    """The step cost with the noise of the calibration loads; `clock` observes every iteration."""

    __slots__ = ("_calibration", "_clock", "_rng")

    @staticmethod
    def of(calibration: Calibration, clock: StepClock, rng: random.Random) -> Machine:
        machine = Machine(**calibration.cost.as_dict())
        for name, value in (("_calibration", calibration), ("_clock", clock), ("_rng", rng)):
            object.__setattr__(machine, name, value)
        return machine

    def seconds(
        self,
        tokens: int,
        sequences: int,
        context_tokens: int,
        prompt_pairs: int = 0,
        experts: float | None = None,
    ) -> float:
        expected = super().seconds(tokens, sequences, context_tokens, prompt_pairs, experts)
        factor, computing = self._rng.choice(self._calibration.noise)
        lasting = factor * expected
        self._clock.observe(
            Sample(tokens, sequences, context_tokens, computing * lasting, prompt_pairs=prompt_pairs)
        )
        return lasting


def simulate(calibration: Calibration, name: str, *, exact: bool) -> Figures:
    """Medians over runs, as of the recording: which requests of a closed loop meet is chance."""
    runs = [_simulate_once(calibration, name, seed, exact=exact) for seed in range(SIMULATED_RUNS)]
    return {key: median(run[key] for run in runs) for key in runs[0]}


def _simulate_once(calibration: Calibration, name: str, seed: int, *, exact: bool) -> Figures:
    """No two requests take the same on the wire, and no two runs have the same noise."""
    load, rng, wire = LOADS[name], random.Random(f"wire {seed}"), calibration.wire
    arrivals = load.arrivals(name)
    requests = [
        SimulatedRequest(
            f"r{i}",
            one.at,
            (Span(2 * i + 1, one.prompt_tokens),),
            one.output_tokens,
            one.output_tokens,
            2 * i + 2,
        )
        for i, one in enumerate(arrivals)
    ]
    simulation = _simulation(calibration, requests, load, lambda: rng.expovariate(1.0 / wire), seed, exact)
    run = simulation.run()
    ttft = [float(seconds) + wire for seconds in run.outcomes.ttft]
    tpot = [float(seconds) for seconds in run.outcomes.tpot]
    return figures(ttft, tpot, sum(one.output_tokens for one in arrivals), run.seconds + wire)


def _simulation(
    calibration: Calibration,
    requests: Sequence[SimulatedRequest],
    load: Load,
    pause: Callable[[], float],
    seed: int,
    exact: bool,
) -> Simulation:
    clock = StepClock(calibration.cost)
    settings = SimulatedEngine(kv_tokens=KV_TOKENS, max_model_len=8192, enable_prefix_cache=False).settings()
    replica = LearningReplica(cost=calibration.cost, settings=settings, clock=clock)
    fleet = SimulatedFleet(replicas=(replica,), policy="round_robin", prefix_index=False, stride=1)
    simulation = Simulation(fleet, requests, clients=load.clients, pause=pause)
    if not exact:
        rng = random.Random(f"noise {seed}")
        for sample in rng.choice(calibration.runs):  # what the clock has learned before the load
            clock.observe(sample)
        (simulated,) = simulation.replicas.values()
        simulated.cost = Machine.of(calibration, clock, rng)
    return simulation


def predict(path: Path, *, exact: bool = False) -> dict[str, Any]:
    runs = json.loads(path.read_text())
    shown = calibrate(runs, CALIBRATION)
    results: dict[str, Any] = {"step_cost": shown.cost.as_dict(), "wire_ms": shown.wire * 1e3, "loads": {}}
    for name in LOADS:
        found = simulate(shown, name, exact=exact)
        measured = [run["measured"] for run in runs if run["load"] == name]
        rows = results["loads"][name] = {}
        for key, simulated in found.items():
            of_runs = [run[key] for run in measured]
            middle = median(of_runs)
            rows[key] = {
                "simulated": simulated,
                "measured": middle,
                "error": simulated / middle - 1.0,
                "runs": [one / middle - 1.0 for one in of_runs],
            }
    return results


def print_results(results: dict[str, Any]) -> None:
    print(f"step cost {results['step_cost']}\non the wire {results['wire_ms']:.1f} ms")
    predicted = []
    for name, rows in results["loads"].items():
        print(f"\n{name}   ({'calibration' if name in CALIBRATION else 'predicted'})")
        for key, one in rows.items():
            factor = 1.0 if "tokens" in key else 1e3
            apart = ", ".join(f"{x:+.0%}" for x in one["runs"])
            print(f"  {key:<16} simulated {one['simulated'] * factor:>8.1f}", end="")
            print(f"  measured {one['measured'] * factor:>8.1f}  {one['error']:+6.1%}   runs {apart}")
            if name not in CALIBRATION:
                predicted.append(abs(one["error"]))
    within = sum(x <= 0.1 for x in predicted)
    print(f"\npredicted: {within} of {len(predicted)} figures within 10 %, worst {max(predicted):.1%}")


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--record", type=Path)
    parser.add_argument("--predict", type=Path)
    parser.add_argument("--serve", type=Path, help=argparse.SUPPRESS)
    parser.add_argument("--port", type=int, default=8377)
    parser.add_argument("--exact", action="store_true", help="iterations as the step cost says, which stays")
    parser.add_argument("--json", action="store_true")
    options = parser.parse_args()
    if options.serve is not None:
        serve_recording(options.port, options.serve)
        return
    if options.record is None and options.predict is None:
        parser.error("give --record FILE, --predict FILE or both")
    if options.record is not None:
        record(options.record, options.port)
    if options.predict is not None:
        results = predict(options.predict, exact=options.exact)
        if options.json:
            json.dump(results, sys.stdout, indent=1)
        else:
            print_results(results)


if __name__ == "__main__":
    main()
