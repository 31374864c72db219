"""A request as the scheduler sees it: tokens that exist, tokens that are computed, blocks that hold them.

There is no prefill or decode phase. `num_computed_tokens` catches up with `num_tokens`; chunked prefill,
prefix-cache hits, preemption and speculative decoding are all that one idea (after vLLM v1's scheduler).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import StrEnum
from typing import TYPE_CHECKING

from weighbridge.models.files.config import NO_STATE

if TYPE_CHECKING:
    import numpy as np
    import numpy.typing as npt


#: From this class on a request gets only what nobody else needs: it advances while no request of a better class runs.
SPARE_CLASS = 1000


class FinishReason(StrEnum):
    STOP = "stop"  # end-of-sequence token, stop id or stop string
    LENGTH = "length"  # max_tokens or the end of the context window
    ABORT = "abort"  # the client went away or cancelled
    DEADLINE = "deadline"  # the deadline passed
    ERROR = "error"  # this request alone failed (for example its grammar)
    IMPOSSIBLE = "impossible"  # what it forbids and demands leaves nothing that could come next


class RequestState(StrEnum):
    WAITING = "waiting"
    RUNNING = "running"
    FINISHED = "finished"


@dataclass(frozen=True, slots=True)
class Guide:
    """A constraint on the output: a JSON schema, a regular expression, a list of texts, or a grammar."""

    kind: str  # "json_schema" | "json_object" | "regex" | "choice" | "lark" | "gbnf"
    source: str


@dataclass(frozen=True, slots=True)
class SamplingParams:
    """How the next token is chosen, and when to stop. Defaults are OpenAI's."""

    max_tokens: int
    temperature: float = 1.0  # 0 is greedy
    top_p: float = 1.0
    top_k: int = 0  # 0 is off
    min_p: float = 0.0
    repetition_penalty: float = 1.0
    presence_penalty: float = 0.0
    frequency_penalty: float = 0.0
    logit_bias: Mapping[int, float] = field(default_factory=dict)
    seed: int | None = None
    logprobs: int | None = None  # None: none; k >= 0: the chosen token and the k best
    stop: tuple[str, ...] = ()
    stop_token_ids: frozenset[int] = frozenset()
    ignore_eos: bool = False
    min_tokens: int = 0  # no end-of-sequence or stop before this many output tokens
    guide: Guide | None = None
    shown_tokens: frozenset[int] = frozenset()  # control tokens that have a text nevertheless
    prompt_logprobs: int | None = (
        None  # None: none; k >= 0: each token of the prompt and the k best in its place
    )
    chances_of: tuple[int, ...] = ()  # where nothing is drawn: how likely each of these is behind the prompt
    allowed_tokens: tuple[int, ...] | None = None  # nothing else may come; None: everything may
    bad_words: tuple[tuple[int, ...], ...] = ()  # tokens that may not follow each other so
    shows_stop: bool = False  # the stop string or stop token that ended an output is part of its text

    @property
    def greedy(self) -> bool:
        return self.temperature == 0.0


@dataclass(frozen=True, slots=True)
class TokenLogprob:
    """Log-probability (natural log) of one token and of the best alternatives, best first.

    `rank`: 1 for the likeliest; 0 where nobody asked.
    """

    token: int
    logprob: float
    top: tuple[tuple[int, float], ...] = ()
    rank: int = 0


@dataclass(frozen=True, slots=True)
class NextToken:
    """The distribution of the token that would follow a prompt, at temperature 1. Natural logarithms."""

    entropy: float
    top_logprob: float  # of the likeliest token
    margin: float  # by which that exceeds the second one's


@dataclass(frozen=True, slots=True, eq=False)
class Embedding:
    """The model's state at the last position of a prompt ("last-token pooling"), or what a reader makes of it.

    vector: the hidden state that the output matrix reads, float32 [hidden], scaled to length 1; a reader's vector, or
    its number for each label. A reader has none of what comes next.
    """

    vector: npt.NDArray[np.float32]
    next_token: NextToken | None


