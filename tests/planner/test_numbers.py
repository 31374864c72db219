"""Numbers that engines printed, reproduced from flags alone: a few of the recorded starts, without the data."""

from __future__ import annotations

import pytest

from weighbridge.cost.hardware import custom_device, find_device
from weighbridge.planner.memory.memory import GIB, PlannedModel, plan_memory
from weighbridge.planner.memory.request import Deployment
from weighbridge.planner.memory.source import open_model
from weighbridge.planner.model.config_reader import read_architecture


def _pinned(gib: float, **flags: object) -> Deployment:
    return Deployment(kv_cache_memory=round(gib * GIB), **flags)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("model", "gib", "flags", "tokens"),
    [
        # vLLM: one kind of layer
        ("qwen3-8b", 18.69, {"version": "0.9.2", "max_model_len": 40_960}, 136_080),
        ("qwen3-14b", 11.0, {"max_model_len": 40_960}, 72_064),
        ("llama-3.1-8b", 56.21, {"version": "0.31.0"}, 460_496),
        ("qwen2.5-14b", 41.43, {"version": "0.21.0", "max_model_len": 4096}, 226_240),
        ("llama-3.1-70b", 20.16, {"version": "0.16.0", "tp": 2, "max_model_len": 8192}, 132_128),
        # sparse latent attention with shared indexers, replicated over ranks
        (
            "glm-5.2",
            50.62,
            {"version": "0.26.0", "tp": 4, "kv_dtype": "fp8", "max_model_len": 819_200},
            1_139_456,
        ),
        # gated delta nets: states and attention in groups; a draft layer in the second
        (
            "qwen3.5-35b-a3b",
            5.98,
            {"version": "0.24.0", "kv_dtype": "fp8", "max_model_len": 131_072, "max_num_seqs": 1},
            567_978,
        ),
        (
            "qwen3.5-27b",
            5.33,
            {
                "version": "0.24.0",
                "tp": 2,
                "kv_dtype": "fp8",
                "max_model_len": 262_144,
                "speculative": "mtp",
                "num_speculative_tokens": 3,
            },
            300_220,
        ),
        # sliding windows: seven groups of ten layers
        (
            "gemma-3-27b",
            109.86,
            {"version": "0.11.0", "max_model_len": 4096, "max_num_batched_tokens": 8192},
            205_696,
        ),
        ("gemma-3-27b", 35.31, {"version": "0.11.0", "max_model_len": 131_072, "max_num_seqs": 16}, 66_112),
        # SGLang: latent attention; two pools
        ("kimi-k2.5", 160.63, {"engine": "sglang", "tp": 8}, 2_454_421),
        ("mimo-v2-flash", 77.63, {"engine": "sglang", "tp": 4}, 1_496_958),
    ],
)
def test_tokens_of_a_cache(model: str, gib: float, flags: dict[str, object], tokens: int) -> None:
    plan = plan_memory(open_model(model), _pinned(gib, **flags), None)
    assert plan.kv is not None
    assert plan.kv.tokens == pytest.approx(tokens, rel=0.002)


def test_gemma_concurrency_counts_the_window() -> None:
    flags = _pinned(109.86, version="0.11.0", max_model_len=4096, max_num_batched_tokens=8192)
    kv = plan_memory(open_model("gemma-3-27b"), flags, None).kv
    assert kv is not None
    assert kv.num_blocks == pytest.approx(89_994, rel=1e-4)
    assert kv.blocks_per_request == 256 + 6 * 257
    assert kv.max_concurrency == pytest.approx(50.05, abs=0.01)


@pytest.mark.parametrize(
    ("model", "flags", "gib"),
    [
        ("qwen3-8b", {}, 15.2683),
        ("qwen3-14b", {}, 27.5185),
        ("llama-3.1-8b", {}, 15.0),
        ("llama-3.1-70b", {"tp": 2, "weights": "fp8"}, 33.88),
        ("llama-3.1-70b", {"weights": "fp8"}, 67.72),
        ("llama-3.1-70b", {"tp": 2, "weights": "awq"}, 18.55),
        ("mixtral-8x7b", {"tp": 2, "weights": "gptq-g-1"}, 11.0802),
        ("gpt-oss-20b", {"version": "0.11.0"}, 13.47),
        ("gpt-oss-120b", {"version": "0.14.1"}, 64.38),
        ("gpt-oss-120b", {"version": "0.14.1", "weights": "mxfp4"}, 64.38),
        ("gpt-oss-120b", {"version": "0.10.1"}, 65.9651),  # kernels padded more then
        ("glm-5.2", {"tp": 4, "ep": 4, "weights": "nvfp4"}, 106.69),
        ("kimi-k2.5", {"engine": "sglang", "tp": 8}, 73.58),
    ],
)
def test_weights_of_one_gpu(model: str, flags: dict[str, object], gib: float) -> None:
    plan = plan_memory(open_model(model), Deployment(**flags), None)  # type: ignore[arg-type]
    assert plan.weights.value == pytest.approx(gib, rel=0.01)
    assert plan.weights.low <= gib <= plan.weights.high


