"""The door: what is refused at once, with the numbers, before it costs anything."""

from __future__ import annotations

from weighbridge.cost import StepCost
from weighbridge.engine.request import Request
from weighbridge.engine.schedule.places import Backlog
from weighbridge.engine.schedule.scheduler_api import SchedulerSettings
from weighbridge.errors import BadInput, DeadlineMissed, NeverFits, QueueFull


def check_request(request: Request, settings: SchedulerSettings) -> None:
    """Raise BadInput or NeverFits for a request that no waiting makes runnable."""
    if not request.prompt:
        raise BadInput("the prompt has no tokens; send at least one", param="prompt")
    if request.params.max_tokens < 0:
        raise BadInput(
            f"max_tokens is {request.params.max_tokens}, but must not be negative", param="max_tokens"
        )
    total = request.max_total_tokens
    size = f"{request.num_prompt_tokens} prompt tokens and max_tokens {request.params.max_tokens}"
    if total > settings.max_model_len:
        raise NeverFits(
            f"{size} make {total}, but the context is {settings.max_model_len} tokens; "
            "shorten the prompt or lower max_tokens"
        )
    # The last token is sent, never computed on: it needs no place in the cache. Without an output all is computed.
    blocks = -(-(total if request.ends_with_prompt else total - 1) // settings.block_size)
    if blocks > settings.num_blocks:
        raise NeverFits(
            f"{size} need {blocks} KV blocks of {settings.block_size} tokens, but the pool has "
            f"{settings.num_blocks}; shorten the prompt, lower max_tokens or enlarge the KV cache"
        )


def check_ever(settings: SchedulerSettings, requests: int) -> None:
    """Raise BadInput when a call brings more requests than may ever wait."""
    if requests > settings.max_queue_requests:
        raise BadInput(
            f"this call brings {requests} requests (prompts times n), and the queue takes at most "
            f"{settings.max_queue_requests}; send fewer at a time, or start the server with a larger --max-queue"
        )


def check_queue(
    settings: SchedulerSettings, waiting: Backlog, added: Backlog, output_length: float, cost: StepCost
) -> None:
    """Raise QueueFull when `added` exceeds a limit of the queue.

    `output_length` tokens of the work of each that waits are expected to be output.
    """
    total = waiting + added
    full = total.requests > settings.max_queue_requests
    most = settings.max_queue_tokens
    if full or (most is not None and total.requests > 1 and total.tokens > most):
        raise queue_full(settings, waiting, added, output_length, cost)


def queue_full(
    settings: SchedulerSettings, waiting: Backlog, added: Backlog, output_length: float, cost: StepCost
) -> QueueFull:
    """Return the error for more than the queue takes. Arguments as in `check_queue`."""
    requests, tokens = waiting.requests, waiting.tokens
    full = requests + added.requests > settings.max_queue_requests
    retry_after = drain_seconds(tokens, round(min(requests * output_length, tokens)), settings, cost)
    limit = f"{settings.max_queue_requests} requests" if full else f"{settings.max_queue_tokens} tokens"
    adds = f"{added.tokens}" if added.requests == 1 else f"{added.tokens} in {added.requests} requests"
    return QueueFull(
        f"{requests} requests with {tokens} tokens of work wait, this one adds {adds}, and the queue takes "
        f"at most {limit}; try again in about {retry_after:.0f} s",
        retry_after=retry_after,
    )


def drain_seconds(tokens: int, output_tokens: int, settings: SchedulerSettings, cost: StepCost) -> float:
    """Time to compute `tokens` of queued work, `output_tokens` of them output, in full iterations.

    That is when the queue has emptied: who comes back then is served at once.
    """
    prompt_step = cost.seconds(settings.max_batch_tokens, 1, 0) / settings.max_batch_tokens
    output_step = cost.seconds(settings.seats, settings.seats, 0) / settings.seats
    return (tokens - output_tokens) * prompt_step + output_tokens * output_step


def min_seconds(request: Request, cached: int, settings: SchedulerSettings, cost: StepCost) -> float:
    """Return the shortest time in which `request` can end: alone on the machine, ending as early as it may.

    Its tokens behind the `cached` ones are computed, which yields one token; the fewest others follow.
    """
    length = request.num_tokens
    prefill = cost.prefill_seconds(length - cached, cached, settings.max_batch_tokens)
    params = request.params
    more = max(min(params.min_tokens, params.max_tokens) - request.num_output_tokens, 1) - 1
    return prefill + more * cost.seconds(1, 1, length)


def deadline_left(seconds: float) -> str:
    """What is left until a deadline, behind "the deadline"."""
    return f"is {max(seconds * 1e3, 1.0):.0f} ms away" if seconds > 0.0 else "has passed"


def check_deadline(
    request: Request, now: float, cached: int, settings: SchedulerSettings, cost: StepCost
) -> None:
    """Raise DeadlineMissed when `request` cannot end in time even if it had the machine to itself."""
    shortest_s = min_seconds(request, cached, settings, cost)
    if request.deadline is not None and now + shortest_s > request.deadline:
        left = request.deadline - now
        raise DeadlineMissed(
            f"the deadline {deadline_left(left)}, but computing this request takes at least "
            f"{shortest_s * 1e3:.0f} ms; allow more time or shorten the prompt"
        )
