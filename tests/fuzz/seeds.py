"""The corpora that fuzzing begins with: small, well-formed, and one of each thing that a format has."""

from __future__ import annotations

import json
import math
import random
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
#: The same with two experts, which are in one tensor.
MIXTURE: Json = {
    **CONFIG,
    "model_type": "qwen3_moe",
    "num_experts": 2,
    "num_experts_per_tok": 1,
    "moe_intermediate_size": 2,
    "head_dim": 4,
}
_SHAPES = {
    "model.embed_tokens.weight": [5, 4],
    **{f"model.layers.0.{name}.weight": [4, 4] for name in _MATRICES},
    "model.layers.0.input_layernorm.weight": [4],
    "model.layers.0.post_attention_layernorm.weight": [4],
    "model.norm.weight": [4],
    "zone.of.no.layer": [1],
}
_MIXTURE_SHAPES = {
    **{name: shape for name, shape in _SHAPES.items() if ".mlp." not in name},
    "model.layers.0.self_attn.q_norm.weight": [4],
    "model.layers.0.self_attn.k_norm.weight": [4],
    "model.layers.0.mlp.gate.weight": [2, 4],
    "model.layers.0.mlp.experts.gate_up_proj": [2, 4, 4],
    "model.layers.0.mlp.experts.down_proj": [2, 4, 2],
}
del _MIXTURE_SHAPES["zone.of.no.layer"]
#: Bytes of all tensors of the smallest model, as float32, and some more.
TENSOR_BYTES = 1024
#: What headers and configurations have somewhere.
HEADER_PIECES = (
    *("F32", "F16", "BF16", "F64", "I64", "I32", "I16", "I8", "U8", "BOOL", "F8_E4M3"),
    *("dtype", "shape", "data_offsets"),
    *(
        "__metadata__",
        "lm_head.weight",
        "model.layers.0.mlp.experts.gate_up_proj",
        "model.layers.1.mlp.gate.weight",
    ),
    *([4, 4], [4], [], [2, 4, 4], [1, 4, 4], [0, 4], [1 << 31, 1 << 31], [0, 64], [64, 0], [0, 0]),
    *(*({"model_type": name} for name in ("mixtral", "qwen2_moe", "olmoe", "smollm3", "qwen2", "mistral")),),
    *(
        {"num_local_experts": 2},
        {"shared_expert_intermediate_size": 4},
        {"mlp_only_layers": [0]},
        {"sliding_window": 8},
    ),
    *({"rope_scaling": {"rope_type": "yarn", "factor": 2.0}}, {"rope_parameters": {"rope_type": "llama3"}}),
    *(
        {"layer_types": ["sliding_attention"]},
        {"no_rope_layers": [1]},
        {"quantization_config": {}},
        {"eos_token_id": [4]},
    ),
    *(
        {"clip_qkv": 8.0},
        {"head_dim": 2},
        {"tie_word_embeddings": False},
        {"attention_bias": True},
        {"use_sliding_window": 1},
    ),
)


