"""Guesses of a model of names: which are believed in prose, and which are not in code and logs."""

from __future__ import annotations

import pytest

from weighbridge.routes.privacy.guesses import believed
from weighbridge.routes.privacy.hits import DOUBTED, SURE, Hit


def kinds(text: str, *guesses: tuple[str, str], rank: int = SURE) -> list[str]:
    """The values that are believed of guesses, given as value and type."""
    hits = [
        Hit(text.index(value), text.index(value) + len(value), type, "test", rank) for value, type in guesses
    ]
    return [text[hit.start : hit.end] for hit in believed(text, hits)]


@pytest.mark.parametrize(
    ("text", "value", "type"),
    [
        ("Please tell Anna Berg about it", "Anna Berg", "PERSON"),
        (">Anna Berg\n>Suite 4", "Anna Berg", "PERSON"),
        ("my sister maria lives there too", "maria", "PERSON"),
        ("send it to 12 High Street please", "12 High Street", "ADDRESS"),
        ("we all met at hegyalja út 98 yesterday", "hegyalja út 98", "ADDRESS"),
        ("they live in LONDON since last year", "LONDON", "LOCATION"),
        ("They're not answering at 516 466 638", "516 466 638", "PHONE"),
        ("They're not answering at 71-33-52-22", "71-33-52-22", "NATIONAL_ID"),
        ("Office 3660170548-Fax", "3660170548", "NATIONAL_ID"),
        ("passport X1234567", "X1234567", "NATIONAL_ID"),
        ("account 123456789", "123456789", "BANK_ACCOUNT"),
        ("我的朋友张伟明天来北京", "张伟", "PERSON"),
    ],
)
def test_what_can_be_read_there_is_believed(text: str, value: str, type: str) -> None:
    assert kinds(text, (value, type)) == [value]


@pytest.mark.parametrize(
    ("text", "value", "type"),
    [
        ("PID 28622 killed, exit code 299", "exit", "ADDRESS"),
        ("resolution 8245x9698, 768 dpi", "768 dpi", "ADDRESS"),
        ("port 7415, pid 48127, uid 6712", "port 7415, pid 48127", "ADDRESS"),
        ('File "batch.py", line 9172, in add', "line 9172", "ADDRESS"),
        ("for _ in range(self.Size): x[i] = Walk(y)", "Walk", "PERSON"),
        ("from 111218 to 9485531 in 370 steps", "9485531", "BANK_ACCOUNT"),
        ("There were 86.565.923 visitors in that year", "86.565.923", "NATIONAL_ID"),
        ("The answer is 636116294.", "636116294", "NATIONAL_ID"),
        ("crc32 f4a06e35 adler a999a556", "a999a556", "NATIONAL_ID"),
        ("48039 + 143703 = 9056849", "143703", "PHONE"),
        ("function call took 8726 1315 ms", "8726 1315", "PHONE"),
        ("git clone git@github.com:a/b.git", "clone git@github.com", "EMAIL"),
        ("the address bus is 52 bits wide", "52 bits wide", "ADDRESS"),
        ("connection was refused by it, retry 17", "retry 17", "ADDRESS"),
        ("pin 9538 of the connector carries 2.4 V", "2.4 V", "ADDRESS"),
        ("use at most 764 words for it", "most 764 words", "ADDRESS"),
        ("Der Anruf der Funktion dauert 399 ms", "dauert 399", "ADDRESS"),
        ("Seite 643 von 192, Zeile 52", "Zeile 52", "ADDRESS"),
        ("AKIA is the prefix of all those keys", "AKIA", "PERSON"),
        ("there were 25 903 618 rows before and after that", "25 903 618", "PHONE"),
        ("the mobile nodes are 76 529 867 in all", "76 529 867", "PHONE"),
    ],
)
def test_what_is_said_by_nothing_beside_it_is_not(text: str, value: str, type: str) -> None:
    assert kinds(text, (value, type)) == []


@pytest.mark.parametrize(
    ("text", "value"),
    [("my sister maria lives there too", "maria"), ("the bogo address is incomplete", "bogo")],
)
def test_a_name_in_small_letters_wants_a_model_that_is_sure(text: str, value: str) -> None:
    assert kinds(text, (value, "PERSON")) == [value]
    assert kinds(text, (value, "PERSON"), rank=DOUBTED) == []
    assert kinds(text.replace(value, value.title()), (value.title(), "PERSON"), rank=DOUBTED) == [
        value.title()
    ]


def test_numbers_in_an_address_belong_to_it() -> None:
    text = "The restaurant is at Box 5797, Kaarikatu 32, 99081"
    guesses = [("5797", "NATIONAL_ID"), ("Kaarikatu 32", "ADDRESS"), ("99081", "LOCATION")]
    assert kinds(text, *guesses) == ["5797", "Kaarikatu 32", "99081"]
