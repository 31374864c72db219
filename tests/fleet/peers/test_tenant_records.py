"""Records of tenants: one order of them all, in which a revoked key stays so, and nothing believed that is not ours."""

from __future__ import annotations

import random

import pytest
from hypothesis import given
from hypothesis import strategies as st
from msgspec.structs import replace

from tests.fleet.peers.in_any_order import taken_in
from weighbridge.fleet.limits.stated import LimitsAsked
from weighbridge.fleet.peers.registers import REMOVED_KEPT, Reader, RefusedRecord, Roster, written
from weighbridge.fleet.peers.seal import Seal
from weighbridge.fleet.peers.tenant_records import (
    REVOKED,
    KeyRecord,
    LimitsRecord,
    TenantRecord,
    name_of_key,
    name_of_limits,
)

SEAL = Seal(b"k" * 32, "tenants")
READER: Reader[TenantRecord] = Reader(TenantRecord, SEAL)

_AT, _BY = st.integers(0, 3).map(float), st.sampled_from(["ann", "bob"])
_LIMITS = st.none() | st.builds(LimitsAsked, requests_per_minute=st.integers(1, 3))
_TENANTS = st.sampled_from(["t", "group/team ü", "key:x"])


def key(digest: str, **more: object) -> KeyRecord:
    fields = {
        "name": name_of_key(digest),
        "digest": digest,
        "tenant": "t",
        "version": 1,
        "at": 1.0,
        "by": "ann",
    }
    return KeyRecord(**{**fields, **more})  # type: ignore[arg-type]


def limits(tenant: str = "t", **more: object) -> LimitsRecord:
    fields = {"name": name_of_limits(tenant), "tenant": tenant, "version": 1, "at": 1.0, "by": "ann"}
    return LimitsRecord(**{**fields, **more})  # type: ignore[arg-type]


KEYS = st.builds(
    key,
    st.sampled_from(["aa" * 32, "bb" * 32]),
    version=st.sampled_from([1, REVOKED]),
    at=_AT,
    by=_BY,
    expires=st.none() | st.floats(0.0, 1e11),
)
LIMITS = st.builds(
    limits, _TENANTS, version=st.integers(1, 4), at=_AT, by=_BY, limits=_LIMITS, configured=_LIMITS
)


@given(KEYS | LIMITS)
def test_what_is_written_is_read_again(record: TenantRecord) -> None:
    assert READER.read(record.name, written(record, SEAL)) == record


@given(st.lists(KEYS | LIMITS, max_size=12), st.randoms(use_true_random=False))
def test_records_come_to_the_same_in_whatever_order_and_no_revoked_key_is_good_again(
    records: list[TenantRecord], rng: random.Random
) -> None:
    records, one, other = taken_in(records, rng)
    assert one.all() == other.all()
    revoked = {record.name for record in records if isinstance(record, KeyRecord) and record.is_revoked}
    for name, record in one.all().items():
        if isinstance(record, KeyRecord):
            assert record.is_revoked == (name in revoked)


@given(LIMITS, st.integers(1, 3), st.integers(0, 10**6))
def test_whoever_knew_of_a_change_wins_whatever_its_clock_says(
    first: LimitsRecord, more: int, behind: int
) -> None:
    later = replace(first, version=first.version + more, at=max(first.at - behind, 0.0), by="cleo")
    for order in ((first, later), (later, first)):
        roster: Roster[TenantRecord] = Roster()
        for record in order:
            roster.take(record)
        assert roster.get(first.name) == later


@given(st.binary(max_size=300))
def test_bytes_that_nobody_wrote_are_refused(data: bytes) -> None:
    with pytest.raises(RefusedRecord):
        READER.read("key:" + "aa" * 32, data)


@given(KEYS | LIMITS, st.data())
def test_a_record_with_one_byte_changed_is_refused(record: TenantRecord, data: st.DataObject) -> None:
    text = bytearray(written(record, SEAL))
    at = data.draw(st.integers(0, len(text) - 1))
    text[at] ^= data.draw(st.integers(1, 255))
    with pytest.raises(RefusedRecord):
        READER.read(record.name, bytes(text))


@pytest.mark.parametrize(
    "record",
    [
        key("aa" * 32, name="key:" + "bb" * 32),
        key("aa" * 32, name="aa" * 32),
        key("AA" * 32),
        key("aa" * 31),
        key("aa" * 32 + "\n"),
        key("aa" * 32, tenant=""),
        key("aa" * 32, tenant="a\nb"),
        key("aa" * 32, tenant="x" * 201),
        key("aa" * 32, expires=-1.0),
        key("aa" * 32, version=REVOKED + 1),
        limits(name="limits:u"),
        limits("\u202e"),
        limits(limits=LimitsAsked(requests_per_minute=0)),
        limits(limits=LimitsAsked(usd_per_day=1e300)),
        limits(limits=LimitsAsked(zone="UTC")),
        limits(configured=LimitsAsked(zone="UTC")),
        limits(by="x" * 201),
    ],
    ids=lambda one: f"{one.name[:20]!r}",
)
def test_a_sealed_record_that_says_what_no_gateway_says_is_refused(record: TenantRecord) -> None:
    with pytest.raises(RefusedRecord):
        READER.read(record.name, written(record, SEAL))


def test_what_was_sealed_for_members_is_nothing_for_tenants() -> None:
    with pytest.raises(RefusedRecord, match="not sealed"):
        READER.read(limits().name, written(limits(), Seal(b"k" * 32, "members")))


def test_what_is_over_for_long_is_forgotten_and_a_revoked_key_without_an_end_is_not() -> None:
    roster: Roster[TenantRecord] = Roster()
    there = [
        key("aa" * 32, expires=10.0),
        key("bb" * 32, expires=10.0, version=REVOKED),
        key("cc" * 32, version=REVOKED),
        key("dd" * 32),
        limits("reset", at=10.0),
        limits("set", at=10.0, limits=LimitsAsked(requests_per_minute=1)),
    ]
    for record in there:
        assert roster.take(record)
    assert roster.forget_past(10.0 + REMOVED_KEPT) == []
    gone = roster.forget_past(11.0 + REMOVED_KEPT)
    assert set(gone) == {name_of_key("aa" * 32), name_of_key("bb" * 32), name_of_limits("reset")}
    assert len(roster) == 3
