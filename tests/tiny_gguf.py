"""Tiny models as GGUF files, written the way llama.cpp's converter writes them."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import gguf
import numpy as np
from gguf import GGMLQuantizationType, GGUFWriter
from safetensors.numpy import load_file
from tokenizers import Tokenizer

NORMAL, CONTROL, USER_DEFINED = 1, 3, 4

_ARCHITECTURES = {"mistral": "llama", "gemma3_text": "gemma3"}
_PERMUTED = ("llama", "smollm3")


def write_gguf(
    directory: Path,
    path: Path,
    kind: GGMLQuantizationType = GGMLQuantizationType.F32,
    pre: str = "gpt-2",
    kinds: dict[str, GGMLQuantizationType] | None = None,
    **metadata: Any,
) -> Path:
    """The transformers model in `directory` as a GGUF file; matrices as `kind`, vectors as float32.

    kinds: types of the matrices whose name has that word in it, instead of `kind`.
    `metadata` are more keys under the architecture's prefix, with "__" for the dot.
    """
    config = json.loads((directory / "config.json").read_text())
    architecture = _ARCHITECTURES.get(config["model_type"], config["model_type"])
    writer = GGUFWriter(path, architecture)
    write_shape(writer, config)
    for key, value in metadata.items():
        name = f"{architecture}.{key.replace('__', '.')}"
        {str: writer.add_string, int: writer.add_uint32, float: writer.add_float32}[type(value)](name, value)
    _write_tensors(writer, directory, config, architecture, lambda name: _kind_of(name, kinds or {}, kind))
    write_byte_level(writer, Tokenizer.from_file(str(directory / "tokenizer.json")), pre)
    writer.add_chat_template((directory / "chat_template.jinja").read_text())
    finish(writer)
    return path


def finish(writer: GGUFWriter) -> None:
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def write_shape(writer: GGUFWriter, config: dict[str, Any]) -> None:
    heads = config["num_attention_heads"]
    head_dim = config.get("head_dim") or config["hidden_size"] // heads
    writer.add_block_count(config["num_hidden_layers"])
    writer.add_context_length(config["max_position_embeddings"])
    writer.add_embedding_length(config["hidden_size"])
    writer.add_feed_forward_length(config["intermediate_size"])
    writer.add_head_count(heads)
    writer.add_head_count_kv(config["num_key_value_heads"])
    writer.add_key_length(head_dim)
    writer.add_value_length(head_dim)
    writer.add_rope_dimension_count(head_dim)
    writer.add_layer_norm_rms_eps(config["rms_norm_eps"])
    rope = config["rope_parameters"].get("full_attention", config["rope_parameters"])
    writer.add_rope_freq_base(rope["rope_theta"])
    if "full_attention" in config["rope_parameters"]:
        writer.add_rope_scaling_type(gguf.RopeScalingType.LINEAR)
        writer.add_rope_scaling_factor(rope["factor"])
    if config.get("sliding_window"):
        writer.add_sliding_window(config["sliding_window"])


def _write_tensors(
    writer: GGUFWriter,
    directory: Path,
    config: dict[str, Any],
    architecture: str,
    kind_of: Callable[[str], GGMLQuantizationType],
) -> None:
    model = getattr(gguf.MODEL_ARCH, architecture.upper())
    names = gguf.get_tensor_name_map(model, config["num_hidden_layers"])
    heads = {"q_proj": config["num_attention_heads"], "k_proj": config["num_key_value_heads"]}
    for name, values in load_file(directory / "model.safetensors").items():
        theirs = names.get_name(name, try_suffixes=(".weight", ".bias"))
        projection = name.split(".")[-2]
        if architecture in _PERMUTED and projection in heads:
            values = permute(values, heads[projection])
        if architecture == "gemma3" and "norm" in name:
            values = values + 1
        stored = kind_of(name) if values.ndim == 2 else GGMLQuantizationType.F32
        writer.add_tensor(theirs, gguf.quants.quantize(values, stored), raw_dtype=stored)
    divisors = llama3_divisors(config)
    if divisors is not None:
        writer.add_tensor("rope_freqs.weight", divisors)


def _kind_of(
    name: str, kinds: dict[str, GGMLQuantizationType], otherwise: GGMLQuantizationType
) -> GGMLQuantizationType:
    return next((kind for word, kind in kinds.items() if word in name), otherwise)


def permute(values: np.ndarray, heads: int) -> np.ndarray:
    """From halves of a head side by side to pairs side by side, as llama.cpp rotates them."""
    return (
        values.reshape(heads, 2, len(values) // heads // 2, *values.shape[1:])
        .swapaxes(1, 2)
        .reshape(values.shape)
    )


def llama3_divisors(config: dict[str, Any]) -> np.ndarray | None:
    """Llama 3.1's rule as a divisor of each frequency: how GGUF has it."""
    rope = config["rope_parameters"]
    if rope.get("rope_type") != "llama3":
        return None
    head_dim = config.get("head_dim") or config["hidden_size"] // config["num_attention_heads"]
    original = rope["original_max_position_embeddings"]
    low, high = original / rope["low_freq_factor"], original / rope["high_freq_factor"]
    divisors = []
    for index in range(0, head_dim, 2):
        wavelength = 2 * np.pi * rope["rope_theta"] ** (index / head_dim)
        smooth = (original / wavelength - rope["low_freq_factor"]) / (
            rope["high_freq_factor"] - rope["low_freq_factor"]
        )
        if wavelength < high:
            divisors.append(1.0)
        elif wavelength > low:
            divisors.append(rope["factor"])
        else:
            divisors.append(1 / ((1 - smooth) / rope["factor"] + smooth))
    return np.array(divisors, np.float32)


def write_byte_level(writer: GGUFWriter, tokenizer: Tokenizer, pre: str) -> None:
    """A byte-level BPE vocabulary; its special tokens become control tokens."""
    state = json.loads(tokenizer.to_str())
    tokens = [tokenizer.id_to_token(index) for index in range(tokenizer.get_vocab_size())]
    added = {entry["id"]: CONTROL if entry["special"] else USER_DEFINED for entry in state["added_tokens"]}
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre(pre)
    writer.add_token_list(tokens)
    writer.add_token_types([added.get(index, NORMAL) for index in range(len(tokens))])
    writer.add_token_merges([" ".join(merge) for merge in state["model"]["merges"]])
    writer.add_bos_token_id(tokenizer.token_to_id("<|endoftext|>") or 0)
    writer.add_eos_token_id(tokenizer.token_to_id("<|im_end|>") or 0)
