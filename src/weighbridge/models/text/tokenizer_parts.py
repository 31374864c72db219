"""What a tokenizer is made of, whichever file it came from."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace

import tokenizers
from tokenizers.processors import TemplateProcessing

from weighbridge.errors import BadInput, UnsupportedModel
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
