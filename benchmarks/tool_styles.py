"""Our readers of tool calls and thoughts beside vLLM's own, on the texts of `tests/server/style_cases.py` and 60 more
of each style that are drawn by chance (`style_texts.py`), 20 of them malformed.

    python benchmarks/tool_styles.py --vllm /path/to/vllm/bin/python [--show]

Each text is read whole and token by token by both. Equal means: the same text but for space at its ends, the same calls
in the same order, and arguments that are the same JSON (as text where they are none). `--show` prints every difference.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parents[1]))

from tests.server.style_cases import CASES, THOUGHTS, TOOLS, Case
from tests.server.style_texts import texts

from weighbridge.server.styles.answer import AnswerReading
from weighbridge.server.styles.choice import TOOL_STYLES, Styles
from weighbridge.server.styles.pieces import CallArguments, CallBegun, Thought
from weighbridge.server.styles.reasoning import THINK

#: vLLM's parser for each style; two for Mistral's and DeepSeek's, of which that which finds more counts.
PARSERS = {
    "hermes": ("hermes",),
    "llama3": ("llama3_json",),
    "mistral": ("mistral",),
    "qwen3-coder": ("qwen3_coder",),
    "glm": ("glm45",),
    "deepseek-v3": ("deepseek_v3", "deepseek_v31"),
    "kimi-k2": ("kimi_k2",),
    "granite": ("granite",),
}
#: Its parser for thoughts, by whether the prompt ends within one.
THINKERS = {False: "qwen3", True: "deepseek_r1"}
#: Marks that its parsers look for in the vocabulary.
MARKS = ("<think>", "</think>", "[THINK]", "[/THINK]")
Read = tuple[str, list[tuple[str, Any]]]


def ours(case: Case, parts: Sequence[str]) -> Read:
    stream = AnswerReading(Styles(TOOL_STYLES[case.style], None), TOOLS).stream()
    pieces = [*(piece for part in parts for piece in stream.push(part)), *stream.finish()]
    calls: list[list[str]] = []
    for piece in pieces:
        if isinstance(piece, CallBegun):
            calls.append([piece.name, ""])
        elif isinstance(piece, CallArguments):
            calls[piece.index][1] += piece.text
    return plain(
        [
            "".join(one for one in pieces if not isinstance(one, CallBegun | CallArguments | Thought)),
            "",
            calls,
        ]
    )


def plain(read: Any) -> Read:
    """A reading without what does not count."""
    if isinstance(read, dict):
        return read["error"], []
    said, _, calls = read
    return said.strip(), [(name, _value(arguments)) for name, arguments in calls]


def _value(arguments: str) -> Any:
    try:
        return json.loads(arguments)
    except ValueError:
        return arguments


def our_thought(text: str, thinking: bool, parts: Sequence[str]) -> tuple[str, str]:
    stream = AnswerReading(Styles(None, THINK), None, thinking=thinking).stream()
    pieces = [*(piece for part in parts for piece in stream.push(part)), *stream.finish()]
    said = "".join(one for one in pieces if isinstance(one, str))
    return said.strip(), "".join(one.text for one in pieces if isinstance(one, Thought)).strip()


def asked(python: str, jobs: Sequence[dict[str, Any]]) -> list[Any]:
    """What vLLM's parsers find in texts."""
    marks = sorted({mark for style in TOOL_STYLES.values() for mark in style.marks}.union(MARKS))
    given = json.dumps({"marks": marks, "tools": TOOLS, "cases": jobs})
    child = Path(__file__).parent / "peers" / "vllm_parsers.py"
    made = subprocess.run([python, str(child)], input=given, capture_output=True, text=True, check=False)
    if made.returncode:
        raise SystemExit(made.stderr[-2000:])
    return list(json.loads(made.stdout.splitlines()[-1]))


def theirs(python: str, cases: Sequence[Case]) -> list[dict[str, dict[str, Read]]]:
    """For each case what each of vLLM's parsers for its style finds, whole and streamed."""
    jobs = [(case, parser) for case in cases for parser in PARSERS[case.style]]
    answers = asked(
        python, [{"parser": parser, "reasoning": None, "text": case.text} for case, parser in jobs]
    )
    found: dict[int, dict[str, dict[str, Read]]] = {}
    for (case, parser), answer in zip(jobs, answers, strict=True):
        found.setdefault(id(case), {})[parser] = {way: plain(read) for way, read in answer.items()}
    return [found[id(case)] for case in cases]


def thoughts(python: str, show: bool) -> Counter[str]:
    """How many thoughts are told apart as vLLM does."""
    jobs = [
        {"parser": None, "reasoning": THINKERS[thinking], "text": text} for text, thinking, _, _ in THOUGHTS
    ]
    counts: Counter[str] = Counter()
    for (text, thinking, _, _), answer in zip(THOUGHTS, asked(python, jobs), strict=True):
        for way, parts in (("whole", [text]), ("streamed", list(text))):
            mine, read = our_thought(text, thinking, parts), answer[way]
            other = read if isinstance(read, dict) else (read[0].strip(), read[1].strip())
            counts[way] += mine == other
            if mine != other and show:
                print(f"thought {way}, {thinking=}: {text!r}\n    ours   {mine}\n    theirs {other}")
    return counts


def main() -> None:
    options = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    options.add_argument("--vllm", required=True, help="The interpreter of an environment with vLLM.")
    options.add_argument("--show", action="store_true", help="Print every difference.")
    chosen = options.parse_args()
    cases = [case for case in CASES if case.style in PARSERS]
    cases += [case for style in PARSERS for case in texts(style)]
    counts: Counter[tuple[str, str]] = Counter()
    for case, readings in zip(cases, theirs(chosen.vllm, cases), strict=True):
        kind = "broken" if case.broken else "well"
        best = max(readings.values(), key=lambda one: len(one["whole"][1]))
        counts[case.style, kind] += 1
        counts[case.style, "unlike"] += best["whole"] != best["streamed"]
        for way, mine in (("whole", ours(case, [case.text])), ("streamed", ours(case, list(case.text)))):
            counts[case.style, f"{kind} {way}"] += mine == best[way]
            if mine != best[way] and chosen.show:
                print(f"{case.style} {way}: {case.text!r}\n    ours   {mine}\n    theirs {best[way]}")
    found = thoughts(chosen.vllm, chosen.show)
    columns = ("well", "well whole", "well streamed", "broken", "broken whole", "broken streamed", "unlike")
    print(
        "| style | well formed | equal whole | streamed | broken | equal whole | streamed | their stream unlike |"
    )
    print("|---|---|---|---|---|---|---|---|")
    for style in PARSERS:
        print(f"| {style} | {' | '.join(str(counts[style, column]) for column in columns)} |")
    print(f"thoughts: {len(THOUGHTS)} texts, {found['whole']} equal whole, {found['streamed']} streamed")


if __name__ == "__main__":
    main()
