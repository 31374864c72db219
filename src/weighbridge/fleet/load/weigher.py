"""The scales at the door: prompt tokens by the model's own tokenizer, or from bytes where there is none."""

from __future__ import annotations

import asyncio
from collections import OrderedDict
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from hashlib import blake2b
from typing import Any, Protocol

import msgspec

from weighbridge.cost.length import LengthCurve, OutputLengths
from weighbridge.cost.mean import Mean
from weighbridge.cost.weight import OutputEstimate, Weight
from weighbridge.engine.memory.prefix import Digest
from weighbridge.errors import BadInput, NeverFits
from weighbridge.fleet.abilities.ability import may_have
from weighbridge.fleet.abilities.images import image_tokens
from weighbridge.models.text.block_digests import ROOT, block_digests, root
from weighbridge.wire.ask import Ask
from weighbridge.wire.body import LONG_BODY, apart, plain
from weighbridge.wire.protocols import SILENT, scores
from weighbridge.wire.protocols.openai import Tool

#: Prompts of more bytes are tokenised in a thread, so that streams flow on. A thread costs 0.1 ms, as much as
#: tokenising 200 bytes; 4,000 bytes take 1 to 2 ms, which no other stream should have to wait for.
LONG_PROMPT = 4_000
#: The same where the tokenizer is quick: 32,000 bytes take 0.3 to 1 ms.
LONG_QUICK_PROMPT = 32_000
#: Chats of more messages are rendered in a thread too: a template takes 10 to 20 us for each.
MANY_MESSAGES = 64
#: Long prompts that are tokenised at one time; more are estimated from their bytes. Bounds what a burst of long
#: new prompts can add to everybody's latency.
MAX_TOKENISING = 4
#: What a part that is no text and no picture (a sound, a file) is taken to weigh, in tokens, where nobody can count it.
PART_TOKENS = 1024
#: What is in every chat with a picture.
PICTURE = b"image_url"
#: What pictures weigh, of what their formula says, at least and at most, whatever usage says.
LEAST_PICTURE, MOST_PICTURE = 1 / 16, 16.0
#: Bytes of a prompt per token before any usage came back: about right for English under any BPE.
FIRST_RATIO = 4.0
#: Bytes of a prompt per token, at least and at most, whatever usage says.
LEAST_RATIO, MOST_RATIO = 0.5, 16.0
#: Bytes of a prompt that tells of the ratio; of shorter ones the template makes most of the tokens.
TELLING_BYTES = 256
#: Memory for what was counted of prompts; and what one of them takes, without its chain and for each digest in it.
REMEMBERED_BYTES, HELD_BYTES, DIGEST_BYTES = 32 << 20, 320, 73
#: Bytes that stand for a token in the chain of a prompt that cannot be tokenised. Fixed, unlike the ratio,
#: because equal prompts must give equal chains.
CHAIN_BYTES = 4


#: The fields of a body that decide how many tokens its prompt has.
_WEIGHED = (
    "messages",
    "prompt",
    "input",
    "questions",
    "tools",
    "tool_choice",
    "chat_template_kwargs",
    "add_generation_prompt",
    "continue_final_message",
    *("query", "queries", "documents", "text_1", "text_2"),
)
_MARKED = tuple((name, name.encode() + b"\0") for name in _WEIGHED)


#: Made here, since threads that learn a type at once crash the process.
_read_tools = msgspec.json.Decoder(list[Tool] | None).decode

#: What tokenizers and templates say of prompts that they cannot take.
_REFUSED = (BadInput, NeverFits, msgspec.MsgspecError, TypeError, ValueError, KeyError, RecursionError)


