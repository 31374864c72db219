"""Adapter directories that are not what they should be: one sentence says what is wrong, before weights are read."""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file, save_file

from tests.tiny import make_tiny
from tests.tiny_lora import PREFIX, make_lora
from weighbridge.errors import BadInput
from weighbridge.models.adapters.named import NamedAdapter, parse_adapter
from weighbridge.models.adapters.peft_config import lora_config
from weighbridge.models.adapters.peft_file import MatrixShape, open_adapter
from weighbridge.models.any_model import open_model
from weighbridge.models.files.fields import Fields

Tensors = dict[str, torch.Tensor]
Q = f"{PREFIX}model.layers.0.self_attn.q_proj"

#: What a configuration says, and words of the refusal.
CONFIGS: dict[str, tuple[dict[str, Any], str]] = {
    "another method": ({"peft_type": "IA3"}, "peft_type is 'IA3': only LoRA"),
    "no method": ({"peft_type": None}, "peft_type is missing"),
    "another task": ({"task_type": "SEQ_CLS"}, "task_type is 'SEQ_CLS'"),
    "DoRA": ({"use_dora": True}, "use_dora is True: DoRA"),
    "whole modules": ({"modules_to_save": ["lm_head"]}, "modules_to_save"),
    "biases": ({"bias": "all"}, "bias is 'all'"),
    "biases of adapters": ({"bias": "lora_only"}, "bias is 'lora_only'"),
    "a bias of B": ({"lora_bias": True}, "lora_bias"),
    "PiSSA": ({"init_lora_weights": "pissa_niter_4"}, "init_lora_weights is 'pissa_niter_4'"),
    "OLoRA": ({"init_lora_weights": "olora"}, "path_initial_model_for_weight_conversion"),
    "repeated layers": ({"layer_replication": [[0, 2], [1, 3]]}, "layer_replication"),
    "parameters": ({"target_parameters": ["experts.gate_up_proj"]}, "target_parameters"),
    "tokens": ({"trainable_token_indices": [1, 2]}, "trainable_token_indices"),
    "activated": ({"alora_invocation_tokens": [3]}, "alora_invocation_tokens"),
    "turned round": ({"fan_in_fan_out": True}, "fan_in_fan_out"),
    "something new": ({"use_tomorrows_idea": 3}, "'use_tomorrows_idea' is 3, which nobody here knows"),
    "alpha NaN": ({"lora_alpha": math.nan}, "lora_alpha is nan, not a number that can be used"),
    "alpha infinite": ({"lora_alpha": math.inf}, "lora_alpha is inf"),
    "alpha missing": ({"lora_alpha": None}, "lora_alpha is missing"),
    "alpha a word": ({"lora_alpha": "much"}, "lora_alpha"),
    "rank 0": ({"r": 0}, "r must be a positive whole number"),
    "rank a list": ({"r": [4]}, "r must be a positive whole number"),
    "rank without end": ({"r": 10**30}, "r is"),
    "another rank": ({"r": 8}, "has shape [4, 64], not [8, 64]"),
    "ranks by expression": ({"rank_pattern": {"(a+)+$": 4}}, "regular expressions of a file are not run"),
    "ranks of no number": ({"rank_pattern": {"q_proj": "x"}}, "rank_pattern"),
    "ranks in a list": ({"rank_pattern": [4]}, "rank_pattern must be an object"),
    "alphas of no number": ({"alpha_pattern": {"q_proj": math.nan}}, "alpha_pattern"),
    "alpha without end": ({"lora_alpha": 10**400}, "lora_alpha"),
    "alphas without end": ({"alpha_pattern": {"q_proj": 10**400}}, "alpha_pattern"),
    "targets without end": ({"target_modules": ["q_proj"] * 10_001}, "target_modules has 10001 entries"),
}
#: What is done to the tensors, and words of the refusal.
TENSORS: dict[str, tuple[Callable[[Tensors], None], str]] = {
    "none": (lambda t: t.clear(), "has no tensors"),
    "a side missing": (
        lambda t: void(t.pop(f"{Q}.lora_B.weight")),
        "has no lora_B of 'model.layers.0.self_attn.q_proj'",
    ),
    "a module missing": (
        lambda t: [t.pop(f"{Q}.lora_{side}.weight") for side in "AB"] and None,
        "which its target_modules name",
    ),
    "another module": (lambda t: renamed(t, "q_proj", "w_proj"), "has no linear layer of that name"),
    "a layer too many": (lambda t: renamed(t, "layers.0", "layers.7"), "has no linear layer of that name"),
    "the output matrix": (
        lambda t: t.update({f"{PREFIX}lm_head.lora_A.weight": torch.ones(4, 64)}),
        "adds to 'lm_head'",
    ),
    "an embedding": (
        lambda t: t.update({f"{PREFIX}model.embed_tokens.lora_embedding_A": torch.ones(4, 64)}),
        "an embedding's",
    ),
    "DoRA's vector": (lambda t: t.update({f"{Q}.lora_magnitude_vector": torch.ones(64)}), "part of DoRA"),
    "a bias": (lambda t: t.update({f"{Q}.lora_B.bias": torch.ones(64)}), "a bias"),
    "a foreign tensor": (lambda t: t.update({"x" * 5000: torch.ones(1)}), "no matrix of a linear layer"),
    "twice": (lambda t: t.update({f"{Q}.lora_A.default.weight": t[f"{Q}.lora_A.weight"].clone()}), "twice"),
    "another width": (lambda t: reshaped(t, "A", (4, 65)), "has shape [4, 65], not [4, 64]"),
    "another height": (lambda t: reshaped(t, "B", (63, 4)), "has shape [63, 4], not [64, 4]"),
    "turned": (lambda t: reshaped(t, "A", (64, 4)), "has shape [64, 4]"),
    "flat": (lambda t: reshaped(t, "A", (256,)), "has shape [256]"),
    "nothing in it": (lambda t: reshaped(t, "A", (0, 64)), "has shape [0, 64]"),
    "whole numbers": (
        lambda t: t.update({f"{Q}.lora_A.weight": torch.ones(4, 64, dtype=torch.int8)}),
        "has type I8",
    ),
    "doubles": (
        lambda t: t.update({f"{Q}.lora_A.weight": torch.ones(4, 64, dtype=torch.float64)}),
        "has type F64",
    ),
}


