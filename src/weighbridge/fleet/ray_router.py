"""`weigh` as a request router of Ray Serve, for deployments that want the policy and nothing else of Weighbridge.

    from ray.serve.config import RequestRouterConfig

    @serve.deployment(
        num_replicas=4,
        request_router_config=RequestRouterConfig(
            request_router_class="weighbridge.fleet.ray_router:WeighRouter",
            request_router_kwargs={"policy": "weigh"},
        ),
    )
    class Model: ...

A deployment's handle is called with an OpenAI request (a dict or a pydantic model) or with a prompt. Replicas that
define `record_routing_stats` may return `{"step_cost": {...}}`, so that unequal machines are weighed as such.
"""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

from ray.serve.request_router import PendingRequest, ReplicaID, RequestRouter, RunningReplica

from weighbridge.cost.step import StepCost
from weighbridge.fleet.policies.routing import Routing, body_of


class WeighRouter(RequestRouter):  # type: ignore[misc]
    """Ranks the candidates of each request by predicted marginal cost; Serve sends it to the first with room."""

    def initialize_state(self, **options: Any) -> None:
        """Take `policy`, `tokenizer` (a path), `max_sequences`, `default_max_tokens` and `seed`, as `routing` does."""
        path = options.pop("tokenizer", None)
        tokenizer = None
        if path is not None:
            from weighbridge.models.text.tokenizer import load_tokenizer

            tokenizer = load_tokenizer(Path(path))
        self._routing = Routing(tokenizer=tokenizer, **options)

    async def choose_replicas(
        self, candidate_replicas: list[RunningReplica], pending_request: PendingRequest | None = None
    ) -> list[list[RunningReplica]]:
        if not candidate_replicas or pending_request is None:
            return [candidate_replicas]
        now = time.monotonic()
        by_name = {replica.replica_id.unique_id: replica for replica in candidate_replicas}
        self._routing.replicas([one.unique_id for one in self.curr_replicas], now)
        names = [name for name in by_name if name in self._routing.outstanding()]
        if not names:
            return [candidate_replicas]
        self._learn(by_name)
        body = body_of(pending_request.args, pending_request.kwargs)
        request_id = pending_request.metadata.internal_request_id
        ranking = await self._routing.rank(request_id, body, names, now)
        return [[by_name[name]] for name in ranking.order]

    def on_request_routed(self, pending_request: PendingRequest, replica_id: ReplicaID, result: Any) -> None:
        request_id = pending_request.metadata.internal_request_id
        self._routing.sent(request_id, replica_id.unique_id, time.monotonic())

    def on_request_completed(self, replica_id: ReplicaID, internal_request_id: str) -> None:
        self._routing.done(internal_request_id, replica_id.unique_id, time.monotonic())

    def _learn(self, replicas: dict[str, RunningReplica]) -> None:
        for name, replica in replicas.items():
            cost = replica.routing_stats.get("step_cost")
            if isinstance(cost, dict):
                self._routing.learn(name, StepCost(**{key: float(value) for key, value in cost.items()}))
