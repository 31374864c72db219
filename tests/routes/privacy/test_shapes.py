# ruff: noqa: E501 - tables read best a case to a line
"""Patterns of linear time against those with look-around: every difference has a reason, which is written here."""

from __future__ import annotations

import random
import re
import time
from collections.abc import Callable

import pytest
from benchmarks.evidence.negatives import lines
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.routes.privacy.reference import REFERENCES
from weighbridge.routes.privacy import checksums as check
from weighbridge.routes.privacy.hits import Hit
from weighbridge.routes.privacy.patterns import PATTERNS, PatternDetector
from weighbridge.routes.privacy.reading import readings
from weighbridge.routes.privacy.shapes.pattern import Edges, Pattern, Scene, W, as_bytes, shape

ALPHABET = "aZé名_0199 .-+@:\n"
texts = st.text(ALPHABET, max_size=40)

#: The same twice: what is between its neighbours, with and without look-around.
TWINS: list[tuple[str, Pattern]] = [
    (r"(?<!\w)\d(?:[ -]?\d){3,8}(?!\w)", shape("X", r"\d(?:[ -]?\d){3,8}", edges=Edges(before=W + r"\x84", after=W + r"\x84"))),
    (r"(?<![\w.])\d{2,4}(?!\w|\.\d)", shape("X", r"\d{2,4}", edges=Edges(before=W + r"\x84.", after=W + r"\x84", unless_digit="."))),
    (r"(?<![\w.+-])[\w.+-]+@[\w-]+(?!\w)", shape("X", rf"[{W}\x84.+-]+@[{W}\x84-]+", edges=Edges(before=W + r"\x84.+\-", after=W + r"\x84"))),
    (r"(?<![\w:.])(?:[09aZ]{0,4}:){2,7}[09aZ]{0,4}(?![\w:])", shape("X", r"(?:[09aZ]{0,4}:){2,7}[09aZ]{0,4}", edges=Edges(before=W + r"\x84:.", after=W + r"\x84:"))),
    (r"(?<!\w)(?:é|Z)+\d", shape("X", r"(?:[Z]|\x80)+\d", edges=Edges(before=W + r"\x84", after=None))),
]  # fmt: skip


@pytest.mark.parametrize(("expression", "pattern"), TWINS, ids=[each for each, _ in TWINS])
@settings(max_examples=300, deadline=None, derandomize=True)
@given(texts)
def test_neighbours_that_are_matched_and_given_back_are_those_of_look_around(
    expression: str, pattern: Pattern, text: str
) -> None:
    expected = [match.span() for match in re.finditer(expression, text)]
    assert [(hit.start, hit.end) for hit in pattern.hits(Scene(text))] == expected


def test_a_byte_stands_for_each_character() -> None:
    text = "a9_ é名２²€😀\n한"
    data = as_bytes(text)
    assert len(data) == len(text)
    assert data == b"a9_ \x80\x84\x81\x81\x82\x83\n\x84"


# -- what is lost, and why -------------------------------------------------------------------------------


def _loopback(hit: Hit, text: str) -> bool:
    value = text[hit.start : hit.end]
    return hit.type == "IP" and value.startswith(("127.", "0.0.0.0", "255."))


def _reason(
    name: str, types: str, holds: Callable[[str, str, str], bool]
) -> tuple[str, Callable[[Hit, str], bool]]:
    """`holds` is given the value, and what stands before and behind it."""
    kinds = types.split()

    def check_hit(hit: Hit, text: str) -> bool:
        return hit.type in kinds and holds(text[hit.start : hit.end], text[: hit.start], text[hit.end :])

    return name, check_hit


def _count(value: str) -> int:
    return len(check.digits_of(value))


