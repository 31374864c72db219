"""What answers look like, for readers of the document: fields that are always there, and the usual others.

Nothing is written with these types: encoders write what they must, and a test holds real answers against these.
"""

from __future__ import annotations

from typing import Any, Literal

from msgspec import Struct, field


class TokenUsage(Struct, kw_only=True):
    """Tokens of a prompt and of what answers it."""

    prompt_tokens: int
    total_tokens: int
    completion_tokens: int = 0
    prompt_tokens_details: dict[str, int] | None = None
    completion_tokens_details: dict[str, int] | None = None


class ChatCompletion(Struct, kw_only=True):
    """OpenAI's answer to a chat."""

    id: str
    object: Literal["chat.completion"]
    created: int
    model: str
    choices: list[dict[str, Any]]
    usage: TokenUsage


class TextCompletion(Struct, kw_only=True):
    """OpenAI's answer to a prompt."""

    id: str
    object: Literal["text_completion"]
    created: int
    model: str
    choices: list[dict[str, Any]]
    usage: TokenUsage


class EmbeddingList(Struct, kw_only=True):
    """A vector for each input, as numbers or as base64 of float32."""

    object: Literal["list"]
    data: list[dict[str, Any]]
    model: str
    usage: TokenUsage


class ScoreList(Struct, kw_only=True):
    """A score for each pair of texts, or a label for each text."""

    id: str
    object: Literal["list"]
    created: int
    model: str
    data: list[dict[str, Any]]
    usage: TokenUsage


class RankedDocuments(Struct, kw_only=True):
    """Documents in order, the best first, each by its place in the request."""

    id: str
    object: Literal["list"]
    created: int
    model: str
    results: list[dict[str, Any]]
    usage: TokenUsage


class DecisionObject(Struct, kw_only=True):
    """An answer to each question, in their order."""

    answers: list[dict[str, Any]]
    model: str
    usage: dict[str, Any]


class ResponseObject(Struct, kw_only=True):
    """OpenAI's response: what was asked, and the items that answer it."""

    id: str
    object: Literal["response"]
    created_at: float
    status: str
    model: str
    output: list[dict[str, Any]]
    usage: dict[str, Any] | None = None


class AnthropicMessage(Struct, kw_only=True):
    """Anthropic's answer."""

    id: str
    type: Literal["message"]
    role: Literal["assistant"]
    content: list[dict[str, Any]]
    model: str
    stop_reason: str | None
    usage: dict[str, Any]


class AnthropicCount(Struct, kw_only=True):
    """How many tokens a prompt of Anthropic's has."""

    input_tokens: int


class ResponseCount(Struct, kw_only=True):
    """How many tokens the prompt of a response has."""

    object: Literal["response.input_tokens"]
    input_tokens: int


class OllamaAnswer(Struct, kw_only=True):
    """Ollama's answer to a chat or a prompt; a stream has one such object a line."""

    model: str
    created_at: str
    done: bool
    message: dict[str, Any] = field(default_factory=dict)
    response: str = ""


class OllamaVectors(Struct, kw_only=True):
    """Ollama's vectors, one for each input."""

    model: str
    embeddings: list[list[float]]


class OllamaVector(Struct, kw_only=True):
    """Ollama's vector, as its older path has it."""

    embedding: list[float]


class OllamaModels(Struct, kw_only=True):
    """The models of a server in Ollama's words."""

    models: list[dict[str, Any]]


class TokenIds(Struct, kw_only=True):
    """A text as the model's tokens."""

    tokens: list[int]
    count: int


class PlainText(Struct, kw_only=True):
    """The text of tokens."""

    prompt: str


class ModelCard(Struct, kw_only=True):
    """A model that can be asked."""

    id: str
    object: Literal["model"] = "model"
    created: int = 0
    owned_by: str = ""


class Listing(Struct, kw_only=True):
    """A list of objects, or a page of one."""

    data: list[dict[str, Any]]
    object: Literal["list"] = "list"


class HealthReport(Struct, kw_only=True):
    """Whether requests are taken."""

    status: str
    version: str


class VersionReport(Struct, kw_only=True):
    """The version of this server."""

    version: str


class LoadTold(Struct, kw_only=True):
    """How busy a server is, in tokens."""

    queued_requests: int
    queued_tokens: int
    running_requests: int
    draining: bool


class Deletion(Struct, kw_only=True):
    """What was deleted."""

    id: str
    deleted: bool


class Anything(Struct, kw_only=True):
    """An object that its page of the guide describes."""


class ErrorBody(Struct, kw_only=True):
    """What is wrong, and what to do: OpenAI's shape, Anthropic's with `type` beside it, or Ollama's sentence."""

    error: dict[str, Any] | str
