"""What transformers knows of a model directory, without reading its weights; what cannot be served is refused by name.

Only classes of the installed transformers are used: code that a directory brings along (`auto_map`) never runs.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import transformers
from transformers import CONFIG_MAPPING, MODEL_FOR_CAUSAL_LM_MAPPING

from weighbridge.errors import BadInput, UnsupportedModel, said
from weighbridge.models.adapters.peft_file import MatrixShape
from weighbridge.models.files.checkpoint import SafetensorsDirectory
from weighbridge.models.files.config import ModelConfig, RopeConfig
from weighbridge.models.files.fields import Fields, shown
from weighbridge.models.files.hf_config import end_token_ids, read_json
from weighbridge.models.general.given import GivenFiles, configuration, without_weights
from weighbridge.models.general.refusals import refused
from weighbridge.models.general.seam import NAME
from weighbridge.models.general.tracing import AttentionShape, trace

#: Where a configuration says how many positions there are.
_POSITIONS = ("max_position_embeddings", "n_positions", "max_sequence_length", "max_seq_len", "seq_length")
#: Of a model that does not say; its users set --max-model-len.
_DEFAULT_POSITIONS = 2048
#: Kinds of layers whose attention is over all that is before a token, or over a window of it.
_ATTENTION = frozenset(("full_attention", "sliding_attention", "attention"))


@dataclass(frozen=True, slots=True)
class Description:
    """A model of transformers that can be served. `model_class` builds it from `config`, and `given` fills it."""

    config: Any
    model_class: type[Any]
    given: GivenFiles
    shapes: tuple[AttentionShape, ...]
    linears: frozenset[str]  # names of layers whose place ours can take
    adaptable: Mapping[str, MatrixShape]  # of those, the ones that adapters can add to
    model: ModelConfig


def describe(files: SafetensorsDirectory) -> Description:
    """Return what a directory holds. Raises BadInput or UnsupportedModel, which names the way out."""
    directory = files.path
    fields = Fields(read_json(directory / "config.json"))
    kind = fields.get("model_type")
    try:
        _check_fields(fields)
        config = _read(directory, fields)
        model_class = _class_of(config, fields)
        given = GivenFiles(files)
        skeleton = _skeleton_of(model_class, config, given)
        _check_modules(skeleton)
        traced = trace(skeleton)
    except UnsupportedModel as error:
        raise refused(kind, str(error)) from error
    shapes = tuple(traced.shapes)
    model = _model_config(directory, kind, config, skeleton, shapes)
    adaptable = _adaptable(skeleton, traced.by_token)
    return Description(config, model_class, given, shapes, traced.linears, adaptable, model)


def _adaptable(skeleton: Any, by_token: tuple[str, ...]) -> dict[str, MatrixShape]:
    """Return the shapes of linear layers that see each token once, but for the output matrix."""
    head, found = skeleton.get_output_embeddings(), {}
    for name in by_token:
        module = skeleton.get_submodule(name)
        if module is not head:
            found[name] = MatrixShape(*module.weight.shape)
    return found


def _skeleton_of(model_class: type[Any], config: Any, given: GivenFiles) -> Any:
    """Return the model without weights. Raises UnsupportedModel where transformers cannot build it."""
    config._attn_implementation = NAME
    if model_class._can_set_experts_implementation():
        config._experts_implementation = "grouped_mm"  # the others look at values, which are not there
    try:
        # Experts in groups are multiplied in bfloat16 there.
        return without_weights(lambda: model_class(config).eval().to(torch.bfloat16), given)
    except BadInput:
        raise
    except Exception as error:
        raise UnsupportedModel(f"transformers cannot build it: {said(error)}") from error


def _check_fields(fields: Fields) -> None:
    """Refuse what the model's own file says, before transformers looks at it."""
    kind = fields.get("model_type")
    if kind not in CONFIG_MAPPING:
        own_code = (
            " It brings code of its own (auto_map), which is never run." if "auto_map" in fields else ""
        )
        raise UnsupportedModel(f"transformers {transformers.__version__} does not know it.{own_code}")
    if fields.nested("quantization_config") is not None:
        method = fields.nested("quantization_config") or {}
        raise UnsupportedModel(
            f"weights in few bits ({shown(method.get('quant_method'))}) of it are not read"
        )
    if fields.flag("is_encoder_decoder"):
        raise UnsupportedModel("it has an encoder beside the decoder")
    if fields.get("is_causal") is False or fields.get("use_bidirectional_attention") in (True, "all"):
        raise UnsupportedModel("its tokens see later ones: it is no decoder")


