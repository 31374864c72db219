"""What can be counted about a prompt, and about an answer to it, cheaply and for any subject. Needs numpy only.

A prompt is a row of measured features and a row of hashed n-grams (Weinberger et al. 2009, feature hashing).
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Mapping, Sequence
from functools import lru_cache
from itertools import repeat
from math import log, log1p, sqrt
from typing import NamedTuple
from zlib import crc32

import numpy as np

from weighbridge.routes.difficulty.arithmetic import Equations, equations, numbers
from weighbridge.routes.judge import Signals

#: Columns of the hashed n-grams, and how much of a text is read.
COLUMNS = 4096
MAX_CHARACTERS = 8000
#: Of a longer word only so many characters make n-grams, and its hashes are not kept.
LONGEST = 32

_WORD = re.compile(r"[^\W\d_]+(?:'[^\W\d_]+)?")
_TOKEN = re.compile(r"[^\W_]+|[^\w\s]")
_OPTION = re.compile(r"^\s*\(?[A-Ja-j1-9][.):]\s")
_SENTENCE_ENDS = re.compile(r"[.?!\n]")
_FUNCTION_WORDS = frozenset(
    ["the", "of", "a", "an", "is", "to", "in", "and", "that", "which", "for", "are", "by", "on", "with", "as"]
)
_PERSONS = frozenset(["i", "you", "he", "she", "his", "her", "my", "your", "they", "we"])
_REASONS = frozenset(["if", "then", "therefore", "because", "hence", "thus", "so", "since"])
_NEGATIONS = frozenset(["not", "except", "never", "no", "without", "least"])
_HEDGES = frozenset(
    ["maybe", "perhaps", "possibly", "probably", "might", "assume", "unclear", "however", "unless"]
)
_MARKER = re.compile(r"####|\\boxed|(?i:\bthe (?:final )?answer (?:is|:)|\banswer:)")

#: What `prompt_features` measures, in order.
_NAMES = (
    "characters words body_characters lines options option_length longest_option option_spread "
    "options_with_digits longest_sentence full_stops digits capitals operators beyond_ascii punctuation numbers "
    "question_marks commas brackets quotation blank word_length long_words distinct_words function_words persons "
    "reasons negations longest_line"
)
FEATURES = tuple(_NAMES.split())


def prompt_features(prompt: str) -> list[float]:
    """Length, shape, vocabulary and symbols of a prompt."""
    text = prompt[:MAX_CHARACTERS]
    words = [word.lower() for word in _WORD.findall(text)]
    lines = [line for line in text.split("\n") if line.strip()]
    marked = [_OPTION.match(line) is not None for line in lines]
    option_lines = [line for line, is_option in zip(lines, marked, strict=True) if is_option]
    options = [len(line) for line in option_lines]
    body = "\n".join([line for line, is_option in zip(lines, marked, strict=True) if not is_option])
    size, count = len(text) + 1, len(words) + 1
    times = Counter(text)
    kinds = _kinds(times)
    mean = sum(options) / len(options) if options else 0.0
    known = set(words)
    return [
        log(len(prompt) + 1),
        log(count),
        log1p(len(body)),
        log1p(len(lines)),
        len(options),
        log1p(mean),
        log1p(max(options, default=0)),
        _deviation(options, mean) / (mean + 1) if options else 0.0,
        sum([any(map(str.isdigit, line)) for line in option_lines]) / (len(options) + 1),
        log1p(max(map(len, _SENTENCE_ENDS.split(text)))),
        log1p(body.count(".")),
        kinds["digit"] / size,
        kinds["capital"] / size,
        sum([times[c] for c in "+-*/=^<>$\\{}|"]) / size,
        kinds["beyond"] / size,
        kinds["mark"] / size,
        log1p(len(numbers(text))),
        times["?"],
        times[","] / size,
        times["("],
        float('"' in times or "“" in times),
        float("_" in times),
        sum(map(len, words)) / count,
        sum([len(word) > 8 for word in words]) / count,
        len(known) / count,
        sum(map(_FUNCTION_WORDS.__contains__, words)) / count,
        float(not _PERSONS.isdisjoint(known)),
        sum(map(_REASONS.__contains__, words)) / count,
        float(not _NEGATIONS.isdisjoint(known)),
        log1p(max(map(len, lines), default=0)),
    ]


def _deviation(values: Sequence[int], mean: float) -> float:
    """The standard deviation. Few values are quicker without numpy, and give the same bits."""
    if len(values) >= 8:  # numpy adds more of them up in another order
        return float(np.std(values))
    return sqrt(sum([(value - mean) ** 2 for value in values]) / len(values))


def _kinds(times: Mapping[str, int]) -> dict[str, int]:
    """How many characters are digits, capitals, beyond ASCII, or neither letters, digits nor space."""
    kinds = {"digit": 0, "capital": 0, "beyond": 0, "mark": 0}
    for character, count in times.items():
        for kind in _kinds_of(character):
            kinds[kind] += count
    return kinds


@lru_cache(maxsize=4096)
def _kinds_of(character: str) -> tuple[str, ...]:
    tests = {
        "digit": character.isdigit(),
        "capital": character.isupper(),
        "beyond": not character.isascii(),
        "mark": not (character.isalnum() or character.isspace()),
    }
    return tuple(kind for kind, holds in tests.items() if holds)


def answer_features(
    prompt: str, answer: str, signals: Signals | None = None, agreement: float | None = None
) -> list[float]:
    """What an answer shows of its own quality: sums that are right, numbers used, how it ends."""
    text = answer[-MAX_CHARACTERS:]
    found = equations(text)
    asked, used = numbers(prompt[:MAX_CHARACTERS]), numbers(text)
    words = [word.lower() for word in _WORD.findall(text)]
    lines = [line for line in text.strip().split("\n") if line.strip()]
    last = lines[-1] if lines else ""
    final = numbers(last)
    return [
        log1p(len(text)),
        log1p(len(lines)),
        log1p(len(last)),
        len(text) / (len(prompt) + 50),
        *_sums(found),
        *_number_use(asked, used, final, found),
        float(_MARKER.search(text) is not None),
        float(text.rstrip().endswith((".", "!", "?", ")", "`", "}", "]"))),
        float(bool(final)),
        sum(word in _HEDGES for word in words) / (len(words) + 1),
        sum(word in _NEGATIONS for word in words) / (len(words) + 1),
        len(set(words)) / (len(words) + 1),
        float(len(set(lines)) < len(lines)),
        *(signals.as_list() if signals is not None else ()),
        *((agreement,) if agreement is not None else ()),
    ]


def _sums(found: Equations) -> list[float]:
    checked = found.right + found.wrong
    return [
        log1p(checked),
        float(found.wrong > 0),
        found.wrong / (checked + 1),
        float(found.last_is_wrong),
        float(found.unfinished),
        log1p(found.operations),
    ]


def _number_use(asked: list[float], used: list[float], final: list[float], found: Equations) -> list[float]:
    """Which numbers of the prompt the answer took up, and what its last one is."""
    given, taken = set(asked), set(used)
    result = final[-1] if final else 0.0
    return [
        log1p(len(given)),
        len(given & taken) / (len(given) + 1),
        float(len(given - taken)),
        log1p(len(taken - given)),
        float(bool(final) and result in found.results),
        float(bool(final) and found.last_result == result),
        float(bool(final) and result in given),
        float(result < 0),
        float(result != int(result)) if abs(result) < 1e15 else 1.0,
        log1p(min(abs(result), 1e15)),
        float(abs(result) < 1e12 and result % 5 == 0),
    ]


def hashed(text: str) -> tuple[np.ndarray, np.ndarray]:
    """Columns and weights of a text's word 1- and 2-grams and character 3- to 5-grams within words.

    Weight: 1 + log(count), with a sign from the hash, so that collisions cancel on average.
    """
    tokens = _TOKEN.findall(text[:MAX_CHARACTERS].lower())
    if not tokens:
        return np.empty(0, np.int64), np.empty(0)
    if max(map(len, tokens)) <= LONGEST:
        words = list(map(_codes, tokens))
    else:
        words = [_codes(token) if len(token) <= LONGEST else _codes.__wrapped__(token) for token in tokens]
    own, before, texts = zip(*words, strict=True)
    pairs = list(map(crc32, texts[1:], before))
    codes, times = np.unique(np.concatenate([np.array(pairs, np.int64), *own]), return_counts=True)
    signs = np.where(codes & 0x8000_0000, 1.0, -1.0)
    return codes % COLUMNS, signs * (1.0 + np.log(times))


class _Word(NamedTuple):
    """`codes`: of its own n-grams; `before`: the hash of a pair of words up to the second; `text`: as that second."""

    codes: np.ndarray
    before: int
    text: bytes


#: The hashes of what stands before a word, a pair of words and an n-gram of characters: each goes on from there.
_ONE, _TWO, _PIECE = crc32(b"1"), crc32(b"2"), crc32(b"c")


@lru_cache(maxsize=50_000)
def _codes(token: str) -> _Word:
    """Hashes of a word and of the character n-grams of its beginning."""
    text = token.encode("utf-8", "surrogatepass")
    framed = f"<{token[:LONGEST]}>"
    size = len(framed)
    if framed.isascii():  # a byte a character
        data = framed.encode()
        parts = [data[start : start + n] for n in (3, 4, 5) for start in range(size - n + 1)]
    else:
        grams = [framed[start : start + n] for n in (3, 4, 5) for start in range(size - n + 1)]
        parts = [gram.encode("utf-8", "surrogatepass") for gram in grams]
    codes = np.array([crc32(text, _ONE), *map(crc32, parts, repeat(_PIECE))], np.int64)
    return _Word(codes, crc32(text + b" ", _TWO), text)
