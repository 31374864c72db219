"""What a request really took, in tokens, and what it is charged when a server says too little."""

from __future__ import annotations

from dataclasses import dataclass, replace


@dataclass(frozen=True, slots=True)
class Usage:
    """Tokens of one request, or of several added up. Output is all that was generated, thinking included.

    Of the prompt, `cached_tokens` were not computed, and `written_tokens` were put into a cache that charges for it;
    of the output, `reasoning_tokens` are thinking.
    """

    prompt_tokens: int
    output_tokens: int
    cached_tokens: int = 0
    written_tokens: int = 0
    reasoning_tokens: int = 0

    def __add__(self, other: Usage) -> Usage:
        return Usage(
            self.prompt_tokens + other.prompt_tokens,
            self.output_tokens + other.output_tokens,
            self.cached_tokens + other.cached_tokens,
            self.written_tokens + other.written_tokens,
            self.reasoning_tokens + other.reasoning_tokens,
        )


@dataclass(frozen=True, slots=True)
class Charge:
    """What a request is charged, in tokens. `estimated`: some of it is our own count, not the server's."""

    usage: Usage
    estimated: bool = False


def charge(told: Usage | None, counted_tokens: int, weighed_tokens: int) -> Charge:
    """What a request is charged: what its server told, and where it tells nothing, or less output than came, our count.

    `counted_tokens`: output that was seen to come. `weighed_tokens`: the prompt as it was weighed at the door, which
    stands in for a prompt of no tokens: there is none.
    """
    if told is None:
        return Charge(Usage(weighed_tokens, counted_tokens), estimated=True)
    usage, estimated = told, False
    if not usage.prompt_tokens and weighed_tokens:
        usage, estimated = replace(usage, prompt_tokens=weighed_tokens), True
    if usage.output_tokens < counted_tokens:
        usage, estimated = replace(usage, output_tokens=counted_tokens), True
    return Charge(usage, estimated)
