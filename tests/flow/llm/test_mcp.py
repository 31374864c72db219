"""Tools of MCP servers as steps."""

from __future__ import annotations

import asyncio
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from weighbridge.flow import flow, mcp_tools
from weighbridge.flow.llm.mcp import McpError


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
