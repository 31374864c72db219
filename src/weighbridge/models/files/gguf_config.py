"""GGUF metadata to `ModelConfig`; what the engine cannot run is refused by name."""

from __future__ import annotations

import math
from typing import Any

from weighbridge.errors import BadInput, UnsupportedModel
from weighbridge.models.files.config import ExpertsConfig, ModelConfig, RopeConfig
from weighbridge.models.files.fields import MAX_COUNT, MAX_LAYERS, MAX_NUMBER, shown, whole_number
from weighbridge.models.files.gemma import GEMMA_PATTERN, gemma_fields, local_windows
from weighbridge.models.files.gguf import GgufFile

#: GGUF architectures. Mistral and Mixtral files call themselves llama.
ARCHITECTURES = ("llama", "qwen2", "qwen3", "smollm3", "qwen2moe", "qwen3moe", "olmoe", "gemma3")

#: Those with experts: their Hugging Face family, and whether a token's weights are normalised. llama.cpp has that in
#: its code for the architecture, not in the file.
MIXTURES = {
    "llama": ("mixtral", True),
    "qwen2moe": ("qwen2_moe", False),
    "qwen3moe": ("qwen3_moe", True),
    "olmoe": ("olmoe", False),
}


#: Gemma 3 27B scales attention by other than its head_dim; llama.cpp knows it by its layers.
_LAYERS_OF_27B = 62


def read_config(file: GgufFile) -> ModelConfig:
    """Return the shape of the model in `file`. Raises UnsupportedModel naming what cannot be run."""
    architecture = file.architecture
    if architecture not in ARCHITECTURES:
        supported = ", ".join(ARCHITECTURES)
        raise UnsupportedModel(f"GGUF architecture {shown(architecture)} is not supported ({supported} are)")
    heads, hidden = _whole(file, "attention.head_count"), _whole(file, "embedding_length")
    layers = _whole(file, "block_count", max=MAX_LAYERS)
    count = _whole(file, "expert_count", 0, min=0)
    if count and architecture not in MIXTURES:
        raise UnsupportedModel(
            f"a mixture of {count} experts of architecture {architecture} is not supported"
        )
    head_dim = _head_dim(file, hidden, heads)
    config = ModelConfig(
        architecture=MIXTURES[architecture][0] if count else architecture,
        vocab_size=file.shape("model.embed_tokens.weight")[0],
        hidden_size=hidden,
        intermediate_size=_whole(file, "feed_forward_length"),
        num_layers=layers,
        num_heads=heads,
        num_kv_heads=_whole(file, "attention.head_count_kv", heads),
        head_dim=head_dim,
        max_position_embeddings=_whole(file, "context_length"),
        rms_norm_eps=_positive(file, "attention.layer_norm_rms_epsilon"),
        rope=_rope(file, head_dim),
        # The file does not say it: every fourth layer of SmolLM3 has no rotary embedding.
        rotary_layers=tuple(architecture != "smollm3" or (index + 1) % 4 != 0 for index in range(layers)),
        sliding_windows=_windows(file, layers),
        tie_word_embeddings="lm_head.weight" not in file,
        qkv_bias=architecture == "qwen2" or "model.layers.0.self_attn.q_proj.bias" in file,
        output_bias="model.layers.0.self_attn.o_proj.bias" in file,
        mlp_bias="model.layers.0.mlp.down_proj.bias" in file,
        qk_norm=architecture in ("qwen3", "qwen3moe", "gemma3"),
        **_gemma(file, hidden, heads, head_dim),
        qk_norm_all_heads=architecture == "olmoe",
        clip_qkv=_clip(file),
        experts=_experts(file, layers, count, _whole(file, "expert_used_count")) if count else None,
        eos_token_ids=file.end_token_ids(),
        bos_token_id=file.index("tokenizer.ggml.bos_token_id"),
    )
    config.check(file.path.name)
    return config


def _windows(file: GgufFile, layers: int) -> tuple[int, ...]:
    """Llama's are Mistral's: in every layer. Gemma's pattern is in llama.cpp's code unless the file says it."""
    if file.architecture not in ("llama", "gemma3"):
        return (0,) * layers
    window = _whole(file, "attention.sliding_window", 0, min=0)
    if file.architecture == "llama" or not window:
        return (window,) * layers
    stated = file.value("gemma3.attention.sliding_window_pattern")
    if isinstance(stated, list):  # of flags, one for each layer
        if len(stated) != layers:
            raise BadInput(f"{file.path.name}: the pattern of windows names {len(stated)} of {layers} layers")
        return tuple(window if slides else 0 for slides in stated)
    return local_windows(layers, window, _whole(file, "attention.sliding_window_pattern", GEMMA_PATTERN))


def _gemma(file: GgufFile, hidden: int, heads: int, head_dim: int) -> dict[str, Any]:
    """Return what Gemma 3 computes otherwise; what the file does not say, llama.cpp has in its code."""
    if file.architecture != "gemma3":
        return {}
    for key in ("attn_logit_softcapping", "final_logit_softcapping"):
        if _number(file, key, 0.0):
            raise UnsupportedModel(f"{file.path.name}: {key} is not supported")
    scalar = hidden / heads if _whole(file, "block_count") == _LAYERS_OF_27B else head_dim
    return gemma_fields(hidden, scalar, _positive(file, "rope.freq_base_swa", 10_000.0))


