"""Verdicts, the changes that make a plan fit, packing and commands."""

from __future__ import annotations

from pathlib import Path

import pytest

from weighbridge.cost.hardware import find_device
from weighbridge.errors import BadInput
from weighbridge.fleet.config.load import parse_config
from weighbridge.planner.memory.memory import GIB, longest_request, plan_memory
from weighbridge.planner.memory.request import Deployment
from weighbridge.planner.memory.source import open_model
from weighbridge.planner.report.page import page
from weighbridge.planner.search.commands import engine_command, fleet_yaml
from weighbridge.planner.search.fit import changes
from weighbridge.planner.search.packing import pack
from weighbridge.planner.search.speed import measure, step_cost


@pytest.mark.parametrize(
    ("model", "device", "flags"),
    [
        ("llama-3.1-70b", "H100", Deployment()),
        ("llama-3.1-70b", "H100", Deployment(tp=2, max_model_len=16_384, concurrency=32)),
        ("qwen3-8b", "RTX 4090", Deployment()),
        ("qwen3-32b", "RTX 3090", Deployment(engine="sglang", max_model_len=8192)),
        ("gpt-oss-120b", "RTX 4090", Deployment(engine="llama.cpp", weights="mxfp4", max_model_len=32_768)),
        ("llama-3.1-70b", "M4 Max", Deployment(engine="llama.cpp", weights="q8_0", max_model_len=131_072)),
    ],
)
def test_every_change_makes_it_fit(model: str, device: str, flags: Deployment) -> None:
    plan = plan_memory(open_model(model), flags, find_device(device))
    assert not plan.fits
    assert plan.problem
    found = changes(plan)
    assert found
    for change in found:
        assert change.plan.fits
        assert change.words
        assert change.flags


def test_longest_request_is_the_longest() -> None:
    plan = plan_memory(open_model("qwen3-8b"), Deployment(), find_device("RTX 4090"))
    longest = longest_request(plan)
    for length, fits in ((longest, True), (longest + 256, False)):
        flags = Deployment(max_model_len=length)
        assert plan_memory(plan.model, flags, plan.device).fits is fits


def test_fewest_experts_go_to_host_memory() -> None:
    flags = Deployment(engine="llama.cpp", weights="mxfp4", max_model_len=32_768)
    plan = plan_memory(open_model("gpt-oss-120b"), flags, find_device("RTX 4090"))
    kept = changes(plan)[0].plan.deployment.host_experts
    fewer = Deployment(engine="llama.cpp", weights="mxfp4", max_model_len=32_768, host_experts=kept - 1)
    assert not plan_memory(plan.model, fewer, plan.device).fits


def test_states_limit_the_batch() -> None:
    """vLLM refuses to start with more sequences than it has blocks for states."""
    flags = Deployment(max_model_len=8192, max_num_seqs=1024, kv_cache_memory=round(31.24 * GIB))
    plan = plan_memory(open_model("qwen3.5-27b"), flags, find_device("H100"))
    assert not plan.fits
    assert "1024" in plan.problem


@pytest.mark.parametrize(
    ("flags", "says"),
    [
        ({"tp": 3}, "does not divide"),
        ({"pp": 64}, "more than the 32 layers"),
        ({"ep": 2}, "must equal tp x dp"),
        ({"ep": 2, "tp": 2}, "models with experts"),
        ({"engine": "tgi"}, "known: vllm"),
        ({"kv_dtype": "fp3"}, "fp3"),
        ({"weights": "fp3"}, "fp3"),
        ({"gpu_memory_utilization": 1.5}, "at most 1"),
        ({"engine": "llama.cpp", "tp": 2}, "one device"),
        ({"engine": "llama.cpp", "weights": "fp8"}, "no weights of type"),
        ({"speculative": "magic"}, "mtp, eagle"),
        ({"tp": 2, "dcp": 4}, "must divide"),
        ({"max_model_len": 0}, "at least 1"),
    ],
)
def test_flags_that_cannot_go_together(flags: dict[str, object], says: str) -> None:
    with pytest.raises(BadInput, match=says):
        plan_memory(open_model("llama-3.1-8b"), Deployment(**flags), None)  # type: ignore[arg-type]


def test_latent_models_are_refused_where_they_do_not_run() -> None:
    with pytest.raises(BadInput, match="does not run latent"):
        plan_memory(open_model("deepseek-v2-lite"), Deployment(engine="weighbridge"), find_device("cpu"))
    with pytest.raises(BadInput, match=r"llama\.cpp"):
        plan_memory(open_model("qwen3-8b"), Deployment(), find_device("M3 Ultra"))


