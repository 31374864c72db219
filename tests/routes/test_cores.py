"""Policy, money, caps, metrics, restoring and checksums: properties of the pure parts."""

from __future__ import annotations

import math
import random
import zlib
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from weighbridge.errors import Refused
from weighbridge.routes.budget import Budgets, Ledger, Reservation
from weighbridge.routes.caps import Caps, CapSettings
from weighbridge.routes.difficulty import features, isotonic
from weighbridge.routes.difficulty.arithmetic import equations
from weighbridge.routes.difficulty.features import COLUMNS, hashed
from weighbridge.routes.difficulty.metrics import curve
from weighbridge.routes.learn.bandit import ThresholdBandit
from weighbridge.routes.policy import (
    Asked,
    Grant,
    Placement,
    Policy,
    Residency,
    Rule,
    Side,
    SideFacts,
    decide,
    residency,
)
from weighbridge.routes.privacy import checksums
from weighbridge.routes.privacy.redact import TextRestorer

residencies = st.sampled_from(list(Residency))
rules = st.lists(
    st.builds(Rule, st.just("r"), residencies, labels=st.sampled_from([(), ("a",), ("b",)])), max_size=4
).map(tuple)
sides = st.builds(
    SideFacts,
    healthy=st.booleans(),
    context_tokens=st.sampled_from([None, 10, 1000]),
    tokens=st.just(100),
    seconds=st.sampled_from([None, 0.1, 9.0]),
    usd=st.sampled_from([0.0, 0.5]),
)


@given(
    rules,
    residencies,
    st.sampled_from(list(Placement)),
    st.sampled_from([None, frozenset(), frozenset({"EMAIL"})]),
    sides,
    sides,
    st.booleans(),
    st.sampled_from([None, 0.0, 1.0]),
    st.sampled_from([None, 1.0]),
)
def test_no_score_price_or_failure_widens_policy(
    rules, default, placement, found, edge, cloud, granted, score, late
):  # type: ignore[no-untyped-def]
    policy = Policy(rules, default)
    asked = Asked(placement=placement, found=found, labels=frozenset({"a"}), deadline_seconds=late)
    verdict = residency(policy, asked)
    if found is None and policy.needs_scan:
        assert verdict.residency is Residency.NEVER
    try:
        decision = decide(verdict, asked, edge, cloud, Grant(granted, "no money"), score)
    except Refused:
        return
    reachable = {decision.first, decision.fallback}
    if verdict.residency is Residency.NEVER or placement is Placement.ONLY_EDGE:
        assert reachable == {Side.EDGE, None}
    if not granted:
        assert Side.CLOUD not in reachable
    if placement is Placement.ONLY_CLOUD:
        assert Side.EDGE not in reachable
    assert decision.reasons


def test_budgets_are_hard_and_survive_a_restart(tmp_path: Path) -> None:
    path = tmp_path / "ledger.sqlite"
    budgets = Budgets(total=1.0, tenants={"*": 0.6})
    ledger = Ledger(path, budgets)
    first = ledger.reserve("a", "auto", 0.5)
    assert isinstance(first, Reservation)
    assert "tenant a" in str(ledger.reserve("a", "auto", 0.2))
    assert isinstance(ledger.reserve("a", "auto", 0.0), Reservation)
    ledger.settle(first, 0.3)
    ledger.settle(first, 0.1)
    held = ledger.reserve("b", "auto", 0.6)
    assert isinstance(held, Reservation)
    ledger.close()
    again = Ledger(path, budgets)
    assert again.spent().settled == pytest.approx(0.3)
    assert again.spent().reserved == pytest.approx(0.6)
    assert "daily" in str(again.reserve("c", "auto", 0.2))
    assert isinstance(again.reserve("c", "auto", 0.1), Reservation)


@given(st.lists(st.tuples(st.floats(0, 0.3), st.floats(0, 1)), max_size=30))
def test_what_is_taken_never_exceeds_a_budget(requests: list[tuple[float, float]]) -> None:
    ledger = Ledger(None, Budgets(total=1.0))
    for usd, part in requests:
        reservation = ledger.reserve("t", "auto", usd)
        if isinstance(reservation, Reservation):
            spent = ledger.spent()
            assert spent.settled + spent.reserved <= 1.0 + 1e-9
            ledger.settle(reservation, usd * part)


def test_caps_bound_share_and_rate() -> None:
    caps = Caps(CapSettings(cloud_per_minute=100, cloud_share=0.2, share_after=10))
    sent = 0
    for number in range(200):
        caps.arrived("mallory", number * 0.01)
        if not caps.refusal("mallory", number * 0.01):
            caps.sent("mallory", number * 0.01)
            sent += 1
    assert sent <= 0.2 * 200 + 1


