"""Models that read texts whole, against transformers' own figures, and what their files say becomes of a text."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
import transformers
from safetensors.torch import load_file, save_file

from tests.tiny import TEXT
from tests.tiny_readers import TYPES, make_reader, say_pooling
from weighbridge.errors import BadInput, UnsupportedModel
from weighbridge.models.readers.form import Form, LabelForm, Link, Pooling, VectorForm, form_of
from weighbridge.models.readers.whole import WholeReader
from weighbridge.models.text.tokenizer import Tokenizer, load_tokenizer

TEXTS = [TEXT[0], "a", "The lazy dog", TEXT[1]]
DECODERS = ("qwen2", "qwen3", "llama")
#: Whose tokens do not say to which of two texts they belong.
UNTYPED = (*DECODERS, "roberta", "xlm-roberta", "distilbert", "mpnet", "modernbert", "deberta-v2")


def reader_of(path: Path) -> tuple[WholeReader, Tokenizer, Form]:
    form, tokenizer = form_of(path), load_tokenizer(path)
    assert form is not None
    return WholeReader(path, form, tokenizer.pairs.separator()), tokenizer, form


@pytest.mark.parametrize("kind", TYPES)
def test_vectors_are_pooled_states_of_transformers_whatever_they_are_batched_with(
    kind: str, tmp_path: Path
) -> None:
    path = say_pooling(make_reader(tmp_path / kind, kind), "mean_tokens", normalizes=True)
    reader, tokenizer, form = reader_of(path)
    assert form == VectorForm(Pooling.MEAN, True, causal=kind in DECODERS)
    ids = [tokenizer.encode(text)[:60] for text in TEXTS]
    oracle = transformers.AutoModel.from_pretrained(path).eval()
    for text, vector in zip(ids, reader(ids), strict=True):
        with torch.inference_mode():
            states = oracle(torch.tensor([text])).last_hidden_state[0]
        np.testing.assert_allclose(vector, F.normalize(states.mean(0), dim=0).numpy(), atol=2e-5)


@pytest.mark.parametrize("kind", TYPES)
@pytest.mark.parametrize("labels", [1, 3])
def test_pairs_are_scored_as_transformers_scores_them(kind: str, labels: int, tmp_path: Path) -> None:
    path = make_reader(tmp_path / kind, kind, labels)
    reader, tokenizer, form = reader_of(path)
    assert isinstance(form, LabelForm)
    assert len(form.labels) == reader.width == labels
    theirs = transformers.PreTrainedTokenizerFast(tokenizer_file=str(path / "tokenizer.json"))
    oracle = transformers.AutoModelForSequenceClassification.from_pretrained(path).eval()
    pairs = [(TEXTS[2], text) for text in TEXTS]
    ids = [tokenizer.pairs.encode(*pair) for pair in pairs]
    for pair, own, numbers in zip(pairs, ids, reader(ids), strict=True):
        inputs = theirs(*pair, return_tensors="pt", return_token_type_ids=True)
        assert own == inputs["input_ids"][0].tolist()
        if kind in UNTYPED:
            inputs.pop("token_type_ids", None)
        with torch.inference_mode():
            expected = oracle(**inputs).logits[0].numpy()
        np.testing.assert_allclose(numbers, expected, atol=2e-5)


@pytest.mark.parametrize(("pooling", "how"), [("cls_token", 0), ("lasttoken", -1), ("max_tokens", None)])
def test_other_poolings_and_a_layer_behind_them(pooling: str, how: int | None, tmp_path: Path) -> None:
    path = say_pooling(make_reader(tmp_path / "model", "roberta"), pooling, normalizes=False, dense=5)
    reader, tokenizer, _ = reader_of(path)
    ids = [tokenizer.encode(text)[:60] for text in TEXTS]
    oracle = transformers.AutoModel.from_pretrained(path).eval()
    layer = load_file(path / "2_Dense" / "model.safetensors")
    assert reader.width == 5
    for text, vector in zip(ids, reader(ids), strict=True):
        with torch.inference_mode():
            states = oracle(torch.tensor([text])).last_hidden_state[0]
            pooled = states.amax(0) if how is None else states[how]
            expected = torch.tanh(F.linear(pooled, layer["linear.weight"], layer["linear.bias"]))
        np.testing.assert_allclose(vector, expected.numpy(), atol=2e-5)


@pytest.mark.parametrize("kind", ["qwen2", "llama"])
def test_a_decoder_that_is_not_causal_sees_the_whole_text(kind: str, tmp_path: Path) -> None:
    path = make_reader(tmp_path / kind, kind, is_causal=False)
    reader, tokenizer, form = reader_of(path)
    assert form == VectorForm(Pooling.MEAN, False)
    ids = tokenizer.encode(TEXTS[0])[:60]
    oracle = transformers.AutoModel.from_pretrained(path).eval()
    with torch.inference_mode():
        expected = oracle(torch.tensor([ids])).last_hidden_state[0].mean(0).numpy()
    np.testing.assert_allclose(reader([ids, ids[:3]])[0], expected, atol=2e-5)
    config = json.loads((path / "config.json").read_text())
    (path / "config.json").write_text(json.dumps({**config, "is_causal": True}))
    causal = WholeReader(path, VectorForm(Pooling.MEAN, False))([ids])[0]
    assert np.abs(causal - expected).max() > 0.01


def test_a_document_that_spells_control_tokens_is_text(tmp_path: Path) -> None:
    path = make_reader(tmp_path / "model", "bert", 1)
    tokenizer = load_tokenizer(path)
    separator = tokenizer.pairs.separator()
    assert separator is not None
    ids = tokenizer.pairs.encode("dog", "a [SEP] b [CLS] [PAD]")
    assert ids.count(separator) == 2
    assert tokenizer.encode("a [SEP] b").count(separator) == 2  # what the vocabulary would say of it


def test_only_the_last_text_is_cut_and_only_where_it_is_asked(tmp_path: Path) -> None:
    tokenizer = load_tokenizer(make_reader(tmp_path / "model", "bert", 1))
    whole = tokenizer.pairs.encode("lazy dog", TEXT[0])
    cut = tokenizer.pairs.encode("lazy dog", TEXT[0], 9)
    assert len(cut) == 9 < len(whole)
    assert cut[:-1] == whole[:8]
    assert cut[-1] == whole[-1]
    assert tokenizer.pairs.encode(TEXT[0], None, 5)[:4] == tokenizer.encode(TEXT[0])[:4]
    with pytest.raises(BadInput, match="nothing is left"):
        tokenizer.pairs.encode(TEXT[0], "dog", 6)
    with pytest.raises(BadInput, match="Unicode"):
        tokenizer.pairs.encode("\ud800", "dog")


@pytest.mark.parametrize(
    ("fields", "form"),
    [
        (
            {"architectures": ["Qwen3Model"], "model_type": "qwen3"},
            VectorForm(Pooling.LAST, True, causal=True),
        ),
        ({"architectures": ["GPT2LMHeadModel"], "model_type": "gpt2"}, None),
        ({"architectures": ["Qwen3ForCausalLM"], "model_type": "qwen3"}, None),
        (
            {"architectures": ["XLMRobertaModel"], "model_type": "xlm-roberta"},
            VectorForm(Pooling.MEAN, False),
        ),
        (
            {"architectures": ["Gemma3TextModel"], "use_bidirectional_attention": True},
            VectorForm(Pooling.MEAN, False),
        ),
        (
            {"architectures": ["BertForSequenceClassification"], "id2label": {"0": "no", "1": "yes"}},
            LabelForm(("no", "yes"), Link.SOFTMAX),
        ),
        (
            {"architectures": ["BertForSequenceClassification"], "id2label": {"0": "LABEL_0"}},
            LabelForm(("LABEL_0",), Link.SIGMOID),
        ),
        (
            {
                "architectures": ["BertForSequenceClassification"],
                "id2label": {"0": "LABEL_0"},
                "sentence_transformers": {"activation_fn": "torch.nn.modules.linear.Identity"},
            },
            LabelForm(("LABEL_0",), Link.NONE),
        ),
        (
            {
                "architectures": ["BertForSequenceClassification"],
                "problem_type": "multi_label_classification",
            },
            LabelForm(("LABEL_0", "LABEL_1"), Link.SIGMOID),
        ),
    ],
)
def test_files_say_what_becomes_of_a_text(fields: dict[str, Any], form: Form | None, tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text(json.dumps(fields))
    assert form_of(tmp_path) == form


@pytest.mark.parametrize(
    "name",
    [
        "Qwen2ForProcessRewardModel",
        "BertForTokenClassification",
        "BertForQuestionAnswering",
        "InternLM2ForRewardModel",
    ],
)
def test_other_heads_are_named(name: str, tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text(json.dumps({"architectures": [name]}))
    with pytest.raises(UnsupportedModel, match=name):
        form_of(tmp_path)


def test_what_is_not_there_or_damaged_is_named(tmp_path: Path) -> None:
    path = make_reader(tmp_path / "model", "roberta", 1)
    file = path / "model.safetensors"
    tensors = load_file(file)
    name = "classifier.out_proj.weight"
    save_file({key: value for key, value in tensors.items() if key != name}, file, {"format": "pt"})
    with pytest.raises(BadInput, match=name.replace(".", r"\.")):
        reader_of(path)
    save_file({**tensors, name: tensors[name] * float("nan")}, file, {"format": "pt"})
    with pytest.raises(BadInput, match="not finite"):
        reader_of(path)
    save_file({**tensors, name: tensors[name][:, :3].contiguous()}, file, {"format": "pt"})
    with pytest.raises(BadInput, match="cannot be loaded"):
        reader_of(path)
    file.write_bytes(file.read_bytes()[:999])
    with pytest.raises(BadInput, match="not a complete safetensors file"):
        reader_of(path)
    file.unlink()
    (path / "pytorch_model.bin").write_bytes(b"")
    with pytest.raises(BadInput, match="never opened"):
        reader_of(path)
    (path / "config.json").write_text(
        json.dumps({"architectures": ["XModel"], "model_type": "x", "auto_map": {"AutoModel": "x.XModel"}})
    )
    save_file(tensors, file, {"format": "pt"})
    with pytest.raises(BadInput, match="model_type is 'x', which transformers does not know"):
        reader_of(path)
