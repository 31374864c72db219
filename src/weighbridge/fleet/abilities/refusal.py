"""What another server's refusal means: it has no such endpoint, model, ability or room, or the request is wrong.

Statuses and codes decide where there are any. Servers that have none for it say such things in words only; these are
read here and nowhere else, and what they claim is believed only where another replica then serves the same request.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from enum import StrEnum
from typing import Any

import msgspec

from weighbridge.fleet.abilities.ability import ENDPOINTS, NOTHING, Ability, Needs

#: Bytes of an error that are looked at.
LONGEST_ERROR = 16 << 10
#: Beyond this no number in an error is one of tokens.
MOST_TOKENS = 1 << 40


class RefusalKind(StrEnum):
    """Why a server will not serve a request that another one might."""

    ENDPOINT = "endpoint"  # it has no such path
    MODEL = "model"  # it does not know the model under the name it was sent
    CONTEXT = "context"  # the prompt is too long for it
    ABILITY = "ability"  # it lacks something that the request needs, and names it
    UNCLEAR = "unclear"  # the request needs something special, and was refused for whatever reason


@dataclass(frozen=True, slots=True)
class ReplicaRefusal:
    """`lacks`: what it says, or may be thought, not to have. `context`: how many tokens it takes, where it says so.

    `adapter`: an adapter over its model was asked for; if that is not there, nothing is wrong with the model.
    """

    kind: RefusalKind
    lacks: Needs = NOTHING
    context: int | None = None
    adapter: bool = False


#: Statuses with which servers refuse a request that they cannot serve; 500 only with words that say so.
_REFUSING = frozenset({400, 404, 405, 413, 415, 422, 500, 501})
_NO_SUCH_PATH = frozenset({404, 405, 501})

_MODEL_CODES = frozenset(
    {"model_not_found", "deploymentnotfound", "model_not_available", "unknown_model", "invalid_model"}
)
_NO_MODEL = re.compile(
    r"\b(?:model|deployment)s?\b.{0,200}\b(?:not found|not exist|does not exist|not available|unknown|not served)",
    re.IGNORECASE | re.DOTALL,
)
_NOT_HERE = re.compile(
    r"not (?:a|supported).{0,60}\bendpoint|not a chat model|is a chat model", re.IGNORECASE
)

_CONTEXT_CODES = frozenset(
    {"context_length_exceeded", "exceed_context_size_error", "string_above_max_length"}
)
#: How servers say how long a prompt may be; the number is the limit.
_CONTEXT = tuple(
    re.compile(pattern, re.IGNORECASE)
    for pattern in (
        r"maximum context length (?:is|of) (\d+)",
        r"maximum model length (?:is|of) (\d+)",
        r"max_model_len[^\d]{0,20}(\d+)",
        r"(?:available )?context (?:size|length|window)[^\d]{0,20}\(?(\d+)",
        r"maximum number of tokens allowed \((\d+)\)",
        r"tokens? > (\d+) maximum",
        r"inputs? tokens`? \+ `?max_new_tokens`? must be <= (\d+)",
        r"must have less than (\d+) tokens",
        r"beyond the (\d+) tokens that any replica",
    )
)
_TOOLS = re.compile(
    r"tool.{0,80}(?:not support|unsupported|requires|--jinja|--enable|no place for tools)|"
    r"not support.{0,40}\b(?:tool|function)",
    re.IGNORECASE | re.DOTALL,
)
#: How they name what they lack.
_ABILITY = {
    Ability.TOOLS: _TOOLS,
    Ability.FORCED_TOOLS: _TOOLS,
    Ability.VISION: re.compile(
        r"(?:image|vision|multi-?modal|picture).{0,80}(?:not support|unsupported|missing|at most 0|not a)|"
        r"not support.{0,40}\b(?:image|vision|multi-?modal)|not a multi-?modal|unknown variant `image_url`|"
        r"mmproj|At most 0 image",
        re.IGNORECASE | re.DOTALL,
    ),
    Ability.AUDIO: re.compile(
        r"audio.{0,80}(?:not support|unsupported|missing)|not support.{0,40}\baudio|unknown variant `input_audio`",
        re.IGNORECASE | re.DOTALL,
    ),
    Ability.SCHEMA: re.compile(
        r"(?:response_format|json_schema|json mode|structured|guided|grammar).{0,80}"
        r"(?:not support|unsupported|unavailable|not available|unknown)|"
        r"not support.{0,60}(?:response_format|json_schema|structured|grammar)",
        re.IGNORECASE | re.DOTALL,
    ),
    Ability.LOGPROBS: re.compile(
        r"logprobs?.{0,80}(?:not support|unsupported|not enabled|not available)|not support.{0,40}logprobs?",
        re.IGNORECASE | re.DOTALL,
    ),
    Ability.CHAT: re.compile(
        r"(?:must provide|does not have|has no|without|no default) (?:a |any )?chat.template|does not support chat\b",
        re.IGNORECASE,
    ),
    Ability.COMPLETIONS: re.compile(r"does not support (?:text )?(?:completions?|generat)", re.IGNORECASE),
    Ability.EMBEDDINGS: re.compile(
        r"not support.{0,40}embedding|embedding.{0,60}(?:not support|not enabled)", re.IGNORECASE | re.DOTALL
    ),
}


def read_refusal(status: int, body: bytes, path: str, needs: Needs) -> ReplicaRefusal | None:
    """What a refusal with `status` means for a request to `path`; None: that the request itself is wrong, or that the
    server failed."""
    if status not in _REFUSING:
        return None
    error = error_of(body)
    if status in _NO_SUCH_PATH:
        if status == 404 and _is_about_model(error):
            return ReplicaRefusal(RefusalKind.MODEL)
        endpoint = ENDPOINTS.get(path)
        return ReplicaRefusal(RefusalKind.ENDPOINT, NOTHING if endpoint is None else frozenset({endpoint}))
    if status in (400, 422) and _code(error) in _MODEL_CODES:
        return ReplicaRefusal(RefusalKind.MODEL)
    message = _message(error)
    lacks = frozenset(one for one in needs if one in _ABILITY and _ABILITY[one].search(message))
    if status != 500 and (context := _context(error, message)) is not None:
        return ReplicaRefusal(RefusalKind.CONTEXT, context=context or None)
    if lacks:
        return ReplicaRefusal(RefusalKind.ABILITY, lacks)
    special = needs - frozenset(ENDPOINTS.values())
    return ReplicaRefusal(RefusalKind.UNCLEAR, special) if special and status in (400, 422) else None


def error_of(body: bytes) -> Mapping[str, Any]:
    """The fields of an error, however its server wraps them: `error`, a list of one, `detail`, or bare."""
    try:
        value = msgspec.json.decode(body[:LONGEST_ERROR]) if len(body) <= LONGEST_ERROR else None
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        value = None
    if isinstance(value, list) and value:  # Gemini's
        value = value[0]
    if not isinstance(value, dict):
        return {"message": body[:LONGEST_ERROR].decode("utf-8", "replace")}
    inner = value.get("error")
    if isinstance(inner, dict):
        return inner
    message = value.get("message", inner if isinstance(inner, str) else value.get("detail"))
    return {**value, "message": message}


def _is_about_model(error: Mapping[str, Any]) -> bool:
    if _code(error) in _MODEL_CODES:
        return True
    message = _message(error)
    if _NOT_HERE.search(message):
        return False
    anthropic = error.get("type") == "not_found_error" and message.startswith("model:")
    return anthropic or error.get("param") == "model" or bool(_NO_MODEL.search(message))


def _context(error: Mapping[str, Any], message: str) -> int | None:
    """The limit that a refusal for length names; 0 where it names none, None where it is about something else."""
    told = error.get("n_ctx")
    if isinstance(told, int) and 0 < told < MOST_TOKENS:
        return told
    for pattern in _CONTEXT:
        if (found := pattern.search(message)) and 0 < int(found[1][:13]) < MOST_TOKENS:
            return int(found[1][:13])
    return 0 if _code(error) in _CONTEXT_CODES else None


def _code(error: Mapping[str, Any]) -> str:
    code = error.get("code")
    return str(code if isinstance(code, str) else error.get("type") or "").lower()


def _message(error: Mapping[str, Any]) -> str:
    return str(error.get("message") or "")[:2048]
