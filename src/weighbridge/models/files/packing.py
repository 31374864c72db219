"""How the weights of a safetensors model are in few bits, as its config.json says it."""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum
from typing import Any

from weighbridge.errors import UnsupportedModel
from weighbridge.models.files.fields import Fields, shown

WAY_OUT = "use a GGUF file of the model, or its original weights"


class PackingFormat(StrEnum):
    """Who packed the weights; the value is what the log calls them."""

    AWQ = "AWQ"
    GPTQ = "GPTQ"
    GPTQ_V2 = "GPTQ v2"  # zero points are stored as they are, not less one
    INT_PACKED = "compressed-tensors"
    INT8 = "int8"
    FP8 = "FP8"
    MXFP4 = "MXFP4"


@dataclass(frozen=True, slots=True)
class Packing:
    """One rule for all packed matrices of a model.

    group_size: columns that share a scale; 0: all of a row. block: rows and columns of an FP8 matrix that do.
    """

    format: PackingFormat
    bits: int
    group_size: int = 0
    symmetric: bool = True
    block: tuple[int, int] | None = None

    @property
    def label(self) -> str:
        """What the log and the table of tensors call matrices that are packed so."""
        if self.format in (PackingFormat.FP8, PackingFormat.MXFP4, PackingFormat.INT8):
            return str(self.format.value)
        return f"{self.format.value} {self.bits} bits"


def packing_of(config: Fields) -> Packing | None:
    """Return the packing that a config.json declares; None: weights are floats.

    Raises UnsupportedModel naming what cannot be read and the way out, BadInput for what contradicts itself.
    """
    values = config.nested("quantization_config", "compression_config")
    if not values:
        return None
    fields = Fields(values, "config.json: quantization_config")
    method = fields.get("quant_method")
    readers = {"awq": _awq, "gptq": _gptq, "fp8": _fp8, "compressed-tensors": _compressed}
    if not isinstance(method, str) or method not in readers:
        raise UnsupportedModel(
            f"weights quantised by {shown(method or 'unknown')} are not supported ({', '.join(readers)} are); {WAY_OUT}"
        )
    return readers[method](fields)


def _refused(what: str) -> UnsupportedModel:
    return UnsupportedModel(f"{what} is not supported; {WAY_OUT}")


def _bits(fields: Fields, name: str, supported: tuple[int, ...], what: str) -> int:
    bits = fields.whole(name)
    if bits not in supported:
        raise _refused(f"{what} in {bits} bits")
    return bits


def _group_size(fields: Fields, name: str, default: int) -> int:
    """-1 is all of a row, which is 0 here."""
    value = fields.get(name)
    return 0 if value == -1 else fields.whole(name, default=default)


def _awq(fields: Fields) -> Packing:
    version = str(fields.get("version") or "gemm").lower()
    if version != "gemm":
        raise _refused(f"AWQ of version {shown(version)}")
    bits = _bits(fields, "bits" if "bits" in fields else "w_bit", (4,), "AWQ")
    name = "group_size" if "group_size" in fields else "q_group_size"
    return Packing(PackingFormat.AWQ, bits, _group_size(fields, name, 128), symmetric=False)


def _gptq(fields: Fields) -> Packing:
    form = fields.get("checkpoint_format", "format") or "gptq"
    if form not in ("gptq", "gptq_v2"):
        raise _refused(f"GPTQ stored as {shown(form)}")
    format = PackingFormat.GPTQ if form == "gptq" else PackingFormat.GPTQ_V2
    bits = _bits(fields, "bits", (2, 4, 8), "GPTQ")
    return Packing(format, bits, _group_size(fields, "group_size", 128), symmetric=False)


def _fp8(fields: Fields) -> Packing:
    kind = fields.get("fmt") or "e4m3"
    if kind not in ("e4m3", "float8_e4m3fn"):
        raise _refused(f"FP8 of kind {shown(kind)}")
    block = fields.get("weight_block_size")
    return Packing(PackingFormat.FP8, 8, block=None if block is None else _block(block))


def _block(value: Any) -> tuple[int, int]:
    pair = Fields(dict(zip(("rows", "columns"), value, strict=False)) if isinstance(value, list) else {})
    if not isinstance(value, list) or len(value) != 2:
        raise _refused(f"FP8 in blocks of {shown(value)}")
    return pair.whole("rows"), pair.whole("columns")


def _compressed(fields: Fields) -> Packing:
    """compressed-tensors, as llm-compressor writes it: one group of matrices, one rule."""
    if Fields(fields.nested("sparsity_config") or {}).get("format") not in (None, "dense"):
        raise _refused("compressed-tensors with sparse weights")
    groups = list((fields.nested("config_groups") or {}).values())
    rules = [
        Fields(group, fields.where).nested("weights") or {} for group in groups if isinstance(group, dict)
    ]
    if not rules or len(rules) != len(groups) or any(rule != rules[0] for rule in rules):
        raise _refused(f"compressed-tensors with {len(groups)} rules for weights")
    rule = Fields(rules[0], f"{fields.where}: weights")
    form = fields.get("format") or Fields(groups[0]).get("format")
    if form == "mxfp4-pack-quantized":
        return Packing(PackingFormat.MXFP4, 4, 32)
    strategy, size = rule.get("strategy"), _group_size(rule, "group_size", 0) if "group_size" in rule else 0
    block = _block(rule.get("block_structure")) if strategy == "block" else None
    if form == "pack-quantized" and rule.get("type") in (None, "int") and strategy in ("group", "channel"):
        bits = _bits(rule, "num_bits", (4, 8), "compressed-tensors")
        return Packing(PackingFormat.INT_PACKED, bits, size, rule.flag("symmetric", True))
    if form in ("int-quantized", "naive-quantized") and rule.get("type") == "int" and strategy == "channel":
        _bits(rule, "num_bits", (8,), "compressed-tensors")
        return Packing(PackingFormat.INT8, 8)
    if form in ("float-quantized", "naive-quantized") and rule.get("type") == "float":
        _bits(rule, "num_bits", (8,), "compressed-tensors in floats")
        return Packing(PackingFormat.FP8, 8, block=block)
    raise _refused(f"compressed-tensors of format {shown(form)} by {shown(strategy)}")
