"""A constraint in llguidance's words, and how much work one may be."""

from __future__ import annotations

import json
import re
from collections.abc import Sequence

from llguidance import LLMatcher, LLParserLimits
from llguidance.gbnf_to_lark import any_to_lark

from weighbridge.engine.request import Guide
from weighbridge.errors import BadInput

#: Characters of one schema, pattern or grammar.
LONGEST_SOURCE = 2 << 20
#: What one mask may take: a row of the parser holds every place where an output so far can stand, and an object
#: of 5,000 optional properties needs 20,000. What needs more ends its own request.
LIMITS = LLParserLimits(
    max_items_in_row=25_000, step_max_items=100_000, max_lexer_states=50_000, verbose_errors=False
)

#: A character by its number, or an escaped backslash.
_ESCAPED = re.compile(r"\\(?:\\|(x[0-9a-fA-F]{2}|u[0-9a-fA-F]{4}|U00[01][0-9a-fA-F]{5}))")
_ANY_OBJECT = json.dumps({"type": "object"})


def grammar_of(guide: Guide) -> str:
    """Return the grammar of `guide`. Raises BadInput for what is too long, of no known kind, or no JSON at all."""
    if len(guide.source) > LONGEST_SOURCE:
        raise unusable(
            guide, f"it has {len(guide.source)} characters, and at most {LONGEST_SOURCE} are taken"
        )
    try:
        if guide.kind == "json_object":
            return str(LLMatcher.grammar_from_json_schema(_ANY_OBJECT))
        if guide.kind == "json_schema":
            return str(LLMatcher.grammar_from_json_schema(guide.source))
        if guide.kind == "regex":
            return str(LLMatcher.grammar_from_regex(guide.source))
        if guide.kind == "lark":
            return str(LLMatcher.grammar_from_lark(guide.source))
        if guide.kind == "choice":
            return str(LLMatcher.grammar_from_lark(_one_of(json.loads(guide.source))))
        if guide.kind == "gbnf":
            return str(LLMatcher.grammar_from_lark(_lark_of_gbnf(guide.source)))
    except (ValueError, RecursionError) as error:
        raise unusable(guide, str(error) or "it is nested too deeply") from error
    raise BadInput(
        f"constraint {guide.kind!r} is not known: use json_schema, json_object, regex, choice, lark or gbnf",
        param="response_format",
    )


def _one_of(choices: Sequence[str]) -> str:
    """A Lark grammar of these texts."""
    return "start: " + " | ".join(json.dumps(choice, ensure_ascii=False) for choice in choices)


def _lark_of_gbnf(source: str) -> str:
    """A grammar of llama.cpp's as one of Lark's. Raises ValueError for what is none."""
    try:
        return str(any_to_lark(_ESCAPED.sub(_plainly, source)))
    except Exception as error:  # it raises plain ones, and others where it was not careful
        raise ValueError(f"it cannot be read as GBNF: {error or type(error).__name__}") from error


def _plainly(found: re.Match[str]) -> str:
    """A character by its number as the library reads it: it knows two digits only."""
    if found[1] is None:  # an escaped backslash, which begins nothing
        return found[0]
    code = int(found[1][1:], 16)
    return f"\\x{code:02x}" if code < 0x80 else chr(code)


def unusable(guide: Guide, why: str) -> BadInput:
    """The refusal of a constraint that cannot be kept."""
    return BadInput(
        f"the {guide.kind.replace('_', ' ')} cannot be used: {why.strip()}", param="response_format"
    )
