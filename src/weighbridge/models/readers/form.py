"""What the files of a model say becomes of a text that it has read: a vector, pooled so, or scores of labels."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, replace
from enum import StrEnum
from pathlib import Path
from typing import Any

from weighbridge.errors import BadInput, UnsupportedModel, said
from weighbridge.models.files.fields import Fields, shown
from weighbridge.models.files.hf_config import read_json

#: Model types that see a whole text at once. (Some can be configured as decoders, which nobody serves.)
ENCODERS = frozenset(
    {
        *("albert", "bert", "camembert", "convbert", "data2vec-text", "deberta", "deberta-v2", "distilbert"),
        *(
            "electra",
            "ernie",
            "eurobert",
            "gte",
            "ibert",
            "jina_embeddings_v3",
            "megatron-bert",
            "mobilebert",
        ),
        *("modernbert", "mpnet", "nomic_bert", "nystromformer", "rembert", "roberta", "roberta-prelayernorm"),
        *("roformer", "squeezebert", "xlm-roberta", "xlm-roberta-xl"),
    }
)
#: Ends of the names of architectures whose heads nobody could ask here.
_OTHER_HEADS = (
    *("ForTokenClassification", "ForQuestionAnswering", "ForMultipleChoice", "ForNextSentencePrediction"),
    *("ForProcessRewardModel", "ForRewardModel", "RewardModel"),
)
_CLASSIFIER = "ForSequenceClassification"
#: More labels than any classifier has; what is written of each stays small.
MAX_LABELS = 100_000


class Pooling(StrEnum):
    """How the states of a text's tokens become one, by sentence-transformers' names."""

    MEAN = "mean_tokens"
    FIRST = "cls_token"
    LAST = "lasttoken"
    MAX = "max_tokens"


class Link(StrEnum):
    """What turns a classifier's numbers into scores."""

    SIGMOID = "sigmoid"
    SOFTMAX = "softmax"
    NONE = "none"


@dataclass(frozen=True, slots=True)
class VectorForm:
    """`dense`: folders of linear layers behind the pooling, in their order. `causal`: a token sees those before it."""

    pooling: Pooling
    normalizes: bool
    dense: tuple[str, ...] = ()
    causal: bool = False

    @property
    def is_last_state(self) -> bool:
        """Whether it is what a decoder leaves at a prompt's last position, scaled to length 1."""
        return self.causal and self.normalizes and self.pooling is Pooling.LAST and not self.dense


@dataclass(frozen=True, slots=True)
class LabelForm:
    """A score for each label, in their order."""

    labels: tuple[str, ...]
    link: Link


Form = VectorForm | LabelForm


def form_of(path: Path) -> Form | None:
    """Return what becomes of texts at the model in a directory; None for a model that writes, and for other files.

    Raises UnsupportedModel naming a head that cannot be asked here, BadInput for files that contradict themselves.
    """
    if not (path / "config.json").is_file():
        return None
    values = read_json(path / "config.json")
    listed = values.get("architectures")
    architecture = listed[0] if isinstance(listed, list) and listed and isinstance(listed[0], str) else ""
    if architecture.endswith(_OTHER_HEADS):
        raise UnsupportedModel(
            f"{path} is a {shown(architecture)}: its head is not supported (models that write, embed or classify "
            "texts are); an engine that has it can be put behind `serve --config`"
        )
    if architecture.endswith(_CLASSIFIER):
        return _labels(Fields(values))
    sees_all = values.get("is_causal") is False or bool(values.get("use_bidirectional_attention"))
    sees_all = sees_all or values.get("model_type") in ENCODERS
    if (path / "modules.json").is_file():
        return replace(_pooled(path), causal=not sees_all)
    if sees_all:
        return VectorForm(Pooling.MEAN, False)
    if architecture.endswith("Model") and not architecture.endswith("LMHeadModel"):  # a body without a head
        return VectorForm(Pooling.LAST, True, causal=True)
    return None


