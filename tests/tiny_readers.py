"""Tiny models that read texts whole, random: encoders of several families, classifiers, bodies of decoders."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch
import transformers
from safetensors.torch import save_file

from tests.tiny_encoder import tiny_word_pieces

SIZES = {
    "hidden_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "intermediate_size": 64,
    "max_position_embeddings": 64,
    "initializer_range": 0.4,
}
#: By model type what its configuration needs beside or instead.
TYPES: dict[str, dict[str, Any]] = {
    "bert": {},
    "roberta": {"pad_token_id": 0, "max_position_embeddings": 65, "type_vocab_size": 1},
    "xlm-roberta": {"pad_token_id": 0, "max_position_embeddings": 65, "type_vocab_size": 1},
    "distilbert": {"dim": 32, "n_layers": 2, "n_heads": 4, "hidden_dim": 64},
    "electra": {"embedding_size": 16},
    "mpnet": {"pad_token_id": 0, "max_position_embeddings": 65, "type_vocab_size": 1},
    "albert": {"embedding_size": 16},
    "deberta-v2": {"relative_attention": True, "pos_att_type": ["p2c", "c2p"]},
    "modernbert": {"global_attn_every_n_layers": 2, "local_attention": 8, "pad_token_id": 0},
    "qwen2": {"num_key_value_heads": 2, "eos_token_id": 1},
    "qwen3": {"num_key_value_heads": 2, "head_dim": 8, "eos_token_id": 1},
    "llama": {"num_key_value_heads": 2, "eos_token_id": 1},
}


def make_reader(directory: Path, kind: str, labels: int = 0, **fields: Any) -> Path:
    """Save a model of a type: with `labels` as a classifier of so many, else as a body without a head."""
    tokenizer = tiny_word_pieces()
    tokenizer.save_pretrained(directory)
    options = {**SIZES, "vocab_size": len(tokenizer), **TYPES[kind], **fields}
    if labels:
        options["num_labels"] = labels
    config = transformers.AutoConfig.for_model(kind, **options)
    torch.manual_seed(1)
    auto = transformers.AutoModelForSequenceClassification if labels else transformers.AutoModel
    model = auto.from_config(config)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.dim() == 1:
                parameter.add_(torch.randn_like(parameter) * 0.2)
    model.save_pretrained(directory)
    return directory


def say_pooling(directory: Path, pooling: str, normalizes: bool, dense: int | None = None) -> Path:
    """Write what sentence-transformers keeps beside a model; `dense`: the width of a layer behind the pooling."""
    kinds = [("", "Transformer"), ("1_Pooling", "Pooling")]
    if dense is not None:
        kinds.append(("2_Dense", "Dense"))
        _save_dense(directory / "2_Dense", dense)
    if normalizes:
        kinds.append(("3_Normalize", "Normalize"))
    modules = [
        {"idx": index, "path": path, "type": f"sentence_transformers.models.{kind}"}
        for index, (path, kind) in enumerate(kinds)
    ]
    (directory / "modules.json").write_text(json.dumps(modules))
    (directory / "1_Pooling").mkdir(exist_ok=True)
    (directory / "1_Pooling" / "config.json").write_text(json.dumps({f"pooling_mode_{pooling}": True}))
    return directory


def _save_dense(folder: Path, width: int) -> None:
    folder.mkdir()
    settings = {
        "in_features": 32,
        "out_features": width,
        "bias": True,
        "activation_function": "torch.nn.modules.activation.Tanh",
    }
    (folder / "config.json").write_text(json.dumps(settings))
    torch.manual_seed(2)
    save_file(
        {"linear.weight": torch.randn(width, 32), "linear.bias": torch.randn(width)},
        folder / "model.safetensors",
    )
