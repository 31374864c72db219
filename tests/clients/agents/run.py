"""Runs one coding agent on its task, on a machine that has nothing but itself: `unshare -rn python -m ... AGENT DOOR`.

Prints what came of it as JSON: what the file holds, what the test said, what the model was asked, and the tickets.
"""

from __future__ import annotations

import asyncio
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import aiohttp

from tests.clients.agents.scripted import CHECK, FILE, RECIPIENT, SOURCE, TASK, TEST, ScriptedModel
from tests.server.running import free_port

#: Seconds that an agent may take for its task.
PATIENCE = 120.0
GATEWAY = "models: {{coder: {{replicas: [{{url: '{url}', dialect: openai, model: scripted}}]}}}}\n"
#: What goes to the cloud goes without addresses.
ROUTE = """\
routes:
  coder:
    edge: {{url: '{url}/v1', model: scripted}}
    cloud: {{url: '{url}/v1', model: scripted, abilities: [tools]}}
    cascade: {{enabled: false}}
    residency: redact_then_cloud
"""
CONFIGURATIONS = {"gateway": GATEWAY, "route": ROUTE}
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
http_headers = {{ "x-weighbridge-placement" = "{placement}" }}
"""


def command_of(agent: str, url: str, home: Path, placement: str) -> tuple[list[str], dict[str, str]]:
    """The command of an agent, and what is in its environment beside its home and the way to it."""
    if agent == "codex":
        (home / ".codex").mkdir()
        settings = CODEX.format(url=url, placement=placement)
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
        "CLAUDE_CODE_DISABLE_NONESSENTIAL_TRAFFIC": "1",
        "DISABLE_AUTOUPDATER": "1",
        "DISABLE_TELEMETRY": "1",
        "IS_SANDBOX": "1",  # it runs as root of a namespace of its own
    }


async def run(agent: str, door: str, place: Path, binaries: Path) -> dict[str, Any]:
    """`place`: an empty folder. `binaries`: where npm has put the agents."""
    work, home = place / "work", place / "home"
    for folder in (work, home):
        folder.mkdir()
    (work / FILE).write_text(SOURCE, encoding="utf-8")
    (work / TEST).write_text(CHECK, encoding="utf-8")
    model = ScriptedModel(str(work))
    async with model.serving() as behind:
        file, port = place / "weighbridge.yaml", free_port()
        file.write_text(CONFIGURATIONS[door].format(url=behind), encoding="utf-8")
        server = await _started(["serve", "--config", str(file), "--port", str(port)], place / "log")
        url = f"http://127.0.0.1:{port}"
        try:
            await _ready(url, server)
            placement = "only_cloud" if door == "route" else "auto"
            words, more = command_of(agent, url, home, placement)
            environment = {"HOME": str(home), "PATH": f"{binaries}:{os.defpath}", **more}
            ended = await _agent(words, environment, work)
            tickets = await _json(f"{url}/v1/tickets")
        finally:
            if server.returncode is None:
                server.terminate()
            await server.wait()
    checked = await _agent([sys.executable, TEST], {}, work)
    asked = json.dumps(model.asked)
    return {
        **ended,
        "file": (work / FILE).read_text(encoding="utf-8"),
        "checked": checked["said"].strip(),
        "turns": len(model.asked),
        "shown": RECIPIENT in asked,
        "test_seen": "weighed right" in asked,
        "log": (place / "log").read_text(encoding="utf-8")[-3000:],
        "tickets": [
            {name: one[name] for name in ("placement", "rule", "finish_reason", "left_machine", "decisions")}
            for one in tickets["data"]
        ],
    }


async def _started(words: list[str], log: Path) -> asyncio.subprocess.Process:
    with log.open("wb") as kept:
        return await asyncio.create_subprocess_exec(
            sys.executable, "-m", "weighbridge", *words, stdout=kept, stderr=kept
        )


async def _agent(words: list[str], environment: dict[str, str], work: Path) -> dict[str, Any]:
    pipe = asyncio.subprocess.PIPE
    agent = await asyncio.create_subprocess_exec(
        *words, cwd=work, env=environment, stdin=asyncio.subprocess.DEVNULL, stdout=pipe, stderr=pipe
    )
    try:
        out, problems = await asyncio.wait_for(agent.communicate(), PATIENCE)
    except TimeoutError:
        agent.kill()
        out, problems = await agent.communicate()
    said = out.decode("utf-8", "replace")
    return {"code": agent.returncode, "said": said[-6000:], "problems": problems.decode()[-2000:]}


async def _ready(url: str, server: asyncio.subprocess.Process) -> None:
    for _ in range(600):
        assert server.returncode is None, "the server ended"
        try:
            if (await _json(f"{url}/health")).get("status") == "ok":
                return
        except aiohttp.ClientError:
            pass
        await asyncio.sleep(0.1)
    raise AssertionError("the server did not start in time")


async def _json(url: str) -> dict[str, Any]:
    async with aiohttp.ClientSession() as client, client.get(url) as answer:
        found: dict[str, Any] = await answer.json()
        return found


if __name__ == "__main__":
    subprocess.run(["ip", "link", "set", "lo", "up"], check=True)
    agent_name, door_name, folder, bins = sys.argv[1:]
    print(json.dumps(asyncio.run(run(agent_name, door_name, Path(folder), Path(bins)))))
