"""Measured speeds of real deployments as cases of the planner: aiconfigurator's table (Apache-2.0), one row each.

Only aggregated serving (prompts and decodes on the same GPUs) is read.
"""

from __future__ import annotations

import csv
import re
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache
from pathlib import Path

from weighbridge.cost.hardware import find_device
from weighbridge.cost.roofline import Peak, at_data_sheet, expert_use
from weighbridge.planner.memory.memory import plan_memory
from weighbridge.planner.memory.request import Deployment
from weighbridge.planner.memory.source import open_model
from weighbridge.planner.search.speed import demand

#: Names in the table, without their makers, to names of the catalogue.
_MODELS = {
    "DeepSeek-R1": "deepseek-v3", "DeepSeek-R1-NVFP4": "deepseek-v3", "DeepSeek-V3": "deepseek-v3",
    "DeepSeek-V3.1-NVFP4": "deepseek-v3", "GLM-5": "glm-5", "Kimi-K2.5": "kimi-k2.5",
    "Llama-3.1-70B": "llama-3.1-70b", "Llama-3.1-8B-Instruct": "llama-3.1-8b", "MiniMax-M2.5": "minimax-m2",
    "Qwen3-235B-A22B-FP8": "qwen3-235b-a22b", "Qwen3-32B": "qwen3-32b", "Qwen3-32B-NVFP4": "qwen3-32b",
    "Qwen3.5-397B-A17B": "qwen3.5-397b-a17b", "gpt-oss-120b": "gpt-oss-120b",
}  # fmt: skip
_DEVICES = {
    "b200_sxm": "B200-180GB", "b300_sxm": "B300-288GB", "gb200": "GB200-192GB", "h100_sxm": "H100-80GB",
    "h200_sxm": "H200-141GB",
}  # fmt: skip
_FORMATS = {"fp8": "fp8", "fp8_block": "fp8", "nvfp4": "nvfp4", "int4_wo": "int4", "": "bf16"}

#: Of the experts that a step is expected to read, those it reads at least: skewed routing leaves some out.
_CERTAIN_EXPERTS = 0.6


@dataclass(frozen=True, slots=True)
class SpeedCase:
    """One measurement. Seconds; `batch` requests run at once on each data-parallel rank."""

    model: str
    device: str
    engine: str
    version: str
    deployment: Deployment
    batch: float
    prompt: int
    output: int
    tpot: float
    ttft: float | None
    peak: Peak
    experts: float  # expected to be touched by a decode step
    architecture: str

    @property
    def group(self) -> tuple[str, str]:
        return self.model, self.device

    @property
    def possible(self) -> bool:
        """Whether the data sheet allows that speed. Where not, fewer requests ran than the row says, or tokens
        came from speculation or a prefix cache."""
        p = self.peak
        reading = p.reading + _CERTAIN_EXPERTS * p.expert * self.experts
        reading += p.cache * self.batch * (self.prompt + self.output / 2)
        token = (p.computing + p.expert_computing) / p.advantage
        step = max(reading, self.batch * token)
        return self.tpot > step + (self.batch - 1) / self.output * self.prompt * token


def read_speed_cases(path: Path) -> list[SpeedCase]:
    """Every row that tells a TPOT, without repetitions: dumps of several days hold the same measurement."""
    cases: dict[object, SpeedCase] = {}
    with path.open(newline="") as file:
        for row in csv.DictReader(file):
            if row["mode"] == "agg" and float(row["silicon_tpot_ms"] or 0.0) > 0.0:
                for case in _case(row):
                    key = (case.group, case.engine, case.deployment, case.batch, case.prompt, case.output)
                    cases.setdefault((key, round(case.tpot * 1e5)), case)
    return list(cases.values())


def _case(row: dict[str, str]) -> Iterator[SpeedCase]:
    model = _MODELS.get(row["model_path"].rsplit("/", 1)[-1])
    device = _DEVICES.get(row["system"])
    if model is None or device is None:
        return
    tp, dp, ep = _parallelism(row)
    form = "mxfp4" if model.startswith("gpt-oss") else _FORMATS.get(row["gemm_quant_mode"], "bf16")
    # Rows do not tell the cache's format. NVIDIA's recipes for TensorRT-LLM keep it in 8 bits with weights of 8 or
    # fewer; taken as 16 bits, its decodes would read the cache faster than the data sheet allows.
    cache_format = "fp8" if row["backend"] == "trtllm" and form != "bf16" else "auto"
    deployment = Deployment(
        engine="vllm", tp=tp, dp=dp, ep=ep, weights=form, kv_dtype=cache_format, max_model_len=16_384
    )
    told = re.search(r"silicon_concurrency=(\d+)", row["silicon_data_source"])
    batch = max(int(told.group(1)) / dp if told else float(row["batch_size"]), 1.0)
    peak, touched = _peak(model, device, deployment, batch)
    yield SpeedCase(
        model=model,
        device=device,
        engine=row["backend"],
        version=row["backend_version"],
        deployment=deployment,
        batch=batch,
        prompt=int(row["isl"]),
        output=int(row["osl"]),
        tpot=float(row["silicon_tpot_ms"]) / 1e3,
        ttft=float(row["silicon_ttft_ms"]) / 1e3 if row["silicon_ttft_ms"] else None,
        peak=peak,
        experts=touched,
        architecture=find_device(device).architecture,
    )


def _parallelism(row: dict[str, str]) -> tuple[int, int, int]:
    """TP, DP and EP as engines count them.

    Rows of InferenceX (named by day or dump) with expert parallelism over all GPUs multiply: "tp8 ep8" of one
    8-GPU node reads tp 64, moe_tp 8, moe_ep 8, and attention over 4 ranks of 4 GPUs tp 4, dp 4, ep 16. The same
    measurement appears in other dumps with the plain numbers.
    """
    tp, dp = int(row["tp_size"]), max(int(row["attention_dp_size"] or 1), 1)
    moe_tp, moe_ep = int(row["moe_tp_size"] or 1), int(row["moe_ep_size"] or 1)
    if re.search(r"db-dump|source_file=2\d{3}-", row["silicon_data_source"]):
        if moe_ep > 1 and moe_tp == moe_ep and tp * dp == moe_tp * moe_ep:
            return (1, moe_ep, moe_ep) if dp > 1 else (moe_ep, 1, moe_ep)
        if tp == dp > 1:
            return 1, dp, dp
    return tp, dp, tp * dp if moe_ep > 1 or dp > 1 else 1


@cache
def _peak(model: str, device: str, deployment: Deployment, batch: float) -> tuple[Peak, float]:
    """The deployment at data-sheet speed, and the experts that a decode step of `batch` is expected to touch."""
    where = find_device(device)
    asked = demand(plan_memory(open_model(model), deployment, where))
    touched = expert_use(asked).touched(batch, batch) if asked.experts else 0.0
    return at_data_sheet(where, asked), touched
