"""OpenAI's files and batches at every door, with OpenAI's client; every object is what its own types say."""

from __future__ import annotations

import json
import time
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import openai
import pytest
from openai import OpenAI
from openai.types import Batch, FileDeleted, FileObject

from tests.doors.doors import DOORS, KEYS, Door

Doors = dict[bool, dict[str, Door]]

every_door = pytest.mark.parametrize("name", DOORS)
CHAT = "/v1/chat/completions"


def client(door: Door, tenant: str | None = None) -> OpenAI:
    key = KEYS[tenant] if tenant else "none"
    return OpenAI(base_url=f"{door.url}/v1", api_key=key, max_retries=0, timeout=30)


def line(number: int, model: str, url: str = CHAT, **body: Any) -> bytes:
    fields = {"messages": [{"role": "user", "content": f"What weighs {number}?"}], "max_tokens": 3} | body
    fields = {"model": model, "temperature": 0} | {k: v for k, v in fields.items() if v is not None}
    return (
        json.dumps({"custom_id": f"line-{number}", "method": "POST", "url": url, "body": fields}).encode()
        + b"\n"
    )


def uploaded(asks: OpenAI, *lines: bytes) -> FileObject:
    made = asks.files.with_raw_response.create(file=("in.jsonl", b"".join(lines)), purpose="batch")
    return FileObject.model_validate_json(made.text, strict=True)


def created(asks: OpenAI, file: FileObject, endpoint: str = CHAT, window: str = "24h", **more: Any) -> Batch:
    made = asks.batches.with_raw_response.create(
        input_file_id=file.id,
        endpoint=endpoint,  # type: ignore[arg-type]
        completion_window=window,  # type: ignore[arg-type]
        **more,
    )
    return Batch.model_validate_json(made.text, strict=True)


def over(
    asks: OpenAI, batch: Batch, *, states: tuple[str, ...] = ("completed", "failed", "expired", "cancelled")
) -> Batch:
    deadline = time.monotonic() + 30
    while (found := asks.batches.retrieve(batch.id)).status not in states:
        assert time.monotonic() < deadline, found
        time.sleep(0.02)
    raw = asks.batches.with_raw_response.retrieve(batch.id).text
    return Batch.model_validate_json(raw, strict=True)


def rows(asks: OpenAI, name: str | None) -> dict[str, Any]:
    text = asks.files.content(name).text if name else ""
    found = [json.loads(one) for one in text.splitlines()]
    assert len({one["id"] for one in found}) == len(found)
    assert len({one["custom_id"] for one in found}) == len(found)
    return {one["custom_id"]: one for one in found}


@every_door
def test_a_batch_is_answered_line_by_line_as_the_same_requests_are(name: str, doors: Doors) -> None:
    door = doors[True][name]
    asks = client(door, "alice")
    lines = [line(n, door.model) for n in range(12)]
    lines += [line(12, door.model, max_tokens=-1), b"\n", line(13, "nobody-has-this")]
    file = uploaded(asks, *lines)
    assert (file.purpose, file.filename, file.bytes) == ("batch", "in.jsonl", sum(map(len, lines)))
    batch = created(asks, file, metadata={"why": "test"})
    assert (batch.status, batch.endpoint, batch.metadata) == ("validating", CHAT, {"why": "test"})
    done = over(asks, batch)
    assert done.status == "completed"
    assert done.request_counts
    assert done.request_counts.model_dump() == {"total": 14, "completed": 12, "failed": 2}
    answers, errors = rows(asks, done.output_file_id), rows(asks, done.error_file_id)
    assert answers.keys() == {f"line-{n}" for n in range(12)}
    assert {key: one["response"]["status_code"] for key, one in errors.items()} == {
        "line-12": 400,
        "line-13": 404,
    }
    used = 0
    for one in answers.values():
        assert one["error"] is None
        assert one["response"]["status_code"] == 200
        answer = openai.types.chat.ChatCompletion.model_validate(one["response"]["body"])
        assert answer.usage
        used += answer.usage.total_tokens
        ticket = door.ticket(one["response"]["request_id"], KEYS["alice"])
        assert (ticket["tenant"], ticket["priority"]) == ("alice", 1000)
    assert done.usage
    assert done.usage.total_tokens == used
    direct = asks.chat.completions.create(**json.loads(lines[0])["body"])
    if name not in ("route", "routes"):  # whoever answers there may be another each time
        assert (
            answers["line-0"]["response"]["body"]["choices"][0]["message"]["content"]
            == direct.choices[0].message.content
        )


