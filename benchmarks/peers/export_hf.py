"""Writes a GGUF model as a Hugging Face directory in bfloat16, for peers that read no GGUF.

python benchmarks/peers/export_hf.py MODEL.gguf DIRECTORY
"""

from __future__ import annotations

import sys
from pathlib import Path

import torch
import transformers

from weighbridge.models.files.checkpoint import open_checkpoint
from weighbridge.models.text.tokenizer import load_tokenizer


def export(source: Path, target: Path) -> None:
    """Llama-shaped models only: the peers are compared on one of those."""
    checkpoint = open_checkpoint(source)
    config = checkpoint.config
    model = transformers.LlamaForCausalLM(
        transformers.LlamaConfig(
            vocab_size=config.vocab_size,
            hidden_size=config.hidden_size,
            intermediate_size=config.intermediate_size,
            num_hidden_layers=config.num_layers,
            num_attention_heads=config.num_heads,
            num_key_value_heads=config.num_kv_heads,
            head_dim=config.head_dim,
            max_position_embeddings=config.max_position_embeddings,
            rms_norm_eps=config.rms_norm_eps,
            rope_parameters={"rope_type": "default", "rope_theta": config.rope.theta},
            rope_theta=config.rope.theta,
            tie_word_embeddings=config.tie_word_embeddings,
            bos_token_id=config.bos_token_id,
            eos_token_id=config.eos_token_ids[0],
        )
    )
    model.load_state_dict(
        {name: checkpoint.tensor(name) for name, _ in model.named_parameters()}, strict=False
    )
    model.to(torch.bfloat16).save_pretrained(target)
    tokenizer = load_tokenizer(source)
    end = tokenizer.backend.id_to_token(config.eos_token_ids[0])
    written = transformers.PreTrainedTokenizerFast(
        tokenizer_object=tokenizer.backend, eos_token=end, chat_template=tokenizer.template_text or None
    )
    written.save_pretrained(target)


if __name__ == "__main__":
    export(Path(sys.argv[1]), Path(sys.argv[2]))
