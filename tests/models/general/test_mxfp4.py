"""gpt-oss as it is published: experts in MXFP4, which are read as codes and stay codes."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from safetensors.torch import load_file, save_file

from tests.models.general.shrunk import save_shrunk
from tests.models.general.test_experts import TOKENS, experts_of, load
from tests.models.test_decoder import logits_in_chunks
from weighbridge.errors import BadInput, UnsupportedModel
from weighbridge.models.compute.linear_packed import kernels_available
from weighbridge.models.general.packed.experts import find_experts
from weighbridge.models.keeping import Quantize

_VALUES = torch.tensor([0.0, 0.5, 1.0, 1.5, 2.0, 3.0, 4.0, 6.0])
#: Of the official file's configuration.
_SAID = {"quant_method": "mxfp4", "modules_to_not_convert": ["model.layers.*.self_attn", "lm_head"]}


def published(directory: Path) -> dict[str, torch.Tensor]:
    """Put a tiny model's experts into the form of the official files; return what its matrices are in floats."""
    save_shrunk("gpt_oss", directory)
    file, draw = directory / "model.safetensors", torch.Generator().manual_seed(1)
    tensors, exact = load_file(file), {}
    for name in [name for name in tensors if name.endswith(("gate_up_proj", "down_proj"))]:
        count, columns, rows = tensors.pop(name).shape
        blocks = torch.randint(0, 256, (count, rows, columns // 32, 16), generator=draw, dtype=torch.uint8)
        scales = torch.randint(122, 126, (count, rows, columns // 32), generator=draw, dtype=torch.uint8)
        tensors[f"{name}_blocks"], tensors[f"{name}_scales"] = blocks, scales
        codes = torch.stack([blocks & 15, blocks >> 4], dim=-1).flatten(-2).long()
        values = torch.where(codes & 8 > 0, -_VALUES[codes & 7], _VALUES[codes & 7])
        exact[name] = (values * torch.exp2(scales.float() - 127)[..., None]).flatten(-2).transpose(1, 2)
    save_file(tensors, file, {"format": "pt"})
    change(directory, quantization_config=_SAID)
    return exact


def change(directory: Path, **values: Any) -> None:
    file = directory / "config.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | values))


@torch.inference_mode()
def expected(directory: Path, exact: dict[str, torch.Tensor]) -> torch.Tensor:
    config = transformers.AutoConfig.from_pretrained(directory)
    del config.quantization_config
    state = {
        n: t
        for n, t in load_file(directory / "model.safetensors").items()
        if "_blocks" not in n and "_scales" not in n
    }
    oracle = transformers.AutoModelForCausalLM.from_config(config, attn_implementation="eager").float().eval()
    oracle.load_state_dict(state | exact)
    logits: torch.Tensor = oracle(torch.tensor([TOKENS])).logits[0]
    return logits


def test_transformers_reads_the_file_as_we_say_it_is(tmp_path: Path) -> None:
    exact = published(tmp_path)
    theirs = transformers.AutoModelForCausalLM.from_pretrained(
        tmp_path, quantization_config=transformers.Mxfp4Config(dequantize=True), dtype=torch.bfloat16
    )
    for name, values in exact.items():
        torch.testing.assert_close(theirs.get_parameter(name).float(), values)


@pytest.mark.parametrize(
    ("scheme", "most"),
    [(Quantize.NONE, 1e-4), (Quantize.AUTO, 0.2), (Quantize.INT8, 0.2)],
)
def test_experts_are_those_of_the_file(scheme: Quantize, most: float, tmp_path: Path) -> None:
    exact = published(tmp_path)
    decoder = load(tmp_path, scheme)
    apart = logits_in_chunks(decoder, TOKENS, [40, 24]) - expected(tmp_path, exact)
    whole = expected(tmp_path, exact).norm(dim=1)
    assert (
        float((apart.norm(dim=1) / whole).median()) < most
    )  # the median: a router may choose another expert
    assert not list(find_experts(decoder.model))


@pytest.mark.skipif(not kernels_available(), reason="without kernels codes are expanded")
@pytest.mark.parametrize("scheme", [Quantize.AUTO, Quantize.INT4])
def test_codes_stay_codes(scheme: Quantize, tmp_path: Path) -> None:
    exact = published(tmp_path)
    weights = sum(values.numel() for values in exact.values())
    biases = 4 * sum(values.shape[0] * values.shape[2] for values in exact.values())
    held = sum(one.nbytes for one in experts_of(load(tmp_path, scheme)))
    assert held - biases <= 1.13 * (weights * 4.25 / 8)  # rows are rounded up to whole panels


EXPERTS = "model.layers.1.mlp.experts."
SPOILT = {
    "lacking": (f"{EXPERTS}down_proj_scales", None, "no tensor .*down_proj_scales: .*incomplete"),
    "shape": (
        f"{EXPERTS}down_proj_blocks",
        torch.zeros(4, 2, 1, 16, dtype=torch.uint8),
        "where .4, 64, 3, 16.",
    ),
    "type": (f"{EXPERTS}gate_up_proj_scales", torch.zeros(4, 192, 2), "has type .F32., where codes of MXFP4"),
    "scale": (
        f"{EXPERTS}down_proj_scales",
        torch.full((4, 64, 3), 255, dtype=torch.uint8),
        "a scale that is no num",
    ),
    "bias": (
        f"{EXPERTS}down_proj_bias",
        torch.full((4, 64), torch.nan),
        "the bias of .*down_proj has what is no num",
    ),
    "more": ("model.layers.9.mlp.experts.down_proj_bias", torch.zeros(4, 64), "no place for: .*layers.9"),
}


@pytest.mark.parametrize(("name", "tensor", "says"), SPOILT.values(), ids=SPOILT)
def test_files_that_are_not_whole_are_refused(
    name: str, tensor: torch.Tensor | None, says: str, tmp_path: Path
) -> None:
    published(tmp_path)
    file = tmp_path / "model.safetensors"
    tensors = load_file(file)
    if tensor is None:
        del tensors[name]
    else:
        tensors[name] = tensor
    save_file(tensors, file, {"format": "pt"})
    with pytest.raises(BadInput, match=says):
        load(tmp_path, Quantize.AUTO)


@pytest.mark.parametrize("method", ["fp8", "awq", "", None, 4])
def test_few_bits_of_other_kinds_are_refused_by_name(method: object, tmp_path: Path) -> None:
    published(tmp_path)
    change(tmp_path, quantization_config={"quant_method": method})
    with pytest.raises(UnsupportedModel, match="weights in few bits"):
        load(tmp_path, Quantize.AUTO)
