"""Every family against its transformers twin: logits within 1e-4 in float32, identical greedy tokens."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from tests.tiny import make_tiny
from weighbridge.models.compute.decoder import Decoder
from weighbridge.models.compute.kernels.api import BatchLayout, States
from weighbridge.models.files.checkpoint import Checkpoint, open_checkpoint
from weighbridge.models.files.quantized import StoredBlocks, quantize
from weighbridge.models.files.tensors import StoredTensor
from weighbridge.models.loader import Quantize, load_decoder

transformers = pytest.importorskip("transformers", reason="the oracle is transformers")

FAMILIES = ["llama", "llama3-rope", "mistral", "qwen2", "qwen3", "smollm3", "gemma3"]
BLOCK = 16


def layout(start: int, count: int, blocks: int) -> BatchLayout:
    """One sequence whose block i is pool block blocks - 1 - i: order in the pool must not matter."""
    table = np.arange(blocks - 1, -1, -1, dtype=np.int32)
    positions = np.arange(start, start + count, dtype=np.int32)
    return BatchLayout(
        positions=positions,
        slots=(table[positions // BLOCK] * BLOCK + positions % BLOCK).astype(np.int32),
        query_starts=np.array([0, count], np.int32),
        context_lens=np.array([start + count], np.int32),
        block_tables=table[None, :].copy(),
        state_slots=np.zeros(1, np.int32),
    )


def logits_in_chunks(decoder: Decoder, tokens: list[int], chunks: list[int]) -> torch.Tensor:
    """Logits of every token, computed in prompt chunks of the given sizes."""
    blocks = -(-len(tokens) // BLOCK)
    cache = decoder.allocate_kv(blocks, BLOCK)
    ids, rows, start = np.array(tokens, np.int32), [], 0
    for count in chunks:
        piece = ids[start : start + count]
        rows.append(
            decoder.forward(piece, layout(start, count, blocks), cache, np.arange(count, dtype=np.int32))
        )
        start += count
    return torch.cat(rows).float()


@pytest.fixture(scope="module", params=FAMILIES)
def family(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("tiny") / request.param
    make_tiny(request.param, path)
    return path


def test_logits_equal_transformers(family: Path) -> None:
    oracle = transformers.AutoModelForCausalLM.from_pretrained(family, dtype=torch.float32).eval()
    decoder = load_decoder(open_checkpoint(family), torch.float32)
    rng = np.random.default_rng(1)
    tokens = rng.integers(3, 400, 120).tolist()
    with torch.inference_mode():
        expected = oracle(torch.tensor([tokens])).logits[0]
    for chunks in ([120], [1] * 20 + [100], [50, 1, 1, 37, 31]):
        actual = logits_in_chunks(decoder, tokens, chunks)
        torch.testing.assert_close(actual, expected, atol=1e-4, rtol=1e-4)


def test_states_are_transformers_last_hidden_states(family: Path) -> None:
    """Of any sampled rows, in any order: what is behind the final norm, before the output matrix."""
    oracle = transformers.AutoModelForCausalLM.from_pretrained(family, dtype=torch.float32).eval()
    decoder = load_decoder(open_checkpoint(family), torch.float32)
    tokens = list(range(5, 69))
    with torch.inference_mode():
        expected = oracle(torch.tensor([tokens]), output_hidden_states=True).hidden_states[-1][0]
    rows, kept = np.array([0, 7, 20, 63], np.int32), np.array([3, 1], np.int32)
    states = States(kept, torch.empty(2, decoder.config.hidden_size))
    decoder.forward(np.array(tokens, np.int32), layout(0, 64, 4), decoder.allocate_kv(4, BLOCK), rows, states)
    torch.testing.assert_close(states.out, expected[[63, 7]], atol=1e-4, rtol=1e-4)


def test_greedy_tokens_equal_transformers(family: Path) -> None:
    oracle = transformers.AutoModelForCausalLM.from_pretrained(family, dtype=torch.float32).eval()
    decoder = load_decoder(open_checkpoint(family), torch.float32)
    prompt = list(range(5, 45))
    with torch.inference_mode():
        expected = oracle.generate(
            torch.tensor([prompt]),
            attention_mask=torch.ones(1, len(prompt), dtype=torch.long),
            do_sample=False,
            max_new_tokens=60,
            min_new_tokens=60,
            eos_token_id=None,
            pad_token_id=0,
        )[0].tolist()
    tokens, blocks = list(prompt), 7
    cache = decoder.allocate_kv(blocks, BLOCK)
    start = 0
    while len(tokens) < 100:
        count = len(tokens) - start
        ids = np.array(tokens[start:], np.int32)
        row = np.array([count - 1], np.int32)
        logits = decoder.forward(ids, layout(start, count, blocks), cache, row)
        start += count
        tokens.append(int(logits[0].argmax()))
    assert tokens == expected
    assert len(set(tokens[40:])) > 5  # a degenerate model would prove nothing


class Rounded:
    """A checkpoint whose matrices are what the quantised scheme keeps of them, as floats."""

    def __init__(self, checkpoint: Checkpoint, bits: int) -> None:
        self.config = checkpoint.config
        self.path = checkpoint.path
        self._checkpoint = checkpoint
        self._bits = bits

    def tensor(self, name: str) -> torch.Tensor:
        tensor = self._checkpoint.tensor(name)
        if tensor.dim() == 1 or name.startswith("model.embed"):
            return tensor
        bits = 8 if name.startswith("lm_head") else self._bits
        return torch.from_numpy(quantize(tensor, bits).dequantized())

    def blocks(self, name: str) -> StoredBlocks | None:
        return None

    def stored(self, name: str) -> StoredTensor | None:
        return self._checkpoint.stored(name)

    def fingerprint(self) -> str:
        return self._checkpoint.fingerprint()


@pytest.mark.parametrize("scheme", [Quantize.INT8, Quantize.INT4])
def test_quantised_layers_compute_what_their_codes_say(family: Path, scheme: Quantize) -> None:
    """Against the same rounded weights multiplied densely: what differs is the rounding of activations."""
    checkpoint = open_checkpoint(family)
    tokens = list(range(5, 69))
    rounded = Rounded(checkpoint, 8 if scheme is Quantize.INT8 else 4)
    exact = logits_in_chunks(load_decoder(rounded, torch.float32), tokens, [64])
    close = logits_in_chunks(load_decoder(checkpoint, torch.float32, scheme), tokens, [64])
    assert torch.nn.functional.cosine_similarity(exact, close, dim=1).min() > 0.98


def test_bfloat16_stays_close(family: Path) -> None:
    checkpoint = open_checkpoint(family)
    tokens = list(range(5, 69))
    exact = logits_in_chunks(load_decoder(checkpoint, torch.float32), tokens, [64])
    close = logits_in_chunks(load_decoder(checkpoint, torch.bfloat16), tokens, [64])
    assert torch.nn.functional.cosine_similarity(exact, close, dim=1).min() > 0.99
