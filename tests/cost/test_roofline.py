"""The roofline's step cost: limits that follow from the data sheet, and published timings."""

from __future__ import annotations

from dataclasses import replace

import pytest

from weighbridge.cost.experts import uniform_coverage
from weighbridge.cost.hardware import find_device
from weighbridge.cost.roofline import Demand, decode_share, roofline

_DENSE = Demand(
    weight_bytes=16e9, expert_bytes=0.0, experts=0, experts_used=0, expert_layers=0, flops_per_token=16e9,
    expert_flops_per_token=0.0, kv_bytes_per_pair=131_072, flops_per_pair=524_288, state_bytes_per_sequence=0.0,
    hidden_bytes=8192, layers=32, all_reduces=64, tp=1, weight_bits=16,
)  # fmt: skip


def test_no_step_beats_the_data_sheet() -> None:
    device = find_device("H100")
    cost = roofline(device, _DENSE)
    assert cost.seconds(1, 1, 0) > _DENSE.weight_bytes / (device.bandwidth_gbs * 1e9)
    tokens = 8192
    assert cost.seconds(tokens, 1, 0) > tokens * _DENSE.flops_per_token / (device.bf16_tflops * 1e12)
    assert cost.per_context_token > _DENSE.kv_bytes_per_pair / (device.bandwidth_gbs * 1e9)


def test_small_batches_are_bound_by_memory_and_large_ones_by_arithmetic() -> None:
    cost = roofline(find_device("H100"), _DENSE)
    assert cost.seconds(1, 1, 0) == pytest.approx(cost.seconds(8, 1, 0))
    assert cost.seconds(4096, 1, 0) > 1.9 * cost.seconds(2048, 1, 0)


def test_experts_are_read_as_they_are_touched() -> None:
    demand = replace(_DENSE, expert_bytes=5e6, experts=128, experts_used=8, expert_layers=48)
    cost = roofline(find_device("H100"), demand)
    one, many = cost.seconds(1, 1, 0), cost.seconds(64, 64, 0)
    touched = 48 * (uniform_coverage(128, 8, 64) - uniform_coverage(128, 8, 1))
    assert many - one == pytest.approx(cost.per_expert * touched + 63 * cost.per_sequence, rel=0.01)


def test_tensor_parallelism_pays_for_its_exchanges() -> None:
    halved = replace(_DENSE, weight_bytes=8e9, flops_per_token=8e9, tp=2)
    whole, half = roofline(find_device("H100"), _DENSE), roofline(find_device("H100"), halved)
    assert half.memory == pytest.approx(whole.memory / 2)
    assert half.overhead > whole.overhead
    assert half.per_token > whole.per_token / 2


def test_pairs_of_prompts_are_cheaper_than_those_of_decoding() -> None:
    for share in (0.0, 0.25, 1.0):
        cost = roofline(find_device("H100"), _DENSE, share)
        assert 0.0 < cost.per_prompt_pair < cost.per_context_token / 5


def test_share_of_decoding() -> None:
    assert decode_share(0, 10) == 1.0
    assert decode_share(1000, 0) == 0.0
    assert decode_share(1000, 200) == pytest.approx(220_000 / 720_000)
