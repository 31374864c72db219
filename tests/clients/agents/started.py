"""Starts a coding agent in an empty home, and the server that it talks to."""

from __future__ import annotations

import asyncio
import os
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import aiohttp

from tests.clients.agents.task import TASK
from tests.server.running import free_port

#: Seconds that a server may take until it answers: one with a real model loads it.
STARTS = 180.0
CODEX = """\
model = "coder"
model_provider = "here"
check_for_update_on_startup = false
[analytics]
enabled = false
[model_providers.here]
name = "here"
base_url = "{url}/v1"
wire_api = "responses"
stream_idle_timeout_ms = {patience_ms}
http_headers = {{ "x-weighbridge-placement" = "{placement}" }}
"""


def command_of(
    agent: str, url: str, home: Path, placement: str, patience_s: float
) -> tuple[list[str], dict[str, str]]:
    """The command of an agent, and what is in its environment beside its home and the way to it.

    `patience_s`: how long it waits for an answer to begin.
    """
    patience_ms = round(1e3 * patience_s)
    if agent == "codex":
        (home / ".codex").mkdir()
        settings = CODEX.format(url=url, placement=placement, patience_ms=patience_ms)
        (home / ".codex" / "config.toml").write_text(settings, encoding="utf-8")
        words = ["codex", "exec", "--skip-git-repo-check", "--json"]
        return [*words, "--dangerously-bypass-approvals-and-sandbox", TASK], {}
    words = ["claude", "-p", TASK, "--dangerously-skip-permissions", "--output-format", "json"]
    return words, {
        "ANTHROPIC_BASE_URL": url,
        "ANTHROPIC_API_KEY": "none",
        "ANTHROPIC_MODEL": "coder",
        "ANTHROPIC_SMALL_FAST_MODEL": "coder",
        "ANTHROPIC_CUSTOM_HEADERS": f"x-weighbridge-placement: {placement}",
        "API_TIMEOUT_MS": str(patience_ms),
        "CLAUDE_STREAM_IDLE_TIMEOUT_MS": str(patience_ms),  # five minutes without it, pings or not
        "CLAUDE_CODE_DISABLE_NONESSENTIAL_TRAFFIC": "1",
        "DISABLE_AUTOUPDATER": "1",
        "DISABLE_TELEMETRY": "1",
        "IS_SANDBOX": "1",  # it runs as root of a namespace of its own
    }


async def worked(
    words: list[str],
    environment: dict[str, str],
    work: Path,
    patience_s: float,
    enough: asyncio.Event | None = None,
) -> dict[str, Any]:
    """Let an agent work until it ends, its time is over or it was `enough`."""
    pipe = asyncio.subprocess.PIPE
    agent = await asyncio.create_subprocess_exec(
        *words, cwd=work, env=environment, stdin=asyncio.subprocess.DEVNULL, stdout=pipe, stderr=pipe
    )
    talk = asyncio.ensure_future(agent.communicate())
    stop = asyncio.ensure_future((enough or asyncio.Event()).wait())
    await asyncio.wait({talk, stop}, timeout=patience_s, return_when=asyncio.FIRST_COMPLETED)
    stop.cancel()
    if not talk.done():
        agent.kill()
    out, problems = await talk
    said = out.decode("utf-8", "replace")
    return {
        "code": agent.returncode,
        "said": said[-6000:],
        "problems": problems.decode("utf-8", "replace")[-2000:],
    }


@asynccontextmanager
async def serving(words: list[str], log: Path) -> AsyncIterator[str]:
    """The URL of a server that was started with these words, while the block runs."""
    port = free_port()
    with log.open("wb") as kept:
        server = await asyncio.create_subprocess_exec(
            sys.executable, "-m", "weighbridge", *words, "--port", str(port), stdout=kept, stderr=kept
        )
    url = f"http://127.0.0.1:{port}"
    try:
        await _ready(url, server)
        yield url
    finally:
        if server.returncode is None:
            server.terminate()
        await server.wait()


async def _ready(url: str, server: asyncio.subprocess.Process) -> None:
    for _ in range(round(10 * STARTS)):
        assert server.returncode is None, "the server ended"
        try:
            if (await json_of(f"{url}/health")).get("status") == "ok":
                return
        except aiohttp.ClientError:
            pass
        await asyncio.sleep(0.1)
    raise AssertionError("the server did not start in time")


async def json_of(url: str) -> dict[str, Any]:
    async with aiohttp.ClientSession() as client, client.get(url) as answer:
        found: dict[str, Any] = await answer.json()
        return found


def environment_of(home: Path, binaries: Path) -> dict[str, str]:
    return {"HOME": str(home), "PATH": f"{binaries}:{os.defpath}"}