@every_door
def test_files_and_batches_are_their_tenants_alone(name: str, doors: Doors) -> None:
    door = doors[True][name]
    alice, bob = client(door, "alice"), client(door, "bob")
    file = uploaded(alice, line(1, door.model))
    batch = created(alice, file)
    over(alice, batch)
    denied: list[Any] = [
        lambda: bob.files.retrieve(file.id),
        lambda: bob.files.content(file.id),
        lambda: bob.files.delete(file.id),
        lambda: bob.batches.retrieve(batch.id),
        lambda: bob.batches.cancel(batch.id),
    ]
    for ask in denied:
        with pytest.raises(openai.NotFoundError):
            ask()
    with pytest.raises(openai.BadRequestError) as missing:
        created(bob, file)
    assert missing.value.code == "file_not_found"
    assert not [one for one in bob.files.list() if one.id == file.id]
    assert not [one for one in bob.batches.list() if one.id == batch.id]
    gone = alice.files.with_raw_response.delete(file.id)
    assert FileDeleted.model_validate_json(gone.text, strict=True).deleted
    with pytest.raises(openai.NotFoundError):
        alice.files.retrieve(file.id)


def test_lists_are_read_page_by_page(doors: Doors) -> None:
    door = doors[True]["single"]
    asks = client(door, "dave")
    files = [uploaded(asks, line(n, door.model)) for n in range(5)]
    batches = [created(asks, file) for file in files]
    assert [one.id for one in asks.batches.list(limit=2)] == [one.id for one in batches[::-1]]
    assert [one.id for one in asks.files.list(limit=2, purpose="batch", order="asc")] == [
        one.id for one in files
    ]
    page = asks.batches.list(limit=2)
    assert (len(page.data), page.has_more) == (2, True)
    with pytest.raises(openai.BadRequestError):
        asks.batches.list(after="batch_nowhere")
    with pytest.raises(openai.BadRequestError):
        asks.batches.list(limit=0)
    for batch in batches:
        over(asks, batch)


ENDPOINTS: dict[str, Any] = {
    "/v1/completions": {"prompt": "a b", "messages": None},
    "/v1/responses": {"input": "a b", "messages": None, "max_tokens": None, "max_output_tokens": 3},
    "/v1/messages": {},
    "/v1/embeddings": {"input": "a b", "messages": None, "max_tokens": None, "temperature": None},
}


@pytest.mark.parametrize("name", ["single", "gateway"])
@pytest.mark.parametrize("endpoint", ENDPOINTS)
def test_lines_of_every_endpoint_are_answered(name: str, endpoint: str, doors: Doors) -> None:
    door = doors[False][name]
    asks = client(door)
    file = uploaded(asks, *[line(n, door.model, endpoint, **ENDPOINTS[endpoint]) for n in range(3)])
    done = over(asks, created(asks, file, endpoint))
    assert done.status == "completed", done
    answers = rows(asks, done.output_file_id) or rows(asks, done.error_file_id)
    assert [one["response"]["status_code"] for one in answers.values()] == [200] * 3, answers
    assert done.usage
    assert done.usage.input_tokens > 0


BAD = {
    "no json": (b"{\n", "invalid_json_line", 1),
    "another endpoint": (line(1, "tiny", "/v1/completions"), "mismatched_endpoint", 1),
    "twice": (line(1, "tiny") * 2, "duplicate_custom_id", 2),
    "a stream": (line(1, "tiny") + b"\n" + line(2, "tiny", stream=True), "not_in_batches", 3),
    "nothing": (b"\n\n", "empty_file", None),
    "nested": (b'{"custom_id":"a","url":"/","body":' + b'{"a":' * 60_000, "invalid_json_line", 1),
}


@pytest.mark.parametrize("case", BAD)
def test_a_batch_of_a_file_that_is_wrong_fails_and_names_the_line(case: str, doors: Doors) -> None:
    asks = client(doors[False]["single"])
    content, code, number = BAD[case]
    failed = over(asks, created(asks, uploaded(asks, content)))
    assert failed.status == "failed"
    assert failed.errors
    assert failed.errors.data
    assert (failed.errors.data[0].code, failed.errors.data[0].line) == (code, number)


