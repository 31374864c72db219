"""Pages: whatever is put into them is text, unless they made it themselves; and they stand alone."""

from __future__ import annotations

import xml.etree.ElementTree as ElementTree
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from weighbridge.errors import BadInput
from weighbridge.pages.charts import Chart, Series
from weighbridge.pages.html import Html, html, items, joined, page, save, table, tag

#: XML has no way to write the other characters below the space, nor halves of pairs.
TEXT = st.text(st.characters(codec="utf-8", exclude_categories=["Cc"]))


@given(TEXT, TEXT)
def test_text_stays_text_wherever_it_is_put(inside: str, attribute: str) -> None:
    made = tag("p", inside, tag("b", inside), title=attribute, data_name=attribute, cls=None)
    parsed = ElementTree.fromstring(made)
    assert (parsed.text or "") == inside
    assert [child.text or "" for child in parsed] == [inside]
    assert parsed.attrib == {"title": attribute, "data-name": attribute}
    for other in (table([inside], [[inside, 5]]), items([inside]), joined([inside, inside], inside)):
        words = "".join(ElementTree.fromstring(f"<x>{other}</x>").itertext())
        assert words.replace(inside, "") in ("", "5")


@given(TEXT)
def test_names_in_charts_stay_text(name: str) -> None:
    lines = [
        Series(name, [0, 1], [1, 2], dots=True, notes=[name, name], labels=[name]),
        Series("b", [0], [1]),
    ]
    drawn = Chart(name, name, name, lines, 1.0, down=[(0.5, name)], across=[(1.0, name)]).html()
    assert {element.tag for element in ElementTree.fromstring(drawn).iter()} <= {
        *("figure", "figcaption", "div", "span", "i", "svg", "line", "text", "path", "circle", "title")
    }


def test_what_was_made_from_markup_by_hand_is_text_again() -> None:
    bold = tag("b", "x")
    assert html(bold) == bold
    assert html(bold + "<i>") == "&lt;b&gt;x&lt;/b&gt;&lt;i&gt;"
    assert html(7) == "7"
    assert tag("details", open=True) == "<details open></details>"
    assert isinstance(joined([bold, "&"]), Html)


def test_a_page_stands_alone_and_can_be_written_or_says_why_not(tmp_path: Path) -> None:
    text = page("a < b", tag("h1", "a < b"), table(("", "n"), [["r", 1]]), style=".x{color:red}")
    assert text.startswith("<!doctype html>")
    assert "<title>a &lt; b</title>" in text
    assert ".x{color:red}" in text
    for fetched in ("src=", "href=", "url(", "http", "<script", "@import"):
        assert fetched not in text
    save(tmp_path / "page.html", text)
    assert (tmp_path / "page.html").read_text(encoding="utf-8") == text
    with pytest.raises(BadInput, match=r"none.page\.html cannot be written"):
        save(tmp_path / "none" / "page.html", text)
