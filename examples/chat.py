"""Stream a chat with OpenAI's own client, then show what the server decided about it.

python examples/chat.py [URL]      default: http://127.0.0.1:8080, where `make serve` listens
"""

from __future__ import annotations

import sys

from openai import OpenAI
from servers import ticket_of


def main(url: str = "http://127.0.0.1:8080") -> None:
    client = OpenAI(base_url=f"{url}/v1", api_key="none")
    model = client.models.list().data[0].id
    messages = [{"role": "user", "content": "What is the capital of Japan?"}]
    extension = {"weighbridge": {"tenant": "examples", "deadline_ms": 60_000}}
    stream = client.chat.completions.create(
        model=model, messages=messages, stream=True, max_tokens=40, extra_body=extension
    )
    for chunk in stream:
        print(chunk.choices[0].delta.content or "", end="", flush=True)
    ticket = ticket_of(url, stream.response.headers["x-weighbridge-ticket"])
    print(f"\n{ticket['prompt_tokens']} tokens in, {ticket['output_tokens']} out")
    print(f"first token after {ticket['ttft_ms']:.0f} ms, last after {ticket['e2e_ms']:.0f} ms")


if __name__ == "__main__":
    main(*sys.argv[1:])
