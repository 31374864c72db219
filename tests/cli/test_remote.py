"""Commands that ask a server: what they send, what they show of an answer, and how they fail."""

from __future__ import annotations

import json
import re
import signal
import subprocess
import sys
import time
from functools import partial
from typing import Any

import pytest
from typer.testing import CliRunner

from tests.cli.answering import answering
from weighbridge.cli.app import app
from weighbridge.cli.terminal import outside, visible
from weighbridge.cli.ticket import GIVEN_UP, HEADINGS
from weighbridge.errors import BadInput, WeighbridgeError
from weighbridge.ticket import Leg, Ticket
from weighbridge.ticket.span import SpanName

#: What a client may call itself, and what a backend may say: markup that rich would take for its own, emoji codes,
#: commands to the terminal (clear the screen, set its title), text that turns direction, half a character.
NASTY = "[/nope] [red]:bomb: \x1b[2J\x1b]0;owned\x07 \x9b31m \u202eesrever \ud800"
SHOWN = "[/nope] [red]:bomb: \\x1b[2J\\x1b]0;owned\\x07 \\x9b31m \\u202eesrever \\ud800"

TICKET = {
    "id": "t1",
    "tenant": NASTY,
    "model": "m",
    "prompt_tokens": 3,
    "cached_tokens": 0,
    "output_tokens": 2,
    "finish_reason": None,
    "placement": "edge",
    "replica": "a",
    "decisions": [NASTY],
    "attempts": 1,
    "exact": True,
    "weighed_tokens": 3,
    "predicted_output_tokens": 2.0,
    "arrived": 1.0,
    "scheduled": 1.5,
    "scores": {},
    "score_unit": "",
    "error": None,
}
REPLICA = {
    "name": NASTY,
    "standing": "[/up]",
    "why": NASTY,
    "requests": 1,
    "uncomputed_tokens": 0,
    "remaining_output_tokens": 0,
    "kv_tokens": 5,
    "kv_tokens_total": 10,
    "output_tokens": 0,
    "finished": 1,
    "failures": 0,
    "cached_tokens": 1,
    "prompt_tokens": 4,
}
MODEL = {
    "policy": "weigh",
    "queued_requests": 0,
    "queued_tokens": 0,
    "imbalance": 0.0,
    "replicas": [REPLICA],
}
PAGES = {
    "GET /v1/tickets": {"data": [TICKET]},
    "GET /v1/tickets/t1": TICKET,
    "GET /v1/tickets/t2": {**TICKET, "scores": {"a": 0.1, NASTY: 0.3}, "score_unit": "s"},
    "GET /v1/load": {"models": {NASTY: MODEL}},
}


def run(*words: str) -> Any:
    return CliRunner(env={"COLUMNS": "400"}).invoke(app, list(words))


@pytest.mark.parametrize(
    "words",
    [
        ["ticket"],
        ["ticket", "t1"],
        ["fleet", "list"],
        ["fleet", "top", "--count", "1"],
        ["fleet", "explain", "t1"],
        ["fleet", "explain", "t2"],
        ["route", "explain", "t1"],
        ["route", "explain", "t2"],
    ],
    ids=" ".join,
)
def test_text_from_outside_is_text(words: list[str]) -> None:
    with answering(PAGES) as url:
        done = run(*words, "--url", url)
    assert done.exception is None, done.exception
    assert SHOWN in done.output
    assert not set(done.output) & set("\x1b\x07\x9b\u202e")


def test_what_is_copied_from_a_narrow_terminal_is_whole() -> None:
    ids = [f"{number:032x}" for number in (7 << 90, (7 << 90) + (1 << 84))]
    pages = {"GET /v1/tickets": {"data": [{**TICKET, "id": one} for one in ids]}}
    with answering(pages) as url:
        printed = CliRunner(env={"COLUMNS": "80"}).invoke(app, ["ticket", "--url", url]).output
    beginnings = [line.split("│")[1].strip() for line in printed.splitlines() if "0000" in line]
    assert len(set(beginnings)) == 2
    assert all(one.startswith(beginning) for one, beginning in zip(ids, beginnings, strict=True))


