"""A model against itself: its logits over our cache, and those of transformers' own forward pass."""

from __future__ import annotations

import itertools
import logging
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, nullcontext

import numpy as np
import torch

from weighbridge.errors import said
from weighbridge.models.compute.kernels.api import BatchLayout
from weighbridge.models.general.decoder import GeneralDecoder
from weighbridge.models.general.packed.experts import Choices
from weighbridge.models.general.packed.unrounded import unrounded
from weighbridge.models.general.plain import TOLERANCE as PLAIN_TOLERANCE
from weighbridge.models.general.plain import PlainModel, called
from weighbridge.models.general.refusals import refused
from weighbridge.models.general.seam import NAME
from weighbridge.models.general.tracing import AttentionShape

log = logging.getLogger("weighbridge.models")

TOKENS, BLOCK = 32, 16
#: Where the tokens are cut: a prompt in two chunks, with another text beside it, and a decode.
CUTS = (0, 19, 31, 32)
#: Of models with states several, as what is wrong with one token of a state is small at first.
CUTS_OF_STATES = (0, 11, 21, *range(22, TOKENS + 1))
#: Largest difference, as a share of the logits' length: rounding stays well below, a wrong attention well above.
TOLERANCE = {torch.float32: 1e-3, torch.bfloat16: 0.1}
#: Some models make much of a rounding. Beyond the tolerance a model may differ by so many times what it differs from
#: itself where every embedding is rounded otherwise, and by no more than this.
ROUNDINGS, MOST_BY_ROUNDING = 2.0, 0.5


def check_itself(decoder: GeneralDecoder) -> None:
    """Raise UnsupportedModel where the logits of 32 tokens are not those of transformers.

    Layers that are codes already multiply with the weights these mean, in both passes. Some layers of transformers
    begin anew with each chunk of a text, and go on rightly by single tokens alone.
    """
    with unrounded(decoder.model):
        _check(decoder)


def _check(decoder: GeneralDecoder) -> None:
    kind = decoder.config.architecture
    ids, choices = _some_tokens(decoder.config.vocab_size), Choices(decoder.model)
    with choices.noted():
        expected = _expected(decoder, ids)
    most = TOLERANCE[decoder.dtype]
    error = _apart(_paged(decoder, ids, choices), expected)
    if decoder.config.states and not error <= most:
        decoder.by_token = True
        error = _apart(_paged(decoder, ids, choices), expected)
        log.warning("later chunks of prompts are computed token by token: %s knows no others", kind)
    if not error <= most:
        with _rounded_otherwise(decoder), choices.kept(0, 0, TOKENS):
            by_rounding = _apart(_expected(decoder, ids), expected)
        most = max(most, min(ROUNDINGS * by_rounding, MOST_BY_ROUNDING))
    if not error <= most:
        raise refused(kind, f"over our cache its logits differ from transformers' own by {100 * error:.2g} %")


@torch.inference_mode()
def plain_model(
    decoder: GeneralDecoder, shapes: Sequence[AttentionShape], positions: int
) -> PlainModel | None:
    """Return the model as one that our decoder runs, where it computes what the modules do; None: it does not."""
    if decoder.config.states or not shapes:
        return None
    try:
        plain = PlainModel(decoder.model, decoder.config, shapes, decoder.kernels)
        ids = _some_tokens(decoder.config.vocab_size)
        with unrounded(decoder.model):
            if not plain.is_chain(lambda: _expected(decoder, ids)) or not plain.differs() <= PLAIN_TOLERANCE:
                return None
            theirs = _paged(decoder, ids)
            decoder.own = plain.decoder(decoder.dtype, positions, called)
            apart = _apart(_paged(decoder, ids), theirs)
    except Exception as error:  # whatever it is that it has otherwise
        log.debug("%s is computed by its own modules: %s", decoder.config.architecture, said(error))
        return None
    finally:
        decoder.own = None
    most = PLAIN_TOLERANCE if decoder.dtype is torch.float32 else TOLERANCE[decoder.dtype]
    if not apart <= most:
        return None
    log.info(
        "model type %s does what our own decoder does, and is computed by it", decoder.config.architecture
    )
    return plain


