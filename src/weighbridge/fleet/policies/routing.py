"""The `weigh` policy for somebody else's serving system: it ranks, they send.

Framework-free: whoever embeds it says which replicas there are, asks for a ranking of each request, and tells
where the request went and when it was done.
"""

from __future__ import annotations

import random
from collections import OrderedDict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import msgspec

from weighbridge.cost.length import OutputLengths
from weighbridge.cost.step import StepCost
from weighbridge.fleet.api import Arrival, Capacity
from weighbridge.fleet.load.prefix_index import PrefixIndex
from weighbridge.fleet.load.state import ReplicaState
from weighbridge.fleet.load.weigher import Counter, Scales
from weighbridge.fleet.policies import DEFAULT_POLICY, make_policy
from weighbridge.wire.ask import Ask

#: Requests that were ranked but never reported as sent; the oldest are forgotten first.
MAX_RANKED = 10_000


@dataclass(frozen=True, slots=True)
class Ranking:
    """Replicas, best first, and why the first one."""

    order: tuple[str, ...]
    reason: str


class Routing:
    """One deployment. Times are seconds on the caller's clock."""

    def __init__(
        self,
        policy: str = DEFAULT_POLICY,
        tokenizer: Counter | None = None,
        *,
        max_sequences: int = 256,
        default_max_tokens: int = 1024,
        seed: int | None = None,
    ) -> None:
        self._policy = make_policy(policy, random.Random(seed))
        self._lengths = OutputLengths()
        self._scales = Scales(self._lengths, tokenizer, default_max_tokens=default_max_tokens)
        self._index = PrefixIndex()
        self._max_sequences = max_sequences
        self._states: dict[str, ReplicaState] = {}
        self._ranked: OrderedDict[str, Arrival] = OrderedDict()

    def replicas(self, names: Sequence[str], now: float) -> None:
        """Say which replicas there are now; others are gone, and what was in flight on them with them."""
        for name in set(self._states) - set(names):
            del self._states[name]
            self._index.remove_replica(name)
        for name in names:
            if name not in self._states:
                capacity = Capacity(max_sequences=self._max_sequences)
                self._states[name] = ReplicaState(name, capacity, self._index, now)

    def learn(self, name: str, step_cost: StepCost) -> None:
        """Take note of how fast a replica says it is."""
        state = self._states[name]
        if state.capacity.step_cost != step_cost:
            state.update_capacity(replace(state.capacity, step_cost=step_cost))

    async def rank(
        self, request_id: str, body: Mapping[str, Any], names: Sequence[str], now: float
    ) -> Ranking:
        """All of `names` in the order the policy would take them; `body` is an OpenAI request."""
        arrival = self._ranked.get(request_id) or await self._weighed(request_id, body, now)
        states = [self._states[name] for name in names]
        choice = self._policy.choose(arrival, states, now)
        scores = choice.scores
        others = sorted((n for n in names if n != choice.replica), key=lambda name: scores.get(name, 0.0))
        return Ranking((choice.replica, *others), choice.reason)

    def sent(self, request_id: str, name: str, now: float) -> None:
        """Count a request at `name` from now on."""
        arrival = self._ranked.pop(request_id, None)
        state = self._states.get(name)
        if arrival is not None and state is not None and request_id not in state:
            state.credit(arrival, state.cached_tokens(arrival), now)

    def done(self, request_id: str, name: str, now: float) -> None:
        """Count a request no longer, however it ended. Idempotent."""
        state = self._states.get(name)
        if state is not None:
            state.release(request_id, now)

    def outstanding(self) -> dict[str, float]:
        """Tokens of work in flight by replica."""
        return {name: state.outstanding_tokens for name, state in self._states.items()}

    async def _weighed(self, request_id: str, body: Mapping[str, Any], now: float) -> Arrival:
        ask = _ask(request_id, body)
        weight, weighed = await self._scales.weigh(ask)
        arrival = Arrival(request_id, ask.model, weight, now, tenant=ask.tenant, chain=weighed.chain)
        self._ranked[request_id] = arrival
        if len(self._ranked) > MAX_RANKED:
            self._ranked.popitem(last=False)
        return arrival


def _ask(request_id: str, body: Mapping[str, Any]) -> Ask:
    known = ("messages", "prompt", "input", "tools", "chat_template_kwargs")
    fields = {
        name: msgspec.Raw(msgspec.json.encode(body[name], enc_hook=str)) for name in known if body.get(name)
    }
    path = "/v1/chat/completions" if "messages" in fields else "/v1/completions"
    given = body.get("max_completion_tokens") or body.get("max_tokens")
    return Ask(
        id=request_id,
        path=path,
        fields=fields,
        model=str(body.get("model") or ""),
        tenant=str(body.get("user") or "default"),
        max_tokens=given if isinstance(given, int) and given > 0 else None,
        choices=body["n"] if isinstance(body.get("n"), int) and body["n"] > 0 else 1,
    )


def body_of(args: Sequence[Any], kwargs: Mapping[str, Any]) -> Mapping[str, Any]:
    """The OpenAI request among the arguments of a call: a mapping, a model with fields, or plain text."""
    for value in (*args, *kwargs.values()):
        if isinstance(value, Mapping) and any(name in value for name in ("messages", "prompt", "input")):
            return value
        dump = getattr(value, "model_dump", None)
        if callable(dump) and (hasattr(value, "messages") or hasattr(value, "prompt")):
            dumped = dump()
            return dumped if isinstance(dumped, Mapping) else {}
    text = next((value for value in (*args, *kwargs.values()) if isinstance(value, str)), "")
    return {"prompt": text}
