"""lm-eval: its model for chats of OpenAI's API, whole; scores of texts are in `tests/clients/test_lm_eval.py`."""

from __future__ import annotations

import os
from typing import Any

from contract import QUESTION, SHORT, Place, check, drive, refused, strangers
from lm_eval.api.instance import Instance
from lm_eval.models.openai_completions import LocalChatCompletion

CANNOT = {
    "list": "it does not ask what there is",
    "stream": "it takes whole answers",
    "tools": "it scores texts",
    "structured": "it scores texts",
    "cancelled": "it takes whole answers",
}


def said(place: Place, **more: Any) -> str:
    os.environ["OPENAI_API_KEY"] = place.key
    model = LocalChatCompletion(
        model=place.model, base_url=f"{place.v1}/chat/completions", max_retries=1, max_gen_toks=SHORT
    )
    turns = [{"role": "user", "content": QUESTION}]
    request = Instance(
        "generate_until",
        {},
        (model.apply_chat_template(turns), {"until": [], "max_gen_toks": SHORT, **more}),
        0,
    )
    [answer] = model.generate_until([request], disable_tqdm=True)
    return str(answer)


def chat(place: Place) -> None:
    check(said(place))


if __name__ == "__main__":
    drive(
        ("lm-eval",),
        {
            "chat": chat,
            "400": lambda place: refused(400, lambda: said(place, temperature=-1)),
            **strangers(said),
            "429": lambda place: refused(429, lambda: said(place.crowded), tries=2),
        },
        CANNOT,
    )
