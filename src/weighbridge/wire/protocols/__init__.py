"""The protocols that every door speaks, by endpoint, and the readers of what servers behind us answer."""

from __future__ import annotations

from collections.abc import Mapping

from weighbridge.wire.events import Parse
from weighbridge.wire.protocol import WireProtocol
from weighbridge.wire.protocols import (
    chat,
    completions,
    decisions,
    embeddings,
    messages,
    ollama,
    responses,
    scores,
)

PROTOCOLS: tuple[WireProtocol, ...] = (
    chat.ChatProtocol(),
    completions.CompletionProtocol(),
    embeddings.EmbeddingProtocol(),
    decisions.DecisionProtocol(),
    responses.ResponsesProtocol(),
    messages.MessagesProtocol(),
    *ollama.PROTOCOLS,
    *scores.PROTOCOLS,
)

#: What is asked at them is answered without a token.
SILENT = frozenset({decisions.PATH, embeddings.PATH, *scores.PATHS})

#: Reads the events, and the whole answers, of a server that was asked at a path.
EVENT_PARSERS: Mapping[str, Parse] = {
    chat.PATH: chat.chat_parts,
    completions.PATH: completions.completion_parts,
    embeddings.PATH: embeddings.embedding_parts,
    **dict.fromkeys(scores.PATHS, scores.score_parts),
    decisions.PATH: decisions.decision_parts,
}
ANSWER_PARSERS: Mapping[str, Parse] = {
    chat.PATH: chat.chat_answer_parts,
    completions.PATH: completions.completion_answer_parts,
    embeddings.PATH: embeddings.embedding_parts,
    **dict.fromkeys(scores.PATHS, scores.score_parts),
    decisions.PATH: decisions.decision_parts,
}
