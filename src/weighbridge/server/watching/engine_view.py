"""An engine as its console sees it."""

from __future__ import annotations

import time
from collections.abc import Mapping
from dataclasses import asdict
from typing import Any

from weighbridge.engine.api import Engine, EngineStep
from weighbridge.errors import UnknownModel
from weighbridge.server.watching.history import Iterations, ServerHistory
from weighbridge.server.watching.view import KnownFleet
from weighbridge.wire.protocols import PROTOCOLS

_ASKED = frozenset(protocol.path for protocol in PROTOCOLS)


class EngineView:
    """Hears the iterations of an engine; `history` is to hear its finished requests."""

    def __init__(self, engine: Engine) -> None:
        self.history = ServerHistory()
        self.iterations: Iterations | None = Iterations()
        self._engine = engine
        self._produced = 0

    def stepped(self, step: EngineStep) -> None:
        """Hear of an iteration."""
        self._produced += step.produced
        assert self.iterations is not None
        self.iterations.add(
            time.time(), step.seconds, step.decodes, step.prompts, step.prompt_tokens, step.tokens
        )

    @property
    def kind(self) -> str:
        return "engine"

    @property
    def has_experts(self) -> bool:
        return getattr(self._engine, "experts", None) is not None

    def models(self) -> list[str]:
        return [self._engine.model_name]

    def waiting(self) -> Mapping[tuple[int, str], tuple[int, int]]:
        return self._engine.waiting()

    def levels(self) -> dict[str, float]:
        return asdict(self._engine.load())

    def produced(self) -> int:
        return self._produced

    def routes(self) -> list[dict[str, Any]]:
        return []

    def known(self, model: str) -> KnownFleet:
        own, load = self._engine.model_name, self._engine.load()
        if model not in ("", own):
            raise UnknownModel(
                f"the model {model!r} does not exist here; this server has {own!r}", param="model"
            )
        one = {
            "cost": load.step_cost,
            "kv_tokens": load.kv_blocks_total * load.block_size,
            "max_model_len": load.max_model_len,
        }
        return KnownFleet(own, "weigh", [one], {})

    def answered(self, path: str, status: int) -> None:
        if path in _ASKED:
            self.history.answered(status)
