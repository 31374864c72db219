"""A request that was read, once it is known whose it is: the same for one from outside and for a line of a batch."""

from __future__ import annotations

from typing import Protocol

from weighbridge.wire.ask import Ask
from weighbridge.wire.body import LONG_BODY, apart
from weighbridge.wire.errors import told_plainly
from weighbridge.wire.extension import KnownCaller, apply_caller
from weighbridge.wire.headers import Headers
from weighbridge.wire.identity.access import AccessSettings
from weighbridge.wire.identity.callers import Callers
from weighbridge.wire.prompts.care import PromptCare, normal
from weighbridge.wire.protocol import WireProtocol
from weighbridge.wire.readers import whose


class Doorkeeper(Protocol):
    """Who knows callers, what they may share, and the rules for their prompts."""

    callers: Callers
    prompts: PromptCare

    @property
    def access(self) -> AccessSettings: ...


async def settle_caller(
    keeper: Doorkeeper,
    protocol: WireProtocol,
    ask: Ask,
    headers: Headers,
    caller: KnownCaller | None,
    now: float,
) -> None:
    """Write into a request whose it is and how it is to be treated, and all that it refers to. Raises ApiError."""
    if not keeper.callers.users_are_tenants:
        ask.user = None  # whoever an application asks for, it is the application that calls
    apply_caller(ask, headers, caller, now)
    whose.set(ask.tenant)
    told_plainly.set(caller is not None)
    ask.priority = max(ask.priority, keeper.callers.most_urgent(ask.tenant, caller))
    await protocol.recall(ask, ask.tenant if caller is not None else None)
    if caller is not None and not keeper.access.share_prefixes:
        ask.keep_apart(ask.tenant)
    if keeper.prompts.concerns(ask):
        made = await apart(ask.size, normal, ask.fields, keeper.prompts.rules_of(ask.tenant))
        keeper.prompts.settle(ask, made)
    if ask.size >= LONG_BODY:
        await apart(ask.size, getattr, ask, "prompt_hash")
