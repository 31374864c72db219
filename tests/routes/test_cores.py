"""Policy, money, caps, metrics, restoring and checksums: properties of the pure parts."""

from __future__ import annotations

import json
import math
import random
import re
import zlib
from dataclasses import replace
from pathlib import Path
from time import thread_time
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from weighbridge.errors import Refused
from weighbridge.routes.budget import Budgets, Ledger, Reservation
from weighbridge.routes.caps import Caps, CapSettings
from weighbridge.routes.difficulty import features, isotonic
from weighbridge.routes.difficulty.arithmetic import chains, equations
from weighbridge.routes.difficulty.features import COLUMNS, hashed
from weighbridge.routes.difficulty.metrics import curve
from weighbridge.routes.errors import NoPlaceAble, NoPlaceCan
from weighbridge.routes.learn.bandit import ThresholdBandit
from weighbridge.routes.policy import (
    Asked,
    Grant,
    Level,
    PlaceFacts,
    Residency,
    ResidencyPolicy,
    Rule,
    Verdict,
    decide,
    residency,
)
from weighbridge.routes.privacy import checksums
from weighbridge.routes.privacy.fields import held_in
from weighbridge.routes.privacy.patterns import PATTERNS, PatternDetector
from weighbridge.routes.privacy.restoring.placeholders import TextRestorer
from weighbridge.routes.privacy.shapes.pattern import Scene
from weighbridge.wire.ask import Placement

residencies = st.sampled_from(list(Residency))
rules = st.lists(
    st.builds(Rule, st.just("r"), residencies, labels=st.sampled_from([(), ("a",), ("b",)])), max_size=4
).map(tuple)
facts = st.fixed_dictionaries(
    {
        "healthy": st.booleans(),
        "context_tokens": st.sampled_from([None, 10, 1000]),
        "tokens": st.just(100),
        "seconds": st.sampled_from([None, 0.1, 9.0]),
        "usd": st.sampled_from([0.0, 0.5]),
    }
)
#: How many places a route has at the edge and beyond it.
shapes = st.sampled_from([(1, 1), (1, 0), (0, 1), (2, 1), (1, 2), (3, 3), (0, 2)])


@st.composite
def lists_of_places(draw: st.DrawFn) -> list[PlaceFacts]:
    """Places in the order of trust; money is refused at each of them, or not."""
    edges, clouds = draw(shapes)
    levels = [Level.EDGE] * edges + [Level.CLOUD] * clouds
    return [
        PlaceFacts(f"p{number}", level, grant=Grant(draw(st.booleans()), "no money"), **draw(facts))
        for number, level in enumerate(levels)
    ]


@given(
    rules,
    residencies,
    st.sampled_from(list(Placement)),
    st.sampled_from([None, frozenset(), frozenset({"EMAIL"})]),
    st.sampled_from(["a", "A"]),
    lists_of_places(),
    st.sampled_from([None, 0.0, 1.0]),
    st.sampled_from([None, 1.0]),
)
def test_no_score_price_or_failure_widens_policy(
    rules, default, placement, found, label, places, score, late
):  # type: ignore[no-untyped-def]
    policy = ResidencyPolicy(rules, default)
    asked = Asked(placement=placement, found=found, labels=frozenset({label}), deadline_seconds=late)
    verdict = residency(policy, asked)
    if found is None and policy.needs_scan:
        assert verdict.residency is Residency.NEVER
    assert verdict == residency(policy, Asked(placement=placement, found=found, labels=frozenset({"a"})))
    try:
        plan = decide(verdict, asked, places, score)
    except Refused:
        return
    by_name = {place.name: place for place in places}
    reachable = [by_name[name] for name in plan.order]
    assert len(set(plan.order)) == len(plan.order) > 0
    if verdict.residency is Residency.NEVER or placement is Placement.ONLY_EDGE:
        assert {place.level for place in reachable} == {Level.EDGE}
    assert all(place.healthy for place in reachable)
    assert all(place.grant.allowed for place in reachable if place.level is Level.CLOUD)
    if placement is Placement.ONLY_CLOUD:
        assert {place.level for place in reachable} == {Level.CLOUD}
    if plan.escalate:
        assert len(reachable) > 1
        assert reachable[0].level is Level.EDGE
        assert placement in (Placement.AUTO, Placement.ONLY_EDGE)
    assert plan.redact == (verdict.residency is Residency.REDACT)
    assert plan.reasons