def test_lora_slots_take_memory() -> None:
    plain = plan_memory(open_model("llama-3.1-8b"), Deployment(), None)
    adapted = plan_memory(open_model("llama-3.1-8b"), Deployment(lora_rank=64, max_loras=4), None)
    extra = adapted.gpu.total - plain.gpu.total
    per_adapter = 2 * 64 * 32 * (4096 * 2 + (4096 + 1024) * 2 + 4096 * 2 + (4096 + 14_336) * 3)
    assert extra == pytest.approx(4 * per_adapter, rel=1e-6)


def test_four_bits_are_not_exchanged_for_four_others() -> None:
    plan = plan_memory(open_model("gpt-oss-120b"), Deployment(), find_device("H100"))
    assert not plan.fits
    assert not any("awq" in change.words for change in changes(plan))


def test_packing_conserves_memory_and_gives_all_something() -> None:
    device = find_device("H100")
    names = ("qwen3-14b", "qwen3-8b", "llama-3.1-8b", "gemma-3-12b")
    models = [open_model(name) for name in names]
    placed = pack(models, Deployment(max_model_len=8192, max_num_seqs=64), device, 2)
    assert [one.plan.model.name for one in placed] == list(names)
    for index in range(2):
        assert sum(one.share for one in placed if index in one.devices) <= 0.95 + 1e-9
    for one in placed:
        assert one.plan.fits
        assert one.plan.kv is not None
        assert one.plan.kv.max_concurrency >= 1


def test_packing_leaves_the_worst_off_model_most() -> None:
    """Two of three share a device: not the two largest, which would leave both next to nothing."""
    models = [open_model(name) for name in ("qwen3-14b", "qwen3-8b", "gemma-3-12b")]
    placed = pack(models, Deployment(max_model_len=8192, max_num_seqs=256), find_device("H100"), 2)
    at = {one.plan.model.name: one.devices for one in placed}
    assert at["qwen3-14b"] != at["gemma-3-12b"]
    assert min(one.plan.kv.max_concurrency for one in placed if one.plan.kv) > 8


def test_packing_spreads_a_model_over_devices_when_it_must() -> None:
    models = [open_model("llama-3.1-70b"), open_model("llama-3.2-1b")]
    flags = Deployment(max_model_len=4096, max_num_seqs=64)
    placed = pack(models, flags, find_device("H100"), 3)
    assert len(placed[0].devices) == placed[0].plan.deployment.tp == 2


def test_packing_says_what_does_not_fit() -> None:
    flags = Deployment(max_model_len=8192, max_num_seqs=64)
    many = [open_model("qwen3-14b")] * 3
    with pytest.raises(BadInput, match="3 models need"):
        pack(many, flags, find_device("H100"), 1)
    with pytest.raises(BadInput, match="even alone"):
        pack([open_model("llama-3.1-405b")], flags, find_device("H100"), 1)


def test_commands_speak_each_engine() -> None:
    device = find_device("H100")

    def command(model: str, **flags: object) -> str:
        return engine_command(plan_memory(open_model(model), Deployment(**flags), device))  # type: ignore[arg-type]

    vllm = command("qwen3-30b-a3b", tp=2, ep=2, kv_dtype="fp8", max_model_len=8192)
    assert vllm.startswith("vllm serve qwen3-30b-a3b --max-model-len 8192")
    assert "--tensor-parallel-size 2" in vllm
    assert "--enable-expert-parallel" in vllm
    assert "--kv-cache-dtype fp8" in vllm
    assert "--mem-fraction-static" in command("qwen3-8b", engine="sglang")
    cpp = command("gpt-oss-20b", engine="llama.cpp", weights="mxfp4", host_experts=3, max_model_len=4096)
    assert "-m gpt-oss-20b-MXFP4.gguf -c 4096" in cpp
    assert "--n-cpu-moe 3" in cpp


def test_the_fleet_reads_the_planned_yaml() -> None:
    device = find_device("H100")
    plan = plan_memory(open_model("qwen3-30b-a3b"), Deployment(max_model_len=8192), device)
    spec = parse_config(fleet_yaml(plan, step_cost(plan, device), 3, 9.0), "planned.yaml", Path())
    replicas = spec.models[0].replicas
    assert len(replicas) == 3
    assert plan.kv is not None
    assert replicas[0].capacity.kv_tokens == plan.kv.tokens
    assert replicas[0].capacity.step_cost is not None
    assert replicas[0].price.usd_per_hour == 3.0


def test_page_is_self_contained_and_escaped() -> None:
    device = find_device("H100")
    plan = plan_memory(open_model("qwen3-8b"), Deployment(max_model_len=8192), device)
    speeds = [measure(plan, device, batch, 1024, 256) for batch in (1, 64)]
    text = page(plan, speeds, [], "run <this> & that")
    assert text.count("<svg") == 2
    assert "src=" not in text
    assert "http" not in text
    assert "run &lt;this&gt; &amp; that" in text
    failing = plan_memory(open_model("llama-3.1-70b"), Deployment(), device)
    assert "Does not fit" in page(failing, [], changes(failing), "")
