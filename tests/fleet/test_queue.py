"""The gateway's line: VTC bound, classes, deadlines, bounded size with a computed Retry-After."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.fleet.arrivals import COST, arrival
from weighbridge.cost.step import StepCost
from weighbridge.errors import BadInput, DeadlineMissed, QueueFull
from weighbridge.fleet.load.queue import (
    FleetSpeed,
    GatewayQueue,
    QueueSettings,
    drain_seconds,
    least_seconds,
    work_seconds,
)


@given(st.lists(st.tuples(st.integers(1, 900), st.integers(1, 300)), min_size=44, max_size=120))
def test_two_backlogged_tenants_get_the_same_service_within_the_bound(sizes: list[tuple[int, int]]) -> None:
    """Sheng et al. 2024: |W_f - W_g| <= 2 max(w_p L_input, w_q M). One request at a time is in flight here, so
    M is its output. Tenant a sends ten times as many requests as b."""
    queue = GatewayQueue()
    for number, (prompt, _) in enumerate(sizes):
        queue.push(arrival(f"q{number}", prompt, tenant="b" if number % 11 == 0 else "a"), 0.0)
    service = {"a": 0.0, "b": 0.0}
    waiting = {name: sum((n % 11 == 0) == (name == "b") for n in range(len(sizes))) for name in service}
    bound = 2 * max(p + 2 * o for p, o in sizes)
    while min(waiting.values()):
        turn = queue.peek(0.0)
        assert turn is not None
        queue.take(turn, 0.0)
        output = sizes[int(turn.id[1:])][1]
        queue.charge(turn, output_tokens=output)
        waiting[turn.tenant] -= 1
        service[turn.tenant] += turn.weight.prompt_tokens + 2 * output
        queue.check_integrity()
        assert abs(service["a"] - service["b"]) <= bound


def test_urgent_classes_first_and_removed_ones_never() -> None:
    queue = GatewayQueue()
    for name, priority in (("late", 5), ("gone", 0), ("soon", 0)):
        queue.push(arrival(name, priority=priority), 0.0)
    assert queue.remove("gone") is not None
    assert queue.remove("gone") is None
    order = []
    while (turn := queue.peek(0.0)) is not None:
        queue.take(turn, 0.0)
        order.append(turn.id)
    assert order == ["soon", "late"]
    assert (len(queue), queue.tokens) == (0, 0)


def test_deadlines_are_refused_when_they_can_no_longer_be_met() -> None:
    queue = GatewayQueue()
    with pytest.raises(DeadlineMissed, match="at least 2000 ms"):
        queue.push(arrival("q", deadline=1.0), 0.0, least_seconds=2.0)
    queue.push(arrival("q", deadline=5.0), 0.0, least_seconds=2.0)
    assert queue.wake_at() == 3.0
    assert queue.expired(3.0) == []
    assert [gone.id for gone in queue.expired(3.1)] == ["q"]
    assert len(queue) == 0
    assert queue.wake_at() is None


def test_a_full_queue_says_when_it_will_have_drained() -> None:
    queue = GatewayQueue(QueueSettings(max_requests=1))
    queue.push(arrival("a"), 0.0)
    with pytest.raises(QueueFull) as refused:
        queue.push(arrival("b"), 0.0, drain_seconds=drain_seconds(queue.tokens, [0.1, 0.1]))
    assert refused.value.retry_after == pytest.approx(7.5)
    queue.push(arrival("back"), 0.0, front=True)  # one that was accepted before is never refused
    turn = queue.peek(0.0)
    assert turn is not None
    assert turn.id == "back"


def test_the_same_id_twice_is_refused() -> None:
    queue = GatewayQueue()
    queue.push(arrival("a"), 0.0)
    with pytest.raises(BadInput, match="differ"):
        queue.push(arrival("a"), 0.0)


def test_a_full_queue_before_unknown_replicas_names_no_time() -> None:
    queue = GatewayQueue(QueueSettings(max_requests=0))
    with pytest.raises(QueueFull, match="try again later") as refused:
        queue.push(arrival("a"), 0.0, drain_seconds=None)
    assert refused.value.retry_after == 1.0


def test_what_is_not_known_of_a_speed_is_not_made_up() -> None:
    assert work_seconds(1000.0, []) == 0.0
    assert work_seconds(1000.0, [None]) is None
    alone = work_seconds(1000.0, [COST])
    assert work_seconds(1000.0, [COST, None]) == alone  # those that are known, at least
    assert work_seconds(1000.0, [COST, COST]) == pytest.approx(alone and alone / 2)
    assert least_seconds(1000, [COST, COST.scaled(2.0)]) == COST.prefill_seconds(1000)
    assert least_seconds(1000, [COST, None]) == 0.0  # it may be quick: no deadline is given up for it


@given(
    st.lists(st.floats(0.2, 5.0), min_size=1, max_size=12),
    st.integers(1, 200),
    st.integers(1, 9000),
    st.booleans(),
)
def test_what_a_fleet_takes_is_what_its_replicas_take(
    speeds: list[float], replicas: int, prompt: int, known: bool
) -> None:
    """Whatever its size; where a large one has many speeds, a prompt is said to take no more than on the fastest."""
    costs = [COST.scaled(speeds[number % len(speeds)]) for number in range(replicas)]
    told = [*costs, None] if not known else costs
    fleet = FleetSpeed(lambda now, up: told[: replicas // 2] if up else told)
    assert fleet.work_seconds(1000.0, 0.0) == pytest.approx(work_seconds(1000.0, told[: replicas // 2]))
    least, exact = fleet.least_seconds(prompt, 0.0), least_seconds(prompt, told)
    assert least <= exact * (1 + 1e-9)
    if len(set(costs)) <= 8 or replicas <= 64:
        assert least == exact


def test_a_large_fleet_is_asked_for_its_speeds_once_for_all_who_are_refused() -> None:
    asked: list[float] = []

    def costs(now: float, up: bool) -> list[StepCost | None]:
        asked.append(now)
        return [COST] * size

    size = 500
    fleet = FleetSpeed(costs)
    for number in range(1000):
        fleet.work_seconds(1000.0, 5.0 + number * 1e-5)
        fleet.least_seconds(1000, 5.0 + number * 1e-5)
    assert len(asked) == 2  # those that are up, and all
    fleet.changed()
    assert fleet.work_seconds(1000.0, 5.01) == work_seconds(1000.0, [COST] * size)
    fleet.work_seconds(1000.0, 5.5)
    assert len(asked) == 6
    size = 3
    fleet.changed()
    for _ in range(5):  # a small one is asked each time
        fleet.work_seconds(1000.0, 6.0)
    assert len(asked) > 15
