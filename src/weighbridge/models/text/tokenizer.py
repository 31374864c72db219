"""Text to token ids and back, with the model's own vocabulary and chat template."""

from __future__ import annotations

import logging
import threading
from collections.abc import Iterable, Mapping, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any

import tokenizers

from weighbridge.errors import BadInput, NeverFits, UnsupportedModel
from weighbridge.models.compute.allocator import give_back
from weighbridge.models.text import gguf_tokenizer, hf_tokenizer
from weighbridge.models.text.block_digests import ROOT
from weighbridge.models.text.chat_template import Message, plain_messages
from weighbridge.models.text.control_tokens import ControlTokens
from weighbridge.models.text.encoding.forked import CPU_SECONDS, ForkedPairs, ForkedTokenizer
from weighbridge.models.text.encoding.library import Encode, TextPairs, is_panic, plain_encoder
from weighbridge.models.text.encoding.steps import is_bounded
from weighbridge.models.text.generic_tools import in_words, is_about_tools
from weighbridge.models.text.template_files import named_template
from weighbridge.models.text.token_text import Detokenizer, TokenBytes, decode
from weighbridge.models.text.tokenizer_parts import TokenizerParts
from weighbridge.models.text.word_tokens import WordTokens

logger = logging.getLogger(__name__)

#: Tokens that end an assistant's turn in common chat formats, whatever the configuration says.
TURN_ENDS = ("<|im_end|>", "<|eot_id|>", "<|eom_id|>", "<|end_of_text|>", "<|endoftext|>")
#: The first text of so many characters is the sign that quick encoding is worth its preparation.
_LONG_TEXT = 2_000
#: More tokens than any model has; what is made for each of them stays small.
MAX_VOCABULARY = 1 << 22
_MAX_WORDS = 300  # characters of what the library says about a file
_PROBE = "Hello, wörld! 12 \n東京"
#: A text of so many characters waits for it: the library takes longer.
_ENDLESS_TEXT = 200_000


