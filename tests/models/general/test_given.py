"""Directories that mean harm to whoever lets transformers open them: refused in a sentence, before they are built."""

from __future__ import annotations

import copy
import json
import resource
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from safetensors.torch import load_file, save_file

from tests.models.general.shrunk import save_shrunk
from tests.tiny_readers import make_reader
from weighbridge.errors import BadInput
from weighbridge.models.any_model import open_model
from weighbridge.models.keeping import Quantize
from weighbridge.models.readers.form import form_of
from weighbridge.models.readers.whole import WholeReader

#: Seconds of CPU and bytes of memory within which a model is refused.
SECONDS, BYTES = 5.0, 400 << 20


@pytest.fixture(autouse=True)
def quiet() -> Iterator[None]:
    transformers.logging.disable_progress_bar()
    yield
    transformers.logging.enable_progress_bar()


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    folder = tmp_path_factory.mktemp("models")
    kinds = ("phi3", "gpt2", "gpt_oss", "gpt_neo", "gemma3n_text")
    made = {kind: save_shrunk(kind, folder / kind) for kind in kinds}
    return made | {
        "reader": make_reader(folder / "reader", "roberta"),
        "ranker": make_reader(folder / "ranker", "electra", 1),
    }


def load(path: Path) -> None:
    """As `weighbridge serve` does."""
    form = form_of(path)
    if form is not None:
        WholeReader(path, form)
    else:
        open_model(path).load(torch.float32, Quantize.NONE, max_model_len=64, report=None, expert_cache=None)


def changed(source: Path, target: Path, change: Callable[[dict[str, Any]], Any]) -> Path:
    """A model whose configuration is another one; all else is as it was."""
    target.mkdir()
    for file in source.iterdir():
        (target / file.name).symlink_to(file)
    config = json.loads((source / "config.json").read_text())
    made = change(copy.deepcopy(config))
    (target / "config.json").unlink()
    (target / "config.json").write_text(json.dumps(config if made is None else made))
    return target


def told(**fields: Any) -> Callable[[dict[str, Any]], Any]:
    return lambda config: {**config, **fields}


def nested(config: dict[str, Any]) -> Any:
    rope: dict[str, Any] = {"rope_type": "default", "rope_theta": 1e4}
    for _ in range(900):
        rope = {"full_attention": rope}
    return {**config, "rope_parameters": rope}


#: More than the files have, and counts that would be gone through one by one.
BOMBS: list[tuple[str, str, Callable[[dict[str, Any]], Any]]] = [
    ("phi3", "a million layers", told(num_hidden_layers=10**6)),
    ("phi3", "a milliard layers", told(num_hidden_layers=10**9)),
    ("phi3", "as many layers as there may be", told(num_hidden_layers=10_000)),
    ("phi3", "a milliard words", told(vocab_size=10**9)),
    ("phi3", "a wide state", told(hidden_size=1 << 20, intermediate_size=1 << 20)),
    ("phi3", "the widest block", told(intermediate_size=2**31 - 1)),
    ("phi3", "beyond 64 bits", told(vocab_size=10**30)),
    ("phi3", "below nothing", told(hidden_size=-64)),
    ("phi3", "half a layer", told(num_hidden_layers=2.5)),
    ("phi3", "layers in words", told(num_hidden_layers="1000000000")),
    ("phi3", "nested ropes", nested),
    (
        "phi3",
        "kinds of layers without end",
        told(num_hidden_layers=4, layer_types=["full_attention"] * 200_000),
    ),
    ("gpt2", "positions that are learned", told(n_positions=10**9)),
    ("gpt2", "layers under another name", told(n_layer=10**8)),
    ("gpt2", "width under another name", told(n_embd=1 << 22, n_inner=1 << 22)),
    ("gpt_oss", "experts one by one", told(num_local_experts=10**6)),
    ("gpt_oss", "experts in one tensor", told(num_local_experts=9_999)),
    (
        "gpt_neo",
        "kinds that are repeated",
        told(attention_types=[[["global", "local"], 10**9]], num_layers=4),
    ),
    ("gpt_neo", "a mask for all positions", told(max_position_embeddings=10**6)),
    ("gemma3n_text", "words for each layer", told(vocab_size_per_layer_input=10**9)),
    ("reader", "a million layers", told(num_hidden_layers=10**6)),
    ("reader", "a milliard words", told(vocab_size=10**9)),
    ("reader", "positions", told(max_position_embeddings=10**9)),
    ("reader", "kinds of texts", told(type_vocab_size=10**9)),
    ("ranker", "a wide embedding", told(embedding_size=1 << 24)),
    ("ranker", "labels", told(num_labels=10**9, id2label=None)),
    ("ranker", "labels that are fewer by another word", told(num_labels=3)),
]


