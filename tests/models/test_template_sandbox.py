"""Templates that would take all there is: one sentence, few steps and little memory, whatever they are made of."""

from __future__ import annotations

import tracemalloc
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from weighbridge.errors import BadInput, UnsupportedModel
from weighbridge.models.text import template_sandbox
from weighbridge.models.text.chat_template import MAX_SOURCE, ChatTemplate
from weighbridge.models.text.template_sandbox import RenderBudget, TemplateStopped

HI = [{"role": "user", "content": "hi"}]
GROW = "{% set ns = namespace(x='ab', y='ab') %}{% for i in range(100) %}"

#: A loop of 10^10 and what else never ends.
LONG = {
    "loops": "{% for i in range(100000) %}{% for j in range(100000) %}{% endfor %}{% endfor %}",
    "loops over what is left out": (
        "{% for i in range(100000) %}{% for j in range(100000) if j < 0 %}{% endfor %}{% endfor %}"
    ),
    "loops whose names are taken": (
        "{% set environment = 1 %}{% set tick = 2 %}"
        "{% for i in range(100000) %}{% for j in range(100000) %}{% endfor %}{% endfor %}"
    ),
    "filters": "{% for i in range(9999) %}{{ range(100000)|map('string')|list|length }}{% endfor %}",
    "a macro of two branches": (
        "{% macro m(n) %}{% if n < 60 %}{{ m(n + 1) }}{{ m(n + 1) }}{% endif %}{% endmacro %}{{ m(0) }}"
    ),
    "comparisons": (
        "{% set a = 'a' * 1000000 %}{% set b = a ~ 'c' %}{% set c = a ~ 'c' %}"
        "{% for i in range(100000) %}{% if b == c %}{% endif %}{% endfor %}"
    ),
    "searches": (
        "{% set a = range(30000)|list %}{% for i in range(100000) %}{% if 'x' in a %}{% endif %}{% endfor %}"
    ),
    "sorts": "{% set a = range(30000)|list %}{% for i in range(100000) %}{% set x = a|sort %}{% endfor %}",
    "slices": "{% set a = range(30000)|list %}{% for i in range(100000) %}{% set x = a[::-1] %}{% endfor %}",
    "splits": "{% set a = 'a b ' * 50000 %}{% for i in range(100000) %}{% set x = a.split() %}{% endfor %}",
}
RECURSIVE = {
    "a macro": "{% macro m(n) %}{{ m(n + 1) }}{% endmacro %}{{ m(0) }}",
    "a loop": "{% for x in [1, 2] recursive %}{{ loop([1, 2]) }}{% endfor %}",
    "a block": "{% block a %}{{ self.a() }}{{ self.a() }}{% endblock %}",
}
LARGE = {
    "~": GROW + "{% set ns.x = ns.x ~ ns.x %}{% endfor %}",
    "+": GROW + "{% set ns.x = ns.x + ns.x %}{% endfor %}",
    "set block": GROW + "{% set y %}{{ ns.x }}{{ ns.x }}{% endset %}{% set ns.x = y %}{% endfor %}",
    "macros": (
        "{% macro d(x) %}{{ x }}{{ x }}{% endmacro %}"
        + GROW
        + "{% set ns.x = d(ns.x) %}{% endfor %}{{ ns.x }}"
    ),
    "lists of themselves": GROW + "{% set ns.x = [ns.x, ns.x] %}{% endfor %}{{ ns.x }}",
    "dicts of themselves": GROW + "{% set ns.x = {'a': ns.x, 'b': ns.x} %}{% endfor %}{{ ns.x | tojson }}",
    "equal lists": (
        GROW + "{% set ns.x = [ns.x, ns.x] %}{% set ns.y = [ns.y, ns.y] %}{% endfor %}{{ ns.x == ns.y }}"
    ),
    "output": "{% for i in range(1000) %}{{ 'a' * 10000 }}{% endfor %}",
    "a view again and again": "{{ [{'a': 'b' * 100000}.items()] * 1000 }}",
    "text *": "{{ 'a' * 10**10 }}",
    "* text": "{{ 10**9 * 'a' }}",
    "list *": "{{ [1] * 10**9 }}",
    "ljust": "{{ 'a'.ljust(1000000000) }}",
    "zfill": "{{ 'a'.zfill(1000000000) }}",
    "center": "{{ 'a' | center(1000000000) }}",
    "expandtabs": "{{ ('\t' * 1000).expandtabs(100000) }}",
    "indent": "{{ ('\n' * 100000) | indent(50) }}",
    "indent by text": "{{ ('\n' * 100000) | indent('a' * 100) }}",
    "tojson": "{{ [[1]] | tojson(indent=1000000000) }}",
    "batch": "{{ [1] | batch(1000000000, 'x') | list }}",
    "slice": "{{ [1] | slice(1000000000) | list }}",
    "replace": "{{ ('a' * 100000).replace('a', 'b' * 100000) }}",
    "replace filter": "{{ ('a' * 100000) | replace('a', 'b' * 100000) }}",
    "join": "{{ ('a' * 100000).join('b' * 100000) }}",
    "join filter": "{{ range(100000) | join('b' * 100000) }}",
    "many places": "{{ ('%s' * 1000) | format(*(['a' * 10000] * 1000)) }}",
    "urlencode": "{{ ('ä' * 1000000) | urlencode }}",
    "cycler": "{% set c = cycler('a' * 1000000) %}{% for i in range(9) %}{{ c.next() }}{% endfor %}",
}
WIDE = {
    "%": "{{ '%1000000000d' % 1 }}",
    "% *": "{{ '%*d' % (1000000000, 1) }}",
    "% name": "{{ '%(a)1000000000d' % {'a': 1} }}",
    "precision": "{{ '%.1000000000f' % 1.5 }}",
    "format filter": "{{ '%1000000000d' | format(1) }}",
    "format": "{{ '{:1000000000}'.format(1) }}",
    "nested format": "{{ '{:{}}'.format(1, 1000000000) }}",
    "format_map": "{{ '{a:>1000000000}'.format_map({'a': 1}) }}",
}
NUMBERS = {
    "power": "{{ 2 ** 100000000 }}",
    "tower": "{{ 10 ** (10 ** 10) }}",
    "squares": "{% set ns = namespace(x=10) %}{% for i in range(99) %}{% set ns.x = ns.x * ns.x %}{% endfor %}",
}
OTHER = {
    "nests values too deeply": "{% set ns = namespace(x=(1,)) %}{% for i in range(90000) %}"
    "{% set ns.x = (ns.x,) %}{% endfor %}{{ {ns.x: 1} }}",
    "rounds to more places": "{{ 1.5 | round(100000000, 'ceil') }}",
    "adds lists up": "{{ [[1], [2]] | sum(start=[]) }}",
    "calls to_bytes": "{{ (5).to_bytes(1000000000, 'big') }}",
    "calls translate": "{{ 'aaa'.translate({97: 'b' * 1000000}) }}",
    "a namespace as a value": "{% set ns = namespace(x='a' * 1000000) %}{{ [ns] * 10000 }}",
}
CASES = [
    *((text, "too many steps") for text in LONG.values()),
    *((text, "calls itself too often") for text in RECURSIVE.values()),
    *((text, "text or list that is too long") for text in LARGE.values()),
    *((text, "wider than 9999") for text in WIDE.values()),
    *((text, "numbers that are too large") for text in NUMBERS.values()),
    *((text, words) for words, text in OTHER.items()),
]
NAMES = [*LONG, *RECURSIVE, *LARGE, *WIDE, *NUMBERS, *OTHER]


