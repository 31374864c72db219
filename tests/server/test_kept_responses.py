"""What is kept of responses: within bounds, for a time, and not a moment longer; on disk nothing is left of it."""

from __future__ import annotations

import asyncio
import sqlite3
from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from weighbridge.errors import BadInput
from weighbridge.fleet.config.keeping import KeepSettings
from weighbridge.server.responses.file import RESPONSES, ResponseFile
from weighbridge.server.responses.keeper import KEPT_S, ResponseKeeper
from weighbridge.server.responses.record import RECORD_BYTES, KeptResponse, ResponseMemory
from weighbridge.wire.errors import ApiError

TENANT_BYTES, ALL_BYTES, HOUR = 3 * RECORD_BYTES, 5 * RECORD_BYTES, 100.0


def record(name: str, tenant: str = "a", text: str = "", previous: str | None = None) -> KeptResponse:
    said = '{"type":"message","role":"user","content":[{"type":"input_text","text":"%s"}],"id":"%s.in"}'
    response = b'{"output":[],"background":false}'
    given = f"[{said % (text, name)}]".encode()
    return KeptResponse(name, tenant, 1000.0, response, given, previous, names=(f"{name}.in", "same"))


class MemoryMachine(RuleBasedStateMachine):
    """Whatever comes in whatever order: bounds hold, sums are right, and nothing is kept for longer than it should."""

    def __init__(self) -> None:
        super().__init__()
        self.memory = ResponseMemory(tenant_bytes=TENANT_BYTES, all_bytes=ALL_BYTES, kept_s=HOUR)
        self.now = 0.0
        self.made: dict[str, tuple[float, KeptResponse]] = {}  # when it was last used
        self.holding: list[tuple[str, int]] = []

    @rule(
        name=st.sampled_from("uvwxyz"), tenant=st.sampled_from("abc"), size=st.integers(0, 4 * RECORD_BYTES)
    )
    def add(self, name: str, tenant: str, size: int) -> None:
        one = record(name, tenant, "x" * size)
        self.made.pop(name, None)
        if self.memory.add(one, self.now):
            self.made[name] = (self.now, one)
        else:
            assert self.memory.get(name, self.now) is None

    @rule(name=st.sampled_from("uvwxyz"))
    def touch(self, name: str) -> None:
        self.memory.expire(self.now)
        if self.memory.get(name, self.now) is not None:
            self.memory.touch(name, self.now)
            self.made[name] = (self.now, self.made[name][1])

    @rule(name=st.sampled_from("uvwxyz"))
    def remove(self, name: str) -> None:
        self.memory.remove(name)
        assert self.memory.get(name, self.now) is None
        assert self.memory.with_item(f"{name}.in", None, self.now) is None

    @rule(tenant=st.sampled_from("abc"), size=st.integers(1, TENANT_BYTES))
    def hold(self, tenant: str, size: int) -> None:
        if self.memory.hold(tenant, size):
            self.holding.append((tenant, size))

    @precondition(lambda self: self.holding)
    @rule()
    def let_go(self) -> None:
        self.memory.let_go(*self.holding.pop())

    @rule(seconds=st.floats(0, HOUR))
    def wait(self, seconds: float) -> None:
        self.now += seconds

    @invariant()
    def bounds_hold_and_sums_are_right(self) -> None:
        self.memory.expire(self.now)
        kept = {name: self.memory.get(name, self.now) for name in self.memory}
        held = sum(size for _, size in self.holding)
        assert self.memory.bytes == held + sum(one.size for one in kept.values() if one) <= ALL_BYTES
        for tenant in "abc":
            mine = sum(one.size for one in kept.values() if one and one.tenant == tenant)
            assert mine + sum(size for whose, size in self.holding if whose == tenant) <= TENANT_BYTES
        for name, one in kept.items():
            used, made = self.made[name]
            assert one is made
            assert self.now < used + HOUR
            assert self.memory.with_item(f"{name}.in", made.tenant, self.now) is one
            same = {other.tenant for other in kept.values() if other}
            for tenant in "abc":
                found = self.memory.with_item("same", tenant, self.now)
                assert (found.tenant if found else None) == (tenant if tenant in same else None)


MemoryMachine.TestCase.settings = settings(max_examples=30)
TestMemory = MemoryMachine.TestCase


