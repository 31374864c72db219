"""A GGUF header taken apart, changed and put together again: its counts and lengths fit, or one of them does not."""

from __future__ import annotations

import struct
from dataclasses import dataclass, field
from random import Random
from typing import Any

from tests.fuzz.forms import INPUT_BYTES

_TEXT, _LIST = 8, 9
_FORMS = {0: "B", 1: "b", 2: "H", 3: "h", 4: "I", 5: "i", 6: "f", 7: "?", 10: "Q", 11: "q", 12: "d"}
_KINDS_OF_TENSORS = (0, 1, 2, 3, 6, 7, 8, 10, 11, 12, 13, 14, 15, 16, 24, 30, 39)
_NUMBERS = (
    0,
    1,
    2,
    3,
    4,
    5,
    31,
    32,
    33,
    64,
    255,
    1 << 16,
    (1 << 31) - 1,
    1 << 31,
    (1 << 32) - 1,
    1 << 63,
    (1 << 64) - 1,
)
_FLOATS = (0.0, -1.0, 1.0, 0.5, 1e30, 3.4e38, float("inf"), float("nan"))
_TEXTS = (
    *("", "a", "llama", "qwen2", "qwen3", "qwen3moe", "smollm3", "olmoe", "deepseek2", "qwen3next", "gemma3"),
    *(
        "gpt2",
        "bert",
        "default",
        "llama-bpe",
        "tekken",
        "none",
        "linear",
        "yarn",
        "▁",
        "<0x41>",
        "Ġa",
        "a b",
        "é\ufffd",
    ),
)
#: Keys of the format; those without a dot are behind the architecture's name.
_KEYS = (
    *("general.architecture", "general.name", "general.alignment", "split.count", "tokenizer.chat_template"),
    *(f"tokenizer.ggml.{key}" for key in ("model", "pre", "tokens", "token_type", "merges", "scores")),
    *(f"tokenizer.ggml.{key}_token_id" for key in ("bos", "eos", "eot", "eom", "unknown", "padding")),
    *(f"tokenizer.ggml.add_{key}" for key in ("bos_token", "eos_token", "space_prefix")),
    *(
        "embedding_length",
        "feed_forward_length",
        "block_count",
        "context_length",
        "vocab_size",
        "expert_count",
    ),
    *("expert_used_count", "expert_feed_forward_length", "expert_shared_count", "leading_dense_block_count"),
    *("expert_shared_feed_forward_length", "expert_weights_norm", "full_attention_interval"),
    *(
        f"attention.{key}"
        for key in ("head_count", "head_count_kv", "key_length", "value_length", "sliding_window")
    ),
    *(
        f"attention.{key}"
        for key in ("q_lora_rank", "kv_lora_rank", "key_length_mla", "value_length_mla", "clamp_kqv")
    ),
    *("attention.layer_norm_rms_epsilon", "rope.dimension_count", "rope.freq_base", "rope.scale_linear"),
    *(f"rope.scaling.{key}" for key in ("type", "factor", "original_context_length", "attn_factor")),
    *(f"ssm.{key}" for key in ("conv_kernel", "state_size", "group_count", "time_step_rank", "inner_size")),
)
_NAMES = (
    *("token_embd.weight", "output.weight", "output_norm.weight", "rope_freqs.weight"),
    *(
        f"blk.0.{name}.weight"
        for name in ("attn_q", "attn_k", "attn_v", "attn_output", "attn_norm", "attn_q_norm")
    ),
    *(
        f"blk.0.{name}.weight"
        for name in ("ffn_gate", "ffn_gate_inp", "ffn_gate_exps", "ffn_up_exps", "ffn_down_exps")
    ),
    *("blk.0.ffn_gate_shexp.weight", "blk.0.attn_q.bias", "blk.1.attn_q.weight", "v.blk.0.weight", "blk."),
)
_LENGTH_IS_WRONG = 0.02
_MOST_CHANGES = 3


@dataclass(slots=True)
class _Value:
    """A metadata value; `inner` is the type of a list's entries."""

    key: str
    kind: int
    value: Any
    inner: int = 0


@dataclass(slots=True)
class _Tensor:
    name: str
    sizes: list[int]
    kind: int
    offset: int


