"""What was decided on a request and why, in order: sentences, some of which are put into words only when read."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import overload

#: Says later what is known now. It must hold all that it tells of, since what it is about goes on.
Words = Callable[[], str]


class Decisions(Sequence[str]):
    """A list of sentences. Most tickets are read by nobody, and to write a sentence takes as long as to decide."""

    __slots__ = ("_said",)

    def __init__(self, said: Iterable[str] = ()) -> None:
        self._said: list[str | Words] = list(said)

    def append(self, sentence: str | Words) -> None:
        self._said.append(sentence)

    def extend(self, sentences: Iterable[str | Words]) -> None:
        self._said.extend(sentences)

    def __len__(self) -> int:
        return len(self._said)

    def __iter__(self) -> Iterator[str]:
        return iter(self._told())

    @overload
    def __getitem__(self, at: int) -> str: ...
    @overload
    def __getitem__(self, at: slice) -> list[str]: ...
    def __getitem__(self, at: int | slice) -> str | list[str]:
        return self._told()[at]

    def __repr__(self) -> str:
        return repr(self._told())

    def _told(self) -> list[str]:
        told = [one if isinstance(one, str) else one() for one in self._said]
        self._said[:] = told
        return told