@pytest.mark.parametrize(("source", "words"), CASES, ids=NAMES)
def test_a_hostile_template_is_stopped(source: str, words: str) -> None:
    tracemalloc.start()
    try:
        with pytest.raises(BadInput, match=rf"chat template is stopped: .*{words}") as raised:
            ChatTemplate({"default": source}, {}).render(HI)
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert len(str(raised.value)) < 200
    assert peak < 48 << 20


@pytest.mark.parametrize(
    "source",
    [
        "{{ " + "(" * 40_000 + "1" + ")" * 40_000 + " }}",
        "{{ a" + ".b" * 40_000 + " }}",
        "{{ " + "not " * 20_000 + "1 }}",
        "{{ " + "-" * 40_000 + "1 }}",
        "{{ " + "[" * 40_000 + "]" * 40_000 + " }}",
        "{% if 1 %}" * 4_000 + "{% endif %}" * 4_000,
        "{% for i in [1] %}" * 100 + "{% endfor %}" * 100,
        "a" * (MAX_SOURCE + 1),
        "{{ messages | urlize }}",
        "{% no_such_tag %}",
        "{{ 'a' | center(1000000000) | no_such_filter }}",
    ],
    ids=lambda source: source[:12],
)
def test_a_template_that_cannot_be_compiled_is_one_sentence(source: str) -> None:
    with pytest.raises(UnsupportedModel, match="the model's chat template") as raised:
        ChatTemplate({"default": source}, {})
    assert len(str(raised.value)) < 400


