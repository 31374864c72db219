"""A tiny model of random weights, made without torch: the tests' own process need not load it."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
from safetensors.numpy import save_file
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers

from tests.tiny_gguf import write_gguf

HIDDEN, INNER, LAYERS, HEADS, KV_HEADS, WORDS = 64, 160, 2, 4, 2, 512
SPECIAL = ["<|endoftext|>", "<|im_start|>", "<|im_end|>"]
TEMPLATE = (
    "{% for message in messages %}<|im_start|>{{ message['role'] }}\n{{ message['content'] }}<|im_end|>\n"
    "{% endfor %}{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)


def make_model(folder: Path, *, context: int = 1024, tame: bool = False, brief: bool = False) -> Path:
    """A GGUF file of a small Llama with a byte-level tokenizer and a chat template; same seed, same weights.

    `tame`: it writes no white space and no end where anything else may stand, and soon ends what it quotes: what is
    held to a schema is whole after some dozen tokens, and any other answer is as long as it may be, or with `brief`
    about ten tokens long.
    """
    folder.mkdir()
    config = {
        "model_type": "llama",
        "architectures": ["LlamaForCausalLM"],
        "hidden_size": HIDDEN,
        "intermediate_size": INNER,
        "num_hidden_layers": LAYERS,
        "num_attention_heads": HEADS,
        "num_key_value_heads": KV_HEADS,
        "max_position_embeddings": context,
        "rms_norm_eps": 1e-6,
        "rope_parameters": {"rope_type": "default", "rope_theta": 10_000.0},
        "vocab_size": WORDS,
        "bos_token_id": 0,
        "eos_token_id": 2,
    }
    (folder / "config.json").write_text(json.dumps(config))
    (folder / "chat_template.jinja").write_text(TEMPLATE)
    tokenizer, weights = _tokenizer(), _weights(np.random.default_rng(0))
    if tame:
        _tame(weights, tokenizer, _ENDS if brief else _NEVER)
    tokenizer.save(str(folder / "tokenizer.json"))
    save_file(weights, folder / "model.safetensors")
    return write_gguf(folder, folder / "tiny.gguf")


def _weights(rng: np.random.Generator) -> dict[str, np.ndarray]:
    def matrix(rows: int, columns: int) -> np.ndarray:
        return rng.normal(0.0, 0.2, (rows, columns)).astype(np.float32)

    narrow = HIDDEN // HEADS * KV_HEADS
    weights = {
        "model.embed_tokens.weight": matrix(WORDS, HIDDEN),
        "model.norm.weight": np.ones(HIDDEN, np.float32),
        "lm_head.weight": matrix(WORDS, HIDDEN),
    }
    for layer in range(LAYERS):
        shapes = {
            "self_attn.q_proj": (HIDDEN, HIDDEN),
            "self_attn.k_proj": (narrow, HIDDEN),
            "self_attn.v_proj": (narrow, HIDDEN),
            "self_attn.o_proj": (HIDDEN, HIDDEN),
            "mlp.gate_proj": (INNER, HIDDEN),
            "mlp.up_proj": (INNER, HIDDEN),
            "mlp.down_proj": (HIDDEN, INNER),
        }
        weights |= {f"model.layers.{layer}.{name}.weight": matrix(*shape) for name, shape in shapes.items()}
        for name in ("input_layernorm", "post_attention_layernorm"):
            weights[f"model.layers.{layer}.{name}.weight"] = np.ones(HIDDEN, np.float32)
    return weights


#: What the first number of the hidden state is everywhere, and what it does to the logits of some tokens.
_ALWAYS, _NEVER, _SOON, _ENDS = 20.0, -4.0, 0.3, 0.7


def _tame(weights: dict[str, np.ndarray], tokenizer: Tokenizer, end: float) -> None:
    """Keep one number of the hidden state as it is, so that the head has a bias, and set that."""
    weights["model.embed_tokens.weight"][:, 0] = _ALWAYS
    for name, matrix in weights.items():
        if name.endswith(("o_proj.weight", "down_proj.weight")):
            matrix[0, :] = 0.0
    head = weights["lm_head.weight"]
    head[:, 0] = 0.0
    for token in range(WORDS):
        text = tokenizer.decode([token], skip_special_tokens=False)
        if not text.strip() or text in SPECIAL:
            head[token, 0] = _NEVER
        elif text == '"':
            head[token, 0] = _SOON
    head[tokenizer.token_to_id(SPECIAL[-1]), 0] = end


def _tokenizer() -> Tokenizer:
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(vocab_size=WORDS, special_tokens=SPECIAL, initial_alphabet=alphabet)
    tokenizer.train_from_iterator(["weigh it before it runs, and write it down"] * 4, trainer)
    tokenizer.add_tokens([f"<filler-{index}>" for index in range(WORDS - tokenizer.get_vocab_size())])
    return tokenizer
