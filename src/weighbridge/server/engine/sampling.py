"""What OpenAI's fields mean for sampling, checked against the model and the server's limits."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from weighbridge.engine.request import Guide, SamplingParams
from weighbridge.models.sampling_defaults import NO_DEFAULTS, SamplingDefaults
from weighbridge.server.settings import ServerSettings
from weighbridge.wire.errors import ApiError
from weighbridge.wire.protocols.openai import Common

#: Strings that may end an output, and characters of one; OpenAI takes four.
MAX_STOPS = 16
LONGEST_STOP = 1024
#: Token ids that may end an output.
MAX_STOP_IDS = 1024


@dataclass(frozen=True, slots=True)
class Limits:
    """What the values of a request are checked against."""

    settings: ServerSettings
    vocab_size: int
    defaults: SamplingDefaults = NO_DEFAULTS  # where a request says nothing


def sampling_params(
    request: Common, max_tokens: int, logprobs: int | None, guide: Guide | None, limits: Limits
) -> SamplingParams:
    """OpenAI's fields as the engine's. Raises ApiError naming the field that is out of range."""
    settings, defaults = limits.settings, limits.defaults
    for name, count in (("logprobs", logprobs), ("prompt_logprobs", request.prompt_logprobs)):
        if count is not None and count > settings.max_logprobs:
            message = f"{name}: at most {settings.max_logprobs} alternatives can be had"
            raise ApiError(400, message, param=name)
    if request.n is not None and request.n > settings.max_choices:
        raise ApiError(400, f"n: at most {settings.max_choices} choices can be had", param="n")
    stop = _stop_strings(request.stop)
    if request.stop_token_ids is not None and len(request.stop_token_ids) > MAX_STOP_IDS:
        raise ApiError(400, f"stop_token_ids: give at most {MAX_STOP_IDS}", param="stop_token_ids")
    ids = frozenset(request.stop_token_ids or ())
    _check_ids(ids, "stop_token_ids", limits)
    allowed = request.allowed_token_ids
    _check_ids(frozenset(allowed or ()), "allowed_token_ids", limits)
    if request.min_tokens is not None and request.min_tokens > max_tokens:
        raise ApiError(
            400, f"min_tokens: must not be more than max_tokens ({max_tokens})", param="min_tokens"
        )
    return SamplingParams(
        max_tokens=max_tokens,
        temperature=_or(request.temperature, defaults.temperature, 1.0),
        top_p=_or(request.top_p, defaults.top_p, 1.0),
        top_k=max(_or(request.top_k, defaults.top_k, 0), 0),
        min_p=_or(request.min_p, defaults.min_p, 0.0),
        repetition_penalty=_or(request.repetition_penalty, defaults.repetition_penalty, 1.0),
        presence_penalty=_or(request.presence_penalty, 0.0),
        frequency_penalty=_or(request.frequency_penalty, 0.0),
        logit_bias=_logit_bias(request.logit_bias or {}, limits),
        seed=request.seed,
        logprobs=logprobs,
        stop=stop,
        stop_token_ids=ids,
        ignore_eos=bool(request.ignore_eos),
        min_tokens=_or(request.min_tokens, 0),
        guide=guide,
        allowed_tokens=None if allowed is None else tuple(dict.fromkeys(allowed)),
        prompt_logprobs=request.prompt_logprobs,
        shows_stop=bool(request.include_stop_str_in_output),
    )


def _or(*values: Any) -> Any:
    """The first that says anything."""
    return next(value for value in values if value is not None)


def _stop_strings(given: str | list[str] | None) -> tuple[str, ...]:
    stop = (given,) if isinstance(given, str) else tuple(given or ())
    if len(stop) > MAX_STOPS or any(not one for one in stop):
        raise ApiError(400, f"stop: give at most {MAX_STOPS} strings, none of them empty", param="stop")
    if any(len(one) > LONGEST_STOP for one in stop):
        raise ApiError(400, f"stop: a string may have at most {LONGEST_STOP} characters", param="stop")
    return stop


def _check_ids(ids: frozenset[int], name: str, limits: Limits) -> None:
    for one in ids:
        if not 0 <= one < limits.vocab_size:
            raise ApiError(
                400,
                f"{name}: token id {one} is not in the vocabulary (0 to {limits.vocab_size - 1})",
                param=name,
            )


def _logit_bias(bias: Mapping[str, float], limits: Limits) -> dict[int, float]:
    result = {}
    if len(bias) > limits.vocab_size:
        message = f"logit_bias: has {len(bias)} entries, but the vocabulary only {limits.vocab_size} tokens"
        raise ApiError(400, message, param="logit_bias")
    for key, value in bias.items():
        if not (key.isdecimal() and len(key) <= 9):
            raise ApiError(400, f"logit_bias: keys are token ids, not {key[:40]!r}", param="logit_bias")
        result[int(key)] = value
    _check_ids(frozenset(result), "logit_bias", limits)
    return result