def check_packed(decoder: GeneralDecoder) -> None:
    """Raise UnsupportedModel where a model does not run with its weights packed, as one that looks at them itself."""
    kind = decoder.config.architecture
    try:
        logits = _paged(decoder, _some_tokens(decoder.config.vocab_size))
    except Exception as error:
        raise refused(kind, f"it does not run with its weights packed: {said(error)}") from error
    if not torch.isfinite(logits).all():
        raise refused(kind, "with its weights packed its logits are no numbers")


def _apart(actual: torch.Tensor, expected: torch.Tensor) -> float:
    """Return the largest difference of a token's logits, as a share of the mean length of all."""
    return float((actual - expected).norm(dim=1).max() / expected.norm(dim=1).mean().clamp(min=1e-30))


def _some_tokens(vocabulary: int) -> np.ndarray:
    return np.random.default_rng(0).integers(min(10, vocabulary - 1), vocabulary, TOKENS).astype(np.int32)


@torch.inference_mode()
def _expected(decoder: GeneralDecoder, ids: np.ndarray) -> torch.Tensor:
    model = decoder.model
    model.set_attn_implementation("eager")
    try:
        logits = model(input_ids=torch.from_numpy(ids.astype(np.int64))[None], use_cache=False).logits[0]
    except Exception as error:
        kind = decoder.config.architecture
        raise refused(kind, f"transformers does not run it as it is: {said(error)}") from error
    finally:
        model.set_attn_implementation(NAME)
    found: torch.Tensor = logits.float()
    return found


@contextmanager
def _rounded_otherwise(decoder: GeneralDecoder) -> Iterator[None]:
    """Let each number of an embedding be the next one, up or down, while this is open."""
    step, draw = torch.finfo(decoder.dtype).eps, torch.Generator().manual_seed(0)

    def hook(module: torch.nn.Module, asked: object, embedded: torch.Tensor) -> torch.Tensor:
        signs = torch.randint(0, 2, embedded.shape, generator=draw) * 2 - 1
        return (embedded.float() * (1 + step * signs)).to(embedded.dtype)

    handle = decoder.model.get_input_embeddings().register_forward_hook(hook)
    try:
        yield
    finally:
        handle.remove()


def _paged(decoder: GeneralDecoder, ids: np.ndarray, choices: Choices | None = None) -> torch.Tensor:
    """Logits of every token: in chunks, each beside the first tokens of a second text. `choices`: of experts."""
    cache = decoder.allocate_kv(4, BLOCK, sequences=2)
    found = []
    for start, end in itertools.pairwise(CUTS_OF_STATES if decoder.config.states else CUTS):
        count, beside = end - start, 7
        batch = np.concatenate([ids[TOKENS - beside :], ids[start:end]])
        rows = np.arange(beside, beside + count, dtype=np.int32)
        with nullcontext() if choices is None else choices.kept(beside, start, end):
            found.append(decoder.forward(batch, _two_texts(beside, start, end), cache, rows))
    return torch.cat(found).float()


def _two_texts(beside: int, start: int, end: int) -> BatchLayout:
    tables = np.array([[3, 0], [2, 0]], np.int32)  # blocks in no order
    positions = np.concatenate([np.arange(beside), np.arange(start, end)]).astype(np.int32)
    owner = np.repeat([0, 1], [beside, end - start])
    slots = tables[owner, positions // BLOCK] * BLOCK + positions % BLOCK
    return BatchLayout(
        positions=positions,
        slots=slots.astype(np.int32),
        query_starts=np.array([0, beside, beside + end - start], np.int32),
        context_lens=np.array([beside, end], np.int32),
        block_tables=tables,
        state_slots=np.array([1, 0], np.int32),
    )
