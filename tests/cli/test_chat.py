"""A conversation in the terminal: what its commands do, and what is said of answers."""

from __future__ import annotations

import asyncio
import os
import pty
import re
import select
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.cli.answering import answering
from weighbridge.cli.chat.interrupts import Interrupts
from weighbridge.cli.chat.talk import HELP, ChatSettings, Talk, Then
from weighbridge.errors import BadInput

LINES = st.lists(
    st.sampled_from(
        ["Hello", "/new", "/undo", "/again", "/system Be brief.", "/set temperature 0.2", "/help", ""]
    )
)


def talk(*said: str) -> Talk:
    made = Talk(ChatSettings())
    for number, text in enumerate(said):
        made.said.append({"role": ("user", "assistant")[number % 2], "content": text})
    return made


def told(line: str) -> str:
    """What a command says, or what is wrong with it."""
    try:
        return talk("Hello", "Hi").take(line).told
    except BadInput as error:
        return str(error).partition(";")[0]


@given(LINES)
def test_users_and_assistants_take_turns_whatever_is_written(lines: list[str]) -> None:
    one = Talk(ChatSettings())
    for line in lines:
        try:
            step = one.take(line)
        except BadInput:
            continue
        if step.then is Then.ANSWER:
            assert one.said[-1]["role"] == "user"
            one.answered("Yes.")
        roles = [message["role"] for message in one.said]
        assert roles == ["user", "assistant"] * (len(roles) // 2)


def test_an_answer_can_be_made_again_and_taken_back() -> None:
    one = talk("Hello", "Hi")
    assert one.take("/again").then is Then.ANSWER
    assert [message["content"] for message in one.messages] == ["Hello"]
    one.answered("Good day")
    one.take("/undo")
    assert one.messages == []
    with pytest.raises(BadInput, match="nothing to answer"):
        one.take("/again")


def test_what_is_set_holds_for_the_next_answer() -> None:
    one = talk()
    assert one.take("/set").told == "temperature 0.7, max_tokens 1024, thoughts dim"
    one.take("/set temperature 0.2")
    one.take("/set max_tokens=8")
    one.take("/system Be brief.")
    one.take("/model other")
    assert (one.settings.temperature, one.settings.max_tokens, one.model) == (0.2, 8, "other")
    assert one.messages == [{"role": "system", "content": "Be brief."}]


@pytest.mark.parametrize(
    ("line", "words"),
    [
        ("/set temperature 9", "at most 2"),
        ("/set max_tokens few", "must be a number"),
        ("/set thoughts loud", "dim or hide"),
        ("/set colour red", "cannot be set"),
        ("/set temperature", "needs a value"),
        ("/save", "name of a file"),
        ("/dance", "is no command"),
    ],
)
def test_what_is_wrong_is_said(line: str, words: str) -> None:
    with pytest.raises(BadInput, match=words):
        talk().take(line)


def test_a_path_is_a_message_and_help_has_every_command() -> None:
    assert talk().take("/usr/bin/env is a file").then is Then.ANSWER
    unknown = "/dance is no command"
    for name in re.findall(r"^/(\w+)", HELP, re.MULTILINE):
        assert told(f"/{name}") != unknown.replace("dance", name)


def test_at_a_terminal_lines_are_edited_and_answers_have_a_speed(tmp_path: Path) -> None:
    """In a real pseudo-terminal: the word is corrected with backspaces, the tokens are counted, the chat is saved."""
    events = "".join(
        f'data: {{"choices": [{{"delta": {{"content": "{word} "}}}}]}}\n\n' for word in ("a", "b", "c")
    )
    events += 'data: {"choices": [], "usage": {"completion_tokens": 7}}\n\ndata: [DONE]\n\n'
    asked: list[dict[str, object]] = []
    pages = {"GET /v1/models": {"data": [{"id": "m"}]}, "POST /v1/chat/completions": events.encode()}
    with answering(pages, asked) as url:
        said = typed(["chat", "--url", url], ["Hellp\x7fo\n", f"/save {tmp_path}/c.json\n", "/bye\n"])
    assert "7 tokens, first after" in said
    assert "tokens/s" in said
    assert '"Hello"' in (tmp_path / "c.json").read_text()


HEAD = b"HTTP/1.1 200 OK\r\ncontent-type: text/event-stream\r\nconnection: close\r\n\r\n"


@contextmanager
def never_done() -> Iterator[str]:
    """The URL of a server whose answers begin and do not end."""
    listener, open_lines = socket.create_server(("127.0.0.1", 0)), []

    def serve() -> None:
        while True:
            try:
                line, _ = listener.accept()
            except OSError:
                return
            line.recv(1 << 16)
            line.sendall(HEAD + b'data: {"choices": [{"delta": {"content": "word "}}]}\n\n')
            open_lines.append(line)

    threading.Thread(target=serve, daemon=True).start()
    try:
        yield f"http://127.0.0.1:{listener.getsockname()[1]}"
    finally:
        listener.shutdown(socket.SHUT_RDWR)
        listener.close()
        for line in open_lines:
            line.close()


#: Starts the command in a process whose main thread is interrupted by no Ctrl-C: another thread takes the signal. So
#: it is, rarely, where one comes while readline draws a key and does not wait yet.
_UNINTERRUPTED = """
import signal, threading
threading.Thread(target=threading.Event().wait, daemon=True).start()
signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
from weighbridge.cli import main
main()
"""


@pytest.mark.parametrize("start", [["-m", "weighbridge"], ["-c", _UNINTERRUPTED]], ids=["waits", "draws"])
def test_ctrl_c_stops_every_answer_and_ends_a_line_and_only_twice_in_a_row_the_chat(start: list[str]) -> None:
    parent, child = pty.openpty()
    with never_done() as url:
        command = [sys.executable, *start, "chat", "--url", url, "m"]
        process = subprocess.Popen(
            command, stdin=child, stdout=child, stderr=child, env={**os.environ, "TERM": "xterm"}
        )
        os.close(child)
        shown = partial(behind, parent, bytearray())
        try:
            shown(b"> ")
            for _ in range(8):
                os.write(parent, b"Hello\n")
                shown(b"word ")
                process.send_signal(signal.SIGINT)
                shown(b"> ")
                os.write(parent, b"half a li")
                shown(b"half a li")
                process.send_signal(signal.SIGINT)
                shown(b"once more")
                shown(b"> ")
            assert process.poll() is None
            process.send_signal(signal.SIGINT)
            assert process.wait(30) == 130
        finally:
            process.kill()
            process.wait(10)
    os.close(parent)


async def test_a_ctrl_c_between_a_line_and_its_answer_stops_the_answer() -> None:
    """And not the program; nor is what was pressed before a line meant for the answer behind it."""
    with Interrupts() as interrupts:
        with pytest.raises(KeyboardInterrupt), interrupts.raised():
            signal.raise_signal(signal.SIGINT)
        with interrupts.raised():
            pass
        signal.raise_signal(signal.SIGINT)
        task = asyncio.ensure_future(asyncio.sleep(60))
        with interrupts.cancelling(task), pytest.raises(asyncio.CancelledError):
            await task
        signal.raise_signal(signal.SIGINT)
        with interrupts.raised():
            pass
        task = asyncio.ensure_future(asyncio.sleep(0.01))
        with interrupts.cancelling(task):
            await task


def test_what_is_no_url_is_said_before_anything_is_typed() -> None:
    command = [sys.executable, "-m", "weighbridge", "chat", "--url", "127.0.0.1:8080"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60)
    assert (done.returncode, done.stdout) == (2, "")
    assert "is no URL; write for example http://" in done.stderr


def typed(words: list[str], lines: list[str]) -> str:
    """What `weighbridge` shows in a terminal where somebody types."""
    parent, child = pty.openpty()
    command = [sys.executable, "-m", "weighbridge", *words]
    environment = {**os.environ, "TERM": "xterm", "COLUMNS": "100"}
    process = subprocess.Popen(command, stdin=child, stdout=child, stderr=child, env=environment)
    os.close(child)
    said = b""
    for line in lines:
        said += until(parent, b"> ")
        os.write(parent, line.encode())
    while True:
        try:
            data = os.read(parent, 4096)
        except OSError:  # the other end is closed
            break
        if not data:
            break
        said += data
    assert process.wait(30) == 0, said
    os.close(parent)
    return said.decode()


def behind(descriptor: int, said: bytearray, wanted: bytes) -> None:
    """Read on until the words are there; what comes behind them stays for the next."""
    while (place := said.find(wanted)) < 0:
        assert select.select([descriptor], [], [], 30)[0], bytes(said)
        said += os.read(descriptor, 4096)
    del said[: place + len(wanted)]


def until(descriptor: int, wanted: bytes) -> bytes:
    said, deadline = b"", time.monotonic() + 60
    while wanted not in said and time.monotonic() < deadline:
        said += os.read(descriptor, 4096)
    return said
