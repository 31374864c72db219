"""A coding agent's session of 40 turns, played to a server: how much was cached, and why the rest was not.

    python benchmarks/agent_session.py --turns 40

The session is made by this program: a system prompt with tools and, as agents send it, the day and the state of the
repository; each turn adds a call of a tool and what it brought. At a third and at two thirds of the session something
at the beginning moves: the state of the repository, then the order of the tools. It is sent as Anthropic's Messages, or
as OpenAI's chat (`--protocol chat`). What is reported: the share of prompt tokens that came from the prefix cache, and
for each turn in which more had to be computed than was new, what the ticket says. With `--url` a server that runs is
asked, which need not be ours: then there are no tickets.

Prompts can also be sent as the tokens that one server makes of them (`prompts_of`), so that several see the same ones
whatever their templates show. Then it is told what of each prompt stood in the one before it, which is what can be
cached, and how much of that was computed again.
"""

from __future__ import annotations

import argparse
import json
import random
import subprocess
import sys
import time
import urllib.request
from collections.abc import Sequence
from itertools import takewhile
from typing import Any

WORDS = "weigh scale gross net tare beam pan dial count batch token route queue block cache plan".split()  # noqa: SIM905
TOOLS = ("read", "edit", "run", "search")
#: Tokens of a turn that may be computed although they are not new: half a block, and what ends a template.
SLACK = 32


def call(url: str, path: str, body: Any = None) -> tuple[Any, dict[str, str]]:
    data = json.dumps(body).encode() if body is not None else None
    asked = urllib.request.Request(url + path, data, {"content-type": "application/json"})
    with urllib.request.urlopen(asked, timeout=300) as answer:
        return json.load(answer), {name.lower(): value for name, value in answer.headers.items()}


def system(changed: bool) -> str:
    """What stands at the beginning, as agents write it: rules, the day, and the state of the repository."""
    rules = " ".join(
        f"Rule {n}: {WORDS[n % len(WORDS)]} before you {WORDS[(n * 7) % len(WORDS)]}." for n in range(40)
    )
    status = "M scales.py" if changed else "clean"
    return f"You are a coding agent.\nToday is 2026-11-30.\nGit status: {status}.\n{rules}"


def tools(turned: bool) -> list[tuple[str, str]]:
    found = [(name, f"Use it to {name} files of the project.") for name in TOOLS]
    return found[::-1] if turned else found


def turns(count: int) -> list[tuple[str, dict[str, str], str]]:
    """Tool, arguments and result of each turn."""
    rng = random.Random(7)
    made = []
    for number in range(count):
        text = " ".join(rng.choice(WORDS) for _ in range(rng.randrange(20, 60)))
        made.append((TOOLS[number % len(TOOLS)], {"path": f"src/part_{number}.py"}, text))
    return made


def as_messages(
    model: str, upto: list[tuple[str, dict[str, str], str]], changed: bool, turned: bool
) -> dict[str, Any]:
    said: list[dict[str, Any]] = [{"role": "user", "content": "Repair the net weight, and run the tests."}]
    for number, (name, arguments, result) in enumerate(upto):
        use = {"type": "tool_use", "id": f"t{number}", "name": name, "input": arguments}
        said.append({"role": "assistant", "content": [{"type": "text", "text": "I look."}, use]})
        back = {"type": "tool_result", "tool_use_id": f"t{number}", "content": result}
        said.append({"role": "user", "content": [back]})
    schema = {"type": "object", "properties": {"path": {"type": "string"}}, "required": ["path"]}
    offered = [{"name": name, "description": about, "input_schema": schema} for name, about in tools(turned)]
    return {"model": model, "system": system(changed), "tools": offered, "messages": said, "max_tokens": 4}


def as_chat(
    model: str, upto: list[tuple[str, dict[str, str], str]], changed: bool, turned: bool
) -> dict[str, Any]:
    said: list[dict[str, Any]] = [
        {"role": "system", "content": system(changed)},
        {"role": "user", "content": "Repair the net weight, and run the tests."},
    ]
    for number, (name, arguments, result) in enumerate(upto):
        function = {"name": name, "arguments": json.dumps(arguments)}
        calls = [{"id": f"t{number}", "type": "function", "function": function}]
        said.append({"role": "assistant", "content": "I look.", "tool_calls": calls})
        said.append({"role": "tool", "tool_call_id": f"t{number}", "content": result})
    schema = {"type": "object", "properties": {"path": {"type": "string"}}, "required": ["path"]}
    offered = [
        {"type": "function", "function": {"name": name, "description": about, "parameters": schema}}
        for name, about in tools(turned)
    ]
    return {"model": model, "tools": offered, "messages": said, "max_tokens": 4, "temperature": 0}


