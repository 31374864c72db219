"""What a scheduler is set up with, what it reports, and what every scheduler answers."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

from weighbridge.cost import StepCost
from weighbridge.engine.api import Load
from weighbridge.engine.batch import Batch, Sampled
from weighbridge.engine.request import Embedding, FinishReason, Request, TokenLogprob
from weighbridge.errors import BadInput


@dataclass(frozen=True, slots=True, kw_only=True)
class SchedulerSettings:
    """Limits and targets of one scheduler. Raises BadInput for values that cannot work."""

    max_model_len: int  # tokens of one request, prompt and output
    num_blocks: int
    block_size: int = 32  # tokens
    max_batch_tokens: int = 2048  # tokens of one iteration
    max_sequences: int = 256  # requests that run at the same time
    # Seconds of an iteration that streams wait for while prompts are computed beside them. None: `itl_stretch`
    # times what the decodes take alone, at least `itl_floor`, and `itl_backlog` while several requests are still
    # without a token: larger chunks compute faster, and then those who wait need it more than those who read.
    itl_target: float | None = None
    itl_stretch: float = 2.1
    itl_floor: float = 0.032
    itl_backlog: float = 0.15
    backlog: int = 2  # requests without a token, queued or with their prompt under way, that make a backlog
    enable_prefix_cache: bool = True
    prefix_salt: bytes = b""
    speculate: bool = True
    max_draft_tokens: int = 8
    max_queue_requests: int = 4096
    max_queue_tokens: int | None = None  # tokens still to be computed for all that wait; None: no limit
    input_weight: float = 1.0  # service charged per prompt token computed (VTC)
    output_weight: float = 2.0  # and per token produced
    ageing_seconds: float | None = 30.0  # a class unserved for so long gets a turn; None: strictly never

    def __post_init__(self) -> None:
        counts = ("max_model_len", "num_blocks", "block_size", "max_batch_tokens", "max_sequences")
        for name in (*counts, "max_queue_requests"):
            if getattr(self, name) < 1:
                raise BadInput(f"{name} is {getattr(self, name)}, but must be at least 1", param=name)
        if self.itl_target is not None and not self.itl_target > 0.0:
            raise BadInput(f"itl_target is {self.itl_target} s, but must be more than 0", param="itl_target")
        if self.max_draft_tokens < 0:
            raise BadInput(
                "max_draft_tokens must not be negative; 0 turns speculation off", param="max_draft_tokens"
            )

    @property
    def seats(self) -> int:
        """Requests that may run at once: each of them must find room for a token in every iteration."""
        return min(self.max_sequences, self.max_batch_tokens)


@dataclass(frozen=True, slots=True)
class Progress:
    """What one iteration brought one request. `tokens` are those appended, a stop id included."""

    request: Request
    tokens: list[int]
    logprobs: list[TokenLogprob] | None = None
    finish_reason: FinishReason | None = None
    error: str | None = None
    embedding: Embedding | None = None


class CostSource(Protocol):
    """Where the current `StepCost` is read: it is refined while the engine runs (see `StepClock`)."""

    @property
    def cost(self) -> StepCost: ...


class SchedulerLike(Protocol):
    """A scheduler: requests in, batches out. Times are seconds on the caller's clock, never read here.

    Calls must not overlap. Each non-empty batch from `schedule` is followed by one `update` with it. Between
    the two, `add`, `abort` and `finish` are allowed; no request of the batch changes its tokens or blocks.
    """

    @property
    def settings(self) -> SchedulerSettings: ...

    def add(self, request: Request, now: float) -> None:
        """Accept a request, or raise BadInput, NeverFits, QueueFull or DeadlineMissed and keep nothing."""
        ...

    def schedule(self, now: float) -> Batch:
        """What the next iteration computes; empty when nothing can run."""
        ...

    def update(self, batch: Batch, sampled: Sampled, now: float) -> list[Progress]:
        """Account for an iteration that ran; returns the requests that got tokens or finished."""
        ...

    def abort(self, request_id: str, reason: FinishReason = FinishReason.ABORT) -> Request | None:
        """End a request wherever it is; None when it is not here (any more)."""
        ...

    def finish(self, request_id: str, reason: FinishReason) -> Request | None:
        """As `abort`, for an end that the caller saw, such as a stop string."""
        ...

    def take_finished(self) -> list[Request]:
        """Requests the scheduler itself ended outside `update` (deadlines), since the last call."""
        ...

    def has_work(self) -> bool: ...

    def wake_at(self) -> float | None:
        """When an empty batch may become a full one without any call: a time, or None for not by itself."""
        ...

    def load(self) -> Load: ...

    def check_integrity(self) -> None:
        """Raise AssertionError unless every count agrees with what it counts."""
        ...
