"""Markdown of a model as HTML that a page may take in: no markup of its own, no pictures, links to the web and to mail.

Code is coloured by classes, since the console's policy allows no styles in elements. Everything that comes out is made
here from a small set of elements and attributes; a test holds hostile texts against that set.
"""

from __future__ import annotations

from collections.abc import MutableMapping, Sequence
from html import escape
from typing import Any
from urllib.parse import urlsplit

import msgspec
from markdown_it import MarkdownIt
from markdown_it.renderer import RendererHTML
from markdown_it.token import Token
from markdown_it.utils import OptionsDict
from pygments import highlight
from pygments.formatters import HtmlFormatter
from pygments.lexers import get_lexer_by_name
from pygments.util import ClassNotFound

#: Characters of a text that are rendered; a longer one is shown as it is. The worst of them, open brackets alone, takes
#: a second or two, in time that grows with the square of them.
LONGEST_TEXT = 24 * 1024
#: Characters of one block of code that are coloured, and of the name of its language.
LONGEST_CODE, LONGEST_LANGUAGE = 16 * 1024, 40
#: How deep lists and quotes may stand in each other.
DEEPEST = 20
#: Schemes of links that a reader may follow.
SCHEMES = frozenset({"http", "https", "mailto"})

_SIDES = {"text-align:left": "left", "text-align:right": "right", "text-align:center": "centre"}
_FORMATTER = HtmlFormatter(nowrap=True, classprefix="c-")
Env = MutableMapping[str, Any]


class MarkdownText(msgspec.Struct):
    """What is to be rendered."""

    text: str


def is_followable(url: str) -> bool:
    """Whether a link leads where links of a chat may lead: to the web or to mail, and nowhere relative to us."""
    try:
        parts = urlsplit(url)
    except ValueError:
        return False
    if parts.scheme.lower() not in SCHEMES:
        return False
    return parts.scheme.lower() == "mailto" or bool(parts.netloc)


class _Renderer(RendererHTML):
    """Writes elements without styles, pictures as links, and code with the classes of its kind."""

    def image(self, tokens: Sequence[Token], idx: int, options: OptionsDict, env: Env) -> str:
        token = tokens[idx]
        words = self.renderInlineAsText(token.children or [], options, env) or "picture"
        url = str(token.attrs.get("src", ""))
        if not is_followable(url):
            return escape(words)
        return f'<a href="{escape(url)}" rel="noopener noreferrer" target="_blank">{escape(words)}</a>'

    def link_open(self, tokens: Sequence[Token], idx: int, options: OptionsDict, env: Env) -> str:
        url = str(tokens[idx].attrs.get("href", ""))
        if not is_followable(url):
            return "<a>"
        return f'<a href="{escape(url)}" rel="noopener noreferrer" target="_blank">'

    def fence(self, tokens: Sequence[Token], idx: int, options: OptionsDict, env: Env) -> str:
        token = tokens[idx]
        words = token.info.split(maxsplit=1)
        language = words[0][:LONGEST_LANGUAGE] if words else ""
        label = f'<span class="language">{escape(language)}</span>' if language else ""
        return f'<div class="code">{label}<pre><code>{coloured(token.content, language)}</code></pre></div>\n'

    def code_block(self, tokens: Sequence[Token], idx: int, options: OptionsDict, env: Env) -> str:
        return f'<div class="code"><pre><code>{escape(tokens[idx].content)}</code></pre></div>\n'

    def code_inline(self, tokens: Sequence[Token], idx: int, options: OptionsDict, env: Env) -> str:
        return f"<code>{escape(tokens[idx].content)}</code>"

    def renderToken(self, tokens: Sequence[Token], idx: int, options: OptionsDict, env: Env) -> str:
        token = tokens[idx]
        if token.tag in ("th", "td") and token.nesting == 1:
            side = _SIDES.get(str(token.attrs.get("style", "")))
            return f'<{token.tag} class="{side}">' if side else f"<{token.tag}>"
        if token.tag == "ol" and token.nesting == 1 and isinstance(token.attrs.get("start"), int):
            return f'<ol start="{token.attrs["start"]}">\n'
        token.attrs = {}
        return super().renderToken(tokens, idx, options, env)


def coloured(code: str, language: str) -> str:
    """A block of code as HTML: in colour where its language is known and it is not too long."""
    if not language or len(code) > LONGEST_CODE:
        return escape(code)
    try:
        lexer = get_lexer_by_name(language, stripnl=False)
    except ClassNotFound:
        return escape(code)
    return str(highlight(code, lexer, _FORMATTER))


def _made() -> MarkdownIt:
    options = {"html": False, "linkify": False, "typographer": False, "breaks": False, "maxNesting": DEEPEST}
    markdown = MarkdownIt("commonmark", options, renderer_cls=_Renderer)
    markdown.enable(["table", "strikethrough"])
    markdown.disable(["html_block", "html_inline"])
    return markdown


_MARKDOWN = _made()


def rendered(text: str) -> str:
    """Return `text` as HTML; one that is too long as it is, in a block."""
    if len(text) > LONGEST_TEXT:
        return f'<pre class="plain">{escape(text)}</pre>'
    return str(_MARKDOWN.render(text))