def test_what_a_template_says_is_cut() -> None:
    source = "{{ raise_exception('why ' * 100000) }}"
    with pytest.raises(BadInput, match="refuses these messages: why why") as raised:
        ChatTemplate({"default": source}, {}).render(HI)
    assert len(str(raised.value)) < 1_200


def test_a_budget_is_gone_after_the_rendering_and_new_for_the_next() -> None:
    template = ChatTemplate(
        {"default": "{% for i in range(15000) %}{% endfor %}{{ messages[0].content }}"}, {}
    )
    assert [template.render(HI) for _ in range(3)] == ["hi"] * 3
    with pytest.raises(TemplateStopped, match="without a budget"):
        template_sandbox.BudgetedEnvironment().from_string("{{ 1 + x }}").render(x=1)


USUAL = (
    "{% macro show(m) %}<{{ m.role }}>{{ m.content | trim }}{% endmacro %}"
    "{% set ns = namespace(last=none, calls=[1]) %}{% for m in messages %}{% set ns.last = m.role ~ ':' %}"
    "{% if m.content is string and '</think>' in m.content %}{{ m.content.split('</think>')[-1].lstrip('\n') }}"
    "{% else %}{{ show(m) }}{% endif %}{% endfor %}"
    "{% for t in tools or [] %}{{ t | tojson(indent=4) | indent(4) }}{% endfor %}{{ ns.last }}{{ ns.calls | length }}"
)


@pytest.mark.parametrize(("count", "size"), [(1, 4_000_000), (3_000, 2), (300, 3_000)])
def test_long_chats_are_within_the_budget(count: int, size: int) -> None:
    """What is given may be long: many messages, or much in one of them."""
    messages = [
        {"role": "user", "content": "x\ny"[: size % 4 or 3] * max(1, size // 3)} for _ in range(count)
    ]
    text = ChatTemplate({"default": USUAL}, {}).render(messages, [{"name": "a", "lines": ["b"] * 1000}])
    assert len(text) > count * size * 0.9


values: Any = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**60), 2**60) | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=4), inner, max_size=4),
    max_leaves=12,
)


@settings(max_examples=200, deadline=None)
@given(value=values)
def test_a_weight_is_at_least_what_a_value_holds(value: Any) -> None:
    """Every character and item counts, those of shared parts again."""
    budget = RenderBudget(None)

    def held(part: Any) -> int:
        if isinstance(part, str):
            return len(part)
        if isinstance(part, dict):
            return 1 + sum(held(key) + held(inner) for key, inner in part.items())
        return 1 + sum(map(held, part)) if isinstance(part, list) else 1

    assert budget.weigh(value) == held(value)
    shared = [value, value]
    assert budget.weigh([shared, shared]) == held([shared, shared])