def void(value: object) -> None:
    pass


def renamed(tensors: Tensors, old: str, new: str) -> None:
    for name in [name for name in tensors if old in name]:
        tensors[name.replace(old, new)] = tensors.pop(name)


def reshaped(tensors: Tensors, side: str, shape: tuple[int, ...]) -> None:
    tensors[f"{Q}.lora_{side}.weight"] = torch.ones(shape)


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_tiny("llama", tmp_path_factory.mktemp("tiny") / "base", num_hidden_layers=2)


@pytest.fixture(scope="module")
def modules(base: Path) -> dict[str, MatrixShape]:
    return dict(open_model(base).adaptable())


@pytest.fixture(scope="module")
def good(base: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    model = transformers.AutoModelForCausalLM.from_pretrained(base)
    return make_lora(model, tmp_path_factory.mktemp("good") / "lora", ("q_proj", "v_proj"))


def copied(good: Path, directory: Path, **fields: Any) -> Path:
    directory.mkdir(exist_ok=True)
    config = json.loads((good / "adapter_config.json").read_text())
    (directory / "adapter_config.json").write_text(json.dumps({**config, **fields}))
    (directory / "adapter_model.safetensors").write_bytes((good / "adapter_model.safetensors").read_bytes())
    return directory


@pytest.mark.parametrize("what", CONFIGS)
def test_a_configuration_that_is_not_computed(what: str, good: Path, modules: Any, tmp_path: Path) -> None:
    fields, words = CONFIGS[what]
    with pytest.raises(BadInput) as refusal:
        open_adapter(copied(good, tmp_path / "lora", **fields), modules, 16)
    assert words in str(refusal.value)
    assert len(str(refusal.value)) < 700


@pytest.mark.parametrize("what", TENSORS)
def test_tensors_that_are_not_the_models(what: str, good: Path, modules: Any, tmp_path: Path) -> None:
    change, words = TENSORS[what]
    directory = copied(good, tmp_path / "lora")
    tensors = load_file(directory / "adapter_model.safetensors")
    change(tensors)
    save_file(tensors, directory / "adapter_model.safetensors")
    with pytest.raises(BadInput) as refusal:
        open_adapter(directory, modules, 16)
    assert words in str(refusal.value)
    assert len(str(refusal.value)) < 900


def test_a_rank_above_the_bound(good: Path, modules: Any) -> None:
    with pytest.raises(BadInput, match="its rank is 4, more than --max-lora-rank 2"):
        open_adapter(good, modules, 2)


@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_what_is_no_number_is_refused_when_it_is_read(
    value: float, good: Path, modules: Any, tmp_path: Path
) -> None:
    directory = copied(good, tmp_path / "lora")
    tensors = load_file(directory / "adapter_model.safetensors")
    tensors[f"{Q}.lora_B.weight"][3, 2] = value
    save_file(tensors, directory / "adapter_model.safetensors")
    with pytest.raises(BadInput, match="holds NaN or infinity in float32"):
        open_adapter(directory, modules, 16).read(torch.float32)


def test_a_scale_that_overflows(good: Path, modules: Any, tmp_path: Path) -> None:
    directory = copied(good, tmp_path / "lora", lora_alpha=3e38)
    tensors = load_file(directory / "adapter_model.safetensors")
    tensors[f"{Q}.lora_B.weight"] *= 1e6
    save_file(tensors, directory / "adapter_model.safetensors")
    with pytest.raises(BadInput, match="or its scale is too large"):
        open_adapter(directory, modules, 16).read(torch.bfloat16)


def test_a_pickle_is_named_and_never_opened(good: Path, modules: Any, tmp_path: Path) -> None:
    directory = copied(good, tmp_path / "lora")
    (directory / "adapter_model.safetensors").unlink()
    (directory / "adapter_model.bin").write_bytes(b"\x80\x04not looked at")
    with pytest.raises(BadInput, match="never opened: convert the adapter with PEFT"):
        open_adapter(directory, modules, 16)


def test_files_that_are_missing_or_cut(good: Path, modules: Any, tmp_path: Path) -> None:
    with pytest.raises(BadInput, match="is no directory"):
        open_adapter(tmp_path / "nowhere", modules, 16)
    directory = copied(good, tmp_path / "lora")
    file = directory / "adapter_model.safetensors"
    file.write_bytes(file.read_bytes()[:-8])
    with pytest.raises(BadInput, match="not a complete safetensors file"):
        open_adapter(directory, modules, 16)
    file.unlink()
    with pytest.raises(BadInput, match=r"has no adapter_model\.safetensors"):
        open_adapter(directory, modules, 16)
    (directory / "adapter_config.json").unlink()
    with pytest.raises(BadInput, match=r"has no adapter_config\.json"):
        open_adapter(directory, modules, 16)


def test_contents_give_the_fingerprint(good: Path, modules: Any, tmp_path: Path) -> None:
    """The same ones elsewhere have the same; another scale has another."""
    first = open_adapter(good, modules, 16).fingerprint
    assert open_adapter(copied(good, tmp_path / "same"), modules, 16).fingerprint == first
    assert open_adapter(copied(good, tmp_path / "other", lora_alpha=9), modules, 16).fingerprint != first


_JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=8), inner, max_size=3),
    max_leaves=6,
)
_NAMES = (
    "r",
    "lora_alpha",
    "rank_pattern",
    "alpha_pattern",
    "use_rslora",
    "bias",
    "init_lora_weights",
    "target_modules",
)


@given(st.dictionaries(st.sampled_from(_NAMES) | st.text(max_size=6), _JSON, max_size=5))
@settings(max_examples=150)
def test_any_configuration_is_read_or_refused(fields: dict[str, Any]) -> None:
    try:
        config = lora_config(Fields({"peft_type": "LORA", "r": 4, "lora_alpha": 8, **fields}))
    except BadInput:  # which has a sentence for it
        return
    assert 1 <= config.rank_of("model.layers.0.self_attn.q_proj") <= 4096
    assert math.isfinite(config.scale_of("model.layers.0.self_attn.q_proj"))


def test_names_on_the_command_line() -> None:
    named = parse_adapter("org/ada:v2=/some/where=odd")
    assert named == NamedAdapter("org/ada:v2", Path("/some/where=odd"))
    assert parse_adapter(str(named)) == named
    for wrong in ("ada", "=dir", "ada=", "a b=dir", "a\n=dir", "x" * 201 + "=dir"):
        with pytest.raises(BadInput):
            parse_adapter(wrong)
