"""The corpora that fuzzing begins with: small, well-formed, and one of each thing that a format has."""

from __future__ import annotations

import json
import struct
from typing import Any

Json = dict[str, Any]

#: The smallest model there is, so that its tables are short.
CONFIG: Json = {
    "model_type": "llama",
    "vocab_size": 5,
    "hidden_size": 4,
    "intermediate_size": 4,
    "num_hidden_layers": 1,
    "num_attention_heads": 1,
    "num_key_value_heads": 1,
    "max_position_embeddings": 16,
    "rms_norm_eps": 1e-5,
    "rope_theta": 10_000.0,
    "hidden_act": "silu",
    "tie_word_embeddings": True,
}
_MATRICES = (
    *("self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj", "self_attn.o_proj"),
    *("mlp.gate_proj", "mlp.up_proj", "mlp.down_proj"),
)
_SHAPES = {
    "model.embed_tokens.weight": [5, 4],
    **{f"model.layers.0.{name}.weight": [4, 4] for name in _MATRICES},
    "model.layers.0.input_layernorm.weight": [4],
    "model.layers.0.post_attention_layernorm.weight": [4],
    "model.norm.weight": [4],
    "zone.of.no.layer": [1],
}
#: Bytes of all tensors of the smallest model, as float32.
TENSOR_BYTES = sum(4 * shape[0] * shape[-1] ** (len(shape) - 1) for shape in _SHAPES.values())


def safetensors() -> list[bytes]:
    """Headers of the smallest model, and a whole file."""
    header: Json = {}
    at = 0
    for name, shape in _SHAPES.items():
        size = 4 * shape[0] * shape[-1] ** (len(shape) - 1)
        header[name] = {"dtype": "F32", "shape": shape, "data_offsets": [at, at + size]}
        at += size
    plain = _compact(header)
    noted = _compact({"__metadata__": {"format": "pt"}, **header})
    one = _compact({"a tensor": {"dtype": "BF16", "shape": [2, 1], "data_offsets": [0, 4]}})
    return [plain, noted, one, struct.pack("<Q", len(plain)) + plain + bytes(TENSOR_BYTES)]


def gguf() -> list[bytes]:
    """The smallest model of each version with a tokenizer, and a header alone."""
    layer = {
        "attn_q": [4, 4],
        "attn_k": [4, 4],
        "attn_v": [4, 4],
        "attn_output": [4, 4],
        "ffn_gate": [4, 4],
        "ffn_up": [4, 4],
        "ffn_down": [4, 4],
        "attn_norm": [4],
        "ffn_norm": [4],
    }
    shapes = {
        "token_embd": [5, 4],
        "output_norm": [4],
        **{f"blk.0.{name}": shape for name, shape in layer.items()},
    }
    table, at = [], 0
    for name, shape in shapes.items():
        sizes = b"".join(struct.pack("<Q", size) for size in reversed(shape))
        table.append(
            _text(f"{name}.weight") + struct.pack("<I", len(shape)) + sizes + struct.pack("<IQ", 0, at)
        )
        at += 96
    prefixed = {"block_count": 1, "context_length": 16, "embedding_length": 4, "feed_forward_length": 4}
    heads = {"attention.head_count": 1, "attention.head_count_kv": 1}
    values = [
        *(_value(f"llama.{key}", number) for key, number in {**prefixed, **heads}.items()),
        _value("llama.attention.layer_norm_rms_epsilon", 1e-5),
        _value("tokenizer.ggml.model", "gpt2"),
        _value("tokenizer.ggml.pre", "gpt-2"),
        _value("tokenizer.ggml.tokens", ["the last letter", "a", "b", "ab", "<s>"]),
        _value("tokenizer.ggml.token_type", [1, 1, 1, 1, 3]),
        _value("tokenizer.ggml.merges", ["a b"]),
        _value("tokenizer.ggml.bos_token_id", 4),
        _value("tokenizer.chat_template", "{{ messages[0].content }}"),
    ]
    model = _value("general.architecture", "llama")
    return [
        *(_gguf(version, [model, *values], table, at) for version in (2, 3)),
        _gguf(3, [model, _value("general.name", "a name"), _value("general.alignment", 64)], [], 0),
    ]


def _gguf(version: int, values: list[bytes], table: list[bytes], data: int) -> bytes:
    head = b"GGUF" + struct.pack("<IQQ", version, len(table), len(values))
    written = head + b"".join(values) + b"".join(table)
    return written + bytes(-len(written) % 32 + data)


