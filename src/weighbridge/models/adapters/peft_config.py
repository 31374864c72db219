"""What an adapter_config.json says, held against one table of PEFT's fields.

A field that changes what is computed, and that is not computed here, is refused by its name; so is one that nobody here
knows, as soon as it says something. The fields are those of PEFT's `LoraConfig`.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, NamedTuple, TypeVar

from weighbridge.errors import BadInput, UnsupportedModel
from weighbridge.models.files.fields import Fields, finite_number, shown, whole_number

Value = TypeVar("Value", int, float)

#: More patterns than any model has modules of different ranks.
MAX_PATTERNS = 10_000
#: A larger rank is no low one; `--max-lora-rank` is mostly far below.
MAX_RANK = 4096

#: Names of modules; PEFT takes regular expressions too, which are not run here.
_PLAIN = re.compile(r"[\w.-]{1,300}")

_MERGE = "merge it into its base (PEFT's merge_and_unload()) and serve the result"
_PLAIN_LORA = (
    "training began by changing the base's own weights: save it with path_initial_model_for_weight_conversion, which "
    "makes a plain LoRA of it"
)

#: Of training alone, or words for people: whatever they say, the same is computed.
_IDLE = frozenset(
    {
        *("auto_mapping", "base_model_name_or_path", "revision", "inference_mode", "peft_version"),
        *("lora_dropout", "target_modules", "exclude_modules", "layers_to_transform", "layers_pattern"),
        *(
            "megatron_core",
            "qalora_group_size",
            "runtime_config",
            "eva_config",
            "corda_config",
            "lora_ga_config",
        ),
        *("r", "lora_alpha", "rank_pattern", "alpha_pattern", "use_rslora"),  # read below
    }
)


def _is_empty(value: object) -> bool:
    return value is None or value is False or value in ("", [], {})


class _Rule(NamedTuple):
    allows: Callable[[Any], bool]
    reason: str


def _only(*values: object) -> Callable[[Any], bool]:
    return lambda value: any(value is one or (isinstance(one, str) and value == one) for one in values)


_RULES: Mapping[str, _Rule] = {
    "peft_type": _Rule(_only("LORA"), "only LoRA adapters are served"),
    "task_type": _Rule(_only(None, "CAUSAL_LM"), "only adapters of models that write text are served"),
    "bias": _Rule(_only(None, "none"), f"biases of its own are not computed; {_MERGE}"),
    "lora_bias": _Rule(_is_empty, f"biases of its own are not computed; {_MERGE}"),
    "use_dora": _Rule(_is_empty, f"DoRA scales the base's own weights, which is not computed; {_MERGE}"),
    "modules_to_save": _Rule(_is_empty, f"whole modules of its own would take the base's place; {_MERGE}"),
    "trainable_token_indices": _Rule(_is_empty, f"it has embeddings of its own; {_MERGE}"),
    "target_parameters": _Rule(_is_empty, f"it changes parameters that are no linear layers; {_MERGE}"),
    "layer_replication": _Rule(_is_empty, f"it repeats layers of the base; {_MERGE}"),
    "fan_in_fan_out": _Rule(_is_empty, f"its base has matrices the other way round (Conv1D); {_MERGE}"),
    "alora_invocation_tokens": _Rule(
        _is_empty, "activated LoRA begins within a prompt, which is not computed"
    ),
    "use_qalora": _Rule(_is_empty, f"QA-LoRA pools what goes in, which is not computed; {_MERGE}"),
    "use_bdlora": _Rule(_is_empty, f"block-diagonal LoRA is not computed; {_MERGE}"),
    "arrow_config": _Rule(_is_empty, "Arrow mixes several adapters, which is not computed"),
    "megatron_config": _Rule(_is_empty, "adapters of Megatron's own layers are not read"),
    "ensure_weight_tying": _Rule(_is_empty, f"it ties what it adds to the embedding; {_MERGE}"),
    "loftq_config": _Rule(_is_empty, _PLAIN_LORA),
    "init_lora_weights": _Rule(_only(None, True, False, "gaussian", "eva", "orthogonal"), _PLAIN_LORA),
}


@dataclass(frozen=True, slots=True)
class LoraConfig:
    """`ranks` and `alphas`: of modules that have others, by the end of their names.

    `targets`: ends of names of which every module must have matrices; None: that cannot be told.
    """

    rank: int
    alpha: float
    rank_stabilized: bool
    ranks: Mapping[str, int]
    alphas: Mapping[str, float]
    targets: tuple[str, ...] | None

    def rank_of(self, module: str) -> int:
        return next((rank for name, rank in self.ranks.items() if is_below(module, name)), self.rank)

    def scale_of(self, module: str) -> float:
        """What the product of a module's two matrices is multiplied by."""
        alpha = next((alpha for name, alpha in self.alphas.items() if is_below(module, name)), self.alpha)
        rank = self.rank_of(module)
        return alpha / (math.sqrt(rank) if self.rank_stabilized else rank)

    def wants(self, module: str) -> bool:
        """Whether this module must have matrices."""
        return self.targets is not None and any(is_below(module, name) for name in self.targets)


