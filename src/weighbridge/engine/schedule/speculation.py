"""Speculation by prompt lookup: guess that what repeats goes on as it did before, when the guess pays.

The model verifies drafts in the same iteration: the sampler draws the token of each draft position as it
would have without drafts, and accepts while they agree. The output is therefore the same, and a rejected
draft costs only the token it added to the batch.
"""

from __future__ import annotations

from dataclasses import dataclass, field

from weighbridge.cost import StepCost
from weighbridge.engine.request import Request, SamplingParams
from weighbridge.engine.schedule.plan import Plan

LONGEST_MATCH = 4  # tokens; the longest suffix that is looked up
SHORTEST_MATCH = 2
MAX_CANDIDATES = 8  # earlier places compared per lookup, the latest first
BEST_CHANCE = 0.9  # of a first draft to be accepted, when deciding whether to look for drafts at all
INDEX_STEP = 512  # tokens indexed per iteration, so that long prompts never stall it


class NgramIndex:
    """Earlier places of a token sequence that look like its end.

    Places with the same last two tokens form a chain, latest first (as in LZ77); a lookup walks the chain
    for the longest match up to four tokens. Each token is indexed once, in O(1).
    """

    __slots__ = ("_latest", "_previous")

    def __init__(self) -> None:
        self._latest: dict[tuple[int, int], int] = {}  # two tokens -> position behind their latest occurrence
        self._previous: list[int] = [0, 0]  # position -> the one before with the same two tokens; 0: none

    def behind(self, tokens: list[int]) -> int:
        """Positions still to be indexed, without the end itself: it looks for earlier places."""
        return max(len(tokens) - len(self._previous), 0)

    def extend(self, tokens: list[int], limit: int) -> None:
        """Index up to `limit` more positions."""
        latest, previous = self._latest, self._previous
        begin = len(previous)
        for position in range(begin, min(len(tokens), begin + limit)):
            pair = (tokens[position - 2], tokens[position - 1])
            previous.append(latest.get(pair, 0))
            latest[pair] = position

    def follow(self, tokens: list[int], count: int) -> list[int]:
        """Up to `count` tokens that came after the latest longest match of the end of `tokens`; maybe none.

        A match that overlaps the end is continued into its own continuation: a period repeats.
        """
        length = len(tokens)
        if length <= SHORTEST_MATCH:
            return []
        place, best, best_length = self._latest.get((tokens[-2], tokens[-1]), 0), 0, 0
        for _ in range(MAX_CANDIDATES):
            if not place:
                break
            matched = SHORTEST_MATCH
            while (
                matched < LONGEST_MATCH
                and place > matched
                and tokens[place - matched - 1] == tokens[-matched - 1]
            ):
                matched += 1
            if matched > best_length:
                best, best_length = place, matched
                if matched == LONGEST_MATCH:
                    break
            place = self._previous[place]
        if not best:
            return []
        period = length - best
        return [tokens[best + offset % period] for offset in range(count)]


@dataclass(slots=True)
class Acceptance:
    """How likely the next guessed token is right: a Beta estimate whose evidence fades."""

    right: float = 1.0
    wrong: float = 1.0
    fading: float = 0.9

    @property
    def mean(self) -> float:
        return self.right / (self.right + self.wrong)

    def observe(self, guessed: list[int], actual: list[int]) -> None:
        """Compare a guess with what came. Tokens behind the first difference say nothing."""
        matched = 0
        for guess, token in zip(guessed, actual, strict=False):
            if guess != token:
                break
            matched += 1
        missed = matched < min(len(guessed), len(actual))
        faded = self.fading ** (matched + missed)
        self.right = faded * self.right + matched
        self.wrong = faded * self.wrong + missed


@dataclass(slots=True)
class _Guesser:
    index: NgramIndex = field(default_factory=NgramIndex)
    acceptance: Acceptance = field(default_factory=Acceptance)
    guess: list[int] = field(default_factory=list)  # of the tokens that come next, drafted or not


def may_speculate(params: SamplingParams) -> bool:
    """Whether drafts can be verified position by position.

    Not with a guide (its state would have to roll back) and not with penalties or a pending minimum, which
    change the distribution with each token accepted.
    """
    return (
        params.guide is None
        and params.repetition_penalty == 1.0
        and params.presence_penalty == 0.0
        and params.frequency_penalty == 0.0
        and params.min_tokens == 0
    )


class Speculator:
    """Adds drafts to the decodes of a plan when the step cost says that they pay.

    A draft is worth the chance that it is accepted, times a token's share of the iteration (what producing it
    later would cost). It costs what it adds to this iteration: next to nothing while the step waits for
    weights to stream, a full token's compute once the batch is large. So speculation turns itself off
    under load, request by request and draft by draft.

    Acceptance is learned also while nothing is drafted: each guess is compared with what comes.
    """

    def __init__(self, max_drafts: int) -> None:
        self._max_drafts = max_drafts
        self._guessers: dict[Request, _Guesser] = {}
        self._indexed = 0  # tokens in this iteration

    def worthwhile(self, cost: StepCost, plan: Plan) -> bool:
        """Whether the best possible first draft pays at this batch size: the cheap test before lookups."""
        self._indexed = 0
        if not plan.decodes or not self._max_drafts:
            return False
        return self._drafts_that_pay(cost, plan, plan.context_tokens // plan.sequences, BEST_CHANCE, 1) > 0

    def propose(self, request: Request, room: int, cost: StepCost, plan: Plan) -> tuple[int, ...]:
        """Return drafts for a decode of `plan`, at most `room`; none when they do not pay or nothing repeats."""
        if not may_speculate(request.params):
            return ()
        guesser = self._guessers.get(request)
        if guesser is None:
            guesser = self._guessers[request] = _Guesser()
        guesser.guess = self._lookup(guesser.index, request.tokens)
        limit = min(room, len(guesser.guess))
        chance = guesser.acceptance.mean
        return tuple(guesser.guess[: self._drafts_that_pay(cost, plan, request.num_tokens, chance, limit)])

    def _lookup(self, index: NgramIndex, tokens: list[int]) -> list[int]:
        behind = index.behind(tokens)
        index.extend(tokens, INDEX_STEP - self._indexed)
        self._indexed += behind - index.behind(tokens)
        return [] if index.behind(tokens) else index.follow(tokens, self._max_drafts)

    def observe(self, request: Request, tokens: list[int]) -> None:
        """Learn from the tokens that came after the last `propose`."""
        guesser = self._guessers.get(request)
        if guesser is not None and guesser.guess:
            guesser.acceptance.observe(guesser.guess, tokens)
            guesser.guess = []

    def forget(self, request: Request) -> None:
        self._guessers.pop(request, None)

    def _drafts_that_pay(self, cost: StepCost, plan: Plan, context: int, chance: float, limit: int) -> int:
        """Return how many drafts to add. Each is worth less than the last and costs no less: stop at a loss."""
        tokens, sequences, read, pairs = plan.work
        before = cost.seconds(tokens, sequences, read, pairs)
        worth = before / sequences
        count = 0
        while count < limit:
            worth *= chance
            pairs += context + count
            drafted = count + 1  # each is sampled like a sequence of its own
            after = cost.seconds(tokens + drafted, sequences + drafted, read + drafted, pairs)
            if worth <= after - before:
                break
            before, count = after, drafted
        return count
