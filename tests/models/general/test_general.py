"""Models that are not of our families: served through transformers' modules over our cache, or refused by name."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
import transformers
from safetensors.torch import save_file

from tests.engine.test_parity import collect, greedy, tokens_of
from tests.models.general.judged import compare
from tests.models.general.shrunk import save_shrunk, shrunk_config
from tests.models.test_decoder import BLOCK, layout, logits_in_chunks
from weighbridge.engine.build import build_replica
from weighbridge.engine.settings import EngineSettings
from weighbridge.errors import BadInput, UnsupportedModel
from weighbridge.models.any_model import open_model
from weighbridge.models.compute.kernels.api import States
from weighbridge.models.general.attention import PagedPass
from weighbridge.models.general.kv import KvPlace
from weighbridge.models.general.refusals import WAY_OUT
from weighbridge.models.general.watching import LinearCalls, watched
from weighbridge.models.keeping import Quantize

#: What they show: fused matrices; scales; norms behind; biases; learned positions; soft caps and windows; sinks and
#: experts; keys and values shared by layers; latent attention with narrower values; states beside attention.
KINDS = [
    *("phi3", "granite", "olmo2", "starcoder2", "gpt2", "gemma2", "gpt_oss", "gemma3n_text", "deepseek_v3"),
    *("lfm2", "qwen3_5_text", "bamba", "jamba", "mamba"),
]


@pytest.fixture(autouse=True)
def quiet() -> Iterator[None]:
    transformers.logging.disable_progress_bar()
    yield
    transformers.logging.enable_progress_bar()


@pytest.mark.parametrize("kind", KINDS)
def test_a_tiny_model_is_exact(kind: str, tmp_path: Path) -> None:
    """Logits through chunks; tokens through the engine, with prefixes found again and requests preempted."""
    save_shrunk(kind, tmp_path)
    oracle = transformers.AutoModelForCausalLM.from_pretrained(
        tmp_path, dtype=torch.float32, attn_implementation="eager"
    ).eval()
    verdict = compare(kind, tmp_path, oracle)
    assert (verdict.status, verdict.reason) == ("exact", "")


@pytest.fixture(scope="module")
def phi3(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_shrunk("phi3", tmp_path_factory.mktemp("tiny") / "phi3")


@pytest.mark.parametrize(("scheme", "most"), [("none", 1e-5), ("int8", 0.15)])
def test_linear_layers_are_ours(phi3: Path, scheme: str, most: float) -> None:
    """Packed in the place of transformers' own, in few bits where that is asked for."""
    oracle = transformers.AutoModelForCausalLM.from_pretrained(phi3, dtype=torch.float32).eval()
    decoder = open_model(phi3).load(
        torch.float32, Quantize(scheme), max_model_len=512, report=None, expert_cache=None
    )
    kinds = {type(module).__name__ for module in decoder.model.modules()}
    assert "OwnLinear" in kinds
    assert "Linear" not in kinds
    tokens = list(range(5, 69))
    with torch.inference_mode():
        expected = oracle(torch.tensor([tokens])).logits[0]
    actual = logits_in_chunks(decoder, tokens, [40, 24])
    assert float((actual - expected).norm() / expected.norm()) < most


def test_states_are_transformers_last_hidden_states(phi3: Path) -> None:
    """What an embedding is made of, behind our own output matrix too."""
    oracle = transformers.AutoModelForCausalLM.from_pretrained(phi3, dtype=torch.float32).eval()
    decoder = open_model(phi3).load(
        torch.float32, Quantize.NONE, max_model_len=512, report=None, expert_cache=None
    )
    tokens = list(range(5, 69))
    with torch.inference_mode():
        expected = oracle(torch.tensor([tokens]), output_hidden_states=True).hidden_states[-1][0]
    rows, kept = np.array([0, 7, 20, 63], np.int32), np.array([3, 1], np.int32)
    states = States(kept, torch.empty(2, decoder.config.hidden_size))
    cache = decoder.allocate_kv(4, BLOCK)
    decoder.forward(np.array(tokens, np.int32), layout(0, 64, 4), cache, rows, states)
    torch.testing.assert_close(states.out, expected[[63, 7]], atol=1e-4, rtol=1e-4)


