"""What the floors above may ask of an engine: `submit` a generation, read its `Stream`, see the `Load`."""

from __future__ import annotations

from collections.abc import AsyncIterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Protocol

from weighbridge.cost.usage import Usage
from weighbridge.engine.request import Adapter, Embedding, FinishReason, Places, SamplingParams, TokenLogprob
from weighbridge.models.readers.form import Form
from weighbridge.models.sampling_defaults import SamplingDefaults
from weighbridge.ticket.record import Ticket


@dataclass(frozen=True, slots=True)
class Generation:
    """One call: a tokenised prompt, `choices` continuations of it, and how they are to be treated.

    With `max_tokens` 0 it ends when the prompt is computed; with `embeds` too, and with its embedding.
    """

    prompt: list[int]
    params: SamplingParams
    choices: int = 1
    tenant: str = "default"
    priority: int = 0
    deadline_ms: float | None = None  # from arrival to the last token
    speculative: bool = False  # lowest priority, preempted first
    ticket_id: str | None = None
    prompt_hash: str = ""  # of the prompt as its client wrote it; empty: that of its tokens
    embeds: bool = False
    continues: bool = False  # its text goes on where the prompt's stopped, with a space if that is what comes
    cache_salt: str = ""  # cached prefixes are shared with generations of the same salt only
    adapter: str = ""  # by its name; empty: the model as it is


@dataclass(frozen=True, slots=True)
class Delta:
    """New output of one choice. `text` never holds part of a stop string; `finish` is set on the last one."""

    index: int
    text: str
    tokens: list[int] = field(default_factory=list)
    logprobs: list[TokenLogprob] | None = None
    finish: FinishReason | None = None
    error: str | None = None
    stopped_by: str | int | None = None  # the stop string or stop id that ended it
    embedding: Embedding | None = None
    chances: list[float] | None = (
        None  # how likely the tokens of `chances_of` are behind the prompt, logarithms
    )
    prompt_logprobs: list[TokenLogprob] | None = (
        None  # of the prompt's tokens behind the first, with its first delta
    )


@dataclass(frozen=True, slots=True)
class Load:
    """A replica's state, as `/v1/load` reports it. Token counts are work still to be computed."""

    queued_requests: int
    running_requests: int
    queued_tokens: int
    running_tokens: int
    kv_blocks_total: int
    kv_blocks_used: int  # referenced by a running request
    kv_blocks_cached: int  # unreferenced, kept for prefix hits, evictable
    kv_blocks_free: int
    block_size: int
    max_model_len: int
    draining: bool
    step_cost: dict[str, float]
    kv_dtype: str = ""  # of keys and values in the cache; empty: nothing computes here
    kv_bytes_per_token: int = 0


@dataclass(frozen=True, slots=True)
class EngineStep:
    """One iteration, as it was computed. `tokens`: proposed ones and paddings included."""

    sequences: int
    tokens: int
    seconds: float
    prompts: int  # sequences of which a part of the prompt was computed
    prompt_tokens: int
    produced: int  # output tokens that requests got

    @property
    def decodes(self) -> int:
        """Sequences that got their next token."""
        return self.sequences - self.prompts


@dataclass(frozen=True, slots=True)
class Turn:
    """What a thread is at: which one it is, and since when (seconds of the monotonic clock)."""

    thread: int
    began: float


class Stream(Protocol):
    """The output of one generation. Iterate to the end, or `close()` to cancel and free its blocks."""

    ticket: Ticket

    def __aiter__(self) -> AsyncIterator[list[Delta]]:
        """Yield the deltas of each iteration as they come; ends after every choice finished."""
        ...

    def close(self) -> None:
        """Cancel what still runs. Idempotent; removed from the batch within one iteration."""
        ...

    @property
    def usage(self) -> Usage: ...


class Engine(Protocol):
    """An engine behind the HTTP server. Methods are called on the event loop and never block it."""

    @property
    def model_name(self) -> str: ...

    @property
    def max_model_len(self) -> int: ...

    @property
    def sampling_defaults(self) -> SamplingDefaults:
        """What the model's files recommend where a request says nothing."""
        ...

    @property
    def hidden_size(self) -> int | None:
        """Numbers in an embedding; None: nothing here has hidden states (a simulated model)."""
        ...

    @property
    def reads(self) -> Form | None:
        """What becomes of a text at a model that writes none; None: it writes."""
        ...

    def adapters(self) -> Sequence[Adapter]:
        """The adapters that can be asked for now."""
        ...

    async def load_adapter(self, name: str, path: str) -> Adapter:
        """Serve an adapter from now on. Raises BadInput for what is none, or not allowed."""
        ...

    async def unload_adapter(self, name: str, timeout: float) -> None:
        """Let an adapter go once nobody uses it. Raises BadInput when `timeout` seconds were not enough."""
        ...

    def keep_places(self, tenant: str, generations: Sequence[Generation]) -> Places:
        """Keep places in the line for the generations of one call, which are submitted one after another: for all of
        them, or raise `Refused` or BadInput."""
        ...

    def give_back(self, places: Places) -> None:
        """Give back what is left of them."""
        ...

    def submit(self, generation: Generation, places: Places | None = None) -> Stream:
        """Accept a generation, or raise `Refused` (NeverFits, QueueFull, Draining, DeadlineMissed) or UnknownModel for
        an adapter that is not served.

        One for which a place is kept is not refused because the line is full.
        """
        ...

    def load(self) -> Load: ...

    def waiting(self) -> Mapping[tuple[int, str], tuple[int, int]]:
        """What waits, by class and tenant: requests, and the tokens still to be computed for them."""
        ...

    def turn(self) -> Turn | None:
        """The iteration that the engine's thread is at; None while it waits for work."""
        ...

    async def drain(self, timeout: float) -> bool:
        """Refuse new work, finish what was accepted; False when `timeout` seconds were not enough."""
        ...