def test_a_noisy_tenant_makes_room_of_its_own() -> None:
    memory = ResponseMemory(tenant_bytes=10 * RECORD_BYTES, all_bytes=10 * RECORD_BYTES, kept_s=HOUR)
    memory.add(record("quiet", "b"), 0.0)
    for number in range(50):
        assert memory.add(record(str(number), "a"), 1.0 + number)
    assert memory.get("quiet", 60.0) is not None
    assert memory.get("49", 60.0) is not None
    assert memory.get("0", 60.0) is None


# -- the file --------------------------------------------------------------------------------------------


def on_disk(path: Path) -> bytes:
    parts = [Path(f"{path}{end}") for end in ("", "-wal", "-shm", "-journal")]
    return b"".join(part.read_bytes() for part in parts if part.exists())


def test_a_file_gives_back_what_it_was_given(tmp_path: Path) -> None:
    file = ResponseFile(tmp_path / "deep" / "r.sqlite")
    one = replace(
        record("r1", "ten ant", "héllo", "r0"), labels=frozenset({"a b", "ärztlich"}), only_edge=True
    )
    file.put(one, 2000.0)
    assert file.get("r1", 1999.0) == replace(one, names=())
    assert file.get("r1", 2000.0) is None
    assert file.with_item("r1.in", "ten ant", 0.0) == replace(one, names=())
    assert file.with_item("r1.in", None, 0.0) is not None
    assert file.with_item("r1.in", "b", 0.0) is None
    file.close()
    assert ResponseFile(tmp_path / "deep" / "r.sqlite").get("r1", 0.0) is not None
    assert (tmp_path / "deep" / "r.sqlite").stat().st_mode & 0o077 == 0, "nobody else reads it"


@settings(max_examples=8)
@given(
    st.lists(st.sampled_from(["remove", "expire", "push"]), min_size=1, max_size=3), st.integers(1, 30_000)
)
def test_nothing_is_left_of_what_went(
    tmp_path_factory: pytest.TempPathFactory, ways: list[str], size: int
) -> None:
    path = tmp_path_factory.mktemp("file") / "r.sqlite"
    file = ResponseFile(path, tenant_bytes=100_000, all_bytes=120_000)
    file.put(record("stays", "b", "harmless"), 1e9)
    for number, way in enumerate(ways):
        secret, name = f"s3cret{number} " + "y" * size, f"gone{number}"
        file.put(record(name, "a", secret), 2000.0)
        assert f"s3cret{number}".encode() in on_disk(path)
        if way == "remove":
            assert file.remove(name)
            assert not file.remove(name)
        elif way == "expire":
            assert file.purge(2000.0) == 1
        else:
            for other in range(4):
                file.put(record(f"more{other}.{number}", "a", "z" * 40_000), 1e9)
        assert file.get(name, 0.0) is None
        assert f"s3cret{number}".encode() not in on_disk(path)
        assert name.encode() not in on_disk(path)
    assert file.get("stays", 0.0) is not None
    file.close()


def test_what_a_reader_keeps_from_being_erased_is_erased_at_the_next_look(tmp_path: Path) -> None:
    path = tmp_path / "r.sqlite"
    file = ResponseFile(path)
    file.put(record("gone", "a", "s3cret"), 2000.0)
    reader = sqlite3.connect(path, isolation_level=None)
    reader.execute("BEGIN")
    reader.execute("SELECT * FROM responses").fetchall()
    file._db.execute("PRAGMA busy_timeout=10")
    assert file.remove("gone")
    assert b"s3cret" in on_disk(path), "the reader still sees it"
    reader.execute("COMMIT")
    reader.close()
    assert file.purge(0.0) == 0
    assert b"s3cret" not in on_disk(path)


def test_a_file_of_another_kind_or_of_the_future_is_refused(tmp_path: Path) -> None:
    other = tmp_path / "other.sqlite"
    sqlite3.connect(other).execute("CREATE TABLE t (x)").connection.close()
    with pytest.raises(BadInput, match="no file of responses"):
        ResponseFile(other)
    later = tmp_path / "later.sqlite"
    ResponseFile(later).close()
    with sqlite3.connect(later) as db:
        db.execute(f"PRAGMA user_version={RESPONSES.version + 1}")
    with pytest.raises(BadInput, match="newer Weighbridge"):
        ResponseFile(later)


