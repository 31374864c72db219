"""The body's key `weighbridge` and the `x-weighbridge-*` headers: how a request is to be treated.

Where a word can only restrict, the words of all sides add up; where it can widen, the trusted side has the last one.
"""

from __future__ import annotations

from typing import Any

from tests.doors.rows.fields import short
from tests.doors.table import Header, Row, Want, at, bad, chat, ok, told

WRONG = bad("weighbridge")
EDGE = ok(tokens=4, left=False, placement="edge")
CLOUD = ok(left=True, placement="cloud")
#: What wants to leave: a label or a stricter word must keep it here.
LEAVES = "prefer_cloud"
MISSED = Want(504, "deadline_missed", "timeout_error", error=True)


def header(name: str, *values: str) -> tuple[Header, ...]:
    return tuple((f"x-weighbridge-{name}", value) for value in values)


def wrong(name: str, *values: Any) -> list[Row]:
    return [Row(f"weighbridge.{name}: {short(value)}", WRONG, told(**{name: value})) for value in values]


def wrong_header(name: str, *values: str) -> list[Row]:
    return [Row(f"header {name}: {value!r}", bad(), chat(), headers=header(name, value)) for value in values]


def stays(name: str, *headers: Header, **extension: Any) -> Row:
    """A request that would leave, but for one word somewhere."""
    return Row(name, EDGE, told(**{"placement": LEAVES, **extension}), headers=headers)