def is_below(module: str, name: str) -> bool:
    """Whether `name` is a module's name, or the last parts of it."""
    return module == name or module.endswith(f".{name}")


def lora_config(fields: Fields) -> LoraConfig:
    """Return what a configuration says. Raises BadInput, or UnsupportedModel for what is not computed."""
    where = fields.where
    if "peft_type" not in fields:
        raise BadInput(f"{where}: peft_type is missing: it is no adapter of PEFT's")
    for name, value in fields.values.items():
        rule = _RULES.get(name)
        if rule is not None and not rule.allows(value):
            raise UnsupportedModel(f"{where}: {name} is {shown(value)}: {rule.reason}")
        if rule is None and name not in _IDLE and not _is_empty(value):
            raise UnsupportedModel(
                f"{where}: {shown(name)} is {shown(value)}, which nobody here knows, and it may change what is computed"
            )
    return LoraConfig(
        rank=fields.whole("r", max=MAX_RANK),
        alpha=_alpha(fields),
        rank_stabilized=fields.flag("use_rslora"),
        ranks=_pattern(
            fields, "rank_pattern", lambda value: whole_number(value, "rank_pattern", where, 1, MAX_RANK)
        ),
        alphas=_pattern(fields, "alpha_pattern", lambda value: finite_number(value, "alpha_pattern", where)),
        targets=_targets(fields),
    )


def _alpha(fields: Fields) -> float:
    if "lora_alpha" not in fields:
        raise BadInput(f"{fields.where}: lora_alpha is missing; it must be a number", param="lora_alpha")
    return fields.number("lora_alpha", 0.0)


def _pattern(fields: Fields, name: str, read: Callable[[Any], Value]) -> dict[str, Value]:
    found = fields.nested(name) or {}
    if len(found) > MAX_PATTERNS:
        raise BadInput(
            f"{fields.where}: {name} has {len(found)} entries, more than {MAX_PATTERNS}", param=name
        )
    other = next((key for key in found if not _PLAIN.fullmatch(key)), None)
    if other is not None:
        raise UnsupportedModel(
            f"{fields.where}: {name} has {shown(other)}: regular expressions of a file are not run; name the modules"
        )
    return {key: read(value) for key, value in found.items()}


def _targets(fields: Fields) -> tuple[str, ...] | None:
    """Names whose modules must all be there, where the configuration lists them and leaves none of them out."""
    listed = fields.get("target_modules")
    if not isinstance(listed, list) or not all(isinstance(name, str) for name in listed):
        return None
    if len(listed) > MAX_PATTERNS:
        raise BadInput(
            f"{fields.where}: target_modules has {len(listed)} entries, more than {MAX_PATTERNS}",
            param="target_modules",
        )
    some = any(
        not _is_empty(fields.get(name))
        for name in ("exclude_modules", "layers_to_transform", "layers_pattern")
    )
    return None if some else tuple(listed)
