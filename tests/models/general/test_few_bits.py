"""Safetensors in few bits of families that transformers computes, packed as in `test_packed_files`."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import transformers
from safetensors.torch import load_file, save_file

from tests.models.general.shrunk import save_shrunk
from tests.models.general.test_experts import TOKENS
from tests.models.test_decoder import logits_in_chunks
from tests.models.test_packed_files import FORMATS, awq
from tests.tiny import make_tiny
from weighbridge.errors import BadInput, UnsupportedModel
from weighbridge.models.any_model import open_model
from weighbridge.models.compute.causal_model import CausalModel
from weighbridge.models.compute.linear import make_linear
from weighbridge.models.compute.linear_packed import PackedLinear, kernels_available
from weighbridge.models.files.checkpoint import SafetensorsDirectory
from weighbridge.models.files.packed_tensors import PackedTensors
from weighbridge.models.files.packing import Packing, PackingFormat
from weighbridge.models.general.description import describe
from weighbridge.models.general.loading import read_weights
from weighbridge.models.general.packed.experts import OwnExperts
from weighbridge.models.general.packed.linears import OwnLinear
from weighbridge.models.general.packed.places import NUMBERS
from weighbridge.models.general.packed.proof import check_made
from weighbridge.models.keeping import Quantize

#: What they show: fused matrices; scales; norms behind; a fused gate; biases; latent attention and experts; gates of
#: their own; states beside attention; rows that transformers cuts out of one matrix.
KINDS = [
    "phi3",
    "granite",
    "olmo2",
    "glm4",
    "starcoder2",
    "deepseek_v3",
    "ernie4_5_moe",
    "qwen3_next",
    "bamba",
]


def is_packed(name: str, weight: torch.Tensor) -> bool:
    """Whether quantisers take a matrix: neither ends nor routers."""
    others = ("embed", "lm_head", ".gate.weight", "shared_expert_gate", "conv1d")
    return weight.dim() == 2 and weight.shape[1] % 32 == 0 and not any(one in name for one in others)


def pack(directory: Path, format: str, wanted: Callable[[str, torch.Tensor], bool] = is_packed) -> Any:
    """Put a saved model's matrices into few bits; return transformers' model of what they mean."""
    config, packer, _ = FORMATS[format]
    file = directory / "model.safetensors"
    packed: dict[str, torch.Tensor] = {}
    meant: dict[str, torch.Tensor] = {}
    for name, weight in load_file(file).items():
        if not wanted(name, weight):
            packed[name] = meant[name] = weight
            continue
        parts, values = packer(weight.float().numpy())
        meant[name] = torch.from_numpy(np.ascontiguousarray(values))
        packed |= {name.removesuffix("weight") + part: one.contiguous() for part, one in parts.items()}
    save_file(meant, file, {"format": "pt"})
    oracle = transformers.AutoModelForCausalLM.from_pretrained(
        directory, dtype=torch.float32, attn_implementation="eager"
    ).eval()
    save_file(packed, file, {"format": "pt"})
    fields = json.loads((directory / "config.json").read_text())
    (directory / "config.json").write_text(json.dumps({**fields, "quantization_config": config}))
    return oracle


def load(directory: Path, scheme: Quantize = Quantize.AUTO) -> CausalModel:
    return open_model(directory, "transformers").load(
        torch.float32, scheme, max_model_len=256, report=None, expert_cache=None
    )


@torch.inference_mode()
def apart(decoder: CausalModel, oracle: Any) -> float:
    """How far logits are from the oracle's, as a share of their length; a router may send some tokens elsewhere."""
    expected = oracle(torch.tensor([TOKENS])).logits[0]
    actual = logits_in_chunks(decoder, TOKENS, [40, 24])
    return float(((actual - expected).norm(dim=1) / expected.norm(dim=1)).median())


@pytest.mark.parametrize("format", FORMATS)
def test_every_format_means_what_its_authors_say(format: str, tmp_path: Path) -> None:
    """With the tolerances of our own decoder, over the same text and model."""
    oracle, tokens = pack(make_tiny("llama", tmp_path, num_hidden_layers=2), format), list(range(5, 45))
    with torch.inference_mode():
        expected = oracle(torch.tensor([tokens])).logits[0]
    exact = logits_in_chunks(load(tmp_path, Quantize.NONE), tokens, [25, 15])
    torch.testing.assert_close(exact, expected, atol=1e-3, rtol=1e-3)
    decoder = load(tmp_path)
    ours = logits_in_chunks(decoder, tokens, [25, 15])
    assert float((ours - expected).norm() / expected.norm()) < 0.05
    if kernels_available():
        linear = decoder.model.model.layers[1].self_attn.q_proj.linear  # type: ignore[attr-defined]
        assert isinstance(linear, PackedLinear)
        assert linear.forms == [FORMATS[format][2]]


