"""Well-known models by name: the fields of their config.json that decide memory, nothing else."""

from __future__ import annotations

import json
import re
from difflib import get_close_matches
from functools import cache
from importlib.resources import files
from typing import Any

from weighbridge.planner.model.architecture import Assumption

_SUFFIXES = re.compile(r"[-_.](instruct|chat|it|hf|base|thinking|\d{4})$")
_ALIASES = {"llama-3.3-70b": "llama-3.1-70b", "llama-3-8b": "llama-3.1-8b", "llama-3-70b": "llama-3.1-70b"}


@cache
def catalogue() -> dict[str, dict[str, Any]]:
    """Return the configuration fields of every model, by name."""
    text = files("weighbridge.planner.model").joinpath("catalogue.json").read_text(encoding="utf-8")
    models: dict[str, dict[str, Any]] = json.loads(text)
    return models


def lookup(name: str) -> tuple[str, dict[str, Any]] | None:
    """Return the entry for "qwen3-8b", "Qwen/Qwen3-8B" or "meta-llama/Llama-3.1-8B-Instruct"; None when unknown."""
    key = name.rsplit("/", 1)[-1].lower().replace("_", "-").removeprefix("meta-")
    if key.replace("-instruct", "") in catalogue():
        key = key.replace("-instruct", "")
    while key not in catalogue() and _SUFFIXES.search(key):
        key = _SUFFIXES.sub("", key)
    key = _ALIASES.get(key, key)
    fields = catalogue().get(key)
    return (key, dict(fields)) if fields else None


def near(name: str) -> list[str]:
    """Return catalogue names that look like `name`."""
    return get_close_matches(name.rsplit("/", 1)[-1].lower(), catalogue(), n=3, cutoff=0.4)


def completed(config: dict[str, Any]) -> tuple[dict[str, Any], tuple[Assumption, ...]]:
    """Return `config` with what it lacks taken from the catalogue's model of the same family and shape.

    Everything when something that weights need is missing, else only the longest position. What was filled in
    is stated.
    """
    lacks = _lacks(config)
    if not lacks and (config.get("text_config") or config.get("max_position_embeddings")):
        return config, ()
    for name, entry in catalogue().items():
        if all(_same(config, entry, field) for field in ("model_type", "hidden_size", "num_hidden_layers")):
            missing = {k: v for k, v in entry.items() if config.get(k) is None and k != "quantization_config"}
            if not lacks:
                missing = {k: v for k, v in missing.items() if k == "max_position_embeddings"}
            if config.get("layer_types_counts") or config.get("num_full_attn_layers"):
                missing.pop("sliding_window_pattern", None)
            if not missing:
                return config, ()
            sentence = (
                f"{', '.join(sorted(missing))} taken from the catalogue's {name}, which has the same shape"
            )
            stated = [Assumption(field, value, sentence) for field, value in sorted(missing.items())]
            return {**config, **missing}, tuple(stated)
    return config, ()


def _lacks(config: dict[str, Any]) -> bool:
    if config.get("text_config"):
        return False
    experts = config.get("num_experts") or config.get("num_local_experts") or config.get("n_routed_experts")
    width = experts and not (config.get("moe_intermediate_size") or config.get("intermediate_size"))
    plain = not experts and config.get("intermediate_size") is None and config.get("ffn_dim") is None
    twins = config.get("attention_k_eq_v") and config.get("num_global_key_value_heads") is None
    return bool(width or plain or twins or config.get("vocab_size") is None)


def _same(config: dict[str, Any], entry: dict[str, Any], field: str) -> bool:
    return bool(config.get(field) == entry.get(field))
