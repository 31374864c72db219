"""Q, the harm of a bet to others: what its work costs those who wait at the same server. Pure."""

from __future__ import annotations

from dataclasses import dataclass

from weighbridge.cost.step import StepCost

#: Tokens of a model call before any has been seen.
INPUT_TOKENS, OUTPUT_TOKENS = 100.0, 100.0


@dataclass(frozen=True, slots=True)
class ServerLoad:
    """What a server says of itself at `/v1/load`: requests that wait and run, and how long its iterations take."""

    waiting: int
    running: int
    step_cost: StepCost | None = None  # a gateway has none of its own


def seat_seconds(load: ServerLoad, input_tokens: float, output_tokens: float, took: float) -> float:
    """Seconds by which one more request puts off each of those who wait.

    Its prompt is computed in their stead, token by token; then it has one of `running` seats for as many
    iterations as it has output tokens, and a seat held for t seconds lets each of those in the queue in
    t / running later. Without a step cost t is `took`, what such a request took lately from its first token.
    """
    seats = max(load.running, 1)
    if load.step_cost is None:
        return took / seats
    iteration = load.step_cost.seconds(seats, seats, 0)
    return input_tokens * load.step_cost.per_token + output_tokens * iteration / seats


def queue_usd(value_per_second: float, seconds: float) -> float:
    """Q: others wait `seconds` longer, all of them together; a second is worth as much to them as to the flow."""
    return value_per_second * seconds
