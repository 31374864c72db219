"""Programs of others that speak OpenAI's Responses, as they come from the package index, at every door."""

from __future__ import annotations

import json
import os
import re
import subprocess
from pathlib import Path
from typing import Any

import pytest

from tests.clients.lane.environments import python_of
from tests.clients.lane.table import PROGRAMS
from tests.doors.doors import DOORS, Door

Doors = dict[bool, dict[str, Door]]

RUN = ("run_openai_agents", "run_pydantic_ai")
AT = list(DOORS)


@pytest.fixture(scope="session")
def environments() -> dict[str, Path]:
    """The interpreter of an environment of its own for each program."""
    return {name: python_of(PROGRAMS[name]) for name in RUN}


@pytest.mark.proof
@pytest.mark.timeout(900)
@pytest.mark.parametrize("name", AT)
@pytest.mark.parametrize("program", RUN)
def test_a_program_of_others_works_as_it_comes(
    program: str, name: str, doors: Doors, environments: dict[str, Path]
) -> None:
    door = doors[False][name]
    file = Path(__file__).parent / "programs" / f"{program}.py"
    command = [str(environments[program]), str(file), f"{door.url}/v1", door.model]
    clean = {"PATH": os.environ["PATH"], "HOME": str(environments[program].parent)}
    ran = subprocess.run(command, env=clean, capture_output=True, text=True, timeout=120)
    assert ran.returncode == 0, ran.stderr
    told: dict[str, Any] = json.loads(ran.stdout)
    for said in ("said", "streamed", "went_on", "history"):
        assert re.fullmatch("[a-z]{4}", told[said]), said
    assert told["said"] == told["streamed"]
    assert told["went_on"] == told["history"], "turns that are named are as those that are sent"
    assert told["kinds"][-1] == "response.completed"
    assert told["size"] in ("small", "large")
    assert told["called"] in ("small: 9 kg", "large: 9 kg")