def test_a_weight_that_is_looked_at_stays() -> None:
    class Looks(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.called, self.seen = torch.nn.Linear(4, 4), torch.nn.Linear(4, 4)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return self.called(x) @ self.seen.weight

    found: dict[str, LinearCalls] = {}
    model = Looks()
    with watched(model, found):
        model(torch.ones(2, 4))
    assert found == {"called": LinearCalls(1, 2)}
    assert type(model.seen) is torch.nn.Linear


async def test_answers_are_those_of_generate(phi3: Path) -> None:
    oracle = transformers.AutoModelForCausalLM.from_pretrained(phi3, dtype=torch.float32).eval()
    engine = build_replica(phi3, "tiny", EngineSettings(dtype="float32", kv_cache_memory=8 << 20)).engine
    engine.start()
    try:
        prompt = list(range(5, 75))
        assert tokens_of(await collect(engine, prompt, 40)) == greedy(oracle, prompt, 40)
    finally:
        engine.stop()


@pytest.mark.parametrize(
    ("kind", "says"),
    [
        ("recurrent_gemma", "linear_attention"),
        ("bart", "encoder beside the decoder"),
        ("llama4_text", "chunked_attention"),
        ("bloom", "computes its attention itself"),
    ],
)
def test_what_is_not_right_is_refused_by_name(kind: str, says: str, tmp_path: Path) -> None:
    is_large = kind in (
        "llama4_text",
        "recurrent_gemma",
    )  # by default, more than the files of this test could fill
    config = shrunk_config(kind) if is_large else transformers.CONFIG_MAPPING[kind]()
    config.save_pretrained(tmp_path)
    _empty_weights(tmp_path)
    with pytest.raises(UnsupportedModel, match=f"'{kind}' cannot be served here: .*({says})") as caught:
        open_model(tmp_path)
    assert str(caught.value).endswith(WAY_OUT)


def test_code_of_a_directory_is_never_run(tmp_path: Path) -> None:
    (tmp_path / "configuration_own.py").write_text("raise SystemExit('ran')\n")
    own = {"model_type": "own", "auto_map": {"AutoConfig": "configuration_own.OwnConfig"}}
    (tmp_path / "config.json").write_text(json.dumps(own))
    _empty_weights(tmp_path)
    with pytest.raises(UnsupportedModel, match=r"code of its own .auto_map., which is never run"):
        open_model(tmp_path)


def test_pickles_are_never_opened(phi3: Path, tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text((phi3 / "config.json").read_text())
    (tmp_path / "pytorch_model.bin").write_bytes(b"\x80\x04.")
    with pytest.raises(BadInput, match="is a pickle, which can run code and is never opened"):
        open_model(tmp_path)


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"architectures": ["Phi3ForSequenceClassification"]}, "Phi3ForSequenceClassification"),
        ({"is_causal": False}, "see later ones"),
        ({"quantization_config": {"quant_method": "gptq"}}, "bits is missing"),
        ({"num_hidden_layers": 5}, "has no tensor"),
        ({"num_hidden_layers": 3}, "no place for"),
    ],
)
def test_files_of_another_model_are_refused(
    phi3: Path, tmp_path: Path, change: dict[str, object], says: str
) -> None:
    for file in phi3.iterdir():
        (tmp_path / file.name).symlink_to(file)
    config = json.loads((phi3 / "config.json").read_text())
    (tmp_path / "config.json").unlink()
    (tmp_path / "config.json").write_text(json.dumps({**config, **change}))
    with pytest.raises(BadInput, match=says):
        open_model(tmp_path).load(
            torch.float32, Quantize.AUTO, max_model_len=64, report=None, expert_cache=None
        )


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("kind", ["phi3", "gemma4_text", "gpt_oss"])
def test_a_wrong_attention_is_found_by_the_self_check(
    kind: str, dtype: torch.dtype, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = save_shrunk(kind, tmp_path)
    open_model(path).load(dtype, Quantize.AUTO, max_model_len=64, report=None, expert_cache=None)
    write = PagedPass._write

    def forgetful(self: PagedPass, qkv: torch.Tensor, place: KvPlace, heads: int) -> None:
        if place is not self._cache.places[0]:  # of the first layer alone
            write(self, qkv, place, heads)

    monkeypatch.setattr(PagedPass, "_write", forgetful)
    with pytest.raises(
        UnsupportedModel, match=f"'{kind}' cannot be served here: over our cache its logits differ"
    ):
        open_model(path).load(dtype, Quantize.AUTO, max_model_len=64, report=None, expert_cache=None)


@pytest.mark.parametrize("kind", ["deepseek_v2", "gpt_oss", "phimoe", "gemma4_text"])
def test_rounding_alone_refuses_no_model(kind: str, tmp_path: Path) -> None:
    """In bfloat16 a router may choose other experts, and some models make much of a last bit."""
    path = save_shrunk(kind, tmp_path)
    open_model(path).load(torch.bfloat16, Quantize.NONE, max_model_len=64, report=None, expert_cache=None)


def test_longrope_ends_where_its_rotation_changes(tmp_path: Path) -> None:
    factors = {"short_factor": [1.0] * 8, "long_factor": [2.0] * 8}
    rope = {"rope_type": "longrope", "rope_theta": 1e4, "original_max_position_embeddings": 64, **factors}
    save_shrunk("phi3", tmp_path)
    config = json.loads((tmp_path / "config.json").read_text())
    config["rope_parameters"] = {**rope, "partial_rotary_factor": 1.0}
    config["original_max_position_embeddings"] = 64
    (tmp_path / "config.json").write_text(json.dumps(config))
    assert open_model(tmp_path).config.max_position_embeddings == 64


def test_our_families_do_not_import_transformers(tmp_path: Path) -> None:
    code = "import sys, weighbridge.models.any_model; assert 'transformers' not in sys.modules"
    subprocess.run([sys.executable, "-c", code], check=True, timeout=60)


def _empty_weights(directory: Path) -> None:
    save_file({"x": torch.zeros(1)}, directory / "model.safetensors")
