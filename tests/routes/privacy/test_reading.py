"""Readings of a text: what they say, and that every character leads back to where it was written."""

from __future__ import annotations

import html

import pytest
from hypothesis import given
from hypothesis import strategies as st

from weighbridge.routes.privacy.reading import decoded, fold, folded, plain, readings, written

#: Characters that change their number when they are folded, decoded or made plain, among others that do not.
_ODD = "aZ 9@.ßẞﬁﬀΣςσİıKÅée\u0301ñｅ＠①²\u200b\u00ad\x00\u0300\u202e\u3000٣५𝐚\U0001d7ce名号한글ก้𐐀\U000e0041"
_ENCODED = ["%40", "%C3%9F", "&#64;", "&amp;", "&szlig;", "\\u00df", "\\x40", "\\n", "=40", "**", "<b>"]
texts = st.lists(st.sampled_from([*_ODD, *_ENCODED]), max_size=30).map("".join)


@given(texts)
def test_a_reading_leads_back_to_the_written_text_in_order_and_without_gaps_inside(text: str) -> None:
    for reading in readings(text):
        for made in (reading, folded(reading)):
            spans = [made.span(at, at + 1) for at in range(len(made.text))]
            assert all(0 <= start < end <= len(text) for start, end in spans)
            assert spans == sorted(spans)
            if spans:
                assert made.span(0, len(made.text)) == (spans[0][0], spans[-1][1])


@given(texts, st.data())
def test_what_stands_in_a_span_reads_as_the_span_does(text: str, data: st.DataObject) -> None:
    """TextReading only what a span covers gives what stood there (or more: a ligature is not cut in two)."""
    reading = plain(written(text))
    if not reading.text:
        return
    start = data.draw(st.integers(0, len(reading.text) - 1))
    end = data.draw(st.integers(start + 1, len(reading.text)))
    low, high = reading.span(start, end)
    assert reading.text[start:end] in plain(written(text[low:high])).text


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("groß", "gross"),
        ("GROẞ", "gross"),
        ("ﬁnﬂuﬀ", "finfluff"),
        ("İstanbul ISPARTA ısparta", "istanbul isparta isparta"),
        ("ΟΔΟΣ οδός", "οδοσ οδοσ"),
        ("ｆｕｌｌ　ｗｉｄｔｈ", "full width"),
        ("e\u0301té été", "ete ete"),
        ("K\u212a Å\u212b", "kk aa"),
        ("𝐛𝐨𝐥𝐝 ①", "bold 1"),
    ],
)
def test_folding(text: str, said: str) -> None:
    assert fold(text) == said


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("alice%40example.com", "alice@example.com"),
        ("alice%2540example.com", "alice@example.com"),
        ("gro%C3%9F%e9", "großé"),
        ("a%u0040b", "a@b"),
        ("alice&#64;example&period;com", "alice@example.com"),
        ("alice&amp;#x40;example.com", "alice@example.com"),
        ("\\u0061\\x6c\\151\\ud83d\\ude00", "ali\N{GRINNING FACE}"),
        ("a=40b=3D=\nc", "a@b=c"),
        ("100% & a\\b", "100% & a\\b"),
    ],
)
def test_decoding(text: str, said: str) -> None:
    assert decoded(written(text)).text == said


@given(st.text(max_size=50))
def test_what_html_escapes_comes_back(text: str) -> None:
    if not any(sign in text for sign in "&%\\="):
        assert decoded(written(html.escape(text))).text == text


def test_an_ascii_text_without_escapes_has_one_reading_and_is_itself() -> None:
    text = "the quick brown fox jumps over 12 dogs\tand\r\n1 cat"
    assert [each.text for each in readings(text)] == [text]
