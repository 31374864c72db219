"""Which models are in memory and which make room, from what each needs, who waits and who is idle. Pure.

    enter                           a request goes in at once, or waits for its model
    leave                           it has ended, or gone away, wherever it was
    step                            what to load and unload now, who goes in, who is refused
    loaded, failed, unloaded, gone  what became of that

Nobody is unloaded with a request inside, and what is loaded, being loaded or not yet given back never needs more
than `memory`. Of the most urgent class, who has waited longest is served first, and displaces models that are idle,
the least recently used first. What a switch costs is the seconds of loading both. A model that was used stays for
`hold` times the cost behind its last request, at most `longest_hold`, so that a pause between two requests is not
taken for the end of them. One that has work keeps its place for `turn` times the cost since it was loaded; then its
door is closed: what is inside ends, what comes waits, and has its own turn later. It is not closed for who is less
urgent than what it has. So one load serves all who came meanwhile, and loading takes a bounded share of the time
whatever comes.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from enum import StrEnum

from weighbridge.errors import DeadlineMissed, Inside, Refused, UnknownModel, wording

#: Bytes a second that a model is taken to be loaded with, and the seconds that any takes, until one was loaded.
_FIRST_RATE, _FIRST_SECONDS = 500e6, 2.0
#: A process that ends within so many seconds of having been loaded has failed to load.
_SHORT_LIFE = 30.0
_NEVER = math.inf


class Presence(StrEnum):
    """Where a model is."""

    UNLOADED = "unloaded"
    LOADING = "loading"
    LOADED = "loaded"
    UNLOADING = "unloading"  # it has no work any more, and has not given its memory back


class NotLoaded(Refused):
    """A request waited for its model for as long as it may, or too many wait already."""

    code = "model_not_loaded"


class LoadFailed(Refused):
    """The model of a request could not be loaded; `retry_after` is when that is tried again."""

    code = "model_load_failed"


@dataclass(frozen=True, slots=True)
class ModelNeeds:
    """A model as far as memory goes. `keep`: it is loaded at start and never displaced. `keep_alive`: seconds without
    a request after which it is unloaded though nobody needs its place; None: never."""

    name: str
    nbytes: int
    keep: bool = False
    keep_alive: float | None = None


@dataclass(frozen=True, slots=True)
class OccupancyRules:
    """Bytes for all models together, and how patient those who wait and those who stay are. Seconds."""

    memory: int
    hold: float = 0.1  # of the cost of a switch: for how long one that was used is not idle yet
    longest_hold: float = 5.0
    turn: float = 1.0  # of the same: for how long one with work stays
    max_waiting: int = 4096
    max_waiting_tokens: int | None = None
    max_wait: float = 600.0
    loads_at_once: int = 2
    first_pause: float = 1.0  # behind a load that failed; twice as long each time
    longest_pause: float = 120.0


@dataclass(frozen=True, slots=True)
class Visit:
    """A request for a model. `since`: when it came; `tokens`: what it weighs; `priority`: lower is more urgent."""

    id: str
    tokens: float
    since: float
    deadline: float | None = None
    priority: int = 0


@dataclass(frozen=True, slots=True)
class Admitted:
    """A request that goes in now, after it waited. `displaced`: who was unloaded for its model."""

    model: str
    id: str
    waited: float
    load_seconds: float
    displaced: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Decided:
    """What is to be done now."""

    loads: list[str] = field(default_factory=list)
    unloads: list[str] = field(default_factory=list)
    admitted: list[Admitted] = field(default_factory=list)
    refused: list[tuple[str, str, Refused]] = field(default_factory=list)  # by model and the request's id


@dataclass(slots=True, eq=False)
class Occupant:
    """One model: where it is, who is inside, who waits, and what is known of loading it."""

    needs: ModelNeeds
    load_s: float  # as it took lately, or is taken to
    presence: Presence = Presence.UNLOADED
    inside: dict[str, Visit] = field(default_factory=dict)
    waiting: dict[str, Visit] = field(default_factory=dict)  # in the order in which they came
    wanted_since: float | None = None  # to be loaded without a request: it is kept, or somebody said so
    closed_for: str | None = (
        None  # whoever gets its place once it is empty; itself: an operator wants it gone
    )
    keep_alive: float | None = None  # as the last request wants it, or the configuration
    began: float = 0.0  # its last load
    loaded_at: float = 0.0
    used_at: float = 0.0  # when its last request ended
    displaced: tuple[str, ...] = ()
    failure: str = ""  # why it is not loaded, where it should be
    failure_id: str = ""  # what that is called in the log, for those who are not told
    failures: int = 0
    retry_at: float = -_NEVER
    loads: int = 0
    unloads: int = 0
    urgency: int = 0  # the most urgent class of what it has, and had since it was last without work
    expires: float = _NEVER  # when the first of those who wait may have waited for too long

    @property
    def name(self) -> str:
        return self.needs.name

    @property
    def is_busy(self) -> bool:
        return bool(self.inside or self.waiting)

    @property
    def outstanding(self) -> float:
        """Tokens inside and in front of it."""
        return sum(one.tokens for one in (*self.inside.values(), *self.waiting.values()))

    def is_failing(self, now: float) -> bool:
        """Whether loading it failed so lately that it is not tried again yet."""
        return self.presence is Presence.UNLOADED and now < self.retry_at

    def wants_since(self) -> float:
        """Since when it should be loaded; for ever: it need not."""
        first = next(iter(self.waiting.values()), None)
        told = _NEVER if self.wanted_since is None else self.wanted_since
        return told if first is None else min(told, first.since)

    def expected_wait(self, now: float) -> float:
        """Seconds until it is there, if nothing stands in its way."""
        if self.presence is Presence.LOADING:
            return max(self.began + self.load_s - now, 0.0)
        return 0.0 if self.presence is Presence.LOADED else self.load_s

    def claim(self) -> tuple[int, float, str]:
        """Its place among those that should be loaded; the least is first."""
        return self.urgency if self.is_busy else 0, self.wants_since(), self.name

    def expires_at(self) -> float:
        """When it is unloaded if nobody asks for it."""
        if self.needs.keep or self.keep_alive is None or self.is_busy:
            return _NEVER
        return self.used_at + self.keep_alive


class Occupancy:
    """The models of one machine. Times are seconds of the caller's clock, which never goes back."""

    def __init__(self, models: Iterable[ModelNeeds], rules: OccupancyRules, now: float = 0.0) -> None:
        """Each model must fit beside those that are kept."""
        self.rules = rules
        self._models = {
            one.name: Occupant(one, _FIRST_SECONDS + one.nbytes / _FIRST_RATE, keep_alive=one.keep_alive)
            for one in models
        }
        for model in self._models.values():
            if model.needs.keep:
                model.wanted_since = now
        self._look_at = now  # when to look again, though nothing happened

    # -- what is there ---------------------------------------------------------------------------------

    @property
    def models(self) -> Sequence[Occupant]:
        return list(self._models.values())

    def model(self, name: str) -> Occupant:
        """Raises UnknownModel."""
        try:
            return self._models[name]
        except KeyError:
            known = ", ".join(self._models)
            raise UnknownModel(
                f"no model {name!r} is loaded on demand here; there are: {known}", param="model"
            ) from None

    @property
    def taken(self) -> int:
        """Bytes that are in use, or may be."""
        return sum(one.needs.nbytes for one in self._models.values() if one.presence is not Presence.UNLOADED)

    @property
    def waiting_tokens(self) -> float:
        return sum(one.tokens for model in self._models.values() for one in model.waiting.values())

    def next_look(self) -> float:
        """When `step` may have something to do though nobody called; for ever: not before somebody does."""
        return self._look_at

    # -- requests --------------------------------------------------------------------------------------

    def enter(self, name: str, visit: Visit, now: float) -> bool:
        """Whether a request goes in at once; else it waits until `step` admits or refuses it. Raises Refused.

        One that is inside already has its place as long as its model is there, also behind a closed door.
        """
        model = self._models[name]
        model.urgency = min(model.urgency, visit.priority) if model.is_busy else visit.priority
        was_inside = model.inside.pop(visit.id, None) is not None
        is_open = was_inside or (model.closed_for is None and not model.waiting)
        if model.presence is Presence.LOADED and is_open:
            model.inside[visit.id] = visit
            return True
        if model.is_failing(now):
            raise self._load_failed(model, now)
        self._check_line(model, visit, now)
        model.waiting[visit.id] = visit
        model.expires = min(model.expires, self._latest(visit))
        return False

    def leave(self, name: str, request_id: str, now: float) -> None:
        """A request has ended, or does not want to wait any longer. Idempotent."""
        model = self._models[name]
        model.waiting.pop(request_id, None)
        if model.inside.pop(request_id, None) is not None:
            model.used_at = now

    def stay(self, name: str, seconds: float | None) -> None:
        """Unload a model after so many seconds without a request from now on; None: as it is configured."""
        model = self._models[name]
        model.keep_alive = model.needs.keep_alive if seconds is None else seconds

    def want(self, name: str, now: float) -> None:
        """Load a model though nobody asks it anything. Raises Refused where that failed a moment ago."""
        model = self.model(name)
        if model.is_failing(now):
            raise self._load_failed(model, now)
        if model.closed_for == name:
            model.closed_for = None
        if model.presence in (Presence.UNLOADED, Presence.UNLOADING):
            model.wanted_since = now

    def unwant(self, name: str) -> None:
        """Unload a model as soon as what is inside has ended. Who waits for it, or asks later, has it loaded again."""
        model = self.model(name)
        model.wanted_since = None
        if model.presence in (Presence.LOADED, Presence.LOADING):
            model.closed_for = name

    # -- what became of it -----------------------------------------------------------------------------

    def loaded(self, name: str, now: float) -> None:
        """A load is done; who waits goes in with the next step."""
        model = self._models[name]
        model.presence, model.wanted_since = Presence.LOADED, None
        took = now - model.began
        model.load_s = took if model.loads == 0 else 0.5 * (model.load_s + took)
        model.loads += 1
        model.loaded_at = model.used_at = now
        model.failure, model.failure_id, model.failures, model.retry_at = "", "", 0, -_NEVER

    def failed(self, name: str, why: str, now: float, failure_id: str = "") -> None:
        """A load came to nothing, and holds no memory; it is tried again after a pause, when somebody asks.

        `why` is in the words of its process, for who runs the server; others are told `failure_id`.
        """
        model = self._models[name]
        self._empty(model)
        model.failure, model.failure_id = why, failure_id
        model.failures += 1
        pause = self.rules.first_pause * 2 ** min(model.failures - 1, 16)
        model.retry_at = now + min(pause, self.rules.longest_pause)
        model.wanted_since = now if model.needs.keep else None

    def unloaded(self, name: str) -> None:
        """A model has given its memory back."""
        self._empty(self._models[name])

    def gone(self, name: str, why: str, now: float, failure_id: str = "") -> None:
        """A model that was loaded is there no more. What was inside may `enter` again. `failure_id` as for `failed`."""
        model = self._models[name]
        if now - model.loaded_at < _SHORT_LIFE:
            self.failed(name, why, now, failure_id)
        else:
            self._empty(model)
            model.failure, model.failure_id = why, failure_id
            # Those inside may be in line for its replicas, and ask for it no more.
            model.wanted_since = now if model.needs.keep or model.inside else None

    def _empty(self, model: Occupant) -> None:
        model.presence, model.closed_for, model.displaced = Presence.UNLOADED, None, ()
        model.keep_alive = model.needs.keep_alive

    # -- what to do ------------------------------------------------------------------------------------

    def step(self, now: float) -> Decided:
        """Decide. What is to be loaded and unloaded counts as begun."""
        step = Decided()
        self._look_at = _NEVER
        for model in self._models.values():
            self._give_up(model, now, step)
        for model in self._models.values():
            if model.presence is Presence.UNLOADED and model.wants_since() == _NEVER:
                model.displaced = ()  # whoever wanted it is gone
            if model.closed_for is not None and not self._is_closed_rightly(model):
                model.closed_for = None
            self._let_in(model, now, step)
        self._serve_claims(now, step)
        for model in self._models.values():
            self._clear(model, now, step)
        return step

    def _give_up(self, model: Occupant, now: float, step: Decided) -> None:
        """Refuse those who waited for too long, or for a model that cannot be loaded."""
        failing = model.is_failing(now)
        if not model.waiting or (not failing and now < model.expires):
            self._look_at = min(self._look_at, model.expires if model.waiting else _NEVER)
            return
        model.expires = _NEVER
        for one in list(model.waiting.values()):
            if failing:
                error: Refused = self._load_failed(model, now)
            elif now < (latest := self._latest(one)):
                model.expires = min(model.expires, latest)
                continue
            elif one.deadline is not None and now >= one.deadline:
                error = DeadlineMissed(
                    f"the deadline passed while {model.name!r} was {self._why_not(model)}: {now - one.since:.1f} s"
                )
            else:
                error = NotLoaded(
                    f"{model.name!r} was {self._why_not(model)} for {now - one.since:.0f} s, longer than a request "
                    "waits; try again later",
                    retry_after=max(model.load_s, 1.0),
                )
            del model.waiting[one.id]
            step.refused.append((model.name, one.id, error))
        self._look_at = min(self._look_at, model.expires)

    def _latest(self, visit: Visit) -> float:
        """Until when a request may wait."""
        return min(visit.since + self.rules.max_wait, _NEVER if visit.deadline is None else visit.deadline)

    def _why_not(self, model: Occupant) -> str:
        if model.presence is Presence.LOADING:
            return "being loaded"
        if model.presence is Presence.LOADED:
            return f"about to make room for {model.closed_for!r}"
        busy = [one.name for one in self._models.values() if one.inside]
        return f"not loaded, as memory is taken by {', '.join(busy)}" if busy else "not loaded"

    def _is_closed_rightly(self, model: Occupant) -> bool:
        """Whether somebody still wants its place. An operator's word holds until it is gone."""
        if model.closed_for == model.name:
            return True
        claimant = self._models[str(model.closed_for)]
        return claimant.presence is Presence.UNLOADED and claimant.wants_since() < _NEVER

    def _let_in(self, model: Occupant, now: float, step: Decided) -> None:
        """Admit those who wait for a model that is there. Who waited while it was loaded goes in though its door was
        closed meanwhile."""
        while model.waiting and model.presence is Presence.LOADED:
            one = next(iter(model.waiting.values()))
            if model.closed_for is not None and one.since > model.loaded_at:
                return
            del model.waiting[one.id]
            model.inside[one.id] = one
            took = model.loaded_at - model.began
            step.admitted.append(Admitted(model.name, one.id, now - one.since, took, model.displaced))

    def _serve_claims(self, now: float, step: Decided) -> None:
        """Load those that are wanted, in their order, and make room for the first that has none."""
        claims = [
            one
            for one in self._models.values()
            if one.presence is Presence.UNLOADED and one.wants_since() < _NEVER
        ]
        free = self.rules.memory - self.taken
        coming = sum(one.needs.nbytes for one in self._models.values() if self._is_leaving(one))
        loading = sum(one.presence is Presence.LOADING for one in self._models.values())
        is_stuck = False  # somebody waits for room: who came later takes none that it could need
        for claimant in sorted(claims, key=Occupant.claim):
            if now < claimant.retry_at:
                self._look_at = min(self._look_at, claimant.retry_at)
                continue
            if loading >= self.rules.loads_at_once:
                return
            need = claimant.needs.nbytes
            if need <= free:
                self._begin(claimant, now, step)
                free, loading = free - need, loading + 1
                continue
            if is_stuck:
                continue
            if need > free + coming:
                victims = self._victims(claimant, need - free - coming, now)
                if victims is None:
                    is_stuck = True
                    room = free + coming + sum(one.needs.nbytes for one in self._displaceable()) - need
                    free = max(min(free, room), 0)
                    continue
                for one in victims:
                    self._displace(one, claimant, step)
                coming += sum(one.needs.nbytes for one in victims)
            free, coming = free - max(need - coming, 0), max(coming - need, 0)

    def _is_leaving(self, model: Occupant) -> bool:
        return model.presence is Presence.UNLOADING or (
            model.presence is Presence.LOADED and model.closed_for is not None
        )

    def _displaceable(self) -> list[Occupant]:
        """Models that could make room, now or when their turn is over."""
        return [
            one
            for one in self._models.values()
            if one.presence is Presence.LOADED and one.closed_for is None and not one.needs.keep
        ]

    def _victims(self, claimant: Occupant, missing: int, now: float) -> list[Occupant] | None:
        """Models that make room for `missing` bytes now; None: there are not enough of them yet."""
        ready: list[Occupant] = []
        for one in self._displaceable():
            if one.is_busy and claimant.is_busy and claimant.urgency > one.urgency:
                continue
            at = self._may_go_at(one, claimant)
            if at <= now:
                ready.append(one)
            else:
                self._look_at = min(self._look_at, at)
        ready.sort(key=lambda one: (one.is_busy, one.outstanding if one.is_busy else one.used_at, one.name))
        chosen: list[Occupant] = []
        for one in ready:
            chosen.append(one)
            missing -= one.needs.nbytes
            if missing <= 0:
                break
        if missing > 0:
            return None
        for one in chosen[:-1]:  # whom the last one made needless
            if one.needs.nbytes <= -missing:
                missing += one.needs.nbytes
                chosen.remove(one)
        return chosen

    def _may_go_at(self, model: Occupant, claimant: Occupant) -> float:
        """When a model may be displaced for another, if nothing happens until then."""
        rules, cost = self.rules, claimant.load_s + model.load_s
        turn_over = model.loaded_at + rules.turn * cost
        idle = model.used_at + min(rules.hold * cost, rules.longest_hold)
        return turn_over if model.is_busy else min(idle, turn_over)

    def _begin(self, model: Occupant, now: float, step: Decided) -> None:
        model.presence, model.began = Presence.LOADING, now
        step.loads.append(model.name)

    def _displace(self, model: Occupant, claimant: Occupant, step: Decided) -> None:
        model.closed_for = claimant.name
        claimant.displaced = (*(name for name in claimant.displaced if name != model.name), model.name)
        if not model.inside:
            self._unload(model, step)

    def _clear(self, model: Occupant, now: float, step: Decided) -> None:
        """Unload a model that nobody needs any more, or whose place somebody waits for, once it is empty."""
        if model.presence is not Presence.LOADED or model.inside:
            return
        if model.closed_for is not None or now >= model.expires_at():
            self._unload(model, step)
        else:
            self._look_at = min(self._look_at, model.expires_at())

    def _unload(self, model: Occupant, step: Decided) -> None:
        model.presence = Presence.UNLOADING
        model.unloads += 1
        step.unloads.append(model.name)

    # -- refusals --------------------------------------------------------------------------------------

    def _load_failed(self, model: Occupant, now: float) -> LoadFailed:
        pause = max(model.retry_at - now, 1.0)
        known = f"; who runs this server sees why, as failure {model.failure_id}" if model.failure_id else ""
        why = Inside(f": {model.failure}", known)
        words = wording("{!r} could not be loaded{}; it is tried again in {:.0f} s", model.name, why, pause)
        return LoadFailed(words, retry_after=pause)

    def _check_line(self, model: Occupant, visit: Visit, now: float) -> None:
        """Raise NotLoaded where too many wait already."""
        rules, count = self.rules, sum(len(one.waiting) for one in self._models.values())
        limit = rules.max_waiting_tokens  # where there is one, all who wait are added up
        if count < rules.max_waiting and (limit is None or self.waiting_tokens + visit.tokens <= limit):
            return
        raise NotLoaded(
            f"{model.name!r} is {self._why_not(model)}, and {count} requests wait for models already; try again later",
            retry_after=max(model.load_s, 1.0),
        )

    def check_integrity(self) -> None:
        """Raise AssertionError unless memory is kept to, and nobody is inside a model that is not there."""
        if self.taken > self.rules.memory:
            raise AssertionError(f"{self.taken} bytes are taken of {self.rules.memory}")
        for one in self._models.values():
            if one.presence is Presence.UNLOADING and one.inside:
                raise AssertionError(f"{one.name} is unloaded with work in it")
            if one.inside.keys() & one.waiting.keys():
                raise AssertionError(f"a request waits for {one.name} and is inside")
