"""Objectives: one grammar for bench, simulate and plan, which holds every spelling that any of them ever took."""

from __future__ import annotations

from math import inf

import pytest

from weighbridge.errors import BadInput
from weighbridge.workload.slo import USUAL, Slo, parse_slo

_SPELLINGS = [
    ("ttft=500ms,tpot=50ms,p=99", {"ttft_s": 0.5, "tpot_s": 0.05, "quantile": 0.99}),
    ("ttft=1", {"ttft_s": 1.0}),
    ("tpot=0.2", {"tpot_s": 0.2}),
    ("ttft=2s", {"ttft_s": 2.0}),
    ("ttft=500us", {"ttft_s": 0.0005}),
    (" tpot=20ms , ttft=3 ", {"ttft_s": 3.0, "tpot_s": 0.02}),
    ("ttft=1e3ms", {"ttft_s": 1.0}),
    ("ttft=500 ms", {"ttft_s": 0.5}),
    ("ttft=.5", {"ttft_s": 0.5}),
    ("p=95", {"quantile": 0.95}),
    ("p=99.9%", {"quantile": 0.999}),
    ("ttft=1s,ttft=2s", {"ttft_s": 2.0}),
    ("ttft=1s,", {"ttft_s": 1.0}),
    ("", {}),
]


@pytest.mark.parametrize(("text", "given"), _SPELLINGS)
@pytest.mark.parametrize("default", [USUAL, Slo(), Slo(1.0, 0.05, 0.95)])
def test_what_is_given_is_read_and_the_rest_is_the_commands_own(
    text: str, given: dict[str, float], default: Slo
) -> None:
    parsed = parse_slo(text, default)
    for name in ("ttft_s", "tpot_s", "quantile"):
        assert getattr(parsed, name) == pytest.approx(given.get(name, getattr(default, name)))


def test_where_load_is_measured_the_default_is_a_second_and_a_tenth() -> None:
    assert (USUAL.ttft_s, USUAL.tpot_s) == (1.0, 0.1)
    assert parse_slo("", Slo()) == Slo(inf, inf, 0.99)


@pytest.mark.parametrize(
    "text",
    [
        *("ttft", "ttft=", "ttft=fast", "ttft=-1s", "tpot=0ms", "ttft=nan", "tpot=inf", "ttft=50%", "fast"),
        *("itl=5ms", "latency=1s", "ttft=1h", "p=0", "p=100", "p=high", "p=-5", "ttft=1s;tpot=1s"),
    ],
)
def test_what_is_not_understood_is_named_with_an_example(text: str) -> None:
    with pytest.raises(BadInput, match=r"^--slo: .*ttft=500ms,tpot=50ms,p=99") as refused:
        parse_slo(f"tpot=50ms,{text}", USUAL)
    assert text in str(refused.value)


def test_a_request_is_good_when_it_keeps_both() -> None:
    slo = parse_slo("ttft=500ms", Slo())
    assert slo.met(0.5, 100.0)
    assert not slo.met(0.51, 0.0)
    assert not parse_slo("").met(0.5, 0.11)
