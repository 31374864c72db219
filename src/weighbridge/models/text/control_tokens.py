"""Control tokens in chats: those that a template writes are tokens, those that content spells are text.

A message that says `<|im_end|>` and opens a turn of its own must not forge one. So before a template runs, every such
name in what the client wrote is broken by a mark. Afterwards an unbroken name can only be the template's: it is given
an alias, the marks go, and the text is encoded by a twin of the tokenizer that knows the aliases alone.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Iterator, Mapping
from itertools import pairwise
from typing import Any

import tokenizers
from tokenizers import AddedToken, Tokenizer

from weighbridge.errors import BadInput
from weighbridge.models.text.encoding.library import Encode, plain_encoder

# Unicode keeps these two from being characters: no text has them but to do mischief.
_MARK = "\ufdd0"  # stands behind the first character of a name in content
_ALIAS = "\ufdd1"  # stands before a name that the template wrote
_MISCHIEF = "\ufffd"
#: Characters that are looked through without a turn for other threads.
_STRIDE = 1 << 15


class ControlTokens:
    """The control tokens of one tokenizer, `names` to ids. Safe to share between threads."""

    def __init__(
        self,
        backend: tokenizers.Tokenizer,
        names: Mapping[str, int],
        encoder_of: Callable[[tokenizers.Tokenizer], Encode] = plain_encoder,
    ) -> None:
        """`encoder_of`: how texts are encoded with a tokenizer."""
        self._ids = frozenset(names.values())
        trie = _alternatives(sorted(names))
        self._begins = tuple(sorted({name[:2] for name in names}))
        self._longest = max(map(len, names))
        self._spelled = re.compile(f"(?={trie})")
        self._written = re.compile(f"(?:{trie})(?!{_MARK})")
        twin, self._id_of = _twin(backend, names)
        self._encode = encoder_of(twin)

    def spelled(self, value: Any) -> bool:
        """Whether a string anywhere in `value` (of JSON's types) has the name of a control token in it."""
        return any(self._in(text) for text in _texts(value))

    def marked(self, value: Any) -> Any:
        """Return a copy of `value` in which those names are broken, for a template to write out."""
        if isinstance(value, str):
            clean = value.replace(_MARK, _MISCHIEF).replace(_ALIAS, _MISCHIEF)
            if not self._in(clean):
                return clean
            starts = [start + 1 for start, _ in self._found(self._spelled, clean)]
            return _MARK.join(_cut(clean, starts))
        if isinstance(value, Mapping):
            return {self.marked(key): self.marked(item) for key, item in value.items()}
        if isinstance(value, list | tuple):
            return [self.marked(item) for item in value]
        return value

    def encode(self, text: str) -> list[int]:
        """Token ids of what a template made of marked values. Raises BadInput where they would be control tokens."""
        starts = [start for start, _ in self._found(self._written, text)]
        aliased = _ALIAS.join(_cut(text, starts)).replace(_MARK, "")
        found = self._encode(aliased, False)
        if not self._ids.isdisjoint(found):
            message = "messages: a control token's name in them cannot be written as text in this vocabulary"
            raise BadInput(message, param="messages")
        return [self._id_of.get(token, token) for token in found]

    @staticmethod
    def unmarked(text: str) -> str:
        """Return what a template made of marked values as people read it."""
        return text.replace(_MARK, "")

    def _in(self, text: str) -> bool:
        if not any(begin in text for begin in self._begins):
            return False
        return next(self._found(self._spelled, text), None) is not None

    def _found(self, pattern: re.Pattern[str], text: str) -> Iterator[tuple[int, int]]:
        """Where matches start and end, one behind the other; other threads run every few milliseconds."""
        at = 0
        while at < len(text):
            end = at + _STRIDE
            match = pattern.search(text, at, end + self._longest + 1)
            if match is None or match.start() >= end:
                at = end
                continue
            yield match.span()
            at = max(match.end(), match.start() + 1)


def _cut(text: str, places: list[int]) -> list[str]:
    return [text[start:end] for start, end in pairwise([0, *places, len(text)])]


def _texts(value: Any) -> Iterable[str]:
    if isinstance(value, str):
        yield value
    elif isinstance(value, Mapping):
        for key, item in value.items():
            yield from _texts(key)
            yield from _texts(item)
    elif isinstance(value, list | tuple):
        for item in value:
            yield from _texts(item)


def _twin(
    backend: tokenizers.Tokenizer, names: Mapping[str, int]
) -> tuple[tokenizers.Tokenizer, dict[int, int]]:
    """Return a tokenizer with the same model that knows aliases for `names`, and the ids that its own stand for."""
    twin = Tokenizer(backend.model)  # shares it: nothing is copied
    for part in ("normalizer", "pre_tokenizer"):
        if getattr(backend, part) is not None:
            setattr(twin, part, getattr(backend, part))
    for _, token in sorted(backend.get_added_tokens_decoder().items()):
        if token.content in names:
            alias = AddedToken(
                _ALIAS + token.content,
                lstrip=token.lstrip,
                rstrip=token.rstrip,
                normalized=False,
                special=True,
            )
            twin.add_special_tokens([alias])
        else:
            twin.add_tokens([token])
    id_of: dict[int, int] = {}
    for index, token in backend.get_added_tokens_decoder().items():
        own = twin.token_to_id(_ALIAS + token.content if token.content in names else token.content)
        if own is not None:
            id_of[own] = index
    return twin, id_of


def _alternatives(names: list[str]) -> str:
    """Return a pattern for any of the sorted `names`, the longest that fits, that looks at each character once."""
    choices: list[str] = []
    while names:
        first = names[0][:1]
        group = [name[1:] for name in names if name[:1] == first]
        names = [name for name in names if name[:1] != first]
        if first:
            rest = _alternatives([name for name in group if name])
            choices.append(re.escape(first) + (f"(?:{rest})" + "?" * ("" in group) if rest else ""))
    return "|".join(choices)
