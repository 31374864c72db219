"""The planner's roofline against measured speeds.

    python benchmarks/plan_speed.py DATA/simulator/silicon_ttft_tpot.csv

Reads TPOT and TTFT that were measured on real GPUs (aiconfigurator's table, Apache-2.0) and prints, for each
model and GPU, the median ratio of planned to measured and the share within a factor of 1.5. Only aggregated
serving of models that the catalogue has; nothing is fitted here.
"""

from __future__ import annotations

import csv
import re
import sys
from collections import defaultdict
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from statistics import median

from weighbridge.cost.hardware import find_device
from weighbridge.errors import WeighbridgeError
from weighbridge.planner.memory import plan_memory
from weighbridge.planner.request import Deployment
from weighbridge.planner.source import open_model
from weighbridge.planner.speed import measure

MODELS = {
    "DeepSeek-R1": "deepseek-v3", "DeepSeek-V3": "deepseek-v3", "Llama-3.1-70B": "llama-3.1-70b",
    "Llama-3.1-8B-Instruct": "llama-3.1-8b", "gpt-oss-120b": "gpt-oss-120b", "MiniMax-M2.5": "minimax-m2",
    "Qwen3-32B": "qwen3-32b", "Qwen3-235B-A22B-FP8": "qwen3-235b-a22b", "Kimi-K2.5": "kimi-k2.5",
}  # fmt: skip
DEVICES = {"b200_sxm": "B200-180GB", "h200_sxm": "H200-141GB", "h100_sxm": "H100-80GB", "gb200": "GB200-192GB",
           "b300_sxm": "B300-288GB"}  # fmt: skip
FORMATS = {"fp8": "fp8", "fp8_block": "fp8", "nvfp4": "nvfp4", "int4_wo": "int4", "": "bf16"}


@dataclass(frozen=True)
class Point:
    group: tuple[str, str, str, str]
    tpot: float  # planned / measured
    ttft: float | None  # the same, where few enough requests ran that none waited


def points(path: Path) -> Iterator[Point]:
    """One point for each measured row that can be planned."""
    for row in csv.DictReader(path.open()):
        model = MODELS.get(row["model_path"].split("/")[-1])
        device = DEVICES.get(row["system"])
        if model is None or device is None or row["mode"] != "agg" or not float(row["silicon_tpot_ms"] or 0):
            continue
        found = re.search(r"silicon_concurrency=(\d+)", row["silicon_data_source"])
        running = int(found.group(1)) if found else int(row["batch_size"])
        form = "mxfp4" if model.startswith("gpt-oss") else FORMATS.get(row["gemm_quant_mode"], "bf16")
        tp, dp = int(row["tp_size"]), int(row["attention_dp_size"] or 1)
        experts = int(row["moe_ep_size"] or 1)
        ep = tp * dp if experts > 1 or dp > 1 else 1
        try:
            plan = plan_memory(
                open_model(model),
                Deployment(engine="vllm", tp=tp, dp=dp, ep=ep, weights=form, max_model_len=16_384),
                find_device(device),
            )
        except WeighbridgeError:
            continue
        assert plan.device is not None
        speed = measure(plan, plan.device, max(running // dp, 1), int(row["isl"]), int(row["osl"]))
        ttft = (
            speed.ttft * 1e3 / float(row["silicon_ttft_ms"])
            if running <= 4 and row["silicon_ttft_ms"]
            else None
        )
        group = (row["model_path"].split("/")[-1], row["system"], row["backend"], form)
        yield Point(group, speed.tpot * 1e3 / float(row["silicon_tpot_ms"]), ttft)


def main() -> None:
    groups: dict[tuple[str, str, str, str], list[Point]] = defaultdict(list)
    for point in points(Path(sys.argv[1])):
        groups[point.group].append(point)
    print(
        f"{'model':24}{'gpu':10}{'engine':8}{'weights':8}{'rows':>6}{'TPOT x':>8}{'within 1.5x':>12}{'TTFT x':>8}"
    )
    everything: list[float] = []
    for group, found in sorted(groups.items()):
        ratios = [p.tpot for p in found]
        everything += ratios
        first = [p.ttft for p in found if p.ttft is not None]
        near = sum(1 / 1.5 <= r <= 1.5 for r in ratios) / len(ratios)
        print("{:24}{:10}{:8}{:8}".format(*group), end="")
        print(
            f"{len(ratios):6}{median(ratios):8.2f}{near:12.0%}{median(first) if first else float('nan'):8.2f}"
        )
    errors = sorted(abs(r - 1) for r in everything)
    near = sum(1 / 1.5 <= r <= 1.5 for r in everything) / len(everything)
    print(f"all: {len(everything)} rows, median ratio {median(everything):.2f}, ", end="")
    print(f"median error {median(errors):.0%}, within 1.5x {near:.0%}")


if __name__ == "__main__":
    main()