@dataclass(slots=True)
class _File:
    version: int
    values: list[_Value] = field(default_factory=list)
    tensors: list[_Tensor] = field(default_factory=list)
    data: bytes = b""


class _Reader:
    def __init__(self, data: bytes) -> None:
        self.data, self.at = data, 0

    def number(self, form: str) -> Any:
        [value] = struct.unpack_from(f"<{form}", self.data, self.at)
        self.at += struct.calcsize(f"<{form}")
        return value

    def text(self) -> str:
        length = self.number("Q")
        if length > len(self.data) - self.at:
            raise ValueError
        self.at += length
        return self.data[self.at - length : self.at].decode("latin-1")

    def entry(self, kind: int) -> Any:
        return self.text() if kind == _TEXT else self.number(_FORMS[kind])

    def value(self) -> _Value:
        key, kind = self.text(), self.number("I")
        if kind != _LIST:
            return _Value(key, kind, self.entry(kind))
        inner, count = self.number("I"), self.number("Q")
        if count > len(self.data):
            raise ValueError
        return _Value(key, kind, [self.entry(inner) for _ in range(count)], inner)

    def tensor(self) -> _Tensor:
        name, sizes = self.text(), [self.number("Q") for _ in range(self.number("I") % 16)]
        return _Tensor(name, sizes, self.number("I"), self.number("Q"))


