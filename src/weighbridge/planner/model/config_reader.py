"""config.json to `Architecture`. What matters and is not understood is an error; what is guessed is stated."""

from __future__ import annotations

import re
from typing import Any

from weighbridge.errors import BadInput, UnsupportedModel
from weighbridge.planner.model.architecture import (
    Architecture,
    Assumption,
    LayerShape,
    Tower,
)
from weighbridge.planner.model.catalogue import catalogue
from weighbridge.planner.model.feed_forward import feed_forwards
from weighbridge.planner.model.fields import ModelFields
from weighbridge.planner.model.layer_kinds import layer_kinds
from weighbridge.planner.model.mixers import head_dim, mixer

#: ModelFields that change memory in ways this reader does not model; silence about them would be a wrong plan.
_DECISIVE = re.compile(r"^(compress_ratios?|block_configs|block_ffn_mult|mamba_layers|rwkv|retention)")
_UNMODELLED = {
    "bailing_hybrid": "its linear layers are of a kind of their own",
    "glm5_next": "its linear layers are of a kind of their own",
    "glm5_next_text": "its linear layers are of a kind of their own",
    "deepseek_v4": "its layers compress the cache by different ratios",
    "nemotron_h_puzzle": "its blocks differ from layer to layer",
    "dbrx": "its fields stand in ffn_config and attn_config",
    "ernie4_5_vl_moe": "its experts for text and for pictures differ in width",
    "ernie4_5_vl_moe_text": "its experts for text and for pictures differ in width",
    "jetmoe": "its attention heads are experts too",
    "longcat_flash": "its layers hold two blocks of attention, and experts that compute nothing",
    "nllb-moe": "it has an encoder and a decoder",
    "switch_transformers": "it has an encoder and a decoder",
    "unlimited_ocr_text": "its layers look at a picture in a way of their own",
    "nemotron-nas": "its blocks differ from layer to layer",
    "deci": "its blocks differ from layer to layer",
}
#: Types beside the catalogue's whose fields mean what they say.
_KNOWN = {
    "llama4", "qwen2_moe", "qwen2_vl", "qwen2_5_vl", "qwen2_5_vl_text", "qwen3_vl", "qwen3_vl_text",
    "qwen3_vl_moe_text", "qwen3_5", "qwen3_5_moe", "gemma", "gemma3", "gemma3n_text", "gemma4", "cohere",
    "cohere2", "deepseek_v3", "glm", "glm4", "mistral3", "pixtral", "phi", "phi4", "smollm3", "starcoder2",
    "stablelm", "granite", "granitemoe", "exaone4", "ernie4_5", "ernie4_5_moe", "hunyuan_v1_dense",
    "hunyuan_v1_moe", "gpt2", "gpt_neox", "bloom", "falcon", "mamba", "mamba2", "bamba", "falcon_h1",
    "internlm2", "seed_oss", "dots1",
}  # fmt: skip
#: Families whose output matrix is the embedding unless config.json says otherwise.
_TIED = {
    "gemma", "gemma2", "gemma3_text", "gemma3", "gemma4_text", "gemma3n_text", "cohere", "cohere2", "opt",
}  # fmt: skip


def read_architecture(config: dict[str, Any], assumptions: tuple[Assumption, ...] = ()) -> Architecture:
    """Return the architecture that a config.json describes. Raises BadInput or UnsupportedModel naming the field."""
    noted = list(assumptions)
    outer = ModelFields(config, noted)
    fields = outer.inner("text_config", "llm_config", "language_config", "thinker_config") or outer
    inner = fields.inner("text_config")  # some nest twice
    fields = inner or fields
    family = str(fields.get("model_type") or outer.get("model_type") or "")
    if not family:
        raise BadInput("config.json: model_type is missing; it says how the other fields are meant")
    _refuse_unknown(fields, family)
    _assume_usual(fields, outer, family)
    layers = _layers(fields)
    kinds = layer_kinds(fields, family, layers)
    blocks = feed_forwards(fields, family, layers)
    built = tuple(
        LayerShape(mixer(fields, family, kind, index, layers), block)
        for index, (kind, block) in enumerate(zip(kinds, blocks, strict=True))
    )
    rotary = _rotary_dim(fields)
    return Architecture(
        family=family,
        hidden=fields.whole("hidden_size", "n_embd", "d_model"),
        vocab=_vocab(fields, outer),
        layers=built,
        tied=_tied(fields, outer, family),
        max_positions=_max_positions(fields),
        rotary_dim=rotary,
        drafts=_drafts(fields, family, built, kinds),
        towers=_towers(outer),
        gated_vocab=_per_layer_embedding(fields, layers),
        quantization=_quantization(fields, outer),
        assumptions=tuple(noted),
    )


