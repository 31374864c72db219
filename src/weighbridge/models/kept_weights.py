"""What becomes of each class of weights on the way from the file to memory: for the log, and for the planner."""

from __future__ import annotations

import logging
import math
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass

from weighbridge.models.files.tensors import needed
from weighbridge.models.keeping import EMBEDDING, OUTPUT, FileMatrix, FileModel, Keeping, Kept, linear_layers

log = logging.getLogger("weighbridge.models")

_CLASSES = (
    ("embed_tokens", "embedding"),
    ("lm_head", "output"),
    ("self_attn", "attention"),
    (".experts.", "experts"),
    ("mlp", "feed-forward"),
)


class KeptWeights:
    """Bytes in memory by class of tensor and by what the weights are there."""

    def __init__(self) -> None:
        self.bytes: Counter[tuple[str, str]] = Counter()

    def note(self, name: str, kept: Kept) -> None:
        """Note a linear layer, or the embedding, by the name of its first matrix."""
        for kind, size in kept.parts:
            self.bytes[class_of(name), kind] += size
        if kept.copy:
            self.bytes[class_of(name), "a dense copy for many tokens"] += kept.copy

    def shared(self, name: str) -> None:
        """Note a matrix that is another one's memory."""
        self.bytes[class_of(name), "shared with the output"] += 0

    def lines(self) -> list[str]:
        """One line a class: what its weights are in memory, with the bytes of each."""
        classes: dict[str, list[str]] = {}
        for (name, kind), size in self.bytes.items():
            classes.setdefault(name, []).append(f"{kind} {size / 1e6:.1f} MB" if size else kind)
        return [f"{name}: {', '.join(kinds)}" for name, kinds in classes.items()]

    def log(self) -> None:
        """Say it once, in the order in which the classes were loaded."""
        log.info("weights in memory: %s", "; ".join(self.lines()))


@dataclass(frozen=True, slots=True)
class ModelMemory:
    """The weights of a model as they will be in memory, in bytes."""

    classes: KeptWeights
    linear: dict[str, int]  # linear layers, output matrix and embedding, by their class
    vectors: int  # norms and routers, in float32
    rotary: int  # the table of sines and cosines

    @property
    def total(self) -> int:
        return sum(self.linear.values()) + self.vectors + self.rotary


def model_memory(model: FileModel, keeping: Keeping, max_model_len: int | None = None) -> ModelMemory:
    """Add up what the weights of a file take."""
    config, kept = model.config, KeptWeights()
    linear: Counter[str] = Counter()
    for layer in linear_memory(model, keeping):
        linear[class_of(layer.name)] += layer.kept.nbytes
        kept.note(layer.name, layer.kept)
    if keeping.shares(model.embedding, model.output):
        kept.shared(EMBEDDING)
    vectors = sum(4 * math.prod(need.shape) for need in needed(config) if _is_vector(need.name))
    positions = max_model_len or config.max_position_embeddings
    tables = 1 if config.local_rope is None else 2
    return ModelMemory(kept, dict(linear), vectors, 4 * tables * positions * config.head_dim)


@dataclass(frozen=True, slots=True)
class LayerMemory:
    """One linear layer, the output matrix or the embedding: what it is made of, and what it is in memory."""

    name: str
    matrices: list[FileMatrix]
    kept: Kept


def linear_memory(model: FileModel, keeping: Keeping) -> Iterator[LayerMemory]:
    """Yield what becomes of each matrix of a file, layer by layer as the loader builds them."""
    for layer in linear_layers(model.config):
        matrices = [model.matrices[name] for name in layer.names]
        kept = keeping.linear(matrices, keeping.scheme.bits, layer.bias)
        yield LayerMemory(layer.names[0], matrices, kept)
    embedding, output = model.embedding, model.output
    yield LayerMemory(OUTPUT, [output or embedding], keeping.output(embedding, output))
    if not keeping.shares(embedding, output):
        yield LayerMemory(EMBEDDING, [embedding], keeping.embedding(embedding))


def _is_vector(name: str) -> bool:
    """Norms, routers and the gate of a shared expert; biases belong to their matrices."""
    return name.endswith(("norm.weight", ".gate.weight", "shared_expert_gate.weight"))


def class_of(name: str) -> str:
    return next((word for part, word in _CLASSES if part in name), "other")
