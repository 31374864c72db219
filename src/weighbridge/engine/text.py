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


class StopStrings:
    """The stop strings of one request, prepared once for all its choices.

    `shown`: the one that ends an output is part of its text. `after`: they are not looked for in so many first tokens.
    """

    def __init__(self, strings: Sequence[str], *, shown: bool = False, after: int = 0) -> None:
        self.patterns = tuple((string, _borders(string)) for string in strings if string)
        self.shown = shown
        self.after = after


def _borders(string: str) -> list[int]:
    """Of each beginning of `string`, the longest shorter end that begins it too (Knuth, Morris and Pratt 1977)."""
    borders, length = [0] * len(string), 0
    for at in range(1, len(string)):
        while length and string[at] != string[length]:
            length = borders[length - 1]
        length += string[at] == string[length]
        borders[at] = length
    return borders


class TextStream:
    """Decodes the tokens of one choice and watches for its stop strings; the first that is complete wins.

    Takes a time linear in the text, whatever the stop strings are and however much of them has come.
    """

    def __init__(self, decoder: TokenDecoder, stop: StopStrings | None = None) -> None:
        self._decoder = decoder
        self._patterns = stop.patterns if stop is not None else ()
        self._shows = stop is not None and stop.shown
        self._free = (
            stop.after if self._patterns and stop is not None else 0
        )  # tokens that nothing is sought in
        self._matched = [0] * len(self._patterns)  # of each, how much of it the text so far ends with
        self._held = ""  # decoded, but may turn out to begin a stop string
        self._ended = False

    def push(self, tokens: Sequence[int]) -> TextDelta:
        """Return the text that `tokens` made safe to show; after a stop string nothing more comes."""
        if self._ended:
            return TextDelta("")
        free = ""
        if self._free:
            free = "".join([self._decoder.push(token) for token in tokens[: self._free]])
            self._free, tokens = max(self._free - len(tokens), 0), tokens[self._free :]
        delta = self._take("".join([self._decoder.push(token) for token in tokens]))
        return delta if not free else TextDelta(free + delta.text, delta.stopped_by)

    def flush(self) -> str:
        """Return what is left at the end: bytes of an unfinished character, and text that began no stop string."""
        if self._ended:
            return ""
        delta = self._take(self._decoder.flush())
        rest, self._held = self._held, ""
        self._ended = True
        return delta.text + rest

    def _take(self, new: str) -> TextDelta:
        if not self._patterns:
            return TextDelta(new)
        text, held = self._held + new, len(self._held)
        # Of those complete at once, the longest; the end counts, as one that began before may never be completed.
        complete = [
            (held + end, -len(pattern[0]), pattern[0])
            for place, pattern in enumerate(self._patterns)
            if (end := self._scan(place, pattern, new)) is not None
        ]
        if complete:
            end, length, stop = min(complete)
            self._ended, self._held = True, ""
            return TextDelta(text[: end if self._shows else end + length], stop)
        shown = len(text) - max(self._matched)
        self._held = text[shown:]
        return TextDelta(text[:shown])

    def _scan(self, place: int, pattern: tuple[str, list[int]], new: str) -> int | None:
        """Return how far into `new` the pattern is complete, or None, with how much of it is there in the end noted."""
        string, borders = pattern
        matched = self._matched[place]
        if not matched and string[0] not in new:
            return None
        for at, character in enumerate(new):
            while matched and character != string[matched]:
                matched = borders[matched - 1]
            matched += character == string[matched]
            if matched == len(string):
                return at + 1
        self._matched[place] = matched
        return None
