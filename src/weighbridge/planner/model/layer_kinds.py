"""Which layer does what. Families say it in some fifteen ways; this page reads them into one list.

Kinds: "full", "sliding", "chunked", "linear" (any recurrent mixer), "none" (a block without a mixer).
"""

from __future__ import annotations

from collections.abc import Iterable

from weighbridge.errors import BadInput
from weighbridge.planner.model.architecture import Assumption
from weighbridge.planner.model.fields import ModelFields

_HF_NAMES = {
    "full_attention": "full",
    "attention": "full",
    "full": "full",
    "global": "full",
    "deepseek_sparse_attention": "full",
    "minimax_m3_sparse": "full",
    "indexed_attention": "full",
    "hybrid": "full",  # Zamba 2: a shared attention block in a Mamba layer
    "sliding_attention": "sliding",
    "sliding_window": "sliding",
    "local": "sliding",
    "hybrid_sliding": "sliding",
    "chunked_attention": "chunked",
    "linear_attention": "linear",
    "mamba": "linear",
    "mamba2": "linear",
    "conv": "linear",
    "kda": "linear",
    "moe": "none",
    "mlp": "none",
}
#: Mistral's classes limit every layer when a window is set; these alternate or follow a pattern.
_ALTERNATING = {"gemma2": 2, "gpt_oss": 2}
_PATTERNED = {"gemma3_text": 6, "gemma3": 6, "cohere2": 4, "gemma4_text": 6, "exaone4": 4, "gemma3n_text": 5}
_EVERY_LAYER = {"mistral", "mixtral", "starcoder2", "phi3", "ministral"}


def layer_kinds(fields: ModelFields, family: str, layers: int) -> list[str]:
    """Return the kind of mixer of each layer. Raises BadInput for an unknown kind."""
    for rule in (_from_lists, _from_counts, _from_intervals, _from_windows):
        kinds = rule(fields, family, layers)
        if kinds is not None:
            return kinds
    return ["full"] * layers


def spread(counts: dict[str, int], layers: int) -> list[str]:
    """Return kinds in these numbers, mixed as evenly as possible: counts alone tell nothing more about an order.

    Raises BadInput when the counts do not add up to `layers`.
    """
    if sum(counts.values()) != layers:
        raise BadInput(f"config.json: layer counts {counts} do not add up to {layers} layers")
    return [
        kind
        for _, kind in sorted(
            ((index + 0.5) / number, kind) for kind, number in counts.items() for index in range(number)
        )
    ]


def _named(kinds: Iterable[object]) -> list[str]:
    result = []
    for kind in kinds:
        if kind not in _HF_NAMES:
            raise BadInput(
                f"config.json: layers of type {kind!r} are not known to the planner", param="layer_types"
            )
        result.append(_HF_NAMES[str(kind)])
    return result


def _from_lists(fields: ModelFields, family: str, layers: int) -> list[str] | None:
    pattern = fields.get("hybrid_override_pattern")
    if isinstance(pattern, str):  # Nemotron-H: M Mamba, * attention, - or E feed-forward only
        if set(pattern) - set("M*-E|"):
            raise BadInput("config.json: hybrid_override_pattern may hold M, *, - and E only")
        return [{"M": "linear", "*": "full"}.get(mark, "none") for mark in pattern if mark != "|"][:layers]
    for name in ("layer_types", "layers_block_type"):
        value = fields.get(name)
        if isinstance(value, list):
            return _named(fields.listed(name, layers) or [])
    pattern = fields.listed("hybrid_layer_pattern", layers)  # MiMo: 1 slides
    if pattern is not None:
        return ["sliding" if mark else "full" for mark in pattern]
    kinds = fields.listed("attn_type_list", layers)  # MiniMax-Text: 1 attends
    if kinds is not None:
        return ["full" if mark else "linear" for mark in kinds]
    indices = fields.get("attn_layer_indices", "full_attn_idxs")
    if isinstance(indices, list):
        return ["full" if index in indices else "linear" for index in range(layers)]
    linear = fields.inner("linear_attn_config")
    if linear is not None and isinstance(linear.get("full_attn_layers"), list):  # Kimi Linear, from 1
        return [
            "full" if index + 1 in linear.get("full_attn_layers") else "linear" for index in range(layers)
        ]
    return None


def _from_counts(fields: ModelFields, family: str, layers: int) -> list[str] | None:
    """Summaries of a list: how many layers of each kind, or how many of one."""
    counts = fields.get("layer_types_counts")
    if isinstance(counts, dict):
        named: dict[str, int] = {}
        for kind, number in counts.items():
            name = _named([kind])[0]
            named[name] = named.get(name, 0) + int(number)
        return spread(named, layers)
    counts = fields.get("hybrid_layer_pattern_counts")
    if isinstance(counts, dict):
        return spread({"full": int(counts.get("0", 0)), "sliding": int(counts.get("1", 0))}, layers)
    number = fields.get("num_full_attn_layers")
    if isinstance(number, int):
        other = "linear" if "linear_num_value_heads" in fields else "sliding"
        return spread({"full": number, other: layers - number}, layers)
    return None


def _from_intervals(fields: ModelFields, family: str, layers: int) -> list[str] | None:
    if "linear_num_value_heads" in fields:
        every = fields.whole("full_attention_interval", default=4)
        return ["full" if (index + 1) % every == 0 else "linear" for index in range(layers)]
    if "attn_layer_period" in fields:  # Jamba
        period, offset = fields.whole("attn_layer_period"), fields.whole("attn_layer_offset", min=0)
        return ["full" if index % period == offset else "linear" for index in range(layers)]
    if family in ("llama4", "llama4_text"):
        every = fields.whole("no_rope_layer_interval", default=4)
        if "attention_chunk_size" not in fields:
            sentence = "attention_chunk_size is not given; 8192 assumed, as Llama 4 publishes"
            fields.assume(Assumption("attention_chunk_size", 8192, sentence))
        flags = fields.get("no_rope_layers")
        if isinstance(flags, list) and len(flags) == layers:
            return ["chunked" if flag else "full" for flag in flags]
        return ["full" if (index + 1) % every == 0 else "chunked" for index in range(layers)]
    return None


def _from_windows(fields: ModelFields, family: str, layers: int) -> list[str] | None:
    if not fields.get("sliding_window"):
        return None
    if family in _EVERY_LAYER:
        return ["sliding"] * layers
    every = fields.get("sliding_window_pattern") or _PATTERNED.get(family) or _ALTERNATING.get(family)
    if isinstance(every, str):  # EXAONE 4 writes "LLLG"
        return ["full" if every[index % len(every)] == "G" else "sliding" for index in range(layers)]
    if isinstance(every, int):
        return ["full" if (index + 1) % every == 0 else "sliding" for index in range(layers)]
    if fields.flag("use_sliding_window"):
        first = fields.whole("max_window_layers", default=28, min=0)
        return ["sliding" if index >= first else "full" for index in range(layers)]
    if family not in ("qwen2", "qwen3", "qwen2_moe", "qwen3_moe", "llama", "smollm3"):
        sentence = f"sliding_window is set, but nothing says which layers of {family!r} slide: none assumed"
        fields.assume(Assumption("layer_types", None, sentence))
    return None
