"""Properties of cache accounting: conserved, monotone, and the same however it is asked."""

from __future__ import annotations

from dataclasses import replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from weighbridge.planner.memory.engines import parse_version, rules_for
from weighbridge.planner.memory.kv_dtype import kv_type
from weighbridge.planner.memory.memory import GIB, PlannedModel, plan_memory
from weighbridge.planner.memory.request import Deployment
from weighbridge.planner.memory.vllm_kv import group_size
from weighbridge.planner.model.catalogue import catalogue
from weighbridge.planner.model.config_reader import read_architecture

_NAMES = [
    "llama-3.1-8b", "gemma-3-12b", "gpt-oss-20b", "qwen3.5-27b", "deepseek-v3.2", "kimi-linear-48b-a3b",
    "nemotron-nano-9b-v2", "mistral-7b", "llama-4-scout", "jamba-1.5-mini", "mimo-v2-flash",
]  # fmt: skip
_MODELS = {name: PlannedModel(name, read_architecture(catalogue()[name])) for name in _NAMES}
_VERSIONS = st.sampled_from(["0.8.5", "0.11.0", "0.19.0", "0.24.0", None])


def _kv(name: str, memory: int, length: int, **flags: object):  # type: ignore[no-untyped-def]
    deployment = Deployment(kv_cache_memory=memory, max_model_len=length, **flags)  # type: ignore[arg-type]
    return plan_memory(_MODELS[name], deployment, None).kv


@settings(max_examples=150, deadline=None)
@given(
    st.sampled_from(_NAMES),
    st.integers(1, 64 * GIB),
    st.integers(16, 262_144),
    _VERSIONS,
    st.sampled_from(["vllm", "sglang"]),
)
def test_a_pool_never_takes_more_than_its_memory(
    name: str, memory: int, length: int, version: str | None, engine: str
) -> None:
    kv = _kv(name, memory, length, engine=engine, version=version if engine == "vllm" else None)
    per_block = kv.request_bytes / kv.blocks_per_request
    if engine == "vllm":
        assert kv.num_blocks * per_block <= memory * (1 + 1e-9)
        assert memory < (kv.num_blocks + 1) * per_block * (1 + 1e-9)
    assert kv.tokens >= 0
    assert kv.max_concurrency >= 0


@settings(max_examples=100, deadline=None)
@given(st.sampled_from(_NAMES), st.integers(1, 32 * GIB), st.integers(1, 32 * GIB), st.integers(16, 65_536))
def test_more_memory_never_holds_less(name: str, one: int, more: int, length: int) -> None:
    assert _kv(name, one + more, length).max_concurrency >= _kv(name, one, length).max_concurrency


@settings(max_examples=100, deadline=None)
@given(st.sampled_from(_NAMES), st.integers(16, 32_768), st.integers(1, 32_768))
def test_longer_requests_never_fit_more_often(name: str, length: int, more: int) -> None:
    short, long = _kv(name, 8 * GIB, length), _kv(name, 8 * GIB, length + more)
    assert long.blocks_per_request >= short.blocks_per_request
    assert long.max_concurrency <= short.max_concurrency * (1 + 1e-9)


def test_windows_are_kept_in_full_before_groups_and_on_request() -> None:
    grouped = _kv("gemma-3-12b", 8 * GIB, 32_768, version="0.11.0")
    before = _kv("gemma-3-12b", 8 * GIB, 32_768, version="0.9.1")
    asked = _kv("gemma-3-12b", 8 * GIB, 32_768, version="0.11.0", swa_full=True)
    assert grouped.max_concurrency > 3 * before.max_concurrency
    assert before.max_concurrency == pytest.approx(asked.max_concurrency)


def test_chunked_local_layers_are_kept_in_full_by_default() -> None:
    kv = _kv("llama-4-scout", 8 * GIB, 32_768, version="0.15.0")
    assert kv.bytes_per_token == 48 * 8 * 256 * 2


def test_group_size_follows_the_version() -> None:
    old = rules_for(Deployment(version="0.11.0"), None, 4096)
    new = rules_for(Deployment(version="0.24.0"), None, 4096)
    assert group_size([10, 52], old) == 10
    assert group_size([12, 13], old) == 13  # gpt-oss with a draft layer
    assert group_size([10, 14], old) == 10
    assert group_size([10, 14], new) == 14


def test_draft_layers_join_the_pool() -> None:
    plain = _kv("llama-3.1-8b", 8 * GIB, 8192)
    eagle = _kv("llama-3.1-8b", 8 * GIB, 8192, speculative="eagle", num_speculative_tokens=3)
    assert eagle.bytes_per_token == plain.bytes_per_token * 33 / 32


