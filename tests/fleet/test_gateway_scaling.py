"""When there should be more replicas, and the policy on its own for Ray Serve."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from weighbridge.cost.step import DEFAULT_STEP_COST
from weighbridge.fleet.load.scaling import Scaler, ScalingSettings
from weighbridge.fleet.policies.routing import Routing, body_of

RULES = ScalingSettings(least=1, most=3, high=5.0, low=1.0, up_after=2.0, down_after=60.0, settle=10.0)


def run(scaler: Scaler, replicas: int, queued: float, work: float, start: float, seconds: float) -> list[int]:
    return [scaler.decide(replicas, queued, work, start + step / 10) for step in range(int(seconds * 10))]


def test_queued_work_that_lasts_starts_one_and_waits_for_it() -> None:
    scaler = Scaler(RULES)
    assert sum(run(scaler, 1, 9.0, 9.0, 0.0, 1.9)) == 0
    changes = run(scaler, 1, 9.0, 9.0, 1.9, 9.0)
    assert sum(changes) == 1  # one step, then it settles


def test_a_short_burst_starts_nothing() -> None:
    scaler = Scaler(RULES)
    for burst in range(10):
        assert not any(run(scaler, 1, 9.0, 9.0, burst * 4.0, 1.5))
        assert not any(run(scaler, 1, 0.0, 3.0, burst * 4.0 + 2.0, 0.5))


def test_little_work_for_a_minute_stops_one_but_never_the_last() -> None:
    scaler = Scaler(RULES)
    assert sum(run(scaler, 2, 0.0, 0.1, 0.0, 59.0)) == 0
    assert sum(run(scaler, 2, 0.0, 0.1, 59.0, 5.0)) == -1
    assert sum(run(Scaler(RULES), 1, 0.0, 0.0, 0.0, 200.0)) == 0


def test_what_one_fewer_could_not_carry_is_kept() -> None:
    assert sum(run(Scaler(RULES), 2, 0.0, 0.6, 0.0, 100.0)) == 0  # the other one alone: 1.2 s


def test_while_no_speed_is_known_only_the_bounds_decide() -> None:
    scaler = Scaler(RULES)
    assert [scaler.decide(1, None, None, second) for second in range(100)] == [0] * 100
    assert scaler.decide(0, None, None, 100.0) == 1
    assert scaler.decide(4, None, None, 101.0) == -1
    assert sum(run(scaler, 1, 9.0, 9.0, 200.0, 1.5)) == 0  # what was not known counts as no time above
    assert sum(run(scaler, 1, 9.0, 9.0, 201.5, 1.0)) == 1


@given(st.lists(st.tuples(st.floats(0.0, 50.0), st.floats(0.0, 5.0)), max_size=100))
def test_bounds_and_rest_between_steps(loads: list[tuple[float, float]]) -> None:
    scaler, replicas, now, last = Scaler(RULES), 1, 0.0, None
    for queued, pause in loads:
        now += pause
        change = scaler.decide(replicas, queued, queued + 0.5, now)
        replicas += change
        assert RULES.least <= replicas <= RULES.most
        if change:
            assert last is None or now - last >= RULES.settle
            last = now


async def test_routing_weighs_and_forgets() -> None:
    routing = Routing(seed=1)
    routing.replicas(["a", "b"], 0.0)
    heavy = {"prompt": "word " * 4000, "max_tokens": 500}
    first = await routing.rank("1", heavy, ["a", "b"], 0.0)
    routing.sent("1", first.order[0], 0.0)
    second = await routing.rank("2", {"prompt": "short", "max_tokens": 5}, ["a", "b"], 0.0)
    assert second.order[0] != first.order[0]
    assert set(second.order) == {"a", "b"}
    routing.sent("2", second.order[0], 0.0)
    routing.done("1", first.order[0], 1.0)
    routing.done("1", first.order[0], 1.0)
    routing.done("2", second.order[0], 1.0)
    assert routing.outstanding() == {"a": 0.0, "b": 0.0}


async def test_routing_knows_unequal_machines() -> None:
    routing = Routing(seed=1)
    routing.replicas(["slow", "fast"], 0.0)
    routing.learn("slow", DEFAULT_STEP_COST.scaled(8.0))
    routing.learn("fast", DEFAULT_STEP_COST)
    for request in range(4):
        ranking = await routing.rank(
            str(request), {"prompt": "x" * 400, "max_tokens": 50}, ["slow", "fast"], 0.0
        )
        assert ranking.order[0] == "fast"
    routing.replicas(["slow"], 1.0)
    assert routing.outstanding() == {"slow": 0.0}


def test_the_request_is_found_among_arguments() -> None:
    class Model:
        messages = ()

        def model_dump(self) -> dict[str, str]:
            return {"messages": "m"}

    assert body_of((1, {"prompt": "p"}), {}) == {"prompt": "p"}
    assert body_of((), {"request": Model()}) == {"messages": "m"}
    assert body_of(("just text",), {}) == {"prompt": "just text"}
    assert body_of((3,), {}) == {"prompt": ""}
