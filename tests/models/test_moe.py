"""Mixture of experts in the decoder: every family against its transformers twin, and what routing promises."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from tests.models.test_decoder import logits_in_chunks
from tests.models.tiny_moe import MOE_FAMILIES, make_tiny_moe
from weighbridge.models.checkpoint import open_checkpoint
from weighbridge.models.loader import load_decoder

transformers = pytest.importorskip("transformers", reason="the oracle is transformers")


@pytest.fixture(scope="module", params=MOE_FAMILIES)
def family(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_tiny_moe(request.param, tmp_path_factory.mktemp("tiny") / request.param)


def test_logits_equal_transformers(family: Path) -> None:
    oracle = transformers.AutoModelForCausalLM.from_pretrained(family, dtype=torch.float32).eval()
    decoder = load_decoder(open_checkpoint(family), torch.float32)
    tokens = np.random.default_rng(1).integers(3, 400, 120).tolist()
    with torch.inference_mode():
        expected = oracle(torch.tensor([tokens])).logits[0]
    for chunks in ([120], [1] * 20 + [100], [50, 1, 1, 37, 31]):
        torch.testing.assert_close(logits_in_chunks(decoder, tokens, chunks), expected, atol=1e-4, rtol=1e-4)


def test_bfloat16_stays_close(family: Path) -> None:
    """A token whose two best experts nearly tie may go elsewhere: most of them stay close."""
    checkpoint = open_checkpoint(family)
    tokens = list(range(5, 69))
    exact = logits_in_chunks(load_decoder(checkpoint, torch.float32), tokens, [64])
    close = logits_in_chunks(load_decoder(checkpoint, torch.bfloat16), tokens, [64])
    assert torch.nn.functional.cosine_similarity(exact, close, dim=1).quantile(0.2) > 0.98
