"""`weighbridge moe simulate`: placements compared on the same loads, and one line for what cannot be."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from typer.testing import CliRunner

from weighbridge.cli.app import app
from weighbridge.errors import BadInput

SMALL = (
    "--gpus",
    "4",
    "--layers",
    "3",
    "--experts",
    "16",
    "--replicas",
    "20",
    "--top-k",
    "2",
    "--steps",
    "200",
)


def run(*options: str) -> str:
    result = CliRunner().invoke(app, ["moe", "simulate", *options])
    if result.exception is not None and not isinstance(result.exception, SystemExit):
        raise result.exception
    assert result.exit_code == 0, result.output
    return result.stdout


def test_placement_shows_in_throughput_and_p99_and_the_seed_decides_all() -> None:
    options = (*SMALL, "--drift", "0.5", "--replace-every", "50", "--json")
    text = run(*options)
    assert text == run(*options) != run(*options, "--seed", "1")
    placed = json.loads(text)["placements"]
    assert list(placed) == ["in order", "eplb", "balance", "eplb, every 50", "balance, every 50"]
    plain, eplb, fresh = placed["in order"], placed["eplb"], placed["eplb, every 50"]
    assert eplb["tokens_per_second"] > plain["tokens_per_second"]
    assert eplb["p99_step"] < plain["p99_step"]
    assert eplb["fetched_experts"] == 0 < fresh["fetched_experts"]


def test_the_skew_of_measured_loads_is_taken(tmp_path: Path) -> None:
    file = tmp_path / "loads.csv"
    file.write_text("8,4,2,1\n1,8,2,4\n")
    options = ("--gpus", "2", "--loads", str(file), "--top-k", "1", "--steps", "50", "--json")
    traffic = json.loads(run(*options))["traffic"]
    assert (traffic["layers"], traffic["experts"]) == (2, 4)
    assert traffic["skew"] > 0.5
    assert "tokens/s" in run(*options[:-1])


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (("--gpus", "4"), "--layers and --experts"),
        ((*SMALL, "--replicas", "18"), "do not divide evenly"),
        ((*SMALL, "--correlation", "1"), "correlation must be in"),
        ((*SMALL, "--loads", "none.json"), "leave out --layers"),
        (("--gpus", "4", "--loads", "none.json"), "cannot be read"),
        ((*SMALL, "--top-k", "17"), "at least as many experts"),
    ],
)
def test_what_cannot_be_is_said(options: tuple[str, ...], said: str) -> None:
    with pytest.raises(BadInput, match=said):
        run(*options)
