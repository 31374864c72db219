"""What a scheduler is set up with, what it reports, and what every scheduler answers."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, fields
from typing import Protocol

from weighbridge.cost import StepCost
from weighbridge.engine.api import Load
from weighbridge.engine.batch import Batch, Sampled
from weighbridge.engine.request import Embedding, FinishReason, Places, Request, TokenLogprob
from weighbridge.engine.schedule.places import Backlog
from weighbridge.errors import BadInput
from weighbridge.knobs import check_choices, knob


@dataclass(frozen=True, slots=True, kw_only=True)
class SchedulerOptions:
    """What an operator can set about scheduling. Raises BadInput for values that cannot work."""

    # In tokens: two AVX-512 vectors of keys, small enough that a shared prefix wastes little.
    block_size: int = 32
    max_batch_tokens: int = knob(2048, "Tokens of one iteration.", min=1)
    max_sequences: int = knob(256, "Requests in one batch.", min=1)  # that run at the same time
    # Seconds of an iteration that streams wait for while prompts are computed beside them. None: `itl_stretch`
    # times what the decodes take alone, at least `itl_floor`, and `itl_backlog` while several requests are still
    # without a token: larger chunks compute faster, and then those who wait need it more than those who read.
    itl_target: float | None = knob(
        None,
        "Gap between tokens to keep while prompts run, in ms; none: about twice a decode step.",
        unit="ms",
        min=1.0,
    )
    itl_stretch: float = 2.1
    itl_floor: float = 0.032
    itl_backlog: float = 0.15
    backlog: int = 2  # requests without a token, queued or with their prompt under way, that make a backlog
    enable_prefix_cache: bool = knob(
        True, "Share equal prompt beginnings.", flag="--prefix-cache/--no-prefix-cache"
    )
    speculate: bool = knob(True, "Guess tokens by looking them up in the text so far.")
    max_draft_tokens: int = 8
    max_queue_requests: int = knob(
        4096, "Requests that may wait; more are refused with 429.", flag="--max-queue", min=1
    )
    batching: str = knob(
        "continuous", "continuous, or static: the classic baseline.", choices=("continuous", "static")
    )
    static_batch_size: int = knob(16, "With --batching static: requests of a batch.", min=1)
    static_timeout: float = knob(0.1, "Seconds a static batch waits to fill.", min=0.0)
    max_queue_tokens: int | None = None  # tokens still to be computed for all that wait; None: no limit
    input_weight: float = 1.0  # service charged per prompt token computed (VTC)
    output_weight: float = 2.0  # and per token produced
    tenant_patience: float = knob(
        0.5,
        "Seconds after which a tenant that waits takes over a seat of the one that holds most; inf: never.",
        min=0.0,
    )
    tenant_kv_share: float = knob(
        1.0, "Share of the KV cache that one tenant may fill while others wait for memory.", min=0.01, max=1.0
    )
    ageing_seconds: float | None = 30.0  # a class unserved for so long gets a turn; None: strictly never

    def __post_init__(self) -> None:
        check_choices(self)
        check_counts(self, "block_size", "max_batch_tokens", "max_sequences", "max_queue_requests")
        if self.itl_target is not None and not self.itl_target > 0.0:
            raise BadInput(f"itl_target is {self.itl_target} s, but must be more than 0", param="itl_target")
        if self.max_draft_tokens < 0:
            raise BadInput(
                "max_draft_tokens must not be negative; 0 turns speculation off", param="max_draft_tokens"
            )

    def sized(self, *, max_model_len: int, num_blocks: int, keeps_states: bool = False) -> SchedulerSettings:
        """Return the settings of a scheduler, with what follows from the model and the machine."""
        own = {option.name: getattr(self, option.name) for option in fields(SchedulerOptions)}
        return SchedulerSettings(
            **own, max_model_len=max_model_len, num_blocks=num_blocks, keeps_states=keeps_states
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class SchedulerSettings(SchedulerOptions):
    """Limits and targets of one scheduler. Raises BadInput for values that cannot work."""

    max_model_len: int  # tokens of one request, prompt and output
    num_blocks: int
    #: Whether the model carries something from token to token that is no block's: nothing computed can be shared.
    keeps_states: bool = False

    def __post_init__(self) -> None:
        SchedulerOptions.__post_init__(self)  # `super()` knows no class that has slots
        check_counts(self, "max_model_len", "num_blocks")
        if self.keeps_states and (self.enable_prefix_cache or self.speculate or self.batching == "static"):
            raise BadInput(
                "a model that keeps states has no prefix cache, no guessed tokens and no static batches"
            )

    @property
    def seats(self) -> int:
        """Requests that may run at once: each of them must find room for a token in every iteration."""
        return min(self.max_sequences, self.max_batch_tokens)


def check_counts(settings: object, *names: str) -> None:
    """Raise BadInput for a count below 1."""
    for name in names:
        if getattr(settings, name) < 1:
            raise BadInput(f"{name} is {getattr(settings, name)}, but must be at least 1", param=name)


@dataclass(frozen=True, slots=True)
class Progress:
    """What one iteration brought one request. `tokens` are those appended, a stop id included."""

    request: Request
    tokens: list[int]
    logprobs: list[TokenLogprob] | None = None
    finish_reason: FinishReason | None = None
    error: str | None = None
    embedding: Embedding | None = None
    chances: list[float] | None = None  # of the tokens in `chances_of`, natural logarithms
    prompt_logprobs: list[TokenLogprob] | None = None  # once, with the first of its progress


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

    def keep_places(self, tenant: str, sizes: Sequence[tuple[int, int]]) -> Places:
        """Keep places in the line for requests that come one after another, or raise QueueFull or BadInput and keep
        none. `sizes`: of each, the tokens of its prompt and the most that it may produce."""
        ...

    def give_back(self, places: Places) -> None:
        """Give back the places of requests that did not come."""
        ...

    def add(self, request: Request, now: float, places: Places | None = None) -> None:
        """Accept a request, or raise BadInput, NeverFits, QueueFull or DeadlineMissed and keep nothing.

        It takes one of `places`, so that the line is not full for it.
        """
        ...

    def schedule(self, now: float) -> Batch:
        """Return what the next iteration computes; empty when nothing can run."""
        ...

    def update(self, batch: Batch, sampled: Sampled, now: float) -> list[Progress]:
        """Account for an iteration that ran; returns the requests that got tokens or finished."""
        ...

    def abort(self, request_id: str, reason: FinishReason = FinishReason.ABORT) -> Request | None:
        """End a request wherever it is; None when it is not here (any more)."""
        ...

    def finish(self, request_id: str, reason: FinishReason) -> Request | None:
        """End a request because of something the caller saw, such as a stop string; as `abort`."""
        ...

    def take_finished(self) -> list[Request]:
        """Return the requests that the scheduler itself ended outside `update` (deadlines) since the last call."""
        ...

    def has_work(self) -> bool: ...

    def wake_at(self) -> float | None:
        """When work may become runnable without any call: a time, or None when only a call can make it so."""
        ...

    def load(self) -> Load: ...

    def waiting(self) -> dict[tuple[int, str], Backlog]:
        """Return what waits, by class and tenant."""
        ...

    def check_integrity(self) -> None:
        """Raise AssertionError unless every count agrees with what it counts."""
        ...
