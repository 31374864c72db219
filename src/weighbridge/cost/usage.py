"""What a request really took, in tokens, and what it is charged when a server says too little."""

from __future__ import annotations

from dataclasses import dataclass, replace


@dataclass(frozen=True, slots=True)
class Usage:
    """Tokens of one request, or of several added up. Output is all that was generated, thinking included.

    Of the prompt, `cached_tokens` were not computed, and `written_tokens` were put into a cache;
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

    def after(self, earlier: Usage | None) -> Usage:
        """This one, told later in the same stream; what it leaves out is as was told before."""
        if earlier is None:
            return self
        prompt = self if self.prompt_tokens else earlier
        output = self if self.output_tokens else earlier
        return Usage(
            prompt.prompt_tokens,
            output.output_tokens,
            prompt.cached_tokens,
            prompt.written_tokens,
            output.reasoning_tokens,
        )


@dataclass(frozen=True, slots=True)
class Charge:
    """What a request is charged, in tokens. `estimated`: some of it is our own count, not the server's.

    `hidden_tokens`: those of a cache that its tenant is not shown, because they may be of another tenant's text.
    """

    usage: Usage
    estimated: bool = False
    hidden_tokens: int = 0


@dataclass(frozen=True, slots=True)
class Credible:
    """The most tokens that a server may say a request took; where more is said, the output is charged as reserved."""

    prompt_tokens: int
    output_tokens: int
    reserved_tokens: int

    def covers(self, told: Usage) -> bool:
        """Whether a server's word can be true."""
        return told.prompt_tokens <= self.prompt_tokens and told.output_tokens <= self.output_tokens


def charge(
    told: Usage | None, counted_tokens: int, weighed_tokens: int, most: Credible | None = None
) -> Charge:
    """What a request is charged: what its server told, and where it tells nothing, or less output than came, our count.

    `counted_tokens`: output that was seen to come. `weighed_tokens`: the prompt as it was weighed at the door, which
    stands in for a prompt of no tokens: there is none. `most`: what is believed; None: everything.
    """
    if told is None:
        return Charge(Usage(weighed_tokens, counted_tokens), estimated=True)
    usage, estimated = told, False
    if (
        most is not None and told.prompt_tokens > most.prompt_tokens
    ):  # what a cache had of it is no better known
        usage, estimated = Usage(weighed_tokens, told.output_tokens), True
    if most is not None and told.output_tokens > most.output_tokens:
        usage, estimated = replace(usage, output_tokens=most.reserved_tokens), True
    if not usage.prompt_tokens and weighed_tokens:
        usage, estimated = replace(usage, prompt_tokens=weighed_tokens), True
    if usage.output_tokens < counted_tokens:
        usage, estimated = replace(usage, output_tokens=counted_tokens), True
    return Charge(usage, estimated)