REASONS: list[tuple[str, Callable[[Hit, str], bool]]] = [
    ("an address that means here, or a mask", _loopback),
    _reason("a version", "IP", lambda v, b, a: re.search(r"(?i)(version|release|[\w=~<>^]/|[\w]-|[=~<>^]=?|\bto|->|from)\W*v?$", b) is not None or re.search(r"(?i)(ver|v|build|firmware|driver|tag)\W*$", b) is not None),
    _reason("groups of code, which no address begins with", "IP", lambda v, b, a: ":" in v),
    _reason("six digits that run together are no area and exchange", "PHONE", lambda v, b, a: re.match(r"(?:00\d{1,2}[ .-])?\(?\d{3}\)?\d{3}[.-]\d{4}", v) is not None),
    _reason("no area code begins with 0 or 1", "PHONE", lambda v, b, a: re.match(r"[01]\d\d[ .-]\d{3}[.-]\d{4}", v) is not None),
    _reason("a word that says another thing stands before it, or a unit behind", "PHONE SSN NATIONAL_ID", lambda v, b, a: re.search(r"(?i)[a-z]{2,}\W*$", b[-24:]) is not None or re.match(r"(?i) ?[a-z]{1,7}", a) is not None),
    _reason("a call, a contact, a number and what can be reached say nothing of a phone alone", "PHONE", lambda v, b, a: re.search(r"(?i)\b(call|contact|number|reach|dial)\b", b[-48:]) is not None),
    _reason("a part of a longer row or path of digits", "PHONE", lambda v, b, a: re.match(r"[ .,/:-]\d|/|:", a) is not None or b[-1:] in "/:"),
    _reason("a number with its leading 0 has 9 to 12 digits and no second 0", "PHONE", lambda v, b, a: v.startswith("00") or (v.startswith("0") and not 9 <= _count(v) <= 12)),
    _reason("a postal code, or four digits between dots", "PHONE", lambda v, b, a: re.fullmatch(r"\d{5}-\d{4}", v) is not None or re.search(r"\d{3}\.|\.\d{3}", v) is not None),
    _reason("a date at its beginning", "PHONE", lambda v, b, a: re.match(r"(?:19|20)\d\d[-./ ]\d|\d{1,2}[-./ ]\d{1,2}[-./ ]\d\d", v) is not None),
    _reason("a year in brackets", "PHONE", lambda v, b, a: re.match(r"\((?:19|20)\d\d\)", v) is not None),
    _reason("no country begins with 0", "PHONE", lambda v, b, a: v.startswith("+0")),
    _reason("a dot before it", "SSN", lambda v, b, a: b.endswith(".")),
    _reason("seven digits and a letter need an X, Y or Z before them", "NATIONAL_ID", lambda v, b, a: re.fullmatch(r"-?\d{7}-?[A-Za-z]|-\d{8}-?[A-Za-z]|[XYZxyz]-?\d{8}-?[A-Za-z]", v) is not None),
    _reason("not grouped as cards are, or of 12 digits", "CARD", lambda v, b, a: len(re.split("[ -]", v)[0]) != 4 or _count(v) == 12),
    _reason("no country has such an IBAN", "IBAN", lambda v, b, a: not check.iban(v)),
    _reason("a file, a unit, or a machine's login", "EMAIL", lambda v, b, a: v.startswith(("git@", "hg@", "svn@")) or v.rpartition(".")[2] in ["png", "jpg", "service", "timer", "html", "css"]),
    _reason("code, or words without ten mixed letters and digits", "KEY", lambda v, b, a: not any(re.search(r"\d", run) and re.search("[A-Za-z]", run) for run in re.findall("[A-Za-z0-9]{10,}", v)) or re.match(r"[A-Za-z_][\w.]*[(\[]|\w+\.|[$%{<]", v) is not None),
    _reason("tests have suites and units", "ADDRESS", lambda v, b, a: re.search(r"(?i)test\W*$", b) is not None or re.match(r" ?(tests?|passed|failed|of|cases?)\b", a) is not None),
]  # fmt: skip


def unexplained(text: str) -> list[tuple[str, str]]:
    """What the reference finds in a text, the patterns do not, and no reason covers."""
    scene = Scene(text)
    covered = {place for each in PATTERNS for hit in each.hits(scene) for place in range(hit.start, hit.end)}
    lost = []
    for reference in REFERENCES:
        for hit in reference.hits(text):
            is_found = all(place in covered for place in range(hit.start, hit.end) if text[place].isalnum())
            if not is_found and not any(holds(hit, text) for _, holds in REASONS):
                lost.append((hit.type, text[hit.start : hit.end]))
    return lost


_LETTERS = "aZ019 @:./-_+()#\n="
_WORDS = """ann|example.com|10.0.0.1|fe80::1|2001:db8::1|BOX 12|Apt 4|STE. 12|PO Box 77|Postfach 12|APO, AE 09012|
-----BEGIN RSA PRIVATE KEY-----|-----END RSA PRIVATE KEY-----|sk-|ghp_|AKIA|ABCDEFGHIJKLMNOP|xoxb-|npm_|
abcdefghij0123456789abcdefghij|eyJ|abcdefghij.|Bearer |https://|user:pass@|host|password: |api_key=|hunter2a|
phone |tel |call |4111111111111111|4111 1111|123-45-6789|12345678Z|RSSMRA85T10A562S|DE89370400440532013000|
+49 151 |212-555-0123|(212) 555-|0123|01 23 45 67 89|passport |AB123456C|nhs |943 476 5919|order |version |756.9217.0769.85"""
FRAGMENTS = st.sampled_from([*_LETTERS, *_WORDS.replace("\n", "").split("|")])


@settings(max_examples=1500, deadline=None, derandomize=True)
@given(st.lists(FRAGMENTS, max_size=14))
def test_nothing_is_lost_without_a_reason(fragments: list[str]) -> None:
    assert unexplained("".join(fragments)) == []


