"""Closed forms of the evaluator, and what the search promises."""

from __future__ import annotations

from dataclasses import replace
from math import inf, log

import pytest
from hypothesis import given
from hypothesis import strategies as st

from weighbridge.cost.hardware import find_device
from weighbridge.errors import BadInput
from weighbridge.planner.memory.memory import plan_memory
from weighbridge.planner.memory.request import Deployment
from weighbridge.planner.memory.source import open_model
from weighbridge.planner.report.report import price_of
from weighbridge.planner.search.queueing import Candidate, Forecast, _erlang_c, _erlang_wait, _tail, analytic
from weighbridge.planner.search.search import Search, confirmed, recommend
from weighbridge.planner.search.simulated import simulated
from weighbridge.workload.requests import TraceRow
from weighbridge.workload.slo import Slo
from weighbridge.workload.traffic import Traffic, traffic_of


def _traffic(rate: float, prompt: int = 1000, output: int = 200, requests: int = 600) -> Traffic:
    return traffic_of([TraceRow(i / rate, prompt, output) for i in range(requests)])


def test_erlang_c_of_textbooks() -> None:
    assert _erlang_c(1.0, 2) == pytest.approx(1 / 3)  # two servers, one erlang
    assert _erlang_c(8.0, 10) == pytest.approx(0.4092, abs=1e-4)
    assert _erlang_c(0.7, 1) == pytest.approx(0.7)  # M/M/1: the server is busy
    assert _erlang_c(500.0, 1000) < 1e-6


def test_waits_of_one_server_are_those_of_m_m_1() -> None:
    load, service = 0.8, 2.0
    expected = service / (1 - load) * log(load / 0.05)
    assert _erlang_wait(load, 1, service, 0.95) == pytest.approx(expected)
    assert _erlang_wait(1.2, 1, service, 0.95) == inf
    assert _tail(1.0, 0.04, 0.95) == 0.0


@given(st.floats(0.05, 4.0), st.floats(1.05, 3.0))
def test_more_traffic_is_never_faster(rate: float, factor: float) -> None:
    device = find_device("H100")
    plan = plan_memory(open_model("llama-3.1-8b"), Deployment(max_model_len=4096), device)
    candidate = Candidate(plan, device, 1, 1.0)
    slo = Slo(1.0, 0.1, 0.95)
    calm, busy = (analytic(candidate, _traffic(x), slo) for x in (rate, rate * factor))
    assert busy.load >= calm.load
    assert busy.tpot >= calm.tpot * 0.999
    assert busy.ttft >= calm.ttft * 0.999


def test_little_holds_at_the_fixed_point() -> None:
    """Requests running = arrivals per second x time to produce an answer."""
    device = find_device("H100")
    plan = plan_memory(open_model("llama-3.1-8b"), Deployment(max_model_len=4096), device)
    traffic = _traffic(5.0)
    forecast = analytic(Candidate(plan, device, 1, 1.0), traffic, Slo(quantile=0.5))
    residence = traffic.output * forecast.tpot  # at the median the batch is its mean
    assert forecast.batch == pytest.approx(traffic.peak_rate * residence, rel=0.05)


def test_a_search_takes_the_fewest_replicas_that_meet() -> None:
    traffic, slo = _traffic(30.0, 2000, 300), Slo(1.0, 0.05, 0.95)
    search = Search([find_device("L40S")], tp=1, weights="fp8")
    (choice,) = recommend(open_model("llama-3.1-8b"), Deployment(), traffic, slo, search)
    assert choice.forecast.meets
    assert choice.candidate.replicas > 1
    fewer = replace(choice.candidate, replicas=choice.candidate.replicas - 1)
    assert not analytic(fewer, traffic, slo).meets


def test_choices_are_ranked_by_cost_and_all_meet() -> None:
    traffic, slo = _traffic(5.0), Slo(0.5, 0.03, 0.99)
    pool = [find_device(name) for name in ("H100", "L40S", "A100-80GB", "L4")]
    found = recommend(open_model("llama-3.1-8b"), Deployment(), traffic, slo, Search(pool))
    assert all(choice.forecast.meets for choice in found)
    costs = [choice.candidate.usd_per_hour for choice in found]
    assert costs == sorted(costs)
    assert all(choice.forecast.tpot <= 0.03 for choice in found)


def test_another_evaluator_takes_the_seat() -> None:
    """A simulation has the same signature; here one that wants five replicas."""

    def five(candidate: Candidate, traffic: Traffic, slo: Slo) -> Forecast:
        return Forecast(candidate.replicas >= 5, 0.1, 0.01, 1.0, 0.5, "because")

    search = Search([find_device("H100")], tp=1, weights="bf16", kv_dtype="auto")
    (choice,) = recommend(open_model("qwen3-8b"), Deployment(), _traffic(1.0), Slo(), search, five)
    assert choice.candidate.replicas == 5


