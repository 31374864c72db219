"""Whose turn it is: urgent classes first, fair shares for tenants, and a turn for everybody in the end."""

from __future__ import annotations

from collections import Counter

from hypothesis import given, settings
from hypothesis import strategies as st

from tests.engine.fake_model import make_request
from weighbridge.engine.request import Request, RequestState
from weighbridge.engine.schedule.fairness import MAX_IDLE_TENANTS, VirtualTokenCounters
from weighbridge.engine.schedule.queue import MAX_IDLE_CLASSES, Deadlines, FairQueue


def push(queue: FairQueue, *ids: str, now: float = 0.0, front: bool = False, **options: object) -> None:
    """Requests named `<tenant><number>`, ten tokens each."""
    for name in ids:
        queue.push(make_request(name, [1] * 10, tenant=name[0], **options), now, 10, front=front)  # type: ignore[arg-type]


def take_all(queue: FairQueue, now: float = 0.0, output: int = 0) -> list[str]:
    taken = []
    while (turn := queue.peek(now)) is not None:
        request = turn[0]
        queue.take(request, now)
        queue.charge(request, input_tokens=request.num_prompt_tokens, output_tokens=output)
        queue.check_integrity()
        taken.append(request.id)
    return taken


def test_first_come_first_served_inside_a_tenant() -> None:
    queue = FairQueue()
    push(queue, "a1", "a2", "a3")
    assert take_all(queue) == ["a1", "a2", "a3"]


def test_tenants_alternate_however_many_requests_one_sends() -> None:
    queue = FairQueue()
    push(queue, *(f"a{i}" for i in range(6)), "b0", "b1")
    assert take_all(queue)[:4] == ["a0", "b0", "a1", "b1"]


def test_output_weighs_twice() -> None:
    queue = FairQueue(input_weight=1.0, output_weight=2.0)
    push(queue, *(f"a{i}" for i in range(9)), *(f"b{i}" for i in range(9)))
    queue.charge(make_request("a", [1], tenant="a"), output_tokens=15)
    queue.charge(make_request("b", [1], tenant="b"), input_tokens=10)
    assert take_all(queue)[:4] == ["b0", "b1", "a0", "b2"]  # a stands at 30, b at 10: 20, 30, then in turns


def test_idling_earns_no_credit() -> None:
    queue = FairQueue()
    push(queue, *(f"a{i}" for i in range(20)))
    for _ in range(10):
        request, _ = queue.peek(0.0) or (None, 0)
        assert request is not None
        queue.take(request, 0.0)
        queue.charge(request, input_tokens=10)
    push(
        queue, *(f"b{i}" for i in range(10))
    )  # comes late: lifted to a's level, not served ten times in a row
    assert take_all(queue)[:6] == ["a10", "b0", "a11", "b1", "a12", "b2"]


def test_leaving_wipes_out_no_debt() -> None:
    queue = FairQueue()
    push(queue, "a0", "b0")
    queue.charge(make_request("x", [1], tenant="a"), input_tokens=1000)
    assert take_all(queue) == ["b0", "a0"]
    push(queue, "b1", "a1", "b2")
    assert take_all(queue) == ["b1", "b2", "a1"]


def test_a_refund_brings_the_turn_back() -> None:
    queue = FairQueue()
    push(queue, "a0", "a1", "b0", "b1")
    request, _ = queue.peek(0.0) or (None, 0)
    assert request is not None
    queue.take(request, 0.0)
    queue.charge(request, input_tokens=100)
    queue.charge(request, input_tokens=-100)
    assert take_all(queue) == ["a1", "b0", "b1"]


def test_urgent_classes_go_first() -> None:
    queue = FairQueue(ageing_seconds=None)
    push(queue, "a1", priority=5)
    push(queue, "b1", priority=0)
    push(queue, "c1", priority=-1)
    assert take_all(queue, now=1e9) == ["c1", "b1", "a1"]


def test_the_preempted_return_to_the_front() -> None:
    queue = FairQueue()
    push(queue, "a1", "a2")
    push(queue, "a0", front=True)
    assert take_all(queue) == ["a0", "a1", "a2"]


def test_a_class_left_unserved_gets_one_turn_and_competes_in_the_best_class() -> None:
    queue = FairQueue(ageing_seconds=10.0)
    push(queue, "a1", "a2", now=0.0, priority=7)
    push(queue, "b1", "b2", "b3", now=5.0)
    assert [queue.peek(9.9)[0].id, queue.peek(9.9)[1]] == ["b1", 0]  # type: ignore[index]
    assert [queue.peek(10.0)[0].id, queue.peek(10.0)[1]] == ["a1", 0]  # type: ignore[index]
    assert take_all(queue, now=10.0) == ["a1", "b1", "b2", "b3", "a2"]


def test_under_a_flood_of_urgent_work_every_class_advances_at_the_stated_pace() -> None:
    queue = FairQueue(ageing_seconds=10.0)
    push(queue, *(f"z{i}" for i in range(50)), priority=9)
    push(queue, *(f"m{i}" for i in range(50)), priority=5)
    served: Counter[str] = Counter()
    for second in range(100):
        push(queue, f"u{second}", now=float(second))
        request, _ = queue.peek(float(second)) or (None, 0)
        assert request is not None
        queue.take(request, float(second))
        served[request.id[0]] += 1
    assert served["z"] >= 8
    assert served["m"] >= 8
    assert served["u"] >= 80