def _header(shapes: dict[str, list[int]]) -> Json:
    header: Json = {}
    at = 0
    for name, shape in shapes.items():
        size = 4 * math.prod(shape)
        header[name] = {"dtype": "F32", "shape": shape, "data_offsets": [at, at + size]}
        at += size
    spare = TENSOR_BYTES - at
    header["spare"] = {"dtype": "F32", "shape": [spare // 4], "data_offsets": [at, TENSOR_BYTES]}
    return header


def safetensors() -> list[bytes]:
    """Headers of the smallest models, one with its configuration, and a whole file."""
    header = _header(_SHAPES)
    plain = _compact(header)
    mixed = _compact(_header(_MIXTURE_SHAPES)) + b"\n\n" + _compact(MIXTURE)
    noted = _compact({"__metadata__": {"format": "pt"}, **header})
    one = _compact({"a tensor": {"dtype": "BF16", "shape": [2, 1], "data_offsets": [0, 4]}})
    return [plain, noted, one, mixed, struct.pack("<Q", len(plain)) + plain + bytes(TENSOR_BYTES)]


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


_ADDED = {
    "id": 5,
    "content": "</s>",
    "single_word": False,
    "lstrip": True,
    "rstrip": False,
    "normalized": True,
    "special": False,
}
#: What tokenizer.json and tokenizer_config.json have somewhere.
TOKENIZER_PIECES = (
    *(
        "BPE",
        "WordPiece",
        "Unigram",
        "WordLevel",
        "ByteLevel",
        "Ġ",
        "Ġa",
        "<0x41>",
        "▁",
        "é",
        "e\u0301",
        r"\p{L}+|\s",
        "a|",
    ),
    *(
        r"(?i:a)|[^\r\n]?x{1,3}",
        r"\d(?!a)",
        "(",
        "[",
        "</s>",
        "Isolated",
        "Removed",
        "MergedWithPrevious",
        "Contiguous",
    ),
    *(_ADDED, {"type": "NFC"}, {"type": "NFKD"}, {"type": "Lowercase"}, {"type": "Prepend", "prepend": "▁"}),
    *(
        {"type": "Digits", "individual_digits": True},
        {"type": "Whitespace"},
        {"type": "Punctuation", "behavior": "Isolated"},
    ),
    *(
        {"type": "Metaspace", "replacement": "▁", "prepend_scheme": "first", "split": True},
        {"type": "Sequence"},
    ),
    *({"type": "Strip", "content": " ", "start": 1, "stop": 0}, {"type": "ByteFallback"}, {"type": "Fuse"}),
    *(
        {"byte_fallback": True},
        {"ignore_merges": True},
        {"dropout": 0.5},
        {"unk_token": "a"},
        {"fuse_unk": True},
    ),
    *(
        {"continuing_subword_prefix": "##"},
        {"end_of_word_suffix": "</w>"},
        {"lstrip": True},
        {"rstrip": True},
    ),
    *(
        {"single_word": True},
        {"normalized": True},
        {"special": False},
        {"add_prefix_space": True},
        {"use_regex": False},
    ),
    *(
        {"bos_token": "<s>"},
        {"eos_token": {"content": "<s>"}},
        {"add_bos_token": True},
        {"add_eos_token": True},
    ),
    *(
        {"chat_template": "{{ messages[0].content }}<s>"},
        {"chat_template": [{"name": "default", "template": "a"}]},
    ),
    *({"padding": {"strategy": "BatchLongest"}}, {"truncation": {"max_length": 1}}),
)


def tokenizers() -> list[bytes]:
    """Byte-level BPE as usual, and as SentencePiece's files are converted; one with its configuration."""
    special = {"single_word": False, "lstrip": False, "rstrip": False, "normalized": False, "special": True}
    level = {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True, "use_regex": True}
    bpe = {
        "type": "BPE",
        "vocab": {"\u0120": 0, "a": 1, "b": 2, "ab": 3, "<s>": 4},
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
    settings = {"bos_token": "<s>", "add_bos_token": True, "chat_template": "<s>{{ messages[0].content }}"}
    pair = _compact(byte_level) + b"\n\n" + _compact(settings)
    return [_compact(byte_level), _compact(splitting), _compact(sentence), pair]


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


#: What a configuration has somewhere.
YAML_PIECES = (
    *(
        "http://h:1",
        "https://u:p@h/v1",
        "127.0.0.1:8080",
        "small",
        "8MiB",
        "1e3",
        "-1",
        "2027-01-31",
        "yes",
        "a b",
        "*",
    ),
    *("sha256:" + "0" * 64, "never_leaves", "redact_then_cloud", "weigh", "round_robin", "EMAIL", "3/1.5"),
    *(
        {"replicas": [{"url": "http://h:2"}]},
        {"replicas": [{"process": "smollm2-135m-instruct"}]},
        {"replicas": [{"ray": "m"}]},
    ),
    *(
        {"keys": [{"key": "k" * 16}]},
        {"key_env": "HOME"},
        {"hedge": {"quantile": 0.5}},
        {"timeouts": {"connect": 1}},
    ),
    *(
        {"capacity": {"kv_tokens": 100, "max_sequences": 4}},
        {"limits": {"tokens_per_minute": 5}},
        {"count": 2},
    ),
    *(
        {"price": {"input": 1, "output": 2}},
        {"headers": {"X": "y"}},
        {"scaling": {"min": 1, "max": 3}},
        {"aliases": "x"},
    ),
    *(
        {"places": [{"name": "site", "level": "edge", "model": "small"}]},
        {"bandit": {}},
        {"shadow": {"rate": 0.5}},
    ),
    *(
        {"rules": [{"name": "r", "types": ["EMAIL"], "residency": "never_leaves"}]},
        {"budgets": {"usd_per_day": 1}},
    ),
    *(
        {"health": {"interval": 1}},
        {"shared_limits": {"redis": "redis://h:1/0"}},
        {"keys": {"one": {"key": "kkkkkkkk"}}},
    ),
    *(
        {"oidc_issuer": "https://h"},
        {"trusted_proxies": ["10.0.0.0/8"]},
        {"tls_cert": "a.pem"},
        {"drain_timeout": 3},
    ),
)


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


#: What chunks and answers have somewhere.
EVENT_PIECES = (
    *(
        "content",
        "reasoning_content",
        "refusal",
        "tool_calls",
        "function",
        "arguments",
        "finish_reason",
        "stop",
        "usage",
    ),
    *(
        {"index": 1},
        {"text": "a"},
        {"delta": {"content": "a"}},
        {"message": {"content": "a"}},
        {"finish_reason": "stop"},
    ),
    *(
        {"function": {"name": "f", "arguments": "{}"}},
        {"tool_calls": [{"index": 0, "function": {"name": "f"}}]},
    ),
    *(
        {"usage": {"prompt_tokens": 1, "completion_tokens": 1}},
        {"prompt_tokens_details": {"cached_tokens": 9}},
    ),
    *(
        {"error": {"message": "no", "code": 7}},
        {"error": "no"},
        {"embedding": [1, 2]},
        {"reasoning": "a"},
        {"refusal": "a"},
    ),
)


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
        b"\x00HTTP/1.0 204 No Content\r\nConnection: keep-alive\r\nConnection: close\r\n\r\n",
        b"\x08HTTP/1.1 503 Busy\r\nRetry-After: 1\r\nContent-Length: 0\r\n\r\nHTTP/1.1 200 OK\r\n\r\n",
    ]


#: Parts of the compiled layer, by the first byte of an input of its target.
_NATIVE_PARTS = 9


def native() -> list[bytes]:
    """Choices for each part of the compiled layer: the smallest sizes, and some of all; none that is out of range."""
    draw = random.Random("native")
    no_sequences = b"a\n"
    return [no_sequences] + [
        bytes([part]) + bytes(draw.randrange(most) for _ in range(size))
        for part in range(_NATIVE_PARTS)
        for most, size in ((1, 1500), (240, 400), (240, 400), (240, 1500))
    ]


def _compact(value: object) -> bytes:
    return json.dumps(value, ensure_ascii=False, separators=(",", ":")).encode()
