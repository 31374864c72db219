"""What engines printed at start, to hold plans against: one JSON object a line.

A case has `engine`, `version`, `hf_config`, flags under the engines' names, the `gpu`, and `reported`, the
figures of the log. `compare` plans it twice: with the cache memory that the log gives, to check accounting to
the token; and from flags alone, to check the estimate of that memory.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from weighbridge.cost.hardware import Device, custom_device, find_device
from weighbridge.errors import BadInput, WeighbridgeError
from weighbridge.planner.memory.activation import FITTED, Constants
from weighbridge.planner.memory.gguf_mix import file_type
from weighbridge.planner.memory.kv_dtype import kv_type
from weighbridge.planner.memory.kv_layout import CacheSpec, cached_layers
from weighbridge.planner.memory.memory import GIB, MemoryPlan, PlannedModel, plan_memory
from weighbridge.planner.memory.other_kv import llama_cpp_pools
from weighbridge.planner.memory.request import Deployment
from weighbridge.planner.model.catalogue import completed, lookup
from weighbridge.planner.model.config_reader import read_architecture

MIB = 1 << 20
_MTP_TOKENS = 3  # drafted per step where a log mentions MTP without the number


@dataclass(frozen=True, slots=True)
class Comparison:
    """One figure of one case. `low` and `high` are 0 where the plan gives a single value."""

    case: str
    confidence: str
    engine: str
    figure: str  # "kv_tokens", "kv_blocks", "kv_gib", "weights_gib", "available_kv_gib", ...
    reported: float
    planned: float
    low: float = 0.0
    high: float = 0.0
    rounding: float = 0.0  # relative: what the digits of the memory that the log printed leave open

    @property
    def error(self) -> float:
        return self.planned / self.reported - 1 if self.reported else float("inf")

    @property
    def covered(self) -> bool:
        return self.low <= self.reported <= self.high


def read_cases(path: Path) -> Iterator[dict[str, Any]]:
    """The cases in a JSONL file. Raises BadInput for a line that is not one."""
    for number, line in enumerate(path.read_text(encoding="utf-8").splitlines(), 1):
        if not line.strip():
            continue
        try:
            case = json.loads(line)
        except ValueError as error:
            raise BadInput(f"{path}, line {number}: {error}") from error
        if not isinstance(case, dict) or "hf_config" not in case:
            raise BadInput(f"{path}, line {number}: a case needs hf_config")
        yield case


def case_model(case: dict[str, Any]) -> PlannedModel:
    """The case's model; what its configuration lacks comes from the catalogue, by name or shape."""
    config = {k: v for k, v in case["hf_config"].items() if not k.startswith("_")}
    named = lookup(str(case.get("model_id", "")).split(" ")[0])
    if named is not None and named[1].get("model_type") == config.get("model_type"):
        extras = {k: v for k, v in named[1].items() if config.get(k) is None and not k.startswith("sliding")}
        config = {**config, **extras}
    if isinstance(config.get("layer_types"), str):  # a remark; the counts say it in numbers
        del config["layer_types"]
    config, noted = completed(config)
    return PlannedModel(str(case.get("model_id", "")), read_architecture(config, noted), source="case")


def case_device(case: dict[str, Any]) -> Device | None:
    """The case's GPU, with the memory that the log printed where it did."""
    text = str(case.get("gpu") or "")
    total = case.get("gpu_total_gib")
    printed = re.search(r"(\d+(?:\.\d+)?) GiB(?: total| usable)?", text)
    if total is None and printed:
        total = float(printed.group(1))
    device = None
    for words in (text, re.sub(r" ?~?\d+(\.\d+)? GiB.*", "", text), *re.split(r"-class|/", text)):
        try:
            device = find_device(words) if words.strip() else None
            break
        except BadInput:
            continue
    if total is None:
        return device
    return replace(device, memory_gib=float(total)) if device else custom_device(float(total))


