"""Rules for prompts: what they find, that they touch nothing else, and that doing it twice is doing it once."""

from __future__ import annotations

import json
from typing import Any

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from weighbridge.errors import BadInput
from weighbridge.wire.ask import Ask
from weighbridge.wire.prompts.care import MOST_HEADS, Normal, PromptCare, normal, parse_tenant_rules
from weighbridge.wire.prompts.rules import MOVED, PromptRule, says_when, split

ALL = frozenset(PromptRule)
BILLING = "x-anthropic-billing-header: cc_version=2.1.197.b3a; cc_entrypoint=cli; cch=00000;"
GIT = (
    "gitStatus: a snapshot\nCurrent branch: main\n\nStatus:\n M scales.py\n\nRecent commits:\n1a2b3c Weigh it"
)


@pytest.mark.parametrize(
    ("line", "what"),
    [
        ("Today's date: 2026-11-30", "day"),
        ("Today’s date is 30 November 2026.", "day"),
        ("Today is Monday, November 30th, 2026.", "day"),
        ("- **Current date**: 2026/11/30", "day"),
        ("The current date is 30.11.2026", "day"),
        ("Current date and time: 2026-11-30 12:31:07 (Europe/Berlin)", "time"),
        ("The current time is 12:31 UTC.", "time"),
        ("Current time: 4 pm", "time"),
        ("Current timestamp: 1796041867", "time"),
        ("Current datetime: 2026-11-30T12:31:07Z", "time"),
        ("Today's date: see the calendar", ""),
        ("Today is 2026-11-30, and you must hurry.", ""),
        ("Date: 2026-11-30", ""),  # of a letter, say
        ("The current date is important", ""),
        ("Current time: now", ""),
        ("const today = '2026-11-30'", ""),
        ("Today's date: " + "2026-11-30 " * 60, ""),
        ("", ""),
    ],
)
def test_lines_that_say_nothing_but_when_it_is(line: str, what: str) -> None:
    assert says_when(line) == what


def chat(system: Any, *turns: dict[str, Any], tools: Any = None) -> dict[str, msgspec.Raw]:
    messages = [{"role": "system", "content": system}, *turns]
    fields = {"messages": messages, **({"tools": tools} if tools is not None else {})}
    return {name: msgspec.Raw(msgspec.json.encode(value)) for name, value in fields.items()}


def made(fields: dict[str, msgspec.Raw], rules: frozenset[PromptRule] = ALL) -> dict[str, Any]:
    found = normal(fields, rules)
    whole = {**fields, **(found.fields if found is not None else {})}
    return {name: json.loads(bytes(raw)) for name, raw in whole.items()}


HI = {"role": "user", "content": "Weigh it."}


def test_what_an_agent_sends_is_made_steady() -> None:
    parts = [
        {"type": "text", "text": BILLING},
        {"type": "text", "text": "You weigh.", "cache_control": {"type": "ephemeral"}},
        {
            "type": "text",
            "text": f"<env>\nToday's date: 2026-11-30\nCurrent time: 12:31\n</env>\n{GIT}\n\nBe brief.",
        },
    ]
    tools = [{"type": "function", "function": {"name": name}} for name in "ba"]
    fields = chat(parts, HI, tools=tools)
    found = normal(fields, ALL)
    assert found is not None
    whole = made(fields)
    assert [part["text"] for part in whole["messages"][0]["content"]] == [
        "You weigh.",
        f"<env>\n</env>\n\nBe brief.\nToday's date: 2026-11-30\n{GIT}",
    ]
    assert whole["messages"][0]["content"][0]["cache_control"] == {"type": "ephemeral"}
    assert whole["messages"][1]["content"] == f"Weigh it.\n\n{MOVED}\nCurrent time: 12:31"
    assert [tool["function"]["name"] for tool in whole["tools"]] == ["a", "b"]
    assert found.told == [
        {"rule": "billing", "what": "dropped", "lines": 1},
        {"rule": "dates", "what": "moved behind the last message", "lines": 1},
        {"rule": "dates", "what": "moved behind the system prompt", "lines": 1},
        {"rule": "git_status", "what": "moved behind the system prompt", "lines": 8},
        {"rule": "tools", "what": "sorted by name"},
    ]
    assert "2026" not in found.sentence


