"""The text of a choice as it comes: tokens decoded, stop strings cut, and nothing shown that may begin one."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol


class TokenDecoder(Protocol):
    """An incremental detokeniser: never emits a broken UTF-8 character."""

    def push(self, token: int, /) -> str: ...
    def flush(self) -> str: ...


@dataclass(frozen=True, slots=True)
class TextDelta:
    """Text that is safe to show, and the stop string that ended it, if one did."""

    text: str
    stopped_by: str | None = None


class TextStream:
    """Decodes the tokens of one choice and watches for its stop strings; the first that is complete wins."""

    def __init__(self, decoder: TokenDecoder, stop: Sequence[str] = ()) -> None:
        self._decoder = decoder
        self._stop = tuple(stop_string for stop_string in stop if stop_string)
        self._longest = max((len(stop_string) for stop_string in self._stop), default=0)
        self._held = ""  # decoded, but may turn out to begin a stop string
        self._ended = False

    def push(self, tokens: Sequence[int]) -> TextDelta:
        """Return the text that `tokens` made safe to show; after a stop string nothing more comes."""
        if self._ended:
            return TextDelta("")
        return self._take("".join(self._decoder.push(token) for token in tokens))

    def flush(self) -> str:
        """Return what is left at the end: bytes of an unfinished character, and text that began no stop string."""
        if self._ended:
            return ""
        delta = self._take(self._decoder.flush())
        rest, self._held = self._held, ""
        self._ended = True
        return delta.text + rest

    def _take(self, text: str) -> TextDelta:
        if not self._stop:
            return TextDelta(text)
        text = self._held + text
        cut, stop = self._earliest(text)
        if stop is not None:
            self._ended, self._held = True, ""
            return TextDelta(text[:cut], stop)
        keep = self._unfinished(text)
        self._held = text[len(text) - keep :]
        return TextDelta(text[: len(text) - keep])

    def _earliest(self, text: str) -> tuple[int, str | None]:
        """Return where the first complete stop string starts, and it; of several complete at once, the longest.

        The end counts: a longer stop string that began before may never be completed.
        """
        complete = [(at + len(stop), at, stop) for stop in self._stop if (at := text.find(stop)) >= 0]
        if not complete:
            return len(text), None
        _, start, first = min(complete)
        return start, first

    def _unfinished(self, text: str) -> int:
        """Length of the longest end of `text` that begins a stop string."""
        for length in range(min(self._longest - 1, len(text)), 0, -1):
            if any(stop.startswith(text[len(text) - length :]) for stop in self._stop):
                return length
        return 0
