"""A coding agent's session at us, vLLM and llama-server, one after the other: how much of its prompts was cached.

    python benchmarks/peers/session.py [--only weighbridge,vllm,llama] [--turns 40] [--same] [--json FILE]

The session of `benchmarks/agent_session.py`, as OpenAI's chat, at fresh servers over the same weights, each with its
prefix cache and one client. A template that has no place for tools shows none, so that prompts differ between servers
in length: the share is each one's own. Of ours the tickets say why what was not new was computed.

With `--same` all get the prompts that ours makes, with the tools told in words, as tokens: then only caches differ.
"""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path
from typing import Any

from servers import HERE, server

sys.path.append(str(HERE.parent))

from agent_session import played, prompts_of

PEERS = ("weighbridge", "vllm", "llama")


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--only", default=",".join(PEERS))
    parser.add_argument("--turns", type=int, default=40)
    parser.add_argument("--same", action="store_true", help="the same tokens for all")
    parser.add_argument("--json", type=Path, help="where everything that was found is put")
    asked = parser.parse_args()
    found: dict[str, dict[str, Any]] = {}
    prompts: list[list[int]] | None = None
    if asked.same:
        with server("weighbridge", 1, session=True) as url:
            prompts = prompts_of(url, asked.turns)
    for peer in asked.only.split(","):
        with server(peer, 1, session=True) as url:
            found[peer] = played(url, asked.turns, "chat", prompts=prompts)
        told = found[peer]
        print(
            f"{peer:12} {told['prompt_tokens']:7} prompt tokens, {100 * told['cached_share']:.1f} % cached, "
            f"{len(told['missed'])} turns missed"
            + (", each explained" if told["missed"] and told["explained"] else "")
            + (again(told["computed_again"]) if prompts is not None else ""),
            flush=True,
        )
    if asked.json is not None:
        asked.json.write_text(json.dumps(found, indent=1), encoding="utf-8")


def again(tokens: list[int]) -> str:
    """What was computed although it stood in the prompt before."""
    return f", {sum(tokens) / len(tokens):.1f} tokens a turn computed again, at most {max(tokens)}"


if __name__ == "__main__":
    main()
