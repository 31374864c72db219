"""`weighbridge chat`: talk to a running server, or to a model loaded for the occasion."""

from __future__ import annotations

import asyncio
import json
import sys
import time
from contextlib import suppress
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Annotated

import typer

from weighbridge.cli.chat.answers import Answerer, Local, Remote, TokenCount
from weighbridge.cli.chat.interrupts import Interrupts
from weighbridge.cli.chat.talk import ChatSettings, Talk, Then
from weighbridge.cli.options import ApiKey, Only, model_names, options
from weighbridge.cli.terminal import errors, outside, visible
from weighbridge.engine.settings import EngineSettings
from weighbridge.errors import BadInput, WeighbridgeError
from weighbridge.server.styles.pieces import Thought

try:  # lines can be edited, and earlier ones come back; Windows has no such module
    import readline
except ImportError:
    readline = None  # type: ignore[assignment]


@options
def chat(
    model: Annotated[
        str | None,
        typer.Argument(help="Model to load; with --url: the one to ask for.", autocompletion=model_names),
    ] = None,
    url: Annotated[
        str | None, typer.Option(help="A running server, for example http://127.0.0.1:8080.")
    ] = None,
    api_key: ApiKey = None,
    *,
    params: ChatSettings,
    engine: Annotated[EngineSettings, Only({"quantize"})],
) -> None:
    """Chat in the terminal, streaming. Ctrl-C stops an answer, Ctrl-D or /bye leaves, /help lists the commands."""
    if url is not None:
        asyncio.run(_converse(Remote(url, api_key), Talk(params, model)))
    else:
        asyncio.run(_chat_locally(model or "default", engine, params))


async def _chat_locally(model: str, settings: EngineSettings, params: ChatSettings) -> None:
    from weighbridge.cli.serve.model import load  # loads torch

    replica = load(model, model, replace(settings, max_sequences=1))
    replica.engine.start()
    try:
        await _converse(Local(replica.engine, replica.tokenizer), Talk(params, model))
    finally:
        replica.engine.stop()


async def _converse(answerer: Answerer, talk: Talk) -> None:
    with Interrupts() as interrupts:
        await _in_turns(answerer, talk, interrupts)


async def _in_turns(answerer: Answerer, talk: Talk, interrupts: Interrupts) -> None:
    is_person = sys.stdin.isatty()
    if is_person:
        if readline is not None:
            readline.set_auto_history(True)
        errors.print("[dim]Ctrl-C stops an answer, Ctrl-D or /bye leaves, /help lists the commands.[/]")
    interrupted = False
    while True:
        try:
            with interrupts.raised():
                line = _read_line()
        except KeyboardInterrupt:
            if interrupted or not is_person:
                raise
            interrupted = True  # a second one in a row is meant
            errors.print("\n[dim]Ctrl-D or /bye leaves, and Ctrl-C once more[/]")
            continue
        interrupted = False
        if line is None:
            return
        try:
            step = talk.take(line)
            if step.then is Then.LEAVE:
                return
            if step.then is Then.ANSWER:
                talk.answered(await _print_answer(answerer, talk, interrupts))
            elif step.then is Then.SAVE:
                errors.print(outside(_save(Path(step.told), talk)))
            elif step.told:
                errors.print(outside(step.told), soft_wrap=True)
        except WeighbridgeError as error:
            if not is_person:
                raise
            talk.unanswered()
            errors.print(outside(f"error: {error}"), style="red", soft_wrap=True)


def _read_line() -> str | None:
    """What somebody wrote, over several lines where they end with a backslash; None at the end.

    Nothing is to be done meanwhile, so the loop waits: only in the main thread Ctrl-C ends a read.
    """
    prompt, further = ("> ", ". ") if sys.stdin.isatty() else ("", "")
    try:
        line = input(prompt)
        while line.endswith("\\"):
            line = f"{line[:-1]}\n{input(further)}"
    except EOFError:
        return None
    return line


def _save(path: Path, talk: Talk) -> str:
    """Write the conversation, as the body of a request would have it."""
    try:
        path.write_text(json.dumps(talk.messages, ensure_ascii=False, indent=1) + "\n", encoding="utf-8")
    except OSError as error:
        raise BadInput(f"{path} cannot be written: {error.strerror or error}") from error
    return f"{len(talk.messages)} messages are in {path}"


@dataclass(slots=True)
class _Spoken:
    """An answer as it comes: what was said without thoughts, and its times on one clock."""

    began: float
    said: list[str] = field(default_factory=list)
    first: float | None = None
    tokens: int = 0

    def figures(self, now: float) -> str:
        """Its speed in words; empty where nothing came."""
        if self.first is None:
            return ""
        speed = f", {(self.tokens - 1) / (now - self.first):.1f} tokens/s" if self.tokens > 1 else ""
        return f"{self.tokens} tokens, first after {self.first - self.began:.2f} s{speed}"


async def _print_answer(answerer: Answerer, talk: Talk, interrupts: Interrupts) -> str:
    """Stream one answer to standard output; Ctrl-C keeps what came so far. Returns what was said, without thoughts."""
    spoken = _Spoken(time.monotonic())
    task = asyncio.ensure_future(_stream(answerer, talk, spoken))
    with interrupts.cancelling(task), suppress(asyncio.CancelledError):
        await task
    sys.stdout.write("\n")
    figures = spoken.figures(time.monotonic())
    if figures and sys.stdin.isatty() and errors.is_terminal:
        errors.print(f"[dim]{figures}[/]")
    return "".join(spoken.said)


async def _stream(answerer: Answerer, talk: Talk, spoken: _Spoken) -> None:
    dim, plain = ("\033[2m", "\033[0m") if sys.stdout.isatty() else ("", "")
    async for piece in answerer.answer(talk):
        if isinstance(piece, TokenCount):
            spoken.tokens = piece.count
            continue
        if spoken.first is None:
            spoken.first = time.monotonic()
        if isinstance(piece, str):
            spoken.said.append(piece)
            sys.stdout.write(visible(piece))
        elif isinstance(piece, Thought) and talk.settings.thoughts == "dim":
            sys.stdout.write(f"{dim}{visible(piece.text)}{plain}")
        sys.stdout.flush()