GRANTED = Grant()
CASES = [json.loads(line) for line in Path(__file__).with_name("policy_cases.jsonl").read_text().splitlines()]


@pytest.mark.parametrize("case", CASES, ids=range(len(CASES)))
def test_an_edge_and_a_cloud_are_ordered_as_they_always_were(case: dict[str, Any]) -> None:
    """The decisions of the policy that knew these two places and no others, with its reasons word for word."""
    score, granted = case["score"], Grant(case["granted"], "the daily budget is exhausted")
    places = [_facts("edge", case["edge"]), _facts("cloud", case["cloud"], granted)]
    asked = {**case["asked"], "placement": Placement(case["asked"].get("placement", "auto"))}
    asked["needs"] = frozenset(asked.get("needs", ()))
    kept, rule, reason = case["verdict"]
    assert _outcome(Verdict(Residency(kept), rule, reason), Asked(**asked), places, score) == case["outcome"]


def _outcome(verdict: Verdict, asked: Asked, places: list[PlaceFacts], score: float | None) -> dict[str, Any]:
    try:
        plan = decide(verdict, asked, places, score)
    except Refused as error:
        return {"error": type(error).__name__, "message": str(error)}
    told = {"order": list(plan.order), "escalate": plan.escalate, "redact": plan.redact, "rule": plan.rule}
    return {**told, "degraded": plan.degraded, "reasons": list(plan.reasons)}


def _facts(name: str, fields: dict[str, Any], grant: Grant = GRANTED) -> PlaceFacts:
    abilities = fields.get("abilities")
    known = {"tokens": 100, **fields, "abilities": None if abilities is None else frozenset(abilities)}
    return PlaceFacts(name, Level(name), grant=grant, **known)


def test_what_holds_an_answer_and_never_leaves_keeps_its_request_here() -> None:
    near, far = PlaceFacts("near", Level.EDGE), PlaceFacts("far", Level.CLOUD)
    free, body = (
        Verdict(Residency.FREE, "default", "free"),
        {"guided_choice": ["a"], "seed": 1, "min_tokens": 0},
    )
    assert held_in(body) == ["guided_choice"]
    assert held_in({"prompt_logprobs": 0, "grammar": "", "bad_words": None}) == ["prompt_logprobs"]
    held = Asked(held="guided_choice")
    assert decide(free, held, [near, far], score=0.9).order == ("near",)
    for asked, places in ((replace(held, placement=Placement.ONLY_CLOUD), [near, far]), (held, [far])):
        with pytest.raises(NoPlaceAble, match="guided_choice") as found:
            decide(free, asked, places)
        assert found.value.status == 400


def test_what_no_place_will_ever_take_is_the_clients_to_change_and_a_detector_that_failed_is_not() -> None:
    """A client tries 503 again, and 400 not."""
    policy, far = ResidencyPolicy((), Residency.REDACT), [PlaceFacts("far", Level.CLOUD)]
    for asked, kind in (
        (Asked(found=frozenset(), unreadable="image_url"), NoPlaceAble),
        (Asked(found=None), NoPlaceCan),
    ):
        with pytest.raises(kind):
            decide(residency(policy, asked), asked, far)


