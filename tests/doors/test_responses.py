"""OpenAI's Responses over more than one request, with OpenAI's client: continued, found again, in the background."""

from __future__ import annotations

import json
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import openai
import pytest
from openai import OpenAI
from openai.types.responses import Response, ResponseItemList

from tests.doors.client import connect, exchange, request
from tests.doors.doors import DOORS, KEYS, Door
from tests.wire.test_response_events import validated
from weighbridge.server.kept_responses import MAX_TENANT_JOBS

Doors = dict[bool, dict[str, Door]]

every_door = pytest.mark.parametrize("name", DOORS)
routes_only = pytest.mark.parametrize("name", ["route", "routes"])

SHORT: Any = {"input": "What does it weigh?", "max_output_tokens": 4, "temperature": 0}
#: Long enough to be met while it is under way; it never ends by itself.
LONG: Any = SHORT | {"max_output_tokens": 800, "extra_body": {"ignore_eos": True}}


def client(door: Door, tenant: str | None = None) -> OpenAI:
    key = KEYS[tenant] if tenant else "none"
    return OpenAI(base_url=f"{door.url}/v1", api_key=key, max_retries=0, timeout=30)


def create(door: Door, asks: OpenAI | None = None, **fields: Any) -> Response:
    made = (asks or client(door)).responses.with_raw_response.create(model=door.model, **SHORT | fields)
    return Response.model_validate_json(made.text, strict=True)


def status_of(error: pytest.ExceptionInfo[openai.APIStatusError]) -> tuple[int, str | None]:
    return error.value.status_code, error.value.code


def tokens_in(response: Response) -> int:
    assert response.usage
    return response.usage.input_tokens


def finished(asks: OpenAI, name: str) -> Response:
    deadline = time.monotonic() + 30
    while (found := asks.responses.retrieve(name)).status in ("queued", "in_progress"):
        assert time.monotonic() < deadline
        time.sleep(0.02)
    return found


@every_door
def test_a_response_is_found_again_by_its_tenant_alone_until_it_is_deleted(name: str, doors: Doors) -> None:
    door = doors[True][name]
    alice, bob = client(door, "alice"), client(door, "bob")
    made = create(door, alice)
    assert alice.responses.retrieve(made.id) == made
    for ask in (
        lambda: bob.responses.retrieve(made.id),
        lambda: bob.responses.delete(made.id),
        lambda: bob.responses.cancel(made.id),
        lambda: bob.responses.input_items.list(made.id),
    ):
        with pytest.raises(openai.NotFoundError) as missing:
            ask()
        assert status_of(missing) == (404, "response_not_found")
    with pytest.raises(openai.BadRequestError) as denied:
        create(door, bob, previous_response_id=made.id)
    assert status_of(denied) == (400, "previous_response_not_found")
    alice.responses.delete(made.id)
    with pytest.raises(openai.NotFoundError):
        alice.responses.retrieve(made.id)


@every_door
def test_a_tenant_hears_nothing_of_the_jobs_and_items_of_another(name: str, doors: Doors) -> None:
    door = doors[True][name]
    alice, bob = client(door, "alice"), client(door, "bob")
    made = create(door, alice, background=True, **LONG)
    with pytest.raises(openai.BadRequestError) as denied:
        create(door, bob, previous_response_id=made.id)
    assert status_of(denied) == (400, "previous_response_not_found")
    alice.responses.delete(made.id)
    item: Any = {"type": "message", "id": "msg_1", "role": "user", "content": "What does it weigh?"}
    named: Any = [{"type": "item_reference", "id": "msg_1"}]
    first = create(door, alice, input=[item])
    create(door, bob, input=[item | {"content": "Bob"}])
    assert tokens_in(create(door, alice, input=named)) == tokens_in(first), "both chose the same name"


def test_jobs_that_begin_at_once_keep_to_their_bound(doors: Doors) -> None:
    door = doors[False]["single"]
    asks = client(door)
    # Long enough to be read on a thread, while others begin.
    tools: Any = [{"type": "function", "name": "weigh", "description": "x" * 40_000}]

    def begin(_: int) -> str | None:
        try:
            return create(door, asks, background=True, tools=tools, tool_choice="none", **LONG).id
        except openai.RateLimitError:
            return None

    with ThreadPoolExecutor(32) as threads:
        begun = [one for one in threads.map(begin, range(MAX_TENANT_JOBS + 16)) if one is not None]
        found = list(threads.map(asks.responses.retrieve, begun))
        list(threads.map(asks.responses.delete, begun))
    ended = sum(one.status not in ("queued", "in_progress") for one in found)  # whose places others had
    assert len(begun) - ended <= MAX_TENANT_JOBS


@every_door
def test_turns_that_are_named_are_as_those_that_are_sent(name: str, doors: Doors) -> None:
    door = doors[False][name]
    first = create(door, instructions="Be brief.")
    second = create(door, input="And now?", previous_response_id=first.id)
    third = create(door, input="And then?", previous_response_id=second.id)
    turns: list[Any] = []
    for asked, answered in (("What does it weigh?", first), ("And now?", second), ("And then?", None)):
        turns.append({"role": "user", "content": asked})
        turns += [item.model_dump(exclude_none=True) for item in answered.output] if answered else []
    same = create(door, input=turns)
    assert tokens_in(third) == tokens_in(same) > tokens_in(first)
    assert third.output_text == same.output_text
    assert third.previous_response_id == second.id


