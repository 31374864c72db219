"""What a tokenizer is made of, whichever file it came from, and how the library underneath is asked."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field, replace

import tokenizers
from tokenizers.processors import TemplateProcessing

from weighbridge.errors import BadInput, UnsupportedModel, said
from weighbridge.models.text.chat_template import ChatTemplate


@dataclass(frozen=True, slots=True)
class TokenizerParts:
    """`eos_token_ids` are the ones that the model's files declare.

    `size`: ids of the vocabulary proper, without tokens that were added to it, are below it.
    """

    backend: tokenizers.Tokenizer
    eos_token_ids: tuple[int, ...] = ()
    bos_token_id: int | None = None
    template: ChatTemplate | None = None
    size: int = 0
    special_names: Mapping[str, str] = field(default_factory=dict)  # of tokens, by their role

    def with_template(self, source: str) -> TokenizerParts:
        """Return these with another chat template. Raises BadInput for one that cannot render a chat."""
        try:
            template = ChatTemplate({"default": source}, self.special_names)
            template.render([{"role": "user", "content": "Hello"}])
        except BadInput as error:
            raise BadInput(f"--chat-template: {error}", param="chat_template") from error
        return replace(self, template=template)


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


def wrap_texts(backend: tokenizers.Tokenizer, before: str | None, after: str | None) -> None:
    """Make `backend` put the tokens `before` and `after` around every text that it encodes.

    Raises UnsupportedModel when the vocabulary does not have them.
    """
    tokens = [(name, backend.token_to_id(name)) for name in (before, after) if name is not None]
    missing = [name for name, index in tokens if index is None]
    if missing:
        raise UnsupportedModel(f"the tokenizer adds {missing[0]!r} to each text, but has no such token")
    # As lists, because names of tokens may hold spaces and colons.
    first, last = ([] if before is None else [before]), ([] if after is None else [after])
    backend.post_processor = TemplateProcessing(single=[*first, "$A", *last], special_tokens=tokens)


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
