"""What GGUF calls a tensor that Hugging Face calls something else, and one expert out of a fused tensor.

A layer's experts are three tensors [experts, rows, columns]; before April 2024 each expert had its own.
"""

from __future__ import annotations

import re
from dataclasses import replace

from weighbridge.models.files.gguf_format import TensorEntry

#: Hugging Face names, behind the layer, of what surrounds the experts.
_EXPERT_NAMES = {
    "mlp.gate": "ffn_gate_inp",
    "mlp.shared_expert_gate": "ffn_gate_inp_shexp",
    "mlp.shared_expert.gate_proj": "ffn_gate_shexp",
    "mlp.shared_expert.up_proj": "ffn_up_shexp",
    "mlp.shared_expert.down_proj": "ffn_down_shexp",
}
_LAYER_NAMES = {
    "self_attn.q_proj": "attn_q",
    "self_attn.k_proj": "attn_k",
    "self_attn.v_proj": "attn_v",
    "self_attn.o_proj": "attn_output",
    "self_attn.q_norm": "attn_q_norm",
    "self_attn.k_norm": "attn_k_norm",
    "input_layernorm": "attn_norm",
    "post_attention_layernorm": "ffn_norm",
    "mlp.gate_proj": "ffn_gate",
    "mlp.up_proj": "ffn_up",
    "mlp.down_proj": "ffn_down",
    **_EXPERT_NAMES,
}
#: Where a layer has norms behind its blocks too (Gemma), what is ffn_norm elsewhere has another name.
_WRAPPED_NAMES = {
    "pre_feedforward_layernorm": "ffn_norm",
    "post_attention_layernorm": "post_attention_norm",
    "post_feedforward_layernorm": "post_ffw_norm",
}
WRAPPED = frozenset({"gemma3"})
_TOP_NAMES = {"model.embed_tokens": "token_embd", "model.norm": "output_norm", "lm_head": "output"}
_OUR_NAMES = {theirs: ours for ours, theirs in (_LAYER_NAMES | _TOP_NAMES).items()}
_OUR_WRAPPED_NAMES = _OUR_NAMES | {theirs: ours for ours, theirs in _WRAPPED_NAMES.items()}
_EXPERT = re.compile(r"model\.layers\.(\d+)\.mlp\.experts\.(\d+)\.(gate|up|down)_proj\.weight")
_FUSED = re.compile(r"blk\.(\d+)\.ffn_(gate|up|down)_exps\.weight")
_SINGLE = re.compile(r"blk\.(\d+)\.ffn_(gate|up|down)\.(\d+)\.weight")


def gguf_name(name: str, architecture: str = "") -> str:
    """Return GGUF's name of a Hugging Face tensor: model.layers.3.self_attn.q_proj.weight is blk.3.attn_q.weight.

    Names that only GGUF has, such as rope_freqs.weight, stay as they are.
    """
    stem, _, kind = name.rpartition(".")
    if stem.startswith("model.layers."):
        _, _, index, rest = stem.split(".", 3)
        names = _LAYER_NAMES | _WRAPPED_NAMES if architecture in WRAPPED else _LAYER_NAMES
        return f"blk.{index}.{names.get(rest, rest)}.{kind}"
    return f"{_TOP_NAMES.get(stem, stem)}.{kind}"


def hf_name(name: str, architecture: str = "") -> str:
    """Return the inverse of `gguf_name`."""
    stem, _, kind = name.rpartition(".")
    names = _OUR_WRAPPED_NAMES if architecture in WRAPPED else _OUR_NAMES
    if stem.startswith("blk.") and stem.count(".") > 1:
        _, index, rest = stem.split(".", 2)
        return f"model.layers.{index}.{names.get(rest, rest)}.{kind}"
    return f"{_OUR_NAMES.get(stem, stem)}.{kind}"


def own_name(name: str, architecture: str = "") -> str:
    """Return the tensor that GGUF has for a Hugging Face name: an expert's matrix is in one with all of its layer."""
    match = _EXPERT.fullmatch(name)
    return gguf_name(name, architecture) if match is None else f"blk.{match[1]}.ffn_{match[3]}_exps.weight"


def find_expert(name: str, tensors: dict[str, TensorEntry]) -> TensorEntry | None:
    """Return the matrix of one expert by its Hugging Face name; None where the file has no such expert."""
    match = _EXPERT.fullmatch(name)
    if match is None:
        return None
    layer, expert, part = match.groups()
    fused = tensors.get(f"blk.{layer}.ffn_{part}_exps.weight")
    if fused is None:
        return tensors.get(f"blk.{layer}.ffn_{part}.{expert}.weight")
    return _slice(fused, int(expert))


def _slice(fused: TensorEntry, index: int) -> TensorEntry | None:
    if len(fused.shape) != 3 or index >= fused.shape[0]:
        return None
    size = fused.nbytes // fused.shape[0]
    return replace(fused, shape=fused.shape[1:], start=fused.start + index * size, nbytes=size)


def expert_names(entry: TensorEntry) -> list[str]:
    """Return the Hugging Face names of the experts in a tensor; empty when it holds none."""
    fused, single = _FUSED.fullmatch(entry.name), _SINGLE.fullmatch(entry.name)
    if fused is not None:
        layer, part = fused.groups()
        numbers = [str(index) for index in range(entry.shape[0])]
    elif single is not None:
        layer, part, number = single.groups()
        numbers = [number]
    else:
        return []
    return [f"model.layers.{layer}.mlp.experts.{number}.{part}_proj.weight" for number in numbers]