def test_held_requests_count_but_do_not_run() -> None:
    queue = FairQueue()
    held = make_request("h", [1] * 10, tenant="a")
    queue.push(held, 0.0, 10, held=True)
    push(queue, "a1")
    assert (len(queue), queue.num_tokens) == (2, 20)
    assert queue.peek(0.0)[0].id == "a1"  # type: ignore[index]
    queue.unhold("h", 0.0)
    assert take_all(queue) == ["h", "a1"]


def test_memory_does_not_grow_with_tenants_and_classes_of_the_past() -> None:
    counters = VirtualTokenCounters()
    for number in range(3 * MAX_IDLE_TENANTS):
        counters.activate(f"t{number}")
        counters.charge(f"t{number}", 1.0 + number % 7)
        counters.deactivate(f"t{number}")
    assert len(counters._counters) <= MAX_IDLE_TENANTS + 1
    queue = FairQueue()
    for number in range(3 * MAX_IDLE_CLASSES):
        push(queue, f"t{number}", priority=number)
        take_all(queue)
    assert len(queue._classes) <= MAX_IDLE_CLASSES + 1


def test_deadlines_report_each_late_request_once_and_forget_the_finished() -> None:
    deadlines = Deadlines()
    requests = [make_request(f"r{i}", [1], deadline=float(i)) for i in range(6)]
    for request in [*requests, make_request("never", [1])]:
        deadlines.add(request)
    requests[1].state = RequestState.FINISHED
    assert [request.id for request in deadlines.passed(3.0)] == ["r0", "r2"]
    assert [request.id for request in deadlines.passed(4.5)] == ["r3", "r4"]
    for number in range(10_000):
        late = make_request(f"x{number}", [1], deadline=1e9)
        deadlines.add(late)
        late.state = RequestState.FINISHED
    assert len(deadlines._heap) < 200


operations = st.lists(
    st.tuples(
        st.sampled_from(["push", "front", "hold", "unhold", "take", "remove", "charge"]),
        st.sampled_from("abc"),
        st.integers(0, 2),
        st.integers(0, 30),
    ),
    max_size=80,
)


@given(operations)
@settings(max_examples=300, deadline=None)
def test_any_operations_keep_order_and_totals(steps: list[tuple[str, str, int, int]]) -> None:
    """Against a plain model: a list per class and tenant, the next one found by looking at all."""
    queue = FairQueue(ageing_seconds=None)
    lines: dict[tuple[int, str], list[Request]] = {}
    held: list[Request] = []
    for number, (action, tenant, priority, size) in enumerate(steps):
        line = lines.setdefault((priority, tenant), [])
        waiting = [request for requests in lines.values() for request in requests]
        if action in ("push", "front", "hold"):
            request = make_request(f"{tenant}{number}", [1] * (size + 1), tenant=tenant, priority=priority)
            queue.push(request, 0.0, size + 1, front=action == "front", held=action == "hold")
            if action == "hold":
                held.append(request)
            else:
                line.insert(0 if action == "front" else len(line), request)
        elif action == "unhold" and held:
            request = held.pop(size % len(held))
            queue.unhold(request.id, 0.0)
            lines.setdefault((request.priority, request.tenant), []).insert(0, request)
        elif action == "remove" and waiting:
            request = waiting[size % len(waiting)]
            assert queue.remove(request.id) is request
            assert queue.remove(request.id) is None
            lines[request.priority, request.tenant].remove(request)
        elif action == "charge":
            queue.charge(make_request("x", [1], tenant=tenant, priority=priority), input_tokens=size - 10)
        elif action == "take" and waiting:
            request, lifted = queue.peek(0.0) or (None, 0)
            assert request is not None
            best = min(key[0] for key, requests in lines.items() if requests)
            tenants = [t for (p, t), requests in lines.items() if p == best and requests]
            counters = queue._classes[best].counters
            assert request.priority == best == lifted
            assert counters.counter(request.tenant) == min(counters.counter(t) for t in tenants)
            assert lines[best, request.tenant].pop(0) is request
            queue.take(request, 0.0)
            queue.charge(request, input_tokens=request.num_prompt_tokens)
        queue.check_integrity()
        everything = [*held, *(request for requests in lines.values() for request in requests)]
        assert len(queue) == len(everything)
        assert queue.num_tokens == sum(len(request.prompt) for request in everything)


@given(st.lists(st.tuples(st.sampled_from("abc"), st.integers(1, 50)), min_size=40, max_size=120))
@settings(max_examples=100, deadline=None)
def test_backlogged_tenants_get_equal_service_up_to_one_request(sizes: list[tuple[str, int]]) -> None:
    """The guarantee of VTC: between tenants that always wait, service differs by one request at most."""
    queue = FairQueue()
    for number, (tenant, size) in enumerate(sizes):
        queue.push(make_request(f"{tenant}{number}", [1] * size, tenant=tenant), 0.0, size)
    served: Counter[str] = Counter()
    left = Counter(tenant for tenant, _ in sizes)
    while all(left[tenant] for tenant in {tenant for tenant, _ in sizes}):
        request, _ = queue.peek(0.0) or (None, 0)
        assert request is not None
        queue.take(request, 0.0)
        queue.charge(request, input_tokens=len(request.prompt))
        served[request.tenant] += len(request.prompt)
        left[request.tenant] -= 1
        assert max(served.values()) - min(served[t] for t in left) <= 50
