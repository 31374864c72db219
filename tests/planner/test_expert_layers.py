"""The table of expert layers against transformers: every mixture it knows, its parameters counted layer by layer."""

from __future__ import annotations

import json
import re
from collections import defaultdict
from collections.abc import Iterator
from importlib import import_module
from inspect import isclass
from typing import Any

import pytest
import torch
from transformers import CONFIG_MAPPING, AutoModel, AutoModelForCausalLM

from weighbridge.errors import BadInput, UnsupportedModel
from weighbridge.planner.experts.layout import mixture_parameters
from weighbridge.planner.model.config_reader import read_architecture
from weighbridge.planner.model.tensors import Kind, layer_tensors

#: Fields without a useful default, as published models have them.
FILLED: dict[str, dict[str, Any]] = {
    "deepseek_ocr2_text": {"num_experts_per_tok": 6, "mlp_layer_types": ["dense"] + ["sparse"] * 31},
    "deepseek_v2": {"num_experts_per_tok": 6},
    "dots1": {
        "n_routed_experts": 128,
        "n_shared_experts": 2,
        "num_experts_per_tok": 6,
        "first_k_dense_replace": 1,
    },
    "gemma4_text": {
        "enable_moe_block": True,
        "num_experts": 128,
        "top_k_experts": 8,
        "moe_intermediate_size": 704,
    },
    "hunyuan_v1_moe": {"num_experts": 16, "moe_topk": 2, "head_dim": 128},
    "lfm2_moe": {"layer_types": ["conv", "full_attention"] * 16},
    "qwen4_exp_text": {"indexer_n_heads": 32, "indexer_kv_heads": 1, "indexer_head_dim": 128},
}
COMPOSITES = {"deepseek_ocr2", "qwen4_exp"}
#: Types with expert fields that are no language model, or none that stands alone.
OTHERS = {
    "dots3_note_vision_encoder",
    "qwen3_omni_moe_talker",
    "qwen3_omni_moe_talker_text",
    "vitpose_backbone",
}


def _filled(name: str) -> dict[str, Any]:
    """What to add to the defaults, also where the language model is a part."""
    inner = FILLED.get(f"{name}_text")
    return FILLED.get(name, {} if inner is None or name not in COMPOSITES else {"text_config": inner})


def _text(config: Any) -> Any:
    """The configuration of the language model inside."""
    for name in ("thinker_config", "text_config", "llm_config", "language_config"):
        if getattr(config, name, None) is not None:
            return _text(getattr(config, name))
    return config


def _is_mixture(fields: dict[str, Any]) -> bool:
    return any("expert" in name and type(value) is int and value > 1 for name, value in fields.items())


def _mixtures() -> Iterator[tuple[str, Any]]:
    for name in sorted(CONFIG_MAPPING):
        try:
            config = CONFIG_MAPPING[name](**_filled(name))
        except Exception:
            continue  # a composite that has to be told its parts, each of which is here on its own
        if name not in OTHERS and (_is_mixture(config.to_dict()) or _is_mixture(_text(config).to_dict())):
            yield name, config


MIXTURES = dict(_mixtures())
#: What is not planned. Whatever is not in this list is counted.
REFUSED = {
    "bailing_hybrid", "deepseek_v4", "ernie4_5_vl_moe", "ernie4_5_vl_moe_text", "glm5_next", "glm5_next_text",
    "jetmoe", "longcat_flash", "nllb-moe", "switch_transformers", "unlimited_ocr", "unlimited_ocr_text",
}  # fmt: skip


def _fields(config: Any) -> dict[str, Any]:
    """The configuration as it stands in config.json."""
    fields: dict[str, Any] = json.loads(json.dumps(config.to_dict(), default=str))
    return fields


def _model(config: Any) -> Any:
    """The language model without any weights."""
    with torch.device("meta"):
        for auto in (AutoModelForCausalLM, AutoModel):
            if type(config) in auto._model_mapping:
                return auto.from_config(config)
        module = import_module(type(config).__module__.replace("configuration_", "modeling_"))
        models = [
            value
            for name, value in vars(module).items()
            if isclass(value)
            and getattr(value, "config_class", None) is type(config)
            and "PreTrained" not in name
        ]
        return min(models, key=lambda model: len(model.__name__))(config)


def _counted(config: Any) -> dict[int, tuple[int, int]]:
    """Elements of routed and of shared experts in each layer."""
    found: dict[int, list[int]] = defaultdict(lambda: [0, 0])
    for name, parameter in _model(config).named_parameters():
        layer = re.search(r"layers?\.(\d+)\.(.*)", name)
        if layer is None:
            continue
        here, part = found[int(layer[1])], layer[2]
        if part.endswith(("bias", "norm.weight")):
            continue
        if "shared" in part and not part.endswith("gate.weight"):
            here[1] += parameter.numel()
        elif re.search(r"(^|\.)experts\.|mlp\.(input|output)_linear", part):
            here[0] += parameter.numel()
    return {layer: (routed, shared) for layer, (routed, shared) in found.items()}