class Tokenizer:
    """A vocabulary with its chat template. Ids run from 0 to `vocab_size` - 1.

    `backend` is the `tokenizers.Tokenizer` underneath, for libraries that want one, and must not be changed. Safe
    to share between threads: what is remembered from one call to the next changes no result.
    """

    def __init__(self, parts: TokenizerParts, *, control_tokens_in_content: bool = False) -> None:
        """Raises UnsupportedModel for a vocabulary that is neither byte-level BPE nor SentencePiece.

        `control_tokens_in_content`: messages may forge turns, as the templates' own language allows.
        """
        backend = parts.backend
        # Files saved while training may cut or pad texts; a prompt must never be shortened in silence.
        backend.no_truncation()
        backend.no_padding()
        added = backend.get_added_tokens_decoder()
        self.backend = backend
        #: Texts are encoded by a process of its own, in bounds of time and memory: not beside other work of a loop.
        self.encodes_apart = not is_bounded(backend)
        encoder_of = _forked_encoder if self.encodes_apart else plain_encoder
        self._encode = encoder_of(backend)
        self.size_without_added = parts.size
        size: int = backend.get_vocab_size(with_added_tokens=True)
        self.vocab_size = max([size, parts.size, *(index + 1 for index in added)])
        if self.vocab_size > MAX_VOCABULARY:
            raise UnsupportedModel(
                f"the tokenizer has a token with the id {self.vocab_size - 1}, more than {MAX_VOCABULARY}"
            )
        self.bos_token_id = parts.bos_token_id
        self._special = frozenset(index for index, token in added.items() if token.special)
        turns = (backend.token_to_id(name) for name in TURN_ENDS)
        ends = [*parts.eos_token_ids, *(index for index in turns if index in self._special)]
        # Ids that no token has would never be seen.
        self.eos_token_ids: tuple[int, ...] = tuple(
            dict.fromkeys(index for index in ends if 0 <= index < self.vocab_size)
        )
        self._template = parts.template
        control = self._special.union(self.eos_token_ids)
        names = {token.content: index for index, token in added.items() if token.content and index in control}
        guarded = parts.template is not None and names and not control_tokens_in_content
        self._control = ControlTokens(backend, names, encoder_of) if guarded else None
        self._bytes = TokenBytes(backend)
        self._words: WordTokens | None = None
        self._quickened = False
        self._quickening = threading.Lock()

    def vocabulary(self) -> tokenizers.Tokenizer:
        """Return what has these tokens for libraries that look at their bytes: where texts are encoded apart, without
        the steps that have no bound."""
        if not self.encodes_apart:
            return self.backend
        alone = tokenizers.Tokenizer.from_str(self.backend.to_str())
        alone.normalizer = alone.pre_tokenizer = None
        return alone

    def quicken(self) -> None:
        """Prepare `encode_quickly`, which takes 0.2 s for 49,000 tokens. A long text has it done in the background."""
        with self._quickening:
            if not self._quickened and not self.encodes_apart:
                try:
                    self._words = WordTokens(self.backend)
                except UnsupportedModel as error:
                    logger.info("Texts are encoded without remembering words: %s", error)
                self._quickened = True

    def _quicken_aside(self) -> None:
        self.quicken()
        give_back()  # what reading the vocabulary took

    def encode_quickly(self, text: str, add_special_tokens: bool = True) -> list[int] | None:
        """What `encode` returns where that takes 10 to 100 ns a character; None where it takes 500 or more.

        It is None until `quicken` was called, for SentencePiece, for what is no Unicode and for some rare characters.
        """
        try:
            return None if self._words is None else self._words.encode(text, add_special_tokens)
        except UnicodeError:
            return None

    def weigh_quickly(
        self, text: str, add_special_tokens: bool, block_size: int, parent: bytes = ROOT
    ) -> tuple[int, list[bytes]] | None:
        """The number of tokens and the chain of their blocks' digests behind `parent`, without a list of them; or
        None as above."""
        try:
            return (
                None
                if self._words is None
                else self._words.weigh(text, add_special_tokens, parent, block_size)
            )
        except UnicodeError:
            return None

    def encode(self, text: str, add_special_tokens: bool = True, *, most: int | None = None) -> list[int]:
        """Token ids of `text`. `add_special_tokens` puts a BOS (or EOS) where the model wants one.

        Raises NeverFits, and looks no further, for a text that must have more than `most` tokens.

        The names of special tokens inside `text` become those tokens, unlike in chats. Raises BadInput for text that
        is not Unicode, such as half of a surrogate pair.
        """
        self._check_fits(text, most)
        if len(text) >= _ENDLESS_TEXT:
            self.quicken()
        elif len(text) >= _LONG_TEXT and not self._quickened and not self._quickening.locked():
            threading.Thread(target=self._quicken_aside, name="quicken-tokenizer").start()
        quickly = self.encode_quickly(text, add_special_tokens)
        if quickly is not None:
            return quickly
        return self._encode(text, add_special_tokens)

    @cached_property
    def pairs(self) -> TextPairs:
        """What encodes for models that read texts whole. A second to make for a large vocabulary: ask for it early."""
        return ForkedPairs(self.backend) if self.encodes_apart else TextPairs(self.backend)

    def decode(self, ids: Iterable[int], skip_special_tokens: bool = True) -> str:
        """Return the text of `ids`; bytes that are not UTF-8 become U+FFFD, ids of no token nothing."""
        return decode(ids, Detokenizer(self._bytes, self._special if skip_special_tokens else frozenset()))

    def stream(self, *, continuing: bool = False, shown: frozenset[int] = frozenset()) -> Detokenizer:
        """Return a decoder to push one token after the other into; special tokens give no text but those `shown`.

        SentencePiece puts a space before each text, which decoding takes away again; `continuing` keeps it,
        for tokens that go on behind a prompt.
        """
        return Detokenizer(self._bytes, self._special - shown if shown else self._special, continuing)

    def specials_named(self, names: Iterable[str]) -> frozenset[int]:
        """The ids of the control tokens among these texts."""
        ids = (self.backend.token_to_id(name) for name in names)
        return frozenset(index for index in ids if index in self._special)

    def token_bytes(self, token_id: int) -> bytes:
        """Return the bytes of one token; not always whole characters, empty for ids of no token."""
        return self._bytes[token_id]

    def token_text(self, token_id: int) -> str:
        """One token on its own, as log-probabilities show it; special tokens by their name."""
        return self._bytes[token_id].decode("utf-8", "replace")

    def is_special(self, token_id: int) -> bool:
        """Whether the token is a control token, which has no text of its own."""
        return token_id in self._special

    @property
    def has_chat_template(self) -> bool:
        return self._template is not None

    @property
    def supports_tools(self) -> bool:
        """Whether the chat template reads `tools`."""
        return self._template is not None and self._template.supports_tools

    @property
    def shows_tools(self) -> bool:
        """Whether a chat with tools can be rendered: in the template's own way, or in words."""
        return self._template is not None

    @property
    def template_text(self) -> str:
        """The chat template as it is written; empty where there is none."""
        return "" if self._template is None else self._template.text

    def render_chat(
        self,
        messages: Sequence[Message],
        tools: Sequence[Mapping[str, Any]] | None = None,
        add_generation_prompt: bool = True,
        variables: Mapping[str, Any] | None = None,
    ) -> str:
        """Return the conversation as the model was trained to read it; `variables` are the template's own.

        Raises BadInput when there is no template, or for messages that the template refuses.
        """
        return ControlTokens.unmarked(self._rendered(messages, tools, add_generation_prompt, variables)[0])

    def plain_chat(
        self,
        messages: Sequence[Message],
        tools: Sequence[Mapping[str, Any]] | None = None,
        add_generation_prompt: bool = True,
        variables: Mapping[str, Any] | None = None,
    ) -> str | None:
        """Return the text that `encode` gives the ids of `encode_chat` for; None where it takes more than a text.

        Content that spells control tokens looks in a text as if the template had written them.
        """
        text, spelled = self._rendered(messages, tools, add_generation_prompt, variables)
        return None if spelled else text

    def encode_chat(
        self,
        messages: Sequence[Message],
        tools: Sequence[Mapping[str, Any]] | None = None,
        add_generation_prompt: bool = True,
        variables: Mapping[str, Any] | None = None,
        answer: str = "",
        *,
        most: int | None = None,
    ) -> list[int]:
        """Token ids of a conversation, with an `answer` that has begun behind it. `most` as for `encode`.

        The template writes its own special tokens; what content spells is text, unless it was allowed to be more.
        """
        text, spelled = self._rendered(messages, tools, add_generation_prompt, variables, answer)
        self._check_fits(text, most)
        if spelled and self._control is not None:
            return self._control.encode(text)
        return self.encode(text, add_special_tokens=False)

    def _check_fits(self, text: str, most: int | None) -> None:
        if most is None or len(text) <= most or not self._longest_token:
            return
        fewest = len(text) // self._longest_token
        if fewest > most:
            message = f"the prompt has at least {fewest} tokens, but this model's context is {most} tokens"
            raise NeverFits(f"{message}; shorten the prompt")

    @cached_property
    def _longest_token(self) -> int:
        """Characters that one token may stand for; 0 where there is no telling."""
        added = self.backend.get_added_tokens_decoder().values()
        if not self._bytes.is_byte_level or any(token.lstrip or token.rstrip for token in added):
            return 0
        shrinks = 1 if self.backend.normalizer is None else 4  # composing takes characters together
        return shrinks * max(map(len, self.backend.get_vocab(with_added_tokens=True)), default=0)

    def _rendered(
        self,
        messages: Sequence[Message],
        tools: Sequence[Mapping[str, Any]] | None,
        add_generation_prompt: bool,
        variables: Mapping[str, Any] | None,
        answer: str = "",
    ) -> tuple[str, bool]:
        """Return the text of a conversation, and whether its content spells control tokens: then they are marked."""
        if self._template is None:
            raise BadInput("this model has no chat template; send a plain prompt to /v1/completions instead")
        turns, template = plain_messages(messages), self._template
        if not template.supports_tools and (tools or (is_about_tools(turns) and "tool" not in template.text)):
            turns, tools = in_words(turns, tools, has_system="system" in template.text), None
        given: dict[str, Any] = {
            "messages": turns,
            "tools": tools,
            "variables": variables or {},
        }
        spelled = self._control is not None and self._control.spelled([given, answer])
        if self._control is not None and spelled:
            given = {field: self._control.marked(value) for field, value in given.items()}
            answer = self._control.marked(answer)
        for name in ("messages", "tools", "add_generation_prompt"):
            if name in given["variables"]:
                raise BadInput(
                    f"chat_template_kwargs: {name!r} is a field of its own", param="chat_template_kwargs"
                )
        text = self._template.render(
            given["messages"], given["tools"], add_generation_prompt, **given["variables"]
        )
        return text + answer, spelled