def test_what_cannot_be_uploaded_or_begun_is_said(doors: Doors) -> None:
    asks = client(doors[False]["single"])
    with pytest.raises(openai.BadRequestError) as wrong:
        asks.files.create(file=("a", b"x"), purpose="fine-tune")
    assert wrong.value.param == "purpose"
    file = uploaded(asks, line(1, "tiny"))
    for fields, param in (
        ({"endpoint": "/v1/images"}, "endpoint"),
        ({"window": "soon"}, "completion_window"),
        ({"window": "8d"}, "completion_window"),
    ):
        with pytest.raises(openai.BadRequestError) as wrong:
            created(asks, file, **fields)  # type: ignore[arg-type]
        assert wrong.value.param == param
    for header in ("x-weighbridge-lables", "x_weighbridge_labels", "weighbridge-labels"):
        misspelt = {"extra_headers": {header: "patient"}}
        with pytest.raises(openai.BadRequestError, match="is not known here"):
            created(asks, file, **misspelt)
        with pytest.raises(openai.BadRequestError, match="is not known here"):
            asks.files.create(file=("a", line(1, "tiny")), purpose="batch", **misspelt)  # type: ignore[arg-type]


def test_a_batch_whose_time_is_over_expires_and_one_that_is_cancelled_keeps_what_it_has(doors: Doors) -> None:
    door = doors[False]["single"]
    asks = client(door)
    slow = {"max_tokens": 800, "ignore_eos": True}
    file = uploaded(asks, line(0, door.model), *[line(n, door.model, **slow) for n in range(1, 60)])
    expiring = created(asks, file, window="1s")
    done = over(asks, expiring)
    assert done.status == "expired"
    assert done.expired_at
    assert done.request_counts
    errors = rows(asks, done.error_file_id)
    assert done.request_counts.failed == len(errors) > 0
    assert {one["error"]["code"] for one in errors.values()} == {"batch_expired"}
    assert done.request_counts.completed + len(errors) == 60
    batch = created(asks, file)
    over(asks, batch, states=("in_progress",))
    with pytest.raises(openai.ConflictError):
        asks.files.delete(file.id)
    cancelling = Batch.model_validate_json(asks.batches.with_raw_response.cancel(batch.id).text, strict=True)
    assert cancelling.status in ("cancelling", "cancelled")
    done = over(asks, batch)
    assert done.status == "cancelled"
    assert done.cancelled_at
    assert done.request_counts
    assert len(rows(asks, done.output_file_id)) == done.request_counts.completed < 60
    with pytest.raises(openai.BadRequestError):
        asks.batches.cancel(batch.id)
    deadline = time.monotonic() + 10
    while door.holds():
        assert time.monotonic() < deadline, door.holds()
        time.sleep(0.02)


def test_a_batch_stands_still_while_somebody_waits_for_an_answer(doors: Doors) -> None:
    door = doors[False]["single"]
    asks = client(door)
    slow = {"max_tokens": 400, "ignore_eos": True}
    batch = created(asks, uploaded(asks, *[line(n, door.model, **slow) for n in range(40)]))
    over(asks, batch, states=("in_progress",))
    time.sleep(0.3)  # its lines are under way

    def ask(tokens: int) -> None:
        asks.chat.completions.create(
            model=door.model,
            messages=[{"role": "user", "content": "Now?"}],
            max_tokens=tokens,
            extra_body={"ignore_eos": True},
        )

    with ThreadPoolExecutor(1) as others:
        long = others.submit(ask, 400)
        time.sleep(0.2)
        before = asks.batches.retrieve(batch.id).request_counts
        long.result()
        after = asks.batches.retrieve(batch.id).request_counts
    assert before
    assert after
    assert after.completed <= before.completed + 8  # nothing but what was all but done
    asks.batches.cancel(batch.id)
    over(asks, batch)


@every_door
def test_what_is_not_here_says_what_is(name: str, doors: Doors) -> None:
    door = doors[True][name]
    asks = client(door, "alice")
    absent: dict[str, Any] = {
        "chat": lambda: asks.moderations.create(input="a"),
        "input_audio": lambda: asks.audio.transcriptions.create(model="a", file=("a.wav", b"a")),
        "/v1/chat/completions": lambda: asks.audio.speech.create(model="a", voice="alloy", input="a"),
        "image_url": lambda: asks.images.generate(prompt="a"),
        "/v1/embeddings": lambda: asks.vector_stores.list(),
    }
    for instead, ask in absent.items():
        with pytest.raises(openai.NotFoundError, match=instead) as missing:
            ask()
        assert missing.value.code == "not_here"
    assert door.get("/v1/imagesque").json["error"]["code"] == "not_found"
