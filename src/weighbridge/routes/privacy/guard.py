"""Looks at a request before it may leave. Whatever goes wrong here means that it stays."""

from __future__ import annotations

import asyncio
import hashlib
import logging
import re
import threading
from collections import Counter, OrderedDict
from collections.abc import Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import Any

from weighbridge.routes.privacy import walk
from weighbridge.routes.privacy.hits import DEFAULT_TYPES, Detector, Hit, join_addresses, merge, normalise
from weighbridge.routes.privacy.redact import ChunkRestorer, Vault

log = logging.getLogger("weighbridge.routes")

#: Bodies of up to so many bytes are looked into at once where all detectors are quick: a thread of their own takes
#: longer to wake than they take to look, and regular expressions hold the interpreter there as well as here.
SMALL = 4000
#: Texts whose hits are remembered: conversations repeat their history with every turn.
REMEMBERED = 4096


@dataclass(frozen=True, slots=True)
class Found:
    """A value in a text, by its place in the text as it was given."""

    start: int
    end: int
    type: str
    detector: str
    value: str


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
    """What was found in a request. `found` None: the detectors failed, so nothing is known."""

    found: frozenset[str] | None
    unreadable: str = ""
    values: tuple[tuple[str, str], ...] = ()  # value, type
    counts: Mapping[str, int] = field(default_factory=dict)

    @classmethod
    def nothing(cls) -> Inspection:
        return cls(frozenset())

    def redact(self, body: dict[str, Any]) -> Redacted | None:
        """The body with every value replaced; None where that cannot be done for certain."""
        if self.found is None or self.unreadable:
            return None
        vault = Vault(walk.strings(body))
        for value, type in self.values:
            vault.add(value, type)
        redacted = vault.redact(body)
        if not isinstance(redacted, dict) or vault.leaks(_as_seen(redacted)):
            return None
        return Redacted(redacted, vault)


def _as_seen(body: dict[str, Any]) -> Iterable[str]:
    """All texts, as written and as a reader sees them."""
    for text in walk.strings(body):
        yield text
        plain = normalise(text).text
        if plain != text:
            yield plain
    yield from walk.joined_parts(body)


def _pieces(value: str, text: str) -> list[str]:
    """A value; one that reaches over JSON's punctuation as its parts, so that the JSON stays whole."""
    if '"' not in value or not walk.is_json(text):
        return [value]
    return [part for part in re.split(r'[\s,:{}\[\]]*"[\s,:{}\[\]]*', value) if len(part) > 1]


class Guard:
    """Runs detectors over bodies: in a thread of its own, within `timeout` seconds, or not at all."""

    def __init__(
        self,
        detectors: Sequence[Detector],
        types: frozenset[str] | None = None,
        timeout: float = 2.0,
        threads: int = 2,
    ) -> None:
        self._detectors = tuple(detectors)
        self._types = types or DEFAULT_TYPES
        self._timeout = timeout
        self._threads = ThreadPoolExecutor(threads, "weighbridge-detectors")
        self._known: OrderedDict[bytes, tuple[Found, ...]] = OrderedDict()
        self._lock = threading.Lock()
        self._quick = all(detector.is_quick for detector in detectors)

    async def inspect(self, body: Mapping[str, Any], size: int) -> Inspection:
        """What the whole body holds, of which `size` bytes are text. Never raises: a detector that crashes or is late
        means `found` None."""
        loop = asyncio.get_running_loop()
        try:
            if size <= SMALL and self._quick:
                return self._inspect(body)
            async with asyncio.timeout(self._timeout):
                return await loop.run_in_executor(self._threads, self._inspect, body)
        except TimeoutError:
            log.error("the detectors took more than %.1f s; the request stays local", self._timeout)
        except Exception:
            log.exception("the detectors failed; the request stays local")
        return Inspection(None)

    def scan(self, text: str) -> tuple[Found, ...]:
        """Values in one text, in order and without overlap. Raises whatever a detector raises."""
        key = hashlib.blake2b(text.encode("utf-8", "surrogatepass"), digest_size=16).digest()
        with self._lock:
            known = self._known.get(key)
        if known is None:
            known = self._scan(text)
            with self._lock:
                self._known[key] = known
                if len(self._known) > REMEMBERED:
                    self._known.popitem(last=False)
        return known

    def close(self) -> None:
        """Let go of the threads without waiting for a detector that hangs."""
        self._threads.shutdown(wait=False, cancel_futures=True)

    def _scan(self, text: str) -> tuple[Found, ...]:
        normal = normalise(text)
        hits: list[Hit] = []
        for detector in self._detectors:
            hits += detector.detect(normal.text)
        joined = merge(join_addresses(normal.text, merge(hits)))
        found = []
        for hit in joined:
            start, end = normal.span(hit.start, hit.end)
            if hit.type in self._types and end > start:
                found.append(Found(start, end, hit.type, hit.detector, text[start:end]))
        return tuple(found)

    def _inspect(self, body: Mapping[str, Any]) -> Inspection:
        values: dict[str, str] = {}
        counts: Counter[str] = Counter()
        for text in walk.strings(body):
            for one in self.scan(text):
                counts[one.type] += 1
                for value in _pieces(one.value, text):
                    values.setdefault(value, one.type)
        unreadable = [walk.unreadable_parts(body)]
        joined = walk.joined_parts(body)
        if any(one.value not in values for text in joined for one in self.scan(text)):
            unreadable.append("a value split over the parts of a message")
        return Inspection(
            frozenset(values.values()), "; ".join(filter(None, unreadable)), tuple(values.items()), counts
        )