def _forked_encoder(backend: tokenizers.Tokenizer) -> Encode:
    return ForkedTokenizer(backend).encode


def _check_known(index: int, tokenizer: Tokenizer) -> None:
    """Raise UnsupportedModel for a token that is put around texts and that no vocabulary has."""
    if index >= tokenizer.vocab_size:
        raise UnsupportedModel(
            f"the tokenizer puts a token with the id {index} around texts, and has ids up to {tokenizer.vocab_size - 1}"
        )


def load_tokenizer(
    path: Path, *, control_tokens_in_content: bool = False, chat_template: str | None = None
) -> Tokenizer:
    """Return the tokenizer of a model directory or GGUF file. Raises BadInput when there is none that works.

    `chat_template`: the file or name of one to use instead of the model's own.
    """
    source = None if chat_template is None else named_template(chat_template)
    try:
        parts = (
            hf_tokenizer.read_directory(path) if path.is_dir() else gguf_tokenizer.read_gguf_tokenizer(path)
        )
        if source is not None:
            parts = parts.with_template(source)
        tokenizer = Tokenizer(parts, control_tokens_in_content=control_tokens_in_content)
        probed = tokenizer.encode(_PROBE)
        tokenizer.decode(probed)
        _check_known(max(probed, default=0), tokenizer)
        if tokenizer.encodes_apart:
            logger.warning(
                "%s: how its tokenizer cuts texts has no bound of time that is known; they are encoded in a process of "
                "its own, which may take %g s and a little for each character",
                path,
                CPU_SECONDS,
            )
    except BadInput:
        raise
    except BaseException as error:  # the library raises plain Exception, or panics
        if not isinstance(error, Exception) and not is_panic(error):
            raise
        said = str(error).partition("\n")[0][:_MAX_WORDS] or type(error).__name__
        where = path / "tokenizer.json" if path.is_dir() else f"the tokenizer of {path}"
        raise UnsupportedModel(f"{where} cannot be used: {said}") from error
    return tokenizer
