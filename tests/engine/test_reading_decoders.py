"""Decoders that were trained to embed: bodies saved without a head, read on the paged cache as prompts are."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
import transformers

from tests.tiny import TEXT
from tests.tiny_readers import make_reader, say_pooling
from weighbridge.cli.serve.model import load_any
from weighbridge.engine.api import Generation
from weighbridge.engine.build import EngineReplica
from weighbridge.engine.encoding.encoder import EncoderReplica
from weighbridge.engine.request import SamplingParams
from weighbridge.engine.settings import EngineSettings
from weighbridge.models.readers.form import Pooling, VectorForm

SETTINGS = EngineSettings(dtype="float32", threads=1)
NOTHING = SamplingParams(max_tokens=0, temperature=0.0)


async def vectors(replica: EngineReplica | EncoderReplica, prompts: list[list[int]]) -> list[np.ndarray]:
    replica.engine.start()
    found = []
    for prompt in prompts:
        async for deltas in replica.engine.submit(Generation(prompt, NOTHING, embeds=True)):
            found += [delta.embedding.vector for delta in deltas if delta.embedding is not None]
    await replica.engine.drain(10)
    replica.engine.stop()
    return found


@pytest.mark.parametrize("kind", ["qwen3", "llama"])
async def test_the_last_state_of_a_body_is_transformers_and_prompts_share_their_beginnings(
    kind: str, tmp_path: Path
) -> None:
    path = say_pooling(
        make_reader(tmp_path / kind, kind, tie_word_embeddings=True), "lasttoken", normalizes=True
    )
    replica = load_any(str(path), "tiny", SETTINGS)
    assert isinstance(replica, EngineReplica)
    assert replica.engine.reads == VectorForm(Pooling.LAST, True, causal=True)
    begun = [replica.tokenizer.encode(" ".join(TEXT[:3]))[:40]]
    prompts = [*begun, [*begun[0], 7], [*begun[0][:-3], 9, 8]]
    oracle = transformers.AutoModel.from_pretrained(path).eval()
    for prompt, vector in zip(prompts, await vectors(replica, prompts), strict=True):
        with torch.inference_mode():
            expected = F.normalize(oracle(torch.tensor([prompt])).last_hidden_state[0, -1], dim=0)
        np.testing.assert_allclose(vector, expected.numpy(), atol=2e-5)


async def test_one_whose_states_are_averaged_is_read_as_a_whole(tmp_path: Path) -> None:
    path = say_pooling(make_reader(tmp_path / "qwen2", "qwen2"), "mean_tokens", normalizes=True)
    replica = load_any(str(path), "tiny", SETTINGS)
    assert isinstance(replica, EncoderReplica)
    prompt = replica.tokenizer.encode(TEXT[0])[:60]
    [vector] = await vectors(replica, [prompt])
    oracle = transformers.AutoModel.from_pretrained(path).eval()
    with torch.inference_mode():
        expected = F.normalize(oracle(torch.tensor([prompt])).last_hidden_state[0].mean(0), dim=0)
    np.testing.assert_allclose(vector, expected.numpy(), atol=2e-5)
