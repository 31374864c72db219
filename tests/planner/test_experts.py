"""Expert placement against EPLB's own example, properties on random loads; parameters against known models."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.moe_data import moe_data
from weighbridge.errors import BadInput
from weighbridge.planner.experts.layout import count_parameters, replacement
from weighbridge.planner.experts.local_search import balance, colocation
from weighbridge.planner.experts.placement import (
    Devices,
    ExpertPlacement,
    balancedness,
    check_loads,
    eplb,
    gpu_loads,
    moved_slots,
    static_placement,
)

#: EPLB's README (github.com/deepseek-ai/EPLB): 12 experts in 4 groups, 16 replicas, 8 GPUs on 2 nodes.
README = [
    [90, 132, 40, 61, 104, 165, 39, 4, 73, 56, 183, 86],
    [20, 107, 104, 64, 19, 197, 187, 157, 172, 86, 16, 27],
]
README_PLACEMENT = [
    [5, 6, 5, 7, 8, 4, 3, 4, 10, 9, 10, 2, 0, 1, 11, 1],
    [7, 10, 6, 8, 6, 11, 8, 9, 2, 4, 5, 1, 5, 0, 3, 1],
]


def skewed(rng: np.random.Generator, layers: int, experts: int) -> np.ndarray:
    ranks = np.arange(1.0, experts + 1)
    rows = [rng.permutation(ranks ** -rng.uniform(0.2, 1.6)) for _ in range(layers)]
    loads: np.ndarray = np.stack(rows) * rng.uniform(0.5, 1.5, (layers, experts)) * 1e5
    return loads


def doubled(placement: ExpertPlacement, gpus: int, nodes: int = 1) -> bool:
    """Whether a GPU holds an expert twice while another one of its node is lacking there."""
    for row in placement.physical_to_logical:
        for node in row.reshape(nodes, -1):
            for held in node.reshape(gpus // nodes, -1):
                if len(set(held)) < min(len(held), len(set(node))):
                    return True
    return False


@pytest.mark.parametrize(
    ("loads", "devices", "before"),
    [
        ([[9, 1]], Devices(2, 4), 0.833),
        ([[70, 10, 10, 10]], Devices(2, 8), 0.962),
        ([[60, 25, 15]], Devices(3, 9), 0.926),
        ([[9, 1]], Devices(2, 6), 0.926),  # with a slot too many on each
    ],
)
def test_where_every_gpu_can_hold_all_experts_it_does(
    loads: list[list[int]], devices: Devices, before: float
) -> None:
    measured = check_loads(loads)
    assert balancedness(measured, eplb(measured, devices), devices.gpus)[0] == pytest.approx(before, abs=5e-4)
    placement = balance(measured, devices)
    assert not doubled(placement, devices.gpus)
    assert balancedness(measured, placement, devices.gpus)[0] == pytest.approx(1.0)


def test_eplb_places_its_own_example() -> None:
    loads = check_loads(README)
    placement = eplb(loads, Devices(gpus=8, replicas=16, nodes=2, groups=4))
    assert placement.physical_to_logical.tolist() == README_PLACEMENT
    assert balancedness(loads, placement, 8).round(3).tolist() == [0.828, 0.805]
    assert balancedness(loads, placement, 2).round(3).tolist() == [0.880, 0.896]


def test_recorded_example_agrees() -> None:
    recorded = moe_data("eplb_readme_example.json")
    devices = Devices(recorded["num_gpus"], recorded["num_replicas"], recorded["num_nodes"], 4)
    loads = check_loads(recorded["weight"])
    placement = eplb(loads, devices)
    assert placement.physical_to_logical.tolist() == recorded["phy2log_expected"]
    for layer, derived in enumerate(recorded["derived"]):
        assert placement.logical_count[layer].tolist() == derived["logcnt"]
        assert gpu_loads(loads, placement, 8)[layer].tolist() == derived["gpu_load"]


def test_improved_placement_is_never_worse() -> None:
    rng = np.random.default_rng(7)
    before, after = [], []
    for _ in range(200):
        experts = int(rng.choice([8, 16, 32, 60, 64, 128, 256]))
        gpus = int(rng.choice([2, 4, 8]))
        slots = -(-int(experts * rng.uniform(1.0, 1.5)) // gpus)
        loads = skewed(rng, 1, experts)
        devices = Devices(gpus, gpus * slots)
        start, improved = eplb(loads, devices), balance(loads, devices)
        before.append(balancedness(loads, start, gpus)[0])
        after.append(balancedness(loads, improved, gpus)[0])
        assert not doubled(improved, gpus)
        assert after[-1] >= before[-1] - 1e-12 or doubled(start, gpus)
    assert np.mean(after) > np.mean(before) + 0.003
    assert np.mean(np.greater(after, np.add(before, 1e-9))) > 0.5


@pytest.mark.parametrize(
    "devices", [Devices(320, 320, 40, 8), Devices(320, 640), Devices(64, 320, 8, 8), Devices(32, 320)]
)
def test_large_fleets_are_placed(devices: Devices) -> None:
    loads = skewed(np.random.default_rng(1), 58, 256)
    current = static_placement(58, 256, devices.replicas)
    placement = balance(loads, devices, current=current)
    start = eplb(loads, devices)
    assert not doubled(placement, devices.gpus, devices.nodes if devices.groups > 1 else 1)
    for layer, old in enumerate(balancedness(loads, start, devices.gpus)):
        alone = ExpertPlacement.of(start.physical_to_logical[layer : layer + 1], 256)
        even = balancedness(loads, placement, devices.gpus)[layer] >= old - 1e-12
        assert even or doubled(alone, devices.gpus, devices.nodes if devices.groups > 1 else 1)


@given(
    seed=st.integers(0, 10_000),
    shape=st.sampled_from([(8, 4, 2, 4), (12, 6, 3, 6), (16, 8, 2, 4), (8, 2, 1, 1), (12, 4, 2, 3)]),
    extra=st.integers(0, 3),
    zeros=st.booleans(),
)
def test_placements_are_complete(
    seed: int, shape: tuple[int, int, int, int], extra: int, zeros: bool
) -> None:
    experts, gpus, nodes, groups = shape
    rng = np.random.default_rng(seed)
    loads = skewed(rng, 3, experts)
    if zeros:
        loads[:, rng.integers(0, experts)] = 0.0
    devices = Devices(gpus, (-(-experts // gpus) + extra) * gpus, nodes, groups)
    pairs = rng.random((3, experts, experts))
    pairs += pairs.transpose(0, 2, 1)
    current = static_placement(3, experts, devices.replicas)
    for placement in (eplb(loads, devices), balance(loads, devices, pairs, current)):
        assert placement.physical_to_logical.shape == (3, devices.replicas)
        assert (placement.logical_count >= 1).all()
        assert (placement.logical_count.sum(axis=1) == devices.replicas).all()
        np.testing.assert_allclose(
            gpu_loads(loads, placement, gpus).sum(axis=1), loads.sum(axis=1), rtol=1e-9
        )
        if devices.hierarchical and groups > 1:  # a group of experts never leaves its node
            node = np.repeat(np.arange(nodes), devices.replicas // nodes)
            group = placement.physical_to_logical // (experts // groups)
            for row in group:
                assert all(len(set(node[row == one])) == 1 for one in range(groups))
    within = nodes if devices.hierarchical and groups > 1 else 1
    start, improved = eplb(loads, devices), balance(loads, devices, pairs, current)
    assert not doubled(improved, gpus, within)
    for layer, (old, new) in enumerate(
        zip(balancedness(loads, start, gpus), balancedness(loads, improved, gpus), strict=True)
    ):
        alone = ExpertPlacement.of(start.physical_to_logical[layer : layer + 1], experts)
        assert new >= old - 1e-12 or doubled(alone, gpus, within)


def test_experts_used_together_come_together() -> None:
    """Eight equally loaded experts in four pairs: balance cannot choose between placements, co-activation can."""
    loads = np.full((1, 8), 100.0)
    pairs = np.zeros((1, 8, 8))
    for one, other in ((0, 5), (1, 4), (2, 7), (3, 6)):
        pairs[0, one, other] = pairs[0, other, one] = 50.0
    devices = Devices(4, 8)
    assert colocation(pairs, eplb(loads, devices), 4)[0] < 0.5
    placement = balance(loads, devices, pairs)
    assert colocation(pairs, placement, 4)[0] == pytest.approx(1.0)
    assert balancedness(loads, placement, 4)[0] == pytest.approx(1.0)


def test_gpus_keep_what_they_hold() -> None:
    loads = skewed(np.random.default_rng(3), 4, 32)
    devices = Devices(8, 40)
    held = balance(loads, devices)
    shuffled = ExpertPlacement.of(held.physical_to_logical.reshape(4, 8, 5)[:, ::-1].reshape(4, 40), 32)
    again = balance(loads, devices, current=shuffled)
    assert moved_slots(shuffled, again, 8).sum() == 0
    assert moved_slots(shuffled, held, 8).sum() > 0


@pytest.mark.parametrize(
    ("value", "message"),
    [
        ([[0.0, 0.0], [1.0, 2.0]], "layer 0 has no load"),
        ([[1.0, float("nan")]], "expert 1 in layer 0 is nan"),
        ([[1.0, float("inf")]], "not a finite"),
        ([[1.0, -2.0]], "negative"),
        ([[5.0]], "one expert"),
        ([[1.0, 2.0], [1.0]], "one list per layer"),
        ([], "layers x experts"),
        ([[[1.0]]], "layers x experts"),
        ("many", "must be numbers"),
        (3.0, "layers x experts"),
    ],
)
def test_bad_loads_are_named(value: Any, message: str) -> None:
    with pytest.raises(BadInput, match=message):
        check_loads(value)


@pytest.mark.parametrize(
    ("devices", "message"),
    [
        (Devices(16, 12), "cannot each hold one"),
        (Devices(4, 8), "cannot hold 12 experts"),
        (Devices(5, 16), "do not divide evenly over 5 GPUs"),
        (Devices(4, 16, nodes=3), "do not divide evenly over 3 nodes"),
        (Devices(4, 16, groups=5), "into 5 groups"),
        (Devices(0, 16), "at least 1"),
    ],
)
def test_bad_fleets_are_named(devices: Devices, message: str) -> None:
    with pytest.raises(BadInput, match=message):
        eplb(np.ones((1, 12)), devices)


# -- parameters ---------------------------------------------------------------------------------------------

MIXTRAL = {
    "model_type": "mixtral",
    "hidden_size": 4096,
    "num_hidden_layers": 32,
    "intermediate_size": 14336,
    "num_attention_heads": 32,
    "num_key_value_heads": 8,
    "vocab_size": 32000,
    "num_local_experts": 8,
    "num_experts_per_tok": 2,
}
QWEN3_30B = {
    "model_type": "qwen3_moe",
    "hidden_size": 2048,
    "num_hidden_layers": 48,
    "intermediate_size": 6144,
    "moe_intermediate_size": 768,
    "num_attention_heads": 32,
    "num_key_value_heads": 4,
    "head_dim": 128,
    "vocab_size": 151_936,
    "num_experts": 128,
    "num_experts_per_tok": 8,
}
QWEN3_235B = {
    **QWEN3_30B,
    "hidden_size": 4096,
    "num_hidden_layers": 94,
    "moe_intermediate_size": 1536,
    "num_attention_heads": 64,
}
DEEPSEEK_V3 = {
    "model_type": "deepseek_v3",
    "hidden_size": 7168,
    "num_hidden_layers": 61,
    "intermediate_size": 18432,
    "moe_intermediate_size": 2048,
    "num_attention_heads": 128,
    "num_key_value_heads": 128,
    "vocab_size": 129_280,
    "n_routed_experts": 256,
    "n_shared_experts": 1,
    "num_experts_per_tok": 8,
    "first_k_dense_replace": 3,
    "q_lora_rank": 1536,
    "kv_lora_rank": 512,
    "qk_rope_head_dim": 64,
    "qk_nope_head_dim": 128,
    "v_head_dim": 128,
    "topk_method": "noaux_tc",
}


@pytest.mark.parametrize(
    ("fields", "total", "active"),
    [
        (MIXTRAL, 46.70, 12.88),
        (QWEN3_30B, 30.53, 3.35),
        (QWEN3_235B, 235.09, 22.19),
        (DEEPSEEK_V3, 671.03, 37.55),
    ],
)
def test_parameters_of_known_models(fields: dict[str, Any], total: float, active: float) -> None:
    parameters = count_parameters(fields)
    assert round(parameters.total / 1e9, 2) == total
    assert round(parameters.active / 1e9, 2) == active


def test_redundant_expert_of_deepseek_v3() -> None:
    """vLLM's documentation says about 2.4 GB for one redundant expert per rank, in FP8."""
    parameters = count_parameters(DEEPSEEK_V3)
    assert parameters.expert == 44_040_192
    assert parameters.sparse_layers * parameters.expert / 2**30 == pytest.approx(2.38, abs=0.005)


@pytest.mark.parametrize(
    "fields", [{"hidden_size": 64}, {**MIXTRAL, "vocab_size": "many"}, {**MIXTRAL, "hidden_size": 0}]
)
def test_bad_configurations_are_named(fields: dict[str, Any]) -> None:
    with pytest.raises(BadInput, match=r"config\.json"):
        count_parameters({"num_hidden_layers": 2, **fields})


def test_a_replacement_pays_when_its_gain_outweighs_the_move() -> None:
    pays = replacement(0.010, 0.5, 0.8, 5e9, 50e9)
    assert pays.gain_per_step == pytest.approx(0.0075)
    assert pays.pays_after_steps == pytest.approx(0.1 / 0.0075)
    assert replacement(0.010, 0.8, 0.8, 5e9, 50e9).pays_after_steps is None
