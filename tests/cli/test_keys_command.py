"""`weighbridge keys`: what it makes is what a server takes."""

from __future__ import annotations

import json

from typer.testing import CliRunner

from weighbridge.cli.app import app
from weighbridge.errors import BadInput
from weighbridge.secret import Secret
from weighbridge.wire.keys import Keys, parse_key


def test_a_new_key_opens_a_server_that_knows_its_hash() -> None:
    made = json.loads(CliRunner().invoke(app, ["keys", "new", "--json"]).stdout)
    keys = Keys([parse_key(f"ann={made['hash']}")])
    assert keys.tenant({"authorization": f"Bearer {made['key']}"}) == "ann"
    words = CliRunner().invoke(app, ["keys", "new"]).stdout.split()
    assert words[::2] == ["key", "hash"]
    assert Keys([parse_key(words[3])]).tenant({"authorization": f"Bearer {words[1]}"}) == "default"


def test_a_key_that_is_there_is_hashed_from_standard_input() -> None:
    result = CliRunner().invoke(app, ["keys", "hash"], input="schlüssel-to-everything\n")
    assert result.exit_code == 0
    assert "fewer than" not in result.output
    header = {"authorization": "Bearer " + "schlüssel-to-everything".encode().decode("latin-1")}
    assert Keys([parse_key(result.stdout.strip())]).tenant(header) == "default"
    short = CliRunner().invoke(app, ["keys", "hash", "--json"], input="short")
    assert "fewer than 16 characters" in short.stderr
    assert json.loads(short.stdout)["hash"].startswith("sha256:")
    assert "short" not in short.stdout
    empty = CliRunner().invoke(app, ["keys", "hash"], input="\n")
    assert isinstance(empty.exception, BadInput)


def test_secrets_are_compared_by_what_they_are() -> None:
    assert parse_key("ann=key").secret == Secret("key")