def test_of_several_places_each_is_tried_in_its_order() -> None:
    near, site = PlaceFacts("near", Level.EDGE, seconds=5.0), PlaceFacts("site", Level.EDGE, seconds=3.0)
    far, other = PlaceFacts("far", Level.CLOUD, seconds=1.0), PlaceFacts("other", Level.CLOUD, seconds=2.0)
    places, free = [near, site, far, other], Verdict(Residency.FREE, "default", "free")
    assert decide(free, Asked(), places).order == ("near", "site", "far", "other")
    assert decide(free, Asked(), places, score=0.9).order == ("far", "other", "near", "site")
    prefers = Asked(placement=Placement.PREFER_CLOUD)
    assert decide(free, prefers, places).order == ("far", "other", "near", "site")
    assert decide(free, Asked(deadline_seconds=2.5), places).order == ("far", "other", "site", "near")
    stays = Verdict(Residency.NEVER, "health", "never_leaves")
    plan = decide(stays, Asked(), places)
    assert (plan.order, plan.escalate, plan.degraded) == (("near", "site"), True, False)
    assert decide(stays, Asked(), [near, far]).escalate is False


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


_LETTERS = "aAzZ019 @:./-_+()#\n="
_WORDS = """ann|example.com|10.0.0.1|fe80::1|::|BOX 12|Apt 4|STE. 12|PO Box 77|p.o.box9|Postfach 12|APO, AE 09012|
-----BEGIN RSA PRIVATE KEY-----|-----END RSA PRIVATE KEY-----|sk-|SK_live_|ghp_|glpat-|AKIA|ABCDEFGHIJKLMNOP|AIza|ya29.|
xoxb-|HF_|npm_|abcdefghijklmnop0123456789abcdefghij|eyJ|abcdefghij.|Bearer |https://|user:pass@|host|PASSWORD: |
api_key=|
token is |hunter2a|secret='|my_pwd := """
FRAGMENTS = st.sampled_from([*_LETTERS, *_WORDS.replace("|\n", "|").split("|")])


@given(st.lists(FRAGMENTS, max_size=12))
def test_no_pattern_is_left_out_that_would_have_found_something(fragments: list[str]) -> None:
    """Patterns are skipped where a text lacks what each of their values has; nothing may be lost by that."""
    text = "".join(fragments)
    all_of_them = (
        PATTERNS
        if any(map(str.isdigit, text))
        else [each for each in PATTERNS if each.type in ("EMAIL", "KEY", "IP")]
    )
    assert PatternDetector().detect(text) == [hit for each in all_of_them for hit in each.hits(Scene(text))]


@pytest.mark.parametrize(
    "text",
    [
        "+".join(["1" + "a" * 24] * 12),
        "+".join(["1" + "a" * 24] * 4000),
        "1" + " " * 100_000 + "+",
        "(" * 100_000,
        "9" * 100_000,
        "1," * 50_000 + "+",
        "<<" * 50_000,
    ],
    ids=lambda text: text[:20],
)
def test_sums_are_looked_for_in_time_that_grows_with_the_text_alone(text: str) -> None:
    began = thread_time()
    equations(text)
    assert thread_time() - began < 1.0


#: As sums were looked for by an engine that goes back.
_ATOM = r"\(*\s*[$€£]?\s?-?\d[\d,]*(?:\.\d+)?\s?%?\s?(?:[A-Za-z]{1,12}\s?){0,3}\)*"
_CHAIN = re.compile(rf"({_ATOM}(?:\s*[-+*/x×÷·]\s*{_ATOM}){{1,12}})\s*=\s*[$€£]?\s?(-?\d[\d,]*(?:\.\d+)?)?")
_SUMS = [*"12,.+-*/x×÷·==\n\u00a0$€£%()", "1 + ", "3=", " = 4", "kg", "a", "٣", "é", "\ud800", "\x1c"]


@given(st.lists(st.sampled_from(_SUMS), max_size=14).map("".join))
def test_sums_are_those_that_an_engine_which_goes_back_finds(text: str) -> None:
    assert list(chains(text)) == [(found[1], found[2]) for found in _CHAIN.finditer(text)]
