"""Text as it streams: cut at the first stop string, and never a character of one shown."""

from __future__ import annotations

from hypothesis import example, given
from hypothesis import strategies as st

from weighbridge.engine.text import StopStrings, TextStream


class Letters:
    """A decoder whose tokens are indices into pieces of text."""

    def __init__(self, pieces: list[str]) -> None:
        self._pieces = pieces

    def push(self, token: int) -> str:
        return self._pieces[token]

    def flush(self) -> str:
        return ""


def cut(text: str, stops: list[str]) -> str:
    """What may be shown of `text`, worked out the slow way."""
    for end in range(1, len(text) + 1):
        complete = [stop for stop in stops if text[:end].endswith(stop)]
        if complete:
            return text[: end - max(map(len, complete))]
    return text


pieces = st.lists(st.text(alphabet="ab", max_size=4), max_size=12)
stops = st.lists(st.text(alphabet="ab", min_size=1, max_size=4), max_size=3)


@given(pieces, stops)
@example(["ab", "a"], ["b", "aba"])
def test_the_text_is_cut_at_the_first_stop(pieces: list[str], stops: list[str]) -> None:
    stream = TextStream(Letters(pieces), StopStrings(stops))
    whole, shown = "".join(pieces), ""
    ended = None
    for token in range(len(pieces)):
        delta = stream.push([token])
        shown += delta.text
        assert cut(whole, stops).startswith(shown)  # nothing is ever shown that must be taken back
        if delta.stopped_by is not None:
            ended = delta.stopped_by
            break
    if ended is None:
        shown += stream.flush()
    assert shown == cut(whole, stops)
    assert (ended is not None) == any(stop in whole for stop in stops)


@given(st.lists(st.text(alphabet="abc", max_size=5), max_size=8))
def test_without_stops_everything_comes_at_once(pieces: list[str]) -> None:
    stream = TextStream(Letters(pieces))
    assert [stream.push([token]).text for token in range(len(pieces))] == pieces


def test_several_tokens_at_once_are_as_good_as_one_by_one() -> None:
    stream = TextStream(Letters(["he", "ll", "o wor", "ld"]), StopStrings(["o w"]))
    delta = stream.push([0, 1, 2, 3])
    assert (delta.text, delta.stopped_by) == ("hell", "o w")
    assert stream.push([0]).text == ""
    assert stream.flush() == ""
