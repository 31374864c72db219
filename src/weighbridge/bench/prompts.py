"""Prompts of exact lengths in tokens: token ids, and texts for servers and endpoints that take no ids."""

from __future__ import annotations

import random
from collections.abc import Awaitable, Callable, Sequence
from pathlib import Path

from weighbridge.bench.client import LoadClient
from weighbridge.errors import BadInput, said

#: Token ids that are ordinary text in every vocabulary met so far: past the special ones and single bytes.
FIRST_ID, LAST_ID = 1000, 15_000

#: With a space in front, each is one token in the vocabularies of Llama, Mistral, Qwen, GPT and SmolLM.
_COMMON = (
    "the of and to in is that for it was on are as with they be at one have this from or had by not but "
    "what all were we when your can said there use an each which she do how their if will up other about "
    "out many then them these so some her would make like him into time has look two more write go see "
    "number no way could people my than first water been call who its now find long down day did get come "
    "made may part over new sound take only little work know place year live me back give most very after "
    "thing our just name good sentence man think say great where help through much before line right too"
)
WORDS = _COMMON.split()

Count = Callable[[str], Awaitable[int]]
ROUNDS = 8  # of counting and correcting a text


def prompt_ids(
    length: int, vocabulary: Sequence[int], rng: random.Random, prefix: Sequence[int] = ()
) -> list[int]:
    """Return `length` token ids: `prefix` as far as it goes, then random ones, so that no cache helps by chance."""
    shared = list(prefix[:length])
    return shared + [rng.choice(vocabulary) for _ in range(length - len(shared))]


async def prompt_text(length: int, count: Count, rng: random.Random, prefix: Sequence[str] = ()) -> list[str]:
    """Return words that `count` says are `length` tokens together: `prefix` as far as it goes, then random ones.

    Where no number of words gives that length (one token under a tokenizer that adds its own), the nearest.
    """
    words = list(prefix[:length])
    words += rng.choices(WORDS, k=length - len(words))
    for _ in range(ROUNDS):
        missing = length - await count(" ".join(words))
        if missing > 0:
            words += rng.choices(WORDS, k=missing)
        elif missing < 0 and len(words) > 1:
            del words[max(1, len(words) + missing) :]
        else:
            break
    return words


async def count_words(text: str) -> int:
    """Count a token a word, for want of anybody to ask. The server's usage tells the true number."""
    return text.count(" ") + 1


def count_with_file(path: Path) -> Count:
    """Count with a `tokenizer.json`, or the one in a directory. Raises BadInput when it cannot be read."""
    from tokenizers import Tokenizer

    file = path / "tokenizer.json" if path.is_dir() else path
    try:
        tokenizer = Tokenizer.from_file(str(file))
    except Exception as error:  # the library raises plain Exception
        raise BadInput(f"{file} is not a tokenizer.json: {said(error)}", param="tokenizer") from error

    async def count(text: str) -> int:
        return len(tokenizer.encode(text).ids)

    return count


async def count_with_server(client: LoadClient, model: str) -> Count | None:
    """Count with the server's own /tokenize, as vLLM and Weighbridge or as llama-server spell it, if it has one."""

    async def ask(body: dict[str, object]) -> int:
        return len((await client.ask("/tokenize", body))["tokens"])

    async def as_vllm(text: str) -> int:
        return await ask({"model": model, "prompt": text})

    async def as_llama(text: str) -> int:
        return await ask({"content": text, "add_special": True})

    for count in (as_vllm, as_llama):
        try:
            if await count(" ".join(WORDS)) >= len(WORDS):
                return count
        except (OSError, ValueError, KeyError, TypeError):
            continue
    return None
