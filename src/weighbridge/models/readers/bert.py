"""BERT itself (Devlin et al. 2018), which most small encoders are: ready before transformers would be imported."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt
import torch
import torch.nn.functional as F

from weighbridge.errors import BadInput, UnsupportedModel
from weighbridge.models.files.checkpoint import open_safetensors
from weighbridge.models.files.fields import Fields, shown
from weighbridge.models.files.hf_config import read_json
from weighbridge.models.readers.form import VectorForm
from weighbridge.models.readers.pooling import padded, pool

_FLOATS = (torch.float32, torch.float16, torch.bfloat16)
#: Where a file has heads for other tasks beside the encoder, its names begin so.
_PREFIX = "bert."


@dataclass(frozen=True, slots=True)
class EncoderConfig:
    """Sizes of an encoder."""

    vocab_size: int
    hidden_size: int
    num_layers: int
    num_heads: int
    intermediate_size: int
    positions: int
    types: int
    norm_eps: float


def read_encoder_config(path: Path) -> EncoderConfig:
    """Return the shape of the encoder in a directory. Raises BadInput or UnsupportedModel naming the field."""
    fields = Fields(read_json(path / "config.json"))
    activation = fields.get("hidden_act") or "gelu"
    if activation != "gelu":
        raise UnsupportedModel(f"activation {shown(activation)} of an encoder is not supported (gelu is)")
    if fields.get("position_embedding_type") not in (None, "absolute") or fields.flag("is_decoder"):
        raise UnsupportedModel(f"{path}: relative positions, and decoders of BERT's shape, are not supported")
    config = EncoderConfig(
        vocab_size=fields.whole("vocab_size"),
        hidden_size=fields.whole("hidden_size"),
        num_layers=fields.layers("num_hidden_layers"),
        num_heads=fields.whole("num_attention_heads"),
        intermediate_size=fields.whole("intermediate_size"),
        positions=fields.whole("max_position_embeddings"),
        types=fields.whole("type_vocab_size", default=2),
        norm_eps=fields.positive("layer_norm_eps", 1e-12),
    )
    if config.hidden_size % config.num_heads:
        raise BadInput(
            f"config.json: {config.num_heads} heads do not divide a hidden size of {config.hidden_size}"
        )
    return config


def _needed(config: EncoderConfig) -> Iterator[tuple[str, tuple[int, ...]]]:
    """Every tensor of an encoder with its shape."""
    hidden, inner = config.hidden_size, config.intermediate_size
    yield "embeddings.word_embeddings.weight", (config.vocab_size, hidden)
    yield "embeddings.position_embeddings.weight", (config.positions, hidden)
    yield "embeddings.token_type_embeddings.weight", (config.types, hidden)
    yield from _pair("embeddings.LayerNorm", (hidden,))
    for index in range(config.num_layers):
        layer = f"encoder.layer.{index}."
        for name in (
            "attention.self.query",
            "attention.self.key",
            "attention.self.value",
            "attention.output.dense",
        ):
            yield from _pair(layer + name, (hidden, hidden))
        yield from _pair(layer + "attention.output.LayerNorm", (hidden,))
        yield from _pair(layer + "intermediate.dense", (inner, hidden))
        yield from _pair(layer + "output.dense", (hidden, inner))
        yield from _pair(layer + "output.LayerNorm", (hidden,))


def _pair(stem: str, shape: tuple[int, ...]) -> Iterator[tuple[str, tuple[int, ...]]]:
    yield f"{stem}.weight", shape
    yield f"{stem}.bias", shape[:1]


def _read(path: Path, config: EncoderConfig) -> dict[str, torch.Tensor]:
    """Return all tensors in float32. Raises BadInput naming the first that is missing, or of another shape."""
    file = path / "model.safetensors"
    if not file.is_file():
        raise BadInput(f"{path} has no model.safetensors")
    tensors: dict[str, torch.Tensor] = {}
    with open_safetensors(file) as opened:
        names = set(opened.keys())
        for name, shape in _needed(config):
            own = name if name in names else _PREFIX + name
            if own not in names or tuple(opened.get_slice(own).get_shape()) != shape:
                raise BadInput(
                    f"{file} has no tensor {name!r} of shape {list(shape)}, which its configuration needs: the "
                    "file is damaged, or the configuration is another model's"
                )
            tensor = opened.get_tensor(own)
            if tensor.dtype not in _FLOATS or not bool(tensor.isfinite().all()):
                raise BadInput(
                    f"tensor {own!r} of {file} holds what are no finite floats: the file is damaged"
                )
            tensors[name] = tensor.float().contiguous()
    return tensors


class BertReader:
    """All texts of a batch see themselves alone: padding is masked."""

    def __init__(self, path: Path, form: VectorForm) -> None:
        """Raises BadInput or UnsupportedModel for what cannot be run."""
        self.form = form
        self.config = read_encoder_config(path)
        self.width, self.positions = self.config.hidden_size, self.config.positions
        self.vocab_size = self.config.vocab_size
        self._tensors = _read(path, self.config)

    @torch.inference_mode()
    def __call__(self, texts: Sequence[Sequence[int]]) -> npt.NDArray[np.float32]:
        """Vectors [texts, hidden] of texts as token ids, each of at least one token."""
        batch = padded(texts)
        pooled = pool(self._states(batch.ids, batch.real), batch.lengths, self.form.pooling)
        vectors = F.normalize(pooled, dim=1) if self.form.normalizes else pooled
        numbers: npt.NDArray[np.float32] = vectors.numpy()
        return numbers

    def _states(self, ids: torch.Tensor, real: torch.Tensor) -> torch.Tensor:
        weights = self._tensors
        words = F.embedding(ids, weights["embeddings.word_embeddings.weight"])
        positions = weights["embeddings.position_embeddings.weight"][: ids.shape[1]]
        states = words + positions + weights["embeddings.token_type_embeddings.weight"][0]
        states = self._norm("embeddings.LayerNorm", states)
        mask = real[:, None, None, :]
        for index in range(self.config.num_layers):
            layer = f"encoder.layer.{index}."
            attended = self._attended(layer + "attention.self.", states, mask)
            attended = self._linear(layer + "attention.output.dense", attended)
            states = self._norm(layer + "attention.output.LayerNorm", attended + states)
            inner = F.gelu(self._linear(layer + "intermediate.dense", states))
            states = self._norm(
                layer + "output.LayerNorm", self._linear(layer + "output.dense", inner) + states
            )
        return states

    def _attended(self, stem: str, states: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
        texts, length, hidden = states.shape
        heads = self.config.num_heads
        query, key, value = (
            self._linear(stem + name, states).view(texts, length, heads, hidden // heads).transpose(1, 2)
            for name in ("query", "key", "value")
        )
        attended = F.scaled_dot_product_attention(query, key, value, attn_mask=mask)
        return attended.transpose(1, 2).reshape(texts, length, hidden)

    def _linear(self, stem: str, x: torch.Tensor) -> torch.Tensor:
        return F.linear(x, self._tensors[f"{stem}.weight"], self._tensors[f"{stem}.bias"])

    def _norm(self, stem: str, x: torch.Tensor) -> torch.Tensor:
        weight, bias = self._tensors[f"{stem}.weight"], self._tensors[f"{stem}.bias"]
        return F.layer_norm(x, (self.config.hidden_size,), weight, bias, self.config.norm_eps)
