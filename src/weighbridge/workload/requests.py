"""What arrives: rows of a trace, and requests of a simulation, whose contents are named instead of written out.

A trace has no tokens, only lengths and, at best, names of the blocks that prompts share. So a prompt is a list
of spans, each a name and a length: every token of a span has the span's name as its id. Two prompts share a
block in the prefix cache exactly if their spans agree up to its end, which is what the trace says.
"""

from __future__ import annotations

from dataclasses import dataclass

#: Ends every simulated output; no span has this name.
END = 0


#: Tokens of the blocks that Mooncake's `hash_ids` name.
MOONCAKE_BLOCK = 512


@dataclass(frozen=True, slots=True)
class TraceRow:
    """One request of a trace, recorded or made up: when it comes, and how long it is.

    `at`: seconds after the first. `blocks` name the blocks of its prompt, where they are known.
    """

    at: float
    prompt_tokens: int
    output_tokens: int
    max_tokens: int | None = None
    tenant: str = "default"
    priority: int = 0
    deadline: float | None = None  # seconds after the arrival
    session: str = ""
    blocks: tuple[int, ...] = ()
    block_tokens: int = MOONCAKE_BLOCK


@dataclass(frozen=True, slots=True)
class Span:
    """`length` tokens that are equal wherever the same `name` stands behind the same beginning."""

    name: int
    length: int


@dataclass(frozen=True, slots=True)
class SimulatedRequest:
    """A request of a workload. `output_tokens` is the truth: only the simulated model knows it.

    `at`: seconds after the start. `follows`: the request is sent `think` seconds after that other one ended
    (a turn of a conversation, a step of an agent), and `at` is when the first of the chain was.
    """

    id: str
    at: float
    prompt: tuple[Span, ...]
    output_tokens: int
    max_tokens: int
    answer: int  # name of the span that its output is, for prompts that go on behind it
    tenant: str = "default"
    priority: int = 0
    deadline: float | None = None  # seconds after the arrival
    session: str = ""
    follows: str | None = None
    think: float = 0.0

    @property
    def prompt_tokens(self) -> int:
        return sum(span.length for span in self.prompt)

    def token_ids(self) -> list[int]:
        """Return the prompt as the engine takes it, in runs of one small object: eight bytes a token."""
        ids: list[int] = []
        for span in self.prompt:
            ids += [span.name] * span.length
        return ids


def answered(request: SimulatedRequest) -> tuple[Span, ...]:
    """Return prompt and output of `request`, which is what the next prompt of its conversation begins with."""
    said = Span(request.answer, request.output_tokens - 1)
    return (*request.prompt, said, Span(END, 1)) if said.length else (*request.prompt, Span(END, 1))