@every_door
def test_items_are_named_by_their_ids(name: str, doors: Doors) -> None:
    door = doors[False][name]
    first = create(door)
    question: Any = {"role": "user", "content": "And now?"}
    named = create(door, input=[{"type": "item_reference", "id": first.output[0].id}, question])
    sent = create(door, input=[first.output[0].model_dump(exclude_none=True), question])
    assert tokens_in(named) == tokens_in(sent)
    with pytest.raises(openai.NotFoundError) as missing:
        create(door, input=[{"type": "item_reference", "id": "msg_nobody"}])
    assert status_of(missing) == (404, "item_not_found")


@every_door
def test_what_was_put_in_is_listed_page_by_page(name: str, doors: Doors) -> None:
    door = doors[False][name]
    asks = client(door)
    made = create(door, input=[{"role": "user", "content": f"part {number}"} for number in range(5)])
    page = asks.responses.input_items.with_raw_response.list(made.id, limit=2)
    first = ResponseItemList.model_validate_json(page.text, strict=True)
    assert first.has_more
    assert [item.content[0].text for item in first.data] == ["part 4", "part 3"]  # type: ignore[union-attr]
    everything = list(asks.responses.input_items.list(made.id, limit=2, order="asc"))
    assert [item.content[0].text for item in everything] == [f"part {number}" for number in range(5)]  # type: ignore[union-attr]
    for wrong in ({"limit": 0}, {"order": "up"}, {"after": "nobody"}):
        with pytest.raises(openai.BadRequestError) as refused:
            asks.responses.input_items.list(made.id, **wrong)  # type: ignore[arg-type]
        assert refused.value.param == next(iter(wrong))


@every_door
def test_an_answer_in_the_background_is_told_from_any_point_on(name: str, doors: Doors) -> None:
    door = doors[False][name]
    asks = client(door)
    stream = asks.responses.create(model=door.model, background=True, stream=True, **SHORT)
    events = [event.to_dict() for event in stream]
    for event in events:
        validated(event)
    kinds = [event["type"] for event in events]
    assert kinds[:3] == ["response.created", "response.queued", "response.in_progress"]
    assert kinds[-1] == "response.incomplete"
    name_of = events[0]["response"]["id"]
    for after in (0, 3, len(events) - 2, len(events) + 5):
        again = asks.responses.retrieve(name_of, stream=True, starting_after=after)
        assert [event.to_dict() for event in again] == events[after + 1 :]
    kept = asks.responses.retrieve(name_of)
    assert kept.to_dict() == events[-1]["response"]


@every_door
def test_an_answer_in_the_background_goes_on_without_its_client(name: str, doors: Doors) -> None:
    door = doors[False][name]
    asks = client(door)
    with asks.responses.create(model=door.model, background=True, stream=True, **LONG) as stream:
        first = next(iter(stream))
    found = finished(asks, first.response.id)  # type: ignore[union-attr]
    assert found.status == "incomplete"
    assert found.usage
    assert found.usage.output_tokens == 800


@every_door
def test_an_answer_in_the_background_is_polled(name: str, doors: Doors) -> None:
    door = doors[False][name]
    asks = client(door)
    queued = create(door, asks, background=True)
    assert queued.status == "queued"
    done = finished(asks, queued.id)
    assert done.status == "incomplete"
    assert done.output_text
    assert asks.responses.cancel(queued.id) == done, "it is over: nothing to cancel"


@every_door
def test_an_answer_in_the_background_is_cancelled(name: str, doors: Doors) -> None:
    door = doors[False][name]
    asks = client(door)
    made = create(
        door,
        asks,
        background=True,
        **{k: v for k, v in LONG.items() if k not in SHORT},
        max_output_tokens=800,
    )
    with pytest.raises(openai.BadRequestError) as early:
        create(door, asks, previous_response_id=made.id)
    assert status_of(early) == (400, "response_in_progress")
    cancelled = asks.responses.cancel(made.id)
    assert cancelled.status == "cancelled"
    assert asks.responses.retrieve(made.id).status == "cancelled"
    last = list(asks.responses.retrieve(made.id, stream=True))[-1]
    assert last.response.status == "cancelled"  # type: ignore[union-attr]
    deadline = time.monotonic() + 10
    while door.holds():
        assert time.monotonic() < deadline
        time.sleep(0.02)


