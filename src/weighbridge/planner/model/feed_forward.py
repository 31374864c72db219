"""What follows the mixer of each layer: a dense block, experts, or nothing. The one table of a model's expert layers.

Plans, `moe params`, `moe offload` and the cost of a step are all counted from it.
"""

from __future__ import annotations

from collections.abc import Callable

from weighbridge.errors import UnsupportedModel
from weighbridge.planner.model.architecture import Assumption, DenseBlock, ExpertBlock, FeedForward
from weighbridge.planner.model.fields import ModelFields

#: Two matrices instead of three: no gate.
_UNGATED = {"opt", "gpt2", "gpt_neox", "gpt_bigcode", "starcoder2", "falcon", "phi", "nemotron", "nemotron_h"}
_COUNTS = ("n_routed_experts", "num_local_experts", "num_experts", "moe_num_experts", "num_moe_experts")
_ACTIVE = (
    "num_experts_per_tok",
    "top_k_experts",
    "num_experts_per_token",
    "experts_per_token",
    "moe_topk",
    "moe_top_k",
    "moe_k",
)
#: What may be said layer by layer; it has to be the same for all.
_EVEN = (*_COUNTS, *_ACTIVE, "num_shared_expert", "moe_intermediate_size")
_SHARED = ("n_shared_experts", "num_shared_experts", "moe_num_shared_experts", "num_shared_expert")


def feed_forwards(fields: ModelFields, family: str, layers: int) -> list[FeedForward | None]:
    """Return the block behind the mixer of every layer; None in layers that are a mixer only (Nemotron-H).

    Raises BadInput, or UnsupportedModel for experts that differ from layer to layer.
    """
    fields = _evened(fields, family)
    if family == "doge" and fields.flag("is_moe"):
        raise UnsupportedModel(
            "model type 'doge' with is_moe is not planned: its experts are rows of a table"
        )
    marks = _marks(fields, layers)
    if marks is not None:
        return [_marked(fields, family, mark) for mark in marks]
    if not _has_experts(fields, family):
        return [_dense(fields, family)] * layers
    sparse = sparse_layers(fields, layers)
    experts = _experts(fields, family) if any(sparse) else None
    dense = _dense(fields, family) if not all(sparse) else None
    return [experts if is_sparse else dense for is_sparse in sparse]


def _evened(fields: ModelFields, family: str) -> ModelFields:
    """The same fields with one number where Hunyuan writes one for each layer."""
    values = dict(fields.values)
    for name in _EVEN:
        if isinstance(listed := values.get(name), list) and listed:
            if any(value != listed[0] for value in listed):
                what = f"config.json: {name} of {family!r} differs from layer to layer"
                raise UnsupportedModel(f"{what}, which is not planned")
            values[name] = listed[0]
    return ModelFields(values, fields.assumptions)


def _has_experts(fields: ModelFields, family: str) -> bool:
    if fields.values.get("enable_moe_block") is False or family == "doge":
        return False
    return fields.get(*_COUNTS) not in (None, 0, 1)


def _marks(fields: ModelFields, layers: int) -> list[str] | None:
    """What each layer is, where a layer is either a mixer or a feed-forward block (Nemotron-H)."""
    pattern = fields.get("hybrid_override_pattern")
    if isinstance(pattern, str):
        names = {"E": "moe", "-": "mlp"}
        return [names.get(mark, "") for mark in pattern if mark != "|"][:layers]
    kinds = fields.get("layers_block_type")
    if isinstance(kinds, list) and {"moe", "mlp"} & set(map(str, kinds)):
        return [str(kind) for kind in kinds][:layers]
    return None


def _marked(fields: ModelFields, family: str, mark: str) -> FeedForward | None:
    if mark == "moe":
        return _experts(fields, family)
    return _dense(fields, family) if mark == "mlp" else None