@given(st.data())
def test_restoring_does_not_depend_on_where_a_stream_is_cut(data: st.DataObject) -> None:
    values = {"[EMAIL_1]": "a@b.com", "[EMAIL_12]": "c", "[PERSON_1]": "[Ann]"}
    parts = data.draw(st.lists(st.sampled_from([*values, "[", "[EMAIL", "x", "]", "_1"]), max_size=12))
    text = "".join(parts)
    cuts = sorted(data.draw(st.lists(st.integers(0, len(text)), max_size=6)))
    pieces = [text[a:b] for a, b in zip([0, *cuts], [*cuts, len(text)], strict=True)]
    whole, split = TextRestorer(values), TextRestorer(values)
    assert "".join([*map(split.push, pieces), split.finish()]) == whole.push(text) + whole.finish()


def test_curve_of_an_oracle_of_chance_and_of_ties() -> None:
    rng = np.random.default_rng(0)
    edge, cloud = (rng.random(2000) < 0.6).astype(float), (rng.random(2000) < 0.8).astype(float)
    assert curve(np.zeros(2000), edge, cloud).apgr == pytest.approx(0.5)
    assert curve(np.zeros(2000), edge, cloud).cpt(0.5) == pytest.approx(0.5)
    assert (curve(cloud - edge, edge, cloud).apgr or 0) > 1.0
    assert curve(edge, cloud, edge).apgr is None


@given(st.lists(st.tuples(st.floats(-5, 5), st.booleans()), min_size=1, max_size=50))
def test_isotonic_rises_and_stays_a_probability(points: list[tuple[float, bool]]) -> None:
    fitted = isotonic.fit([x for x, _ in points], [float(y) for _, y in points])
    values = [fitted(x) for x in np.linspace(-6, 6, 50)]
    assert all(0.0 <= value <= 1.0 for value in values)
    assert values == sorted(values)


def test_hashed_ngrams_are_those_counted_by_hand() -> None:
    """`no no`: the word twice, the pair once, and of `<no>` two 3-grams and one 4-gram, each twice."""
    columns, weights = hashed("no No")
    expected = {"1no": 2, "2no no": 1, "c<no": 2, "cno>": 2, "c<no>": 2}
    codes = {gram: zlib.crc32(gram.encode()) for gram in expected}
    found = dict(zip(columns.tolist(), weights.tolist(), strict=True))
    for gram, times in expected.items():
        sign = 1.0 if codes[gram] & 0x8000_0000 else -1.0
        assert found.pop(codes[gram] % COLUMNS) == pytest.approx(sign * (1 + math.log(times)))
    assert found == {}


def test_a_word_without_end_is_neither_read_nor_kept_whole() -> None:
    kept = features._codes.cache_info().currsize
    columns, _ = hashed("x" * 1_000_000)
    assert len(columns) < 100
    assert features._codes.cache_info().currsize == kept
    assert len(hashed("")[0]) == 0


def test_sums_are_done_again() -> None:
    found = equations("So 3 x 60 = 180 meters, then $180 / 2 = 95, and 24 * 60 / 100 = 14.40. 5 + 2 =")
    assert (found.right, found.wrong, found.unfinished) == (2, 1, True)
    noted = equations("so 3 x 60 = <<3*60=180>>180 and 60% of it = <<180*60/100=107>>107, then <<15+2")
    assert (noted.right, noted.wrong, noted.unfinished, noted.last_result) == (1, 1, True, 107.0)


@pytest.mark.parametrize(
    ("check", "good", "bad"),
    [
        (checksums.card, "4111 1111 1111 1111", "4111 1111 1111 1112"),
        (checksums.iban, "GB82 WEST 1234 5698 7654 32", "GB82 WEST 1234 5698 7654 33"),
        (checksums.us_ssn, "123-45-6789", "666-45-6789"),
        (checksums.nhs, "943 476 5919", "943 476 5918"),
        (checksums.bsn, "111222333", "111222334"),
        (checksums.pesel, "44051401359", "44051401358"),
        (checksums.cpf, "529.982.247-25", "529.982.247-26"),
        (checksums.spanish_id, "12345678Z", "12345678A"),
        (checksums.german_tax_id, "86095742719", "86095742718"),
        (checksums.italian_tax_code, "RSSMRA85T10A562S", "RSSMRA85T10A562T"),
        (checksums.swiss_ahv, "756.9217.0769.85", "756.9217.0769.84"),
        (checksums.verhoeff, "2363", "2364"),
    ],
)
def test_check_digits(check, good: str, bad: str) -> None:  # type: ignore[no-untyped-def]
    assert check(good)
    assert not check(bad)


def test_the_bandit_finds_the_better_threshold() -> None:
    rng = random.Random(0)
    bandit = ThresholdBandit((0.2, 0.8), 0.01, rng.betavariate)
    for _ in range(400):
        arm = bandit.choose()
        bandit.learn(arm, 0.9 if arm == 0.8 else 0.8, 0.001 if arm == 0.8 else 0.005)
    assert sum(bandit.choose() == 0.8 for _ in range(100)) > 80