@pytest.mark.parametrize("words", [["ticket"], ["fleet", "list"], ["audit"]], ids=" ".join)
def test_a_key_with_the_end_of_its_line_is_said_to_be_that(words: list[str]) -> None:
    keys = {"WEIGHBRIDGE_API_KEY": "a-secret-key\r", "WEIGHBRIDGE_ADMIN_KEY": "a-secret-key\r"}
    done = CliRunner(env=keys).invoke(app, [*words, "--url", "http://127.0.0.1:9"])
    assert isinstance(done.exception, BadInput)
    assert "end of a line" in str(done.exception)
    assert "a-secret-key" not in str(done.exception)


@pytest.mark.parametrize("width", [50, 64, 80, 120])
def test_a_list_of_tickets_gives_up_columns_and_cuts_no_word(width: int) -> None:
    one = {**TICKET, "tenant": "the-ninth-tenant", "model": "a-model", "finish_reason": "deadline"}
    with answering({"GET /v1/tickets": {"data": [one]}}) as url:
        printed = CliRunner(env={"COLUMNS": str(width)}).invoke(app, ["ticket", "--url", url]).output
    lines = printed.splitlines()
    assert max(map(len, lines)) <= width
    assert "\N{HORIZONTAL ELLIPSIS}" not in printed
    cells = [[cell.strip() for cell in line.strip("│┃").replace("┃", "│").split("│")] for line in lines]
    headings, rows = cells[1], [row for row in cells[3:-1] if len(row) == len(cells[1])]
    assert set(HEADINGS) - set(headings) <= set(GIVEN_UP)
    assert (set(HEADINGS) == set(headings)) == (width == 120)
    whole = {heading: "".join(row[place] for row in rows) for place, heading in enumerate(headings)}
    assert (whole["tenant"], whole["model"], whole["finish"]) == ("the-ninth-tenant", "a-model", "deadline")


def test_a_ticket_is_told_to_people_and_names_its_trace() -> None:
    one = Ticket("t1", "ann", "m", "hash", 3, 8, arrived=1e9, scheduled=1e9 + 0.25, finished=1e9 + 1)
    one.trace = SpanName("4bf92f3577b34da6a3ce929d0e0e4736", "00f067aa0ba902b7")
    one.legs = [Leg("m", "near", replica="a", prompt_tokens=3, output_tokens=2, finished=1e9 + 0.5, usd=0.25)]
    one.decisions.append("sent to a")
    lines = told_of(one)
    assert lines["trace"] == "4bf92f3577b34da6a3ce929d0e0e4736"
    assert lines["legs"] == "near m a: 3 + 2 tokens, until 500 ms after it arrived, 0.25 USD, running"
    assert (lines["scheduled"], lines["decisions"]) == ("250 ms after it arrived", "sent to a")
    assert (lines["exact"], "error" in lines, "scores" in lines) == ("yes", False, False)


def test_a_trace_that_is_not_kept_says_so_and_a_leg_that_is_the_request_is_not_told_twice() -> None:
    one = Ticket("t1", "ann", "m", "hash", 3, 8)
    one.trace = SpanName("4bf92f3577b34da6a3ce929d0e0e4736", "00f067aa0ba902b7", sampled=False)
    lines = told_of(one)
    assert "not sampled" in lines["trace"]
    assert "legs" not in lines


def told_of(ticket: Ticket) -> dict[str, str]:
    """What `weighbridge ticket` prints of one, by name."""
    with answering({"GET /v1/tickets/t1": ticket.as_dict()}) as url:
        printed = run("ticket", "t1", "--url", url).output
    found = (re.match(r"(\S+(?: \S+)*)  +(.*)", line) for line in printed.splitlines())
    return {one[1]: one[2].strip() for one in found if one}