def test_a_time_stays_where_no_message_can_take_it() -> None:
    system = "Current time: 12:31\nBe brief."
    begun = {"role": "assistant", "content": "It is"}
    assert normal(chat(system), ALL) is None
    assert normal(chat(system, HI, begun), ALL) is None
    assert normal(chat(system, HI), ALL) is not None


def test_only_the_system_prompt_at_the_head_is_looked_at() -> None:
    later = {"role": "system", "content": "Today's date: 2026-11-30\nx"}
    said = {"role": "user", "content": "Today's date: 2026-11-30\nx"}
    assert normal(chat("Be brief.", said, later, HI), ALL) is None


@pytest.mark.parametrize(
    "fields",
    [
        {},
        {"messages": msgspec.Raw(b"[]")},
        {"messages": msgspec.Raw(b'"x"')},
        {"messages": msgspec.Raw(b'[{"role": "system"}]')},
        {"messages": msgspec.Raw(b'[{"role": "system", "content": null}, 7]'), "tools": msgspec.Raw(b"7")},
        {
            "messages": msgspec.Raw(b'[{"role":"system","content":"x"}]'),
            "tools": msgspec.Raw(b'[{"a":1},{}]'),
        },
        {"messages": msgspec.Raw(b'[{"role":"system","content":"\\ud800 \\nToday is 2026-11-30"}]')},
    ],
)
def test_what_is_no_chat_is_left_to_whoever_reads_it(fields: dict[str, msgspec.Raw]) -> None:
    normal(fields, ALL)  # says nothing, and does not fail


LINES = st.sampled_from(
    [
        *(
            "",
            " ",
            "You weigh.  ",
            "\t",
            "x\r",
            "<env>",
            "Today's date: 2026-11-30",
            "Today is Monday, 2026-11-30. ",
        ),
        *(
            "Current time: 12:31",
            "The current time is 12:32 UTC.\r",
            BILLING,
            "gitStatus: x",
            "Status:",
            " M a",
        ),
        *("Recent commits:", "1a2b3c Weigh it", "Today's date: soon", "Be brief."),
    ]
) | st.text(max_size=12)
TEXTS = st.lists(LINES, max_size=12).map("\n".join)
RULES = st.frozensets(st.sampled_from(list(PromptRule)), min_size=1)
SYSTEMS = TEXTS | st.lists(TEXTS.map(lambda text: {"type": "text", "text": text}), min_size=1, max_size=4)
TOOLS = st.none() | st.lists(
    st.fixed_dictionaries(
        {"type": st.just("function"), "function": st.fixed_dictionaries({"name": st.text(max_size=2)})}
    ),
    max_size=5,
)
LASTS = st.sampled_from(
    [[], [HI], [HI, {"role": "assistant", "content": "x"}], [{"role": "user", "content": []}]]
)


@given(system=SYSTEMS, last=LASTS, tools=TOOLS, rules=RULES)
def test_twice_is_once(system: Any, last: Any, tools: Any, rules: frozenset[PromptRule]) -> None:
    fields = chat(system, *last, tools=tools)
    found = normal(fields, rules)
    if found is not None:
        assert normal({**fields, **found.fields}, rules) is None


@given(texts=st.lists(TEXTS, min_size=1, max_size=4), rules=RULES, has_last=st.booleans())
def test_no_line_is_lost_and_none_is_made(
    texts: list[str], rules: frozenset[PromptRule], has_last: bool
) -> None:
    """All lines but those of bills are there, those that nothing was found in stand in their order, and only ends of
    white space are cut."""
    head = split(texts, rules, has_last=has_last)
    cut = PromptRule.WHITESPACE in rules
    before = [line.rstrip(" \t\r") if cut else line for text in texts for line in text.split("\n")]
    moved = [line for piece in (*head.dropped, *head.behind, *head.last) for line in piece.lines]
    rest = [line for lines in head.rest for line in lines]
    assert sorted(before) == sorted(rest + moved)
    left = iter(before)
    assert all(line in left for line in rest)  # in their order
    if not has_last:
        assert not head.last


