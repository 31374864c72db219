"""Tools of an MCP server as steps. Needs the package `mcp`; only the session's two methods are used.

    async with ClientSession(read, write) as session:
        await session.initialize()
        tools = await mcp_tools(session)
        page = await tools["fetch"](url="https://example.org")

A server's hints are only hints, from somebody who may not be trusted: by default every tool is a write.
`trust_hints=True` believes `readOnlyHint` (the tool is then remote: it discloses its arguments, and starts
early only where `speculate` says so); `effects` says it for tools by name, which is better.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Protocol

from weighbridge.errors import WeighbridgeError
from weighbridge.flow.step import Effect, Options, Step


class Session(Protocol):
    """What is used of `mcp.ClientSession`."""

    async def list_tools(self) -> Any: ...
    async def call_tool(self, name: str, arguments: dict[str, Any] | None = None) -> Any: ...


class McpError(WeighbridgeError):
    """A tool said that it failed."""


async def mcp_tools(
    session: Session,
    *,
    effects: Mapping[str, Effect] | None = None,
    trust_hints: bool = False,
    speculate: bool = False,
    timeout: float | None = 60.0,
    resource: str | None = None,
) -> dict[str, Step[..., Any]]:
    """Every tool of the server as a step taking keyword arguments, by name."""
    listed = await session.list_tools()
    made: dict[str, Step[..., Any]] = {}
    for tool in listed.tools:
        effect = (effects or {}).get(tool.name) or _hinted(tool, trust_hints)
        options = Options(
            effect=effect,
            timeout=timeout,
            resource=resource,
            speculate=speculate or effect not in ("remote", "write", "undo"),
            schema=_schema(tool),
        )
        made[tool.name] = _step(session, tool, options)
    return made


def _hinted(tool: Any, trusted: bool) -> Effect:
    hints = getattr(tool, "annotations", None)
    read_only = getattr(hints, "readOnlyHint", None) or getattr(hints, "read_only_hint", None)
    return "remote" if trusted and read_only else "write"


def _schema(tool: Any) -> dict[str, Any]:
    schema = getattr(tool, "inputSchema", None) or getattr(tool, "input_schema", None)
    return dict(schema) if schema else {"type": "object", "properties": {}}


def _step(session: Session, tool: Any, options: Options) -> Step[..., Any]:
    async def call(**arguments: Any) -> Any:
        result = await session.call_tool(tool.name, arguments)
        content = [getattr(part, "text", None) or repr(part) for part in result.content]
        if getattr(result, "isError", False) or getattr(result, "is_error", False):
            raise McpError(f"tool {tool.name}: {' '.join(content)[:500]}")
        structured = getattr(result, "structuredContent", None) or getattr(result, "structured_content", None)
        return structured if structured is not None else "\n".join(content)

    call.__doc__ = tool.description
    return Step(call, options, tool.name)
