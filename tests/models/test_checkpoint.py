"""Hugging Face directories: configurations against transformers' own, safetensors whole and damaged."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from safetensors.torch import load_file, save_file

from tests.tiny import FAMILIES, make_tiny
from weighbridge.errors import BadInput, UnsupportedModel
from weighbridge.models.compute.rope import cos_sin_table
from weighbridge.models.files.checkpoint import open_checkpoint, open_safetensors
from weighbridge.models.files.hf_config import read_config

SMALL = {
    "hidden_size": 64,
    "num_attention_heads": 4,
    "num_hidden_layers": 4,
    "intermediate_size": 96,
    "vocab_size": 99,
}


@pytest.fixture
def directory(tmp_path: Path) -> Path:
    return make_tiny("llama", tmp_path / "llama", num_hidden_layers=2)


def config_of(tmp_path: Path, **fields: Any) -> Any:
    (tmp_path / "config.json").write_text(json.dumps({**SMALL, **fields}))
    return read_config(tmp_path)


@pytest.mark.parametrize("family", ["llama", "mistral", "qwen2", "qwen3", "smollm3"])
def test_defaults_are_those_of_transformers(tmp_path: Path, family: str) -> None:
    """A sparse config.json means what transformers takes it to mean."""
    ours = config_of(tmp_path, model_type=family, hidden_size=512, num_attention_heads=32)
    theirs = transformers.AutoConfig.from_pretrained(tmp_path)
    assert ours.max_position_embeddings == theirs.max_position_embeddings
    assert ours.rms_norm_eps == theirs.rms_norm_eps
    assert ours.num_kv_heads == theirs.num_key_value_heads
    assert ours.head_dim == (getattr(theirs, "head_dim", None) or 16)
    assert ours.tie_word_embeddings == theirs.tie_word_embeddings
    assert ours.rope.theta == theirs.rope_parameters["rope_theta"]
    assert ours.sliding_windows == ((theirs.sliding_window,) * 4 if family == "mistral" else (0,) * 4)


ROPES = {
    "linear": {"rope_type": "linear", "factor": 3.0},
    "llama3": {
        "rope_type": "llama3",
        "factor": 8.0,
        "low_freq_factor": 1.0,
        "high_freq_factor": 4.0,
        "original_max_position_embeddings": 128,
    },
    "yarn": {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 128},
    "yarn tuned": {
        "rope_type": "yarn",
        "factor": 4.0,
        "original_max_position_embeddings": 128,
        "attention_factor": 1.5,
        "beta_fast": 16.0,
        "beta_slow": 2.0,
    },
    "yarn without original": {"rope_type": "yarn", "factor": 2.0},
}


@pytest.mark.parametrize("name", ROPES)
@pytest.mark.parametrize("style", ["rope_parameters", "rope_scaling", "type"])
def test_rope_variants_equal_transformers(tmp_path: Path, name: str, style: str) -> None:
    """Both spellings of the same rule, the one before transformers 5 with its theta outside."""
    rope, theta = dict(ROPES[name]), 50_000.0
    if style == "type":
        rope["type"] = rope.pop("rope_type")
    fields = (
        {"rope_parameters": {**rope, "rope_theta": theta}}
        if style == "rope_parameters"
        else {"rope_scaling": rope, "rope_theta": theta}
    )
    ours = config_of(tmp_path, model_type="llama", max_position_embeddings=512, **fields)
    theirs = transformers.AutoConfig.from_pretrained(tmp_path)
    oracle = transformers.models.llama.modeling_llama.LlamaRotaryEmbedding(theirs)
    cos, sin = oracle(torch.zeros(1), torch.arange(512)[None])
    expected = torch.cat([cos[0, :, :8], sin[0, :, :8]], dim=1)
    torch.testing.assert_close(cos_sin_table(ours.rope, ours.head_dim, 512), expected, atol=1e-4, rtol=0)


@pytest.mark.parametrize(
    ("fields", "windows"),
    [
        ({"model_type": "mistral", "sliding_window": 7}, (7,) * 4),
        ({"model_type": "mistral", "sliding_window": None}, (0,) * 4),
        ({"model_type": "qwen2", "sliding_window": 7}, (0,) * 4),
        ({"model_type": "qwen2", "sliding_window": 7, "use_sliding_window": True}, (0,) * 4),
        (
            {"model_type": "qwen2", "sliding_window": 7, "use_sliding_window": True, "max_window_layers": 3},
            (0, 0, 0, 7),
        ),
        (
            {
                "model_type": "qwen3",
                "sliding_window": 7,
                "use_sliding_window": True,
                "layer_types": ["sliding_attention", "full_attention"] * 2,
            },
            (7, 0, 7, 0),
        ),
        ({"model_type": "smollm3", "sliding_window": 7, "use_sliding_window": True}, (0, 0, 0, 7)),
        ({"model_type": "llama", "sliding_window": 7}, (0,) * 4),
        ({"model_type": "gemma3_text", "sliding_window": 7}, (7,) * 4),
        ({"model_type": "gemma3_text", "sliding_window": 7, "sliding_window_pattern": 2}, (7, 0, 7, 0)),
    ],
)
def test_sliding_windows(tmp_path: Path, fields: dict[str, Any], windows: tuple[int, ...]) -> None:
    assert config_of(tmp_path, num_key_value_heads=2, **fields).sliding_windows == windows


def test_gemma_of_either_age_of_its_configuration_is_the_same(tmp_path: Path) -> None:
    """transformers 5 has the rotary parameters by kinds of layers; before it they were three fields."""
    old = config_of(
        tmp_path,
        model_type="gemma3_text",
        rope_theta=900_000.0,
        rope_local_base_freq=9_000.0,
        rope_scaling={"factor": 8.0, "rope_type": "linear"},
    )
    parameters = {
        "full_attention": {"rope_type": "linear", "factor": 8.0, "rope_theta": 900_000.0},
        "sliding_attention": {"rope_type": "default", "rope_theta": 9_000.0},
    }
    new = config_of(tmp_path, model_type="gemma3_text", rope_parameters=parameters)
    assert new == old
    assert (new.rope.theta, new.rope.factor) == (900_000.0, 8.0)
    assert new.local_rope is not None
    assert (new.local_rope.theta, new.local_rope.scaling) == (9_000.0, None)


def test_smollm3_rotates_where_its_list_of_exceptions_has_a_one(tmp_path: Path) -> None:
    assert config_of(tmp_path, model_type="smollm3").rotary_layers == (True, True, True, False)
    named = config_of(tmp_path, model_type="smollm3", no_rope_layers=[0, 1, 1, 0])
    assert named.rotary_layers == (False, True, True, False)
    with pytest.raises(BadInput, match="each of the 4 layers"):
        config_of(tmp_path, model_type="smollm3", no_rope_layers=[0, 1])


@pytest.mark.parametrize(
    ("fields", "words"),
    [
        ({"model_type": "gpt_oss"}, "gpt_oss"),
        ({}, "None"),
        ({"model_type": ["llama"]}, "llama"),
        ({"model_type": "llama", "hidden_act": "gelu"}, "gelu"),
        ({"model_type": "llama", "rope_scaling": {"type": "dynamic", "factor": 2.0}}, "dynamic"),
        ({"model_type": "llama", "partial_rotary_factor": 0.5}, "partial"),
        ({"model_type": "gemma3_text", "final_logit_softcapping": 30.0}, "final_logit_softcapping"),
        ({"model_type": "gemma3_text", "use_bidirectional_attention": True}, "bidirectional"),
        ({"model_type": "gemma3_text", "hidden_activation": "relu"}, "relu"),
        ({"model_type": "llama", "quantization_config": {"quant_method": "bitsandbytes"}}, "bitsandbytes"),
        (
            {"model_type": "llama", "rope_scaling": {"type": "yarn", "factor": 2.0, "mscale": 0.7}},
            "mscale",
        ),
        (
            {"model_type": "qwen3", "use_sliding_window": True, "layer_types": ["linear_attention"] * 4},
            "linear_attention",
        ),
    ],
)
def test_unsupported_is_named(tmp_path: Path, fields: dict[str, Any], words: str) -> None:
    with pytest.raises(UnsupportedModel, match=words):
        config_of(tmp_path, **fields)


@pytest.mark.parametrize(
    ("field", "value"),
    [("hidden_size", None), ("vocab_size", "99"), ("num_hidden_layers", -1), ("hidden_size", True)],
)
def test_nonsense_in_the_configuration_is_named(tmp_path: Path, field: str, value: object) -> None:
    with pytest.raises(BadInput, match=field):
        config_of(tmp_path, model_type="llama", **{field: value})


def test_key_value_heads_must_divide(tmp_path: Path) -> None:
    with pytest.raises(BadInput, match="4 attention heads cannot share 3"):
        config_of(tmp_path, model_type="llama", num_key_value_heads=3)


def test_end_ids_of_both_files(tmp_path: Path) -> None:
    (tmp_path / "generation_config.json").write_text('{"eos_token_id": [7, 8]}')
    assert config_of(tmp_path, model_type="llama", eos_token_id=9).eos_token_ids == (7, 8, 9)


@pytest.mark.parametrize("family", FAMILIES)
def test_tensors_are_those_in_the_file(family: str, tmp_path: Path) -> None:
    directory = make_tiny(family, tmp_path / "m", num_hidden_layers=1)
    checkpoint = open_checkpoint(directory)
    expected = load_file(directory / "model.safetensors")
    assert set(checkpoint.names()) == set(expected)
    for name, tensor in expected.items():
        assert torch.equal(checkpoint.tensor(name), tensor)
        assert checkpoint.blocks(name) is None


def test_shards_and_types(directory: Path) -> None:
    tensors = load_file(directory / "model.safetensors")
    whole = dict(tensors)
    (directory / "model.safetensors").unlink()
    names = sorted(tensors)
    tensors[names[0]] = tensors[names[0]].bfloat16()
    shards = {"a.safetensors": names[:5], "b.safetensors": names[5:]}
    for file, part in shards.items():
        save_file({name: tensors[name].contiguous() for name in part}, directory / file)
    index = {"weight_map": {name: file for file, part in shards.items() for name in part}}
    (directory / "model.safetensors.index.json").write_text(json.dumps(index))
    checkpoint = open_checkpoint(directory)
    assert checkpoint.tensor(names[0]).dtype == torch.bfloat16
    assert all(torch.equal(checkpoint.tensor(name), whole[name]) for name in names[1:])
    (directory / "b.safetensors").unlink()
    with pytest.raises(BadInput, match=r"b\.safetensors"):
        open_checkpoint(directory)
    (directory / "model.safetensors.index.json").write_text('{"weight_map": {"x": 5}}')
    with pytest.raises(BadInput, match="weight_map"):
        open_checkpoint(directory)


def test_index_cannot_reach_outside(directory: Path) -> None:
    (directory.parent / "secret.safetensors").touch()
    index = {"weight_map": {"x": "../secret.safetensors"}}
    (directory / "model.safetensors.index.json").write_text(json.dumps(index))
    with pytest.raises(BadInput, match="not there"):
        open_checkpoint(directory)


def test_pickles_are_never_opened(directory: Path) -> None:
    (directory / "model.safetensors").unlink()
    (directory / "pytorch_model.bin").write_bytes(b"cos\nsystem\n(S'exit 1'\ntR.")
    with pytest.raises(BadInput, match=r"pytorch_model\.bin is a pickle.*save_pretrained"):
        open_checkpoint(directory)


def test_damage_is_named(directory: Path) -> None:
    file = directory / "model.safetensors"
    data = file.read_bytes()
    for damaged in (data[: len(data) // 2], data[:4], b"\xff" * 100):
        file.write_bytes(damaged)
        with pytest.raises(BadInput, match=r"not a complete safetensors file"):
            open_checkpoint(directory)
    file.unlink()
    file.mkdir()
    with pytest.raises(BadInput, match=r"model\.safetensors cannot be read: Is a directory"):
        open_safetensors(file)


def test_odd_names_are_named(directory: Path) -> None:
    with pytest.raises(BadInput, match="no tensor 'y'"):
        open_checkpoint(directory).tensor("y")


def test_fingerprint_follows_the_files(directory: Path) -> None:
    before = open_checkpoint(directory).fingerprint()
    assert open_checkpoint(directory).fingerprint() == before
    config = directory / "config.json"
    config.write_text(config.read_text() + "\n")
    assert open_checkpoint(directory).fingerprint() != before


def test_what_is_no_model_is_named(tmp_path: Path) -> None:
    with pytest.raises(BadInput, match="does not exist"):
        open_checkpoint(tmp_path / "nothing")
    with pytest.raises(BadInput, match=r"has no config\.json"):
        open_checkpoint(tmp_path)
    (tmp_path / "x.bin").touch()
    with pytest.raises(BadInput, match="neither"):
        open_checkpoint(tmp_path / "x.bin")
    (tmp_path / "config.json").write_text("[1]")
    with pytest.raises(BadInput, match="JSON object"):
        open_checkpoint(tmp_path)