class Counter(Protocol):
    """What the scales need of a tokenizer; `models.text.tokenizer.Tokenizer` says what each does."""

    def quicken(self) -> None: ...
    def encode(self, text: str, add_special_tokens: bool = True, *, most: int | None = None) -> list[int]: ...
    def weigh_quickly(
        self, text: str, add_special_tokens: bool, block_size: int, parent: Digest = ...
    ) -> tuple[int, list[Digest]] | None: ...
    def plain_chat(
        self,
        messages: Sequence[Any],
        tools: Sequence[Any] | None = None,
        add_generation_prompt: bool = True,
        variables: Mapping[str, Any] | None = None,
    ) -> str | None: ...
    def encode_chat(
        self,
        messages: Sequence[Any],
        tools: Sequence[Any] | None = None,
        add_generation_prompt: bool = True,
        variables: Mapping[str, Any] | None = None,
        answer: str = "",
        *,
        most: int | None = None,
    ) -> list[int]: ...


@dataclass(frozen=True, slots=True)
class Weighed:
    """A prompt's tokens and the chain that names its blocks. `size`: bytes of text where tokens are estimated.

    `pictures`: what those in it weigh by the formula of the model's family, beside `tokens` and `size`; the chain is
    that of the text. `prompts`: so many texts there are, each computed by itself.
    """

    tokens: int
    chain: tuple[Digest, ...]
    exact: bool
    size: int
    pictures: int = 0
    prompts: int = 1

    @property
    def held_bytes(self) -> int:
        """About what it takes in memory."""
        return HELD_BYTES + len(self.chain) * DIGEST_BYTES