def _text(text: str) -> bytes:
    data = text.encode()
    return struct.pack("<Q", len(data)) + data


def _value(key: str, value: object) -> bytes:
    kind, data = _typed(value)
    return _text(key) + struct.pack("<I", kind) + data


def _typed(value: object) -> tuple[int, bytes]:
    if isinstance(value, str):
        return 8, _text(value)
    if isinstance(value, float):
        return 6, struct.pack("<f", value)
    if isinstance(value, list):
        inner = [_typed(entry) for entry in value]
        return 9, struct.pack("<IQ", inner[0][0], len(inner)) + b"".join(data for _, data in inner)
    assert isinstance(value, int)
    return 4, struct.pack("<I", value)


def tokenizers() -> list[bytes]:
    """Byte-level BPE as usual, and as SentencePiece's files are converted."""
    special = {"single_word": False, "lstrip": False, "rstrip": False, "normalized": False, "special": True}
    level = {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True, "use_regex": True}
    bpe = {
        "type": "BPE",
        "vocab": {"the last letter": 0, "a": 1, "b": 2, "ab": 3, "<s>": 4},
        "merges": [["a", "b"]],
    }
    added = [{"id": 4, "content": "<s>", **special}]
    split = {"type": "Split", "pattern": {"Regex": r"\p{N}|\s+"}, "behavior": "Isolated", "invert": False}
    byte_level: Json = {
        "version": "1.0",
        "added_tokens": added,
        "normalizer": None,
        "pre_tokenizer": level,
        "post_processor": level,
        "decoder": level,
        "model": bpe,
    }
    pieces = {"▁": 0, "▁a": 1, "a": 2, "<0x0A>": 3, "<unk>": 4}
    steps = [
        {"type": "Replace", "pattern": {"String": "▁"}, "content": " "},
        {"type": "ByteFallback"},
        {"type": "Fuse"},
        {"type": "Strip", "content": " ", "start": 1, "stop": 0},
    ]
    sentence: Json = {
        "version": "1.0",
        "added_tokens": [{"id": 4, "content": "<unk>", **special}],
        "normalizer": {
            "type": "Sequence",
            "normalizers": [{"type": "Prepend", "prepend": "▁"}, {"type": "NFC"}],
        },
        "pre_tokenizer": None,
        "post_processor": None,
        "decoder": {"type": "Sequence", "decoders": steps},
        "model": {
            "type": "BPE",
            "unk_token": "<unk>",
            "byte_fallback": True,
            "vocab": pieces,
            "merges": ["▁ a"],
        },
    }
    splitting = {**byte_level, "pre_tokenizer": {"type": "Sequence", "pretokenizers": [split, level]}}
    return [_compact(byte_level), _compact(splitting), _compact(sentence)]


def templates() -> list[bytes]:
    """A turn of each common form, tools, macros, loops, and what a template may refuse."""
    return [
        b"Plain words of a template.\n{{ bos_token }}",
        b"{% for m in messages %}<|im_start|>{{ m['role'] }}\n{{ m.content|trim }}<|im_end|>\n{% endfor %}"
        b"{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}",
        b"{%- if tools is not none %}{% for t in tools %}{{ t|tojson(indent=2) }}{% endfor %}{% endif -%}"
        b"{{ bos_token }}",
        b"{% set ns = namespace(n=0) %}{% for m in messages[::-1] if m.role != 'system' %}"
        b"{% set ns.n = ns.n + loop.index0 %}{% if loop.last %}{{ ns.n }}{% endif %}{% endfor %}",
        b"{% macro turn(m, end='.') %}{{ m.role|upper ~ ': ' }}{{ caller() }}{% endmacro %}"
        b"{% call turn(messages[0]) %}{{ '%s-%d' % ('a', 3) }}{% endcall %}",
        b"{% if messages[0].role != 'user' %}{{ raise_exception('user first') }}{% endif %}",
        b"{% generation %}{{ strftime_now('%Y') }}{% endgeneration %}{% for i in range(3) %}{% break %}{% endfor %}",
        b"z{{ messages|map(attribute='role')|join(',') }}{{ messages[1].content.split('%')[-1].strip() }}",
        b"{{ messages|selectattr('role', 'equalto', 'user')|list|length ** 2 // 3 }}"
        b"{{ {'a': [1, none]}.items()|list }}",
    ]