@pytest.mark.parametrize(
    ("model", "device", "flags", "gib"),
    [
        ("gpt-oss-20b", 79.18, {"version": "0.11.0", "max_model_len": 16_000, "block_size": 128}, 50.28),
        ("llama-3.1-70b", 79.18, {"version": "0.11.0", "tp": 2, "weights": "fp8"}, 32.0),
        ("qwen3-8b", "A100-40GB", {"version": "0.9.2"}, 18.69),
        ("llama-3.1-8b", "A100-80GB", {"version": "0.31.0", "gpu_memory_utilization": 0.92}, 56.21),
        ("gemma-3-27b", "MI300X", {"version": "0.11.0", "gpu_memory_utilization": 0.9}, 109.86),
        (
            "glm-5.2",
            "GB200",
            {"version": "0.26.0", "tp": 4, "ep": 4, "weights": "nvfp4", "kv_dtype": "fp8"},
            50.62,
        ),
    ],
)
def test_memory_left_for_the_cache(
    model: str, device: str | float, flags: dict[str, object], gib: float
) -> None:
    where = custom_device(device, "H100-80GB") if isinstance(device, float) else find_device(device)
    left = plan_memory(open_model(model), Deployment(**flags), where).available  # type: ignore[arg-type]
    assert left is not None
    assert left.value == pytest.approx(gib, rel=0.05)
    assert left.low <= gib <= left.high


def test_a_start_that_failed_does_not_fit() -> None:
    """Llama 3.3 70B in fp8 on one H100: vLLM 0.11 had 1.44 GiB too little."""
    flags = Deployment(version="0.11.0", weights="fp8", max_model_len=16_000)
    plan = plan_memory(open_model("llama-3.3-70b"), flags, find_device("H100"))
    assert not plan.fits
    assert plan.available is not None
    assert plan.available.value == pytest.approx(-1.44, abs=0.4)


@pytest.mark.parametrize(("kv_dtype", "block"), [("auto", 528), ("fp8", 1056)])
def test_attention_blocks_grow_to_the_state(kv_dtype: str, block: int) -> None:
    """Qwen3.5 9B: what vLLM prints as "Setting attention block size"."""
    config = {
        "model_type": "qwen3_5_text", "hidden_size": 4096, "intermediate_size": 12_288, "num_hidden_layers": 32,
        "num_attention_heads": 16, "num_key_value_heads": 4, "head_dim": 256, "vocab_size": 248_320,
        "linear_num_key_heads": 16, "linear_num_value_heads": 32, "linear_key_head_dim": 128,
        "linear_value_head_dim": 128, "linear_conv_kernel_dim": 4, "mamba_ssm_dtype": "float32",
    }  # fmt: skip
    model = PlannedModel("qwen3.5-9b", read_architecture(config))
    kv = plan_memory(model, _pinned(10.0, kv_dtype=kv_dtype, max_model_len=32_768), None).kv
    assert kv is not None
    assert kv.block_size == block


@pytest.mark.parametrize(
    ("blocks", "flags", "length", "tokens"),
    [  # Qwen3.5 27B: blocks of the pool, and the tokens printed for them
        (1487, {"version": "0.19.0"}, 32_768, 290_864),  # before 0.20: blocks of one group
        (580, {"version": "0.26.1", "tp": 2}, 262_144, 445_875),  # since: concurrency times length
        (611, {"version": "0.26.1", "tp": 2, "kv_dtype": "fp8"}, 262_144, 920_517),
        (652, {"max_num_seqs": 256}, 8192, 314_187),
    ],
)
def test_tokens_of_a_hybrid_pool(blocks: int, flags: dict[str, object], length: int, tokens: int) -> None:
    page = 784 * (
        4096 if "tp" not in flags else 2048
    )  # bytes of a block in one layer; fp8 has twice the tokens
    memory = blocks * 16 * page + 1000
    flags = {**flags, "kv_cache_memory": memory, "max_model_len": length}
    kv = plan_memory(open_model("qwen3.5-27b"), Deployment(**flags), None).kv  # type: ignore[arg-type]
    assert kv is not None
    assert (kv.num_blocks, kv.tokens) == (blocks, tokens)


def test_latent_cache_is_on_every_rank_and_dcp_divides_it() -> None:
    """DeepSeek's latent vector is replicated over TP; the key/value heads of others are divided."""

    def tokens(model: str, **flags: object) -> float:
        kv = plan_memory(open_model(model), _pinned(10.0, max_model_len=65_536, **flags), None).kv
        assert kv is not None
        return kv.max_concurrency

    assert tokens("deepseek-v3", tp=8) == pytest.approx(tokens("deepseek-v3"), rel=0.01)
    assert tokens("deepseek-v3", tp=8, dcp=8) == pytest.approx(8 * tokens("deepseek-v3", tp=8), rel=0.01)
    assert tokens("llama-3.1-8b", tp=4) == pytest.approx(4 * tokens("llama-3.1-8b"), rel=0.01)
