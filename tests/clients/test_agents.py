"""Coding agents, as npm has them: each does one real task, through a gateway and through a route that redacts."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from tests.clients.agents.task import RECIPIENT, RIGHT
from tests.clients.lane.environments import npm_folder
from tests.clients.lane.table import AGENTS

pytestmark = [pytest.mark.proof, pytest.mark.timeout(600)]


@pytest.fixture(scope="module")
def binaries() -> Path:
    """Where the agents are."""
    if shutil.which("npm") is None or shutil.which("unshare") is None:
        pytest.skip("npm and unshare are needed")
    return npm_folder(tuple(AGENTS.values()), scripts=True) / "node_modules" / ".bin"


def ran(agent: str, door: str, place: Path, binaries: Path) -> dict[str, Any]:
    """What came of a task on a machine that has a loopback interface and no other."""
    words = [sys.executable, "-m", "tests.clients.agents.run", agent, door, str(place), str(binaries)]
    done = subprocess.run(
        ["unshare", "-rn", *words], capture_output=True, text=True, timeout=300, check=False
    )
    assert done.returncode == 0, done.stderr[-3000:]
    found: dict[str, Any] = json.loads(done.stdout)
    return found


@pytest.mark.parametrize("door", ["gateway", "route"])
@pytest.mark.parametrize("agent", AGENTS)
def test_an_agent_reads_edits_and_runs_the_test(
    agent: str, door: str, tmp_path: Path, binaries: Path
) -> None:
    found = ran(agent, door, tmp_path, binaries)
    assert found["code"] == 0, found
    assert found["turns"] == 4, found["said"]
    assert found["file"].endswith(f"{RIGHT.format(who=RECIPIENT)}\n")  # put back where it was taken out
    assert found["checked"] == "weighed right"
    assert found["test_seen"]
    assert found["shown"] == (door == "gateway")  # the model of a redacting route has not seen the address
    assert {ticket["placement"] for ticket in found["tickets"]} == {"cloud" if door == "route" else "edge"}
    if agent == "codex":
        assert all("web_search" in ticket["decisions"][0] for ticket in found["tickets"])