EXTENSION = [
    # -- the key itself
    *(Row(f"weighbridge: {value!r}", WRONG, chat(weighbridge=value)) for value in ("x", [], 7, True, [{}])),
    Row("weighbridge: null", EDGE, chat(weighbridge=None)),
    Row("weighbridge: {}", EDGE, chat(weighbridge={})),
    *(
        Row(f"a misspelt {name!r} in the body", WRONG, told(**{name: ["patient"]}))
        for name in ("label", "lables", "Labels", "labels ", "residency", "")
    ),
    *(
        Row(
            f"a misspelt header {name!r}",
            bad(says=f"x-weighbridge-{name}"),
            chat(),
            headers=header(name, "patient"),
        )
        for name in ("label", "lables", "placment", "deadline", "deadline_ms")
    ),
    *(
        Row(
            f"a header that is meant to be ours: {name!r}",
            bad(says="is not known here"),
            chat(),
            headers=((name, "patient"),),
        )
        for name in ("x_weighbridge_labels", "X-Weighbridge_Labels", "X-Weighbridge", "Weighbridge-Labels")
    ),
    Row(
        "all of the extension at once",
        EDGE,
        told(session="s", route="r", resume=True, max_usd=1, labels=["x"]),
    ),
    # -- labels
    Row("prefer_cloud", CLOUD, told(placement=LEAVES), differs=at("single gateway", "one place", EDGE)),
    stays("a label in the body", labels=["patient"]),
    stays("a label in a header", *header("labels", "patient")),
    stays("a label in a header, another in the body", *header("labels", "patient"), labels=["foo"]),
    stays("a label in the body, another in a header", *header("labels", "foo"), labels=["patient"]),
    stays("a label in a header, null in the body", *header("labels", "patient"), labels=None),
    stays("a label in a header, none in the body", *header("labels", "patient"), labels=[]),
    stays("two lines of labels, the first one counts too", *header("labels", "patient", "foo")),
    stays("two lines of labels, the last one counts too", *header("labels", "foo", "patient")),
    stays("two labels in one line", *header("labels", "foo, patient")),
    stays("empty labels between", *header("labels", ",,patient,,")),
    stays("a label in capitals", labels=["PATIENT"]),
    stays("a label in capitals in a header", *header("labels", "Patient")),
    stays("a label with spaces", labels=[" patient "]),
    stays("two labels in one string", labels=["foo,patient"]),
    stays("a label with a letter of elsewhere", labels=["ärztlich"]),
    stays("a label written letter by letter", labels=["A\u0308RZTLICH"]),
    stays("a label of wide letters", labels=["\uff50atient\u00a0"]),
    stays("a label with letters that nobody sees", labels=["pat\u200bi\u00adent\ufe0f"]),
    stays("a label with them at its ends", labels=["\ufeffpatient\u2060\u0000"]),
    stays("a label with them in a header", *header("labels", "\u200fpati\u034fent")),
    stays("a label whose mark stands behind what nobody sees", labels=["A\u200d\u0308rztlich"]),
    stays("a label with a letter of elsewhere in a header", *header("labels", "ärztlich")),
    stays("a label in Latin-1 in a header", ("x-weighbridge-labels", "ärztlich".encode("latin-1"))),
    stays("a header's name in capitals", ("X-WEIGHBRIDGE-LABELS", "patient")),
    *wrong("labels", "patient", "", 7, {}, [7], [None], ["patient", 7]),
    Row("33 equal labels in the body", WRONG, told(labels=["x"] * 33)),
    Row(
        "33 labels in a header",
        bad("weighbridge"),
        chat(),
        headers=header("labels", ",".join(map(str, range(33)))),
    ),
    # -- placement
    Row("only_edge", EDGE, told(placement="only_edge")),
    Row("prefer_edge", EDGE, told(placement="prefer_edge")),
    Row("auto", EDGE, told(placement="auto")),
    Row("only_cloud", CLOUD, told(placement="only_cloud"), differs=at("single gateway", "one place", WRONG)),
    Row("only_edge in a header", EDGE, chat(), headers=header("placement", "only_edge")),
    Row(
        "only_cloud in a header",
        CLOUD,
        chat(),
        headers=header("placement", "only_cloud"),
        differs=at("single gateway", "one place", WRONG),
    ),
    *wrong("placement", "moon", "", "ONLY_EDGE", 7, [], ["only_edge"]),
    *wrong_header("placement", "moon", "", "only_edge only_cloud"),
    Row(
        "only_edge in a header, only_cloud in the body",
        EDGE,
        told(placement="only_cloud"),
        headers=header("placement", "only_edge"),
    ),
    Row(
        "only_cloud in a header, only_edge in the body",
        EDGE,
        told(placement="only_edge"),
        headers=header("placement", "only_cloud"),
    ),
    Row(
        "prefer_cloud in a header, only_edge in the body",
        EDGE,
        told(placement="only_edge"),
        headers=header("placement", LEAVES),
    ),
    stays("only_edge in a header, prefer_cloud in the body", *header("placement", "only_edge")),
    Row("two lines of placement", EDGE, chat(), headers=header("placement", "only_cloud", "only_edge")),
    Row(
        "two lines of placement, turned round",
        EDGE,
        chat(),
        headers=header("placement", "only_edge", "only_cloud"),
    ),
    # -- priority
    Row("a priority in the body", ok(priority=5), told(priority=5)),
    Row("a priority above the bound", ok(priority=1000), told(priority=5000)),
    Row("a priority below the bound", ok(priority=-1000), told(priority=-999_999)),
    Row("a priority in the body with a fraction of nothing", ok(priority=5), told(priority=5.0)),
    Row("a priority of null", ok(priority=0), told(priority=None)),
    Row("a priority in a header", ok(priority=5), chat(), headers=header("priority", "5")),
    Row("a negative priority in a header", ok(priority=-5), chat(), headers=header("priority", "-5")),
    Row("a header's priority above the bound", ok(priority=1000), chat(), headers=header("priority", "1500")),
    Row(
        "a header's priority below the bound",
        ok(priority=-1000),
        chat(),
        headers=header("priority", "-999999"),
    ),
    Row("the later priority of two", ok(priority=7), told(priority=-1000), headers=header("priority", "7")),
    Row(
        "the later priority of two, turned round",
        ok(priority=7),
        told(priority=7),
        headers=header("priority", "-1000"),
    ),
    *wrong("priority", "5", 1.5, True, [], "high"),
    *wrong_header("priority", "high", "", "nan", "inf", "-inf", "1e400", "1_000", "5, 6", "0x10"),
    Row("two lines of priority", bad(), chat(), headers=header("priority", "5", "-5")),
    # -- deadlines
    Row("a deadline far away", EDGE, told(deadline_ms=600_000)),
    Row("a deadline far away in a header", EDGE, chat(), headers=header("deadline-ms", "600000")),
    *wrong("deadline_ms", 0, -1, "soon", True, [], -0.0),
    *wrong_header("deadline-ms", "0", "-1", "soon", "", "nan", "inf", "1e400", "1_000", "-0"),
    Row("a deadline that has passed already", MISSED, told(deadline_ms=0.001, placement="only_edge")),
    Row(
        "a deadline that has passed already, in a header",
        MISSED,
        told(placement="only_edge"),
        headers=header("deadline-ms", "0.001"),
    ),
    Row(
        "the nearer deadline of two",
        MISSED,
        told(deadline_ms=600_000, placement="only_edge"),
        headers=header("deadline-ms", "0.001"),
    ),
    # -- money
    Row("a sum", EDGE, told(max_usd=0.5)),
    Row("a sum of nothing", EDGE, told(max_usd=0)),
    stays("a sum for which the cloud answers nothing", max_usd=0),
    stays("the smaller sum of two", *header("max-usd", "0"), max_usd=1),
    stays("the smaller sum of two, turned round", *header("max-usd", "1"), max_usd=0),
    *wrong("max_usd", -1, "much", True, []),
    *wrong_header("max-usd", "-1", "much", "", "nan", "inf", "1_0"),
    # -- flags
    *(
        Row(f"header speculative: {word}", EDGE, chat(), headers=header("speculative", word))
        for word in ("0", "false", "no", "off", "Off")
    ),
    *(
        Row(
            f"header speculative: {word}",
            EDGE,
            chat(),
            headers=header("speculative", word),
            differs=at("gateway route routes", "behind all", EDGE),
        )
        for word in ("1", "true", "yes", "on", "TRUE")
    ),
    *wrong_header("speculative", "maybe", "", "2", "tru"),
    *wrong("speculative", "yes", 1, "true", []),
    *wrong_header("resume", "maybe", ""),
    *wrong("resume", "yes", 1),
    *wrong("session", 7, "x" * 201),
    *wrong("route", 7, "x" * 201),
    Row(
        "a deadline beyond all numbers",
        bad(),
        b'{"model": "$MODEL", "messages": [{"role": "user", "content": "x"}], "weighbridge": {"deadline_ms": 1e400}}',
    ),
    Row(
        "a priority beyond all numbers",
        bad(),
        b'{"model": "$MODEL", "messages": [{"role": "user", "content": "x"}], "weighbridge": {"priority": 1e400}}',
    ),
    Row(
        "a restriction named twice, one of them wrong",
        WRONG,
        b'{"model": "$MODEL", "messages": [{"role": "user", "content": "x"}], "max_tokens": 4, '
        b'"weighbridge": {"placement": "moon"}, "weighbridge": {"placement": "only_edge"}}',
    ),
]
