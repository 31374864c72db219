"""One iteration while it is being put together: the slices so far, and the budget they leave."""

from __future__ import annotations

from weighbridge.cost import attention
from weighbridge.engine.batch import Batch, Slice
from weighbridge.engine.memory.prefix import Digest
from weighbridge.engine.request import Request


class Plan:
    """An iteration under construction, with at most one slice per request."""

    __slots__ = (
        "_computing",
        "budget",
        "chunks",
        "context_tokens",
        "copies",
        "decode_pairs",
        "decodes",
        "preempted",
        "prompt_pairs",
        "scored",
        "taken_over",
        "tokens",
    )

    def __init__(self, budget: int) -> None:
        self.budget = budget  # tokens that may still be added
        self.decodes: dict[Request, Slice] = {}  # one own token each: streams that wait for this iteration
        self.decode_pairs = 0  # tokens that the decodes look at, without drafts
        self.chunks: dict[Request, Slice] = {}  # pieces of prompts
        self.copies: list[tuple[int, int]] = []
        self._computing: dict[Digest, Request] = {}  # blocks that the chunks work on
        self.tokens = 0
        self.context_tokens = 0
        self.prompt_pairs = 0
        self.scored = 0  # rows of prompts whose log-probabilities are wanted
        self.taken_over = False  # whether a tenant took over a place of another one
        self.preempted = False  # whether memory ran short and a request had to give way

    @property
    def sequences(self) -> int:
        return len(self.decodes) + len(self.chunks)

    @property
    def work(self) -> tuple[int, int, int, int]:
        """The arguments of `StepCost.seconds`; a row that is scored costs what one that is sampled does."""
        return self.tokens, self.sequences + self.scored, self.context_tokens, self.prompt_pairs

    def add_decode(self, request: Request, position: int) -> None:
        """Add the one token at `position`, which samples the next."""
        self.decodes[request] = Slice(request, position, 1, True)
        self.tokens += 1
        self.budget -= 1
        self.context_tokens += position + 1
        self.decode_pairs += position + 1

    def add_chunk(self, request: Request, start: int, count: int, digests: list[Digest]) -> None:
        """Add tokens [start, start + count) of a prompt, in the blocks `digests`; its end samples."""
        scored = request.scored_in(start, count)
        self.chunks[request] = Slice(
            request, start, count, start + count == request.num_tokens, scored=scored
        )
        self.scored += scored
        self._computing.update(dict.fromkeys(digests, request))
        self._account(start, count, 1)

    def computes(self, block: Digest | None) -> bool:
        """Whether a chunk of this plan works on this block."""
        return block in self._computing

    def add_drafts(self, request: Request, drafts: tuple[int, ...]) -> None:
        """Let a decode also verify `drafts` behind its own token."""
        piece = self.decodes[request]
        self._account(piece.start, piece.count, -1)
        piece.drafts += drafts
        piece.count += len(drafts)
        self._account(piece.start, piece.count, 1)

    def drop(self, request: Request) -> None:
        """Take a slice out again, because its request was preempted; the budget returns."""
        decode = self.decodes.pop(request, None)
        if decode is not None:
            self.decode_pairs -= decode.start + 1
        piece = decode or self.chunks.pop(request, None)
        if piece is not None:
            self._account(piece.start, piece.count, -1)
            self.scored -= piece.scored
            self._computing = {
                digest: user for digest, user in self._computing.items() if user is not request
            }

    def __contains__(self, request: Request) -> bool:
        return request in self.decodes or request in self.chunks

    def batch(self) -> Batch:
        """Return the batch: decodes first, then chunks, each in the order they were planned."""
        return Batch([*self.decodes.values(), *self.chunks.values()], self.copies)

    def _account(self, start: int, count: int, sign: int) -> None:
        self.tokens += sign * count
        self.budget -= sign * count
        context, pairs = attention(start, count)
        self.context_tokens += sign * context
        self.prompt_pairs += sign * pairs