# -- the keeper ------------------------------------------------------------------------------------------


def keeper_at(path: Path, clock: list[float], **settings: object) -> ResponseKeeper:
    made = KeepSettings(responses_file=path, **settings)  # type: ignore[arg-type]
    return ResponseKeeper(made, 10_000, clock=lambda: clock[0])


@pytest.mark.parametrize(
    ("mode", "store", "private", "written"),
    [
        ("asked", True, False, True),
        ("asked", None, False, False),
        ("asked", False, False, False),
        ("asked", True, True, False),
        ("always", None, False, True),
        ("always", None, True, False),
        ("always", False, False, False),
        ("never", True, False, False),
    ],
)
async def test_what_is_written_down(
    tmp_path: Path, mode: str, store: bool | None, private: bool, written: bool
) -> None:
    path = tmp_path / "r.sqlite"
    keeper = keeper_at(path, [1000.0], responses_on_disk=mode)
    keeper.keep(replace(record("r", text="t3xt"), private=private), store)
    assert await keeper.find("r", "a") is not None
    await keeper.close()
    assert (b"t3xt" in on_disk(path)) == written


async def test_an_hour_in_memory_and_its_days_on_disk(tmp_path: Path) -> None:
    clock = [1000.0]
    keeper = keeper_at(tmp_path / "r.sqlite", clock, responses_days=1.0)
    keeper.keep(record("memory"), None)
    keeper.keep(record("disk"), True)
    clock[0] += KEPT_S
    assert await keeper.find("memory", None) is None
    assert await keeper.find("disk", None) is not None
    await keeper.close()
    again = keeper_at(tmp_path / "r.sqlite", clock)
    again.start()
    assert await again.find("disk", "a") is not None
    assert await again.find("disk", "b") is None
    clock[0] = 1000.0 + 86_400.0
    assert await again.find("disk", "a") is None
    await again.close()


@pytest.mark.parametrize("back", [7200.0, 365 * 86_400.0])
def test_a_clock_that_was_ahead_keeps_nothing_in_memory_for_longer(back: float) -> None:
    memory = ResponseMemory(tenant_bytes=10 * RECORD_BYTES, all_bytes=10 * RECORD_BYTES, kept_s=KEPT_S)
    memory.add(record("before"), 1000.0 + back)
    memory.add(record("behind"), 1000.0)
    assert memory.get("before", 1000.0 + KEPT_S - 1.0) is not None
    assert memory.get("before", 1000.0 + KEPT_S) is None
    assert memory.get("behind", 1000.0 + KEPT_S) is None


async def test_a_conversation_lasts_as_long_as_it_goes_on(tmp_path: Path) -> None:
    clock = [1000.0]
    keeper = keeper_at(tmp_path / "r.sqlite", clock)
    keeper.keep(record("r0", text="zero"), None)
    for number in range(1, 4):
        clock[0] += KEPT_S * 0.9
        told = await keeper.conversation(f"r{number - 1}", "a")
        assert len(told.items) == number
        keeper.keep(record(f"r{number}", text=str(number), previous=f"r{number - 1}"), None)
    assert await keeper.erase("r0", "a")
    with pytest.raises(ApiError, match="'r0', a turn before 'r3', is gone") as gone:
        await keeper.conversation("r3", "a")
    assert gone.value.code == "previous_response_not_found"
    await keeper.close()


async def test_a_conversation_is_bounded_also_one_that_goes_on_from_itself(tmp_path: Path) -> None:
    keeper = keeper_at(tmp_path / "r.sqlite", [1000.0])
    keeper.keep(record("r0", previous="r0"), None)
    with pytest.raises(ApiError, match="more than this server puts together"):
        await keeper.conversation("r0", "a")
    await keeper.close()


async def test_a_file_that_fails_costs_no_answer(tmp_path: Path) -> None:
    path = tmp_path / "r.sqlite"
    path.mkdir()
    keeper = keeper_at(path, [1000.0])
    keeper.keep(record("r"), True)
    await asyncio.sleep(0)
    assert await keeper.find("r", "a") is not None
    assert keeper.unwritten == 1
    await keeper.close()
    with pytest.raises(BadInput):
        keeper_at(path, [1000.0], responses_on_disk="always")