@pytest.mark.parametrize("format", ["awq", pytest.param("fp8 blocks", marks=pytest.mark.proof)])
@pytest.mark.parametrize("kind", KINDS)
def test_matrices_find_their_places(kind: str, format: str, tmp_path: Path) -> None:
    save_shrunk(kind, tmp_path)
    oracle = pack(tmp_path, format)
    assert apart(load(tmp_path, Quantize.NONE), oracle) < 1e-4
    assert apart(load(tmp_path, Quantize.AUTO), oracle) < 0.1


def test_layers_that_were_left_out_stay_as_they_are(tmp_path: Path) -> None:
    save_shrunk("granite", tmp_path)
    oracle = pack(tmp_path, "int4", lambda name, one: is_packed(name, one) and ".layers.2." not in name)
    assert apart(load(tmp_path, Quantize.NONE), oracle) < 1e-4


def weights_of(description: Any) -> int:
    return sum(rows * columns for rows, columns in description.given.placed._sizes)


def test_nothing_is_expanded_on_the_way(tmp_path: Path) -> None:
    """Between file and codes a model holds a number for each row of a matrix, and no weight of it."""
    save_shrunk("ernie4_5_moe", tmp_path)
    pack(tmp_path, "awq")
    description = describe(SafetensorsDirectory(tmp_path))
    model = read_weights(tmp_path, description, torch.float32)
    held = {name: one for name, one in model.named_parameters() if one.dtype is NUMBERS}
    assert held.keys() == description.given.placed.shapes.keys()  # type: ignore[union-attr]
    assert sum(one.numel() for one in held.values()) * 32 <= weights_of(description)


@pytest.mark.skipif(not kernels_available(), reason="without kernels codes are expanded")
def test_codes_stay_codes(tmp_path: Path) -> None:
    save_shrunk("ernie4_5_moe", tmp_path)
    pack(tmp_path, "int4")
    weights = weights_of(describe(SafetensorsDirectory(tmp_path)))
    for scheme in (Quantize.AUTO, Quantize.INT4):
        model: Any = load(tmp_path, scheme).model  # type: ignore[attr-defined]
        ours = [one.experts.nbytes for one in model.modules() if isinstance(one, OwnExperts)]
        ours += [
            one.linear.nbytes
            for name, one in model.named_modules()
            if isinstance(one, OwnLinear) and name != "lm_head" and not name.endswith(".gate")
        ]
        assert sum(ours) <= 1.02 * weights * 4.5 / 8


def spoil(directory: Path, name: str, change: Callable[[torch.Tensor], torch.Tensor | None]) -> None:
    file = directory / "model.safetensors"
    tensors = load_file(file)
    changed = change(tensors.pop(name))
    save_file(tensors if changed is None else {**tensors, name: changed.contiguous()}, file, {"format": "pt"})


STEM = "model.layers.1.self_attn.o_proj."
SPOILT: dict[str, tuple[str, Callable[[torch.Tensor], torch.Tensor | None], str]] = {
    "lacking": ("scales", lambda _: None, r"no tensor '.*o_proj\.scales', which AWQ 4 bits needs"),
    "shape": ("qzeros", lambda one: one[:, :-1], r"qzeros.* has shape"),
    "type": ("qweight", lambda one: one.to(torch.int64), r"qweight.* is of type I64, but AWQ"),
    "scale": ("scales", lambda one: torch.full_like(one, torch.nan), "o_proj has a scale that is no number"),
}


@pytest.mark.parametrize(("part", "change", "says"), SPOILT.values(), ids=SPOILT)
@pytest.mark.parametrize("scheme", [Quantize.AUTO, Quantize.NONE])
def test_damaged_files_are_refused(
    part: str,
    change: Callable[[torch.Tensor], torch.Tensor | None],
    says: str,
    scheme: Quantize,
    tmp_path: Path,
) -> None:
    save_shrunk("granite", tmp_path)
    pack(tmp_path, "awq")
    spoil(tmp_path, STEM + part, change)
    with pytest.raises((BadInput, UnsupportedModel), match=says):
        load(tmp_path, scheme)


