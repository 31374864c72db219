"""A constraint in llguidance's words, and how much work one may be."""

from __future__ import annotations

import json

from llguidance import LLMatcher, LLParserLimits

from weighbridge.engine.request import Guide
from weighbridge.errors import BadInput

#: Characters of one schema, pattern or grammar.
LONGEST_SOURCE = 2 << 20
#: What one mask may take: a row of the parser holds every place where an output so far can stand, and an object
#: of 5,000 optional properties needs 20,000. What needs more ends its own request.
LIMITS = LLParserLimits(
    max_items_in_row=25_000, step_max_items=100_000, max_lexer_states=50_000, verbose_errors=False
)

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
    except ValueError as error:
        raise unusable(guide, str(error)) from error
    raise BadInput(
        f"constraint {guide.kind!r} is not known: use json_schema, json_object, regex or lark",
        param="response_format",
    )


def unusable(guide: Guide, why: str) -> BadInput:
    """The refusal of a constraint that cannot be kept."""
    return BadInput(
        f"the {guide.kind.replace('_', ' ')} cannot be used: {why.strip()}", param="response_format"
    )
