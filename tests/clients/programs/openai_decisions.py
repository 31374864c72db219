"""OpenAI's own client asks for decisions: URL, model and key as words. Prints what it made of the answers."""

from __future__ import annotations

import json
import sys

import openai

url, model, key = sys.argv[1:]
client = openai.OpenAI(base_url=f"{url}/v1", api_key=key, max_retries=0)
QUESTIONS = [
    {"type": "predicate", "name": "late", "instructions": "It is late."},
    {
        "type": "choice",
        "instructions": [{"type": "input_text", "text": "Which?"}],
        "choices": [{"value": "a"}, {"value": True}],
    },
    {"type": "score", "instructions": "How much?", "levels": [{"label": "low"}, {"label": "high"}]},
]
ITEMS = [
    {
        "role": "user",
        "content": [{"type": "input_text", "text": "late"}, {"type": "input_json", "data": {"a": 1}}],
    }
]
decided = client.decisions.create(model=model, input=ITEMS, questions=QUESTIONS)
try:
    client.decisions.create(model=model, input="late", questions=[])
    refused = ""
except openai.BadRequestError as error:
    refused = str(error.param)
print(
    json.dumps(
        {
            "types": [type(one).__name__ for one in decided.answers],
            "names": [one.name for one in decided.answers],
            "masses": [0.0 < one.label_mass <= 1.0 for one in decided.answers],
            "choice": decided.answers[1].choice in ("a", True),
            "output": decided.usage.output_tokens,
            "refused": refused,
        }
    )
)
