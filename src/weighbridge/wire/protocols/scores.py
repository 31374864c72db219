"""Texts beside each other: scores and rankings as vLLM, Jina and Cohere ask for them, and labels as vLLM does."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated

import msgspec
from msgspec import Meta, Struct

from weighbridge.wire.ask import Ask, Extension, Fields
from weighbridge.wire.body import decode
from weighbridge.wire.errors import ApiError
from weighbridge.wire.events import Part
from weighbridge.wire.protocol import Encoder, WireProtocol
from weighbridge.wire.protocols.openai import Peek, Positive, WholeEncoder, ask_of

SCORE, RERANK, CLASSIFY = "/v1/score", "/v1/rerank", "/v1/classify"
PATHS = frozenset({SCORE, RERANK, CLASSIFY})
#: Where Cohere's client asks for a ranking.
COHERE = "/v2/rerank"

Texts = str | Annotated[list[str], Meta(min_length=1)]
#: A text is cut to so many tokens; -1: to what the model takes. Nothing is cut unless it is asked.
Cut = Annotated[int, Meta(ge=-1)]


class TextDocument(Struct):
    """A document as an object, as Cohere and Jina take it."""

    text: str


Document = str | TextDocument


class Scored(Struct, kw_only=True):
    """What all of them may say."""

    model: str | None = None
    truncate_prompt_tokens: Cut | None = None
    user: str | None = None
    weighbridge: Extension | None = None


class ScoreRequest(Scored, kw_only=True):
    """One text beside one or many, or as many beside as many; under either of vLLM's pairs of names."""

    queries: Texts | None = None
    documents: Texts | None = None
    text_1: Texts | None = None
    text_2: Texts | None = None

    def pairs(self) -> list[tuple[str, str]]:
        """Raises ApiError for fields that are missing, or lists of which neither is one and the other's length."""
        first, second = _given(self.queries, self.text_1), _given(self.documents, self.text_2)
        if first is None or second is None:
            name = "queries" if first is None else "documents"
            raise ApiError(
                400, f"{name}: give `queries` and `documents` (or `text_1` and `text_2`)", param=name
            )
        firsts = [first] if isinstance(first, str) else first
        seconds = [second] if isinstance(second, str) else second
        if len(firsts) == 1:
            firsts = firsts * len(seconds)
        if len(firsts) != len(seconds):
            message = f"queries: there are {len(firsts)} for {len(seconds)} documents; give one, or as many"
            raise ApiError(400, message, param="queries")
        return list(zip(firsts, seconds, strict=True))


def _given(one: Texts | None, other: Texts | None) -> Texts | None:
    return one if one is not None else other


class RerankRequest(Scored, kw_only=True):
    """A query and the documents that are to be put into order, the best first."""

    query: str
    documents: Annotated[list[Document], Meta(min_length=1)]
    top_n: Positive | None = None
    return_documents: bool | None = None  # None: yes
    max_tokens_per_doc: Positive | None = None  # Cohere's: a longer document is cut

    def texts(self) -> list[str]:
        return [one if isinstance(one, str) else one.text for one in self.documents]


class ClassifyRequest(Scored, kw_only=True):
    """Texts whose labels are wanted."""

    input: Texts


class ScoresProtocol(WireProtocol):
    """`asks`: the path whose work it is; `form`: what is asked."""

    def __init__(self, name: str, path: str, asks: str, form: type[Scored]) -> None:
        self.name, self.path = name, path
        self._asks, self._form = asks, form

    def read(self, body: bytes) -> Ask:
        decode(body, self._form)
        ask = ask_of(self._asks, decode(body, Peek), body)
        ask.stream = False
        return ask

    def encoder(self, ask: Ask) -> Encoder:
        return WholeEncoder()


PROTOCOLS: tuple[WireProtocol, ...] = (
    ScoresProtocol("score", SCORE, SCORE, ScoreRequest),
    ScoresProtocol("rerank", RERANK, RERANK, RerankRequest),
    ScoresProtocol("cohere_rerank", COHERE, RERANK, RerankRequest),
    ScoresProtocol("classify", CLASSIFY, CLASSIFY, ClassifyRequest),
)


def score_parts(body: bytes) -> Sequence[Part]:
    """Scores are no parts of a conversation."""
    return []


def text_bytes(fields: Fields) -> tuple[int, int]:
    """About how many bytes of text are read for such a request, a query once for each document, and how many texts."""
    queries = [bytes(fields[name]) for name in ("query", "queries", "text_1") if name in fields]
    texts = [bytes(fields[name]) for name in ("documents", "text_2", "input") if name in fields]
    count = max(map(_count, texts), default=1)
    one_query = all(_count(query) == 1 for query in queries)
    size = sum(map(len, queries)) * (count if one_query else 1) + sum(map(len, texts))
    return size, max(count, 1)


_as_list = msgspec.json.Decoder(list[msgspec.Raw]).decode


def _count(raw: bytes) -> int:
    """How many entries a list has. The body was read before: it is one, or a text."""
    return len(_as_list(raw)) if raw.lstrip()[:1] == b"[" else 1
