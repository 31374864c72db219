"""Outputs: when one is complete, how long it is expected to be, and which of them share a prompt (n > 1)."""

from __future__ import annotations

from weighbridge.engine.request import FinishReason, Request, RequestState, TokenLogprob


def append_tokens(
    request: Request, sampled: list[int], max_model_len: int
) -> tuple[int, FinishReason | None]:
    """Append `sampled` up to the first token that ends the request; returns how many, and why it ended.

    A stop id ends it (and stays in the tokens) once `min_tokens` others came before; `max_tokens` and the
    end of the context window end it in any case.
    """
    tokens, params, prompt_length = request.tokens, request.params, len(request.prompt)
    for count, token in enumerate(sampled, 1):
        tokens.append(token)
        output_length = len(tokens) - prompt_length
        if token in request.stop_token_ids and output_length > params.min_tokens:
            return count, FinishReason.STOP
        if output_length >= params.max_tokens or len(tokens) >= max_model_len:
            return count, FinishReason.LENGTH
    return len(sampled), None


class OutputLength:
    """Learns from finished outputs how long the others will be; a request's own end is never looked at.

    A smoothed mean; what remains of a running output is taken as memoryless: after any number of tokens the
    mean is expected again, bounded by what `max_tokens` still allows.
    """

    def __init__(self, initial: float = 128.0, smoothing: float = 0.02) -> None:
        self.mean = initial
        self._smoothing = smoothing

    def observe(self, request: Request) -> None:
        """Learn from a request that ended. One that may have no output says nothing about that of others."""
        if not request.ends_with_prompt:
            self.mean += self._smoothing * (request.num_output_tokens - self.mean)

    def remaining(self, request: Request) -> int:
        """Expected output tokens still to come."""
        return min(round(self.mean), request.params.max_tokens - request.num_output_tokens)

    def work_of(self, prompt_tokens: int, max_tokens: int) -> int:
        """Tokens to be computed for a request that has not begun."""
        return prompt_tokens + min(round(self.mean), max_tokens)

    def work(self, request: Request) -> int:
        """Tokens still to be computed: of those that exist, and of those expected."""
        return request.num_tokens - request.num_computed_tokens + self.remaining(request)


class Forks:
    """Further choices of one prompt (n > 1): they wait for the first to compute it, then share its blocks."""

    def __init__(self) -> None:
        self._waiting: dict[Request, list[Request]] = {}

    def hold(self, request: Request) -> bool:
        """Whether `request` should wait because its parent is about to have the prompt computed."""
        parent = request.fork_of
        if parent is None or prompt_computed(parent) or parent.num_preemptions:
            return False
        if parent.state is RequestState.FINISHED:
            return False
        self._waiting.setdefault(parent, []).append(request)
        return True

    def discard(self, request: Request) -> None:
        """Forget `request`, which is gone."""
        if request.fork_of is not None and request in self._waiting.get(request.fork_of, ()):
            self._waiting[request.fork_of].remove(request)

    def release(self, parent: Request) -> list[Request]:
        """Return those that need not wait for `parent` any more: its prompt is there, or will not come soon."""
        return self._waiting.pop(parent, [])

    def __bool__(self) -> bool:
        return bool(self._waiting)

    def __len__(self) -> int:
        return sum(map(len, self._waiting.values()))


def prompt_computed(request: Request) -> bool:
    """Whether the whole prompt of a running request is in its blocks, to be shared."""
    return request.state is RequestState.RUNNING and request.num_computed_tokens >= request.num_prompt_tokens


def prompt_scores(request: Request) -> list[TokenLogprob] | None:
    """What a request whose prompt is computed tells of the tokens in it; None where nobody asked."""
    return None if request.params.prompt_logprobs is None else request.scores
