"""Encoders and classifiers of any family that transformers has, computed by it: a text at once, in float32."""

from __future__ import annotations

import copy
import inspect
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
import torch.nn.functional as F
import transformers

from weighbridge.errors import BadInput, UnsupportedModel, said
from weighbridge.models.compute.finite import is_finite, not_finite
from weighbridge.models.files.checkpoint import SafetensorsDirectory, open_safetensors
from weighbridge.models.files.fields import Fields, shown
from weighbridge.models.files.hf_config import read_json
from weighbridge.models.general.given import GivenFiles, configuration, with_weights, without_weights
from weighbridge.models.readers.form import Form, LabelForm, Pooling, VectorForm
from weighbridge.models.readers.pooling import padded, pool

#: The activations that linear layers behind a pooling have.
_ACTIVATIONS = {"Identity": lambda x: x, "Tanh": torch.tanh, "ReLU": torch.relu, "GELU": F.gelu}


class WholeReader:
    """All texts of a batch see themselves alone: padding is masked, or there is none."""

    def __init__(self, path: Path, form: Form, separator: int | None = None) -> None:
        """`separator`: the token between two texts. Raises BadInput or UnsupportedModel for what cannot be run."""
        self.form = form
        self._model = _loaded(path, isinstance(form, LabelForm))
        config = self._model.config.get_text_config()
        self.vocab_size: int = config.vocab_size
        self.positions = _positions(config)
        taken = inspect.signature(self._model.forward).parameters
        typed = (getattr(config, "type_vocab_size", 0) or 0) > 1 and "token_type_ids" in taken
        self._separator = separator if typed else None
        self._always = {"use_cache": False} if "use_cache" in taken else {}
        self._scored = getattr(self._model, "score", None)  # a decoder's head, which reads its last state
        self._dense = [_Dense(path / name) for name in form.dense] if isinstance(form, VectorForm) else []
        self.width = self._width(config.hidden_size)

    def _width(self, hidden: int) -> int:
        if isinstance(self.form, LabelForm):
            if (count := self._model.config.num_labels) != len(self.form.labels):
                raise BadInput(
                    f"config.json: there are {len(self.form.labels)} labels by num_labels, and {count} by id2label"
                )
            return len(self.form.labels)
        for layer in self._dense:
            if layer.weight.shape[1] != hidden:
                raise BadInput(
                    f"{layer.file} has weights of shape {list(layer.weight.shape)} for {hidden} numbers"
                )
            hidden = layer.weight.shape[0]
        return hidden

    @torch.inference_mode()
    def __call__(self, texts: Sequence[Sequence[int]]) -> npt.NDArray[np.float32]:
        """Vectors, or one number a label before its link: [texts, width], of token ids, at least one in each text."""
        batch = padded(texts)
        inputs: dict[str, Any] = {"input_ids": batch.ids, "attention_mask": batch.real.long(), **self._always}
        if self._separator is not None:
            ends = batch.ids == self._separator
            inputs["token_type_ids"] = (ends.cumsum(1) > ends.long()).long() * batch.real
        numbers: npt.NDArray[np.float32] = self._read(inputs, batch.lengths).float().numpy()
        return numbers

    def _read(self, inputs: dict[str, Any], lengths: torch.Tensor) -> torch.Tensor:
        if isinstance(self.form, VectorForm):
            states = self._model(**inputs).last_hidden_state
            pooled = pool(states, lengths, self.form.pooling)
            for layer in self._dense:
                pooled = layer(pooled)
            return F.normalize(pooled, dim=1) if self.form.normalizes else pooled
        if self._scored is None:
            logits: torch.Tensor = self._model(**inputs).logits
            return logits
        body = getattr(self._model, self._model.base_model_prefix)
        last = pool(body(**inputs).last_hidden_state, lengths, Pooling.LAST)
        scored: torch.Tensor = self._scored(last)
        return scored


class _Dense:
    """A linear layer behind the pooling, as sentence-transformers keeps it."""

    def __init__(self, folder: Path) -> None:
        self.file = folder / "model.safetensors"
        fields = Fields(read_json(folder / "config.json"), f"{folder.name}/config.json")
        name = str(fields.get("activation_function") or "Identity").rpartition(".")[2]
        if name not in _ACTIVATIONS:
            raise UnsupportedModel(f"{folder}: the activation {shown(name)} is not supported")
        self._activation = _ACTIVATIONS[name]
        with open_safetensors(self.file) as opened:
            tensors = {name: opened.get_tensor(name) for name in opened.keys()}  # noqa: SIM118
        shape = (fields.whole("out_features"), fields.whole("in_features"))
        weight, bias = tensors.get("linear.weight"), tensors.get("linear.bias")
        if (
            weight is None
            or tuple(weight.shape) != shape
            or (bias is not None and tuple(bias.shape) != shape[:1])
        ):
            raise BadInput(
                f"{self.file} has no tensor 'linear.weight' of shape {list(shape)}, or another bias"
            )
        for name, tensor in tensors.items():
            if not tensor.is_floating_point() or not is_finite(tensor):
                raise not_finite(name, self.file)
        self.weight = weight.float()
        self._bias = None if bias is None else bias.float()

    def __call__(self, x: torch.Tensor) -> torch.Tensor:
        found: torch.Tensor = self._activation(F.linear(x, self.weight, self._bias))
        return found


def _loaded(path: Path, scores: bool) -> Any:
    """The model with every weight of its configuration found, none of them by chance. Raises BadInput otherwise."""
    values = read_json(path / "config.json")
    fields = Fields(values)
    if fields.nested("quantization_config") is not None:
        raise UnsupportedModel(f"{path}: weights in few bits are not read of a model that reads texts whole")
    given = GivenFiles(SafetensorsDirectory(path))
    transformers.utils.logging.disable_progress_bar()
    kind = transformers.AutoModelForSequenceClassification if scores else transformers.AutoModel
    config = configuration(values)
    try:
        skeleton = without_weights(
            lambda: kind.from_config(copy.deepcopy(config), trust_remote_code=False), given
        )
        model, told = with_weights(type(skeleton), skeleton.config, given, dtype=torch.float32)
    except BadInput:
        raise
    except Exception as error:  # whatever it is that transformers does not like about the files
        raise BadInput(f"{path} cannot be loaded: {said(error)}") from error
    _check(path, model, told)
    model.eval()
    return model


def _check(path: Path, model: Any, told: dict[str, Any]) -> None:
    unneeded = ("pooler.", "position_ids")  # no pooling of ours reads BERT's pooler, where there is no head
    missing = sorted(name for name in told["missing_keys"] if not any(word in name for word in unneeded))
    if missing or (told["missing_keys"] and hasattr(model, "classifier")):
        name = (missing or sorted(told["missing_keys"]))[0]
        raise BadInput(
            f"{path} has no tensor {name!r}, which its configuration needs: the file is incomplete, or the "
            "configuration is another model's"
        )
    for name, weight in model.named_parameters():
        if not is_finite(weight):
            raise not_finite(name, path)


def _positions(config: Any) -> int:
    """How many tokens a text may have; RoBERTa's positions begin behind its padding's."""
    longest = int(getattr(config, "max_position_embeddings", 0) or 0)
    if longest < 1:
        return 512
    begins_late = config.model_type in _BEHIND_PADDING and config.pad_token_id is not None
    return longest - int(config.pad_token_id) - 1 if begins_late else longest


_BEHIND_PADDING = frozenset(
    {
        "roberta",
        "xlm-roberta",
        "camembert",
        "mpnet",
        "xlm-roberta-xl",
        "data2vec-text",
        "ibert",
        "roberta-prelayernorm",
    }
)
