"""Looks at a request before it may leave. Whatever goes wrong here means that it stays."""

from __future__ import annotations

import asyncio
import hashlib
import logging
import threading
import time
from collections import Counter, OrderedDict
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import Any, TypeVar

from weighbridge.routes.privacy import walk
from weighbridge.routes.privacy.addresses import join_addresses
from weighbridge.routes.privacy.fields import TextKind
from weighbridge.routes.privacy.hits import DEFAULT_TYPES, Detector, Hit, Interruptible, Tick, merge
from weighbridge.routes.privacy.lastlook import still_there
from weighbridge.routes.privacy.reading import TextReading, readings
from weighbridge.routes.privacy.redact import Vault
from weighbridge.routes.privacy.restoring.chunks import ChunkRestorer
from weighbridge.routes.privacy.seams import seams_of
from weighbridge.routes.privacy.walk import Leaf, Unhidable

log = logging.getLogger("weighbridge.routes")

#: Texts whose hits are remembered: conversations repeat their history with every turn.
REMEMBERED = 4096
#: Bytes of a body from which on a thread looks at it. A shorter one takes tenths of a millisecond.
LONG = 2048

T = TypeVar("T")


class OverBudget(Exception):
    """Looking took longer than it may."""


@dataclass(frozen=True, slots=True)
class Found:
    """A value in a text, by its place in the text as it was written. `read`: as it was read there."""

    start: int
    end: int
    type: str
    detector: str
    value: str
    read: str = ""
    rank: int = 0

    @property
    def hit(self) -> Hit:
        return Hit(self.start, self.end, self.type, self.detector, self.rank)


@dataclass(frozen=True, slots=True)
class Redacted:
    """A body without its secrets, and what puts them back."""

    body: dict[str, Any]
    vault: Vault

    @property
    def summary(self) -> str:
        counts = sorted(self.vault.counts.items())
        return (
            "redacted " + ", ".join(f"{type} {count}" for type, count in counts)
            if counts
            else "nothing to redact"
        )

    def restorer(self) -> ChunkRestorer:
        return ChunkRestorer(self.vault.values)


@dataclass(frozen=True, slots=True)
class Inspection:
    """What was found in a request. `found` None: the detectors failed, so nothing is known.

    `places`: where, in each text that is replaced by its places; `values`: what must be replaced wherever it stands.
    """

    found: frozenset[str] | None
    unreadable: str = ""
    values: Mapping[str, str] = field(default_factory=dict)  # value -> type
    places: Mapping[str, tuple[Found, ...]] = field(default_factory=dict)
    counts: Mapping[str, int] = field(default_factory=dict)

    @classmethod
    def nothing(cls) -> Inspection:
        return cls(frozenset())


