"""Answers by the dozen in every style: calls drawn by chance, written as the style asks, and texts that go wrong."""

from __future__ import annotations

import json
import random
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from tests.server.style_cases import Case

#: Texts of a style: so many are as it asks for, and so many are not.
WELL, MALFORMED = 40, 20

Call = tuple[str, dict[str, Any]]
_WORDS = (
    "a",
    "b c",
    "Größe",
    "東京",
    "\U0001f600",
    "1 < 2",
    'a "q"',
    "x\ny",
    "{",
    "]",
    "back\\slash",
    "null",
    "7",
)
_SAID = ("Let me see.", "I look it up", "Wäge ich.", "1 < 2, so:")


def _json(value: Any) -> str:
    return json.dumps(value, ensure_ascii=False)


def _object(call: Call, key: str = "arguments") -> str:
    return _json({"name": call[0], key: call[1]})


def _written(value: Any) -> str:
    return value if isinstance(value, str) else _json(value)


def _hermes(said: str, calls: Sequence[Call]) -> str:
    blocks = [f"<tool_call>\n{_object(call)}\n</tool_call>" for call in calls]
    return "\n".join([said] * bool(said) + blocks)


def _llama(said: str, calls: Sequence[Call]) -> str:
    return "; ".join(_object(call, "parameters") for call in calls) or said


def _mistral(said: str, calls: Sequence[Call]) -> str:
    return said + "".join(f"[TOOL_CALLS]{name}[ARGS]{_json(arguments)}" for name, arguments in calls)


def _qwen(said: str, calls: Sequence[Call]) -> str:
    def one(name: str, arguments: Mapping[str, Any]) -> str:
        values = [f"<parameter={key}>\n{_written(value)}\n</parameter>\n" for key, value in arguments.items()]
        return f"<tool_call>\n<function={name}>\n{''.join(values)}</function>\n</tool_call>"

    return "\n".join([said] * bool(said) + [one(*call) for call in calls])


def _glm(said: str, calls: Sequence[Call]) -> str:
    def one(name: str, arguments: Mapping[str, Any]) -> str:
        pairs = [
            f"<arg_key>{key}</arg_key>\n<arg_value>{_written(value)}</arg_value>\n"
            for key, value in arguments.items()
        ]
        return f"<tool_call>{name}\n{''.join(pairs)}</tool_call>"

    return "\n".join([said] * bool(said) + [one(*call) for call in calls])


def _deepseek(said: str, calls: Sequence[Call]) -> str:
    each = [
        f"<｜tool▁call▁begin｜>{name}<｜tool▁sep｜>{_json(given)}<｜tool▁call▁end｜>" for name, given in calls
    ]
    return f"{said}<｜tool▁calls▁begin｜>{''.join(each)}<｜tool▁calls▁end｜>" if calls else said


def _kimi(said: str, calls: Sequence[Call]) -> str:
    each = [
        f"<|tool_call_begin|>functions.{name}:{place}<|tool_call_argument_begin|>{_json(given)}<|tool_call_end|>"
        for place, (name, given) in enumerate(calls)
    ]
    return f"{said}<|tool_calls_section_begin|>{''.join(each)}<|tool_calls_section_end|>" if calls else said


def _granite(said: str, calls: Sequence[Call]) -> str:
    return f"<|tool_call|>[{', '.join(_object(call) for call in calls)}]" if calls else said


def _harmony(said: str, calls: Sequence[Call]) -> str:
    messages = [f"<|channel|>commentary<|message|>{said}<|end|>"] if said and calls else []
    messages += [
        f"<|channel|>commentary to=functions.{name} <|constrain|>json<|message|>{_json(given)}<|call|>"
        for name, given in calls
    ]
    return "<|start|>assistant".join(messages) or f"<|channel|>final<|message|>{said}<|return|>"


WRITERS: Mapping[str, Callable[[str, Sequence[Call]], str]] = {
    "hermes": _hermes,
    "llama3": _llama,
    "mistral": _mistral,
    "qwen3-coder": _qwen,
    "glm": _glm,
    "deepseek-v3": _deepseek,
    "kimi-k2": _kimi,
    "granite": _granite,
    "harmony": _harmony,
}
#: Styles whose calls stand alone.
_ALONE = frozenset({"llama3", "granite"})


def _arguments(rng: random.Random, name: str) -> dict[str, Any]:
    if name == "now":
        return {}
    if name == "weigh":
        return {"kg": rng.choice([0.5, 2.5, 1e3, 12.25])}
    text = rng.choice(_WORDS)
    every: dict[str, Any] = {
        "key": text + rng.choice(["", " z"]),
        "depth": rng.randint(-3, 99),
        "deep": rng.random() < 0.5,
        "filter": {"a": [1, {text: None}]},
        "places": [text, "c"],
    }
    return {key: every[key] for key in sorted(rng.sample(sorted(every), rng.randint(1, 3)))}


def _drawn(rng: random.Random, style: str) -> tuple[str, list[Call]]:
    names = [rng.choice(["look", "look", "weigh", "now"]) for _ in range(rng.choice([0, 1, 1, 1, 2, 3]))]
    calls = [(name, _arguments(rng, name)) for name in names]
    said = rng.choice(_SAID) if not calls or rng.random() < 0.4 else ""
    return ("" if calls and style in _ALONE else said), calls


def well_formed(style: str) -> list[Case]:
    """Answers as the style asks for, and what each comes to."""
    rng = random.Random(style)
    cases = []
    for _ in range(WELL):
        said, calls = _drawn(rng, style)
        cases.append(Case(style, WRITERS[style](said, calls), said, tuple(calls)))
    return cases


def malformed(style: str) -> list[Case]:
    """Answers that go wrong: cut off, calls of nothing that was offered, arguments in prose, marks lost or doubled."""
    rng = random.Random(f"{style}, broken")
    cases = []
    for number in range(MALFORMED):
        name = rng.choice(["look", "weigh"])
        good = WRITERS[style]("", [(name, _arguments(rng, name))])
        kind = number % 5
        if kind == 0:
            made = good[: rng.randint(len(good) // 3, len(good) - 1)]
        elif kind == 1:
            made = good.replace(name, f"no_{name}", 1)
        elif kind == 2:
            made = (
                good.replace("{", "the", 1).replace("<parameter", "<param", 1).replace("<arg_key", "<key", 1)
            )
        elif kind == 3:
            at = rng.randrange(len(good))
            made = good[:at] + good[at + 1 :]
        else:
            at = rng.randrange(len(good))
            made = good[:at] + rng.choice('{}"<>[]') + good[at:]
        cases.append(Case(style, made, broken=True))
    return cases


def texts(style: str) -> list[Case]:
    return [*well_formed(style), *malformed(style)]
