"""Encodes texts in forks of a process that holds the vocabulary: with files whose time and memory have no bound.

A fork that needs more than its text may take is ended, and its text refused; the next text is as quick as before.
"""

from __future__ import annotations

import os
import weakref
from collections.abc import Callable
from typing import Any

import msgspec
import tokenizers

from weighbridge.errors import BadInput, Inside, Refused, UnsupportedModel, said
from weighbridge.forks import Answer, ForkingProcess, OutOfMemory, OutOfTime, serve
from weighbridge.models.text.encoding.library import TextPairs, encoded

#: CPU seconds for any text, and for each of its characters: five times what the library takes, and a start.
CPU_SECONDS, CPU_SECONDS_A_CHARACTER = 1.0, 10e-6
#: Bytes that encoding may take, and for each character.
MAX_BYTES, MAX_BYTES_A_CHARACTER = 64 << 20, 2048


#: The same for reading a file, and for each of its bytes.
LOADING_SECONDS, LOADING_SECONDS_A_BYTE = 10.0, 1e-6
LOADING_BYTES, LOADING_BYTES_A_BYTE = 512 << 20, 64


class _Asked(msgspec.Struct, array_like=True):
    first: str
    second: str | None
    add_special_tokens: bool
    cut: int | None


class _Told(msgspec.Struct):
    ids: list[int] = []
    problem: str = ""


class ForkedTokenizer:
    """Encodes as `encoded` and `TextPairs` do. Safe to share between threads, one of which works at a time."""

    def __init__(self, backend: tokenizers.Tokenizer, *, pairs: bool = False) -> None:
        """`pairs`: for models that read texts whole; `backend` must not be changed any more."""
        self._forks = ForkingProcess(__name__, _given(backend.to_str, pairs))
        weakref.finalize(self, self._forks.close)

    def encode(self, text: str, add_special_tokens: bool) -> list[int]:
        """Token ids of a text. Raises BadInput for one that cannot be encoded within its bounds."""
        return self._asked(_Asked(text, None, add_special_tokens, None))

    def encode_pair(self, first: str, second: str | None = None, cut: int | None = None) -> list[int]:
        """As `TextPairs.encode`."""
        return self._asked(_Asked(first, second, True, cut))

    def _asked(self, asked: _Asked) -> list[int]:
        size = len(asked.first) + len(asked.second or "")
        seconds = CPU_SECONDS + CPU_SECONDS_A_CHARACTER * size
        try:
            question = msgspec.json.encode(asked)
        except UnicodeEncodeError as error:
            raise BadInput(f"the text is not valid Unicode: {error}") from error
        try:
            most = MAX_BYTES + MAX_BYTES_A_CHARACTER * size
            told = msgspec.json.decode(
                self._forks.ask(question, cpu_seconds=seconds, max_bytes=most), type=_Told
            )
        except OutOfTime:
            raise BadInput(
                f"the model's tokenizer takes more than {seconds:.1f} s for this text of {size} characters: its "
                "patterns are known to have no bound; send another text, or a shorter one"
            ) from None
        except OutOfMemory:
            raise BadInput(
                f"the model's tokenizer takes more than {most >> 20} MiB for this text of {size} characters"
            ) from None
        except (OSError, EOFError, TimeoutError) as error:
            plainly = "texts cannot be encoded at the moment; try again"
            raise Refused(Inside(f"{plainly} ({error})", plainly), retry_after=1.0) from error
        if told.problem:
            raise BadInput(told.problem)
        return told.ids

    def close(self) -> None:
        """End the process."""
        self._forks.close()


class ForkedPairs(TextPairs):
    """Encodes for models that read texts whole, in forks."""

    def __init__(self, backend: tokenizers.Tokenizer) -> None:
        super().__init__(backend)
        self._forked = ForkedTokenizer(backend, pairs=True)

    def encode(self, first: str, second: str | None = None, cut: int | None = None) -> list[int]:
        """As `TextPairs.encode`. Raises BadInput also for texts that take too much."""
        return self._forked.encode_pair(first, second, cut)


def check_loads(file: bytes, name: str) -> None:
    """Raise UnsupportedModel for a tokenizer.json that is not loaded within bounds, or not at all."""
    if not hasattr(os, "fork"):
        raise UnsupportedModel(
            f"{name}: its patterns have no bound of time that is known, and here nothing stops them"
        )
    seconds = LOADING_SECONDS + LOADING_SECONDS_A_BYTE * len(file)
    most = LOADING_BYTES + LOADING_BYTES_A_BYTE * len(file)
    try:
        problem = _loader.ask(file, cpu_seconds=seconds, max_bytes=most)
    except OutOfTime:
        raise UnsupportedModel(f"{name} cannot be used: to load it takes more than {seconds:.0f} s") from None
    except OutOfMemory:
        raise UnsupportedModel(
            f"{name} cannot be used: to load it takes more than {most >> 20} MiB"
        ) from None
    except (OSError, EOFError, TimeoutError) as error:
        raise UnsupportedModel(f"{name} cannot be tried: {error}") from error
    if problem:
        raise UnsupportedModel(f"{name} cannot be used: {problem.decode()}")


def _given(json: Callable[[], str], pairs: bool) -> Callable[[], bytes]:
    """What the process prepares itself from, written anew each time: 9 to 48 MB."""
    return lambda: bytes([pairs]) + json().encode()


#: Tries files, one at a time; its process starts with the first one that has to be tried.
_loader = ForkingProcess(__name__, bytes)


# -- the process itself -------------------------------------------------------------------------------------


def prepared(given: bytes) -> Answer:
    """What encodes with a vocabulary, in a fork; without one, what tries to load files."""
    if not given:
        return _loaded
    backend = tokenizers.Tokenizer.from_buffer(given[1:])
    pairs = TextPairs(backend) if given[0] else None

    def told(question: bytes) -> bytes:
        asked = msgspec.json.decode(question, type=_Asked)
        try:
            return msgspec.json.encode(_Told(_ids(backend, pairs, asked)))
        except BadInput as error:
            return msgspec.json.encode(_Told(problem=str(error)))

    return told


def _loaded(file: bytes) -> bytes:
    """What is wrong with a tokenizer.json; nothing where it is loaded, and encodes."""
    try:
        encoded(tokenizers.Tokenizer.from_buffer(file), "a", True)
    except BaseException as error:  # the library raises plain Exception, or panics
        return said(error).encode() or type(error).__name__.encode()
    return b""


def _ids(backend: Any, pairs: TextPairs | None, asked: _Asked) -> list[int]:
    if pairs is not None:
        return pairs.encode(asked.first, asked.second, asked.cut)
    return encoded(backend, asked.first, asked.add_special_tokens)


if __name__ == "__main__":
    serve(prepared)
