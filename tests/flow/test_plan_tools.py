"""Streamed plans, MCP tools, exported spans, replays."""

from __future__ import annotations

import asyncio
import json
import subprocess
import sys
import time
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from tests.flow.fake_openai import openai, said
from weighbridge.errors import BadInput
from weighbridge.flow import PlanError, flow, llm, mcp_tools, step
from weighbridge.flow.json_stream import JsonEnd
from weighbridge.flow.mcp import McpError
from weighbridge.flow.plan import PlanReader, Reference, parse_line
from weighbridge.flow.replay import ReplaySettings, replay
from weighbridge.flow.telemetry import export_spans
from weighbridge.flow.virtual import run_virtual
from weighbridge.flow.workload import Call, Task, read_workload


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


async def test_mcp_tools_are_writes_unless_somebody_vouches_for_them() -> None:
    called: list[tuple[str, Any]] = []

    def tool(name: str, read_only: bool) -> Any:
        hints = SimpleNamespace(readOnlyHint=read_only)
        return SimpleNamespace(
            name=name, description="A tool.", annotations=hints, inputSchema={"type": "object"}
        )

    class Server:
        async def list_tools(self) -> Any:
            return SimpleNamespace(tools=[tool("fetch", True), tool("delete", False)])

        async def call_tool(self, name: str, arguments: Any = None) -> Any:
            called.append((name, arguments))
            return SimpleNamespace(
                content=[SimpleNamespace(text="page")], isError=False, structuredContent=None
            )

    plain = await mcp_tools(Server())
    assert {name: one.options.effect for name, one in plain.items()} == {"fetch": "write", "delete": "write"}
    trusted = await mcp_tools(Server(), trust_hints=True)
    assert trusted["fetch"].options.effect == "remote"
    assert not trusted["fetch"].may_speculate
    vouched = await mcp_tools(Server(), effects={"fetch": "read"})
    assert vouched["fetch"].may_speculate
    assert await vouched["fetch"](url="x") == "page"
    assert called == [("fetch", {"url": "x"})]


SHOP = '''
from mcp.server import MCPServer
from mcp.server.mcpserver.exceptions import ToolError
from mcp.types import ToolAnnotations

server = MCPServer("shop")
orders = []


@server.tool(annotations=ToolAnnotations(read_only_hint=True))
async def count() -> int:
    """Orders so far."""
    return len(orders)


@server.tool(structured_output=False)
async def order(item: str, pieces: int = 1) -> str:
    """Order an item."""
    if item == "unicorn":
        raise ToolError("out of stock")
    orders.append(item)
    return f"{pieces} of {item}"


server.run()
'''


async def test_tools_of_a_real_mcp_server_are_writes_whatever_it_hints(tmp_path: Path) -> None:
    mcp = pytest.importorskip("mcp")
    program = tmp_path / "shop.py"
    program.write_text(SHOP, encoding="utf-8")
    process = mcp.StdioServerParameters(command=sys.executable, args=[str(program)])
    async with (
        asyncio.timeout(30.0),
        mcp.stdio_client(process) as (read, write),
        mcp.ClientSession(read, write) as session,
    ):
        await session.initialize()
        tools = await mcp_tools(session)
        assert {name: one.options.effect for name, one in tools.items()} == {
            "count": "write",
            "order": "write",
        }
        assert not any(one.may_speculate for one in tools.values())
        trusted = await mcp_tools(session, trust_hints=True)
        assert [trusted[name].options.effect for name in ("count", "order")] == ["remote", "write"]
        assert tools["order"].options.schema is not None
        assert tools["order"].options.schema["required"] == ["item"]

        @flow
        async def shopping() -> list[Any]:
            """Nothing is awaited before all have started: writes keep the order of their calls all the same."""
            calls = [tools["count"](), tools["order"](item="tea", pieces=2), tools["count"]()]
            return [await one for one in calls]

        assert await shopping() == [{"result": 0}, "2 of tea", {"result": 1}]
        with pytest.raises(McpError, match="tool order: out of stock"):
            await tools["order"](item="unicorn")


def test_spans_are_exported() -> None:
    pytest.importorskip("opentelemetry.sdk")
    from opentelemetry.sdk.trace import TracerProvider
    from opentelemetry.sdk.trace.export import SimpleSpanProcessor
    from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter

    @step(effect="pure")
    async def think() -> int:
        return 1

    @flow
    async def body() -> int:
        return await think()

    body.run()
    exporter, provider = InMemorySpanExporter(), TracerProvider()
    provider.add_span_processor(SimpleSpanProcessor(exporter))
    assert body.last is not None
    export_spans(body.last, provider.get_tracer("test"))
    assert [span.name.rsplit(".", 1)[-1] for span in exporter.get_finished_spans()] == ["think", "body"]


def chain(task: int, accuracy: float, usd: float, tool_seconds: float = 1.0, think: float = 3.0) -> Task:
    """A model that thinks and a tool that answers, four times, and a write."""
    calls: list[Call] = []
    for turn in range(4):
        after = (calls[-1].id,) if calls else ()
        calls.append(Call(f"think{turn}", after, think, "pure", usd, accuracy, f"call {turn}", name="think"))
        calls.append(
            Call(f"tool{turn}", (f"think{turn}",), tool_seconds, "read", 0.0, output=turn, name="tool")
        )
    calls.append(Call("answer", (calls[-1].id,), think, "pure", usd, output="answer"))
    calls.append(Call("send", ("answer",), 0.5, "write", 0.0, output="sent"))
    return Task(str(task), tuple(calls))


