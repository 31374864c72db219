"""What transformers knows of a model directory, without reading its weights; what cannot be served is refused by name.

Only classes of the installed transformers are used: code that a directory brings along (`auto_map`) never runs.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import transformers
from transformers import CONFIG_MAPPING, MODEL_FOR_CAUSAL_LM_MAPPING

from weighbridge.errors import BadInput, UnsupportedModel, said
from weighbridge.models.adapters.peft_file import MatrixShape
from weighbridge.models.files.checkpoint import SafetensorsDirectory
from weighbridge.models.files.config import KvShape, ModelConfig, RopeConfig
from weighbridge.models.files.fields import Fields, shown
from weighbridge.models.files.hf_config import end_token_ids, read_json
from weighbridge.models.files.packing import Packing, packing_of
from weighbridge.models.general.given import GivenFiles, configuration, without_weights
from weighbridge.models.general.packed.experts import find_experts, shapes_of
from weighbridge.models.general.packed.mxfp4 import METHOD, WIDTHS
from weighbridge.models.general.refusals import refused
from weighbridge.models.general.seam import NAME
from weighbridge.models.general.tracing import AttentionShape, Traced, is_within, trace

#: Where a configuration says how many positions there are.
_POSITIONS = ("max_position_embeddings", "n_positions", "max_sequence_length", "max_seq_len", "seq_length")
#: Of a model that does not say; its users set --max-model-len.
_DEFAULT_POSITIONS = 2048
#: Kinds of layers whose attention is over all that is before a token, or over a window of it, or that have none.
_BY_TOKEN = frozenset(("full_attention", "sliding_attention", "attention", "mlp", "moe"))
#: Those that may keep a state; whether they do is seen when the model is traced.
_MAY_CARRY = frozenset(
    ("conv", "linear_attention", "hybrid", "hybrid_sliding", "mamba", "mamba2", "recurrent")
)


@dataclass(frozen=True, slots=True)
class Description:
    """A model of transformers that can be served. `model_class` builds it from `config`, and `given` fills it."""

    config: Any
    model_class: type[Any]
    given: GivenFiles
    shapes: tuple[AttentionShape, ...]
    linears: frozenset[str]  # names of layers whose place ours can take
    adaptable: Mapping[str, MatrixShape]  # of those, the ones that adapters can add to
    carriers: tuple[str, ...]  # names of layers that carry something from token to token
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
        given = GivenFiles(files, *_few_bits(fields))
        skeleton = _skeleton_of(model_class, config, given)
        if given.coded is not None:
            given.coded.check({name: shapes_of(layer) for name, layer in find_experts(skeleton)})
        if skeleton.get_output_embeddings() is None:
            raise UnsupportedModel("transformers does not say which of its matrices is the output")
        _check_kinds(kind for _, kind in _other_layers(skeleton) if kind not in _MAY_CARRY)
        traced = trace(skeleton, _carries(skeleton))
        _check_carried(skeleton, traced)
        if given.placed is not None:
            given.placed.find_places(skeleton, traced.linears, given.plain)
    except UnsupportedModel as error:
        raise refused(kind, str(error)) from error
    model = _model_config(directory, kind, config, skeleton, traced)
    adaptable = _adaptable(skeleton, traced.by_token)
    return Description(
        config, model_class, given, traced.shapes, traced.linears, adaptable, traced.carriers, model
    )


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
    if fields.flag("is_encoder_decoder"):
        raise UnsupportedModel("it has an encoder beside the decoder")
    if fields.get("is_causal") is False or fields.get("use_bidirectional_attention") in (True, "all"):
        raise UnsupportedModel("its tokens see later ones: it is no decoder")


def _few_bits(fields: Fields) -> tuple[Packing | None, bool]:
    """Return by which format matrices are in few bits, and whether experts are as gpt-oss is published."""
    if fields.get("model_type") not in WIDTHS:
        return packing_of(fields), False
    said_of_bits = fields.nested("quantization_config")
    if said_of_bits is None:
        return None, False
    if (method := said_of_bits.get("quant_method") or "") != METHOD:
        raise UnsupportedModel(f"weights in few bits ({shown(method)}) of it are not read")
    return None, True


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
    return found


def _carries(skeleton: Any) -> bool:
    """Whether a model says that it carries something from token to token beside keys and values."""
    return (
        bool(getattr(skeleton, "_is_stateful", False))
        or any(_other_layers(skeleton))
        or any(_convs(skeleton))
    )


def _check_carried(skeleton: Any, traced: Traced) -> None:
    """Refuse what is carried from token to token and not kept as `traced` saw it."""
    keeping = {shape.layer for shape in traced.states}
    _check_kinds(kind for layer, kind in _other_layers(skeleton) if layer not in keeping)
    if getattr(skeleton, "_is_stateful", False) and not keeping:
        raise UnsupportedModel("it keeps a recurrent state between tokens in a way of its own")
    if any(not any(is_within(name, carrier) for carrier in traced.carriers) for name in _convs(skeleton)):
        raise UnsupportedModel("it has convolutions over its tokens, whose state is not kept")


def _check_kinds(others: Iterable[str]) -> None:
    """Refuse a kind of layer that is neither attention nor keeps a state."""
    other = next(iter(others), None)
    if other is not None:
        raise UnsupportedModel(f"it has layers of another kind than attention ({other})")


def _other_layers(skeleton: Any) -> Iterator[tuple[int, str]]:
    """Yield the layers that are of another kind than attention, by their numbers."""
    for config in _configs(skeleton.config):
        for layer, kind in enumerate(getattr(config, "layer_types", None) or ()):
            if kind not in _BY_TOKEN:
                yield layer, kind


def _convs(skeleton: Any) -> Iterator[str]:
    """Yield the names of convolutions over tokens."""
    decoder = skeleton.get_decoder() if hasattr(skeleton, "get_decoder") else skeleton
    inside = {id(module) for module in decoder.modules()}
    for name, module in skeleton.named_modules():
        if isinstance(module, torch.nn.Conv1d) and id(module) in inside:
            yield name


def _configs(config: Any) -> Iterator[Any]:
    yield config
    text = config.get_text_config(decoder=True)
    if text is not config:
        yield text


def _model_config(directory: Path, kind: str, config: Any, skeleton: Any, traced: Traced) -> ModelConfig:
    text = config.get_text_config(decoder=True)
    head = skeleton.get_output_embeddings()
    shapes = traced.shapes
    kept = tuple(shape.kv for shape in shapes if shape.writes)
    first = kept[0] if kept else KvShape(0, 0)  # of a model with states alone
    bos = getattr(text, "bos_token_id", None)
    return ModelConfig(
        architecture=kind,
        vocab_size=int(head.weight.shape[0]),
        hidden_size=int(head.weight.shape[1]),
        intermediate_size=_whole(getattr(text, "intermediate_size", None)),
        num_layers=len(shapes),
        num_heads=shapes[0].heads if shapes else 0,
        num_kv_heads=first.kv_heads,
        head_dim=first.head_dim,
        max_position_embeddings=positions_of(text),
        rms_norm_eps=0.0,
        rope=RopeConfig(),
        rotary_layers=(),
        sliding_windows=(),
        tie_word_embeddings=bool(getattr(config, "tie_word_embeddings", False)),
        own_kv=kept,
        states=traced.states,
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
