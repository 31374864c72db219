"""Detectors on presidio-research's 1,500 sentences, split by template: chosen on one half, reported on the other.

    python benchmarks/hybrid_privacy.py            with the NER model where it is installed, and without it
    python benchmarks/hybrid_privacy.py --no-ner   without it

The templates are dealt into two halves. On each half the NER threshold is chosen (best F2 at a precision of at least
0.9); its sentences are then scored with the threshold that the *other* half chose, so every sentence is held out once.
The expressions of `patterns.py` and `hits.py` do not depend on the split: they were written with this set in
sight, so that part of the figures stays in-sample.

A value counts as found where 70 % of its characters are covered (`recall`: by hits of any type, `typed`: by its own).
A hit is right where half of it lies inside a labelled value (`precision`: of any label, `typed`: of its own).
`F2` is that of recall and precision. Intervals: 95 % bootstrap over templates. The last lines score words of all
labels, also those nobody here looks for (organisations, dates, titles, ages, nationalities), which is nearest to how
Presidio's own figures are made. Needs the data folder (WEIGHBRIDGE_DATA, or ../shared/data beside the repository).
"""

from __future__ import annotations

import json
import os
import re
import sys
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from weighbridge.errors import BadInput
from weighbridge.routes.privacy.guard import Found, Guard
from weighbridge.routes.privacy.hits import Detector
from weighbridge.routes.privacy.ner import NerDetector
from weighbridge.routes.privacy.patterns import PatternDetector

DATA = Path(os.environ.get("WEIGHBRIDGE_DATA", Path(__file__).parents[2] / "shared" / "data")) / "privacy"
LABELS = {
    "PERSON": "PERSON", "PHONE_NUMBER": "PHONE", "EMAIL_ADDRESS": "EMAIL", "CREDIT_CARD": "CARD",
    "IBAN_CODE": "IBAN", "US_SSN": "SSN", "IP_ADDRESS": "IP", "STREET_ADDRESS": "ADDRESS",
}  # fmt: skip
TYPES = tuple(LABELS.values())
THRESHOLDS = (0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9)
PUBLISHED = "Presidio, published for this set, all its types: recall .603, F2 .618"
#: Sums over sentences: values, found, found by type, hits, right, right by type.
VALUES, FOUND, FOUND_TYPED, HITS, RIGHT, RIGHT_TYPED = range(6)


@dataclass(frozen=True, slots=True)
class Sentence:
    text: str
    template: int
    spans: tuple[tuple[int, int, str], ...]  # start, end, type; labels without a type of ours keep their name


@dataclass(frozen=True, slots=True)
class Outcome:
    """What detectors made of one sentence. `counts`: type -> the six sums; `words`: labelled, hit, both."""

    template: int
    counts: dict[str, np.ndarray]
    words: np.ndarray


def read(path: Path) -> list[Sentence]:
    rows = json.loads(path.read_text(encoding="utf-8"))
    return [
        Sentence(
            row["full_text"],
            row["template_id"],
            tuple(
                (s["start_position"], s["end_position"], LABELS.get(s["entity_type"], s["entity_type"]))
                for s in row["spans"]
            ),
        )
        for row in rows
    ]


def halves(sentences: Sequence[Sentence], seed: int) -> tuple[set[int], set[int]]:
    """The templates in two."""
    templates = np.array(sorted({one.template for one in sentences}))
    np.random.default_rng(seed).shuffle(templates)
    middle = len(templates) // 2
    return set(templates[:middle].tolist()), set(templates[middle:].tolist())


def outcome(sentence: Sentence, hits: Sequence[Found]) -> Outcome:
    counts: dict[str, np.ndarray] = defaultdict(lambda: np.zeros(6))
    for start, end, kind in sentence.spans:
        if kind in TYPES:
            counts[kind] += (1, *_covered(start, end, hits, kind, 0.7), 0, 0, 0)
    labelled = [Found(start, end, kind, "", "") for start, end, kind in sentence.spans]
    for hit in hits:
        counts[hit.type] += (0, 0, 0, 1, *_covered(hit.start, hit.end, labelled, hit.type, 0.5))
    words = np.zeros(3)
    for word in re.finditer(r"\w+", sentence.text):
        real = any(start < word.end() and word.start() < end for start, end, _ in sentence.spans)
        seen = any(hit.start < word.end() and word.start() < hit.end for hit in hits)
        words += (real, seen, real and seen)
    return Outcome(sentence.template, dict(counts), words)


def _covered(start: int, end: int, by: Sequence[Found], kind: str, share: float) -> tuple[bool, bool]:
    """Whether `share` of the characters lie in `by`: in those of any type, and in those of `kind`."""
    needed = share * (end - start)
    everything = {place for one in by for place in range(max(start, one.start), min(end, one.end))}
    typed = {p for one in by if one.type == kind for p in range(max(start, one.start), min(end, one.end))}
    return len(everything) >= needed, len(typed) >= needed


