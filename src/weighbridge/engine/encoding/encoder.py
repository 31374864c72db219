"""A model that reads texts whole, behind the same engine: scheduled, bounded and ticketed as every prompt is."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Protocol

import numpy as np
import numpy.typing as npt
import torch

from weighbridge.cost import DEFAULT_STEP_COST, StepClock
from weighbridge.engine.batch import Batch, Sampled
from weighbridge.engine.engine import LocalEngine
from weighbridge.engine.request import Embedding
from weighbridge.engine.schedule.make import make_scheduler
from weighbridge.engine.settings import EngineSettings
from weighbridge.errors import BadInput
from weighbridge.models.compute.kernels.seats import seat_compute_threads
from weighbridge.models.files.hf_config import read_json
from weighbridge.models.readers.bert import BertReader
from weighbridge.models.readers.form import Form, VectorForm
from weighbridge.models.text.tokenizer import Tokenizer, load_tokenizer


class TextReader(Protocol):
    """A model that turns texts into numbers: `width` for each text, which has one to `positions` tokens."""

    vocab_size: int
    positions: int
    width: int

    def __call__(self, texts: Sequence[Sequence[int]]) -> npt.NDArray[np.float32]:
        """[texts, width] of texts as token ids."""
        ...


#: Tokens with their padding that are computed at a time.
TOKENS_AT_ONCE = 4096


class EncoderRunner:
    """A `BatchRunner` that computes a prompt when its last tokens are scheduled: an encoder sees all of it at once."""

    experts = None

    def __init__(self, encoder: TextReader) -> None:
        self._encoder = encoder
        self.hidden_size = encoder.width

    def execute(self, batch: Batch) -> Sampled:
        began = time.perf_counter()
        due = [index for index, piece in enumerate(batch.slices) if piece.samples and piece.request.embeds]
        due.sort(key=lambda index: len(batch.slices[index].request.prompt))
        embeddings: dict[int, Embedding] = {}
        while due:
            longest = len(batch.slices[due[-1]].request.prompt)
            count = max(TOKENS_AT_ONCE // longest, 1)
            part, due = due[-count:], due[:-count]
            vectors = self._encoder([batch.slices[index].request.prompt for index in part])
            embeddings |= {
                index: Embedding(vector, None) for index, vector in zip(part, vectors, strict=True)
            }
        count = len(batch.slices)
        took = time.perf_counter() - began
        return Sampled([[]] * count, [None] * count, embeddings=embeddings, model_seconds=took)


@dataclass(slots=True)
class EncoderReplica:
    """Everything one encoder that is served is made of."""

    engine: LocalEngine
    tokenizer: Tokenizer
    encoder: TextReader
    max_model_len: int


def build_encoder(path: Path, form: Form, model_name: str, settings: EngineSettings) -> EncoderReplica:
    """Load the model at `path` and make it ready to serve. Raises BadInput or UnsupportedModel."""
    if settings.adapters.wanted:
        raise BadInput("--lora is for models that write: this one reads texts whole", param="lora")
    if settings.threads is not None:
        torch.set_num_threads(settings.threads)
    tokenizer = load_tokenizer(path)
    encoder = _reader(path, form, tokenizer.pairs.separator())
    largest = max(*tokenizer.pairs.encode("a"), *tokenizer.pairs.encode("a", "a"))
    if largest >= encoder.vocab_size:
        raise BadInput(
            f"the tokenizer of {path} puts a token with the id {largest} around texts, the model has ids up to "
            f"{encoder.vocab_size - 1}: they belong to different models"
        )
    if tokenizer.vocab_size > encoder.vocab_size:
        raise BadInput(
            f"the tokenizer of {path} has token ids up to {tokenizer.vocab_size - 1}, the model only to "
            f"{encoder.vocab_size - 1}: they belong to different models"
        )
    longest = encoder.positions
    if (settings.max_model_len or 0) > longest:
        raise BadInput(
            f"--max-model-len {settings.max_model_len} is more than the {longest} positions this model was trained for",
            param="max_model_len",
        )
    longest = settings.max_model_len or longest
    blocks = settings.max_sequences * -(-longest // settings.block_size)
    # Nothing is kept between prompts: an encoder's states depend on what follows.
    sized = replace(settings, enable_prefix_cache=False).sized(max_model_len=longest, num_blocks=blocks)
    clock = StepClock(DEFAULT_STEP_COST)
    engine = LocalEngine(
        model_name,
        tokenizer,
        make_scheduler(sized, clock),
        EncoderRunner(encoder),
        clock,
        kv_bytes_per_token=0,
        check_integrity=settings.check_integrity,
        on_thread_start=seat_compute_threads,
        reads=form,
    )
    return EncoderReplica(engine, tokenizer, encoder, longest)


def _reader(path: Path, form: Form, separator: int | None) -> TextReader:
    if (
        isinstance(form, VectorForm)
        and not form.dense
        and read_json(path / "config.json").get("model_type") == "bert"
    ):
        return BertReader(path, form)
    # Everything else is transformers', which takes seconds to import.
    from weighbridge.models.readers.whole import WholeReader

    return WholeReader(path, form, separator)
