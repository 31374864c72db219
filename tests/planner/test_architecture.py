"""config.json of many families to an architecture; what is not understood is refused or stated."""

from __future__ import annotations

from collections import Counter
from typing import Any

import pytest

from weighbridge.errors import BadInput
from weighbridge.planner.model.architecture import Architecture, Attention, ExpertBlock, Latent, Recurrent
from weighbridge.planner.model.catalogue import catalogue, lookup
from weighbridge.planner.model.config_reader import read_architecture
from weighbridge.planner.model.layer_kinds import spread
from weighbridge.planner.model.tensors import parameters

_PLAIN: dict[str, Any] = {
    "model_type": "llama", "hidden_size": 1024, "intermediate_size": 4096, "num_hidden_layers": 8,
    "num_attention_heads": 16, "num_key_value_heads": 4, "vocab_size": 32_000,
}  # fmt: skip


def _named(name: str) -> Architecture:
    found = lookup(name)
    assert found is not None
    return read_architecture(found[1])


@pytest.mark.parametrize(
    ("name", "total", "active"),
    [  # billions, from model cards and reports; towers and draft layers aside
        ("llama-3.1-8b", 8.03, None),
        ("llama-3.1-70b", 70.55, None),
        ("llama-3.1-405b", 405.85, None),
        ("qwen3-8b", 8.19, None),
        ("qwen2.5-0.5b", 0.494, None),
        ("mixtral-8x7b", 46.70, 12.75),
        ("qwen3-30b-a3b", 30.53, 3.04),
        ("qwen3-235b-a22b", 235.09, 21.57),
        ("deepseek-v3", 671.03, 36.6),
        ("deepseek-v2-lite", 15.7, 2.45),
        ("gpt-oss-120b", 116.8, 5.1),
        ("gpt-oss-20b", 20.9, 3.6),
        ("qwen3.5-35b-a3b", 34.7, 3.0),
        ("jamba-1.5-mini", 51.6, 12.0),
        ("nemotron-nano-9b-v2", 8.89, None),
        ("kimi-linear-48b-a3b", 48.9, 3.1),
        ("minimax-m2", 228.7, 10.2),
        ("phi-4", 14.66, None),
        ("opt-125m", 0.125, None),
        ("olmoe-1b-7b", 6.92, 1.18),
    ],
)
def test_parameters_of_published_models(name: str, total: float, active: float | None) -> None:
    architecture = _named(name)
    towers = sum(tower.parameters for tower in architecture.towers)
    counted, used = parameters(architecture)
    assert (counted - towers) / 1e9 == pytest.approx(total, rel=0.015)
    if active is not None:
        assert used / 1e9 == pytest.approx(active, rel=0.06)


def test_every_catalogue_entry_reads_without_guessing() -> None:
    assert len(catalogue()) >= 30
    for name, fields in catalogue().items():
        architecture = read_architecture(fields)
        guessed = [x for x in architecture.assumptions if x.field != "mamba_ssm_dtype"]
        assert not guessed, (name, guessed)


def _kinds(architecture: Architecture) -> Counter[str]:
    names: Counter[str] = Counter()
    for layer in architecture.layers:
        match layer.mixer:
            case Attention() as a:
                names["sliding" if a.window else "chunked" if a.chunk else "full"] += 1
            case Latent():
                names["latent"] += 1
            case Recurrent() as r:
                names[r.kind] += 1
            case None:
                names["none"] += 1
    return names


@pytest.mark.parametrize(
    ("name", "kinds"),
    [
        ("gemma-3-27b", {"full": 10, "sliding": 52}),
        ("gemma-2-9b", {"full": 21, "sliding": 21}),
        ("gpt-oss-20b", {"full": 12, "sliding": 12}),
        ("llama-4-scout", {"full": 12, "chunked": 36}),
        ("mimo-v2-flash", {"full": 9, "sliding": 39}),
        ("qwen3-next-80b-a3b", {"full": 12, "gdn": 36}),
        ("kimi-linear-48b-a3b", {"latent": 7, "kda": 20}),
        ("jamba-1.5-mini", {"full": 4, "mamba1": 28}),
        ("nemotron-nano-9b-v2", {"full": 4, "mamba2": 27, "none": 25}),
        ("deepseek-v3", {"latent": 61}),
        ("mistral-7b", {"sliding": 32}),
    ],
)
def test_layers_of_each_kind(name: str, kinds: dict[str, int]) -> None:
    assert _kinds(_named(name)) == kinds


