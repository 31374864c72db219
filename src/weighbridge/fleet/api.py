"""The seams of the fleet: what arrives, what is known of a replica, what was chosen, how a replica is spoken to.

Everything here but `Replica` is plain data for pure code, so that the simulator runs the same policies, queue
and limits under a virtual clock.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Mapping
from dataclasses import dataclass, field
from typing import NamedTuple, Protocol, runtime_checkable

from weighbridge.cost.price import FREE, Price
from weighbridge.cost.step import StepCost
from weighbridge.cost.weight import Weight
from weighbridge.engine.memory.prefix import Digest
from weighbridge.fleet.abilities.ability import NOTHING, Needs
from weighbridge.fleet.abilities.told import Told
from weighbridge.ticket.decisions import Words


@dataclass(frozen=True, slots=True)
class Arrival:
    """One weighed request at the gateway's door.

    `chain` names its full prompt blocks (see `engine.memory.prefix`); empty where no tokenizer is at hand. Times are
    seconds of the caller's clock.
    """

    id: str
    model: str
    weight: Weight
    arrived: float
    tenant: str = "default"
    route: str = ""
    priority: int = 0
    deadline: float | None = None
    chain: tuple[Digest, ...] = ()
    session: str = ""  # requests of one conversation, where the client says so
    needs: Needs = NOTHING  # what not every replica can
    among: frozenset[str] | None = None  # replicas that it may go to, by name; None: any


@dataclass(frozen=True, slots=True)
class Capacity:
    """What a replica can hold, and how fast it is. Known from its own report, or from the configuration.

    `step_cost` is None until the speed is known. Nothing stands in for it: a measured cost and a default are not in
    one unit, however alike they look.
    """

    step_cost: StepCost | None = None
    kv_tokens: int | None = None  # tokens the KV pool holds; None: not known, not limited
    block_size: int = 16
    max_sequences: int = 256  # requests in one batch
    max_batch_tokens: int = 2048  # tokens of one iteration
    max_model_len: int | None = None
    price: Price = FREE


@dataclass(frozen=True, slots=True)
class Report:
    """What a replica last said of itself; `at` is the gateway's clock when the answer came."""

    at: float
    queued_requests: int = 0
    running_requests: int = 0
    queued_tokens: int = 0
    running_tokens: int = 0
    kv_tokens_used: int | None = None
    kv_tokens_total: int | None = None
    draining: bool = False
    step_cost: StepCost | None = None
    max_model_len: int | None = None
    believes_tenants: bool | None = (
        None  # whether it takes our word on whose a request is; None: it does not say
    )
    told: Told | None = None  # what its other pages say; None: they were not asked


class ExpectedFirst(NamedTuple):
    """Predicted seconds to a first token: in all, and `clear` of what holds the whole replica up."""

    first: float
    clear: float


@dataclass(frozen=True, slots=True)
class Choice:
    """Where a request goes and why; `scores` of all candidates (lower is better), for the ticket.

    `unit` says what the scores count ("s", "tokens", "requests"; empty: nothing comparable), and
    `cached_tokens` how much of the prompt the chosen replica is believed to hold: what to credit it with.
    `forecast`: what was predicted for it there, where that was asked.
    """

    replica: str
    why: str | Words
    scores: Mapping[str, float] = field(default_factory=dict)
    unit: str = ""
    cached_tokens: int = 0
    forecast: ExpectedFirst | None = None

    @property
    def reason(self) -> str:
        """Why, in words."""
        return self.why if isinstance(self.why, str) else self.why()


class Randomness(Protocol):
    """What policies draw from: `random.Random(seed)` is one."""

    def random(self) -> float:
        """Uniform in [0, 1)."""
        ...


@dataclass(frozen=True, slots=True)
class Call:
    """One request as it goes to a replica: an OpenAI body, already rewritten for that replica."""

    path: str  # "/v1/chat/completions" or "/v1/completions"
    body: bytes
    headers: Mapping[str, str] = field(default_factory=dict)
    stream: bool = False


class Answer(Protocol):
    """A replica's answer once its status is known. `chunks` may be read once; `close` cancels the request."""

    status: int
    headers: Mapping[str, str]

    def chunks(self) -> AsyncIterator[bytes]:
        """The body as it comes: whole SSE events for a stream, the JSON otherwise."""
        ...

    async def close(self) -> None:
        """Idempotent. The replica notices and frees what the request held."""
        ...


class OnDemand(Protocol):
    """A model that is loaded when somebody asks for it: a request waits here before it looks for a replica."""

    @property
    def is_hopeful(self) -> bool:
        """Whether there is reason to wait for it: it is there, or is loaded once somebody asks."""
        ...

    @property
    def expected_wait_s(self) -> float:
        """Seconds until it should be there, as loads took so far."""
        ...

    @property
    def is_ready(self) -> bool:
        """Whether it is where the configuration wants it: one that is kept is loaded."""
        ...

    async def enter(self, arrival: Arrival, deadline: float | None) -> str:
        """Wait until it is there; return what a ticket says of that, nothing where it was. Raises Refused."""
        ...

    def leave(self, request_id: str, keep_alive: float | None) -> None:
        """A request that entered has ended. `keep_alive`: seconds for which it wants the model to stay. Idempotent."""
        ...


class Replica(Protocol):
    """Anything that answers: an engine here, a local process, a URL, a Ray actor, a simulated replica.

    Raises `ReplicaError` (fleet.replica) when it cannot be reached or breaks off.
    """

    name: str

    async def open(self, call: Call) -> Answer: ...

    async def probe(self) -> Report:
        """Its health and load now; raises ReplicaError when it does not answer in time."""
        ...

    async def close(self) -> None: ...


@runtime_checkable
class OutlivesUs(Protocol):
    """A replica that goes on when it is closed."""

    async def end(self) -> None:
        """Close it, and end what it runs."""
        ...
