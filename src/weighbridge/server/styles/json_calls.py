"""Calls as JSON objects, `{"name": "look", "arguments": {"key": "a"}}`, in the frames that models put around them.

<tool_call>{...}</tool_call>                   Hermes, Qwen 2.5 and 3
<|python_tag|>{...}; {...}                     Llama 3, whose calls mostly come without the mark
<|tool_call|>[{...}, {...}]                    Granite
```json                                        Qwen2.5-Coder, whatever its template asks for
{...}
```
"""

from __future__ import annotations

from weighbridge.server.styles.reading import (
    SPACE,
    CallOpening,
    Calls,
    NoCall,
    Reading,
    ToolStyle,
    after_space,
    expect,
    literal,
    string,
    value,
    word,
)

#: What may stand behind ``` where calls follow.
_FENCES = ("", "json", "tool_call")
#: The keys that the object of a call has.
_KEYS = frozenset(("name", "arguments", "parameters", "type", "id", "index", "strict"))


class _Call:
    """The object of one call, key by key. The calls are told of it as soon as it is certain."""

    def __init__(self, calls: Calls, marked: bool) -> None:
        self._calls = calls
        self._marked = marked
        self._name = ""
        self._arguments: list[str] = []  # come before the name
        self.certain = False
        self._have_arguments = False

    def value(self, key: str, first: str) -> Reading[str]:
        """The value of `key`, whose first character has come. What it returns has come after it."""
        if not (self._marked or self.certain or key in _KEYS):
            raise NoCall
        if key == "name" and not self._name:
            expect(first, '"')
            self._name = yield from string()
            if self._name not in self._calls.tools:
                raise NoCall
            if self._have_arguments:
                self._add("")
        elif key in ("arguments", "parameters") and not self._have_arguments:
            expect(first, '{"')
            self._have_arguments = True
            if first == '"':
                self._add((yield from string()))
            else:
                yield from value(first, self._add)
        elif first in '{["':
            yield from value(first, lambda _: None)
        else:
            return (yield from word())
        return ""

    def _add(self, text: str) -> None:
        self._arguments.append(text)
        if not self._name:
            return
        if not self.certain:
            self.certain = True
            self._calls.begin(self._name)
        self._calls.argue("".join(self._arguments))
        self._arguments.clear()


def one_call(calls: Calls, character: str, marked: bool = True) -> Reading[None]:
    """One call's object, whose first character has come. Not `marked`: it may be any object, and is shown as soon as
    it has a key that calls have not."""
    expect(character, "{")
    call = _Call(calls, marked)
    while True:
        expect((yield from after_space()), '"')
        key = yield from string()
        expect((yield from after_space()), ":")
        after = (yield from call.value(key, (yield from after_space()))) or (yield from after_space())
        if expect(after, ",}") == "}":
            break
    if not call.certain:
        raise NoCall
    calls.end()


def some_calls(calls: Calls, character: str, marked: bool = True) -> Reading[None]:
    """One call, or a list of them; the first character has come."""
    if character != "[":
        yield from one_call(calls, character, marked)
        return
    while True:
        yield from one_call(calls, (yield from after_space()), marked)
        if expect((yield from after_space()), ",]") == "]":
            return


def _object(calls: Calls) -> Reading[None]:
    yield from one_call(calls, (yield from after_space()))


def marked(calls: Calls) -> Reading[None]:
    """What follows a mark that stands before one call or a list of them."""
    yield from some_calls(calls, (yield from after_space()))


def _bare(calls: Calls) -> Reading[None]:
    """Calls that are the whole answer: a list, or objects with semicolons or lines between."""
    character = yield from after_space()
    if character == "[":
        yield from some_calls(calls, character, marked=False)
        return
    while True:
        yield from one_call(calls, character, marked=False)
        character = yield from after_space()
        if character == ";":
            character = yield from after_space()


def _fenced(calls: Calls) -> Reading[None]:
    """A fence with nothing but calls in it: one, a list, or one behind the other."""
    info = ""
    while (character := (yield)) != "\n":
        info += character
        if not any(fence.startswith(info.strip(SPACE)) for fence in _FENCES) or len(info) > 16:
            raise NoCall
    if info.strip(SPACE) not in _FENCES:
        raise NoCall
    yield from some_calls(calls, (yield from after_space()), marked=False)
    while (character := (yield from after_space())) != "`":
        yield from some_calls(calls, character, marked=False)
    yield from literal("``")
    calls.end()


_TAGS = ("<tool_call>", "</tool_call>")
TAGGED = CallOpening("<tool_call>", _object, ("</tool_call>",))
BARE = CallOpening("", _bare)
FENCED = CallOpening("```", _fenced, ("```",), starts_line=True, reads_ends=True)
_PYTHON = CallOpening("<|python_tag|>", _bare)
_LISTED = (
    CallOpening("<|tool_call|>", marked),
    CallOpening("<tool_call>", marked, ("</tool_call>",)),
)

HERMES = ToolStyle("hermes", (TAGGED, FENCED, BARE), _TAGS)
LLAMA = ToolStyle("llama3", (_PYTHON, FENCED, BARE), (_PYTHON.mark,))
GRANITE = ToolStyle("granite", (*_LISTED, FENCED, BARE), ("<|tool_call|>", *_TAGS))
FORCED = ToolStyle("forced", (BARE,))
