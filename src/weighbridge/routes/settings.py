"""What an operator can set on a route."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path

from weighbridge.routes.caps import CapSettings
from weighbridge.routes.ledger.allowance import Budgets
from weighbridge.routes.policy import Level, ResidencyPolicy


@dataclass(frozen=True, slots=True)
class Window:
    """How much of an answer is held back: until `tokens` have come, or `seconds` after the first of them.

    None: no such bound. With neither, the whole answer.
    """

    tokens: int | None = None
    seconds: float | None = None


#: What a stream holds back unless told otherwise: enough tokens to judge by, and no longer than a reader waits.
DEFAULT_WINDOW = Window(tokens=24, seconds=1.5)

#: Local answers to one request, at most.
MAX_SAMPLES = 16


@dataclass(frozen=True, slots=True)
class PlaceSettings:
    """One place of a route: a model of the same gateway, and what the route makes of it.

    `model` is the gateway's name for it. A place that is a replica of its own in the file has an anonymous model,
    and then `calls_it` is what that server calls its model.
    """

    name: str
    level: Level
    model: str
    calls_it: str = ""
    url: str = ""  # of a replica of its own
    abilities: frozenset[str] | None = None  # None: everything
    context_tokens: int | None = None  # where the route allows less than the replicas take
    max_tokens: int = 1024  # of an answer, where the client sets no limit

    @property
    def shown_model(self) -> str:
        """The model's name for people."""
        return self.calls_it or self.model

    @property
    def shown(self) -> str:
        """The model and where it is, for people."""
        return f"{self.shown_model} at {self.url}" if self.url else self.shown_model


@dataclass(frozen=True, slots=True)
class CascadeSettings:
    """Judging the local answer. `window` applies to streams; a whole answer is always judged whole.

    `threshold`: confidence below which the cloud answers instead. `race`: the cloud starts at once, and the loser
    is cancelled. `samples`: so many local answers, the first included, are compared where an answer is judged whole.
    """

    enabled: bool = True
    threshold: float = 0.5
    window: Window = DEFAULT_WINDOW
    race: bool = False
    top_logprobs: int = 5
    samples: int = 1
    sample_temperature: float = 0.8


@dataclass(frozen=True, slots=True)
class PrivacySettings:
    """Which detectors look, and how long they may take, in seconds, before the request stays local."""

    ner: bool = False
    deny: tuple[str, ...] = ()
    types: frozenset[str] | None = None  # None: all that the detectors know
    timeout: float = 2.0


@dataclass(frozen=True, slots=True)
class ShadowSettings:
    """A sampled share is also answered by the other side, in the background, and judged."""

    share: float = 0.0
    judge: str = "agreement"  # agreement, or cloud: the cloud model compares
    max_concurrent: int = 2
    keep_texts: bool = False  # with prompts and answers, for `route train`; off: features and verdicts only


@dataclass(frozen=True, slots=True)
class BanditSettings:
    """Thompson sampling over thresholds, a fixed set of arms. `usd_per_quality`: what a right answer is worth."""

    enabled: bool = False
    arms: tuple[float, ...] = (0.5, 0.6, 0.7, 0.8, 0.9, 0.95)
    usd_per_quality: float = 0.01


@dataclass(frozen=True, slots=True)
class RouteSettings:
    """One route: a model name that stands for places, in the order of trust."""

    name: str
    places: tuple[PlaceSettings, ...]
    policy: ResidencyPolicy = field(default_factory=ResidencyPolicy)
    threshold: float | None = None  # pre-router score from which the cloud answers; None: the router file's
    router: Path | None = None  # what `route train` wrote
    score_wait: float = 0.5  # seconds that a prompt waits for the vectors that the router was trained with
    cascade: CascadeSettings = CascadeSettings()
    privacy: PrivacySettings = PrivacySettings()
    caps: CapSettings = field(default_factory=CapSettings)
    shadow: ShadowSettings = ShadowSettings()
    bandit: BanditSettings = BanditSettings()
    cloud_attempts: int = 2
    timeout: float = 120.0  # seconds for a whole answer
    may_store: bool = False  # what stays local or is redacted may be written down where its client wants that

    @property
    def shown_places(self) -> str:
        """Its places and what is there, for people."""
        return ", ".join(f"{place.name} {place.shown}" for place in self.places)


@dataclass(frozen=True, slots=True)
class RoutesSettings:
    """All routes of a file, and what they share."""

    routes: tuple[RouteSettings, ...] = ()
    budgets: Budgets = field(default_factory=Budgets)
    ledger: Path | None = None
    shadow_file: Path | None = None
