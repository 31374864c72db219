"""A type of model held against transformers: exact, refused by name, or wrong.

Exact is: logits within 1e-4 in float32 whatever the chunks, and greedy tokens through the whole engine, with prefixes
found in the cache and requests preempted, that transformers finds likeliest too.
"""

from __future__ import annotations

import asyncio
import random
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
import transformers

from tests.engine.test_parity import collect, tokens_of
from tests.models.general.shrunk import save_shrunk
from tests.models.test_decoder import logits_in_chunks
from weighbridge.engine.api import Generation
from weighbridge.engine.build import build_replica
from weighbridge.engine.request import SamplingParams
from weighbridge.engine.settings import EngineSettings
from weighbridge.errors import UnsupportedModel, said
from weighbridge.models.any_model import open_model
from weighbridge.models.general.refusals import WAY_OUT
from weighbridge.models.keeping import Quantize
from weighbridge.models.kv_form import KvForm, token_bytes

BLOCK, TOLERANCE = 16, 1e-4
UNTRIED = "no request was preempted, or none found its prefix"  # which depends on when they came
POOL_BLOCKS = 9  # of the 20 that its requests want at once
CHUNKS = ([96], [1] * 9 + [87], [40, 1, 1, 33, 21])


@dataclass(frozen=True, slots=True)
class Verdict:
    """`status` is exact, refused, wrong or untried; `worst` the largest difference of a logit."""

    kind: str
    status: str
    reason: str = ""
    worst: float | None = None


def judge(kind: str, directory: Path) -> Verdict:
    """Make a tiny model of a type in `directory`, and compare."""
    try:
        save_shrunk(kind, directory)
        oracle = transformers.AutoModelForCausalLM.from_pretrained(
            directory, dtype=torch.float32, attn_implementation="eager"
        ).eval()
    except Exception as error:
        return _unmade(kind, directory, error)
    return compare(kind, directory, oracle)


def _unmade(kind: str, directory: Path, error: Exception) -> Verdict:
    """A type of which no tiny model can be made may still be refused by what its configuration says."""
    try:
        transformers.CONFIG_MAPPING[kind]().save_pretrained(directory)
        open_model(directory, "transformers")
    except UnsupportedModel as refusal:
        return Verdict(kind, "refused", _reason(refusal))
    except Exception:
        pass
    return Verdict(kind, "untried", f"{type(error).__name__}: {said(error, 120)}")


def compare(kind: str, directory: Path, oracle: Any) -> Verdict:
    """Compare the model in `directory` with transformers' own."""
    try:
        decoder = open_model(directory, "transformers").load(
            torch.float32, Quantize.NONE, max_model_len=512, report=None, expert_cache=None
        )
    except UnsupportedModel as error:
        return Verdict(kind, "refused", _reason(error))
    tokens = np.random.default_rng(1).integers(3, 400, 96).tolist()
    with torch.inference_mode():
        expected = oracle(torch.tensor([tokens]), use_cache=False).logits[0].float()
    worst = 0.0
    for chunks in CHUNKS:
        apart = (logits_in_chunks(decoder, tokens, chunks) - expected).abs() / (1 + expected.abs())
        worst = max(worst, float(apart.max()))
    if not worst <= TOLERANCE:
        return Verdict(kind, "wrong", f"logits differ by {worst:.2g}", worst)
    attempts = (asyncio.run(_served(directory, oracle)) for _ in range(3))
    problem = next((found for found in attempts if found != UNTRIED), UNTRIED)
    return Verdict(kind, "wrong" if problem else "exact", problem or "", worst)


def _reason(error: UnsupportedModel) -> str:
    text = str(error).removesuffix(WAY_OUT).strip().rstrip(".")
    return text.partition("cannot be served here: ")[2] or text


async def _served(directory: Path, oracle: Any) -> str | None:
    """Run requests through an engine whose cache is too small for them; return what went wrong."""
    config = open_model(directory, "transformers").config
    settings = EngineSettings(
        dtype="float32",
        kv_cache_memory=POOL_BLOCKS * BLOCK * token_bytes(config, KvForm.FLOAT32),
        block_size=BLOCK,
        max_batch_tokens=48,
        max_model_len=128,
        check_integrity=True,
        model_impl="transformers",
        speculate=False,  # guessed tokens would end them before they need room
    )
    replica = build_replica(directory, "tiny", settings)
    engine, rng = replica.engine, random.Random(3)
    prefix = [rng.randrange(3, 400) for _ in range(2 * BLOCK)]
    prompts = [[*prefix, *(rng.randrange(3, 400) for _ in range(5 + n))] for n in range(6)]
    params = SamplingParams(max_tokens=40, temperature=0.0, ignore_eos=True)
    engine.start()
    try:
        streams = [engine.submit(Generation(prompt, params)) for prompt in prompts]
        outputs = [tokens_of([delta async for deltas in stream for delta in deltas]) for stream in streams]
        again = tokens_of(await collect(engine, prompts[0], 40))
    finally:
        engine.stop()
    for prompt, output in zip([*prompts, prompts[0]], [*outputs, again], strict=True):
        if not likeliest(oracle, prompt, output):
            return "tokens differ from transformers' greedy ones"
    preempted = sum(stream.ticket.preemptions for stream in streams) or not config.kv_shapes
    cached = sum(stream.ticket.cached_tokens or 0 for stream in streams)
    return None if preempted and (cached or config.states) else UNTRIED  # nobody finds a prefix of a state


def likeliest(oracle: Any, prompt: list[int], output: list[int]) -> bool:
    """Whether each token is transformers' greedy one, or as likely as it within the tolerance."""
    with torch.inference_mode():
        logits = oracle(torch.tensor([prompt + output]), use_cache=False).logits[0].float()
    at = logits[len(prompt) - 1 : -1]
    chosen = at.gather(1, torch.tensor(output)[:, None])[:, 0]
    best = at.max(dim=1).values
    return bool((best - chosen <= TOLERANCE * (1 + best.abs())).all())