class Scales:
    """Weighs the requests of one model.

    Counts are kept by the hash of what was counted, so a prompt sent again costs one hash. The ratio of bytes
    to tokens is learned from the usage that replicas report, one smoothed value for the whole model. `longest`
    tells how many tokens, prompt and output, the roomiest replica takes. `family`: names of the model, by which its
    pictures are weighed until usage says better.
    """

    def __init__(
        self,
        lengths: OutputLengths,
        tokenizer: Counter | None = None,
        *,
        block_size: int = 16,
        default_max_tokens: int = 1024,
        longest: Callable[[], int | None] = lambda: None,
        family: str = "",
        remembered: int = 4096,
        remembered_bytes: int = REMEMBERED_BYTES,
    ) -> None:
        if tokenizer is not None:
            tokenizer.quicken()
        self._lengths = lengths
        self._tokenizer = tokenizer
        self._quick = tokenizer is not None and tokenizer.weigh_quickly("", False, 1) is not None
        self._block_size = block_size
        self._default_max_tokens = default_max_tokens
        self._longest = longest
        self._known: OrderedDict[bytes, Weighed] = OrderedDict()
        self._remembered = remembered
        self._room_bytes = remembered_bytes
        self._tokenising = 0
        self._estimates: dict[tuple[LengthCurve, int], OutputEstimate] = {}
        self._bytes_per_token = Mean(0.05, FIRST_RATIO)
        self._family = family
        self._picture_ratio = Mean(0.2, 1.0)  # what pictures weigh, of what the formula says

    @property
    def bytes_per_token(self) -> float:
        """UTF-8 bytes of a usual token: a guess until prompts have been counted."""
        return self._bytes_per_token.value

    async def weigh(self, ask: Ask) -> tuple[Weight, Weighed]:
        """The weight of a request, and what it was counted from. Raises BadInput for text that is not Unicode."""
        fields = ask.fields
        parts = [(mark, fields[name]) for name, mark in _MARKED if name in fields]
        size = sum([len(raw) for _, raw in parts])
        if size >> 4 < LONG_BODY:  # quickly done
            key = _key(ask, parts)
        else:
            key = await apart(size >> 4, _key, ask, parts)
        known = self._known.get(key)
        if known is None:
            known = await self._count(ask, size)
            if known.exact or known.pictures or self._tokenizer is None:
                self._remember(key, known)
        else:
            self._known.move_to_end(key)
        tokens = known.tokens if known.exact else self._estimated(known)
        most = self._longest_output(ask, tokens // known.prompts)
        output = self._output(ask, most)
        return Weight(tokens, most, output, ask.choices, exact=known.exact, prompts=known.prompts), known

    def _remember(self, key: bytes, weighed: Weighed) -> None:
        """Keep what was counted, within bounds of prompts and of bytes: a long prompt's chain has a digest a block."""
        replaced = self._known.pop(key, None)
        self._room_bytes += 0 if replaced is None else replaced.held_bytes
        self._known[key] = weighed
        self._room_bytes -= weighed.held_bytes
        while self._known and (len(self._known) > self._remembered or self._room_bytes < 0):
            self._room_bytes += self._known.popitem(last=False)[1].held_bytes

    def count(self, text: str) -> tuple[int, bool]:
        """Tokens of a generated text, and whether they were counted rather than guessed from its bytes."""
        if self._tokenizer is not None:
            return len(self._tokenizer.encode(text, False)), True
        size = len(text.encode("utf-8", "replace"))
        return (max(round(size / self.bytes_per_token), 1) if size else 0), False

    def settle(self, weighed: Weighed, prompt_tokens: int) -> None:
        """Let estimates learn from a prompt of `prompt_tokens`, as a replica or our tokenizer counted."""
        if weighed.pictures:
            seen = (prompt_tokens - self._text_tokens(weighed)) / weighed.pictures
            if prompt_tokens > 0:
                self._picture_ratio.add(min(max(seen, LEAST_PICTURE), MOST_PICTURE))
        elif prompt_tokens > 0 and weighed.size >= TELLING_BYTES:
            ratio = min(max(weighed.size / prompt_tokens, LEAST_RATIO), MOST_RATIO)
            self._bytes_per_token.add(ratio)

    def _output(self, ask: Ask, most: int) -> OutputEstimate:
        """The estimate of a curve stays true as long as the curve does, which is for many requests."""
        curve = self._lengths.curve(ask.tenant, ask.model, ask.route)
        estimate = self._estimates.get((curve, most))
        if estimate is None:
            if len(self._estimates) >= 1024:
                self._estimates.clear()
            estimate = self._lengths.estimate(ask.tenant, ask.model, ask.route, most)
            self._estimates[curve, most] = estimate
        return estimate

    def _estimated(self, weighed: Weighed) -> int:
        """Tokens that text of so many bytes and pictures are likely to be. What may fit is not made too long by a
        guess, which others' prompts have made what it is: the replica counts, and says so if it is."""
        tokens, longest = self._text_tokens(weighed), self._longest()
        least = weighed.tokens or weighed.size / MOST_RATIO
        tokens += round(weighed.pictures * self._picture_ratio.value)
        may_fit = longest is not None and least < longest <= tokens
        return max(longest - 1, 1) if longest is not None and may_fit else tokens

    def _text_tokens(self, weighed: Weighed) -> int:
        """Tokens of the text alone: counted beside pictures where there is a tokenizer, else guessed."""
        return weighed.tokens or max(round(weighed.size / self.bytes_per_token), 1)

    def _longest_output(self, ask: Ask, prompt_tokens: int) -> int:
        """Zero where nothing is said; otherwise what the client allows, or what is left of the context."""
        if ask.path in SILENT:
            return 0
        wanted = self._default_max_tokens if ask.max_tokens is None else ask.max_tokens
        longest = self._longest()
        return wanted if longest is None else min(wanted, max(longest - prompt_tokens, 1))

    async def _count(self, ask: Ask, size: int) -> Weighed:
        """`size`: bytes of all that decides how many tokens there are."""
        if ask.path in scores.PATHS:
            size, texts = await apart(size, scores.text_bytes, ask.fields)
            return Weighed(0, (), False, size, prompts=texts)
        prompt = ask.prompt
        if prompt is None:
            return Weighed(1, (), False, 1)
        if ask.path.endswith("/decisions"):  # the template's share of it is the replica's to know
            data = bytes(prompt)
            return Weighed(0, self._chain_of_bytes(data, _root(ask)), False, size)
        found = self._quickly(ask, prompt) if self._quick and size <= LONG_QUICK_PROMPT else None
        if found is not None:
            return found
        if size <= LONG_PROMPT:
            return self._weighed(ask, prompt)
        if self._tokenising >= MAX_TOKENISING:  # an estimate now is worth more than the truth later
            return await apart(size, self._weighed, ask, prompt, tokenise=False)
        self._tokenising += 1
        try:
            return await asyncio.to_thread(self._weighed, ask, prompt)
        finally:
            self._tokenising -= 1

    def _quickly(self, ask: Ask, prompt: bytes) -> Weighed | None:
        """Exactly weighed, where that is so quick that nobody else needs to be let in meanwhile."""
        assert self._tokenizer is not None
        if may_have(bytes(prompt), PICTURE):
            return None
        value = plain(prompt, ask.prompt_field)
        if isinstance(value, list) and len(value) > MANY_MESSAGES:
            return None
        try:
            if _is_chat(ask):
                text, adds = self._tokenizer.plain_chat(*_chat(ask, value)), False
            else:
                text, adds = value if isinstance(value, str) else None, True
        except _REFUSED:
            return None
        if text is None:
            return None
        found = self._tokenizer.weigh_quickly(text, adds, self._block_size, _root(ask))
        return None if found is None else Weighed(max(found[0], 1), tuple(found[1]), True, 0)

    def _weighed(self, ask: Ask, prompt: bytes, tokenise: bool = True) -> Weighed:
        """Exactly weighed where there are token ids or, with `tokenise`, a tokenizer; else from bytes."""
        value = plain(prompt, ask.prompt_field)
        ids = _token_ids(value)
        weights = image_tokens(self._family, value) if may_have(bytes(prompt), PICTURE) else 0
        if weights:
            value = _without_pictures(value)
        if ids is None and self._tokenizer is not None and tokenise:
            with suppress(*_REFUSED):  # the replica will say so in its own words
                ids = self._tokens(ask, value)
        if ids is not None:
            chain = block_digests(_root(ask), ids, 0, len(ids), self._block_size)
            return Weighed(max(len(ids), 1), tuple(chain), not weights, 0, weights, _prompts(ask, value))
        text, parts = _text_of(value)
        data = text.encode("utf-8", "surrogatepass")
        size = len(data) + parts * PART_TOKENS * CHAIN_BYTES
        digests = self._chain_of_bytes(data, _root(ask))
        return Weighed(0, digests, False, size, weights, _prompts(ask, value))

    def _tokens(self, ask: Ask, value: Any) -> list[int]:
        assert self._tokenizer is not None
        longest = self._longest()
        if _is_chat(ask):
            return self._tokenizer.encode_chat(*_chat(ask, value), most=longest)
        texts = [value] if isinstance(value, str) else value
        return [token for text in texts for token in self._tokenizer.encode(text, most=longest)]

    def _chain_of_bytes(self, data: bytes, parent: Digest) -> tuple[Digest, ...]:
        """Blocks of text stand in for blocks of tokens: equal beginnings are found all the same."""
        step = self._block_size * CHAIN_BYTES
        chain: list[Digest] = []
        for start in range(0, len(data) - step + 1, step):
            parent = blake2b(parent + data[start : start + step], digest_size=32).digest()
            chain.append(parent)
        return tuple(chain)


def _prompts(ask: Ask, value: Any) -> int:
    """How many texts there are, each computed by itself: the messages of a chat are one."""
    several = (
        isinstance(value, list) and not _is_chat(ask) and any(isinstance(one, str | list) for one in value)
    )
    return len(value) if several else 1


def _without_pictures(messages: Any) -> Any:
    """The chat with the texts of messages that have pictures, which templates of models without eyes can render."""
    return [_texts_alone(message) for message in messages]


def _texts_alone(message: Any) -> Any:
    content = message.get("content") if isinstance(message, dict) else None
    if not isinstance(content, list) or not any(_is_picture(part) for part in content):
        return message
    rest = [part for part in content if not _is_picture(part)]
    if all(isinstance(part, dict) and isinstance(part.get("text"), str) for part in rest):
        return {**message, "content": "\n".join(part["text"] for part in rest)}
    return {**message, "content": rest}


def _is_picture(part: Any) -> bool:
    return isinstance(part, dict) and part.get("type") == "image_url"


def _root(ask: Ask) -> Digest:
    return root(ask.cache_salt.encode()) if ask.cache_salt else ROOT


def _key(ask: Ask, parts: Sequence[tuple[bytes, bytes]]) -> bytes:
    """Name all that decides how many tokens a prompt has, and who may share its blocks: marks and what is in them."""
    digest = blake2b(ask.path.encode(), digest_size=16, key=_root(ask))
    for mark, raw in parts:
        digest.update(mark)
        digest.update(raw)
    return digest.digest()


def _is_chat(ask: Ask) -> bool:
    """Embeddings may be of a chat as well."""
    return "messages" in ask.fields


def _chat(ask: Ask, value: Any) -> tuple[list[Any], list[Any] | None, bool, dict[str, Any]]:
    """What a template makes a prompt of: messages, tools, whether an answer is to begin, variables."""
    generate, variables = _decoded(ask, "add_generation_prompt"), _decoded(ask, "chat_template_kwargs")
    messages = [_for_template(one) for one in value]
    if _decoded(ask, "continue_final_message"):
        messages[-1] = {**messages[-1], "prefix": True}
    return messages, _tools(ask), generate is not False, variables or {}


def _tools(ask: Ask) -> list[Any] | None:
    """The tools as the engine shows them to a template: what OpenAI's API knows of them, unless none may be called."""
    raw = ask.fields.get("tools")
    if raw is None or _decoded(ask, "tool_choice") == "none":
        return None
    tools: list[Any] = msgspec.to_builtins(_read_tools(raw))
    return tools


def _decoded(ask: Ask, name: str) -> Any:
    raw = ask.fields.get(name)
    return None if raw is None else msgspec.json.decode(raw)


def _for_template(message: Any) -> Any:
    """Templates expect the arguments of earlier calls as objects, OpenAI sends them as text."""
    if not isinstance(message, dict):
        raise BadInput("a message must be an object")
    if not message.get("tool_calls"):
        return {**message, "content": message.get("content") or ""}
    calls = [_parsed(call) for call in message["tool_calls"]]
    return {**message, "content": message.get("content") or "", "tool_calls": calls}


def _parsed(call: Any) -> Any:
    function = call.get("function") if isinstance(call, dict) else None
    if not isinstance(function, dict) or not isinstance(function.get("arguments"), str):
        return call
    return {**call, "function": {**function, "arguments": msgspec.json.decode(function["arguments"])}}


def _token_ids(value: Any) -> list[int] | None:
    """The ids of a prompt that is given as such, or as several lists of them."""
    if not isinstance(value, list) or not value:
        return None
    if all(type(one) is int for one in value):
        return value
    if all(isinstance(one, list) and all(type(token) is int for token in one) for one in value):
        return [token for one in value for token in one]
    return None


def _text_of(value: Any) -> tuple[str, int]:
    """All text in messages or prompts, joined, and the number of parts that are no text."""
    if isinstance(value, str):
        return value, 0
    if isinstance(value, dict):
        if "type" in value and value["type"] != "text" and "role" not in value:
            return "", 1
        inner = value.get("content", value.get("text"))
        text, parts = _text_of(inner) if inner is not None else ("", 0)
        calls = value.get("tool_calls")
        extra = str(calls) if calls else ""
        return f"{value.get('role', '')}{text}{extra}", parts
    if isinstance(value, list):
        pieces = [_text_of(one) for one in value]
        return "\n".join(text for text, _ in pieces), sum(parts for _, parts in pieces)
    return "", 0
