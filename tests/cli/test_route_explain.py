"""`weighbridge route explain` tells tickets of routes and of plain models apart."""

from __future__ import annotations

import json
from pathlib import Path

from typer.testing import CliRunner

from weighbridge.cli.app import app
from weighbridge.ticket import Ticket


def explained(path: Path, ticket: Ticket) -> str:
    path.write_text(json.dumps(ticket.as_dict()) + "\n")
    done = CliRunner().invoke(app, ["route", "explain", ticket.id, "--tickets", str(path)])
    assert done.exit_code == 0, done.output
    return done.output


def test_a_ticket_of_the_fleet_names_the_replicas_not_chosen(tmp_path: Path) -> None:
    ticket = Ticket("t1", "default", "m", "hash", 4, 5, arrived=1.0, scheduled=1.5, attempts=1)
    ticket.replica, ticket.scores, ticket.score_unit = "a", {"a": 0.1, "b": 0.3}, "s"
    ticket.weighed_tokens, ticket.predicted_output_tokens = 4, 5.0
    words = explained(tmp_path / "tickets.jsonl", ticket)
    assert "4 prompt tokens" in words
    assert "waited 500.0 ms" in words
    assert "b: 0.3 s" in words


def test_a_ticket_of_a_route_says_what_left_the_machine(tmp_path: Path) -> None:
    ticket = Ticket("t2", "default", "auto", "hash", 4, 5, placement="cloud", finished=1.0)
    ticket.left_machine = ["big: 12 bytes of text"]
    assert "12 bytes" in explained(tmp_path / "tickets.jsonl", ticket)
