"""`weighbridge flow` as its users call it."""

from __future__ import annotations

import json
import re
import signal
import subprocess
import sys
from pathlib import Path

#: Long the first time, quick the next.
NAPS = """
import asyncio
import pathlib
from weighbridge.flow import flow, step

@step(effect="read")
async def nap(seconds):
    print("naps", flush=True)
    before = pathlib.Path(__file__).with_suffix(".before")
    if not before.exists():
        before.touch()
        await asyncio.sleep(60)
    return seconds

@flow
async def naps():
    return await nap(1)
"""


def test_the_command_line(tmp_path: Path) -> None:
    def flow_command(*words: str, code: int = 0) -> str:
        command = [sys.executable, "-m", "weighbridge", "flow", *words]
        done = subprocess.run(command, capture_output=True, text=True, timeout=60, cwd=tmp_path)
        assert done.returncode == code, done.stderr
        return done.stdout if code == 0 else done.stderr

    task = '{"id": "1", "steps": [{"id": "a", "seconds": 2, "output": 1}, {"id": "b", "seconds": 2, "output": 2}]}'
    (tmp_path / "w.jsonl").write_text(task)
    report = json.loads(flow_command("replay", "--workload", "w.jsonl", "--mode", "parallel", "--json"))
    assert report["makespan_s"] == {"mean": 2.0, "p50": 2.0, "p95": 2.0}
    assert report["speedup_over_sequential"] == 2.0
    assert report["bets"] == {"won": 0, "lost": 0, "declined": 0}
    assert "must be one of" in flow_command("replay", "--workload", "w.jsonl", "--mode", "x", code=2)

    (tmp_path / "mine.py").write_text(
        "from weighbridge.flow import flow, step\n"
        "@step(effect='pure')\nasync def double(n: int) -> int: return 2 * n\n"
        "@flow\nasync def twice(n: int) -> int: return await double(await double(n))\n"
    )
    out = json.loads(
        flow_command("run", "mine:twice", "--input", "3", "--journal", "j.db", "--run-id", "r", "--json")
    )
    assert out["result"] == 12
    assert "twice  run r" in flow_command("timeline", "r", "--journal", "j.db")
    assert "twice  run r" in flow_command("timeline", "--journal", "j.db")
    flow_command("timeline", "r", "--journal", "j.db", "--html", "t.html")
    page = (tmp_path / "t.html").read_text()
    assert page.startswith("<!doctype html>")
    assert "http" not in page, "the page needs nothing from elsewhere"
    assert "its flows: twice" in flow_command("run", "mine:nope", code=2)
    assert "is not JSON" in flow_command("run", "mine:twice", "--input", "{", code=2)
    assert "missing a required argument" in flow_command("run", "mine:twice", code=2)
    own = flow_command("run", "mine:twice", "--input", "null", "--journal", "j.db", code=1)
    assert "mine:twice failed: TypeError: unsupported operand" in own, "a mistake of the flow's own"


def test_what_one_process_saw_the_next_one_bets_on(tmp_path: Path) -> None:
    (tmp_path / "mine.py").write_text(
        "import asyncio\n"
        "from weighbridge.flow import flow, guess, step\n"
        "@step(effect='pure')\nasync def topic(text: str) -> str:\n    await asyncio.sleep(0.2); return 'billing'\n"
        "@step(effect='read')\nasync def reply(about: str, text: str) -> str:\n"
        "    await asyncio.sleep(0.2); return about + text\n"
        "@flow\nasync def support(text: str) -> str:\n    return await reply(await guess(topic(text)), text)\n"
    )
    reports = []
    for number in range(5):
        command = [
            sys.executable,
            "-m",
            "weighbridge",
            "flow",
            "run",
            "mine:support",
            "--journal",
            "j.db",
            "--json",
        ]
        command += ["--input", json.dumps(f"question {number}")]
        done = subprocess.run(command, capture_output=True, text=True, timeout=60, cwd=tmp_path, check=True)
        reports.append(json.loads(done.stdout))
    assert reports[0]["bets"] == {"won": 0, "lost": 0, "declined": 0}
    assert reports[-1]["bets"]["won"] == 1
    assert reports[-1]["seconds"] < reports[0]["seconds"] - 0.1


def test_a_file_that_fails_as_it_is_loaded_is_told_with_its_line(tmp_path: Path) -> None:
    file = tmp_path / "mine.py"
    file.write_text("one = 1\ntwo = one / 0\n")
    command = [sys.executable, "-m", "weighbridge", "flow", "run", f"{file}:flow"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60)
    assert (done.returncode, done.stdout) == (2, "")
    wanted = f"error: {file} cannot be loaded: ZeroDivisionError: division by zero ({file}, line 2)\n"
    assert done.stderr == wanted


def test_a_run_that_is_interrupted_says_how_it_goes_on(tmp_path: Path) -> None:
    file = tmp_path / "mine.py"
    file.write_text(NAPS)
    command = [sys.executable, "-m", "weighbridge", "flow", "run", f"{file}:naps"]
    command += ["--journal", str(tmp_path / "flows.sqlite")]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    assert process.stdout is not None
    assert process.stdout.readline() == "naps\n"
    process.send_signal(signal.SIGINT)
    _, said = process.communicate(timeout=60)
    assert process.returncode == 130
    found = re.search(r"interrupted; (--run-id) (\S+) goes on with it", said)
    assert found is not None, said
    done = subprocess.run([*command, *found.groups()], capture_output=True, text=True, timeout=60)
    assert (done.returncode, done.stdout) == (0, "naps\n1\n"), done.stderr
