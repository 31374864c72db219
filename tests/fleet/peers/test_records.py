"""Records of members: one order of them all, and nothing believed that no gateway of ours sealed."""

from __future__ import annotations

import random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.fleet.peers.in_any_order import taken_in
from weighbridge.fleet.peers.records import MemberRecord, Rest
from weighbridge.fleet.peers.registers import (
    LARGEST_RECORD,
    REMOVED_KEPT,
    Reader,
    RefusedRecord,
    Roster,
    written,
)
from weighbridge.fleet.peers.seal import Seal

SEAL = Seal(b"k" * 32, "members")
READER: Reader[MemberRecord] = Reader(MemberRecord, SEAL)

JSON = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**53), 2**53) | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
    max_leaves=5,
)
RECORDS = st.builds(
    MemberRecord,
    name=st.sampled_from("abc"),
    model=st.just("m"),
    rest=st.sampled_from(Rest),
    version=st.integers(1, 4),
    at=st.integers(0, 3).map(float),
    by=st.sampled_from(["ann", "bob"]),
    entry=st.none() | st.dictionaries(st.text(max_size=5), JSON, max_size=3),
)


@given(RECORDS)
def test_what_is_written_is_read_again(record: MemberRecord) -> None:
    assert READER.read(record.name, written(record, SEAL)) == record


@given(st.lists(RECORDS, max_size=12), st.randoms(use_true_random=False))
def test_records_come_to_the_same_in_whatever_order_they_come(
    records: list[MemberRecord], rng: random.Random
) -> None:
    _, one, other = taken_in(records, rng)
    assert one.all() == other.all()
    assert one.newer_than(other.all()) == []


@given(st.lists(RECORDS, max_size=8), st.lists(RECORDS, max_size=8))
def test_what_one_has_beyond_another_makes_them_equal(
    mine: list[MemberRecord], theirs: list[MemberRecord]
) -> None:
    both = {(one.name, one.rank): one for one in [*mine, *theirs]}
    a: Roster[MemberRecord] = Roster()
    b: Roster[MemberRecord] = Roster()
    for roster, records in ((a, mine), (b, theirs)):
        for record in records:
            roster.take(both[record.name, record.rank])
    for record in a.newer_than(dict(b.all())):
        assert b.take(record)
    for record in b.newer_than(dict(a.all())):
        assert a.take(record)
    assert a.all() == b.all()


@given(st.binary(max_size=300))
def test_bytes_that_nobody_wrote_are_refused(data: bytes) -> None:
    with pytest.raises(RefusedRecord):
        READER.read("a", data)


@given(RECORDS, st.data())
def test_a_record_with_one_byte_changed_is_refused(record: MemberRecord, data: st.DataObject) -> None:
    text = bytearray(written(record, SEAL))
    at = data.draw(st.integers(0, len(text) - 1))
    text[at] ^= data.draw(st.integers(1, 255))
    with pytest.raises(RefusedRecord):
        READER.read(record.name, bytes(text))


def record(**more: object) -> MemberRecord:
    fields = {"name": "a", "model": "m", "rest": Rest.HERE, "version": 1, "at": 1.0, "by": "ann"}
    return MemberRecord(**{**fields, **more})  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("data", "why"),
    [
        (written(record(name="b"), SEAL), "another one's"),
        (written(record(), Seal(b"other" * 8, "members")), "not sealed"),
        (written(record(), Seal(b"k" * 32, "speeds")), "not sealed"),
        (b"1 1.000000 " + b"0" * 32 + b' {"name": "a"}', "malformed"),
        (b"1 1.000000 " + b"0" * 32 + b" " + b"[" * 100_000, "no record"),
        (b"1 1.000000 " + b"0" * 32 + b" " + b"[" * 20_000, "malformed"),
        (b"9" * 17 + b" 1.000000 " + b"0" * 32 + b" {}", "no record"),
        (b"x" * (LARGEST_RECORD + 1), "no record"),
    ],
)
def test_what_is_refused_says_why(data: bytes, why: str) -> None:
    with pytest.raises(RefusedRecord, match=why):
        READER.read("a", data)


def test_an_added_replica_that_was_removed_long_ago_is_forgotten_and_a_files_is_not() -> None:
    roster: Roster[MemberRecord] = Roster()
    roster.take(record(rest=Rest.REMOVED, at=10.0, entry={"url": "http://h:1"}))
    roster.take(record(name="b", rest=Rest.DRAINING, at=10.0, entry={"url": "http://h:2"}))
    roster.take(record(name="c", rest=Rest.REMOVED, at=10.0, is_secret=True))
    roster.take(record(name="d", rest=Rest.REMOVED, at=10.0))
    assert roster.forget_past(10.0 + REMOVED_KEPT) == []
    assert sorted(roster.forget_past(11.0 + REMOVED_KEPT)) == ["a", "c"]
    assert set(roster.all()) == {"b", "d"}