def case_deployment(case: dict[str, Any]) -> Deployment:
    """The case's flags. Notes are searched for the few things that rows say only there."""
    engine = "llama.cpp" if "llama" in str(case["engine"]) else str(case["engine"])
    notes, flags = str(case.get("notes") or ""), str(case.get("flags") or "")
    version = str(case.get("version") or "")
    drafted = re.search(r"\bMTP\b", notes) is not None
    count = re.search(r"n_max (\d+)", notes)
    length = case.get("max_model_len")
    return Deployment(
        engine=engine,
        version=version or None,
        tp=case.get("tp") or 1,
        pp=case.get("pp") or 1,
        dp=_replicas(case),
        dcp=case.get("dcp") or 1,
        ep=_experts_over(case),
        weights=_weights(case, engine),
        kv_dtype=case.get("kv_dtype") or "auto",
        max_model_len=length,
        gpu_memory_utilization=case.get("gpu_memory_utilization") or case.get("mem_fraction_static"),
        max_num_seqs=case.get("max_num_seqs") or case.get("n_seq_max"),
        max_num_batched_tokens=case.get("max_num_batched_tokens"),
        block_size=case.get("block_size"),
        enforce_eager=bool(case.get("enforce_eager")) or "--enforce-eager" in flags,
        speculative="mtp" if drafted else "eagle" if "EAGLE" in notes else None,
        num_speculative_tokens=int(case.get("num_speculative_tokens") or 0)
        or (int(count.group(1)) if count else _MTP_TOKENS if drafted else 0),
        towers=engine != "llama.cpp" and "--language-model-only" not in flags,
        host_experts=_flag(flags, r"--n-cpu-moe (\d+)") or 0,
        gpu_layers=case.get("gpu_layers")
        or case.get("reported", {}).get("gpu_layers")
        or _flag(flags, r"-ngl (\d+)"),
        unified_kv=False if "kv_unified=false" in notes else None,
        swa_full="--swa-full" in flags or "--disable-hybrid" in flags,
        flash_attention=case.get("flash_attn"),
        ubatch=case.get("n_ubatch") or 512,
    )


def _replicas(case: dict[str, Any]) -> int:
    """Data parallelism, which some rows only tell with the experts ("8 (DP2xTP4)")."""
    return int(case.get("dp") or _flag(str(case.get("ep") or ""), r"DP(\d+)") or 1)


def _experts_over(case: dict[str, Any]) -> int:
    return (case.get("tp") or 1) * _replicas(case) if case.get("ep") else 1


def _flag(flags: str, pattern: str) -> int | None:
    found = re.search(pattern, flags)
    return int(found.group(1)) if found else None


def _weights(case: dict[str, Any], engine: str) -> str | None:
    """The planner's name for the row's quantization text."""
    text = str(case.get("quantization") or "").lower()
    if engine == "llama.cpp":
        first = text.split(" ")[0]
        return first if first and file_type(first) else None
    group = re.search(r"group_size (-1|\d+)", text)
    if group and "gptq" in text:
        return f"gptq-g{group.group(1)}"
    for name in ("nvfp4", "mxfp4", "fp8", "awq", "gptq", "auto_round", "w8a8-int8", "int4"):
        if name in text:
            published = case_model(case).architecture.quantization
            return None if published and name in ("fp8", "int4", "mxfp4") else name
    return "bf16"


def compare(case: dict[str, Any], constants: Constants = FITTED) -> list[Comparison]:
    """Every figure of the log that a plan also has. Raises WeighbridgeError when the case cannot be planned."""
    model, deployment, device = case_model(case), case_deployment(case), case_device(case)
    reported = case["reported"]
    rows = _Rows(case, deployment.engine)
    if deployment.engine == "llama.cpp":
        _llama_cpp(rows, model, deployment, reported)
        return rows.found
    given = _printed_memory(reported)
    if given is not None and given > 0:
        rows.rounding = 0.005 * (2 if "k_gib" in reported else 1) / given
        pinned = replace(deployment, kv_cache_memory=round(given * GIB))
        plan = plan_memory(model, pinned, device)
        if plan.kv is not None:
            rows.add("kv_tokens", reported.get("kv_cache_tokens"), plan.kv.tokens)
            rows.add("kv_blocks", reported.get("num_gpu_blocks"), plan.kv.num_blocks)
            rows.add("max_concurrency", reported.get("max_concurrency"), plan.kv.max_concurrency)
        rows.rounding = 0.0
    plan = plan_memory(model, deployment, device, constants)
    w = plan.weights
    rows.add("weights_gib", reported.get("weights_gib"), w.value, w.low, w.high)
    if plan.available is not None and deployment.engine == "vllm":
        a = plan.available
        rows.add("available_kv_gib", reported.get("available_kv_gib"), a.value, a.low, a.high)
        if given is None and plan.kv is not None and plan.kv_low is not None and plan.kv_high is not None:
            blocks = (plan.kv_low.num_blocks, plan.kv_high.num_blocks)
            rows.add("est_blocks", reported.get("num_gpu_blocks"), plan.kv.num_blocks, *blocks)
    return rows.found


