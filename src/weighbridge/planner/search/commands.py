"""The command lines and the weighbridge.yaml that start what was planned."""

from __future__ import annotations

import shlex

from weighbridge.cost.step import StepCost
from weighbridge.planner.memory.memory import MemoryPlan
from weighbridge.planner.memory.own import whole_mebibytes

#: Where the first engine of a machine listens.
_PORT = 8000


def engine_command(plan: MemoryPlan, index: int = 0) -> str:
    """Return one shell command in the engine's own flags; the user turns the model's name into a path or hub id.

    `index`: which of several engines of one machine it is, since each needs a port of its own.
    """
    match plan.rules.engine:
        case "vllm":
            words = ["vllm", "serve", plan.model.name, *_vllm(plan)]
        case "sglang":
            words = ["python", "-m", "sglang.launch_server", "--model-path", plan.model.name, *_sglang(plan)]
        case "llama.cpp":
            words = ["llama-server", "-m", _gguf(plan), *_llama_cpp(plan)]
        case _:
            words = ["weighbridge", "serve", plan.model.path or plan.model.name, *_weighbridge(plan)]
    return shlex.join([*words, "--port", str(_PORT + index)])


def _vllm(plan: MemoryPlan) -> list[str]:
    d, rules = plan.deployment, plan.rules
    flags = ["--max-model-len", str(plan.length), "--gpu-memory-utilization", f"{rules.utilization:g}"]
    flags += ["--max-num-seqs", str(rules.max_num_seqs)]
    flags += ["--max-num-batched-tokens", str(rules.max_num_batched_tokens)]
    for name, value in (
        ("--tensor-parallel-size", d.tp),
        ("--pipeline-parallel-size", d.pp),
        ("--data-parallel-size", d.dp),
        ("--decode-context-parallel-size", d.dcp),
    ):
        if value > 1:
            flags += [name, str(value)]
    if d.ep > 1:
        flags.append("--enable-expert-parallel")
    if d.kv_dtype not in ("auto", "bf16"):
        flags += ["--kv-cache-dtype", d.kv_dtype]
    if d.weights == "fp8" and not plan.model.architecture.quantization:
        flags += ["--quantization", "fp8"]
    if d.enforce_eager:
        flags.append("--enforce-eager")
    if d.kv_cache_memory:
        flags += ["--kv-cache-memory-bytes", str(d.kv_cache_memory)]
    if d.lora_rank:
        flags += [
            "--enable-lora",
            "--max-lora-rank",
            str(d.lora_rank),
            "--max-loras",
            str(max(d.max_loras, 1)),
        ]
    return flags


def _sglang(plan: MemoryPlan) -> list[str]:
    d, rules = plan.deployment, plan.rules
    flags = ["--context-length", str(plan.length), "--mem-fraction-static", f"{rules.utilization:g}"]
    flags += ["--max-running-requests", str(rules.max_num_seqs)]
    for name, value in (("--tp-size", d.tp), ("--pp-size", d.pp), ("--dp-size", d.dp), ("--ep-size", d.ep)):
        if value > 1:
            flags += [name, str(value)]
    if d.kv_dtype not in ("auto", "bf16"):
        flags += ["--kv-cache-dtype", "fp8_e4m3" if d.kv_dtype == "fp8" else d.kv_dtype]
    if d.weights == "fp8" and not plan.model.architecture.quantization:
        flags += ["--quantization", "fp8"]
    return flags


def _gguf(plan: MemoryPlan) -> str:
    if plan.model.source.endswith(".gguf"):
        return plan.model.source
    return f"{plan.model.name}-{(plan.deployment.weights or 'f16').upper()}.gguf"


def _llama_cpp(plan: MemoryPlan) -> list[str]:
    d = plan.deployment
    flags = ["-c", str(plan.length), "--parallel", str(plan.rules.max_num_seqs)]
    flags += ["-ngl", str(d.gpu_layers if d.gpu_layers is not None else 999)]
    if d.host_experts:
        flags += ["--n-cpu-moe", str(d.host_experts)]
    if d.kv_dtype not in ("auto", "bf16", "f16", "fp16"):
        flags += ["--cache-type-k", d.kv_dtype, "--cache-type-v", d.kv_dtype]
    if d.ubatch != 512:
        flags += ["-ub", str(d.ubatch)]
    if d.unified_kv:
        flags.append("--kv-unified")
    if d.swa_full:
        flags.append("--swa-full")
    return flags


def _weighbridge(plan: MemoryPlan) -> list[str]:
    d = plan.deployment
    flags = ["--max-model-len", str(plan.length), "--max-sequences", str(plan.rules.max_num_seqs)]
    told = (
        ("--quantize", d.quantize),
        ("--dtype", d.dtype),
        ("--kv-dtype", d.kv_dtype),
        ("--max-batch-tokens", d.max_num_batched_tokens),
    )
    for name, value in told:
        if value not in ("auto", None):
            flags += [name, str(value)]
    if d.lora_rank:
        flags += ["--max-loras", str(max(d.max_loras, 1)), "--max-lora-rank", str(d.lora_rank)]
    if plan.kv is not None:
        flags += ["--kv-cache-memory", whole_mebibytes(plan.kv.pool_bytes)]
    return flags


def fleet_yaml(plan: MemoryPlan, cost: StepCost, replicas: int, usd_per_hour: float) -> str:
    """Return a weighbridge.yaml: `replicas` of the planned engine behind one gateway, weighed by their step cost."""
    tokens = plan.kv.tokens if plan.kv else 0
    lines = ["listen: 127.0.0.1:8080", "policy: weigh", "models:", f"  {plan.model.name}:", "    replicas:"]
    for index in range(replicas):
        lines += [
            f"      - url: http://127.0.0.1:{_PORT + index}",
            f"        model: {plan.model.name}",
            f"        price: {{usd_per_hour: {usd_per_hour / replicas:.2f}}}",
            "        capacity:",
            f"          kv_tokens: {tokens}",
            f"          max_sequences: {plan.rules.max_num_seqs}",
            f"          max_batch_tokens: {plan.rules.max_num_batched_tokens}",
            f"          max_model_len: {plan.length}",
            f"          step_cost: {_yaml_cost(cost)}",
        ]
    return "\n".join([*lines, ""])


def _yaml_cost(cost: StepCost) -> str:
    names = ("overhead", "memory", "per_token", "per_context_token", "per_sequence", "per_prompt_pair")
    experts = cost.per_expert * cost.expert_use.touched(32, 32) if cost.per_expert else 0.0
    values = {name: getattr(cost, name) for name in names}
    values["memory"] += experts  # of a usual batch: the file has no fields for experts
    return "{" + ", ".join(f"{name}: {value:.3e}" for name, value in values.items()) + "}"