def _experts(file: GgufFile, layers: int, count: int, top_k: int) -> ExpertsConfig:
    """Return the experts of `file`, which has `count` and uses `top_k`. Raises BadInput for sizes that do not fit."""
    sparse = tuple(f"model.layers.{layer}.mlp.gate.weight" in file for layer in range(layers))
    if True not in sparse:
        raise BadInput(f"{file.path.name} declares {count} experts and has no router (ffn_gate_inp)")
    prefix = f"model.layers.{sparse.index(True)}.mlp."
    routed = file.shape(f"{prefix}gate.weight")[0]
    if routed != count:
        raise BadInput(f"{file.path.name} declares {count} experts, its router knows {routed}")
    shared = f"{prefix}shared_expert.gate_proj.weight"
    normalize = MIXTURES[file.architecture][1]
    return ExpertsConfig(
        count=count,
        top_k=top_k,
        intermediate_size=file.shape(f"{prefix}experts.{count - 1}.gate_proj.weight")[0],
        normalize=file.flag(f"{file.architecture}.expert_weights_norm", normalize),
        sparse_layers=sparse,
        shared_intermediate_size=file.shape(shared)[0] if shared in file else 0,
    )


def _whole(file: GgufFile, key: str, default: int | None = None, min: int = 1, max: int = MAX_COUNT) -> int:
    """Return a count; some files give it for each layer, which is fine when all layers agree."""
    name = f"{file.architecture}.{key}"
    value: Any = file.value(name)
    if value is None:
        value = default
    if isinstance(value, list) and value:
        if any(other != value[0] for other in value):
            raise UnsupportedModel(
                f"{file.path.name} has a different {key} in each layer, which is not supported"
            )
        value = value[0]
    return whole_number(value, name, file.path.name, min, max)


def _number(file: GgufFile, key: str, default: float) -> float:
    """Return a finite number under the architecture's own prefix."""
    return file.number(f"{file.architecture}.{key}", default)


def _positive(file: GgufFile, key: str, default: float | None = None) -> float:
    """Return a finite number above 0. Raises BadInput for others, and when it is neither there nor optional."""
    name = f"{file.architecture}.{key}"
    if default is None and file.value(name) is None:
        raise BadInput(f"{file.path.name} lacks the metadata key {name}")
    value = file.number(name, 0.0 if default is None else default)
    if value <= 0:
        raise BadInput(f"{file.path.name}: {name} must be above 0, not {value}")
    return value


def _clip(file: GgufFile) -> float | None:
    """Return the largest magnitude of queries, keys and values; 0 in the file means none."""
    return _positive(file, "attention.clamp_kqv") if _number(file, "attention.clamp_kqv", 0.0) else None


def _head_dim(file: GgufFile, hidden: int, heads: int) -> int:
    key = "attention.key_length"
    if hidden % heads and file.value(f"{file.architecture}.{key}") is None:
        raise BadInput(
            f"{file.path.name}: an embedding_length of {hidden} does not divide among {heads} heads, and there is no "
            f"{key}"
        )
    head_dim = _whole(file, key, hidden // heads)
    value_dim = _whole(file, "attention.value_length", head_dim)
    rotated = _whole(file, "rope.dimension_count", head_dim)
    if value_dim != head_dim:
        raise UnsupportedModel(
            f"keys of {head_dim} and values of {value_dim} elements a head are not supported"
        )
    if rotated != head_dim:
        raise UnsupportedModel(
            f"a rotary embedding of {rotated} of {head_dim} elements a head is not supported"
        )
    return head_dim


def _rope(file: GgufFile, head_dim: int) -> RopeConfig:
    theta = _positive(file, "rope.freq_base", 10_000.0)
    divisors = _divisors(file, head_dim)
    old_factor = _positive(file, "rope.scale_linear", 1.0)
    scaling = file.text(f"{file.architecture}.rope.scaling.type", "none" if old_factor == 1.0 else "linear")
    if scaling == "none":
        return RopeConfig(theta, divisors=divisors)
    if scaling not in ("linear", "yarn"):
        raise UnsupportedModel(f"rope scaling {shown(scaling)} is not supported (none, linear and yarn are)")
    if _number(file, "rope.scaling.yarn_log_multiplier", 0.0):
        raise UnsupportedModel("yarn with a log multiplier (mscale) is not supported")
    factor = _positive(file, "rope.scaling.factor", old_factor)
    return RopeConfig(
        theta,
        scaling=scaling,
        factor=factor,
        original_max_position_embeddings=_original_context(file),
        attention_factor=_attention_factor(file, factor),
        beta_fast=_positive(file, "rope.scaling.yarn_beta_fast", 32.0),
        beta_slow=_positive(file, "rope.scaling.yarn_beta_slow", 1.0),
        divisors=divisors,
    )


def _divisors(file: GgufFile, head_dim: int) -> tuple[float, ...] | None:
    """Return llama3's rule as GGUF has it, one number above 0 for each pair of a head; None: there is none."""
    name = "rope_freqs.weight"
    if name not in file:
        return None
    shape = file.shape(name)
    if shape != (head_dim // 2,):
        raise BadInput(
            f"{file.path.name}: tensor {name!r} has shape {list(shape)}, but heads of {head_dim} need [{head_dim // 2}]"
        )
    divisors: list[float] = file.tensor(name).tolist()
    if not all(0 < divisor <= MAX_NUMBER for divisor in divisors):
        raise BadInput(f"{file.path.name}: tensor {name!r} holds values that no frequency can be divided by")
    return tuple(divisors)


def _original_context(file: GgufFile) -> int:
    key = "rope.scaling.original_context_length"
    given = file.value(f"{file.architecture}.{key}") is not None
    return _whole(file, key if given else "context_length")


def _attention_factor(file: GgufFile, factor: float) -> float | None:
    """llama.cpp multiplies yarn's own amplitude by the file's factor; ours replaces it."""
    for key in ("rope.scaling.attn_factor", "rope.scaling.yarn_attn_factor"):
        if file.value(f"{file.architecture}.{key}") is not None:
            return _positive(file, key) * (0.1 * math.log(factor) + 1.0 if factor > 1.0 else 1.0)
    return None
