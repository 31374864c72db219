"""Flags, defaults, types, bounds and words of every command are those of the snapshot (`options_table`)."""

from __future__ import annotations

import json
from typing import Any

import pytest

from tests.cli.options_table import SNAPSHOT, commands

KNOWN: dict[str, Any] = json.loads(SNAPSHOT.read_text(encoding="utf-8"))


@pytest.fixture(scope="module")
def now() -> dict[str, Any]:
    return commands()


def test_there_are_the_same_commands_in_the_same_order(now: dict[str, Any]) -> None:
    assert list(now) == list(KNOWN)
    assert {path: list(one["commands"]) for path, one in now.items()} == {
        path: list(one["commands"]) for path, one in KNOWN.items()
    }


@pytest.mark.parametrize("path", KNOWN)
def test_options_of_a_command(path: str, now: dict[str, Any]) -> None:
    assert now[path] == KNOWN[path]