@given(texts=st.lists(TEXTS, min_size=1, max_size=4), rules=RULES)
def test_what_is_not_touched_is_as_it_was(texts: list[str], rules: frozenset[PromptRule]) -> None:
    head = split(texts, rules, has_last=True)
    if not head.touched:
        assert head.texts == texts


@given(
    system=TEXTS,
    turns=st.lists(
        st.fixed_dictionaries({"role": st.just("user"), "content": st.text(max_size=9)}), max_size=4
    ),
    rules=RULES,
)
def test_turns_stay_to_the_byte(
    system: str, turns: list[dict[str, Any]], rules: frozenset[PromptRule]
) -> None:
    fields = chat(system, *turns, HI)
    found = normal(fields, rules)
    if found is None or "messages" not in found.fields:
        return
    before, after = (
        msgspec.json.decode(one["messages"], type=list[msgspec.Raw]) for one in (fields, found.fields)
    )
    assert [bytes(one) for one in before[1:-1]] == [bytes(one) for one in after[1:-1]]
    last = json.loads(bytes(after[-1]))["content"]
    assert last == "Weigh it." or last.startswith(f"Weigh it.\n\n{MOVED}\n")


# -- who has rules, and what they are worth ---------------------------------------------------------------


def test_rules_are_read_by_tenant() -> None:
    care = PromptCare([parse_tenant_rules(one) for one in ("dates+tools", "alice=all", "a=b=none")])
    assert care.rules_of("bob") == {PromptRule.DATES, PromptRule.TOOLS}
    assert care.rules_of("alice") == ALL
    assert care.rules_of("a=b") == frozenset()
    assert str(parse_tenant_rules("alice=tools+dates")) == "alice=dates+tools"
    for wrong in ("", "alice=", "date", "alice=dates+"):
        with pytest.raises(BadInput, match="RULE"):
            parse_tenant_rules(wrong)
    with pytest.raises(BadInput, match="twice"):
        PromptCare([parse_tenant_rules("dates"), parse_tenant_rules("tools")])


def asked(
    care: PromptCare, time: str, *, system: str = "You weigh.", tenant: str = "alice"
) -> dict[str, Any] | None:
    """What the ticket has of a prompt whose time moves, before 90 % of it."""
    text = f"Current time: {time}\n{system} {'w' * 900}"
    ask = Ask("1", "/v1/chat/completions", chat(text, HI), "m", tenant, raw=b"{}")
    assert care.concerns(ask)
    found: Normal | None = normal(ask.fields, care.rules_of(tenant))
    care.settle(ask, found)
    assert ask.raw == b""
    return ask.prompt_rules


def test_the_first_place_that_moved_is_known() -> None:
    care = PromptCare([parse_tenant_rules("dates")])
    first, same, moved, other, another = (
        asked(care, "12:31"),
        asked(care, "12:31"),
        asked(care, "12:32"),
        asked(care, "12:33", system="You count."),
        asked(care, "12:33", tenant="bob"),
    )
    assert [one and one["left_at"] for one in (first, same, moved, other, another)] == [
        None,
        None,
        0.0,
        None,
        None,
    ]


def test_what_is_remembered_is_bounded() -> None:
    care = PromptCare([parse_tenant_rules("dates")])
    for number in range(MOST_HEADS + 10):
        asked(care, "12:31", system=f"You are {number}.")
    assert len(care._last) == MOST_HEADS


def test_most_requests_are_none_of_its_business() -> None:
    ask = Ask("1", "/v1/chat/completions", chat("x", HI), "m", "alice")
    assert not PromptCare().concerns(ask)
    assert not PromptCare([parse_tenant_rules("bob=dates")]).concerns(ask)
    ask.path = "/v1/embeddings"
    assert not PromptCare([parse_tenant_rules("all")]).concerns(ask)
