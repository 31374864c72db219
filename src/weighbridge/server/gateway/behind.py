"""What a gateway has to ask a replica: the tokens of a model that it has no tokenizer of."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from typing import Any

import msgspec

from weighbridge.errors import Inside, wording
from weighbridge.fleet.api import Call
from weighbridge.fleet.config.spec import EDGE
from weighbridge.fleet.journey import Unavailable
from weighbridge.fleet.member import Member
from weighbridge.fleet.pool import Pool
from weighbridge.fleet.replica import ReplicaError
from weighbridge.server.endpoint import NoTokenizer
from weighbridge.wire.errors import ApiError, error_message, error_param

#: Servers that count a text or a chat at `/tokenize`, in the form that vLLM gave it.
COUNTING = frozenset({"weighbridge", "vllm"})
#: What says no more of a server than that it speaks OpenAI's API: one that takes no money may be one of those.
_UNTOLD = "openai"
#: Seconds that a count may take, and bytes of what it may be answered with.
PATIENCE, LARGEST_ANSWER = 30.0, 64 << 20


async def asked_behind(pool: Pool, path: str, fields: Mapping[str, Any]) -> bytes:
    """The answer of a replica of `pool` at `path`, which is one of `/tokenize`.

    Raises NoTokenizer where no replica can be asked, ApiError for what it refuses, Unavailable where it fails.
    """
    member = _counting(pool)
    body = {**fields, "model": member.spec.model or pool.spec.name}
    try:
        async with asyncio.timeout(PATIENCE):
            status, answer = await _whole(member, Call(path, msgspec.json.encode(body)))
    except TimeoutError:
        raise Unavailable(f"{member.name} did not count the prompt within {PATIENCE:g} s", 504) from None
    except ReplicaError as error:
        raise Unavailable(wording("the prompt could not be counted: {}", error), 502) from error
    if status in (404, 405):
        raise _nobody(pool)
    if status >= 400:
        message = f"{member.name}: {error_message(answer)}"
        if status >= 500:
            raise ApiError(502, Inside(message, f"{member.name} answered with status {status}"))
        raise ApiError(status, message, param=error_param(answer))
    return answer


def _counting(pool: Pool) -> Member:
    now = pool.clock()
    for member in pool.members.values():
        if _may_count(pool, member) and member.usable(now) and member.state.healthy:
            return member
    raise _nobody(pool)


def _may_count(pool: Pool, member: Member) -> bool:
    spec = member.spec
    is_own = pool.spec.placement == EDGE and not (
        spec.price.input_usd_per_million or spec.price.output_usd_per_million
    )
    return spec.dialect in COUNTING or (spec.dialect == _UNTOLD and is_own)


def _nobody(pool: Pool) -> NoTokenizer:
    remedy = "set `tokenizer:` of the model"
    return NoTokenizer(
        f"the gateway has no tokenizer of {pool.spec.name!r}, nor a replica that counts; {remedy}"
    )


async def _whole(member: Member, call: Call) -> tuple[int, bytes]:
    answer = await member.replica.open(call)
    try:
        body = bytearray()
        async for chunk in answer.chunks():
            body += chunk
            if len(body) > LARGEST_ANSWER:
                raise Unavailable(f"{member.name} answers with more than {LARGEST_ANSWER >> 20} MiB", 502)
        return answer.status, bytes(body)
    finally:
        await answer.close()