def _layers(fields: ModelFields) -> int:
    kinds = fields.get("layers_block_type")
    if "num_hidden_layers" not in fields and isinstance(kinds, list) and kinds:  # Nemotron-H
        return len(kinds)
    return fields.layers("num_hidden_layers", "n_layer", "n_layers", "num_layers")


def _refuse_unknown(fields: ModelFields, family: str) -> None:
    if family in _UNMODELLED:
        raise UnsupportedModel(f"model type {family!r} is not planned: {_UNMODELLED[family]}")
    for name, value in fields.values.items():
        if _DECISIVE.match(name) and value:
            raise UnsupportedModel(
                f"config.json: {name} of {family!r} changes memory in a way the planner does not know; "
                "give a GGUF or safetensors file for exact weights, or use a model without it"
            )


def _vocab(fields: ModelFields, outer: ModelFields) -> int:
    if "vocab_size" not in fields and "vocab_size" not in outer:
        sentence = "vocab_size is not given; 131,072 assumed, so weights and logits are rough"
        fields = fields.with_guess(Assumption("vocab_size", 131_072, sentence, rough=True))
    return (fields if "vocab_size" in fields else outer).whole("vocab_size")


def _max_positions(fields: ModelFields) -> int:
    names = ("max_position_embeddings", "n_positions", "max_seq_len", "model_max_length")
    if fields.get(*names) is None:
        sentence = "max_position_embeddings is not given; 32,768 assumed"
        fields = fields.with_guess(Assumption("max_position_embeddings", 32_768, sentence))
    return fields.whole(*names)


def _tied(fields: ModelFields, outer: ModelFields, family: str) -> bool:
    for source in (fields, outer):
        if "tie_word_embeddings" in source:
            return source.flag("tie_word_embeddings")
    return family in _TIED


def _rotary_dim(fields: ModelFields) -> int:
    if "qk_rope_head_dim" in fields:
        return fields.whole("qk_rope_head_dim")
    if fields.get("num_attention_heads", "n_head") is None:
        return 0
    rope = fields.inner("rope_parameters") or fields
    return int(head_dim(fields) * rope.number("partial_rotary_factor", 1.0))


def _drafts(
    fields: ModelFields, family: str, layers: tuple[LayerShape, ...], kinds: list[str]
) -> tuple[LayerShape, ...]:
    count = fields.whole("num_nextn_predict_layers", "mtp_num_hidden_layers", default=0, min=0)
    full = [layer for layer, kind in zip(layers, kinds, strict=True) if kind == "full"]
    return tuple((full or list(layers))[-1:] * count)


def _towers(outer: ModelFields) -> tuple[Tower, ...]:
    """Encoders, from their own shapes: four projections and an MLP a layer, patches and positions."""
    towers = []
    for name in ("vision_config", "audio_config", "vit_config", "vision_tower_config"):
        tower = outer.inner(name)
        if tower is None:
            continue
        hidden = tower.get("hidden_size", "d_model", "width", "embed_dim")
        depth = tower.get("num_hidden_layers", "depth", "encoder_layers", "n_layers", "layers")
        if not isinstance(hidden, int) or not isinstance(depth, int):
            sentence = f"{name} has no shape the planner can read; its encoder is not counted"
            outer.assume(Assumption(name, None, sentence))
            continue
        inner = tower.whole("intermediate_size", "encoder_ffn_dim", "mlp_dim", default=4 * hidden)
        out = tower.whole("out_hidden_size", default=hidden)
        parameters = depth * (4 * hidden * hidden + 2 * hidden * inner) + 4 * hidden * out + 2048 * hidden
        towers.append(Tower(name.split("_")[0], parameters))
    return tuple(towers)


def _per_layer_embedding(fields: ModelFields, layers: int) -> int:
    return fields.whole("hidden_size_per_layer_input", default=0, min=0) * layers


def _quantization(fields: ModelFields, outer: ModelFields) -> dict[str, object]:
    value = outer.get("quantization_config") or fields.get("quantization_config") or {}
    if not isinstance(value, dict):
        raise BadInput(
            f"config.json: quantization_config is {value!r}, but must be an object with a quant_method",
            param="quantization_config",
        )
    return value


def _assume_usual(fields: ModelFields, outer: ModelFields, family: str) -> None:
    """State what is taken for granted of a model type or number format that the planner has no rules for."""
    if family not in _KNOWN and family not in {entry["model_type"] for entry in catalogue().values()}:
        sentence = f"model_type {family!r} has no rules of its own: read as a decoder with the usual fields"
        fields.assume(Assumption("model_type", family, sentence))
    kind = fields.get("torch_dtype", "dtype") or outer.get("torch_dtype", "dtype")
    if kind is not None and str(kind).removeprefix("torch.") not in (
        "bfloat16",
        "float16",
        "float32",
        "auto",
    ):
        sentence = f"torch_dtype {kind!r} is not known: weights taken as 16-bit"
        fields.assume(Assumption("torch_dtype", "bfloat16", sentence))
