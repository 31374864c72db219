"""Chat templates against transformers' own rendering, and what is refused before or inside them."""

from __future__ import annotations

from typing import Any

import pytest
import transformers
from tokenizers import Tokenizer, models

from weighbridge.errors import BadInput, UnsupportedModel
from weighbridge.models.text.chat_template import ChatTemplate, plain_messages

NAMES = {"bos_token": "<s>", "eos_token": "</s>"}
PARAMETERS = {"type": "object", "größe": [1]}
TOOL = {
    "type": "function",
    "function": {"name": "weigh", "description": "Weigh <it> & say", "parameters": PARAMETERS},
}
USER = {"role": "user", "content": 'Hi <b>there</b> & "you"\n'}

TEMPLATES = {
    "whitespace": "{% for m in messages %}\n    {%- if m.role == 'user' %}\n  [{{ m.content | trim }}]\n"
    "    {% endif %}\n{% endfor %}\nend{{ eos_token }}",
    "tojson": "{{ bos_token }}{% for t in tools or [] %}{{ t | tojson }}|"
    "{{ t | tojson(indent=2) }}{% endfor %}",
    "loop controls": "{% for m in messages %}{% if loop.index > 1 %}{% break %}{% endif %}"
    "{{ m.content }}{% endfor %}",
    "generation": "{% for m in messages %}{% generation %}{{ m.content }}{% endgeneration %}{% endfor %}",
    "namespace": "{% set ns = namespace(n=0) %}{% for m in messages %}{% set ns.n = ns.n + 1 %}{% endfor %}"
    "{{ ns.n }}",
    "options": "{% if enable_thinking is defined and enable_thinking %}<think>{% endif %}"
    "{{ add_generation_prompt }}",
    "macro": "{% macro say(x) %}<{{ x }}>{% endmacro %}{{ say(messages[0]['content']) }}"
    "{{ messages[-1].role }}",
    "undefined": "[{{ nothing }}][{{ messages[0].name }}]{{ documents is none }}",
}


def oracle(template: str, messages: list[dict[str, Any]], **options: Any) -> str:
    wrapped = transformers.PreTrainedTokenizerFast(tokenizer_object=Tokenizer(models.BPE()), **NAMES)
    return wrapped.apply_chat_template(messages, chat_template=template, tokenize=False, **options)


@pytest.mark.parametrize("name", TEMPLATES)
@pytest.mark.parametrize("tools", [None, [TOOL]])
def test_renders_as_transformers(name: str, tools: list[dict[str, Any]] | None) -> None:
    template, messages = TEMPLATES[name], [USER, {"role": "assistant", "content": "Ja, größer"}]
    expected = oracle(template, messages, tools=tools, add_generation_prompt=True, enable_thinking=True)
    assert (
        ChatTemplate({"default": template}, NAMES).render(messages, tools, enable_thinking=True) == expected
    )


def render(template: str, messages: Any, **options: Any) -> str:
    return ChatTemplate({"default": template}, NAMES).render(messages, **options)


def test_parts_are_joined_and_null_is_empty() -> None:
    show = "{% for m in messages %}[{{ m.role }}:{{ m.content }}]{% endfor %}"
    parts = [{"type": "text", "text": "a"}, {"type": "text", "text": "b"}]
    messages = [{"role": "user", "content": parts}, {"role": "whoever", "content": None}, {"role": "tool"}]
    assert render(show, messages) == "[user:ab][whoever:][tool:]"
    assert messages[0]["content"] is parts  # the caller's messages stay as they are


def test_a_developer_is_the_system_to_templates_that_do_not_know_one() -> None:
    show = "{% for m in messages %}[{{ m.role }}:{{ m.content }}]{% endfor %}"
    messages = [{"role": "developer", "content": "be brief"}, {"role": "user", "content": "x"}]
    assert render(show, messages) == "[system:be brief][user:x]"
    assert render("{# developer #}" + show, messages) == "[developer:be brief][user:x]"
    assert messages[0]["role"] == "developer", "the caller's messages stay as they are"


def test_arguments_of_tool_calls_become_objects() -> None:
    show = "{{ messages[0].tool_calls[0].function.arguments.kg }}"

    def call(arguments: object) -> list[dict[str, Any]]:
        function = {"name": "weigh", "arguments": arguments}
        return [{"role": "assistant", "content": None, "tool_calls": [{"id": "1", "function": function}]}]

    assert render(show, call('{"kg": 7}')) == render(show, call({"kg": 7})) == "7"
    assert render(show, call("")) == ""
    assert render("{{ messages[0].tool_calls[0].function.arguments }}", call('{"kg": ')) == '{"kg": ', (
        "cut off: text"
    )


@pytest.mark.parametrize(
    ("messages", "words"),
    [
        ([], "at least one"),
        ("hello", "must be a list"),
        ({"role": "user"}, "must be a list"),
        ([{"content": "x"}], r"messages\[0\] must be an object with a role"),
        ([USER, "x"], r"messages\[1\]"),
        ([{"role": "user", "content": 5}], "string or a list"),
        ([{"role": "user", "content": [{"type": "image_url", "image_url": {}}]}], "image_url"),
        ([{"role": "user", "content": ["x"]}], "part of type 'str'"),
        ([{"role": "user", "content": [{"type": "text"}]}], "part of type 'text'"),
        ([{"role": "assistant", "tool_calls": [{}]}], "must be an object with a function"),
        ([{"role": "assistant", "tool_calls": 7}], "tool_calls must be a list"),
    ],
)
def test_malformed_messages_are_named(messages: Any, words: str) -> None:
    with pytest.raises(BadInput, match=words):
        render("{{ messages }}", messages)


@pytest.mark.parametrize(
    ("template", "words"),
    [
        ("{{ raise_exception('roles must alternate') }}", "roles must alternate"),
        ("{{ 1 / 0 }}", "division by zero"),
        ("{{ messages[0].content + 5 }}", "str"),
        ("{{ nothing.at.all }}", "nothing"),
        ("{{ messages.append(1) }}", "not safe|unsafe|not callable"),
        ("{{ ''.__class__.__mro__ }}", "unsafe"),
        ("{% for i in range(10**9) %}{% endfor %}", "[Rr]ange"),
    ],
)
def test_what_a_template_refuses_is_the_caller_s_error(template: str, words: str) -> None:
    with pytest.raises(BadInput, match=words):
        render(template, [USER])


def test_broken_template_is_named_at_load() -> None:
    with pytest.raises(UnsupportedModel, match="line 2"):
        ChatTemplate({"default": "ok\n{% if %}"}, NAMES)


def test_tools_are_supported_when_the_template_reads_them() -> None:
    assert ChatTemplate({"default": "{% if tools %}{{ tools }}{% endif %}"}, {}).supports_tools
    assert not ChatTemplate({"default": "no tools here {{ messages }}"}, {}).supports_tools
    assert ChatTemplate({"default": "{{ messages }}", "tool_use": "{{ tools }}"}, {}).supports_tools


@pytest.mark.parametrize("wrong", [{}, [None], 7, True])
def test_ids_of_calls_and_of_their_results_are_texts(wrong: Any) -> None:
    call = {"id": wrong, "type": "function", "function": {"name": "weigh", "arguments": "{}"}}
    for message in (
        {"role": "tool", "content": "", "tool_call_id": wrong},
        {"role": "assistant", "tool_calls": [call]},
    ):
        with pytest.raises(BadInput, match="must be a string"):
            plain_messages([message])