@dataclass(frozen=True, slots=True)
class Adapter:
    """An adapter that is served, as requests know it."""

    name: str
    slot: int  # where its weights are
    key: bytes  # of its contents: what is cached of prompts is kept apart by it
    rank: int
    share: float  # of its parameters, by those of the layers that it could add to
    root: str  # its directory's own name


@dataclass(slots=True, eq=False)
class Request:
    """One sequence. The scheduler owns everything below `arrival`; `sampler_state` belongs to the sampler."""

    id: str
    prompt: list[int]
    params: SamplingParams
    arrival: float  # seconds on the engine's clock
    tenant: str = "default"
    priority: int = 0  # lower runs first; speculative requests use the lowest class
    deadline: float | None = None  # absolute seconds on the engine's clock
    fork_of: Request | None = None  # n > 1: share this request's prompt blocks, copy on write
    stop_token_ids: frozenset[int] = frozenset()  # end-of-sequence ids (unless ignored) plus the caller's
    embeds: bool = False  # ends with its prompt's `Embedding`; `params.max_tokens` is 0
    salt: bytes = b""  # cached prefixes are shared with requests of the same salt only
    adapter: Adapter | None = None  # None: the model as it is

    tokens: list[int] = field(default_factory=list)  # prompt, then output
    num_computed_tokens: int = 0  # tokens whose KV is in the pool
    block_table: list[int] = field(default_factory=list)
    state_slot: int = NO_STATE  # where its states are, of a model that keeps some
    state: RequestState = RequestState.WAITING
    finish_reason: FinishReason | None = None
    num_cached_tokens: int = 0  # prompt tokens served from the prefix cache when first admitted
    num_written_tokens: int = 0  # prompt tokens that the prefix cache has from this request
    num_preemptions: int = 0
    scores: list[TokenLogprob] = field(
        default_factory=list
    )  # of the prompt's tokens behind its first, so far
    num_drafted_tokens: int = 0
    num_accepted_tokens: int = 0
    sampler_state: object | None = None

    def __post_init__(self) -> None:
        if not self.tokens:
            self.tokens = list(self.prompt)

    @property
    def num_prompt_tokens(self) -> int:
        return len(self.prompt)

    @property
    def num_tokens(self) -> int:
        return len(self.tokens)

    @property
    def num_output_tokens(self) -> int:
        return len(self.tokens) - len(self.prompt)

    @property
    def ends_with_prompt(self) -> bool:
        """Whether it is over when its prompt is computed: nothing is to follow."""
        return self.params.max_tokens == 0

    @property
    def is_told(self) -> bool:
        """Whether its prompt is asked for what it tells, and not for what could follow."""
        return self.embeds or bool(self.params.chances_of)

    @property
    def is_scoring(self) -> bool:
        """Whether the log-probabilities of its prompt are wanted and not all there: these must be computed here."""
        return self.params.prompt_logprobs is not None and len(self.scores) < len(self.prompt) - 1

    def scored_in(self, start: int, count: int) -> int:
        """Of `count` tokens from `start` on, computed now, how many tell the log-probability of one that follows."""
        return max(min(start + count, len(self.prompt) - 1) - start, 0) if self.is_scoring else 0

    def note_scores(self, start: int, scores: list[TokenLogprob]) -> None:
        """Keep what the tokens from `start` on told; what was computed again replaces itself."""
        self.scores[start : start + len(scores)] = scores

    @property
    def max_total_tokens(self) -> int:
        """Tokens this request holds at most, prompt and output: what admission checks against the pool."""
        return len(self.prompt) + self.params.max_tokens


@dataclass(slots=True)
class Places:
    """What is left of the places that were kept in the line for the requests of one call."""

    tenant: str
    requests: int
    tokens: int
