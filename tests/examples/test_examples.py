"""The examples run as they stand, and stay short."""

from __future__ import annotations

import importlib
import os
import subprocess
import sys
from pathlib import Path

import pytest

EXAMPLES = Path(__file__).parents[2] / "examples"
NAMES = ("chat", "fleet", "flow", "plan", "route", "simulate")


def run(name: str, *arguments: str) -> str:
    """What an example prints."""
    done = subprocess.run(
        [sys.executable, str(EXAMPLES / f"{name}.py"), *arguments],
        capture_output=True,
        text=True,
        timeout=110,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


@pytest.mark.parametrize("name", NAMES)
def test_an_example_fits_a_screen(name: str) -> None:
    assert len((EXAMPLES / f"{name}.py").read_text(encoding="utf-8").splitlines()) <= 40


def test_every_example_is_known_here() -> None:
    assert {path.stem for path in EXAMPLES.glob("*.py")} == {*NAMES, "servers"}


def test_chat_streams_and_shows_its_ticket(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(str(EXAMPLES))
    servers = importlib.import_module("servers")
    with servers.running(servers.SIMULATED) as (url,):
        printed = run("chat", url)
    assert "40 out" in printed
    assert "first token after" in printed


def test_fleet_says_who_got_a_request_and_why() -> None:
    lines = run("fleet").splitlines()
    assert len(lines) == 12
    assert all(line.startswith(("quick: ", "slow: ")) and "weigh chose" in line for line in lines)
    assert sum(line.startswith("quick: ") for line in lines) > 6


def test_route_keeps_what_is_labelled() -> None:
    printed = run("route")
    assert "[]: cloud\n" in printed
    assert "['patient']: edge\n    rule health: never_leaves\n" in printed


def test_flow_wins_its_bet_and_writes_once() -> None:
    printed = run("flow")
    assert printed.startswith("['Where is my money? -> rules for refund']\n")
    assert "bets: 1 won, 0 lost, 0 declined" in printed


def test_plan_says_what_fits() -> None:
    printed = run("plan")
    assert [line.split(":")[0] for line in printed.splitlines()] == [
        "RTX-4090-24GB",
        "L40S-48GB",
        "H100-80GB",
    ]
    assert "15.3 GiB" in printed


def test_simulate_compares_policies() -> None:
    printed = run("simulate")
    assert [line.split(":")[0].strip() for line in printed.splitlines()] == [
        "weigh",
        "least_requests",
        "round_robin",
    ]