def test_json_is_as_the_server_said_and_drives_no_terminal() -> None:
    with answering(PAGES) as url:
        text = run("ticket", "t1", "--url", url, "--json").output
    assert json.loads(text) == TICKET
    assert not set(text) & set("\x1b\x07\x9b\u202e")


@pytest.mark.parametrize(
    ("status", "body", "words", "kind", "says"),
    [
        (404, {"error": {"message": NASTY}}, ["ticket", "t1"], BadInput, "[/nope]"),
        (401, {"error": {"message": "no key"}}, ["ticket", "t1"], WeighbridgeError, "no key"),
        (401, {"error": {"message": "no key"}}, ["fleet", "list"], BadInput, "no key"),
        (500, {"error": "[/x]"}, ["fleet", "list"], WeighbridgeError, "[/x]"),
        (502, b"<html>bad gateway</html>", ["fleet", "list"], WeighbridgeError, "bad gateway"),
        (503, b"", ["ticket"], WeighbridgeError, "/v1/tickets answered 503"),
        (301, b"", ["ticket"], WeighbridgeError, "/v1/tickets answered 301"),
        (200, b"pong", ["ticket"], WeighbridgeError, "did not answer with JSON"),
        (200, {"load": 1}, ["fleet", "list"], WeighbridgeError, "it is a single replica"),
        (400, {"error": {"message": "a dense model"}}, ["moe", "stats"], BadInput, "a dense model"),
    ],
)
def test_an_answer_that_is_none_is_one_error(
    status: int, body: Any, words: list[str], kind: type[Exception], says: str
) -> None:
    paths = ("/v1/tickets", "/v1/tickets/t1", "/v1/load", "/v1/experts")
    with answering({f"GET {path}": (status, body) for path in paths}) as url:
        error = run(*words, "--url", url).exception
    assert type(error) is kind
    assert says in str(error)


def test_an_error_with_markup_and_commands_is_printed_as_text() -> None:
    whole = NASTY.removesuffix(" \ud800")  # half a character is no JSON
    with answering({"GET /v1/tickets/t1": (404, {"error": {"message": whole}})}) as url:
        command = [sys.executable, "-m", "weighbridge", "ticket", "t1", "--url", url]
        done = subprocess.run(command, capture_output=True, text=True, timeout=60)
    assert done.returncode == 2
    assert SHOWN.removesuffix(" \\ud800") in done.stderr


@pytest.mark.parametrize("url", ["localhost:8080", "ftp://127.0.0.1", "http://", "http://[::1"])
def test_a_url_that_is_none(url: str) -> None:
    error = run("ticket", "--url", url).exception
    assert isinstance(error, BadInput)
    assert "http://127.0.0.1:8080" in str(error)


def test_nobody_there_is_said_without_the_password() -> None:
    error = run("fleet", "list", "--url", "http://me:secret@127.0.0.1:9").exception
    assert isinstance(error, WeighbridgeError)
    assert "http://127.0.0.1:9/v1/load" in str(error)
    assert "is a gateway running there?" in str(error)
    assert "secret" not in str(error)


def test_what_changes_a_fleet_is_sent_with_the_admin_key() -> None:
    asked: list[dict[str, Any]] = []
    pages = {
        "POST /admin/replicas": {"data": [{"name": "new"}]},
        "POST /admin/replicas/a%20b/drain": {"standing": "draining", "requests": 2},
        "DELETE /admin/replicas/a%20b?timeout=30": {"drained": False},
    }
    with answering(pages, asked) as url:
        rest = ["--url", url, "--admin-key", "secret"]
        added = run("fleet", "add", "http://127.0.0.1:1", "--name", "new", "--for", "m", *rest)
        drained = run("fleet", "drain", "a b", *rest)
        removed = run("fleet", "remove", "a b", *rest)
    assert added.output == "added new\n"
    assert drained.output == "a b is draining, 2 requests in flight\n"
    assert removed.output == "removed a b; requests were cut off\n"
    assert json.loads(asked[0]["body"]) == {"url": "http://127.0.0.1:1", "name": "new", "for": "m"}
    assert {one["headers"]["Authorization"] for one in asked} == {"Bearer secret"}