def test_nothing_is_lost_without_a_reason_in_lines_of_code_and_logs() -> None:
    assert [found for line in lines(1000, seed=3) for found in unexplained(line)] == []


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("x" * 80 + "@example.com", "x" * 80 + "@example.com"),  # no bound on a name
        ("请写信到alice@example.com谢谢", "alice@example.com"),  # no spaces beside it
        ("手机号13812345678是我的", "13812345678"),
        ("전화 010-1234-5678입니다", "010-1234-5678"),
        ("alice [at] example [dot] com", "alice [at] example [dot] com"),
        ("4111\t1111\n1111.1111", "4111\t1111\n1111.1111"),
        (
            "-----BEGIN PRIVATE KEY-----\n" + "A" * 9000 + "\n-----END PRIVATE KEY-----",
            "A" * 9000,
        ),  # nor on a key
        ("-----BEGIN EC PRIVATE KEY-----\n" + "Ab1+" * 16 + "\n" + "Ab1+" * 9, "Ab1+" * 9),  # cut off
        (
            "-----BEGIN RSA PRIVATE KEY-----\nDEK-Info: AES-128-CBC,0F\n\n" + ("Ab1+" * 16 + "\n") * 2,
            "Ab1+" * 16 + "\n" + "Ab1+" * 16,
        ),  # cut off behind a head
        ("> -----BEGIN PRIVATE KEY-----\n> " + "Ab1+" * 16 + "\n> " + "Ab1+" * 9, "Ab1+" * 9),  # and quoted
        (
            "-----BEGIN PGP PRIVATE KEY BLOCK-----\n\n"
            + "Ab1+" * 9
            + "\n-----END PGP PRIVATE KEY BLOCK-----",
            "Ab1+" * 9,
        ),
        ("eyJ" + "a" * 20000 + ".eyJ" + "b" * 20000 + ".c", "b" * 20000),
        ("see alice@example.com.pdf", "alice@example.com"),  # the name of a file
        ("mbox-alice@example.com-2024.tar.gz", "alice@example.com"),
        ("alice@example.com_old", "alice@example.com"),
        ("alice@example.com4111 1111 1111 1111", "alice@example.com"),
        ("redis://:s3cr3t@cache", ":s3cr3t"),  # a password of nobody
    ],
)
def test_what_is_found_besides(text: str, value: str) -> None:
    found = [text[hit.start : hit.end] for hit in PatternDetector().detect(text)]
    assert any(value in each for each in found)


@pytest.mark.parametrize(
    "unit",
    [
        "X", "a.", "a@", "@", "1", "1 ", "1-", "1.", ":", "a:", "+1", "(", "0 ", "eyJ", "eyJa.", "sk-", "a-", "://", "://a:", "token",
        "token=", "password is ", "-----BEGIN PRIVATE KEY-----\n", "-", "-----", "Apt ", "bearer ", "é", "名", "[A", "AB12 ", "x@y.",
        "phone 1 ", "order 12 ", "\u200b", "&#", "%4", "%40", "\\u", "<a", "<!--", "a b ", "аa", "=4", "{", '"a":', "BEGIN ",
    ],
)  # fmt: skip
def test_steps_grow_with_the_text_and_not_faster(unit: str) -> None:
    """Eight times the text takes far less than sixty-four times the thread's own time, which quadratic search would."""
    size = 5000

    def took(length: int) -> float:
        text = (unit * (length // len(unit) + 1))[:length]
        began = time.thread_time()
        for reading in readings(text):
            PatternDetector().detect(reading.text)
        return time.thread_time() - began

    took(size)
    ratios = []
    for _ in range(3):
        small = max(took(size), 0.002)
        ratios.append(took(8 * size) / small)
        if ratios[-1] < 24:
            return
    raise AssertionError(ratios)


def test_random_text_has_no_hit_without_digits_or_marks() -> None:
    rng = random.Random(0)
    words = ["".join(rng.choices("abcdefghijklmnopqrstuvwxyz", k=rng.randint(2, 9))) for _ in range(3000)]
    assert PatternDetector().detect(" ".join(words)) == []


def test_headers_of_keys_in_a_row_are_one_value() -> None:
    """A text of nothing else would hold a value every thirty characters, each with its own place to keep."""
    line = "-----BEGIN PRIVATE KEY-----\n"
    [hit] = PatternDetector().detect("see " + line * 200 + "and " + "x" * 40)
    assert (hit.start, hit.end) == (4, 4 + 200 * len(line) - 1)
    quoted = "> -----BEGIN RSA PRIVATE KEY-----\n> -----BEGIN PRIVATE KEY-----\n> " + "Ab1+" * 16
    [hit] = PatternDetector().detect(quoted)
    assert quoted[hit.start : hit.end].endswith("Ab1+")
    apart = line + "not a key\n" + line
    assert len(PatternDetector().detect(apart)) == 2
