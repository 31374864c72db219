"""Chat templates: the Jinja program a model brings along that turns messages into its prompt.

The environment has the settings and helpers that Hugging Face transformers gives templates, since they are
written against it; templates are untrusted, so they run in a sandbox with a budget (`template_sandbox.py`).
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from contextlib import suppress
from datetime import datetime
from traceback import walk_tb
from typing import Any, NoReturn

import jinja2
from jinja2 import meta, nodes
from jinja2.ext import Extension, loopcontrols
from jinja2.parser import Parser

from weighbridge.errors import BadInput, UnsupportedModel
from weighbridge.models.text.template_sandbox import (
    BudgetedEnvironment,
    RenderBudget,
    Rendering,
    TemplateStopped,
)

Message = Mapping[str, Any]

#: Characters of all templates of a model; the longest there are have some 20,000.
MAX_SOURCE = 100_000
#: Characters of what a template may say about messages that it refuses.
MAX_WORDS = 1000


#: Characters of a template's line in a message about it.
_LONGEST_LINE = 80
# No character of any text: it ends an answer that has begun. The space behind it tells whether the template trims.
_BEGUN = "\ufdd2"


class _GenerationTag(Extension):
    """{% generation %} marks what the model wrote, for training; here only its contents count."""

    tags = {"generation"}  # noqa: RUF012 (declared so by jinja2)

    def parse(self, parser: Parser) -> list[nodes.Node]:
        next(parser.stream)
        return parser.parse_statements(("name:endgeneration",), drop_needle=True)


def _raise_exception(message: str) -> NoReturn:
    raise jinja2.TemplateError(message)


def _to_json(
    value: Any,
    ensure_ascii: bool = False,
    indent: int | None = None,
    separators: tuple[str, str] | None = None,
    sort_keys: bool = False,
) -> str:
    """Write plain JSON: jinja's own filter would escape <, > and & for HTML."""
    return json.dumps(
        value, ensure_ascii=ensure_ascii, indent=indent, separators=separators, sort_keys=sort_keys
    )


def _now(form: str) -> str:
    return datetime.now().strftime(form)


def _environment() -> BudgetedEnvironment:
    environment = BudgetedEnvironment(
        trim_blocks=True, lstrip_blocks=True, extensions=[_GenerationTag, loopcontrols]
    )
    environment.add_filter("tojson", _to_json)
    environment.globals["raise_exception"] = _raise_exception
    environment.globals["strftime_now"] = _now
    return environment


class ChatTemplate:
    """A model's template, or several by name: "tool_use" serves requests with tools, "default" the others."""

    def __init__(self, sources: Mapping[str, str], special_tokens: Mapping[str, str]) -> None:
        """`sources` has "default". Raises UnsupportedModel for a template with a mistake in it."""
        length = sum(len(source) for source in sources.values())
        if length > MAX_SOURCE:
            raise UnsupportedModel(
                f"the model's chat template has {length} characters, more than {MAX_SOURCE}"
            )
        environment = _environment()
        self._special_tokens = dict(special_tokens)
        self._templates = {name: _compile(environment, source) for name, source in sources.items()}
        self.text = "\n".join(sources.values())
        self._knows_developers = any("developer" in source for source in sources.values())
        self.supports_tools = any("tools" in _variables(environment, source) for source in sources.values())

    def _in_its_roles(self, messages: list[dict[str, Any]]) -> list[dict[str, Any]]:
        """A developer speaks as the system to templates that do not know that role: they would leave out what it says,
        or write a role that the model has never seen."""
        if self._knows_developers:
            return messages
        return [{**one, "role": "system"} if one["role"] == "developer" else one for one in messages]

    def render(
        self,
        messages: Sequence[Message],
        tools: Sequence[Mapping[str, Any]] | None = None,
        add_generation_prompt: bool = True,
        **variables: Any,
    ) -> str:
        """Return the prompt for `messages`; `variables` are the template's own, such as `enable_thinking`.

        Raises BadInput for malformed messages and for what the template itself refuses, with its words.
        """
        settings = {
            "documents": None,
            **self._special_tokens,
            **variables,
            "messages": self._in_its_roles(plain_messages(messages)),
            "tools": [dict(tool) for tool in tools] if tools else None,
            "add_generation_prompt": add_generation_prompt,
        }
        begun = is_begun(settings["messages"])
        if begun:
            last = settings["messages"][-1]
            settings["messages"][-1] = {**last, "content": f"{last['content']}{_BEGUN} "}
            settings["add_generation_prompt"] = False
        template = self._templates.get("tool_use") if tools else None
        template = template or self._templates["default"]
        try:
            text = _rendered(template, settings)
        except (TemplateStopped, RecursionError) as error:
            why = error if isinstance(error, TemplateStopped) else "it calls itself too often"
            raise BadInput(
                f"the model's chat template is stopped: {why}; use a template that does less (chat_template.jinja)",
                param="messages",
            ) from error
        except Exception as error:  # whatever a template may raise, it is these messages that it cannot take
            raise BadInput(
                f"the model's chat template refuses these messages: {_words(error)}{_line_of(error)}",
                param="messages",
            ) from error
        return _cut(text) if begun else text


def is_begun(messages: Sequence[Message]) -> bool:
    """Whether the last message is an answer that has begun, and is to go on: marked by `prefix`, as DeepSeek and
    Mistral have it."""
    return bool(messages) and messages[-1].get("role") == "assistant" and messages[-1].get("prefix") is True