class _Rows:
    def __init__(self, case: dict[str, Any], engine: str) -> None:
        self._case, self._engine = case, engine
        self.rounding = 0.0
        self.found: list[Comparison] = []

    def add(
        self, figure: str, reported: float | None, planned: float, low: float = 0.0, high: float = 0.0
    ) -> None:
        if isinstance(reported, (int, float)):
            case = self._case
            self.found.append(
                Comparison(
                    case["id"],
                    case.get("confidence", "?"),
                    self._engine,
                    figure,
                    reported,
                    planned,
                    low,
                    high,
                    self.rounding,
                )
            )


def _printed_memory(reported: dict[str, Any]) -> float | None:
    """GiB of the cache as the log gives it, in one figure or in its parts."""
    for names in (
        ("available_kv_gib",), ("kv_gib",), ("pool_gib",), ("k_gib", "v_gib"),
        ("swa_k_gib", "swa_v_gib", "full_k_gib", "full_v_gib"),
    ):  # fmt: skip
        if all(isinstance(reported.get(name), (int, float)) for name in names):
            return float(sum(reported[name] for name in names))
    return None


def _llama_cpp(rows: _Rows, model: PlannedModel, d: Deployment, reported: dict[str, Any]) -> None:
    """Pools in MiB, and weights where the file type says them."""
    cells = reported.get("full_cells") or reported.get("cells")
    if d.max_model_len is None and cells:
        d = replace(d, max_model_len=cells * (d.max_num_seqs or 1) if d.unified_kv is False else cells)
    plan: MemoryPlan = plan_memory(model, d, None)
    layers = cached_layers(
        model.architecture, replace(d, speculative=None), (0, len(model.architecture.layers))
    )
    family = model.architecture.family
    pools = llama_cpp_pools(CacheSpec(layers, d, plan.rules, kv_type(d.kv_dtype), plan.length, family))
    rows.add("kv_mib", reported.get("kv_mib", reported.get("kv_full_mib")), pools.full / MIB)
    rows.add("kv_swa_mib", reported.get("kv_swa_mib"), pools.sliding / MIB)
    rows.add("states_mib", reported.get("rs_mib"), pools.states / MIB)
    if "kv_mib" not in reported:
        rows.add("k_mib", reported.get("k_mib"), pools.full / 2 / MIB)
    if d.weights is None:
        return
    on_gpu, on_host = plan.gpu.total / MIB, plan.gpu.host / MIB
    rows.add("gpu_model_mib", reported.get("gpu_model_mib", reported.get("vram_model_mib")), on_gpu)
    rows.add("file_gib", reported.get("file_gib"), plan.stored.total / GIB)
    if "model_mib" in reported:
        whole = on_gpu + on_host - reported.get("host_model_mib", 0.0)
        rows.add("model_mib", reported["model_mib"], whole)


def compare_all(path: Path, constants: Constants = FITTED) -> tuple[list[Comparison], list[str]]:
    """Every comparison of a file, and one line for each case that could not be planned."""
    found: list[Comparison] = []
    failed: list[str] = []
    for case in read_cases(path):
        try:
            found.extend(compare(case, constants))
        except WeighbridgeError as error:
            failed.append(f"{case.get('id')}: {error}")
    return found, failed