def mean(tasks: list[Task], mode: Any) -> dict[str, Any]:
    sequential = replay(tasks, ReplaySettings("sequential"))
    report = replay(tasks, ReplaySettings(mode)).report(sequential)
    assert report["writes"] == len(tasks)
    return report


def test_good_predictions_pay_and_lies_cost_nothing() -> None:
    tasks = [chain(n, 0.8, 0.0005) for n in range(40)]
    parallel, speculate = mean(tasks, "parallel"), mean(tasks, "speculate")
    oracle, liar = mean(tasks, "oracle"), mean(tasks, "liar")
    assert (
        oracle["makespan_s"]["mean"] < speculate["makespan_s"]["mean"] < 0.75 * parallel["makespan_s"]["mean"]
    )
    assert liar["makespan_s"]["mean"] <= 1.03 * parallel["makespan_s"]["mean"]
    assert liar["wasted_share"] < 0.05


def test_the_gate_declines_at_the_ratio_of_gaia() -> None:
    """Tools take 10 % of the time and 12 % of predictions hit; each model call costs two cents."""
    report = mean([chain(n, 0.12, 0.02, 1.7, 15.3) for n in range(40)], "speculate")
    assert report["bets"]["won"] + report["bets"]["lost"] <= 1
    assert report["bets"]["declined"] >= 4 * 39
    assert report["wasted_share"] < 0.01


def test_bad_workloads_name_the_line(tmp_path: Path) -> None:
    path = tmp_path / "w.jsonl"
    for text, message in (
        ('{"id": "1"}', "line 1: Object missing required field `steps`"),
        ('{"id": "1", "steps": [{"id": "a", "after": ["b"]}]}', "`after` names 'b'"),
        ('{"id": "1", "steps": [{"id": "a", "effect": "x"}]}', "line 1: Invalid enum value 'x'"),
        ("", "has no tasks"),
    ):
        path.write_text(text)
        with pytest.raises(BadInput, match=message):
            read_workload(path)


def test_the_command_line(tmp_path: Path) -> None:
    def flow_command(*words: str, code: int = 0) -> str:
        command = [sys.executable, "-m", "weighbridge", "flow", *words]
        done = subprocess.run(command, capture_output=True, text=True, timeout=60, cwd=tmp_path)
        assert done.returncode == code, done.stderr
        return done.stdout if code == 0 else done.stderr

    task = '{"id": "1", "steps": [{"id": "a", "seconds": 2, "output": 1}, {"id": "b", "seconds": 2, "output": 2}]}'
    (tmp_path / "w.jsonl").write_text(task)
    report = json.loads(flow_command("replay", "--workload", "w.jsonl", "--mode", "parallel", "--json"))
    assert report["makespan_s"] == {"mean": 2.0, "p50": 2.0, "p95": 2.0}
    assert report["speedup_over_sequential"] == 2.0
    assert report["bets"] == {"won": 0, "lost": 0, "declined": 0}
    assert "must be one of" in flow_command("replay", "--workload", "w.jsonl", "--mode", "x", code=2)

    (tmp_path / "mine.py").write_text(
        "from weighbridge.flow import flow, step\n"
        "@step(effect='pure')\nasync def double(n: int) -> int: return 2 * n\n"
        "@flow\nasync def twice(n: int) -> int: return await double(await double(n))\n"
    )
    out = json.loads(
        flow_command("run", "mine:twice", "--input", "3", "--journal", "j.db", "--run-id", "r", "--json")
    )
    assert out["result"] == 12
    assert "twice  run r" in flow_command("timeline", "r", "--journal", "j.db")
    flow_command("timeline", "r", "--journal", "j.db", "--html", "t.html")
    page = (tmp_path / "t.html").read_text()
    assert page.startswith("<!doctype html>")
    assert "http" not in page, "the page needs nothing from elsewhere"
    assert "its flows: twice" in flow_command("run", "mine:nope", code=2)
    assert "is not JSON" in flow_command("run", "mine:twice", "--input", "{", code=2)
    assert "missing a required argument" in flow_command("run", "mine:twice", code=2)
    own = flow_command("run", "mine:twice", "--input", "null", "--journal", "j.db", code=1)
    assert "mine:twice failed: TypeError: unsupported operand" in own, "a mistake of the flow's own"


def test_real_time_and_virtual_time_agree() -> None:
    tasks = [Task("1", (Call("a", (), 0.1, output=1), Call("b", ("a",), 0.1, "read", output=2)))]
    virtual = replay(tasks, ReplaySettings("parallel")).makespans[0]
    real = replay(tasks, ReplaySettings("parallel", real_time=True)).makespans[0]
    assert virtual == pytest.approx(0.2)
    assert virtual - 0.01 <= real < virtual + 3.0


def test_virtual_runs_need_no_time() -> None:
    began = time.perf_counter()
    run_virtual(asyncio.sleep(1e6))
    assert time.perf_counter() - began < 5.0
