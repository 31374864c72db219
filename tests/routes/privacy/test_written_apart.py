"""Values that are written for people's eyes, and keys of services: what is found of them, and what is left alone."""

from __future__ import annotations

import pytest

from weighbridge.routes.privacy.guard import Guard
from weighbridge.routes.privacy.patterns import PatternDetector

KEY = "aB3x9Zk2" * 5

FOUND = [
    ("EMAIL", "alice AT example DOT com"),
    ("EMAIL", "alice dot smith at example dot co dot uk"),
    ("EMAIL", "alice [at] example [dot] com"),
    ("EMAIL", "alice[@]example[.]com"),
    ("EMAIL", "alice@example[.]com"),
    ("EMAIL", "alice(a)example.com"),
    ("EMAIL", "alice{at}example{dot}com"),
    ("EMAIL", "alice@ example.com"),
    ("EMAIL", "alice @ example . com"),
    ("EMAIL", "alice@example .com"),
    ("EMAIL", "alice@example。com"),
    ("EMAIL", "alice@example·com"),
    ("EMAIL", '"alice smith"@example.com'),
    ("CARD", "[4111][1111][1111][1111]"),
    ("CARD", "(4111) (1111) (1111) (1111)"),
    ("CARD", "4111\\1111\\1111\\1111"),
    ("CARD", "4111    1111    1111    1111"),
    ("CARD", "4111~1111~1111~1111"),
    ("CARD", "4111=1111=1111=1111"),
    ("CARD", "'4111' '1111' '1111' '1111'"),
    ("CARD", '"4111","1111","1111","1111"'),
    ("CARD", "4111__1111__1111__1111"),
    ("CARD", "3782•822463•10005"),
    ("CARD", "4111111111111111"),
    ("IBAN", "de89370400440532013000"),
    ("SSN", "123_45_6789"),
    ("IP", "10[.]1[.]2[.]3"),
    ("IP", "203(dot)0(dot)113(dot)9"),
    ("PHONE", "(11) 91234-5678"),
    ("KEY", f"xai-{KEY}"),
    ("KEY", f"gsk_{KEY}"),
    ("KEY", "dop_v1_" + "0a1b" * 16),
    ("KEY", "dapi" + "0a1b" * 8),
    ("KEY", "SK" + "0a1b" * 8),
    ("KEY", f"SG.{KEY}.{KEY}"),
    ("KEY", "123456789:AA" + "aB3_" * 8 + "x"),
    ("KEY", "AGE-SECRET-KEY-1" + "QPZR9" * 10),
]


@pytest.mark.parametrize(("type", "value"), FOUND, ids=[value for _, value in FOUND])
def test_it_is_found_as_it_is_written(type: str, value: str) -> None:
    guard = Guard([PatternDetector()])
    for text in (
        f"use {value} for it",
        f"use {value}.",
        value,
        f"a\n{value}\nb",
        f"-{value}" if type == "CARD" else value,
    ):
        found = guard.scan(text)
        places = [(one.type, text[one.start : one.end]) for one in found]
        # what stands around a card's groups may stay
        assert [(kind, said.strip("[]()'\"")) for kind, said in places] == [(type, value.strip("[]()'\""))], (
            text
        )
    guard.close()


INSIDE = [
    ("Authorization: Basic YWxpY2U6czNjcjN0", "YWxpY2U6czNjcjN0"),
    ("Cookie: session=abcdef1234567890; theme=dark", "session=abcdef1234567890; theme=dark"),
    ("mysql -u root --password hunter22x", "hunter22x"),
    ("tool --api-key=abc12345", "abc12345"),
    ("PGPASSWORD=hunter22x psql", "hunter22x"),
    ("Passwort: hunter22x", "hunter22x"),
    ("mot de passe : hunter22x", "hunter22x"),
    ("contraseña = hunter22x", "hunter22x"),
    ("hasło: hunter22x", "hunter22x"),
    ("AccountKey=" + "aB3/" * 21 + "==", "aB3/" * 21 + "=="),
    ("https://hooks.slack.com/services/T00/B00/" + "aB3x" * 6, "T00/B00/" + "aB3x" * 6),
    ("https://discord.com/api/webhooks/123456789012345678/" + KEY, "123456789012345678/" + KEY),
]


@pytest.mark.parametrize(("text", "value"), INSIDE, ids=[value for value, _ in INSIDE])
def test_what_names_a_key_stays_and_the_key_does_not(text: str, value: str) -> None:
    guard = Guard([PatternDetector()])
    [found] = guard.scan(text)
    assert (found.type, text[found.start : found.end]) == ("KEY", value)
    guard.close()


@pytest.mark.parametrize(
    "text",
    [
        "look at the dot product",
        "at the dot com bubble",
        "y = x @ self.weight.T",
        "@app.route on a line",
        "import numpy as np  # a @ b",
        "a ratio of 0.4111111111111111",
        "years 1999, 2001, 2003, 2005 and 2007",
        '["2020", "2021", "2022", "2023"]',
        "basic auth is on, basic training too",
        "Basic income",
        "see section [1] and [2] and [3] and [4]",
        "--password-file secrets.txt",
        "--token $TOKEN",
        "git push --force-with-lease",
        "the key- and value-sizes",
        "a parola: yes",
        "SKIP this",
        "12:30 and 14:45",
    ],
)
def test_what_is_none_is_left_alone(text: str) -> None:
    guard = Guard([PatternDetector()])
    assert guard.scan(text) == ()
    guard.close()
