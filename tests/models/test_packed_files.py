"""Safetensors in few bits: each format packed here word by word, as its authors describe it, and read back."""

from __future__ import annotations

import contextlib
import json
import logging
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file, save_file
from transformers.integrations import mxfp4

from tests.models.test_decoder import logits_in_chunks
from tests.tiny import make_tiny
from weighbridge.errors import BadInput, UnsupportedModel
from weighbridge.models.compute.linear_packed import PackedLinear, kernels_available
from weighbridge.models.compute.packed_forms import Form
from weighbridge.models.files.checkpoint import open_checkpoint
from weighbridge.models.files.fields import Fields
from weighbridge.models.files.packing import packing_of
from weighbridge.models.loader import Quantize, load_decoder

Tensors = dict[str, torch.Tensor]
#: Packs one matrix [rows, columns]: its tensors behind the stem, and what they mean.
Packer = Callable[[np.ndarray], tuple[Tensors, np.ndarray]]
GROUP = 32


def grouped(
    weight: np.ndarray, bits: int, group: int, middle: bool
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Codes, scales in float16 and zero points: rounded to nearest, however well."""
    rows, columns = weight.shape
    parts = weight.reshape(rows, columns // group, group)
    top = (1 << bits) - 1
    if middle:
        scales = np.abs(parts).max(2) / (top // 2)
        zeros = np.full(scales.shape, top // 2 + 1)
    else:
        scales = (parts.max(2) - parts.min(2)) / top
        zeros = np.clip(np.round(-parts.min(2) / scales), 1, top).astype(int)
    scales = scales.astype(np.float16).astype(np.float32)
    codes = np.clip(np.round(parts / scales[:, :, None]) + zeros[:, :, None], 0, top).astype(int)
    return codes.reshape(rows, columns), scales, zeros


def meant(codes: np.ndarray, scales: np.ndarray, zeros: np.ndarray, groups: np.ndarray) -> np.ndarray:
    return ((codes - zeros[:, groups]) * scales[:, groups]).astype(np.float32)


def words(values: np.ndarray, bits: int) -> np.ndarray:
    """Along the last axis, the first value lowest."""
    each = 32 // bits
    out = np.zeros((*values.shape[:-1], -(-values.shape[-1] // each)), np.uint32)
    for index in range(values.shape[-1]):
        out[..., index // each] |= (values[..., index].astype(np.uint32)) << np.uint32(bits * (index % each))
    return out.view(np.int32)


def tensor(array: np.ndarray) -> torch.Tensor:
    return torch.from_numpy(np.ascontiguousarray(array))


def awq(weight: np.ndarray) -> tuple[Tensors, np.ndarray]:
    codes, scales, zeros = grouped(weight, 4, GROUP, False)

    def interleaved(values: np.ndarray) -> np.ndarray:
        out = np.zeros((len(values), values.shape[1] // 8), np.uint32)
        for word in range(out.shape[1]):
            for place, column in enumerate([0, 2, 4, 6, 1, 3, 5, 7]):
                out[:, word] |= values[:, 8 * word + column].astype(np.uint32) << np.uint32(4 * place)
        return out.view(np.int32)

    tensors = {
        "qweight": tensor(interleaved(codes.T)),
        "qzeros": tensor(interleaved(zeros.T)),
        "scales": tensor(scales.T.astype(np.float16)),
    }
    return tensors, meant(codes, scales, zeros, np.arange(weight.shape[1]) // GROUP)


def gptq(bits: int = 4, less: int = 1, shuffled: bool = False, middle: bool = False) -> Packer:
    def pack(weight: np.ndarray) -> tuple[Tensors, np.ndarray]:
        codes, scales, zeros = grouped(weight, bits, GROUP, middle)
        groups = np.arange(weight.shape[1]) // GROUP
        if shuffled:
            groups = np.random.default_rng(3).permutation(groups)
        tensors = {
            "qweight": tensor(words(codes, bits).T),
            "qzeros": tensor(words(zeros.T - less, bits)),
            "scales": tensor(scales.T.astype(np.float16)),
            "g_idx": tensor(groups.astype(np.int32)),
        }
        return tensors, meant(codes, scales, zeros, groups)

    return pack


def compressed(bits: int, symmetric: bool, group: int | None = GROUP) -> Packer:
    def pack(weight: np.ndarray) -> tuple[Tensors, np.ndarray]:
        size = group or weight.shape[1]
        codes, scales, zeros = grouped(weight, bits, size, symmetric)
        tensors = {
            "weight_packed": tensor(words(codes, bits)),
            "weight_scale": tensor(scales).to(torch.bfloat16),
            "weight_shape": torch.tensor(weight.shape),
        }
        kept = tensors["weight_scale"].float().numpy()
        if not symmetric:
            tensors["weight_zero_point"] = tensor(words(zeros.T, bits).T)
        return tensors, meant(codes, kept, zeros, np.arange(weight.shape[1]) // size)

    return pack


def int8(weight: np.ndarray) -> tuple[Tensors, np.ndarray]:
    scales = (np.abs(weight).max(1, keepdims=True) / 127).astype(np.float16).astype(np.float32)
    codes = np.clip(np.round(weight / scales), -128, 127).astype(np.int8)
    return {"weight": tensor(codes), "weight_scale": tensor(scales)}, codes * scales


def fp8(scaled: str, name: str = "weight_scale") -> Packer:
    def pack(weight: np.ndarray) -> tuple[Tensors, np.ndarray]:
        rows, columns = weight.shape
        if scaled == "blocks":
            scale = np.zeros((-(-rows // 48), -(-columns // 48)), np.float32)
            for row in range(scale.shape[0]):
                for column in range(scale.shape[1]):
                    part = weight[48 * row : 48 * row + 48, 48 * column : 48 * column + 48]
                    scale[row, column] = np.abs(part).max() / 448
            wide = scale.repeat(48, 0)[:rows].repeat(48, 1)[:, :columns]
        else:
            scale = (
                np.abs(weight).max(1, keepdims=True) / 448 if scaled == "rows" else np.abs(weight).max() / 448
            )
            scale = np.asarray(scale, np.float32)
            wide = np.broadcast_to(scale, weight.shape)
        codes = tensor(weight / wide).to(torch.float8_e4m3fn)
        tensors = {"weight": codes, name: tensor(scale).reshape(scale.shape), "input_scale": torch.ones(1)}
        return tensors, codes.float().numpy() * wide

    return pack


def mxfp4_packed(weight: np.ndarray) -> tuple[Tensors, np.ndarray]:
    """Random codes and exponents; what they mean, transformers says of gpt-oss's own layout."""
    rows, columns = weight.shape
    rng = np.random.default_rng(4)
    packed = rng.integers(0, 256, (rows, columns // 2)).astype(np.uint8)
    exponents = rng.integers(118, 126, (rows, columns // 32)).astype(np.uint8)
    theirs = mxfp4.convert_moe_packed_tensors(
        tensor(packed).reshape(1, rows, columns // 32, 16), tensor(exponents)[None], dtype=torch.float32
    )
    values = theirs[0].T.contiguous().numpy()
    return {"weight_packed": tensor(packed), "weight_scale": tensor(exponents)}, values


def groups_of(format: str, **weights: Any) -> dict[str, Any]:
    rule = {
        "num_bits": 4,
        "type": "int",
        "symmetric": True,
        "strategy": "group",
        "group_size": GROUP,
        **weights,
    }
    return {
        "quant_method": "compressed-tensors",
        "format": format,
        "config_groups": {"group_0": {"targets": ["Linear"], "weights": rule}},
        "ignore": ["lm_head"],
    }


_GPTQ = {"quant_method": "gptq", "bits": 4, "group_size": GROUP}
FORMATS: dict[str, tuple[dict[str, Any], Packer, Form]] = {
    "awq": ({"quant_method": "awq", "bits": 4, "group_size": GROUP, "version": "gemm"}, awq, Form.Q4_1),
    "gptq": (_GPTQ, gptq(), Form.Q4_1),
    "gptq symmetric": (_GPTQ, gptq(middle=True), Form.Q4_0),
    "gptq v2": ({**_GPTQ, "checkpoint_format": "gptq_v2"}, gptq(less=0), Form.Q4_1),
    "gptq act-order": ({**_GPTQ, "desc_act": True}, gptq(shuffled=True), Form.Q8_0),
    "gptq 8": ({**_GPTQ, "bits": 8}, gptq(bits=8, middle=True), Form.Q8_0),
    "gptq 2": ({**_GPTQ, "bits": 2}, gptq(bits=2), Form.Q8_0),
    "int4": (groups_of("pack-quantized"), compressed(4, True), Form.Q4_0),
    "int4 asymmetric": (groups_of("pack-quantized", symmetric=False), compressed(4, False), Form.Q4_1),
    "int8 packed": (
        groups_of("pack-quantized", num_bits=8, strategy="channel", group_size=None),
        compressed(8, True, None),
        Form.Q8_0,
    ),
    "int8": (groups_of("int-quantized", num_bits=8, strategy="channel", group_size=None), int8, Form.Q8_0),
    "fp8 tensor": (
        groups_of("float-quantized", num_bits=8, type="float", strategy="tensor", group_size=None),
        fp8("tensor"),
        Form.Q8_0,
    ),
    "fp8 rows": (
        groups_of("float-quantized", num_bits=8, type="float", strategy="channel", group_size=None),
        fp8("rows"),
        Form.Q8_0,
    ),
    "fp8 blocks": (
        {"quant_method": "fp8", "weight_block_size": [48, 48]},
        fp8("blocks", "weight_scale_inv"),
        Form.Q8_0,
    ),
    "fp8 plain": ({"quant_method": "fp8", "activation_scheme": "static"}, fp8("tensor"), Form.Q8_0),
    "mxfp4": (groups_of("mxfp4-pack-quantized", type="float"), mxfp4_packed, Form.MXFP4),
}


@pytest.fixture(scope="module")
def plain(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_tiny("llama", tmp_path_factory.mktemp("plain") / "llama", num_hidden_layers=2)


def packed_model(
    plain: Path, directory: Path, config: dict[str, Any], pack: Packer
) -> tuple[Path, dict[str, np.ndarray]]:
    """The model with the matrices of its layers packed, and what each of them means."""
    directory.mkdir()
    for file in plain.iterdir():
        if file.suffix in (".json", ".jinja"):
            (directory / file.name).write_bytes(file.read_bytes())
    fields = json.loads((plain / "config.json").read_text())
    (directory / "config.json").write_text(json.dumps({**fields, "quantization_config": config}))
    tensors: Tensors = {}
    values: dict[str, np.ndarray] = {}
    for name, weight in load_file(plain / "model.safetensors").items():
        if "proj" not in name:
            tensors[name] = weight
            continue
        parts, values[name] = pack(weight.float().numpy())
        stem = name.removesuffix("weight")
        tensors |= {stem + part: one.contiguous() for part, one in parts.items()}
    save_file(tensors, directory / "model.safetensors")
    return directory, values


@pytest.mark.parametrize("name", FORMATS)
def test_every_format_means_what_its_authors_say(
    plain: Path, tmp_path: Path, name: str, caplog: pytest.LogCaptureFixture
) -> None:
    config, pack, form = FORMATS[name]
    path, values = packed_model(plain, tmp_path / "packed", config, pack)
    checkpoint = open_checkpoint(path)
    for tensor_name, expected in values.items():
        np.testing.assert_allclose(checkpoint.tensor(tensor_name).numpy(), expected, rtol=1e-6, atol=0)
        blocks = checkpoint.blocks(tensor_name)
        assert blocks is not None
        np.testing.assert_array_equal(blocks.dequantized(3, 9), checkpoint.tensor(tensor_name)[3:9].numpy())
    expanded, whole = tmp_path / "expanded", load_file(plain / "model.safetensors")
    expanded.mkdir()
    for file in plain.glob("*.json"):
        (expanded / file.name).write_bytes(file.read_bytes())
    save_file(
        {**whole, **{key: tensor(value) for key, value in values.items()}}, expanded / "model.safetensors"
    )
    tokens = list(range(5, 45))
    oracle = logits_in_chunks(load_decoder(open_checkpoint(expanded), torch.float32), tokens, [40])
    exact = logits_in_chunks(load_decoder(checkpoint, torch.float32, Quantize.NONE), tokens, [40])
    torch.testing.assert_close(exact, oracle, atol=1e-3, rtol=1e-3)
    if not kernels_available():
        return
    caplog.set_level(logging.INFO, "weighbridge.models")
    decoder = load_decoder(checkpoint, torch.float32)
    layer = decoder.layers[0]
    assert isinstance(layer.qkv, PackedLinear)
    assert layer.qkv.forms == [form]
    assert form.name in caplog.text
    assert "attention: " in caplog.text
    # Activations are rounded to 8 bits, and where the form is another one the weights a little, too.
    ours = logits_in_chunks(decoder, tokens, [40])
    assert float((ours - oracle).norm() / oracle.norm()) < 0.05


@pytest.mark.parametrize(
    ("config", "words"),
    [
        ({"quant_method": "bitsandbytes"}, "bitsandbytes.*GGUF"),
        ({"quant_method": "awq", "bits": 4, "version": "gemv"}, "gemv.*GGUF"),
        ({"quant_method": "gptq", "bits": 3}, "3 bits.*GGUF"),
        ({"quant_method": "gptq", "bits": 4, "checkpoint_format": "marlin"}, "marlin.*GGUF"),
        ({"quant_method": "fp8", "fmt": "e5m2"}, "e5m2.*GGUF"),
        (groups_of("nvfp4-pack-quantized"), "nvfp4.*GGUF"),
        (groups_of("marlin-24"), "marlin-24.*GGUF"),
        ({"quant_method": "compressed-tensors", "config_groups": {}}, "0 rules"),
        ({"quant_method": "mxfp4"}, "mxfp4.*GGUF"),
        ({}, "unknown"),
        ({"quant_method": ["awq"]}, "awq"),
    ],
)
def test_what_cannot_be_read_is_named_with_the_way_out(
    plain: Path, tmp_path: Path, config: dict[str, Any], words: str
) -> None:
    path, _ = packed_model(plain, tmp_path / "packed", config or {"bits": 4}, awq)
    with pytest.raises(UnsupportedModel, match=words):
        open_checkpoint(path)


def _changed(path: Path, name: str, change: Callable[[torch.Tensor], torch.Tensor | None]) -> None:
    file = path / "model.safetensors"
    tensors = load_file(file)
    changed = change(tensors.pop(name))
    save_file(tensors if changed is None else {**tensors, name: changed.contiguous()}, file)


Q = "model.layers.1.self_attn.q_proj."


@pytest.mark.parametrize(
    ("name", "part", "change"),
    [
        ("awq", "qzeros", lambda one: None),
        ("awq", "scales", lambda one: one[:-1]),
        ("awq", "qweight", lambda one: one[:, :-1]),
        ("awq", "qweight", lambda one: one.to(torch.int64)),
        ("awq", "scales", lambda one: one.to(torch.int32)),
        ("gptq", "g_idx", lambda one: one[:-1]),
        ("gptq", "qzeros", lambda one: one.reshape(-1)),
        ("gptq", "qweight", lambda one: one.reshape(-1)),
        ("int4", "weight_scale", lambda one: one[:, :1]),
        ("int4 asymmetric", "weight_zero_point", lambda one: None),
        ("fp8 blocks", "weight_scale_inv", lambda one: one[:1]),
        ("fp8 tensor", "weight_scale", lambda one: None),
        ("fp8 tensor", "weight", lambda one: one.float().to(torch.float8_e5m2)),
        ("mxfp4", "weight_scale", lambda one: one.float()),
    ],
)
def test_damaged_parts_are_named_before_anything_is_read(
    plain: Path, tmp_path: Path, name: str, part: str, change: Callable[[torch.Tensor], torch.Tensor | None]
) -> None:
    config, pack, _ = FORMATS[name]
    path, _ = packed_model(plain, tmp_path / "packed", config, pack)
    _changed(path, Q + part, change)
    with pytest.raises((BadInput, UnsupportedModel), match=Q.replace(".", r"\.")):
        open_checkpoint(path)


def test_groups_that_are_not_there_are_refused(plain: Path, tmp_path: Path) -> None:
    config, pack, _ = FORMATS["gptq act-order"]
    path, _ = packed_model(plain, tmp_path / "packed", config, pack)
    _changed(path, Q + "g_idx", lambda one: one + 1)
    with pytest.raises(BadInput, match="groups beyond the 2"):
        load_decoder(open_checkpoint(path), torch.float32)


@pytest.mark.parametrize("name", ["awq", "int4", "fp8 rows"])
def test_a_scale_that_is_no_number_is_refused(plain: Path, tmp_path: Path, name: str) -> None:
    config, pack, _ = FORMATS[name]
    path, _ = packed_model(plain, tmp_path / "packed", config, pack)
    part = "scales" if name == "awq" else "weight_scale"
    _changed(path, Q + part, lambda one: torch.full_like(one, float("nan")))
    for scheme in (Quantize.AUTO, Quantize.NONE):
        with pytest.raises(BadInput, match="not finite"):
            load_decoder(open_checkpoint(path), torch.float32, scheme)


def test_a_scale_that_float16_cannot_hold_is_not_kept_in_it(plain: Path, tmp_path: Path) -> None:
    def small(weight: np.ndarray) -> tuple[Tensors, np.ndarray]:
        tensors, values = compressed(4, True)(weight)
        tensors["weight_scale"] = tensors["weight_scale"] * 2.0**-30
        return tensors, values * 2.0**-30

    config = FORMATS["int4"][0]
    path, values = packed_model(plain, tmp_path / "packed", config, small)
    checkpoint = open_checkpoint(path)
    for name, expected in values.items():
        np.testing.assert_allclose(checkpoint.tensor(name).numpy(), expected, rtol=1e-6)
        blocks = checkpoint.blocks(name)
        assert blocks is not None
        assert blocks.kind.name == "F32"


_VALUES = st.recursive(
    st.none() | st.booleans() | st.integers(-2, 300) | st.floats(allow_nan=True) | st.text(max_size=6),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=4), inner, max_size=2),
    max_leaves=4,
)
_KEYS = ["quant_method", "bits", "group_size", "version", "format", "weight_block_size", "config_groups"]


@given(st.sampled_from(list(FORMATS)), st.sampled_from(_KEYS), _VALUES)
@settings(max_examples=60)
def test_no_declaration_of_a_packing_makes_it_fail_otherwise(name: str, key: str, value: Any) -> None:
    with contextlib.suppress(BadInput, UnsupportedModel):
        packing = packing_of(Fields({"quantization_config": {**FORMATS[name][0], key: value}}))
        assert packing is None or (packing.bits in (2, 4, 8) and packing.group_size >= 0)
