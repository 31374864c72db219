"""What the page of every report is made of: one shell, one style, tags and tables. No scripts, nothing from elsewhere.

Text from outside is escaped here and nowhere else: whatever is put into a tag, a table or a page is text, unless it
is `Html`, which only this package makes.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from html import escape
from pathlib import Path

from weighbridge.errors import BadInput

STYLE = """
:root{color-scheme:light dark;--ink:#1c2128;--soft:#5b6470;--line:#d9dce1;--page:#fff;--good:#2f8f5b;--bad:#c94f4f}
@media(prefers-color-scheme:dark){:root{--ink:#e6e8eb;--soft:#9aa3ad;--line:#3a414a;--page:#16191d}}
body{font:15px/1.5 system-ui,sans-serif;color:var(--ink);background:var(--page);margin:2rem auto;max-width:1060px;
padding:0 1rem}
p{overflow-wrap:anywhere}
h1{font-size:1.5rem;margin:0 0 .2rem}h2{font-size:1.15rem;margin:2rem 0 .4rem}h3{font-size:1rem;margin:1.4rem 0 .2rem}
summary{font-weight:600;cursor:pointer;padding:.3rem 0}li{margin:.25rem 0}
code{background:color-mix(in srgb,var(--soft) 15%,transparent);padding:.1rem .3rem;border-radius:3px;
overflow-wrap:anywhere}
.soft{color:var(--soft)}.good{color:var(--good)}.bad{color:var(--bad)}.wide{overflow-x:auto}
table{border-collapse:collapse;font-variant-numeric:tabular-nums}
td,th{padding:.25rem .8rem .25rem 0;text-align:right;border-bottom:1px solid var(--line);white-space:nowrap}
th{color:var(--soft);font-weight:500;white-space:normal;vertical-align:bottom}td:first-child,th:first-child{text-align:left}
table.words td,table.words th{text-align:left;white-space:normal;vertical-align:top}
figure{margin:.6rem 0 1.2rem}figcaption{font-weight:500}
.legend{display:flex;flex-wrap:wrap;gap:.1rem 1.2rem;font-size:13px;color:var(--soft)}
.legend i{display:inline-block;width:1.3em;height:.25em;margin-right:.4em;vertical-align:middle}
svg{display:block;width:100%;min-width:640px;height:auto}
svg text{font:12px system-ui,sans-serif;fill:var(--soft)}svg .ink{fill:var(--ink)}
"""


class Html(str):
    """Markup, which goes into a page as it is."""

    __slots__ = ()


def html(value: object) -> Html:
    """Return `value` as markup: itself if it is that already, else its text, escaped."""
    return value if isinstance(value, Html) else Html(escape(str(value)))


def joined(parts: Iterable[object], between: str = "") -> Html:
    """Return the parts behind each other, with `between` between them."""
    return Html(html(between).join(map(html, parts)))


def tag(name: str, *content: object, **attributes: object) -> Html:
    """Return an element. `cls` is its class; an attribute that is None is left out, and True has no value."""
    head = [name]
    for key, value in attributes.items():
        key = "class" if key == "cls" else key.replace("_", "-")
        if value is True:
            head.append(key)
        elif value is not None:
            head.append(f'{key}="{html(value)}"')
    return Html(f"<{' '.join(head)}>{joined(content)}</{name}>")


def table(head: Sequence[object], rows: Iterable[Sequence[object]], *, words: bool = False) -> Html:
    """Return a table that scrolls where it is too wide: its first column to the left, numbers to the right.

    `words`: every column to the left, and long texts broken.
    """
    lines = [tag("tr", *(tag("th", cell) for cell in head))]
    lines += [tag("tr", *(tag("td", cell) for cell in row)) for row in rows]
    return tag("div", tag("table", *lines, cls="words" if words else None), cls="wide")


def items(lines: Iterable[object]) -> Html:
    """Return a list with a point for each line."""
    return tag("ul", *(tag("li", line) for line in lines))


def page(title: str, *body: object, style: str = "") -> str:
    """Return a whole page. `style` is CSS beyond `STYLE`, written by us."""
    return (
        '<!doctype html><html lang="en"><head><meta charset="utf-8">'
        '<meta name="viewport" content="width=device-width, initial-scale=1">'
        f"<title>{html(title)}</title><style>{STYLE}{style}</style></head>\n"
        f"<body>{joined(body, chr(10))}</body></html>\n"
    )


def check_page(path: Path | None) -> None:
    """Refuse a page that cannot be written, before hours go into what it shows."""
    if path is not None and (path.is_dir() or not path.absolute().parent.is_dir()):
        raise BadInput(f"--html {path}: give a file in a directory that exists", param="html")


def save(path: Path, text: str) -> None:
    """Write a page to a file. Raises BadInput when that fails."""
    try:
        path.write_text(text, encoding="utf-8")
    except OSError as error:
        raise BadInput(f"{path} cannot be written: {error.strerror or error}", param="html") from error