class Guard:
    """Runs detectors over bodies, and takes out what they found: in threads of its own but for short ones, within
    `timeout` seconds, or not at all."""

    def __init__(
        self,
        detectors: Sequence[Detector],
        types: frozenset[str] | None = None,
        timeout: float = 2.0,
        threads: int = 2,
    ) -> None:
        self._detectors = tuple(detectors)
        self._look = {one: _interruptible(one) for one in detectors}
        self._are_quick = all(one.is_quick for one in detectors)
        self._types = types or DEFAULT_TYPES
        self._timeout = timeout
        self._threads = ThreadPoolExecutor(threads, "weighbridge-detectors")
        self._known: OrderedDict[bytes, tuple[Found, ...]] = OrderedDict()
        self._lock = threading.Lock()

    async def inspect(self, body: Mapping[str, Any], size: int = LONG) -> Inspection:
        """What the whole body holds. Never raises: a detector that crashes or is late means `found` None.

        `size`: at least its bytes. A short one is looked at here and now, which takes less than asking a thread to.
        """
        return await self._run(lambda tick: self._inspect(body, tick), size) or Inspection(None)

    async def redact(self, inspection: Inspection, body: dict[str, Any], size: int = LONG) -> Redacted | None:
        """The body with every value replaced; None where that cannot be done for certain, or in time.

        Raises Unhidable where a value stands that nothing may stand for.
        """
        if inspection.found is None or inspection.unreadable:
            return None
        return await self._run(lambda tick: _redacted(inspection, body, tick), size)

    def scan(self, text: str, tick: Tick = lambda: None) -> tuple[Found, ...]:
        """Values in one text, in order and without overlap. Raises whatever a detector raises."""
        key = hashlib.blake2b(text.encode("utf-8", "surrogatepass"), digest_size=16).digest()
        with self._lock:
            known = self._known.get(key)
        if known is None:
            known = self._scan(text, self._detectors, tick)
            with self._lock:
                self._known[key] = known
                if len(self._known) > REMEMBERED:
                    self._known.popitem(last=False)
        return known

    def close(self) -> None:
        """Let go of the threads without waiting for a detector that hangs."""
        self._threads.shutdown(wait=False, cancel_futures=True)

    async def _run(self, work: Callable[[Tick], T | None], size: int) -> T | None:
        """Work in a thread; None where it fails or is late. A thread that is late stops at its next `tick`.

        Raises Unhidable where the work does.
        """
        ends = time.monotonic() + self._timeout

        def tick() -> None:
            if time.monotonic() > ends:
                raise OverBudget

        try:
            if size < LONG and self._are_quick:
                return work(tick)
            async with asyncio.timeout(self._timeout):
                return await asyncio.get_running_loop().run_in_executor(self._threads, work, tick)
        except (TimeoutError, OverBudget):
            log.error("looking for values took more than %.1f s; the request stays local", self._timeout)
        except Unhidable:
            raise
        except Exception:
            log.exception("the detectors failed; the request stays local")
        return None

    def _scan(self, text: str, detectors: Sequence[Detector], tick: Tick) -> tuple[Found, ...]:
        hits: list[Hit] = []
        read: dict[tuple[int, int], str] = {}
        for number, reading in enumerate(readings(text, tick)):
            is_spelled = number == 0 or (number == 1 and "\\u" in text)
            for hit in self._hits(reading, [one for one in detectors if one.is_quick or is_spelled], tick):
                start, end = reading.span(hit.start, hit.end)
                if end > start:
                    hits.append(Hit(start, end, hit.type, hit.detector, hit.rank))
                    read[start, end] = reading.text[hit.start : hit.end]
        return tuple(
            Found(
                hit.start,
                hit.end,
                hit.type,
                hit.detector,
                value,
                read.get((hit.start, hit.end), value),
                hit.rank,
            )
            for hit in merge(hits)
            if (value := text[hit.start : hit.end])
        )

    def _hits(self, reading: TextReading, detectors: Sequence[Detector], tick: Tick) -> list[Hit]:
        """What is in one reading, by its places there."""
        hits: list[Hit] = []
        for detector in detectors:
            tick()
            hits += self._look[detector](reading.text, tick)
        return [hit for hit in merge(join_addresses(reading.text, merge(hits))) if hit.type in self._types]

    def _inspect(self, body: Mapping[str, Any], tick: Tick) -> Inspection:
        values: dict[str, str] = {}
        places: dict[str, tuple[Found, ...]] = {}
        counts: Counter[str] = Counter()
        found_in: list[tuple[Leaf, tuple[Found, ...]]] = []
        for leaf in walk.leaves(body):
            tick()
            found = self.scan(leaf.text, tick)
            found_in.append((leaf, found))
            counts.update(one.type for one in found)
            if leaf.opened:
                spans = [(one.start, one.end) for one in found]
                named = [(value, found[number].type) for number, value in walk.values_in(leaf.text, spans)]
            else:
                places[leaf.text] = found
                named = [(value, one.type) for one in found for value in (one.value, one.read)]
            for value, type in named:
                values.setdefault(value, type)
        unreadable = [walk.unreadable_parts(body), self._split(body, found_in, values, tick)]
        return Inspection(
            frozenset(values.values()), "; ".join(filter(None, unreadable)), values, places, counts
        )

    def _split(
        self,
        body: Mapping[str, Any],
        found_in: Sequence[tuple[Leaf, tuple[Found, ...]]],
        values: dict[str, str],
        tick: Tick,
    ) -> str:
        """What is split over texts, if anything is; values that only the text before gives away are added."""
        quick = tuple(one for one in self._detectors if one.is_quick)
        known = {leaf.text: found for leaf, found in found_in}
        groups = [
            (each.texts, self._detectors if each.of_parts else quick, True) for each in walk.siblings(body)
        ]
        texts = [leaf.text for leaf, _ in found_in if not (leaf.opened or leaf.is_key or leaf.is_number)]
        groups.append((texts, quick, False))
        run_together = (
            (seams, detectors, are_siblings)
            for texts, detectors, are_siblings in groups
            for seams in seams_of(texts)
        )
        for seams, detectors, are_siblings in run_together:
            for one in self._scan(seams.text, detectors, tick):
                if seams.is_inside(one.start, one.end):
                    values.setdefault(one.value, one.type)
                elif seams.is_split(one, known, are_siblings=are_siblings):
                    return "a value split over texts"
        return ""


def _interruptible(detector: Detector) -> Callable[[str, Tick], list[Hit]]:
    if isinstance(detector, Interruptible):
        return detector.detect_within
    return lambda text, tick: detector.detect(text)


def _redacted(inspection: Inspection, body: dict[str, Any], tick: Tick) -> Redacted | None:
    """The body without values, after a last look at it by other means."""
    if not inspection.values:
        return Redacted(body, Vault((), {}))
    vault = Vault(walk.strings(body), inspection.values, tick)
    places = inspection.places

    def hide(text: str, kind: TextKind) -> str:
        return vault.hide(text, [one.hit for one in places.get(text, ())], kind)

    made = walk.rewrite(body, hide)
    if not isinstance(made, dict) or still_there([*inspection.values, *vault.values.values()], made, tick):
        return None
    return Redacted(made, vault)