def _cut(text: str) -> str:
    """Leave out what a template writes behind an answer; where it trims those, the space at the end of this one too.

    Raises BadInput for a template that does not show it.
    """
    at = text.rfind(_BEGUN)
    if at < 0:
        message = "the model's chat template does not show the last message, so that it cannot go on"
        raise BadInput(message, param="messages")
    return text[:at] if text.startswith(f"{_BEGUN} ", at) else text[:at].rstrip()


def _quoted(line: Sequence[str]) -> str:
    return f" ({line[0].strip()[:_LONGEST_LINE]})" if line else ""


def _line_of(error: Exception) -> str:
    """On which line of the template it was raised, where that is known and the template did not mean to."""
    lines = [line for frame, line in walk_tb(error.__traceback__) if frame.f_code.co_filename == "<template>"]
    return f" (line {lines[-1]})" if lines and type(error) is not jinja2.TemplateError else ""


def _rendered(template: jinja2.Template, settings: Mapping[str, Any]) -> str:
    """Render within a budget that grows with what is given."""
    with Rendering(RenderBudget(settings)):
        return template.render(settings)


def _compile(environment: BudgetedEnvironment, source: str) -> jinja2.Template:
    try:
        with Rendering(RenderBudget(source)):
            template: jinja2.Template = environment.compiled(source)
        return template
    except jinja2.TemplateSyntaxError as error:
        line = source.splitlines()[error.lineno - 1 : error.lineno]
        raise UnsupportedModel(
            f"the model's chat template has a mistake on line {error.lineno}: {_words(error)}{_quoted(line)}"
        ) from error
    except Exception as error:  # nested too deeply for the parser, or for Python's
        raise UnsupportedModel(
            f"the model's chat template cannot be compiled: {_words(error) or type(error).__name__}"
        ) from error


def _variables(environment: jinja2.Environment, source: str) -> set[str]:
    """Names that a template reads and does not set."""
    return meta.find_undeclared_variables(environment.parse(source))


def _words(error: Exception) -> str:
    """What an error says, without what a template might append to it."""
    words = str(error)
    return words if len(words) <= MAX_WORDS else f"{words[:MAX_WORDS]}…"


def plain_messages(messages: object) -> list[dict[str, Any]]:
    """Return messages with their contents as one string each, and the arguments of tool calls as objects.

    Raises BadInput naming the message that is none.
    """
    return [_plain_message(message, index) for index, message in enumerate(_listed(messages))]


def _listed(messages: object) -> Sequence[object]:
    if not isinstance(messages, Sequence) or isinstance(messages, str | bytes) or not messages:
        raise BadInput("messages must be a list with at least one message", param="messages")
    return messages


def _plain_message(message: object, index: int) -> dict[str, Any]:
    """Return a copy with its content as one string and the arguments of tool calls as objects."""
    where = f"messages[{index}]"
    if not isinstance(message, Mapping) or not isinstance(message.get("role"), str):
        raise BadInput(f"{where} must be an object with a role", param=where)
    plain = {
        **message,
        "content": _text(message.get("content") or message.get("refusal"), f"{where}.content"),
    }
    _check_id(message.get("tool_call_id"), f"{where}.tool_call_id")
    calls = message.get("tool_calls")
    if calls:
        if not isinstance(calls, list):
            raise BadInput(f"{where}.tool_calls must be a list", param=f"{where}.tool_calls")
        plain["tool_calls"] = [_plain_call(call, f"{where}.tool_calls[{n}]") for n, call in enumerate(calls)]
    return plain


#: Parts of a message that are words, each under the name of its kind: what the model said, or would not do.
_WORDS = ("text", "refusal")


def _text(content: object, where: str) -> str:
    if content is None:
        return ""
    if isinstance(content, str):
        return content
    if not isinstance(content, Sequence):
        raise BadInput(f"{where} must be a string or a list of parts", param=where)
    texts = []
    for part in content:
        kind = part.get("type") if isinstance(part, Mapping) else type(part).__name__
        text = part.get(kind) if isinstance(part, Mapping) and kind in _WORDS else None
        if not isinstance(text, str):
            raise BadInput(
                f"{where} has a part of type {kind!r}: this model reads text parts only", param=where
            )
        texts.append(text)
    return "".join(texts)


def _check_id(value: object, where: str) -> None:
    """Calls and their results find each other by ids, so that these are texts."""
    if not isinstance(value, str | None):
        raise BadInput(f"{where} must be a string", param=where)


def _plain_call(call: object, where: str) -> dict[str, Any]:
    """Clients send arguments as a string of JSON; templates expect the object that it spells. What spells none, as in
    a call that was cut off, is text: else no later turn of its conversation could be answered."""
    function = call.get("function") if isinstance(call, Mapping) else None
    if not isinstance(call, Mapping) or not isinstance(function, Mapping):
        raise BadInput(f"{where} must be an object with a function", param=where)
    _check_id(call.get("id"), f"{where}.id")
    arguments = function.get("arguments")
    if isinstance(arguments, str):
        with suppress(ValueError, RecursionError):
            arguments = json.loads(arguments) if arguments.strip() else {}
    return {**call, "function": {**function, "arguments": arguments}}
