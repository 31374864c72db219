"""A replica that plays the model of a coding agent: it reads a file, repairs it, runs the test and says so.

It speaks OpenAI's chat, as servers behind a gateway do. What it does next depends on the tools that it is shown and on
how many of their results it has seen, so nothing here knows which agent asks or in which protocol.
"""

from __future__ import annotations

import asyncio
import json
import re
from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import Any

from aiohttp import web

from tests.clients.agents.task import FILE, RIGHT, TEST, WRONG

DONE = "The net weight is right now."


@dataclass
class ScriptedModel:
    """`folder`: where the agent works. `asked`: the bodies of all requests with tools, in their order."""

    folder: str
    asked: list[dict[str, Any]] = field(default_factory=list)
    others: list[dict[str, Any]] = field(
        default_factory=list
    )  # titles, summaries: what agents ask beside their work

    def app(self) -> web.Application:
        app = web.Application(client_max_size=64 << 20)
        app.router.add_post("/v1/chat/completions", self.chat)
        app.router.add_get("/v1/models", self.models)
        return app

    @asynccontextmanager
    async def serving(self) -> AsyncIterator[str]:
        """Its URL while the block runs."""
        runner = web.AppRunner(self.app())
        await runner.setup()
        site = web.TCPSite(runner, "127.0.0.1", 0)
        await site.start()
        try:
            yield "http://{}:{}".format(*runner.addresses[0][:2])
        finally:
            await runner.cleanup()

    async def models(self, request: web.Request) -> web.Response:
        return web.json_response({"object": "list", "data": [{"id": "scripted", "object": "model"}]})

    async def chat(self, request: web.Request) -> web.StreamResponse:
        body = await request.json()
        message = self.turn(body)
        if not body.get("stream"):
            return web.json_response({**_head(), "object": "chat.completion", **_whole(message)})
        answer = web.StreamResponse(headers={"content-type": "text/event-stream"})
        await answer.prepare(request)
        for chunk in _chunks(message):
            await answer.write(b"data: " + json.dumps({**_head(), **chunk}).encode() + b"\n\n")
            await asyncio.sleep(0)
        await answer.write(b"data: [DONE]\n\n")
        return answer

    def turn(self, body: Mapping[str, Any]) -> dict[str, Any]:
        """What the model says: the next call of the script, or the end of it."""
        tools = {one["function"]["name"]: one["function"] for one in body.get("tools") or ()}
        steps = script(tools, self.folder, _contact(body["messages"]))
        if not steps:
            self.others.append(dict(body))
            return {"content": '{"title": "Scales"}'}
        self.asked.append(dict(body))
        seen = sum(one["role"] == "tool" for one in body["messages"])
        if seen >= len(steps):
            return {"content": DONE}
        name, arguments = steps[seen]
        call = {"id": f"call_{seen}", "type": "function"}
        function = {"name": name, "arguments": json.dumps(arguments)}
        return {"content": "I look.", "tool_calls": [{**call, "function": function}]}


def _contact(messages: Sequence[Mapping[str, Any]]) -> str:
    """Whom the file names, as the model has seen it: the address, or what a redacting route put in its place."""
    seen = [json.dumps(one["content"]) for one in messages if one["role"] == "tool"]
    found = re.search(r"Questions to (.+?)\.\\", " ".join(seen))
    return "nobody" if found is None else found[1]


def script(tools: Mapping[str, Any], folder: str, who: str) -> Sequence[tuple[str, dict[str, Any]]]:
    """Read, edit, run: in the words of the tools that an agent has. Empty where it has none of them."""
    right = RIGHT.format(who=who)
    if {"Read", "Edit", "Bash"} <= tools.keys():  # Claude Code
        path = f"{folder}/{FILE}"
        return [
            ("Read", {"file_path": path}),
            ("Edit", {"file_path": path, "old_string": WRONG, "new_string": right}),
            ("Bash", {"command": f"python3 {TEST}", "description": "Run the test"}),
        ]
    patch = f"*** Begin Patch\n*** Update File: {FILE}\n@@\n-    {WRONG}\n+    {right}\n*** End Patch"
    if "exec_command" in tools:  # Codex
        edit = ("apply_patch", {"input": patch})
        if "apply_patch" not in tools:
            edit = ("exec_command", {"cmd": f"apply_patch <<'PATCH'\n{patch}\nPATCH"})
        return [("exec_command", {"cmd": f"cat {FILE}"}), edit, ("exec_command", {"cmd": f"python3 {TEST}"})]
    return []


def _head() -> dict[str, Any]:
    return {"id": "chatcmpl-1", "object": "chat.completion.chunk", "created": 1, "model": "scripted"}


def _usage() -> dict[str, int]:
    return {"prompt_tokens": 1000, "completion_tokens": 20, "total_tokens": 1020}


def _finish(message: Mapping[str, Any]) -> str:
    return "tool_calls" if "tool_calls" in message else "stop"


def _whole(message: Mapping[str, Any]) -> dict[str, Any]:
    choice = {"index": 0, "message": {"role": "assistant", **message}, "finish_reason": _finish(message)}
    return {"choices": [choice], "usage": _usage()}


def _chunks(message: Mapping[str, Any]) -> list[dict[str, Any]]:
    """The message in pieces: text by words, arguments by a few characters."""
    deltas: list[dict[str, Any]] = [{"role": "assistant", "content": ""}]
    deltas += [{"content": word + " "} for word in str(message["content"]).split(" ")]
    for index, call in enumerate(message.get("tool_calls", ())):
        arguments = call["function"]["arguments"]
        deltas.append(
            {"tool_calls": [{**call, "index": index, "function": {**call["function"], "arguments": ""}}]}
        )
        for at in range(0, len(arguments), 7):
            deltas.append(
                {"tool_calls": [{"index": index, "function": {"arguments": arguments[at : at + 7]}}]}
            )
    chunks = [{"choices": [{"index": 0, "delta": one, "finish_reason": None}]} for one in deltas]
    chunks.append({"choices": [{"index": 0, "delta": {}, "finish_reason": _finish(message)}]})
    return [*chunks, {"choices": [], "usage": _usage()}]