def test_a_matrix_that_is_not_there_is_named(tmp_path: Path) -> None:
    save_shrunk("granite", tmp_path)
    pack(tmp_path, "fp8 plain")
    spoil(tmp_path, f"{STEM}weight", lambda _: None)
    with pytest.raises(BadInput, match=r"no tensor .*o_proj\.weight: the checkpoint is incomplete"):
        load(tmp_path)


def test_a_matrix_of_another_width_is_named(tmp_path: Path) -> None:
    save_shrunk("granite", tmp_path)
    pack(tmp_path, "fp8 plain")
    spoil(tmp_path, f"{STEM}weight", lambda one: one[:, :32])
    with pytest.raises(BadInput, match=r"o_proj\.weight' has 32 columns, where 64 belong"):
        load(tmp_path)


def test_a_matrix_of_another_height_is_named(tmp_path: Path) -> None:
    save_shrunk("granite", tmp_path)
    pack(tmp_path, "fp8 plain")
    spoil(tmp_path, f"{STEM}weight", lambda one: one[:32])
    with pytest.raises(BadInput, match=r"other shapes than its configuration: .*o_proj\.weight"):
        load(tmp_path)


def test_few_bits_where_a_model_does_more_than_multiply_are_refused(tmp_path: Path) -> None:
    save_shrunk("granite", tmp_path)
    pack(tmp_path, "fp8 tensor", lambda name, one: is_packed(name, one) or "embed" in name)
    with pytest.raises(UnsupportedModel, match=r"more than multiply .*embed_tokens\.weight"):
        load(tmp_path)


def test_experts_in_few_bits_in_part_are_refused(tmp_path: Path) -> None:
    save_shrunk("ernie4_5_moe", tmp_path)
    pack(tmp_path, "awq", lambda name, one: is_packed(name, one) and ".experts.2." not in name)
    with pytest.raises(UnsupportedModel, match=r"some parts of .*experts\.down_proj.* in few bits"):
        load(tmp_path)


def test_what_cannot_be_read_is_named(tmp_path: Path) -> None:
    save_shrunk("granite", tmp_path)
    pack(tmp_path, "awq")
    fields = json.loads((tmp_path / "config.json").read_text())
    fields["quantization_config"] = {"quant_method": "bitsandbytes"}
    (tmp_path / "config.json").write_text(json.dumps(fields))
    with pytest.raises(UnsupportedModel, match=r"quantised by .bitsandbytes. are not supported.*GGUF"):
        open_model(tmp_path)


class _Reader:
    def __init__(self, tensors: dict[str, torch.Tensor]) -> None:
        self._tensors = tensors

    def held(self, name: str) -> tuple[tuple[int, ...], str] | None:
        kinds = {torch.int32: "I32", torch.float16: "F16"}
        one = self._tensors.get(name)
        return None if one is None else (tuple(one.shape), kinds[one.dtype])

    def whole(self, name: str) -> torch.Tensor:
        return self._tensors[name]


def test_a_layer_that_multiplies_otherwise_does_not_pass() -> None:
    """Rows or columns in another order, a scale that is lost: each is far beyond what rounding makes."""
    tensors, values = awq(np.random.default_rng(1).standard_normal((96, 64)).astype(np.float32))
    reader = _Reader({f"m.{part}": one for part, one in tensors.items()})
    packing = Packing(PackingFormat.AWQ, 4, 32, symmetric=False)
    blocks = PackedTensors(packing, reader, "here").blocks("m.weight")
    weight, bias = torch.from_numpy(values), torch.ones(96)

    def check(made: torch.Tensor, pieces: Any = (blocks,)) -> None:
        check_made("m", make_linear(made, bias, torch.float32), pieces, bias, torch.float32, rounded_to=8)

    check(weight)
    halves = [
        replace(blocks, order=blocks.order[:32]),
        replace(
            blocks,
            order=blocks.order[32:],
            exact=lambda start, end: blocks.exact(start + 32, end + 32),
        ),
    ]
    check(weight, halves)
    for other in (weight.roll(1, 0), weight.flip(1), weight * 1.1, torch.zeros_like(weight)):
        with pytest.raises(UnsupportedModel, match="matrix m as it is kept differs by"):
            check(other)
