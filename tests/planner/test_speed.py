"""Planned speed against published measurements: a few points, each within a factor of 1.5."""

from __future__ import annotations

import pytest

from weighbridge.cost.hardware import find_device
from weighbridge.planner.memory.memory import plan_memory
from weighbridge.planner.memory.request import Deployment
from weighbridge.planner.memory.source import open_model
from weighbridge.planner.search.speed import measure, step_cost, typical_batch


@pytest.mark.parametrize(
    ("model", "device", "flags", "batch", "prompt", "tpot_ms"),
    [
        # Llama 2 70B's twin, token times of splitwise-sim (MIT): batch 1 and 64, 512 prompt tokens
        ("llama-3.1-70b", "A100-80GB", {"tp": 2}, 1, 512, 54.9),
        # vLLM 0.19, LLMServingSim's recordings (MIT): mean TPOT under a full batch
        ("llama-3.1-8b", "RTX PRO 6000", {}, 64, 1000, 32.5),
        ("llama-3.1-8b", "RTX 4090", {}, 25, 1500, 32.4),
    ],
)
def test_time_per_token(
    model: str, device: str, flags: dict[str, int], batch: int, prompt: int, tpot_ms: float
) -> None:
    where = find_device(device)
    plan = plan_memory(open_model(model), Deployment(max_model_len=4096, **flags), where)  # type: ignore[arg-type]
    planned = measure(plan, where, batch, prompt, 256).tpot * 1e3
    assert tpot_ms / 1.5 < planned < tpot_ms * 1.5


def test_money_is_machine_time() -> None:
    where = find_device("H100")
    plan = plan_memory(open_model("llama-3.1-8b"), Deployment(max_model_len=8192, dp=2), where)
    speed = measure(plan, where, 16, 1000, 200, price=3.6)
    assert speed.usd_per_hour == pytest.approx(7.2)
    assert speed.usd_per_million_output == pytest.approx(7.2 / 3600 / speed.tokens_per_second * 1e6)


def test_larger_batches_are_slower_for_each_and_faster_for_all() -> None:
    where = find_device("H100")
    plan = plan_memory(open_model("qwen3-30b-a3b"), Deployment(max_model_len=8192), where)
    speeds = [measure(plan, where, batch, 1000, 200) for batch in (1, 4, 16, 64)]
    assert [s.tpot for s in speeds] == sorted(s.tpot for s in speeds)
    rates = [s.tokens_per_second for s in speeds]
    assert rates == sorted(rates)


def test_experts_models_read_what_they_touch() -> None:
    where = find_device("H100")
    plan = plan_memory(open_model("qwen3-30b-a3b"), Deployment(max_model_len=8192), where)
    cost = step_cost(plan, where)
    bandwidth = where.bandwidth_gbs * 1e9
    assert cost.seconds(1, 1, 0) < plan.stored.total / bandwidth / 2  # far from all experts
    assert cost.seconds(1024, 1024, 0) > plan.stored.total / bandwidth


def test_typical_batch_is_what_the_cache_holds() -> None:
    where = find_device("RTX 4090")
    plan = plan_memory(open_model("llama-3.1-8b"), Deployment(max_model_len=8192), where)
    assert plan.kv is not None
    assert typical_batch(plan, 1000, 200) == plan.kv.tokens // 1100


def test_four_bit_integers_are_unpacked_also_where_there_are_four_bit_floats() -> None:
    """A prompt in AWQ runs in 16-bit units; in NVFP4 it has units of its own on Blackwell."""
    device = find_device("B200-180GB")

    def prompt_token(weights: str) -> float:
        return step_cost(
            plan_memory(open_model("llama-3.1-70b"), Deployment(weights=weights, tp=4), device), device, 0.0
        ).per_token

    assert prompt_token("awq") == pytest.approx(prompt_token("bf16"), rel=0.05)
    assert prompt_token("nvfp4") < 0.7 * prompt_token("awq")


def test_the_speed_of_a_gguf_type_does_not_hang_on_how_it_is_spelt() -> None:
    device = find_device("B200-180GB")

    def prompt_token(weights: str) -> float:
        flags = Deployment(engine="llama.cpp", weights=weights, max_model_len=8192)
        return step_cost(plan_memory(open_model("llama-3.1-8b"), flags, device), device, 0.0).per_token

    assert prompt_token("Q4_K_M") == prompt_token("q4_k_m")
    assert prompt_token("ud-q4_k_m") == pytest.approx(prompt_token("q4_k_m"), rel=0.02)