def counts(answer: dict[str, Any]) -> tuple[int, int]:
    """Tokens of a prompt, and those of them that were cached: as usage says, or as llama-server tells beside it."""
    usage = answer["usage"]
    if "prompt_tokens" in usage:
        told = (usage.get("prompt_tokens_details") or {}).get("cached_tokens")
        return usage["prompt_tokens"], told or (answer.get("timings") or {}).get("cache_n") or 0
    cached = usage["cache_read_input_tokens"]
    return usage["input_tokens"] + cached + usage["cache_creation_input_tokens"], cached


def body_of(
    protocol: str, model: str, session: list[tuple[str, dict[str, str], str]], turn: int
) -> dict[str, Any]:
    """What an agent sends in a turn of its session."""
    make = as_chat if protocol == "chat" else as_messages
    return make(model, session[:turn], turn >= len(session) // 3, turn >= 2 * len(session) // 3)


def prompts_of(url: str, count: int) -> list[list[int]]:
    """The tokens of each turn's prompt, as a server of ours shows it to its model."""
    session, model = turns(count), call(url, "/v1/models")[0]["data"][0]["id"]
    bodies = [body_of("chat", model, session, turn) for turn in range(count)]
    asked = [{name: body[name] for name in ("model", "messages", "tools")} for body in bodies]
    return [call(url, "/tokenize", body)[0]["tokens"] for body in asked]


def in_common(one: Sequence[int], other: Sequence[int]) -> int:
    return sum(1 for _ in takewhile(lambda pair: pair[0] == pair[1], zip(one, other, strict=False)))


def played(
    url: str,
    count: int,
    protocol: str = "messages",
    slack: int = SLACK,
    prompts: Sequence[list[int]] | None = None,
) -> dict[str, Any]:
    """A session of so many turns at a server. `slack`: tokens that may be computed beyond what is new.

    `prompts`: the tokens that are sent instead of chats.
    """
    session, rows = turns(count), []
    model = call(url, "/v1/models")[0]["data"][0]["id"]
    path = "/v1/chat/completions" if protocol == "chat" else "/v1/messages"
    before = 0
    for turn in range(count):
        body = body_of(protocol, model, session, turn)
        if prompts is not None:
            path = "/v1/completions"
            body = {"model": model, "prompt": prompts[turn], "max_tokens": 4, "temperature": 0}
        answer, headers = call(url, path, body)
        prompt, cached = counts(answer)
        row: dict[str, Any] = {"turn": turn, "prompt": prompt, "cached": cached, "new": prompt - before}
        if prompts is not None:
            row["stood"] = in_common(prompts[turn - 1], prompts[turn]) if turn else 0
        if name := headers.get("x-weighbridge-ticket"):
            row["why"] = call(url, f"/v1/tickets/{name}")[0].get("prefix")
        rows.append(row)
        before = prompt
    missed = [row for row in rows[1:] if row["prompt"] - row["cached"] > row["new"] + slack]
    total = sum(row["prompt"] for row in rows)
    told: dict[str, Any] = {
        "turns": count,
        "prompt_tokens": total,
        "cached_share": round(sum(row["cached"] for row in rows) / total, 4),
        "missed": [
            {name: row.get(name) for name in ("turn", "prompt", "cached", "new", "why")} for row in missed
        ],
        "explained": all(row.get("why") for row in missed),
    }
    if prompts is not None:
        told["stood_share"] = round(sum(row["stood"] for row in rows) / total, 4)
        told["computed_again"] = [row["stood"] - row["cached"] for row in rows[1:]]
    return told


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--model", default="default")
    parser.add_argument("--url", help="a server that runs already")
    parser.add_argument("--port", type=int, default=18933)
    parser.add_argument("--turns", type=int, default=40)
    parser.add_argument("--protocol", choices=("messages", "chat"), default="messages")
    parser.add_argument(
        "--slack", type=int, default=SLACK, help="tokens that may be computed beyond what is new"
    )
    args = parser.parse_args()
    if args.url:
        print(json.dumps(played(args.url, args.turns, args.protocol, args.slack), indent=1))
        return
    command = [
        sys.executable,
        "-m",
        "weighbridge",
        "serve",
        args.model,
        "--port",
        str(args.port),
        "--prefix-care",
    ]
    server = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    url = f"http://127.0.0.1:{args.port}"
    try:
        for _ in range(1500):
            try:
                call(url, "/health")
                break
            except OSError:
                time.sleep(0.2)
        print(json.dumps(played(url, args.turns, args.protocol, args.slack), indent=1))
    finally:
        server.terminate()
        server.wait(60)


if __name__ == "__main__":
    main()
