"""What can be counted about a prompt, and about an answer to it, cheaply and for any subject. Needs numpy only.

A prompt is a row of measured features and a row of hashed n-grams (Weinberger et al. 2009, feature hashing).
"""

from __future__ import annotations

import re
import zlib
from collections import Counter
from collections.abc import Callable, Iterable, Mapping
from functools import lru_cache
from itertools import pairwise
from math import log, log1p

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
    options = [len(line) for line in lines if _OPTION.match(line)]
    body = "\n".join(line for line in lines if not _OPTION.match(line))
    size, count = len(text) + 1, len(words) + 1
    times = Counter(text)
    spread = float(np.std(options) / (np.mean(options) + 1)) if options else 0.0
    return [
        log(len(prompt) + 1),
        log(count),
        log1p(len(body)),
        log1p(len(lines)),
        len(options),
        log1p(float(np.mean(options))) if options else 0.0,
        log1p(max(options, default=0)),
        spread,
        sum(any(c.isdigit() for c in line) for line in lines if _OPTION.match(line)) / (len(options) + 1),
        log1p(max((len(part) for part in re.split(r"[.?!\n]", text)), default=0)),
        log1p(body.count(".")),
        _part(times, str.isdigit) / size,
        _part(times, str.isupper) / size,
        sum(times[c] for c in "+-*/=^<>$\\{}|") / size,
        (len(text) - _part(times, str.isascii)) / size,
        (len(text) - _part(times, str.isalnum) - _part(times, str.isspace)) / size,
        log1p(len(numbers(text))),
        times["?"],
        times[","] / size,
        times["("],
        float('"' in text or "“" in text),
        float("_" in text),
        sum(map(len, words)) / count,
        sum(len(word) > 8 for word in words) / count,
        len(set(words)) / count,
        sum(word in _FUNCTION_WORDS for word in words) / count,
        float(any(word in _PERSONS for word in words)),
        sum(word in _REASONS for word in words) / count,
        float(any(word in _NEGATIONS for word in words)),
        log1p(_longest_line(lines)),
    ]


def _part(times: Mapping[str, int], kind: Callable[[str], bool]) -> int:
    """How many characters are of a kind."""
    return sum(count for character, count in times.items() if kind(character))


def _longest_line(lines: Iterable[str]) -> int:
    return max(map(len, lines), default=0)


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
    pairs = np.array([_code(f"2{a} {b}") for a, b in pairwise(tokens)], np.int64)
    words = [_codes(token) if len(token) <= LONGEST else _codes.__wrapped__(token) for token in tokens]
    codes, times = np.unique(np.concatenate([pairs, *words]), return_counts=True)
    signs = np.where(codes & 0x8000_0000, 1.0, -1.0)
    return codes % COLUMNS, signs * (1.0 + np.log(times))


def _code(gram: str) -> int:
    return zlib.crc32(gram.encode("utf-8", "surrogatepass"))


@lru_cache(maxsize=50_000)
def _codes(token: str) -> np.ndarray:
    """Hashes of a word and of the character n-grams of its beginning."""
    framed = f"<{token[:LONGEST]}>"
    parts = [framed[start : start + size] for size in (3, 4, 5) for start in range(len(framed) - size + 1)]
    return np.array([_code("1" + token), *(_code("c" + part) for part in parts)], np.int64)


def hashed_row(text: str) -> np.ndarray:
    """The hashed n-grams as a dense row, not yet weighed or normalised."""
    row = np.zeros(COLUMNS)
    columns, weights = hashed(text)
    np.add.at(row, columns, weights)
    return row