def sparse_layers(fields: ModelFields, layers: int) -> list[bool]:
    """Return whether each layer of a mixture has experts. Families say it in seven ways."""
    kinds = fields.get("mlp_layer_types")
    if isinstance(kinds, list):
        return [str(kind) == "sparse" for kind in fields.listed("mlp_layer_types", layers) or []]
    frequency = fields.get("moe_layer_freq")
    if isinstance(frequency, list):
        return [bool(flag) for flag in fields.listed("moe_layer_freq", layers) or []]
    listed = fields.get("moe_layers")
    if isinstance(listed, list):
        return [index in listed for index in range(layers)]
    if "expert_layer_period" in fields:  # Jamba
        period = fields.whole("expert_layer_period")
        offset = fields.whole("expert_layer_offset", default=0, min=0)
        return [index % period == offset for index in range(layers)]
    dense_first = fields.whole("first_k_dense_replace", "num_dense_layers", default=0, min=0)
    if "moe_layer_start_index" in fields:  # ERNIE
        dense_first = fields.whole("moe_layer_start_index", min=0)
    last = fields.get("moe_layer_end_index")
    end = last if isinstance(last, int) and 0 <= last < layers else layers - 1
    dense = fields.get("mlp_only_layers") or ()
    every = _every(fields)
    return [dense_first <= index <= end and index not in dense and every(index) for index in range(layers)]


def _every(fields: ModelFields) -> Callable[[int], bool]:
    """Which layers have their turn, where experts come in steps: DeepSeek counts from the first layer, others to it."""
    if fields.get("moe_layer_freq") is not None:
        step = fields.whole("moe_layer_freq")
        return lambda index: index % step == 0
    names = ("interleave_moe_layer_step", "decoder_sparse_step", "moe_layer_interval")
    step = fields.whole(*names, default=1)
    return lambda index: (index + 1) % step == 0


def _dense(fields: ModelFields, family: str) -> DenseBlock:
    names: tuple[str, ...] = ("intermediate_size", "ffn_dim", "ffn_hidden_size", "n_inner")
    if family.startswith("llama4"):
        names = ("intermediate_size_mlp", *names)
    hidden = fields.whole("hidden_size", "n_embd", "d_model")
    if fields.get(*names) is None:
        width = hidden * 7 // 2
        sentence = f"intermediate_size is not given; 3.5 x hidden_size = {width} assumed"
        fields = fields.with_guess(Assumption("intermediate_size", width, sentence, rough=True))
    return DenseBlock(fields.whole(*names), gated=family not in _UNGATED)


def _experts(fields: ModelFields, family: str) -> ExpertBlock:
    count = fields.whole(*_COUNTS)
    if fields.get("moe_intermediate_size", "expert_ffn_hidden_size", "intermediate_size") is None:
        width = max(fields.whole("hidden_size") // 4, 1)
        sentence = f"moe_intermediate_size is not given; hidden_size / 4 = {width} assumed"
        fields = fields.with_guess(Assumption("moe_intermediate_size", width, sentence, rough=True))
    width = fields.whole("moe_intermediate_size", "expert_ffn_hidden_size", "intermediate_size")
    shared = fields.whole(*_SHARED, default=0, min=0) * fields.whole(
        "moe_shared_expert_intermediate_size", default=width
    )
    if family.startswith("llama4"):
        shared = width
    if family.startswith("hunyuan"):  # one that all layers have, whether it is counted or not
        shared = shared or width
    gate = "shared_expert_intermediate_size" in fields
    names = ("shared_expert_intermediate_size", "shared_intermediate_size", "share_expert_dim")
    beside = fields.whole("intermediate_size") if family.startswith("gemma4") else 0
    return ExpertBlock(
        count,
        fields.whole(*_ACTIVE),
        width,
        shared_intermediate=fields.whole(*names, default=shared, min=0),
        shared_gate=gate,
        gated=family not in _UNGATED,
        bias=family == "gpt_oss",
        router_bias=family == "gpt_oss" or fields.get("topk_method") == "noaux_tc",
        latent=fields.whole("moe_latent_size", "moe_hidden_size", default=0, min=0),
        dense_intermediate=beside,
    )