@pytest.mark.parametrize(("model", "change"), [pytest.param(m, c, id=f"{m}-{n}") for m, n, c in BOMBS])
def test_a_configuration_takes_no_more_than_its_files_have(
    models: dict[str, Path], tmp_path: Path, model: str, change: Callable[[dict[str, Any]], Any]
) -> None:
    path = changed(models[model], tmp_path / "model", change)
    before, began = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss, time.process_time()
    with pytest.raises(BadInput) as caught:
        load(path)
    assert time.process_time() - began < SECONDS
    assert (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) << 10 < BYTES
    assert len(str(caught.value)) < 1200
    assert "\n" not in str(caught.value)


#: What would lead transformers to other files, to a hub, or to code.
LEADS: dict[str, Callable[[dict[str, Any]], Any]] = {
    "a pickle by its name": told(transformers_weights="adapter_model.bin"),
    "another file": told(transformers_weights="other.safetensors"),
    "a kernel of the hub": told(attn_implementation="kernels-community/flash-attn"),
    "a kernel within": told(_attn_implementation="someone/kernel", experts_implementation="someone/kernel"),
    "another configuration": told(configuration_files=["config.9.0.0.json", "config.4.0.0.json"]),
    "code beside it": told(auto_map={"AutoModel": "own.Model", "AutoModelForCausalLM": "own.Model"}),
    "code on the hub": told(auto_map={"AutoModel": "someone/else--own.Model"}),
    "a type of torch that is a function": told(dtype="load", torch_dtype="load"),
    "a place": told(name_or_path="/etc", _name_or_path="someone/else"),
}


@pytest.mark.parametrize("model", ["phi3", "reader", "ranker"])
@pytest.mark.parametrize("lead", LEADS)
def test_words_about_loading_lead_nowhere(
    models: dict[str, Path], tmp_path: Path, model: str, lead: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The model is the one that the files are, and nothing else is opened."""
    path = changed(models[model], tmp_path / "model", LEADS[lead])
    (path / "adapter_model.bin").write_bytes(b"\x80\x04N.")
    (path / "own.py").write_text("raise SystemExit('ran')\n")
    (path / "config.4.0.0.json").write_text("{}")

    def opened(*_: Any, **__: Any) -> Any:
        raise AssertionError("a pickle was opened")

    monkeypatch.setattr(torch, "load", opened)
    monkeypatch.setattr("pickle.load", opened)
    load(path)


@pytest.mark.parametrize("model", ["phi3", "reader"])
def test_an_index_leads_to_no_other_file(
    models: dict[str, Path], tmp_path: Path, model: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its names are names: a pickle in a folder beside a file that is called the same is not opened."""
    path = changed(models[model], tmp_path / "model", told())
    tensors = load_file(path / "model.safetensors")
    (path / "model.safetensors").unlink()
    save_file(tensors, path / "weights.bin", {"format": "pt"})
    (path / "under").mkdir()
    (path / "under" / "weights.bin").write_bytes(b"\x80\x04N.")
    weights = {"metadata": {}, "weight_map": dict.fromkeys(tensors, "under/weights.bin")}
    (path / "model.safetensors.index.json").write_text(json.dumps(weights))

    def opened(*_: Any, **__: Any) -> Any:
        raise AssertionError("a pickle was opened")

    monkeypatch.setattr(torch, "load", opened)
    load(path)


@pytest.mark.parametrize("dtype", [torch.float8_e4m3fn, torch.int8, torch.uint8, torch.complex64])
@pytest.mark.parametrize("model", ["phi3", "reader"])
def test_numbers_that_would_mean_something_else_are_named(
    models: dict[str, Path], tmp_path: Path, model: str, dtype: torch.dtype
) -> None:
    """Eight bits without their scales would be cast, and answer nonsense."""
    path = changed(models[model], tmp_path / "model", told())
    tensors = load_file(path / "model.safetensors")
    name = max(tensors, key=lambda one: tensors[one].numel())
    (path / "model.safetensors").unlink()
    save_file({**tensors, name: tensors[name].to(dtype)}, path / "model.safetensors", {"format": "pt"})
    with pytest.raises(BadInput, match="which is not read here"):
        load(path)
