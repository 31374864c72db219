"""OpenAI's embeddings, and as an extension those of a chat's prompt."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated, Any, Literal

from msgspec import Meta, Struct

from weighbridge.wire.ask import Ask, Extension
from weighbridge.wire.body import decode
from weighbridge.wire.errors import ApiError
from weighbridge.wire.events import Part
from weighbridge.wire.protocol import WireProtocol
from weighbridge.wire.protocols.chat import ChatRequest
from weighbridge.wire.protocols.openai import Peek, Positive, Tool, ToolChoice, WholeEncoder, ask_of

PATH = "/v1/embeddings"


class EmbeddingRequest(Struct, kw_only=True):
    """OpenAI's, and as an extension a chat in place of `input`: what a chat completion of it would compute."""

    model: str | None = None
    input: Any = None
    messages: Annotated[list[dict[str, Any]], Meta(min_length=1)] | None = None
    tools: list[Tool] | None = None
    tool_choice: ToolChoice | None = None
    chat_template_kwargs: dict[str, Any] | None = None
    add_generation_prompt: bool | None = None  # None: yes
    encoding_format: Literal["float", "base64"] | None = None  # None: float
    dimensions: Positive | None = None
    user: str | None = None
    weighbridge: Extension | None = None

    def chat(self) -> ChatRequest | None:
        """The chat whose prompt is to be embedded; None when it is `input`."""
        if self.messages is None:
            return None
        return ChatRequest(
            messages=self.messages,
            tools=self.tools,
            tool_choice=self.tool_choice,
            chat_template_kwargs=self.chat_template_kwargs,
            add_generation_prompt=self.add_generation_prompt,
        )


class EmbeddingProtocol(WireProtocol):
    name, path = "embeddings", PATH

    def read(self, body: bytes) -> Ask:
        ask = ask_of(PATH, decode(body, Peek), body)
        ask.stream = False
        if _given(ask, "input") == _given(ask, "messages"):
            raise ApiError(400, "give either `input` or `messages`", param="input")
        return ask

    def encoder(self, ask: Ask) -> WholeEncoder:
        return WholeEncoder()


def _given(ask: Ask, name: str) -> bool:
    return name in ask.fields and bytes(ask.fields[name]) != b"null"


def embedding_parts(body: bytes) -> Sequence[Part]:
    """Vectors are no parts of a conversation."""
    return []