def yaml() -> list[bytes]:
    """A gateway with every section, a route with rules, and what YAML has beside plain values."""
    return [
        b"models:\n  small:\n    replicas:\n      - {url: 'http://127.0.0.1:8000'}\n    aliases: [tiny]\n"
        b"    default_max_tokens: 64\nlisten: 127.0.0.1:8080\npolicy: weigh\nqueue: {max_wait: 3.5}\n"
        b"hedge: {enabled: true, quantile: 0.9}\nretry: {attempts: 2}\nbreaker: {failures: 3}\nmax_body: 8MiB\n",
        b"models: {a: {replicas: [{url: 'http://h:1'}]}}\n"
        b"tenants:\n  one: {key: secret-of-one, limits: {usd_per_day: 2}, priority: 3}\n"
        b"  two:\n    keys: [{key: secret-of-two, expires: 2027-01-31}]\nlimits: {requests_per_minute: 60}\n",
        b"models: {small: {replicas: [{url: 'http://h:1'}]}}\nroutes:\n  auto:\n    edge: {model: small}\n"
        b"    cloud: {url: 'https://h/v1', model: big, key: k, price: {input_usd_per_million: 2.5, "
        b"output_usd_per_million: 10}}\n    residency: redact_then_cloud\n    rules:\n"
        b"      - {name: health, labels: [patient], residency: never_leaves}\n    threshold: 0.7\n"
        b"    cascade: {threshold: 0.6, window_tokens: 24, race: false}\n"
        b"budgets: {usd_per_day: 20, tenants: {'*': 2}}\n",
        b"%YAML 1.1\n---\nmodels:\n  ? zero\n  : aliases: &a [!!str 1, 0x1f, 1:2]\n    replicas: "
        b'[{url: "http://h:1\\u0031", key: *a}]\n...\n',
    ]


def events() -> list[bytes]:
    """Streams of each protocol with each kind of part; the first byte says how they are cut."""
    usage = {"prompt_tokens": 3, "completion_tokens": 2, "total_tokens": 5}
    call = {"index": 0, "id": "c", "function": {"name": "add", "arguments": "{}"}}
    deltas: list[Json] = [
        {"content": "zA"},
        {"reasoning_content": "b"},
        {"refusal": "c"},
        {"tool_calls": [call]},
    ]
    chunks: list[Json] = [{"choices": [{"index": 0, "delta": delta}]} for delta in deltas]
    last = {"choices": [{"index": 0, "delta": {}, "finish_reason": "stop"}], "usage": usage}
    text = {"choices": [{"index": 0, "text": "a", "finish_reason": None}]}
    failed = {"error": {"message": "no", "type": "server_error", "code": "x"}}
    vectors = {"data": [{"index": 0, "embedding": [0.5, 1]}], "usage": usage}
    whole = {
        "choices": [{"index": 0, "message": {"content": "a"}, "finish_reason": "length"}],
        "usage": usage,
    }
    return [
        b"\x07" + _stream([*chunks, last]) + b"data: [DONE]\n\n",
        b"\x00" + _stream([text, failed]),
        b"\x03: ping\r\n\r\nevent: x\r\nid: 1\r\ndata: {\r\ndata:}\r\n\r\ndata: zz",
        b"\x40" + _compact(whole),
        b"\x00" + _compact(vectors),
    ]


def _stream(chunks: list[Json]) -> bytes:
    return b"".join(b"data: " + _compact(chunk) + b"\n\n" for chunk in chunks)


def answers() -> list[bytes]:
    """An answer of each kind of length; the first byte says how it is cut."""
    return [
        b"\x00HTTP/1.1 200 OK\r\nContent-Type: text/plain\r\nContent-Length: 5\r\n\r\nzello",
        b"\x05HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n3;x=1\r\nabc\r\n2\r\nde\r\n0\r\nTrailer: t\r\n\r\n",
        b"\x10HTTP/1.1 100 Continue\r\n\r\nHTTP/1.1 404 Not Found\r\nConnection: close\r\n\r\nuntil the end",
        b"\x00HTTP/1.0 204 No Content\r\nConnection: keep-alive\r\n\r\n",
        b"\x08HTTP/1.1 503 Busy\r\nRetry-After: 1\r\nContent-Length: 0\r\n\r\nHTTP/1.1 200 OK\r\n\r\n",
    ]


def _compact(value: object) -> bytes:
    return json.dumps(value, ensure_ascii=False, separators=(",", ":")).encode()
