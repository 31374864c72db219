"""Files and batches as they are kept: within bounds, each line answered once, and nothing left of what is erased."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.fleet.backends import until
from weighbridge.cost.usage import Usage
from weighbridge.engine.request import SPARE_CLASS
from weighbridge.errors import BadInput
from weighbridge.fleet.limits.spare import SpareRoom, SpareSeat, spare_room
from weighbridge.server.batch import late as lateness
from weighbridge.server.batch import runner as running
from weighbridge.server.batch.answering import LineAnswer
from weighbridge.server.batch.late import SHORTEST_PAUSE, STILL, LateLines
from weighbridge.server.batch.lines import (
    BESIDE,
    MAX_LINES,
    MAX_PROBLEMS,
    MOST_MODELS,
    BatchLine,
    read_lines,
    restricted_models,
    window_seconds,
)
from weighbridge.server.batch.records import BatchRecord, FileRecord
from weighbridge.server.batch.runner import BatchWork
from weighbridge.server.batch.store import PIECE, BatchStore, LineOutcome, NoRoom
from weighbridge.server.batch.upload import boundary_of, read_form

NOW, CHAT = 1000.0, "/v1/chat/completions"


def file(name: str, content: bytes, tenant: str = "a", expires: float = 2000.0) -> FileRecord:
    return FileRecord(name, tenant, "in.jsonl", "batch", len(content), int(NOW), int(expires))


def batch(name: str, of: str, tenant: str = "a", expires: float = 1500.0) -> BatchRecord:
    return BatchRecord(name, tenant, True, CHAT, of, "24h", int(NOW), int(expires))


def content_of(count: int, text: str = "x") -> bytes:
    lines = [
        {"custom_id": f"n{n}", "method": "POST", "url": CHAT, "body": {"model": "m", "text": f"{n} {text}"}}
        for n in range(count)
    ]
    return b"".join(json.dumps(line).encode() + b"\n" for line in lines)


@contextmanager
def store_at(
    path: Path | None, tenant_bytes: int = 1 << 20, all_bytes: int = 2 << 20
) -> Iterator[BatchStore]:
    store = BatchStore(path, tenant_bytes=tenant_bytes, all_bytes=all_bytes)
    try:
        yield store
    finally:
        store.close()


@given(
    lines=st.lists(st.binary(max_size=40).filter(lambda one: b"\n" not in one), max_size=20),
    end=st.sampled_from([b"", b"\n", b"\r\n"]),
)
def test_lines_are_found_where_they_are_or_said_to_be_wrong(lines: list[bytes], end: bytes) -> None:
    good = [b'{"custom_id":"%d","url":"/u","body":{"t":%d}}' % (n, n) for n in range(3)]
    mixed = [each for pair in zip(good, [*lines, b"", b"", b""], strict=False) for each in pair]
    content = (end or b"\n").join(mixed)
    read = read_lines(content, "/u", 1 << 20)
    assert len(read.lines) == 3
    for line in read.lines:
        assert json.loads(content[line.start : line.start + line.length])["custom_id"] == line.name
    blank = sum(not one.strip() for one in mixed)
    assert len(read.problems) == len(mixed) - blank - 3


def line_of(name: str, body: str = "{}") -> bytes:
    return b'{"custom_id":"%b","url":"/u","body":%b}' % (name.encode(), body.encode())


@pytest.mark.parametrize(
    ("content", "code", "problems"),
    [
        (line_of("a") + b"\n" + line_of("b", json.dumps({"x": "x" * (BESIDE + 2000)})), "line_too_long", 1),
        (b"[" * 3_000 + b"\n" + line_of("a"), "invalid_json_line", 1),
        (line_of("a", "[" * 2_500) + b"\n", "invalid_json_line", 1),
        (b"\n".join([line_of("a")] * 1_000), "duplicate_custom_id", MAX_PROBLEMS),
        (b"\n".join(line_of(f"n{n}") for n in range(MAX_LINES + 1)), "too_many_requests", 1),
        (b"{}\n" * 1_000_000, "invalid_json_line", MAX_PROBLEMS),
    ],
    ids=["long line", "deep line", "deep body", "one name", "many lines", "a million lines"],
)
def test_a_file_is_read_within_bounds_and_never_written_down_unknown(
    content: bytes, code: str, problems: int
) -> None:
    """What no batch would take is said line by line, at most so many; a file too odd to know may not be on disk."""
    read = read_lines(content, "/u", 1_000)
    assert [one.code for one in read.problems] == [code] * problems
    known = restricted_models(content, 1_000)
    assert (
        known is None
        if code in ("line_too_long", "too_many_requests")
        else known is not None or len(content) > 10**6
    )


def test_a_file_that_names_more_models_than_can_be_asked_for_is_not_known() -> None:
    lines = [line_of(f"n{n}", json.dumps({"model": f"m{n}"})) for n in range(MOST_MODELS + 2)]
    assert restricted_models(b"\n".join(lines), 1_000) is None
    assert restricted_models(b"\n".join(lines[:5]), 1_000) == {(f"m{n}", False) for n in range(5)}


@settings(max_examples=40)
@given(
    fields=st.dictionaries(
        st.text(st.characters(codec="ascii", exclude_characters='"\\\r\n;'), min_size=1),
        st.text(),
        max_size=4,
    ),
    content=st.binary(max_size=300),
    cut=st.integers(0, 400),
)
def test_forms_are_read_as_they_were_written_and_nothing_else_is_one(
    fields: dict[str, str], content: bytes, cut: int
) -> None:
    fields.pop("file", None)
    parts = [
        b'Content-Disposition: form-data; name="%b"\r\n\r\n%b'
        % (name.encode(), value.encode("utf-8", "replace"))
        for name, value in fields.items()
    ]
    parts.append(
        b'Content-Disposition: form-data; name="file"; filename="a \\"b\\".txt"\r\nContent-Type: x/y\r\n\r\n'
        + content
    )
    body = b"".join(b"--XyZ\r\n" + part + b"\r\n" for part in parts) + b"--XyZ--\r\n"
    if b"--XyZ" in content or any("--XyZ" in value for value in fields.values()):
        return
    form = read_form(body, b"XyZ")
    assert form.file == ('a "b".txt', content)
    assert form.fields == {name: value.encode("utf-8", "replace").decode() for name, value in fields.items()}
    end = body.index(b"--XyZ--")
    if cut < end:
        with pytest.raises(ValueError):
            read_form(body[:cut], b"XyZ")


def test_a_boundary_is_read_with_and_without_quotes() -> None:
    assert boundary_of('multipart/form-data; boundary="a b"') == b"a b"
    assert boundary_of("Multipart/Form-Data; charset=x; Boundary=abc") == b"abc"
    assert boundary_of("application/json; boundary=abc") is None


@pytest.mark.parametrize(
    ("text", "seconds"),
    [("24h", 86400), ("90s", 90), ("7d", 604800), ("0s", None), ("8d", None), ("24", None), ("١h", None)],
)
def test_completion_windows(text: str, seconds: int | None) -> None:
    assert window_seconds(text) == seconds


@settings(max_examples=20)
@given(
    sizes=st.lists(st.integers(0, 3 * PIECE), max_size=4),
    start=st.integers(0, PIECE),
    length=st.integers(0, 2 * PIECE),
)
def test_contents_come_back_whole_and_in_slices(sizes: list[int], start: int, length: int) -> None:
    with store_at(None, 16 << 20, 16 << 20) as store:
        for number, size in enumerate(sizes):
            content = bytes(range(256)) * (size // 256) + b"e" * (size % 256)
            store.add_file(file(f"f{number}", content), content)
            assert store.content(f"f{number}") == content
            assert b"".join(store.piece(f"f{number}", n) or b"" for n in range(size // PIECE + 1)) == content
            lines = [BatchLine(1, start, length, "n", "m", False)]
            store.add_batch(batch(f"b{number}", f"f{number}"), 3000.0, 9)
            store.begin(f"b{number}", lines, None, NOW)
            assert (
                store.waiting(batch(f"b{number}", f"f{number}"), 0, 9)[0][1]
                == content[start : start + length]
            )
        assert store.used("a") == store.used() >= sum(sizes)


def test_a_tenant_keeps_within_its_bytes_and_all_within_theirs() -> None:
    with store_at(None, 1000, 1500) as store:
        store.add_file(file("f1", b"x" * 900), b"x" * 900)
        with pytest.raises(NoRoom) as full:
            store.add_file(file("f2", b"x" * 200), b"x" * 200)
        assert full.value.mine
        store.add_file(file("f3", b"x" * 500, "b"), b"x" * 500)
        with pytest.raises(NoRoom) as full:
            store.add_file(file("f4", b"x" * 200, "c"), b"x" * 200)
        assert not full.value.mine
        assert store.remove_file("f1")
        store.add_file(file("f4", b"x" * 200, "c"), b"x" * 200)
        assert (store.used("a"), store.used("b"), store.used()) == (0, 500, 700)


def test_each_line_is_counted_once_and_what_was_answered_becomes_files() -> None:
    content = content_of(4)
    with store_at(None) as store:
        store.add_file(file("f", content), content)
        store.add_batch(batch("batch_1", "f"), 3000.0, 1)
        assert not store.add_batch(batch("batch_2", "f"), 3000.0, 1)
        lines = read_lines(content, CHAT, 1 << 20).lines
        store.begin("batch_1", lines, "m", NOW)
        first = LineOutcome(lines[0], False, b'{"a":1}\n', Usage(3, 2, 1))
        for _ in range(3):
            store.put("batch_1", [first, LineOutcome(lines[2], True, b'{"c":1}\n', None)])
        record = store.batch("batch_1", NOW)
        assert record
        assert (record.counts.completed, record.counts.failed, record.usage["prompt_tokens"]) == (
            1,
            1,
            3,
        )
        assert [line.number for line, _ in store.waiting(record, 0, 9)] == [2, 4]
        assert not store.remove_file("f")  # it is being read
        store.finish("batch_1", "expired", NOW, 2500.0, ("batch_expired", "too late"))
        record = store.batch("batch_1", NOW)
        assert record
        assert record.output_file_id
        assert record.error_file_id
        assert record.counts.failed == 3
        assert store.content(record.output_file_id) == b'{"a":1}\n'
        names = [
            json.loads(one)["custom_id"] for one in store.content(record.error_file_id).splitlines()[::2]
        ]
        assert names == ["n1", "n3"]
        assert store.purge(5000.0)
        assert store.used() == 0
        assert store.batch("batch_1", NOW) is None
        assert store.file("f", NOW) is None


def test_an_answer_without_room_becomes_a_short_error() -> None:
    content = content_of(1)
    with store_at(None, 4000, 8000) as store:
        store.add_file(file("f", content), content)
        store.add_batch(batch("batch_1", "f"), 3000.0, 1)
        line = read_lines(content, CHAT, 1 << 20).lines[0]
        store.begin("batch_1", [line], "m", NOW)
        store.put("batch_1", [LineOutcome(line, False, b"x" * 9000, None)])
        store.finish("batch_1", "completed", NOW, 2500.0, None)
        record = store.batch("batch_1", NOW)
        assert record
        assert record.output_file_id is None
        assert record.error_file_id
        assert json.loads(store.content(record.error_file_id))["error"]["code"] == "storage_full"


def test_nothing_is_left_on_disk_of_what_was_erased(tmp_path: Path) -> None:
    path, secret = tmp_path / "b.sqlite", "a-secret-that-goes"
    content = content_of(3, secret)
    with store_at(path) as store:
        store.add_file(file("f", content), content)
        store.add_batch(batch("batch_1", "f"), 1800.0, 1)
        lines = read_lines(content, CHAT, 1 << 20).lines
        store.begin("batch_1", lines, "m", NOW)
        store.put(
            "batch_1", [LineOutcome(line, False, f'{{"t":"{secret}"}}\n'.encode(), None) for line in lines]
        )
        store.finish("batch_1", "completed", NOW, 1900.0, None)
        assert any(secret.encode() in one.read_bytes() for one in tmp_path.iterdir())
        store.purge(2100.0)
    assert not any(secret.encode() in one.read_bytes() for one in tmp_path.iterdir())


def test_a_file_that_is_something_else_is_refused_in_one_sentence(tmp_path: Path) -> None:
    path = tmp_path / "b.sqlite"
    path.write_bytes(b"no database at all, but long enough to be one" * 100)
    with pytest.raises(BadInput, match="no SQLite file"):
        BatchStore(path, tenant_bytes=1, all_bytes=1)


# -- what is spare -------------------------------------------------------------------------------------------

SEATS = st.builds(SpareSeat, st.integers(1, 64), st.booleans(), st.booleans())


@given(seats=st.lists(SEATS, max_size=8), each=st.integers(1, 32), waiting=st.booleans())
def test_spare_room_is_never_of_those_that_others_need(
    seats: list[SpareSeat], each: int, waiting: bool
) -> None:
    room = spare_room(seats, each, waiting)
    idle = [one for one in seats if not one.is_busy]
    assert room.for_new <= room.for_old or waiting
    assert room.for_new <= each * len(idle)
    assert room.for_new == 0 if waiting or not idle else room.for_new >= len(idle)
    assert room.for_old <= sum(max(one.seats // 2, 1) for one in seats if not one.is_busy or one.stands_aside)


# -- the work ------------------------------------------------------------------------------------------------


@dataclass
class Scripted:
    """What answers lines: as a test says, by the text of a line."""

    say: Callable[[str, int], LineAnswer]
    seconds: float = 0.0
    room: SpareRoom = field(default_factory=lambda: SpareRoom(4, 4))
    draining: bool = False
    asked: list[str] = field(default_factory=list)
    late: list[str] = field(default_factory=list)  # what was asked in a better class than what is spare
    still: bool = False  # others are served: lines of the last class stand still
    max_body: int = 1 << 20
    now: int = 0
    most: int = 0
    ended: int = 0

    def spare_room(self, model: str) -> SpareRoom:
        return self.room

    async def answer(self, record: BatchRecord, text: bytes, priority: int) -> LineAnswer:
        name = json.loads(text)["custom_id"]
        self.asked.append(name)
        if priority < SPARE_CLASS:
            self.late.append(name)
        elif self.still:
            await asyncio.Event().wait()
        self.now += 1
        self.most = max(self.most, self.now)
        try:
            await asyncio.sleep(self.seconds)
            self.ended += 1
            return self.say(name, self.asked.count(name))
        finally:
            self.now -= 1


def fine(name: str, tries: int) -> LineAnswer:
    return LineAnswer(200, json.dumps({"said": name}).encode(), "t")


async def finished(store: BatchStore, names: list[str]) -> list[BatchRecord]:
    def found() -> list[BatchRecord]:
        records = [store.batch(name, NOW) for name in names]
        return [one for one in records if one is not None and one.is_over]

    await until(lambda: len(found()) == len(names), 10.0)
    return found()


def work_of(
    store: BatchStore, scripted: Scripted, wall: Callable[[], float] = lambda: NOW, late_share: float = 0.0
) -> BatchWork:
    service: Any = scripted
    return BatchWork(store, service, service, 1000.0, late_share=late_share, wall=wall)


def prepared(store: BatchStore, names: list[str], count: int) -> None:
    for name in names:
        content = content_of(count)
        store.add_file(file(f"f-{name}", content, name), content)
        store.add_batch(batch(name, f"f-{name}", name), 3000.0, 9)


def answers_of(store: BatchStore, record: BatchRecord) -> list[str]:
    content = store.content(record.output_file_id) if record.output_file_id else b""
    return [json.loads(one)["custom_id"] for one in content.splitlines()]


def test_lines_go_within_the_room_there_is_and_tenants_take_turns() -> None:
    async def scenario() -> None:
        with store_at(None) as store:
            prepared(store, ["batch_a", "batch_b"], 20)
            scripted = Scripted(fine, 0.002)
            work = work_of(store, scripted)
            work.start()
            for record in await finished(store, ["batch_a", "batch_b"]):
                assert record.status == "completed"
                assert record.counts.completed == 20
                assert sorted(answers_of(store, record)) == sorted(f"n{n}" for n in range(20))
            assert scripted.most <= 4
            assert len(scripted.asked) == 40
            assert scripted.asked.index("n10") < 40 - 8  # neither was done before the other began
            await work.close()

    asyncio.run(scenario())


def test_what_is_refused_for_now_is_tried_again_and_what_is_wrong_is_not(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(running, "FIRST_WAIT", 0.01)

    def say(name: str, tries: int) -> LineAnswer:
        if name == "n1" and tries < 3:
            return LineAnswer(429, b'{"error":{}}', "", 0.01)
        if name == "n2":
            return LineAnswer(400, b'{"error":{"message":"no"}}', "t2")
        if name == "n3":
            return LineAnswer(502, b"not json", "")
        return fine(name, tries)

    async def scenario() -> None:
        with store_at(None) as store:
            prepared(store, ["batch_a"], 4)
            scripted = Scripted(say)
            work = work_of(store, scripted)
            work.start()
            (record,) = await finished(store, ["batch_a"])
            assert (record.counts.completed, record.counts.failed) == (2, 2)
            assert scripted.asked.count("n2") == 1
            assert scripted.asked.count("n3") == 4
            assert record.error_file_id
            errors = [json.loads(one) for one in store.content(record.error_file_id).splitlines()]
            assert [one["response"]["status_code"] for one in errors] == [400, 502]
            await work.close()

    asyncio.run(scenario())


def test_lines_give_way_to_others_and_go_on_behind_them(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(running, "FIRST_WAIT", 0.02)

    async def scenario() -> None:
        with store_at(None) as store:
            prepared(store, ["batch_a"], 8)
            scripted = Scripted(fine, 0.3)
            work = work_of(store, scripted)
            work.start()
            await until(lambda: scripted.now == 4)
            scripted.room = SpareRoom(0, 0)
            await until(lambda: not scripted.now)
            begun, ended = len(scripted.asked), scripted.ended
            await asyncio.sleep(0.2)
            assert len(scripted.asked) == begun
            scripted.room, scripted.seconds = SpareRoom(4, 4), 0.0
            (record,) = await finished(store, ["batch_a"])
            assert record.counts.completed == 8
            assert len(scripted.asked) == 8 + begun - ended
            await work.close()

    asyncio.run(scenario())


@pytest.mark.parametrize("room", [SpareRoom(4, 4), SpareRoom(0, 0)])
def test_a_late_batch_goes_on_line_by_line_on_a_machine_that_is_never_idle(
    room: SpareRoom, monkeypatch: pytest.MonkeyPatch
) -> None:
    """An engine holds lines still; a gateway has no room for them."""
    monkeypatch.setattr(lateness, "STILL", 0.05)
    monkeypatch.setattr(lateness, "STILL_SHARE", 0.0)
    monkeypatch.setattr(lateness, "SHORTEST_PAUSE", 0.01)
    now = [1300.0]  # the window is from 1000 to 1500

    async def scenario() -> None:
        with store_at(None) as store:
            prepared(store, ["batch_a"], 6)
            scripted = Scripted(fine, 0.01, room=room, still=True)
            work = work_of(store, scripted, lambda: now[0], late_share=0.25)
            work.start()
            await asyncio.sleep(0.3)
            assert not scripted.late  # there is time
            now[0] = 1400.0
            (record,) = await finished(store, ["batch_a"])
            assert record.counts.completed == 6
            assert sorted(answers_of(store, record)) == sorted(set(scripted.late))
            assert len(scripted.late) == 6  # one at a time, each once
            await work.close()

    asyncio.run(scenario())


@settings(max_examples=60)
@given(st.lists(st.tuples(st.floats(0.0, 20.0), st.floats(0.01, 30.0)), min_size=1, max_size=20))
def test_late_lines_take_half_of_the_time_at_most(steps: list[tuple[float, float]]) -> None:
    lines, clock, busy, begun = LateLines(0.25), 0.0, 0.0, None
    for pause, takes in steps:
        clock += pause
        if lines.may_begin("b", "m", clock):
            begun = clock if begun is None else begun
            lines.began("m", clock)
            assert not lines.may_begin("b", "m", clock)
            clock += takes
            busy += takes
            lines.ended("m", clock)
            assert not lines.may_begin("b", "m", clock + min(takes, SHORTEST_PAUSE) / 2)
    if begun is not None:
        assert begun >= STILL  # nobody is late who has just begun
        assert busy <= (clock - begun) / 2 + 30.0  # the last has not rested yet
    assert not LateLines(0.25).may_begin("b", "m", STILL + 1.0, 4000.0)
    assert lines.is_late(0.0, 100.0, 75.0)
    assert not lines.is_late(0.0, 100.0, 74.0)


def test_a_batch_that_gets_answers_on_what_is_spare_has_no_late_lines() -> None:
    lines = LateLines(0.25)
    for clock in range(100):
        lines.progressed("b", float(clock))
        assert not lines.may_begin("b", "m", clock + 1.0)


@pytest.mark.parametrize("stop", ["close", "crash"])
def test_another_process_goes_on_where_one_was_stopped(tmp_path: Path, stop: str) -> None:
    path = tmp_path / "b.sqlite"

    async def first() -> None:
        store = BatchStore(path, tenant_bytes=1 << 20, all_bytes=1 << 20)
        prepared(store, ["batch_a"], 30)
        scripted = Scripted(fine, 0.01)
        work = work_of(store, scripted)
        work.start()
        await until(lambda: scripted.ended >= 8)
        if stop == "close":
            await work.close()
        else:  # whatever was not written down is lost
            work._task.cancel()  # type: ignore[union-attr]
            work._outcomes.clear()
            work._lock.release()
        store.close()

    async def second() -> None:
        with store_at(path) as store:
            scripted = Scripted(fine)
            work, idle = work_of(store, scripted), work_of(store, Scripted(fine))
            work.start()
            await asyncio.sleep(0.02)
            idle.start()  # another process with the same file: it leaves the work to the first
            (record,) = await finished(store, ["batch_a"])
            assert record.counts.completed == 30
            assert answers_of(store, record) == [f"n{n}" for n in range(30)]
            assert len(scripted.asked) < 30
            await work.close()
            await idle.close()

    asyncio.run(first())
    asyncio.run(second())


def test_time_runs_out_and_a_drain_ends_what_is_under_way() -> None:
    async def scenario() -> None:
        with store_at(None) as store:
            prepared(store, ["batch_a"], 8)
            now = [NOW]
            scripted = Scripted(fine, 60.0)
            work = work_of(store, scripted, lambda: now[0])
            work.start()
            await until(lambda: scripted.now)
            scripted.draining = True
            await until(lambda: not scripted.now)
            scripted.draining = False
            now[0] = 1501.0
            (record,) = await finished(store, ["batch_a"])
            assert (record.status, record.counts.failed, scripted.now) == ("expired", 8, 0)
            await work.close()

    asyncio.run(scenario())