def test_shared_indexers_are_counted() -> None:
    layers = [m for m in _named("glm-5.2").attention_layers if isinstance(m, Latent)]
    assert sum(m.indexer is not None for m in layers) == 21


def test_a_list_of_layer_types_wins_over_family_rules() -> None:
    config = {
        **_PLAIN,
        "model_type": "gemma3_text",
        "sliding_window": 512,
        "layer_types": ["full_attention"] * 8,
    }
    assert _kinds(read_architecture(config)) == {"full": 8}


def test_nested_text_config_and_towers() -> None:
    vision = {"hidden_size": 1152, "num_hidden_layers": 27, "intermediate_size": 4304}
    architecture = read_architecture({"model_type": "x", "text_config": _PLAIN, "vision_config": vision})
    assert architecture.hidden == 1024
    assert architecture.towers[0].parameters == pytest.approx(0.42e9, rel=0.02)


def test_experts_by_layer() -> None:
    deepseek = _named("deepseek-v3")
    sparse = [isinstance(layer.feed_forward, ExpertBlock) for layer in deepseek.layers]
    assert sparse[:4] == [False, False, False, True]
    jamba = [isinstance(layer.feed_forward, ExpertBlock) for layer in _named("jamba-1.5-mini").layers]
    assert jamba[:4] == [False, True, False, True]


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"hidden_size": None}, "hidden_size is missing"),
        ({"num_hidden_layers": "many"}, "num_hidden_layers must be a positive whole number, not 'many'"),
        ({"model_type": None}, "model_type is missing"),
        ({"num_key_value_heads": 5}, "cannot share 5"),
        ({"layer_types": ["full_attention"] * 7}, "must list all 8 layers"),
        ({"layer_types": ["telepathy"] * 8}, "'telepathy' are not known"),
        ({"layer_types_counts": {"full_attention": 7}}, "do not add up to 8"),
        ({"model_type": "deepseek_v4"}, "compress the cache"),
        ({"compress_ratios": [4, 128]}, "compress_ratios"),
        ({"hybrid_override_pattern": "MX"}, "may hold"),
        ({"num_experts": 8}, "num_experts_per_tok is missing"),
    ],
)
def test_bad_configurations_name_the_field(change: dict[str, Any], says: str) -> None:
    with pytest.raises(BadInput, match=says):
        read_architecture({**_PLAIN, **change})


def test_what_is_assumed_is_stated() -> None:
    config = {k: v for k, v in _PLAIN.items() if k not in ("intermediate_size", "vocab_size")}
    stated = {one.field: one for one in read_architecture(config).assumptions}
    assert {one.field for one in stated.values() if one.rough} == {"intermediate_size", "vocab_size"}
    assert all(one.field in one.sentence for one in stated.values())
    assert stated["vocab_size"].value == 131_072


def test_types_and_number_formats_without_rules_are_stated_or_refused() -> None:
    stated = read_architecture({**_PLAIN, "model_type": "warp9"}).assumptions
    assert [one.field for one in stated if "warp9" in one.sentence] == ["model_type"]
    stated = read_architecture({**_PLAIN, "torch_dtype": "float8_e9"}).assumptions
    assert [one.field for one in stated if "float8_e9" in one.sentence] == ["torch_dtype"]
    assert not any(one.field == "model_type" for one in read_architecture(_PLAIN).assumptions)
    with pytest.raises(BadInput, match="quantization_config is 'fp8'"):
        read_architecture({**_PLAIN, "quantization_config": "fp8"})


def test_counts_are_spread_evenly() -> None:
    kinds = spread({"full": 2, "linear": 6}, 8)
    assert Counter(kinds) == {"full": 2, "linear": 6}
    assert kinds.index("full") < 4 <= len(kinds) - 1 - kinds[::-1].index("full")


def test_names_are_found_as_people_write_them() -> None:
    for text, name in (
        ("Qwen/Qwen3-8B", "qwen3-8b"),
        ("meta-llama/Llama-3.1-8B-Instruct", "llama-3.1-8b"),
        ("meta-llama/Meta-Llama-3.1-405B-Instruct-FP8", "llama-3.1-405b-fp8"),
        ("google/gemma-3-27b-it", "gemma-3-27b"),
        ("deepseek-ai/DeepSeek-V3.2", "deepseek-v3.2"),
    ):
        found = lookup(text)
        assert found is not None, text
        assert found[0] == name
    assert lookup("no-such-model") is None
