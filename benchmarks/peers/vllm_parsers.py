"""vLLM's own tool and reasoning parsers over texts from stdin, whole and token by token; run by its interpreter.

Reads {"marks": [...], "tools": {name: schema}, "cases": [{"parser": "hermes", "reasoning": null, "text": "..."}]}
and writes a list of {"whole": [said, thought, [[name, arguments]]] or {"error": ...}, "streamed": ...}.
"""

from __future__ import annotations

import json
import sys
from typing import Any

from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast
from vllm.entrypoints.openai.chat_completion.protocol import ChatCompletionRequest
from vllm.reasoning import ReasoningParserManager
from vllm.tool_parsers import ToolParserManager


def tokenizer_of(marks: list[str]) -> Any:
    """One token a byte, and one a mark."""
    letters = sorted(pre_tokenizers.ByteLevel.alphabet())
    backend = Tokenizer(models.BPE({letter: i for i, letter in enumerate(letters)}, []))
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.decoder = decoders.ByteLevel()
    backend.add_tokens([AddedToken(mark, special=False, normalized=False) for mark in marks])
    return PreTrainedTokenizerFast(tokenizer_object=backend)


class Gathering:
    """What a client puts together of a stream."""

    def __init__(self) -> None:
        self.said, self.thought = "", ""
        self.calls: list[list[str]] = []

    def add(self, message: Any) -> None:
        if message is None:
            return
        self.said += message.content or ""
        self.thought += getattr(message, "reasoning", None) or ""
        for call in message.tool_calls or ():
            while len(self.calls) <= call.index:
                self.calls.append(["", ""])
            if call.function is not None:
                self.calls[call.index][0] += call.function.name or ""
                self.calls[call.index][1] += call.function.arguments or ""

    @property
    def read(self) -> list[Any]:
        return [self.said, self.thought, self.calls]


def whole(parser: Any, text: str, request: Any, thinks: bool) -> list[Any]:
    if thinks:
        thought, said = parser.extract_reasoning(text, request)
        return [said or "", thought or "", []]
    found = parser.extract_tool_calls(text, request)
    calls = [[call.function.name, call.function.arguments] for call in found.tool_calls]
    return [found.content or "", "", calls]


def streamed(parser: Any, tokenizer: Any, text: str, request: Any, thinks: bool) -> list[Any]:
    ids = tokenizer.encode(text, add_special_tokens=False)
    before, gathering = "", Gathering()
    for place, token in enumerate(ids):
        now = tokenizer.decode(ids[: place + 1]).rstrip("\ufffd")
        told = (before, now, now[len(before) :], ids[:place], ids[: place + 1], [token])
        if thinks:
            gathering.add(parser.extract_reasoning_streaming(*told))
        else:
            gathering.add(parser.extract_tool_calls_streaming(*told, request))
        before = now
    if hasattr(parser, "finish_streaming"):
        gathering.add(parser.finish_streaming())
    return gathering.read


def attempt(run: Any) -> Any:
    try:
        return run()
    except Exception as error:  # whatever it raises is its answer
        return {"error": f"{type(error).__name__}: {error}"[:200]}


def main() -> None:
    given = json.load(sys.stdin)
    tokenizer = tokenizer_of(given["marks"])
    tools = [
        {"type": "function", "function": {"name": name, "parameters": schema}}
        for name, schema in given["tools"].items()
    ]
    request = ChatCompletionRequest(
        model="m", messages=[{"role": "user", "content": "Look."}], tools=tools, tool_choice="auto"
    )
    answers = []
    for case in given["cases"]:
        thinks, text = bool(case["reasoning"]), case["text"]

        def made(case: Any = case, thinks: bool = thinks) -> Any:
            if thinks:
                return ReasoningParserManager.get_reasoning_parser(case["reasoning"])(tokenizer)
            return ToolParserManager.get_tool_parser(case["parser"])(tokenizer, request.tools)

        answers.append(
            {
                "whole": attempt(lambda: whole(made(), text, request, thinks)),  # noqa: B023
                "streamed": attempt(lambda: streamed(made(), tokenizer, text, request, thinks)),  # noqa: B023
            }
        )
    json.dump(answers, sys.stdout)


if __name__ == "__main__":
    main()
