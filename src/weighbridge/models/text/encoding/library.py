"""Token ids of texts, from the `tokenizers` library in this process: what fails in it fails one text."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial

import tokenizers

from weighbridge.errors import BadInput, said


def is_panic(error: BaseException) -> bool:
    """Return whether `error` is a mistake inside the `tokenizers` library, which raises it as no Exception."""
    return type(error).__module__ == "pyo3_runtime"


#: Characters from which the library is asked in the way in which it lets other threads run: 4 ms or more.
_LONG_TEXT = 4_000


@contextmanager
def _encoding() -> Iterator[None]:
    """Raise BadInput for a text that is no Unicode, or makes the library fail."""
    try:
        yield
    except (TypeError, UnicodeError) as error:
        raise BadInput(f"the text is not valid Unicode: {said(error)}") from error
    except BaseException as error:
        if not is_panic(error):
            raise
        raise BadInput(f"the model's tokenizer cannot encode this text: {said(error)}") from error


def encoded(backend: tokenizers.Tokenizer, text: str, add_special_tokens: bool) -> list[int]:
    """Return the ids of `text`. Raises BadInput for what is no Unicode, or makes the library fail."""
    with _encoding():
        if len(text) < _LONG_TEXT:
            found = backend.encode(text, add_special_tokens=add_special_tokens)
        else:  # 2 s a megabyte, in which `encode` would hold the interpreter
            [found] = backend.encode_batch([text], add_special_tokens=add_special_tokens)
    ids: list[int] = found.ids
    return ids


#: Token ids of a text, with or without those that the model wants around it. Raises as `encoded` does.
Encode = Callable[[str, bool], list[int]]


def plain_encoder(backend: tokenizers.Tokenizer) -> Encode:
    """What encodes with a tokenizer whose time for a text is bounded."""
    return partial(encoded, backend)


class TextPairs:
    """Encodes with a vocabulary of its own, to which the names of control tokens are words like others.

    A document that spells the token between two texts would otherwise end the first of them where it likes.
    """

    def __init__(self, backend: tokenizers.Tokenizer) -> None:
        self._backend = tokenizers.Tokenizer.from_str(backend.to_str())
        self._backend.encode_special_tokens = True

    def separator(self) -> int | None:
        """The token behind the first of two texts, where the tokenizer tells their tokens apart."""
        both = self._backend.encode("a", "a")
        if 1 not in both.type_ids or not both.type_ids.index(1):
            return None
        found: int = both.ids[both.type_ids.index(1) - 1]
        token = self._backend.get_added_tokens_decoder().get(found)
        return found if token is not None and token.special else None

    def encode(self, first: str, second: str | None = None, cut: int | None = None) -> list[int]:
        """Token ids, with those that the model wants around and between. Of more than `cut` the last text is cut.

        Raises BadInput for what is no Unicode, and where the first of two leaves nothing of the second.
        """
        texts = [first] if second is None else [first, second]
        with _encoding():
            found = self._backend.encode_batch(texts, add_special_tokens=False)
            if cut is not None:
                added = self._backend.num_special_tokens_to_add(second is not None)
                room = cut - added - sum(len(one.ids) for one in found[:-1])
                if room < 1:
                    raise BadInput(
                        f"nothing is left of the text where it is cut to {cut} tokens with all around it"
                    )
                found[-1].truncate(room)
            ids: list[int] = self._backend.post_process(
                found[0], found[1] if second is not None else None
            ).ids
        return ids
