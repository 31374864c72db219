"""Tickets: what they say of themselves, how prompts are named, and files that cannot be written."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from weighbridge.ticket import Leg, Ticket, TicketStore, prompt_hash
from weighbridge.ticket.decisions import Decisions
from weighbridge.ticket.record import KEPT_SCORES


def ticket(**fields: object) -> Ticket:
    return Ticket("t1", "jane", "small", "hash", 10, 20, **fields)  # type: ignore[arg-type]


def test_a_request_without_a_route_is_one_leg() -> None:
    record = ticket(
        replica="near", attempts=2, cost_usd=0.25, weighed_tokens=11, finish_reason="stop", finished=3.0
    ).as_dict()
    [leg] = record["legs"]
    assert (leg["model"], leg["replica"], leg["tries"], leg["usd"]) == ("small", "near", 2, 0.25)
    assert (leg["weighed_tokens"], leg["prompt_tokens"], leg["outcome"]) == (11, 10, "stop")
    assert (leg["place"], leg["purpose"], leg["placement"]) == ("", "answer", "edge")


def test_a_request_that_nobody_worked_on_has_no_leg() -> None:
    assert ticket(replica="", finish_reason="refused").as_dict()["legs"] == []


def test_the_legs_of_a_route_stand_for_themselves() -> None:
    legs = [Leg("small", "edge"), Leg("big", "cloud", "cloud", usd=0.5)]
    record = ticket(replica="cloud:big", legs=legs).as_dict()
    assert [(leg["place"], leg["usd"]) for leg in record["legs"]] == [("edge", 0.0), ("cloud", 0.5)]
    assert json.loads(json.dumps(record)) == record


def streamed(**fields: object) -> dict[str, object]:
    return {
        "arrived": 1.0,
        "first_token": 2.0,
        "finished": 4.0,
        "output_tokens": 11,
        "finish_reason": "stop",
    } | fields


def test_the_gap_of_its_tokens_is_that_of_the_leg_that_answered() -> None:
    assert ticket(**streamed()).mean_gap() == pytest.approx(0.2)
    assert ticket(**streamed(choices=2, output_tokens=22)).as_dict()["itl_ms"] == pytest.approx(200.0)
    lost = Leg("small", "edge", first_token=1.5, finished=1.6, output_tokens=9, outcome="abort")
    answered = Leg("big", "cloud", first_token=2.0, finished=3.0, output_tokens=11, outcome="stop")
    sample = Leg(
        "small", "edge", purpose="sample", first_token=2.0, finished=9.0, output_tokens=3, outcome="stop"
    )
    held_back = ticket(**streamed(first_token=3.9999, legs=[answered, lost, sample]))
    assert held_back.mean_gap() == pytest.approx(0.1)


def test_what_came_in_one_piece_has_no_gap() -> None:
    leg = Leg("big", "cloud", first_token=2.0, finished=3.0, output_tokens=11, outcome="stop")
    whole = streamed(first_token=None, legs=[leg])
    for one in (streamed(first_token=None), whole, streamed(finished=None), streamed(output_tokens=1)):
        assert ticket(**one).mean_gap() is None
        assert "itl_ms" not in ticket(**one).as_dict()


def test_equal_prompts_have_equal_names_and_show_nothing() -> None:
    prompt = b'[{"role":"user","content":"hello"}]'
    assert prompt_hash(prompt) == prompt_hash(bytes(prompt))
    assert prompt_hash(prompt) != prompt_hash(prompt + b" ")
    assert len(prompt_hash(prompt)) == 32


def test_every_finished_ticket_is_a_line(tmp_path: Path) -> None:
    store = TicketStore(path=tmp_path / "deep" / "tickets.jsonl")
    for name in ("a", "ö"):
        store.finish(Ticket(name, "jane", "small", "hash", 1, 2))
    store.close()
    lines = (tmp_path / "deep" / "tickets.jsonl").read_text(encoding="utf-8").splitlines()
    assert [json.loads(line)["id"] for line in lines] == ["a", "ö"]


def test_a_full_disk_fails_no_request_and_is_said_once(caplog: pytest.LogCaptureFixture) -> None:
    if not Path("/dev/full").exists():
        pytest.skip("this system has no /dev/full")
    store = TicketStore(path=Path("/dev/full"))
    for _ in range(3):
        store.finish(ticket())
    store.close()
    assert store.lost == 3
    assert len([record for record in caplog.records if "could not be written" in record.message]) == 1


def test_a_ticket_is_no_larger_in_a_large_fleet() -> None:
    """The chosen replica, the best others, and how many there were."""
    scores = {f"replica-{n:04d}": float(n) for n in range(1000)}
    one = ticket()
    one.note_scores(scores, "replica-0500", "s")
    assert list(one.scores) == ["replica-0500", *[f"replica-{n:04d}" for n in range(KEPT_SCORES)]]
    assert (one.score_unit, one.candidates) == ("s", 1000)
    assert len(json.dumps(one.as_dict())) < 2500
    one.note_scores({"only": 1.0}, "only", "s")
    assert (one.scores, one.candidates) == ({"only": 1.0}, 1)
    one.note_scores({}, "drawn", "")
    assert (one.scores, one.candidates) == ({}, 0)


def test_decisions_are_put_into_words_once_when_somebody_reads_them() -> None:
    said = []

    def later() -> str:
        said.append(1)
        return "because"

    decisions = Decisions(["first"])
    decisions.append(later)
    decisions.extend(["last"])
    assert len(decisions) == 3
    assert not said
    assert list(decisions) == ["first", "because", "last"]
    assert decisions[1] == decisions[1:][0] == "because"
    assert decisions[-1] == "last"
    assert "because" in decisions
    assert len(said) == 1
    ticket = Ticket("id", "tenant", "m", "hash", 1, 1)
    ticket.decisions.append(later)
    assert ticket.as_dict()["decisions"] == ["because"]


def test_a_ticket_is_known_by_how_its_id_begins_to_those_who_may_see_it() -> None:
    store = TicketStore()
    for name, tenant in (("abcdef11", "ann"), ("abcdef22", "bob"), ("abc", "ann")):
        store.add(Ticket(name, tenant, "small", "hash", 1, 1))
    assert [one.id for one in store.beginning("abcdef1")] == ["abcdef11"]
    assert [one.id for one in store.beginning("abcdef", "bob")] == ["abcdef22"]
    assert len(store.beginning("abcdef")) == 2
    assert store.beginning("abc") == []  # too short to tell anything
