"""Sentence encoders against transformers, and files that are damaged or another model's."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import transformers
from safetensors.torch import load_file, save_file

from tests.tiny import TEXT
from tests.tiny_encoder import make_tiny_encoder
from weighbridge.errors import BadInput, UnsupportedModel
from weighbridge.models.readers.bert import BertReader
from weighbridge.models.readers.form import Pooling, VectorForm, form_of
from weighbridge.models.text.tokenizer import load_tokenizer

TEXTS = [TEXT[0], "a", "The lazy dog", TEXT[1] + TEXT[2]]


@pytest.fixture(scope="module")
def directory(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_tiny_encoder(tmp_path_factory.mktemp("tiny") / "encoder")


def test_only_directories_of_encoders_are_encoders(directory: Path, tmp_path: Path) -> None:
    assert form_of(directory) == VectorForm(Pooling.MEAN, True)
    (tmp_path / "config.json").write_text('{"model_type": "llama"}')
    assert form_of(tmp_path) is None
    assert form_of(tmp_path / "model.gguf") is None


def test_texts_are_cut_into_words_as_transformers_does_and_never_shortened(directory: Path) -> None:
    ours, theirs = load_tokenizer(directory), transformers.AutoTokenizer.from_pretrained(directory)
    for text in TEXTS:
        assert ours.encode(text) == theirs(text, truncation=False, padding=False)["input_ids"]
    assert len(ours.encode(TEXTS[0])) > 8  # to which the file would cut
    assert ours.decode(ours.encode("the lazy dog")) == "the lazy dog"


@pytest.mark.parametrize(("pooling", "normalizes"), [("mean_tokens", True), ("cls_token", False)])
def test_vectors_equal_transformers_whatever_they_are_batched_with(
    tmp_path: Path, pooling: str, normalizes: bool
) -> None:
    path = make_tiny_encoder(tmp_path / "encoder", pooling, normalizes)
    ids = [load_tokenizer(path).encode(text)[:64] for text in TEXTS]
    oracle, encoder = transformers.AutoModel.from_pretrained(path).eval(), read_bert(path)
    together = encoder(ids)
    for text, vector in zip(ids, together, strict=True):
        with torch.inference_mode():
            states = oracle(torch.tensor([text])).last_hidden_state[0]
        expected = states.mean(0) if pooling == "mean_tokens" else states[0]
        if normalizes:
            expected = torch.nn.functional.normalize(expected, dim=0)
        np.testing.assert_allclose(vector, expected.numpy(), atol=1e-5)
        np.testing.assert_allclose(encoder([text])[0], vector, atol=1e-5)


def read_bert(path: Path) -> BertReader:
    form = form_of(path)
    assert isinstance(form, VectorForm)
    return BertReader(path, form)


def _copied(directory: Path, to: Path, **fields: Any) -> Path:
    to.mkdir()
    for file in directory.rglob("*"):
        if file.is_file():
            target = to / file.relative_to(directory)
            target.parent.mkdir(exist_ok=True)
            target.write_bytes(file.read_bytes())
    config = json.loads((to / "config.json").read_text())
    (to / "config.json").write_text(json.dumps({**config, **fields}))
    return to


@pytest.mark.parametrize(
    ("fields", "words"),
    [
        ({"hidden_act": "relu"}, "relu"),
        ({"position_embedding_type": "relative_key"}, "relative"),
        ({"num_attention_heads": 5}, "5 heads"),
        ({"num_hidden_layers": 4}, r"encoder\.layer\.3"),
        ({"vocab_size": 7}, "word_embeddings"),
        ({"hidden_size": "32"}, "hidden_size"),
        ({"max_position_embeddings": 10**12}, "max_position_embeddings"),
        ({"layer_norm_eps": -1}, "layer_norm_eps"),
    ],
)
def test_a_configuration_that_is_another_model_s_is_refused(
    directory: Path, tmp_path: Path, fields: dict[str, Any], words: str
) -> None:
    with pytest.raises((BadInput, UnsupportedModel), match=words):
        read_bert(_copied(directory, tmp_path / "copy", **fields))


def test_other_modules_and_poolings_are_named(directory: Path, tmp_path: Path) -> None:
    path = _copied(directory, tmp_path / "copy")
    (path / "1_Pooling" / "config.json").write_text('{"pooling_mode_weightedmean_tokens": true}')
    with pytest.raises(UnsupportedModel, match="weightedmean_tokens"):
        read_bert(path)
    (path / "modules.json").write_text('[{"type": "sentence_transformers.models.CNN", "path": "2_CNN"}]')
    with pytest.raises(UnsupportedModel, match="CNN"):
        read_bert(path)
    for broken in ("{}", "[", '["Pooling"]', "[" * 100_000):
        (path / "modules.json").write_text(broken)
        with pytest.raises(BadInput, match=r"modules\.json"):
            read_bert(path)


def test_damaged_tensors_are_named(directory: Path, tmp_path: Path) -> None:
    path = _copied(directory, tmp_path / "copy")
    file, name = path / "model.safetensors", "encoder.layer.1.output.dense.weight"
    tensors = load_file(file)
    for wrong in (
        tensors[name][:-1],
        torch.full_like(tensors[name], float("inf")),
        tensors[name].to(torch.int32),
    ):
        save_file({**tensors, name: wrong.contiguous()}, file)
        with pytest.raises(BadInput, match=name.replace(".", r"\.")):
            read_bert(path)
    file.write_bytes(file.read_bytes()[:1000])
    with pytest.raises(BadInput, match=r"model\.safetensors"):
        read_bert(path)
    file.unlink()
    with pytest.raises(BadInput, match=r"no model\.safetensors"):
        read_bert(path)


def test_a_pooling_s_path_does_not_lead_out_of_the_directory(directory: Path, tmp_path: Path) -> None:
    path = _copied(directory, tmp_path / "copy")
    (tmp_path / "config.json").write_text('{"pooling_mode_cls_token": true}')
    modules = json.loads((path / "modules.json").read_text())
    modules[1]["path"] = "../"
    (path / "modules.json").write_text(json.dumps(modules))
    with pytest.raises(BadInput):
        read_bert(path)
