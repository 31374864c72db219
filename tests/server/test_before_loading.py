"""What is wrong with a server's own files and address is said before a model is loaded, which takes long."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from weighbridge.engine.schedule.admission import deadline_left
from weighbridge.errors import BadInput
from weighbridge.server.lifecycle import bind

#: A model that is not there: whatever comes to look for it says so.
NO_MODEL = "/nowhere/no-such-model"
OIDC = ["--oidc-issuer", "https://login.example", "--oidc-audience", "w"]


def said(*words: str) -> str:
    """What a command that fails says."""
    command = [sys.executable, "-m", "weighbridge", *words, "--port", "0"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 2, done.stderr
    return done.stderr


@pytest.fixture
def bad(tmp_path: Path) -> Path:
    """A file that is neither a certificate nor a set of keys."""
    path = tmp_path / "bad.pem"
    path.write_text("neither")
    return path


def test_a_model_that_is_not_there_is_said_where_all_else_is_well() -> None:
    assert "no-such-model" in said("serve", NO_MODEL)


@pytest.mark.parametrize(
    ("options", "complaint"),
    [
        (["--tls-cert", "BAD"], "PEM certificate chain"),
        (["--tls-cert", "/nowhere/cert.pem"], "/nowhere/cert.pem"),
        (["--oidc-jwks", "BAD", *OIDC], "is no JWKS"),
        (["--tickets", "BAD/tickets.jsonl"], "tickets.jsonl"),
    ],
    ids=["a certificate", "no certificate", "a set of keys", "tickets"],
)
def test_wrong_files_of_a_single_server_are_said_before_loading(
    options: list[str], complaint: str, bad: Path
) -> None:
    words = [word.replace("BAD", str(bad)) for word in options]
    told = said("serve", NO_MODEL, *words)
    assert complaint in told
    assert "no-such-model" not in told


@pytest.mark.parametrize(
    ("settings", "complaint"),
    [
        ("tls_cert: bad.pem", "PEM certificate chain"),
        ("oidc_jwks: bad.pem\noidc_issuer: https://login.example\noidc_audiences: [w]", "is no JWKS"),
    ],
    ids=["a certificate", "a set of keys"],
)
def test_wrong_files_of_a_gateway_are_said_before_loading(settings: str, complaint: str, bad: Path) -> None:
    file = bad.parent / "weighbridge.yaml"
    file.write_text(f"models: {{m: {{replicas: [{{engine: {NO_MODEL}}}]}}}}\n{settings}\n")
    told = said("serve", "--config", str(file))
    assert complaint in told
    assert "no-such-model" not in told


@pytest.mark.parametrize("host", ["999.1.1.1", "no-such-host.invalid", "a..b", "x" * 300])
def test_a_host_that_is_none_is_called_one(host: str) -> None:
    with pytest.raises(BadInput, match=r"it is no address, and no name of one; give --host") as caught:
        bind(host, 0)
    assert caught.value.param == "host"


def test_an_address_of_another_machine_is_no_matter_of_ports() -> None:
    with pytest.raises(BadInput, match=r"on 192\.0\.2\.1: it is no address of this machine"):
        bind("192.0.2.1", 0)


@pytest.mark.parametrize(
    ("seconds", "words"),
    [
        (0.25, "is 250 ms away"),
        (0.0001, "is 1 ms away"),
        (0.0, "has passed"),
        (-0.0001, "has passed"),
        (-5.0, "has passed"),
    ],
)
def test_no_deadline_is_a_negative_time_away(seconds: float, words: str) -> None:
    assert deadline_left(seconds) == words