def _taken_apart(data: bytes) -> _File:
    """Raises ValueError, KeyError or struct.error for what is no GGUF file."""
    reader = _Reader(data)
    if reader.number("4s") != b"GGUF":
        raise ValueError
    file, tensors, values = _File(reader.number("I")), reader.number("Q"), reader.number("Q")
    if max(tensors, values) > len(data):
        raise ValueError
    file.values = [reader.value() for _ in range(values)]
    file.tensors = [reader.tensor() for _ in range(tensors)]
    file.data = data[-(-reader.at // 32) * 32 :]
    return file


class _Writer:
    """Writes lengths and counts as they are, or now and then another number."""

    def __init__(self, draw: Random) -> None:
        self._draw = draw
        self.parts: list[bytes] = []

    def number(self, form: str, value: Any) -> None:
        try:
            self.parts.append(struct.pack(f"<{form}", value))
        except (struct.error, OverflowError, TypeError):
            bits = 8 * struct.calcsize(f"<{form}")
            whole = int(value) % (1 << bits) if isinstance(value, int) else 0
            self.parts.append(whole.to_bytes(bits // 8, "little"))

    def count(self, count: int) -> None:
        wrong = self._draw.random() < _LENGTH_IS_WRONG
        near = (count + 1, max(count - 1, 0), *_NUMBERS)
        self.number("Q", self._draw.choice(near) if wrong else count)

    def text(self, text: object) -> None:
        data = str(text).encode("latin-1" if str(text).isascii() else "utf-8", "replace")
        self.count(len(data))
        self.parts.append(data)

    def entry(self, kind: int, value: Any) -> None:
        if kind == _TEXT:
            self.text(value)
        elif kind in _FORMS:
            self.number(_FORMS[kind], value)

    def value(self, item: _Value) -> None:
        self.text(item.key)
        self.number("I", item.kind)
        if item.kind == _LIST:
            entries = item.value if isinstance(item.value, list) else [item.value]
            self.number("I", item.inner)
            self.count(len(entries))
            for entry in entries:
                self.entry(item.inner, entry)
        else:
            self.entry(
                item.kind, item.value[0] if isinstance(item.value, list) and item.value else item.value
            )

    def tensor(self, tensor: _Tensor) -> None:
        self.text(tensor.name)
        self.number("I", len(tensor.sizes))
        for size in tensor.sizes:
            self.number("Q", size)
        self.number("I", tensor.kind)
        self.number("Q", tensor.offset)


def _put_together(file: _File, draw: Random) -> bytes:
    writer = _Writer(draw)
    writer.number("4s", b"GGUF")
    writer.number("I", file.version)
    writer.count(len(file.tensors))
    writer.count(len(file.values))
    for value in file.values:
        writer.value(value)
    for tensor in file.tensors:
        writer.tensor(tensor)
    head = b"".join(writer.parts)
    return head + bytes(-len(head) % 32) + file.data


def changed_gguf(data: bytes, draw: Random) -> bytes | None:
    """Return a GGUF file with something changed in its header; None for what is none."""
    try:
        file = _taken_apart(data)
    except (ValueError, KeyError, struct.error):
        return None
    for _ in range(draw.randint(1, _MOST_CHANGES)):
        _change(file, draw)
    made = _put_together(file, draw)
    return made if len(made) <= INPUT_BYTES else None


def _change(file: _File, draw: Random) -> None:
    change = draw.randrange(10)
    if change < 4 and file.values:
        _change_value(draw.choice(file.values), draw)
    elif change < 7 and file.tensors:
        _change_tensor(draw.choice(file.tensors), file, draw)
    elif change == 7:
        _add(file, draw)
    elif change == 8:
        one = draw.choice((file.values, file.tensors))
        if one:
            one.pop(draw.randrange(len(one)))
    else:
        file.data = file.data[: draw.randint(0, len(file.data))] + bytes(draw.choice((0, 32, 512)))


def _new_value(key: str, draw: Random) -> _Value:
    kind = draw.choice((*_FORMS, _TEXT, _TEXT, _LIST, _LIST))
    if kind != _LIST:
        return _Value(key, kind, _drawn(kind, draw))
    inner = draw.choice((*_FORMS, _TEXT, _TEXT, _LIST))
    return _Value(key, kind, [_drawn(inner, draw) for _ in range(draw.choice((0, 1, 2, 5)))], inner)


def _drawn(kind: int, draw: Random) -> Any:
    if kind == _TEXT:
        return draw.choice(_TEXTS)
    return draw.choice(_FLOATS if kind in (6, 12) else _NUMBERS)


def _change_value(item: _Value, draw: Random) -> None:
    change = draw.randrange(6)
    if change == 0:
        item.key = draw.choice(_KEYS)
    elif change == 1:
        fresh = _new_value(item.key, draw)
        item.kind, item.value, item.inner = fresh.kind, fresh.value, fresh.inner
    elif change == 2:
        item.kind = draw.choice((*_FORMS, _TEXT, _LIST))
        item.inner = item.inner or draw.choice((*_FORMS, _TEXT))
    elif isinstance(item.value, list):
        _change_list(item, draw)
    else:
        item.value = _drawn(item.kind, draw)


def _change_list(item: _Value, draw: Random) -> None:
    change = draw.randrange(4)
    at = draw.randint(0, len(item.value))
    if change == 0:
        item.inner = draw.choice((*_FORMS, _TEXT))
    elif change == 1:
        item.value.insert(at, _drawn(item.inner, draw))
    elif change == 2:
        del item.value[at : at + 1]
    elif item.value:
        item.value[at % len(item.value)] = _drawn(item.inner, draw)


def _change_tensor(tensor: _Tensor, file: _File, draw: Random) -> None:
    change = draw.randrange(6)
    if change == 0:
        tensor.name = draw.choice(_NAMES)
    elif change <= 2:
        tensor.kind = draw.choice(_KINDS_OF_TENSORS)
    elif change == 3:
        tensor.offset = draw.choice((*_NUMBERS, len(file.data), tensor.offset + 1, tensor.offset + 32))
    elif change == 4 and tensor.sizes:
        at = draw.randrange(len(tensor.sizes))
        tensor.sizes[at] = draw.choice((*_NUMBERS, tensor.sizes[at] + 1, tensor.sizes[at] * 2))
    elif draw.random() < 0.5:
        tensor.sizes.append(draw.choice((1, 2, 4)))
    else:
        del tensor.sizes[-1:]


def _add(file: _File, draw: Random) -> None:
    if draw.random() < 0.7:
        names = [value.value for value in file.values if value.key == "general.architecture"]
        key = draw.choice(_KEYS)
        key = key if key.startswith(("general.", "tokenizer.", "split.")) else f"{(*names, 'llama')[0]}.{key}"
        file.values.insert(draw.randint(0, len(file.values)), _new_value(key, draw))
    else:
        sizes = [draw.choice((1, 2, 4, 5, 32)) for _ in range(draw.randint(1, 3))]
        file.tensors.append(
            _Tensor(draw.choice(_NAMES), sizes, draw.choice(_KINDS_OF_TENSORS), len(file.data))
        )
        file.data += bytes(draw.choice((0, 64, 512)))
