"""Runs clients at all doors, says what passed: `python -m tests.clients.lane.run [--write] [--door DOOR] [NAME ...]`.

Environments are made first. Then it runs itself again on a machine that has a loopback interface and no other
(`unshare -rn`), with the doors in it; each client has an empty home, and in its environment nothing but words that turn
telemetry and updates off. `--write` renews the table of docs/guide/clients.md, from the last run of each client.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from tests.clients.lane.environments import environment_of
from tests.clients.lane.page import written
from tests.clients.lane.site import DOORS, LaneDoor, site
from tests.clients.lane.table import CLIENTS, Client

DRIVERS = Path(__file__).parents[1] / "drivers"
#: Seconds for all steps of a client at a door.
PATIENCE = 600.0  # aiperf starts a dozen processes for each step
QUIET = {
    "DO_NOT_TRACK": "1",
    "ANONYMIZED_TELEMETRY": "false",
    "AI_SDK_DISABLE_TELEMETRY": "1",
    "HF_HUB_OFFLINE": "1",
    "HF_HUB_DISABLE_TELEMETRY": "1",
    "HF_DATASETS_OFFLINE": "1",
    "LANGSMITH_TRACING": "false",
    "OPENAI_AGENTS_DISABLE_TRACING": "1",
    "NO_PROXY": "*",
    "PYTHONNOUSERSITE": "1",
    "PYTHONDONTWRITEBYTECODE": "1",
}

#: By client and door, what a driver printed; `left`: what was still held when its last stream had been left.
Found = dict[str, dict[str, dict[str, Any]]]


def command_of(client: Client, environment: Path) -> list[str]:
    """A driver of Node stands beside its packages, since that is where Node looks for them."""
    if not client.is_node:
        return [str(environment / "bin" / "python"), str(DRIVERS / client.driver), *client.words]
    for file in (client.driver, "contract.mjs"):
        (environment / file).write_text((DRIVERS / file).read_text(encoding="utf-8"), encoding="utf-8")
    return ["node", str(environment / client.driver), *client.words]


def driven(client: Client, environment: Path, door: LaneDoor) -> dict[str, Any]:
    """What became of every step. A driver that says nothing has failed all of them."""
    with tempfile.TemporaryDirectory() as home:
        path = f"{environment / 'bin'}:{os.defpath}"
        with_nothing = {
            "HOME": home,
            "PATH": path,
            "DRIVEN_MODULES": str(environment / "node_modules"),
            **QUIET,
        }
        try:
            done = subprocess.run(
                command_of(client, environment),
                input=door.told(),
                env=with_nothing,
                cwd=home,
                capture_output=True,
                text=True,
                timeout=PATIENCE,
                check=False,
            )
        except subprocess.TimeoutExpired as late:
            return {"failed": f"no end after {PATIENCE:.0f} s: {late.stderr!r}"[-3000:]}
    if done.returncode:
        return {"failed": done.stderr[-3000:]}
    told: dict[str, Any] = json.loads(done.stdout.strip().splitlines()[-1])
    if told["steps"].get("cancelled") is True and (left := door.left_in_time()):
        told["steps"]["cancelled"] = f"the door did not let go: {left}"
    return told


def run_all(names: Sequence[str], doors: Sequence[str], environments: Mapping[str, Path]) -> Found:
    with tempfile.TemporaryDirectory() as folder, site(Path(folder)) as opened:
        found: Found = {name: {} for name in names}
        for name in names:
            for door in doors:
                found[name][door] = driven(CLIENTS[name], environments[name], opened[door])
                print(_line(name, door, found[name][door]), file=sys.stderr, flush=True)
            _keep(name, environments[name], found[name])
        return found


def _keep(name: str, environment: Path, told: Mapping[str, Any]) -> None:
    """Put what a client's run found beside its environment, which is made anew where its versions change."""
    whole = {**kept(name, environment), **told}
    (environment / f"found-{name}.json").write_text(json.dumps(whole), encoding="utf-8")


def kept(name: str, environment: Path) -> dict[str, Any]:
    """What the last runs of a client found, by door; empty where it was never run in these versions."""
    file = environment / f"found-{name}.json"
    found: dict[str, Any] = json.loads(file.read_text(encoding="utf-8")) if file.is_file() else {}
    return found


def _line(name: str, door: str, told: Mapping[str, Any]) -> str:
    wrong = list(faults(told))
    return f"{name:18} {door:10} {'all passed' if not wrong else ', '.join(one for one, _ in wrong)}"


def faults(told: Mapping[str, Any]) -> Iterator[tuple[str, str]]:
    """The steps that did not pass, and what was wrong."""
    if "failed" in told:
        yield "driver", str(told["failed"])
    for step, held in told.get("steps", {}).items():
        if held is not True:
            yield step, str(held)


def in_namespace(names: Sequence[str], doors: Sequence[str] = DOORS) -> Found:
    """Make the environments, and run the clients where there is no other machine. Raises where that cannot be."""
    environments = {name: str(environment_of(CLIENTS[name])) for name in names}
    asked = json.dumps({"names": list(names), "doors": list(doors), "environments": environments})
    words = ["unshare", "-rn", sys.executable, "-m", "tests.clients.lane.run", "--within"]
    done = subprocess.run(words, input=asked, stdout=subprocess.PIPE, text=True, check=False)
    if done.returncode:
        raise RuntimeError("the lane could not be run; its errors are above")
    found: Found = json.loads(done.stdout.splitlines()[-1])
    return found


def _within() -> None:
    subprocess.run(["ip", "link", "set", "lo", "up"], check=True)
    asked = json.load(sys.stdin)
    environments = {name: Path(path) for name, path in asked["environments"].items()}
    print(json.dumps(run_all(asked["names"], asked["doors"], environments)))


def main(words: list[str]) -> int:
    if words == ["--within"]:
        _within()
        return 0
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("names", nargs="*", choices=[*CLIENTS, []], help="none: all of them")
    parser.add_argument("--door", action="append", choices=DOORS, help="may repeat; none: all of them")
    parser.add_argument("--write", action="store_true", help="renew the table, from each one's last run")
    asked = parser.parse_args(words)
    names = asked.names or list(CLIENTS)
    found = in_namespace(names, asked.door or DOORS)
    wrong = [
        (name, door, *fault) for name, told in found.items() for door in told for fault in faults(told[door])
    ]
    for name, door, step, said in wrong:
        print(f"\n== {name} at {door}: {step}\n{said}")
    if asked.write:
        written({name: kept(name, environment_of(client)) for name, client in CLIENTS.items()})
    return 1 if wrong else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