def stream(*events: Any) -> bytes:
    data = [one if isinstance(one, str) else json.dumps(one) for one in events]
    return "".join(f"data: {one}\n\n" for one in data).encode()


def delta(text: str) -> dict[str, Any]:
    return {"choices": [{"delta": {"content": text}}]}


def chat(*said: str, pages: dict[str, Any]) -> Any:
    asked: list[dict[str, Any]] = []
    with answering({"GET /v1/models": {"data": [{"id": "m"}]}, **pages}, asked) as url:
        done = CliRunner().invoke(app, ["chat", "--url", url, "--system", "Be brief."], input="\n".join(said))
    return done, [json.loads(one["body"]) for one in asked if one["body"]]


def test_a_chat_goes_on_from_what_was_said_and_answers_drive_no_terminal() -> None:
    events = stream(delta("Hi \x1b[2J"), {"choices": []}, delta("there"), "[DONE]")
    done, bodies = chat("Hello", "More", "/bye", pages={"POST /v1/chat/completions": events})
    assert done.output == "Hi \\x1b[2Jthere\n" * 2
    assert [one["role"] for one in bodies[-1]["messages"]] == ["system", "user", "assistant", "user"]
    assert bodies[0]["model"] == "m"
    assert bodies[0]["stream"] is True


def test_an_error_in_the_middle_of_an_answer_ends_the_chat() -> None:
    events = stream(delta("Hi"), {"error": {"message": "the engine failed"}})
    done, _ = chat("Hello", pages={"POST /v1/chat/completions": events})
    assert isinstance(done.exception, WeighbridgeError)
    assert str(done.exception) == "the engine failed"


@pytest.mark.parametrize(
    "event",
    [
        *(b"{", b"[]", b"5", b"NaN", b'{"choices": 5}', b'{"choices": [5]}', b'{"choices": [{}]}'),
        *(b'{"choices": [{"delta": {"content": 5}}]}', b'{"x": ' + b"[" * 100_000),
    ],
)
def test_an_event_that_is_none_ends_the_chat_with_a_sentence(event: bytes) -> None:
    done, _ = chat(
        "Hello", pages={"POST /v1/chat/completions": stream(delta("Hi")) + b"data: " + event + b"\n\n"}
    )
    assert isinstance(done.exception, WeighbridgeError)
    assert "no part of an answer" in str(done.exception)


def test_a_server_without_a_model_is_said() -> None:
    done, _ = chat("Hello", pages={"GET /v1/models": {"data": []}})
    assert "lists no model" in str(done.exception)


def test_ctrl_c_is_130() -> None:
    asked: list[dict[str, Any]] = []
    with answering(PAGES, asked) as url:
        command = [sys.executable, "-m", "weighbridge", "fleet", "top", "--url", url, "--interval", "30"]
        # What a shell starts in the background ignores Ctrl-C, and so would all that it starts.
        heeding = partial(signal.signal, signal.SIGINT, signal.SIG_DFL)
        process = subprocess.Popen(
            command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, preexec_fn=heeding
        )
        try:
            while not asked:
                assert process.poll() is None
                time.sleep(0.01)
            process.send_signal(signal.SIGINT)
            assert process.wait(60) == 130
        finally:
            process.kill()
            process.communicate()


def test_what_a_terminal_obeys_is_shown_and_the_rest_is_as_it_was() -> None:
    assert visible(NASTY) == SHOWN
    assert visible("Grüße, 你好\tשלום\nnext [x]") == "Grüße, 你好\tשלום\nnext [x]"
    assert outside(NASTY).plain == SHOWN
    assert not outside(NASTY).spans