def _read(directory: Path, fields: Fields) -> Any:
    try:
        return configuration(fields.values)
    except BadInput as error:
        raise BadInput(f"{directory}: {error}", param=error.param) from error


def _class_of(config: Any, fields: Fields) -> type[Any]:
    """Return the class with a head for text. Raises UnsupportedModel for files of a model with another head."""
    if type(config) not in MODEL_FOR_CAUSAL_LM_MAPPING:
        raise UnsupportedModel("transformers has no head for text for it")
    found: type[Any] = MODEL_FOR_CAUSAL_LM_MAPPING[type(config)]
    named = fields.get("architectures")
    if isinstance(named, list) and named and found.__name__ not in named:
        raise UnsupportedModel(f"its files are those of a {shown(named[0])}, not of a {found.__name__}")
    if getattr(found, "_is_stateful", False):
        raise UnsupportedModel("it keeps a recurrent state between tokens")
    if not found._supports_attention_backend:
        raise UnsupportedModel("it computes its attention itself, not through transformers' interface")
    return found


def _check_modules(skeleton: Any) -> None:
    """Refuse layers that carry something from token to token beside keys and values."""
    for config in _configs(skeleton.config):
        kinds = getattr(config, "layer_types", None) or ()
        other = next((one for one in kinds if one not in _ATTENTION), None)
        if other is not None:
            raise UnsupportedModel(f"it has layers of another kind than attention ({other})")
    decoder = skeleton.get_decoder() if hasattr(skeleton, "get_decoder") else skeleton
    for module in decoder.modules():
        if isinstance(module, torch.nn.Conv1d):
            raise UnsupportedModel("it has convolutions over its tokens, whose state is not kept")
    if skeleton.get_output_embeddings() is None:
        raise UnsupportedModel("transformers does not say which of its matrices is the output")


def _configs(config: Any) -> Iterator[Any]:
    yield config
    text = config.get_text_config(decoder=True)
    if text is not config:
        yield text


def _model_config(
    directory: Path, kind: str, config: Any, skeleton: Any, shapes: tuple[AttentionShape, ...]
) -> ModelConfig:
    text = config.get_text_config(decoder=True)
    head = skeleton.get_output_embeddings()
    kept = tuple(shape.kv for shape in shapes if shape.writes)
    bos = getattr(text, "bos_token_id", None)
    return ModelConfig(
        architecture=kind,
        vocab_size=int(head.weight.shape[0]),
        hidden_size=int(head.weight.shape[1]),
        intermediate_size=_whole(getattr(text, "intermediate_size", None)),
        num_layers=len(shapes),
        num_heads=shapes[0].heads,
        num_kv_heads=kept[0].kv_heads,
        head_dim=kept[0].head_dim,
        max_position_embeddings=positions_of(text),
        rms_norm_eps=0.0,
        rope=RopeConfig(),
        rotary_layers=(),
        sliding_windows=(),
        tie_word_embeddings=bool(getattr(config, "tie_word_embeddings", False)),
        own_kv=kept,
        eos_token_ids=end_token_ids(directory),
        bos_token_id=bos if isinstance(bos, int) else None,
    )


def _whole(value: Any) -> int:
    """Return a size, the largest of those that differ by layer, or 0 where a model has none."""
    sizes = value if isinstance(value, list) else [value]
    return max((size for size in sizes if isinstance(size, int)), default=0)


def positions_of(text: Any) -> int:
    """Return how many positions a model was trained for, as far as one rotation serves all of them.

    longrope rotates otherwise beyond the first, shorter length: keys that were kept before would be wrong there.
    """
    found = next((value for name in _POSITIONS if isinstance(value := getattr(text, name, None), int)), None)
    longest = found or _DEFAULT_POSITIONS
    for rope in _ropes(getattr(text, "rope_parameters", None)):
        first = rope.get("original_max_position_embeddings")
        if rope.get("rope_type") == "longrope" and isinstance(first, int):
            longest = min(longest, first)
    return longest


def _ropes(parameters: Any) -> Iterator[dict[str, Any]]:
    """Yield the rotation of all layers, or that of each kind."""
    if isinstance(parameters, dict):
        yield parameters
        yield from (nested for nested in parameters.values() if isinstance(nested, dict))
