"""Runs one coding agent on its task, on a machine that has nothing but itself: `unshare -rn python -m ... AGENT DOOR`.

Prints what came of it as JSON: what the file holds, what the test said, what the model was asked, and the tickets.
"""

from __future__ import annotations

import asyncio
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

from tests.clients.agents.scripted import ScriptedModel
from tests.clients.agents.started import command_of, environment_of, json_of, serving, worked
from tests.clients.agents.task import FILE, RECIPIENT, checked, laid_out

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


async def run(agent: str, door: str, place: Path, binaries: Path) -> dict[str, Any]:
    """`place`: an empty folder. `binaries`: where npm has put the agents."""
    work, home = laid_out(place)
    model = ScriptedModel(str(work))
    async with model.serving() as behind:
        file = place / "weighbridge.yaml"
        file.write_text(CONFIGURATIONS[door].format(url=behind), encoding="utf-8")
        async with serving(["serve", "--config", str(file)], place / "log") as url:
            placement = "only_cloud" if door == "route" else "auto"
            words, more = command_of(agent, url, home, placement, PATIENCE)
            ended = await worked(words, environment_of(home, binaries) | more, work, PATIENCE)
            tickets = await json_of(f"{url}/v1/tickets")
    asked = json.dumps(model.asked)
    return {
        **ended,
        "file": (work / FILE).read_text(encoding="utf-8"),
        "checked": checked(work),
        "turns": len(model.asked),
        "shown": RECIPIENT in asked,
        "test_seen": "weighed right" in asked,
        "log": (place / "log").read_text(encoding="utf-8")[-3000:],
        "tickets": [
            {name: one[name] for name in ("placement", "rule", "finish_reason", "left_machine", "decisions")}
            for one in tickets["data"]
        ],
    }


if __name__ == "__main__":
    subprocess.run(["ip", "link", "set", "lo", "up"], check=True)
    agent_name, door_name, folder, bins = sys.argv[1:]
    print(json.dumps(asyncio.run(run(agent_name, door_name, Path(folder), Path(bins)))))
