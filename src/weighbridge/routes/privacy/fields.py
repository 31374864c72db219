"""Which fields of a chat may leave this machine, and what stands where in one. Pure."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import Enum, auto
from typing import Any

#: Top-level fields that may go to any place. What is not named here (user, metadata, store, ...) stays: it is of
#: no use to a model, and may name people.
_FORWARDED = (
    "messages tools tool_choice parallel_tool_calls response_format stop temperature top_p top_k min_p "
    "presence_penalty frequency_penalty repetition_penalty seed max_tokens max_completion_tokens n "
    "logprobs top_logprobs reasoning_effort"
)
FORWARDED = frozenset(_FORWARDED.split())
#: Further fields that our own engines understand and that say what an answer must be: they never cross the boundary,
#: and a request that has one is answered on this side, or by nobody.
_HELD = (
    "logit_bias stop_token_ids ignore_eos min_tokens structured_outputs guided_json guided_regex guided_choice "
    "guided_grammar json_schema regex grammar ebnf bad_words allowed_token_ids include_stop_str_in_output "
    "prompt_logprobs continue_final_message"
)
HELD = frozenset(_HELD.split())
#: Those of them for which 0 is a wish, too.
_NUMBERS = frozenset({"prompt_logprobs"})
#: The same, of which an answer can do without.
EDGE_ONLY = HELD | {"chat_template_kwargs", "add_generation_prompt"}


def held_in(body: Mapping[str, Any]) -> list[str]:
    """The fields of a request that hold its answer to something and stay on this side."""
    return sorted(name for name in HELD & body.keys() if body[name] or (name in _NUMBERS and body[name] == 0))


# -- what a chat is made of ------------------------------------------------------------------------------


class TextKind(Enum):
    """What may stand in a string of the body."""

    TEXT = auto()  # anything: a value becomes `[EMAIL_1]`
    NAME = auto()  # letters, digits, `_` and `-` only: a value becomes `EMAIL_1`
    WORD = auto()  # the API's own words; nothing may stand for a value
    RULE = auto()  # what an answer is held to: with a placeholder in it, it would ask for another answer


@dataclass(frozen=True, slots=True)
class Field:
    """A position of the body: what a string there is, and what is inside of an object or a list there.

    `words` are the API's own for a string here, `fields` are names that the API gives: both are exempt from looking,
    and nothing else is. `others` are under names that somebody else gave.
    """

    kind: TextKind = TextKind.TEXT
    words: frozenset[str] = frozenset()
    fields: Mapping[str, Field] = field(default_factory=dict)
    others: Field | None = None
    items: Field | None = None
    names: TextKind = TextKind.NAME  # what may stand in the names that somebody else gave

    def below(self, name: str) -> Field:
        return self.fields.get(name) or self.others or self.inside

    @property
    def inside(self) -> Field:
        """What is inside of anything here that nothing more is said of, as JSON in a string."""
        return RULE if self.kind is TextKind.RULE else ANY

    @property
    def each(self) -> Field:
        return self.items or self.inside


def _word(words: str) -> Field:
    allowed = frozenset(words.split())
    return Field(TextKind.WORD, allowed, items=Field(TextKind.WORD, allowed))


def _fields(named: Mapping[str, Field], texts: str = "") -> Field:
    """An object of named fields; those of `texts` hold anything."""
    return Field(fields={**dict.fromkeys(texts.split(), ANY), **named})


ANY = Field()
#: What an answer must equal or match, whole, at every depth.
RULE = Field(TextKind.RULE, names=TextKind.RULE)
NAME = Field(TextKind.NAME, items=Field(TextKind.NAME))
_FUNCTION = _word("function")

#: JSON Schema: its keywords are the API's, the names of properties and definitions are not.
_KEYWORDS: dict[str, Field] = {}
SCHEMA = Field(fields=_KEYWORDS)
_OF_SCHEMA = Field(fields=_KEYWORDS, items=SCHEMA)
_BY_NAME = Field(others=SCHEMA)
_TYPES = "object array string number integer boolean null"
_FORMATS = "date date-time time duration email hostname ipv4 ipv6 uuid uri uri-reference regex int32 int64 float double"
_NAMERS = "properties $defs definitions patternProperties dependentSchemas"
_SCHEMAS = (
    "items prefixItems additionalProperties contains not if then else anyOf oneOf allOf propertyNames "
    "unevaluatedProperties"
)
_VALUES = "title description default examples $schema $id $comment"
_FIGURES = (
    "minimum maximum exclusiveMinimum exclusiveMaximum multipleOf minLength maxLength minItems maxItems uniqueItems "
    "minProperties maxProperties nullable strict deprecated readOnly writeOnly"
)
_KEYWORDS.update(dict.fromkeys(_NAMERS.split(), _BY_NAME))
_KEYWORDS.update(dict.fromkeys(_SCHEMAS.split(), _OF_SCHEMA))
_KEYWORDS.update(dict.fromkeys(_VALUES.split(), ANY))
_KEYWORDS.update(dict.fromkeys(("enum", "const", "pattern"), RULE))
_KEYWORDS["patternProperties"] = Field(others=SCHEMA, names=TextKind.RULE)
_KEYWORDS.update(dict.fromkeys(_FIGURES.split(), _word("")))
_KEYWORDS["type"], _KEYWORDS["format"] = _word(_TYPES), _word(_FORMATS)
_KEYWORDS["required"] = _KEYWORDS["$ref"] = NAME
_KEYWORDS["dependentRequired"] = Field(others=NAME)

_CALLED = _fields({"name": NAME}, "arguments")
_CALL = _fields({"id": NAME, "type": _word("function custom"), "function": _CALLED, "index": ANY})
_PART = _fields(
    {
        "type": _word("text refusal image_url input_audio file video_url"),
        "image_url": _fields({"detail": _word("auto low high")}, "url"),
        "input_audio": _fields({"format": _word("wav mp3")}, "data"),
        "file": _fields({"file_id": NAME}, "filename file_data"),
        "cache_control": _fields({"type": _word("ephemeral")}),
    },
    "text refusal",
)
#: The content of a message: a text, or parts.
PARTS = Field(items=_PART)
_MESSAGE = _fields(
    {
        "role": _word("system developer user assistant tool function"),
        "content": PARTS,
        "name": NAME,
        "tool_calls": Field(items=_CALL),
        "tool_call_id": NAME,
        "function_call": _CALLED,
    },
    "refusal reasoning_content reasoning",
)
_TOOL = _fields(
    {
        "type": _FUNCTION,
        "function": _fields({"name": NAME, "parameters": SCHEMA}, "description strict"),
    }
)
_FORMAT = _fields(
    {
        "type": _word("text json_object json_schema"),
        "json_schema": _fields({"name": NAME, "schema": SCHEMA}, "description strict"),
    }
)
_CHOICE = Field(
    TextKind.WORD,
    frozenset(("auto", "none", "required")),
    fields={"type": _FUNCTION, "function": _fields({"name": NAME})},
)
#: Fields that hold a number or a switch: nothing can stand for a value there.
_SETTINGS = FORWARDED - {"messages", "tools", "tool_choice", "response_format", "stop", "reasoning_effort"}
#: The whole body of a chat.
BODY = Field(
    fields={
        **dict.fromkeys(FORWARDED | EDGE_ONLY, ANY),
        **dict.fromkeys(_SETTINGS, _word("")),
        "messages": Field(items=_MESSAGE),
        "tools": Field(items=_TOOL),
        "tool_choice": _CHOICE,
        "response_format": _FORMAT,
        "reasoning_effort": _word("none minimal low medium high xhigh"),
    }
)


def _own(top: Field) -> frozenset[str]:
    """Every name and word that the API gives anywhere."""
    found: set[str] = set()
    met: set[int] = set()
    left = [top]
    while left:
        one = left.pop()
        if id(one) not in met:
            met.add(id(one))
            found |= one.words | one.fields.keys()
            left += [each for each in (*one.fields.values(), one.others, one.items) if each is not None]
    return frozenset(found)


#: What the API says of itself, wherever it stands.
VOCABULARY = _own(BODY)
