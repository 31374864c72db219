"""Markdown of models as HTML: whatever a text says, only harmless elements come out of it."""

from __future__ import annotations

import time
from html.parser import HTMLParser
from urllib.parse import urlsplit

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.server.console.hostile import TEXTS
from weighbridge.server.console.markdown import LONGEST_TEXT, SCHEMES, rendered

TAGS = {
    *(
        "a",
        "blockquote",
        "br",
        "code",
        "div",
        "em",
        "h1",
        "h2",
        "h3",
        "h4",
        "h5",
        "h6",
        "hr",
        "li",
        "ol",
        "p",
        "pre",
    ),
    *("s", "span", "strong", "table", "tbody", "td", "th", "thead", "tr", "ul"),
}
VOID = {"br", "hr"}


class Checked(HTMLParser):
    """Fails on whatever a page should not be given, and collects the text and the links."""

    def __init__(self) -> None:
        super().__init__()
        self.open: list[str] = []
        self.links: list[str] = []
        self.text = ""

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        assert tag in TAGS, tag
        for name, value in attrs:
            if name == "href":
                assert tag == "a"
                parts = urlsplit(value or "")
                assert parts.scheme.lower() in SCHEMES, value
                self.links.append(value or "")
            elif name in ("rel", "target"):
                assert (tag, value) in (("a", "noopener noreferrer"), ("a", "_blank"))
            elif name == "start":
                assert tag == "ol"
                assert (value or "").isdecimal()
            else:
                assert name == "class", (tag, name)
                for word in (value or "").split():
                    assert word in (
                        "code",
                        "language",
                        "plain",
                        "left",
                        "right",
                        "centre",
                    ) or word.startswith("c-")
        if tag not in VOID:
            self.open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        assert tag in VOID or self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        self.text += data

    def handle_comment(self, data: str) -> None:
        raise AssertionError(data)

    def handle_decl(self, decl: str) -> None:
        raise AssertionError(decl)


def checked(text: str) -> Checked:
    found = Checked()
    found.feed(rendered(text))
    found.close()
    assert not found.open
    return found


def test_there_are_two_hundred_hostile_texts() -> None:
    assert len(set(TEXTS)) >= 200


def test_hostile_texts_come_out_as_harmless_elements() -> None:
    for text in TEXTS:
        checked(text)


_PIECES = st.sampled_from(
    [
        *"<>\"'`&()[]!*_~#|:\\/\n\t ",
        *(
            "javascript:",
            "data:text/html,",
            "](",
            "![",
            "](<",
            "```",
            "~~~",
            "    ",
            "> ",
            "- ",
            "1. ",
            "html\n",
        ),
        *(
            "<script>",
            "</pre>",
            "onerror=",
            "&#106;",
            "&colon;",
            "http://x",
            "mailto:a@b",
            "|-|-|\n",
            "|:-:|\n",
        ),
        *("\x00", "\u202e"),
    ]
)


@given(st.lists(_PIECES | st.text(max_size=6), max_size=40).map("".join))
def test_whatever_is_put_together_is_harmless(text: str) -> None:
    checked(text)


@pytest.mark.parametrize(
    ("text", "link"),
    [
        ("[a](https://example.com/x?y=1)", "https://example.com/x?y=1"),
        ("<http://example.com>", "http://example.com"),
        ("[a](mailto:ann@example.com)", "mailto:ann@example.com"),
        ("![a picture](https://example.com/p.png)", "https://example.com/p.png"),
        ("[a](/admin/replicas)", None),
        ("[a](//example.com)", None),
        ("[a](javascript:alert(1))", None),
        ("[a](data:text/html,x)", None),
        ("[a](file:///etc/passwd)", None),
        ("[a](https:)", None),
        ("![p](/pixel.png)", None),
    ],
)
def test_links_lead_to_the_web_and_to_mail_alone(text: str, link: str | None) -> None:
    assert checked(text).links == ([] if link is None else [link])


def test_what_people_write_looks_as_they_mean_it() -> None:
    html = rendered(
        "# A\n\n**b** *c* ~~d~~ `e`\n\n3. f\n\n| g | h |\n|:--|--:|\n| 1 | 2 |\n\n```python\ndef f(): return '<'\n```\n"
    )
    for piece in (
        "<h1>A</h1>",
        "<strong>b</strong>",
        "<em>c</em>",
        "<s>d</s>",
        "<code>e</code>",
        '<ol start="3">',
    ):
        assert piece in html
    for piece in (
        '<th class="left">g</th>',
        '<td class="right">2</td>',
        '<span class="c-k">def</span>',
        "&lt;",
    ):
        assert piece in html
    assert "style=" not in html


def test_markup_is_shown_as_text() -> None:
    assert "<b>bold</b>" in checked("<b>bold</b> and <script>alert(1)</script>").text


@pytest.mark.parametrize(
    "piece", ["[", "*a", "`", "> ", "![a](", "| a ", "<", "_a*", "- ", "&", "\\", "[a](b\n", "~~~\n"]
)
def test_a_long_text_takes_no_long_time(piece: str) -> None:
    text = (piece * LONGEST_TEXT)[: LONGEST_TEXT - 1]
    began = time.thread_time()
    checked(text)
    assert time.thread_time() - began < 5.0


def test_a_text_that_is_too_long_is_shown_as_it_is() -> None:
    assert rendered("*a* <" + "b" * LONGEST_TEXT).startswith('<pre class="plain">*a* &lt;b')