@every_door
def test_what_is_not_in_the_background_ends_with_its_client_and_is_not_kept(name: str, doors: Doors) -> None:
    door = doors[False][name]
    body = {"model": door.model, "input": "x", "max_output_tokens": 800, "ignore_eos": True, "stream": True}
    headers: Any = [("Content-Type", "application/json")]
    sent = request("POST", "/v1/responses", headers, json.dumps(body).encode(), f"127.0.0.1:{door.port}")
    with connect(door.port) as line:
        line.sendall(sent)
        seen = b""
        while b"\n\n" not in seen.partition(b"data: ")[2]:
            seen += (more := line.recv(4096))
            assert more, seen
    made = json.loads(seen.partition(b"data: ")[2].partition(b"\n\n")[0])
    deadline = time.monotonic() + 10
    while door.holds():
        assert time.monotonic() < deadline
        time.sleep(0.02)
    with pytest.raises(openai.NotFoundError):
        client(door).responses.retrieve(made["response"]["id"])
    whole = create(door)
    with pytest.raises(openai.BadRequestError):
        client(door).responses.cancel(whole.id)


@every_door
def test_a_background_that_cannot_begin_is_refused_at_once(name: str, doors: Doors) -> None:
    door = doors[False][name]
    with pytest.raises(openai.BadRequestError) as refused:
        create(door, background=True, store=False)
    assert refused.value.param == "background"
    with pytest.raises(openai.NotFoundError) as unknown:
        client(door).responses.create(model="nobody", background=True, input="x")
    assert unknown.value.code == "model_not_found"


def written(door: Door) -> bytes:
    """All that is on disk of the responses."""
    parts = [Path(f"{door.kept}{end}") for end in ("", "-wal", "-shm", "-journal")]
    return b"".join(part.read_bytes() for part in parts if part.exists())


@every_door
def test_what_is_written_down_and_deleted_is_in_no_file_any_more(name: str, doors: Doors) -> None:
    door = doors[True][name]
    alice = client(door, "alice")
    secret, other = f"the {name} parcel", f"the {name} letter"
    kept = create(door, alice, input=secret, store=True, instructions=f"weigh {secret}")
    left = create(door, alice, input=other, store=True)
    create(door, alice, input=f"{name} unasked")
    create(door, alice, input=f"{name} unwanted", store=False)
    deadline = time.monotonic() + 10
    while not (secret.encode() in written(door) and other.encode() in written(door)):
        assert time.monotonic() < deadline
        time.sleep(0.02)
    assert b"unasked" not in written(door)
    assert b"unwanted" not in written(door)
    alice.responses.delete(kept.id)
    assert secret.encode() not in written(door)
    assert kept.id.encode() not in written(door)
    assert other.encode() in written(door)
    assert alice.responses.retrieve(left.id) == left


@every_door
def test_what_must_not_be_kept_is_not(name: str, doors: Doors) -> None:
    made = create(doors[False][name], store=False)
    with pytest.raises(openai.NotFoundError):
        client(doors[False][name]).responses.retrieve(made.id)


@routes_only
def test_what_a_rule_keeps_local_is_not_written_down_nor_let_out_by_a_later_turn(
    name: str, doors: Doors
) -> None:
    door = doors[False][name]
    private: Any = {"extra_body": {"weighbridge": {"labels": ["patient"]}}}
    first = create(door, input=f"a {name} diagnosis", store=True, **private)
    free = create(door, input=f"a {name} weather", store=True)
    before = len(door.cloud.calls)
    with pytest.raises(openai.PermissionDeniedError) as refused:
        create(door, previous_response_id=first.id, extra_body={"weighbridge": {"placement": "only_cloud"}})
    assert refused.value.code == "residency_forbids"
    second = create(door, input=f"a {name} cure", previous_response_id=first.id, store=True)
    assert len(door.cloud.calls) == before
    gone = create(door, previous_response_id=free.id, extra_body={"weighbridge": {"placement": "only_cloud"}})
    assert f"a {name} weather" in json.dumps(door.cloud.calls[-1]["messages"])
    assert gone.output_text
    asks = client(door)
    assert asks.responses.retrieve(second.id) == second, "it is in memory"
    deadline = time.monotonic() + 10
    while f"a {name} weather".encode() not in written(door):
        assert time.monotonic() < deadline
        time.sleep(0.02)
    assert b"diagnosis" not in written(door)
    assert b"cure" not in written(door)


@every_door
def test_a_stream_is_read_by_openais_own_reader(name: str, doors: Doors) -> None:
    door = doors[False][name]
    with client(door).responses.stream(model=door.model, **SHORT) as stream:
        events = list(stream)
    assert [event.type for event in events][:2] == ["response.created", "response.in_progress"]
    [text] = [event.text for event in events if event.type == "response.output_text.done"]
    assert text == create(door).output_text


@every_door
def test_there_is_no_response_of_another_name(name: str, doors: Doors) -> None:
    door = doors[False][name]
    for method, path in (
        ("GET", "resp_0"),
        ("DELETE", "resp_0"),
        ("POST", "resp_0/cancel"),
        ("GET", "resp_0/input_items"),
        ("GET", "resp_0?stream=true"),
    ):
        sent = request(method, f"/v1/responses/{path}", [], None, f"127.0.0.1:{door.port}")
        reply = exchange(door.port, sent)
        assert (reply.status, reply.error["code"]) == (404, "response_not_found")