def test_pipeline_stages_share_the_smallest_pool() -> None:
    one, two = _kv("llama-3.1-8b", 8 * GIB, 8192), _kv("llama-3.1-8b", 8 * GIB, 8192, pp=2)
    assert two.num_blocks == pytest.approx(2 * one.num_blocks, abs=1)
    uneven = _kv("deepseek-v3.2", 8 * GIB, 8192, pp=4)
    assert uneven.bytes_per_token == 16 * (576 * 2 + 132)


def test_fp8_cache_of_sparse_latent_attention_depends_on_the_device() -> None:
    from weighbridge.cost.hardware import find_device

    model = _MODELS["deepseek-v3.2"]
    flags = Deployment(tp=8, kv_dtype="fp8", kv_cache_memory=8 * GIB)
    hopper = plan_memory(model, flags, find_device("H200")).kv
    blackwell = plan_memory(model, flags, find_device("B200")).kv
    assert hopper is not None
    assert blackwell is not None
    assert hopper.bytes_per_token == 61 * (656 + 132)
    assert blackwell.bytes_per_token == 61 * (576 + 132)


@pytest.mark.parametrize(
    ("name", "size"),
    [("f16", 2.0), ("q8_0", 34 / 32), ("q4_0", 18 / 32), ("q5_1", 24 / 32), ("fp8_e4m3", 1.0), ("auto", 2.0)],
)
def test_bytes_of_cache_types(name: str, size: float) -> None:
    assert kv_type(name).value_bytes == size


def test_scales_per_token_and_head() -> None:
    """Two heads of 256: 1,040 bytes a token and layer, not 1,024."""
    kv = _kv("qwen3.5-27b", 8 * GIB, 8192, kv_dtype="int8_per_token_head", tp=2)
    assert kv.block_size == 1552  # ceil16(1,603,584 / 1,040)


def test_llama_cpp_reserves_windows_states_and_snapshots() -> None:
    def pools(name: str, length: int, **flags: object):  # type: ignore[no-untyped-def]
        return plan_memory(
            _MODELS[name],
            Deployment(engine="llama.cpp", max_model_len=length, towers=False, **flags),
            None,  # type: ignore[arg-type]
        ).kv

    mib = 1 << 20
    assert pools("gpt-oss-20b", 4096, version="b6182").pool_bytes / mib == pytest.approx(96 + 15)  # 640 cells
    assert pools("gpt-oss-20b", 4096, swa_full=True).pool_bytes / mib == pytest.approx(96 + 96)
    states = 149.625
    assert pools("qwen3.5-27b", 8192).pool_bytes / mib == pytest.approx(512 + states)
    drafting = pools("qwen3.5-27b", 8192, speculative="mtp", num_speculative_tokens=6)
    assert drafting.pool_bytes / mib == pytest.approx(512 + 32 + 7 * states)
    old, new = pools("deepseek-v3.2", 4096, version="b7000"), pools("deepseek-v3.2", 4096, version="b8000")
    assert old.bytes_per_token - new.bytes_per_token == 61 * 512 * 2


def test_slots_of_llama_cpp_share_or_divide_the_context() -> None:
    flags = Deployment(engine="llama.cpp", max_model_len=8192, max_num_seqs=4, towers=False)
    shared = plan_memory(_MODELS["llama-3.1-8b"], flags, None).kv
    apart = plan_memory(_MODELS["llama-3.1-8b"], replace(flags, unified_kv=False), None).kv
    wanted = plan_memory(_MODELS["llama-3.1-8b"], replace(flags, max_num_seqs=None, concurrency=4), None).kv
    assert shared is not None
    assert apart is not None
    assert wanted is not None
    assert shared.pool_bytes == apart.pool_bytes
    assert wanted.pool_bytes == 4 * shared.pool_bytes


@pytest.mark.parametrize(
    ("text", "version"),
    [
        ("0.21.0", (0, 21, 0)),
        ("~0.15.1", (0, 15, 1)),
        ("v0.20.1rc1.dev16", (0, 20, 1)),
        ("main 2024-04-29 (V0 ~0.4.1)", (0, 4, 1)),
        ("b9496", (9496,)),
        ("6182", (6182,)),
        ("2025-12", None),
        (None, None),
    ],
)
def test_versions(text: str | None, version: tuple[int, ...] | None) -> None:
    assert parse_version(text) == version
