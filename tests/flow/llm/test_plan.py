"""Streamed plans: each call starts with its line."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest

from tests.flow.llm.fake_openai import openai, said
from weighbridge.flow import PlanError, flow, llm, step
from weighbridge.flow.llm.json_stream import JsonEnd
from weighbridge.flow.llm.plan import PlanReader, Reference, parse_line


def test_a_json_value_ends_where_its_brackets_close() -> None:
    end = JsonEnd()
    assert not end.feed('{"a": "}\\"')
    assert not end.feed('}", "b": [1, {')
    assert end.feed("}]} and more")
    assert end.closed


def test_plans_are_read_as_they_come() -> None:
    reader = PlanReader()
    assert reader.feed('Plan:\n1. search("a $1 (b)"') == []
    first, second = reader.feed(")\n2. divide($1, by=[${1}, 2])\n")
    assert (first.tool, first.args) == ("search", ("a $1 (b)",))
    assert second.args == (Reference(1),)
    assert second.kwargs == {"by": [Reference(1), 2]}
    with pytest.raises(PlanError, match="cannot be read"):
        parse_line("1. search(__import__('os'))")


async def test_a_streamed_plan_starts_each_read_with_its_line() -> None:
    began: list[str] = []
    searching, joining = asyncio.Event(), asyncio.Event()

    @step(effect="read", name="search")
    async def search(query: str) -> str:
        began.append(query)
        searching.set()
        return query.upper()

    @step(effect="pure", name="join")
    async def join(a: str, b: str) -> str:
        began.append("join")
        joining.set()
        return a + b

    plan = [
        said('1. search("a")\n2. sea'),
        searching,
        said('rch("b")\n3. join($1, $2)\n'),
        joining,
        said("done"),
    ]
    async with openai(lambda body, n: plan) as (url, _):
        ask = llm(url)

        @flow
        async def body() -> str:
            made = await ask.plan("go", [search, join])
            return str(await made[3])

        assert await body() == "AB", "the plan only went on when what it had asked for had started"
        assert began == ["a", "b", "join"]
    async with openai(lambda body, n: [said("1. fly()")]) as (url, _):
        with pytest.raises(PlanError, match="no tool 'fly'; the tools are: search, join"):
            await flow(lambda_plan(llm(url), [search, join]))()


def lambda_plan(ask: Any, tools: list[Any]) -> Any:
    async def body() -> Any:
        return await ask.plan("go", tools)

    return body