def detect(sentences: Sequence[Sentence], detectors: Sequence[Detector]) -> list[Outcome]:
    guard = Guard(detectors)
    try:
        return [outcome(one, guard.scan(one.text)) for one in sentences]
    finally:
        guard.close()


def total(outcomes: Sequence[Outcome], types: Sequence[str] | None = None) -> np.ndarray:
    """The six sums, of some types or of all."""
    parts = [c for one in outcomes for kind, c in one.counts.items() if types is None or kind in types]
    return np.sum(parts, axis=0) if parts else np.zeros(6)


def scored(sums: np.ndarray) -> tuple[float, float, float, float, float]:
    """Recall, typed recall, precision, typed precision, F2."""
    recall, precision = sums[FOUND] / max(sums[VALUES], 1), sums[RIGHT] / max(sums[HITS], 1)
    typed = sums[FOUND_TYPED] / max(sums[VALUES], 1), sums[RIGHT_TYPED] / max(sums[HITS], 1)
    return recall, typed[0], precision, typed[1], f2(recall, precision)


def f2(recall: float, precision: float) -> float:
    return 5 * precision * recall / (4 * precision + recall) if precision + recall else 0.0


def interval(outcomes: Sequence[Outcome], resamples: int = 1000) -> tuple[np.ndarray, np.ndarray]:
    """95 % of the five scores over all types, when templates are drawn again."""
    groups: dict[int, np.ndarray] = defaultdict(lambda: np.zeros(6))
    for one in outcomes:
        groups[one.template] += total([one])
    table, rng = np.array(list(groups.values())), np.random.default_rng(0)
    draws = [scored(table[rng.integers(0, len(table), len(table))].sum(axis=0)) for _ in range(resamples)]
    low, high = np.percentile(draws, (2.5, 97.5), axis=0)
    return low, high


def choose(outcomes: dict[float, list[Outcome]], templates: set[int]) -> float:
    """The threshold with the best F2 among those of at least 0.9 precision, on these templates alone."""
    scores = {
        threshold: scored(total([one for one in found if one.template in templates]))
        for threshold, found in outcomes.items()
    }
    precise = [threshold for threshold, one in scores.items() if one[2] >= 0.9]
    return max(precise or scores, key=lambda threshold: scores[threshold][4])


def show(title: str, outcomes: Sequence[Outcome]) -> None:
    print(f"\n{title}: {len(outcomes)} sentences")
    print(
        f"  {'type':12} {'values':>6} {'recall':>7} {'typed':>7} {'hits':>6} {'precision':>9} {'typed':>7} {'F2':>6}"
    )
    kinds = [*TYPES, *sorted({kind for one in outcomes for kind in one.counts} - set(TYPES))]
    for name, sums in [*((kind, total(outcomes, [kind])) for kind in kinds), ("together", total(outcomes))]:
        recall, typed, precision, precise, both = scored(sums)
        values, hits = int(sums[VALUES]), int(sums[HITS])
        print(
            f"  {name:12} {values:6} {recall:7.3f} {typed:7.3f} {hits:6} {precision:9.3f} {precise:7.3f} {both:6.3f}"
        )
    low, high = interval(outcomes)
    for name, place in (("recall", 0), ("precision", 2), ("F2", 4)):
        print(f"  95 % {name}: {low[place]:.3f} to {high[place]:.3f}")
    labelled, seen, right = np.sum([one.words for one in outcomes], axis=0)
    recall, precision = right / labelled, right / max(seen, 1)
    print(
        f"  words of all labels: recall {recall:.3f} precision {precision:.3f} F2 {f2(recall, precision):.3f}"
    )


def with_ner(sentences: Sequence[Sentence]) -> None:
    outcomes = {
        threshold: detect(sentences, (PatternDetector(), NerDetector(threshold))) for threshold in THRESHOLDS
    }
    for seed in range(3):
        first, second = halves(sentences, seed)
        held_out: list[Outcome] = []
        chosen = []
        for ours, others in ((first, second), (second, first)):
            chosen.append(choose(outcomes, others))
            held_out += [one for one in outcomes[chosen[-1]] if one.template in ours]
        name = f"patterns and NER, split {seed}, held out (thresholds {chosen[0]} and {chosen[1]})"
        show(name, held_out)
    show("patterns and NER, the default threshold 0.3", outcomes[0.3])


def main() -> None:
    if unknown := set(sys.argv[1:]) - {"--no-ner"}:
        raise SystemExit(f"unknown argument {unknown.pop()!r}; there is --no-ner")
    path = DATA / "presidio_synth_v2.json"
    if not path.is_file():
        raise SystemExit(f"{path} is not there; set WEIGHBRIDGE_DATA")
    sentences = read(path)
    show("patterns only", detect(sentences, (PatternDetector(),)))
    if "--no-ner" not in sys.argv:
        try:
            with_ner(sentences)
        except BadInput as error:
            print(f"\nwithout NER: {error}")
    print(f"\n{PUBLISHED}")


if __name__ == "__main__":
    main()