def test_a_simulation_confirms_or_wants_more() -> None:
    """The engine's own scheduler under a virtual clock; calm traffic agrees with the closed form on the median."""
    device = find_device("H100")
    plan = plan_memory(open_model("llama-3.1-8b"), Deployment(max_model_len=4096), device)
    candidate = Candidate(plan, device, 1, 3.0)
    traffic, slo = _traffic(2.0, requests=300), Slo(1.0, 0.05, 0.5)
    by_formula, by_events = analytic(candidate, traffic, slo), simulated(candidate, traffic, slo)
    assert by_events.meets
    assert by_events.tpot == pytest.approx(by_formula.tpot, rel=0.3)
    assert by_events.batch == pytest.approx(by_formula.batch, rel=0.3)
    assert simulated(candidate, traffic, slo) == by_events
    assert not simulated(candidate, traffic, replace(slo, tpot_s=by_events.tpot / 2)).meets


def test_confirmed_choices_meet_in_the_surer_eye() -> None:
    def wants(candidate: Candidate, traffic: Traffic, slo: Slo) -> Forecast:
        return Forecast(candidate.replicas >= 2, 0.1, 0.01, 1.0, 0.5, "two at least")

    def dear(candidate: Candidate, traffic: Traffic, slo: Slo) -> Forecast:
        return Forecast(False, 9.0, 9.0, 1.0, 1.0, "never")

    traffic, slo = _traffic(2.0), Slo(1.0, 0.05, 0.9)
    search = Search([find_device(name) for name in ("H100", "H200", "L40S")], weights="bf16", kv_dtype="auto")
    choices = recommend(open_model("llama-3.1-8b"), Deployment(), traffic, slo, search)
    found = confirmed(choices, traffic, slo, search, wants, wanted=2)
    assert [choice.candidate.replicas for choice in found] == [2, 2]
    assert found[0].candidate.usd_per_hour <= found[1].candidate.usd_per_hour
    with pytest.raises(BadInput, match="holds up in simulation"):
        confirmed(choices, traffic, slo, search, dear)


def test_several_devices_are_recommended_not_one_in_several_formats() -> None:
    traffic, slo = _traffic(1.0), Slo(1.0, 0.05, 0.9)
    search = Search([find_device(name) for name in ("H100", "L40S", "A100-80GB")])
    choices = recommend(open_model("llama-3.1-8b"), Deployment(), traffic, slo, search)
    found = confirmed(choices, traffic, slo, search, analytic)
    assert len({choice.candidate.device.name for choice in found}) == len(found) == 3
    alone = replace(search, devices=[find_device("L40S")])
    choices = recommend(open_model("llama-3.1-8b"), Deployment(), traffic, slo, alone)
    found = confirmed(choices, traffic, slo, alone, analytic)
    assert len({choice.candidate.plan.stored.format for choice in found}) == len(found) > 1


def test_a_price_given_takes_the_place_of_the_list() -> None:
    traffic, slo = _traffic(1.0), Slo(1.0, 0.05, 0.9)
    search = Search([find_device("L40S")], usd_per_device_hour=0.5)
    first = recommend(open_model("llama-3.1-8b"), Deployment(), traffic, slo, search)[0]
    assert first.candidate.usd_per_hour == pytest.approx(0.5 * first.candidate.gpus)
    assert price_of(first) == (pytest.approx(0.5), "as given with --price")
    listed = recommend(
        open_model("llama-3.1-8b"), Deployment(), traffic, slo, replace(search, usd_per_device_hour=None)
    )
    assert "list price of" in price_of(listed[0])[1]


def test_what_cannot_be_met_is_said() -> None:
    with pytest.raises(BadInput, match="nothing meets"):
        recommend(
            open_model("llama-3.1-8b"), Deployment(), _traffic(50.0), Slo(0.001, 0.0001, 0.99),
            Search([find_device("L4")]),
        )  # fmt: skip
    with pytest.raises(BadInput, match="no device"):
        recommend(
            open_model("llama-3.1-405b"), Deployment(), _traffic(1.0), Slo(), Search([find_device("T4")])
        )


def test_the_busiest_minute() -> None:
    calm = [TraceRow(float(t), 10, 10) for t in range(0, 600, 10)]
    burst = [TraceRow(300 + t / 10, 10, 10) for t in range(600)]
    assert traffic_of(calm + burst).peak_rate == pytest.approx(10.1, abs=0.1)
    assert traffic_of([TraceRow(0.0, 5, 5)]).peak_rate == 1.0


@pytest.mark.parametrize("rows", [[], [TraceRow(0.0, 0, 5)], [TraceRow(0.0, 5, -1)]])
def test_bad_traces(rows: list[TraceRow]) -> None:
    with pytest.raises(BadInput, match="trace"):
        traffic_of(rows)