def _tabled(fields: dict[str, Any]) -> dict[int, tuple[int, int]]:
    """The same by the planner's table."""
    architecture = read_architecture(fields)
    kinds = [
        {
            kind: sum(t.elements for t in layer_tensors(layer, index, architecture.hidden) if t.kind is kind)
            for kind in Kind
        }
        for index, layer in enumerate(architecture.layers)
    ]
    return {index: (sums[Kind.EXPERT], sums[Kind.SHARED]) for index, sums in enumerate(kinds)}


def test_there_are_many() -> None:
    assert len(MIXTURES) > 60


@pytest.mark.parametrize("name", sorted(set(MIXTURES) - REFUSED))
def test_experts_are_where_transformers_has_them(name: str) -> None:
    config = MIXTURES[name]
    assert _tabled(_fields(config)) == _counted(_text(config))


@pytest.mark.parametrize("name", sorted(REFUSED))
def test_what_is_not_counted_is_refused_by_its_name(name: str) -> None:
    config = MIXTURES[name]
    with pytest.raises(UnsupportedModel, match=f"{_text(config).model_type!r} is not planned: it"):
        read_architecture(_fields(config))


# -- families written by hand, where transformers' defaults do not go ---------------------------------------

BASE = {
    "hidden_size": 64,
    "num_hidden_layers": 8,
    "num_attention_heads": 4,
    "vocab_size": 1000,
    "intermediate_size": 256,
    "moe_intermediate_size": 32,
    "num_experts_per_tok": 2,
}


@pytest.mark.parametrize(
    ("fields", "sparse"),
    [
        ({"model_type": "llama4_text", "num_local_experts": 4, "interleave_moe_layer_step": 2}, (1, 3, 5, 7)),
        ({"model_type": "deepseek_v2", "n_routed_experts": 4, "first_k_dense_replace": 3}, (3, 4, 5, 6, 7)),
        (
            {
                "model_type": "deepseek_v2",
                "n_routed_experts": 4,
                "first_k_dense_replace": 1,
                "moe_layer_freq": 2,
            },
            (2, 4, 6),
        ),
        ({"model_type": "lfm2_moe", "num_experts": 4, "num_dense_layers": 2}, (2, 3, 4, 5, 6, 7)),
        (
            {
                "model_type": "ernie4_5_moe",
                "moe_num_experts": 4,
                "moe_k": 2,
                "moe_layer_start_index": 1,
                "moe_layer_end_index": 6,
                "moe_layer_interval": 2,
            },
            (1, 3, 5),
        ),
        (
            {"model_type": "qwen2_moe", "num_experts": 4, "decoder_sparse_step": 2, "mlp_only_layers": [3]},
            (1, 5, 7),
        ),
        (
            {"model_type": "jamba", "num_experts": 4, "expert_layer_period": 3, "expert_layer_offset": 1},
            (1, 4, 7),
        ),
        (
            {
                "model_type": "glm4_moe_lite",
                "num_experts": 4,
                "mlp_layer_types": ["dense"] * 6 + ["sparse"] * 2,
            },
            (6, 7),
        ),
    ],
)
def test_sparse_layers_are_read_in_every_way_of_saying_it(
    fields: dict[str, Any], sparse: tuple[int, ...]
) -> None:
    assert mixture_parameters(read_architecture({**BASE, **fields})).sparse == sparse


def test_numbers_of_each_layer_have_to_be_alike() -> None:
    hunyuan = {
        **BASE,
        "model_type": "hunyuan_v1_moe",
        "num_experts": 4,
        "moe_topk": [2] * 8,
        "num_shared_expert": [1] * 8,
    }
    shape = read_architecture(hunyuan)
    assert mixture_parameters(shape).top_k == 2
    with pytest.raises(UnsupportedModel, match="moe_topk"):
        read_architecture({**hunyuan, "moe_topk": [2, 1] * 4})


def test_maverick_has_as_many_parameters_as_its_plan() -> None:
    """400 billion, of which 17 are active (Meta's model card), with a shared expert in each mixture."""
    maverick = {
        "model_type": "llama4_text",
        "hidden_size": 5120,
        "num_hidden_layers": 48,
        "num_attention_heads": 40,
        "num_key_value_heads": 8,
        "head_dim": 128,
        "vocab_size": 202_048,
        "intermediate_size": 8192,
        "intermediate_size_mlp": 16_384,
        "num_local_experts": 128,
        "num_experts_per_tok": 1,
        "interleave_moe_layer_step": 2,
        "max_position_embeddings": 1_048_576,
    }
    counted = mixture_parameters(read_architecture(maverick))
    assert counted.total / 1e9 == pytest.approx(400.7, abs=0.1)
    assert counted.active / 1e9 == pytest.approx(17.2, abs=0.2)
    scout = mixture_parameters(
        read_architecture({**maverick, "num_local_experts": 16, "interleave_moe_layer_step": 1})
    )
    assert scout.total / 1e9 == pytest.approx(107.8, abs=0.1)
    assert scout.active / 1e9 == pytest.approx(17.2, abs=0.2)


def test_a_dense_model_has_no_table() -> None:
    with pytest.raises(BadInput, match="dense model"):
        mixture_parameters(read_architecture({**BASE, "model_type": "llama"}))
