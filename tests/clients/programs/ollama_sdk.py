"""What Ollama's own client does with a server, as JSON on standard output. It runs in an environment of its own.

python ollama_sdk.py URL MODEL KEY
"""

from __future__ import annotations

import json
import sys
from importlib.metadata import version
from typing import Any

import ollama
import pydantic

HI = {"role": "user", "content": "What does it weigh?"}
SHORT = {"num_predict": 4, "temperature": 0}


class Answer(pydantic.BaseModel, extra="forbid"):
    """What a structured answer must be."""

    heavy: bool


def weigh(heavy: bool) -> str:
    """Weigh something.

    Args:
        heavy: whether it is
    """
    return "3 t" if heavy else "3 kg"


def client_of(url: str, key: str) -> ollama.Client:
    return ollama.Client(host=url, headers={"Authorization": f"Bearer {key}"}, timeout=60.0)


def chat(client: ollama.Client, model: str) -> dict[str, Any]:
    found = client.chat(model=model, messages=[HI], options=SHORT)
    times = [found.total_duration, found.prompt_eval_duration, found.eval_duration]
    return {"done": found.done_reason, "output": found.eval_count, "times": all(one > 0 for one in times)}


def streamed(client: ollama.Client, model: str) -> dict[str, Any]:
    lines = list(client.chat(model=model, messages=[HI], options=SHORT, stream=True))
    return {"done": [line.done for line in lines], "output": lines[-1].eval_count}


def generated(client: ollama.Client, model: str) -> dict[str, Any]:
    whole = client.generate(model=model, prompt="It weighs", system="Be kind.", options=SHORT)
    lines = list(client.generate(model=model, prompt="It weighs", options=SHORT, stream=True))
    return {
        "output": [whole.eval_count, lines[-1].eval_count],
        "loaded": client.generate(model=model).done_reason,
    }


def listed(client: ollama.Client, model: str) -> dict[str, Any]:
    shown = client.show(model)
    return {
        "listed": model in [one.model for one in client.list().models],
        "loaded": model in [one.model for one in client.ps().models],
        "capabilities": shown.capabilities,
        "pulled": client.pull(model).status,
        "progress": [line.status for line in client.pull(model, stream=True)][-1],
    }


def structured(client: ollama.Client, model: str) -> dict[str, Any]:
    """A model of random weights may write white space for long: it is asked until an answer was not cut off."""
    asked = {
        "model": model,
        "messages": [HI],
        "format": Answer.model_json_schema(),
        "options": {"num_predict": 200},
    }
    for _ in range(20):
        found = client.chat(**asked)
        if found.done_reason == "stop":
            break
    return {"heavy": isinstance(Answer.model_validate_json(found.message.content).heavy, bool)}


def tools(client: ollama.Client, model: str) -> dict[str, Any]:
    """A round of tools in the history: this protocol cannot ask for a call."""
    call = {"function": {"name": "weigh", "arguments": {"heavy": True}}}
    turns = [
        HI,
        {"role": "assistant", "tool_calls": [call]},
        {"role": "tool", "tool_name": "weigh", "content": weigh(True)},
    ]
    after = client.chat(model=model, messages=turns, options=SHORT)
    return {"after": after.eval_count > 0}


def errors(client: ollama.Client, model: str, url: str) -> dict[str, Any]:
    provoked = {
        "400": lambda: client.generate(model=model, prompt="a", suffix="b"),
        "401": lambda: client_of(url, "wrong").chat(model=model, messages=[HI]),
        "404": lambda: client.chat(model="nobody", messages=[HI]),
    }
    found = {}
    for name, ask in provoked.items():
        try:
            ask()
        except ollama.ResponseError as error:
            found[name] = [error.status_code, bool(error.error) and not error.error.startswith("{")]
    return found


def cancelled(client: ollama.Client, model: str) -> dict[str, Any]:
    lines = client.chat(model=model, messages=[HI], options={"num_predict": 900}, stream=True)
    next(lines)
    lines.close()
    return {}


def main(url: str, model: str, key: str) -> None:
    client = client_of(url, key)
    steps = (chat, streamed, generated, listed, structured, tools, cancelled)
    done = {step.__name__: step(client, model) for step in steps}
    print(json.dumps({**done, "errors": errors(client, model, url), "version": version("ollama")}))


if __name__ == "__main__":
    main(*sys.argv[1:])