def _labels(fields: Fields) -> LabelForm:
    names = fields.nested("id2label")
    count = fields.whole("num_labels", default=len(names) if names else 2, max=MAX_LABELS)
    labels = tuple(str((names or {}).get(str(index), f"LABEL_{index}")) for index in range(count))
    return LabelForm(labels, _link(fields, count))


def _link(fields: Fields, count: int) -> Link:
    """Return what sentence-transformers was told, else what transformers' pipelines do."""
    told = (fields.nested("sentence_transformers") or {}).get("activation_fn")
    told = told or fields.get("sbert_ce_default_activation_function")
    if told is not None:
        name = str(told).rpartition(".")[2]
        if name not in _ACTIVATIONS:
            raise UnsupportedModel(
                f"config.json: scores through {shown(told)} are not supported (Sigmoid, Softmax, Identity are)"
            )
        return _ACTIVATIONS[name]
    kind = fields.get("problem_type")
    if kind == "regression":
        return Link.NONE
    return Link.SIGMOID if count == 1 or kind == "multi_label_classification" else Link.SOFTMAX


_ACTIVATIONS = {"Sigmoid": Link.SIGMOID, "Softmax": Link.SOFTMAX, "Identity": Link.NONE}


def _pooled(path: Path) -> VectorForm:
    """Return what modules.json says. Raises UnsupportedModel for modules that are not computed."""
    pooling, normalizes, dense = Pooling.MEAN, False, []
    for module in _modules(path / "modules.json"):
        kind = str(module.get("type", "")).rpartition(".")[2]
        if kind == "Pooling":
            pooling = _pooling(path, module)
        elif kind == "Dense":
            dense.append(_folder(path, module))
        elif kind == "Normalize":
            normalizes = True
        elif kind != "Transformer":
            raise UnsupportedModel(f"{path}: a sentence model with {shown(kind)} is not supported")
    return VectorForm(pooling, normalizes, tuple(dense))


def _pooling(path: Path, module: Mapping[str, Any]) -> Pooling:
    values = read_json(path / _folder(path, module) / "config.json")
    fields = Fields(values, "the pooling's config.json")
    chosen = [name for name in values if name.startswith("pooling_mode_") and fields.flag(name)]
    if isinstance(
        values.get("pooling_mode"), str
    ):  # as newer files write it: "mean", "cls", "lasttoken", "max"
        chosen = [f"pooling_mode_{_SHORT.get(values['pooling_mode'], values['pooling_mode'])}"]
    if len(chosen) != 1 or chosen[0].removeprefix("pooling_mode_") not in set(Pooling):
        raise UnsupportedModel(
            f"{path}: pooling by {shown(chosen)} is not supported (one of {', '.join(Pooling)} is)"
        )
    if values.get("include_prompt") is False:
        raise UnsupportedModel(f"{path}: pooling without the prompt (include_prompt: false) is not supported")
    return Pooling(chosen[0].removeprefix("pooling_mode_"))


_SHORT = {"mean": "mean_tokens", "cls": "cls_token", "max": "max_tokens"}


def _folder(path: Path, module: Mapping[str, Any]) -> str:
    # A name, never a path: a configuration must not reach outside its directory.
    folder = Path(str(module.get("path", ""))).name
    if folder in ("", ".."):
        raise BadInput(f"{path}/modules.json: {shown(module.get('path'))} is no directory of this model")
    return folder


def _modules(file: Path) -> list[dict[str, Any]]:
    """Return the parts of a sentence model, in their order."""
    try:
        listed = json.loads(file.read_text(encoding="utf-8")) if file.stat().st_size < 1 << 20 else None
    except (OSError, ValueError, RecursionError) as error:
        raise BadInput(f"{file} cannot be read: {said(error)}") from error
    if not isinstance(listed, list) or not all(isinstance(one, dict) for one in listed):
        raise BadInput(f"{file} must list the modules of a sentence model")
    return listed
