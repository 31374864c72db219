"""The live table of a fleet: sorted by any column, scrolled within its bounds, and lines where there is no terminal."""

from __future__ import annotations

import io
import os
import pty
import re
import subprocess
import sys
import time
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from rich.console import Console

from tests.cli.answering import answering
from weighbridge.cli.fleet import FIGURES
from weighbridge.cli.fleet_top import _KEYS, SORTS, View, _drawn, meanings

KEYS = ("up", "down", "page up", "page down", "first", "last", "sort", "sort back", "reverse", "")


def replica(name: str, requests: int = 0, output: int = 0) -> dict[str, Any]:
    figures = dict.fromkeys(
        ("uncomputed_tokens", "remaining_output_tokens", "kv_tokens", "failures", "cached_tokens"), 0
    )
    return {
        **{
            "name": name,
            "standing": "up",
            "why": "",
            "requests": requests,
            "finished": 0,
            "prompt_tokens": 0,
        },
        **{"kv_tokens_total": None, "output_tokens": output, **figures},
    }


def load(*sizes: int) -> dict[str, Any]:
    models = {}
    for number, size in enumerate(sizes):
        replicas = [replica(f"{number}-{index:02}", requests=(index * 7) % 5) for index in range(size)]
        figures = {"policy": "weigh", "queued_requests": 0, "queued_tokens": 0, "imbalance": 0.0}
        models[f"m{number}"] = {"replicas": replicas, **figures}
    return {"models": models}


def names(seen: dict[str, Any]) -> list[str]:
    return [one["name"] for pool in seen["models"].values() for one in pool["replicas"]]


@given(
    st.lists(st.integers(1, 30), min_size=1, max_size=4), st.integers(1, 40), st.lists(st.sampled_from(KEYS))
)
def test_a_screen_is_full_and_never_beyond_the_ends(sizes: list[int], room: int, keys: list[str]) -> None:
    whole, view = load(*sizes), View()
    seen = view.of(whole, room)
    for key in keys:
        view.press(key)
        seen = view.of(whole, room)
        assert len(names(seen)) == min(room, sum(sizes))
        assert set(names(seen)) <= set(names(whole))
    view.press("last")
    assert names(view.of(whole, room))[-1].startswith(f"{len(sizes) - 1}-")


@pytest.mark.parametrize("sort", SORTS)
def test_rows_are_sorted_by_any_column(sort: str) -> None:
    whole = load(9)
    ordered = names(View(sort).of(whole, 50))
    assert sorted(ordered) == names(whole)
    if sort == "requests":
        by_name = {one["name"]: one["requests"] for one in whole["models"]["m0"]["replicas"]}
        counts = [by_name[name] for name in ordered]
        assert counts == sorted(counts, reverse=True)
        assert [by_name[name] for name in names(View(sort, reverse=True).of(whole, 50))] == sorted(counts)


def test_speed_is_by_what_came_between_two_looks() -> None:
    view = View("tok/s", before=load(2), seconds=2.0)
    now = load(2)
    now["models"]["m0"]["replicas"][1]["output_tokens"] = 50
    assert names(view.of(now, 9)) == ["0-01", "0-00"]


def test_without_a_terminal_each_look_is_a_line_for_every_replica() -> None:
    with answering({"GET /v1/load": load(2, 1)}, []) as url:
        command = [sys.executable, "-m", "weighbridge", "fleet", "top", "--url", url, "--count", "2"]
        command += ["--interval", "0.1", "--sort", "requests"]
        done = subprocess.run(command, capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr
    assert [line.split("\t")[1] for line in done.stdout.splitlines()] == ["0-01", "0-00", "1-00"] * 2


def test_a_column_that_is_not_there_is_said() -> None:
    command = [sys.executable, "-m", "weighbridge", "fleet", "top", "--sort", "colour"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60)
    assert done.returncode == 2
    assert "use replica, standing, requests" in " ".join(done.stderr.split())


@settings(max_examples=30)
@given(st.integers(24, 200), st.integers(14, 60), st.lists(st.integers(1, 30), min_size=1, max_size=2))
def test_a_screen_is_neither_too_wide_nor_too_high_and_cuts_no_word(
    width: int, height: int, sizes: list[int]
) -> None:
    """In a narrow window figures are left out, one after the other, and the others are whole."""
    console = Console(width=width, height=height, file=io.StringIO(), force_terminal=True, color_system=None)
    console.print(_drawn(load(*sizes), View(), console))
    lines = console.file.getvalue().splitlines()
    assert max(len(line.rstrip()) for line in lines) <= width
    assert len(lines) <= height
    shown = " ".join(" ".join(lines).split())
    assert all(
        f"m{number} · weigh · 0 waiting (0 tokens) · imbalance 0.00" in shown
        for number in range(len(sizes[:1]))
    )
    assert re.search(r"1 to \d+ of \d+ replicas, by replica", shown)
    headings = next(line for line in lines if line.startswith("┃")).strip("┃ ").split("┃")
    figures = [one for one in FIGURES if one != "tok/s"]  # there is no look before this one
    assert [one.strip() for one in headings] == ["replica", "standing", *figures][: len(headings)]


@given(st.lists(st.sampled_from([*_KEYS, b"x", b"\x1b[15~", b"\x1b[1;5C", b"\xc3\xa9"])))
def test_keys_that_come_together_are_told_apart(pressed: list[bytes]) -> None:
    assert meanings(b"".join(pressed)) == [_KEYS[one] for one in pressed if one in _KEYS]


def test_arrows_of_other_terminals_are_arrows() -> None:
    assert meanings(b"\x1bOA\x1bOB\x1bOH") == ["up", "down", "first"]


@pytest.mark.parametrize("words", [["fleet", "list"], ["fleet", "top", "--count", "1"]])
def test_a_gateway_that_shows_its_load_to_the_operator_is_asked_with_the_operators_key(
    words: list[str],
) -> None:
    asked: list[dict[str, Any]] = []
    with answering({"GET /v1/load": load(2)}, asked) as url:
        environment = {**os.environ, "WEIGHBRIDGE_ADMIN_KEY": "operators-key", "WEIGHBRIDGE_URL": url}
        command = [sys.executable, "-m", "weighbridge", *words]
        done = subprocess.run(command, capture_output=True, text=True, timeout=60, env=environment)
    assert done.returncode == 0, done.stderr
    assert len(done.stdout.splitlines()) == 2
    assert {one["headers"]["Authorization"] for one in asked} == {"Bearer operators-key"}


def test_a_gateway_that_goes_away_leaves_its_figures_on_the_screen() -> None:
    parent, child = pty.openpty()
    with answering({"GET /v1/load": load(3)}) as url:
        command = [sys.executable, "-m", "weighbridge", "fleet", "top", "--url", url, "--interval", "0.2"]
        environment = {**os.environ, "TERM": "xterm", "COLUMNS": "90", "LINES": "20"}
        process = subprocess.Popen(command, stdin=child, stdout=child, stderr=child, env=environment)
        os.close(child)
        seen_until(parent, b"1 to 3 of 3")
    said = b" ".join(seen_until(parent, b"s ago").split())
    assert re.search(rb"no answer from .*; these are its figures of \d+ s ago", said)
    assert b"0-02" in said
    os.write(parent, b"q")
    assert process.wait(30) == 0
    os.close(parent)


def seen_until(terminal: int, wanted: bytes) -> bytes:
    said, deadline = b"", time.monotonic() + 60
    while wanted not in said and time.monotonic() < deadline:
        said += os.read(terminal, 4096)
    return said
