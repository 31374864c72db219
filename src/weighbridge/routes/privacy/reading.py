"""A text as it can be read, with every character traced back to where it stands in the text as it was written. Pure.

    written   alice%40ex\\u200bample.com
    decoded   alice@ex\\u200bample.com      what percent signs, entities and escapes stand for
    plain     alice@example.com           invisible characters gone, compatibility forms and all digits plain
    folded    case and accents gone too: how values are compared

A reading is made of another one, and `span` leads through all of them to the written text.
"""

from __future__ import annotations

import html
import re
import unicodedata
from bisect import bisect_right
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field

from weighbridge.routes.privacy.hits import Tick

#: Escapes within escapes are undone this often.
ROUNDS = 4
#: Characters searched at a time, for the interpreter cannot be taken from a search; and the longest bounded match.
_WINDOW, _LONGEST = 1 << 16, 256

_DASHES = frozenset("\u2010\u2011\u2012\u2013\u2014\u2015\u2212\ufe58\ufe63\uff0d\u2027")
_BLANK = frozenset("\u115f\u1160\u3164\uffa0\ufffc")  # letters and marks that show nothing
_LINE_ENDS = frozenset("\x0b\x0c\x85\u2028\u2029")
#: Categories of what nobody sees: controls, formats, surrogates, unassigned, private, marks on other characters.
_UNSEEN = frozenset(("Cc", "Cf", "Cs", "Cn", "Co", "Me", "Mn"))


def no_tick() -> None:
    """Time does not matter."""


@dataclass(slots=True)
class TextReading:
    """`text` was made of `of` (None: of nothing, it is the written text itself) in segments.

    Segment `i` begins at `at[i]` here and at `starts[i]` there. `ends[i]` is -1 where each of its characters stands for
    one there; else all of them stand for all of `starts[i]:ends[i]`. No segments: nothing was changed.
    """

    text: str
    of: TextReading | None = None
    at: list[int] = field(default_factory=list)
    starts: list[int] = field(default_factory=list)
    ends: list[int] = field(default_factory=list)

    def span(self, start: int, end: int) -> tuple[int, int]:
        """Where `text[start:end]` stands in the written text; what was left out inside belongs to it."""
        if self.of is None:
            return start, end
        if not self.at or start >= end:
            return self.of.span(start, end)
        return self.of.span(self._place(start)[0], self._place(end - 1)[1])

    def _place(self, position: int) -> tuple[int, int]:
        segment = bisect_right(self.at, position) - 1
        start, end = self.starts[segment], self.ends[segment]
        if end >= 0:
            return start, end
        start += position - self.at[segment]
        return start, start + 1


class _Builder:
    """Puts a reading together from left to right."""

    def __init__(self, of: TextReading) -> None:
        self._of = of
        self._pieces: list[str] = []
        self._size = 0
        self._done = 0  # of the text it is made of
        self._made = TextReading("", of)

    def replace(self, start: int, end: int, text: str) -> None:
        """`text` stands for `start:end`, and all between what was replaced before and this is as it was."""
        self._keep(start)
        self._segment(text, start, end)
        self._done = end

    def each(self, start: int, texts: list[str]) -> None:
        """As many texts for as many characters from `start` on."""
        self._keep(start)
        for number, text in enumerate(texts, start):
            if len(text) != 1:
                self._segment(text, number, number + 1)
            else:
                self._one_to_one(text, number)
        self._done = start + len(texts)

    def done(self) -> TextReading:
        if not self._made.at and not self._done:
            return self._of
        self._keep(len(self._of.text))
        self._made.text = "".join(self._pieces)
        return self._made

    def _keep(self, end: int) -> None:
        if end > self._done:
            self._one_to_one(self._of.text[self._done : end], self._done)

    def _one_to_one(self, text: str, start: int) -> None:
        made = self._made
        continues = made.at and made.ends[-1] < 0 and start - made.starts[-1] == self._size - made.at[-1]
        if not continues:
            self._mark(start, -1)
        self._add(text)

    def _segment(self, text: str, start: int, end: int) -> None:
        if text:
            self._mark(start, end)
            self._add(text)

    def _mark(self, start: int, end: int) -> None:
        self._made.at.append(self._size)
        self._made.starts.append(start)
        self._made.ends.append(end)

    def _add(self, text: str) -> None:
        self._pieces.append(text)
        self._size += len(text)


def written(text: str) -> TextReading:
    """The text itself."""
    return TextReading(text)


def readings(text: str, tick: Tick = no_tick) -> Iterator[TextReading]:
    """The plain reading, and what else the text says where escapes and markup are looked through, each once."""
    first = plain(written(text), tick)
    yield first
    seen = {first.text}
    clear = decoded(written(text), tick)
    bare = without_markup(clear, tick)
    for other in (clear, bare, closed_up(bare, tick), with_latin(bare, tick)):
        reading = plain(other, tick)
        if reading.text not in seen:
            seen.add(reading.text)
            yield reading


def _found(pattern: re.Pattern[str], text: str, tick: Tick) -> Iterator[re.Match[str]]:
    """`finditer`, a window at a time; what has no bound (runs of one kind) may come in two parts."""
    position = 0
    while position < len(text):
        tick()
        window = position + _WINDOW
        for match in pattern.finditer(text, position, window + _LONGEST):
            if match.start() >= window:
                break
            yield match
            position = match.end()
        position = max(position, window)


# -- plain -------------------------------------------------------------------------------------------------

_CONTROLS = bytes(each for each in range(128) if (each < 32 and each not in b"\t\n\r") or each == 127)
#: What may have to change. One class, so that it is found in linear time.
_STRANGE = re.compile(r"[^\t\n\r\x20-\x7e]+")


class _Characters(dict[str, str]):
    """What each character becomes, worked out when it is first met."""

    def __init__(self, change: Callable[[str], str]) -> None:
        super().__init__()
        self._change = change

    def __missing__(self, character: str) -> str:
        made = self._change(character)
        if len(self) < 1 << 17:
            self[character] = made
        return made


def plain(of: TextReading, tick: Tick = no_tick) -> TextReading:
    """Without what is invisible; compatibility forms (full-width, ligatures), digits, dashes and spaces plain."""
    if _is_plain_ascii(of.text):
        return of
    return _changed(of, _STRANGE, _PLAIN, tick)


def _is_plain_ascii(text: str) -> bool:
    return text.isascii() and len(text.encode().translate(None, _CONTROLS)) == len(text)


def _changed(of: TextReading, where: re.Pattern[str], table: _Characters, tick: Tick) -> TextReading:
    build = _Builder(of)
    for match in _found(where, of.text, tick):
        run = match[0]
        made = [table[character] for character in run]
        if "".join(made) != run:
            build.each(match.start(), made)
    return build.done()


def _plain(character: str) -> str:
    if character in _DASHES:
        return "-"
    if character in _LINE_ENDS:
        return "\n"
    category = unicodedata.category(character)
    if category in _UNSEEN or character in _BLANK:
        return ""
    if category == "Zs" or character == "\u2800":
        return " "
    digit = unicodedata.decimal(character, None)
    if digit is not None:
        return str(digit)
    form = unicodedata.normalize("NFKC", character)
    return "".join(part for part in form if unicodedata.category(part) not in _UNSEEN)


# -- folded ------------------------------------------------------------------------------------------------


def folded(of: TextReading, tick: Tick = no_tick) -> TextReading:
    """As values are compared: without case, accents and kinds of white space."""
    text = of.text
    if text.isascii():
        lower = text.lower().translate(_SPACES)
        return of if lower == text else TextReading(lower, of)
    return _changed(of, _ANY, _FOLDED, tick)


def fold(text: str) -> str:
    """The folded form of a short text: of a value, or of a phrase."""
    return folded(plain(written(text))).text


def _fold(character: str) -> str:
    if character.isspace():
        return " "
    if character == "\u0131":  # the dotless i of Turkish, whose capital is everybody's I
        return "i"
    loose = unicodedata.normalize("NFKD", unicodedata.normalize("NFKD", character).casefold())
    return "".join(part for part in loose if unicodedata.category(part) not in _UNSEEN)


_SPACES = {ord(each): " " for each in "\t\n\r\x0b\x0c\x1c\x1d\x1e\x1f"}
_ANY = re.compile(r"[A-Z\t\n\r\x0b\x0c\x1c-\x1f\x80-\U0010ffff]+")
_PLAIN, _FOLDED = _Characters(_plain), _Characters(_fold)

# -- decoded -----------------------------------------------------------------------------------------------

#: Every alternative begins with another character and is bounded, but for runs of one kind: linear.
_ESCAPED = re.compile(
    r"(?P<percent>(?:%[0-9A-Fa-f]{2})+)|%u[0-9A-Fa-f]{4}"
    r"|&(?:#[0-9]{1,7}|#[xX][0-9A-Fa-f]{1,6}|[A-Za-z][A-Za-z0-9]{1,30});?"
    r"|\\(?:u[dD][89abAB][0-9A-Fa-f]{2}\\u[dD][c-fC-F][0-9A-Fa-f]{2}|u[0-9A-Fa-f]{4}|u\{[0-9A-Fa-f]{1,6}\}"
    r"|U[0-9A-Fa-f]{8}|x[0-9A-Fa-f]{2}|[0-3][0-7]{2}|[nrt\"'/\\])"
    r"|(?P<quoted>(?:=[0-9A-F]{2})+|=\r?\n)"
)
_LETTERS = {"n": "\n", "r": "\r", "t": "\t"}
#: Tags, comments, code marks and stress: what a renderer takes away.
_MARKUP = re.compile(r"<!--[^<>]{0,200}-->|</?[A-Za-z][^<>]{0,200}>|\*\*|__|[`*]|\\(?=[!-/:-@\[-`{-~])")


def decoded(of: TextReading, tick: Tick = no_tick) -> TextReading:
    """What percent signs, entities, backslashes and quoted-printable stand for, several times over."""
    reading = of
    for _ in range(ROUNDS):
        text = reading.text
        if not any(sign in text for sign in "%&\\="):
            break
        quoted = "=3D" in text or "=\n" in text or "=\r\n" in text
        build = _Builder(reading)
        for match in _found(_ESCAPED, text, tick):
            _decode(build, match, quoted)
        after = build.done()
        if after is reading or after.text == text:
            break
        reading = after
    return reading


def _decode(build: _Builder, match: re.Match[str], quoted: bool) -> None:
    start, end = match.span()
    if match["percent"]:
        _percent(build, start, bytes.fromhex(match[0].replace("%", "")))
    elif match["quoted"]:
        if quoted:
            if match[0].endswith("\n"):
                build.replace(start, end, "")
            else:
                _percent(build, start, bytes.fromhex(match[0].replace("=", "")))
    else:
        made = html.unescape(match[0]) if match[0][0] == "&" else _unescape(match[0][1:])
        if made != match[0]:
            build.replace(start, end, made)


def _percent(build: _Builder, start: int, data: bytes) -> None:
    """A run of bytes, three characters each: UTF-8 where it is that, else Latin-1."""
    done = 0
    while done < len(data):
        for size in (1, 2, 3, 4):
            try:
                made = data[done : done + size].decode("utf-8")
                break
            except UnicodeDecodeError:
                continue
        else:
            made, size = chr(data[done]), 1
        size = min(size, len(data) - done)
        build.replace(start + 3 * done, start + 3 * (done + size), made)
        done += size


def _unescape(body: str) -> str:
    """What a backslash and `body` stand for."""
    if len(body) == 11:  # two halves of one character
        return chr(0x10000 + (int(body[1:5], 16) - 0xD800) * 0x400 + int(body[7:], 16) - 0xDC00)
    if body[0] in "uUx":
        code = int(body[1:].strip("{}"), 16)
        return chr(code) if code < 0x110000 else ""
    if body[0].isdigit():
        return chr(int(body, 8))
    return _LETTERS.get(body, body)


def without_markup(of: TextReading, tick: Tick = no_tick) -> TextReading:
    """Without tags, comments and the marks of Markdown."""
    if not any(sign in of.text for sign in "<*_`\\"):
        return of
    build = _Builder(of)
    for match in _found(_MARKUP, of.text, tick):
        build.replace(*match.span(), "")
    return build.done()


#: Single characters with spaces between, as in `a l i c e`; every repeat is over with the next character.
_SPACED = re.compile(r"(?<!\S)\S(?: {1,3}\S){5,}(?!\S)")


def closed_up(of: TextReading, tick: Tick = no_tick) -> TextReading:
    """With characters together that were spaced out."""
    build = _Builder(of)
    for match in _found(_SPACED, of.text, tick):
        for gap in re.finditer(" +", match[0]):
            start, end = match.start() + gap.start(), match.start() + gap.end()
            build.replace(start, end, "" if len(gap[0]) == 1 else " ")
    return build.done()


#: Letters of Cyrillic and Greek that look like Latin ones.
_LIKE = dict(
    zip(
        "\u0430\u0435\u043e\u0440\u0441\u0443\u0445\u0456\u0458\u0455\u0410\u0412\u0415\u041a\u041c\u041d\u041e\u0420"
        "\u0421\u0422\u0423\u0425\u0406\u0408\u0405\u03bf\u03bd\u03b1\u03c1\u0391\u0392\u0395\u0396\u0397\u0399\u039a"
        "\u039c\u039d\u039f\u03a1\u03a4\u03a5\u03a7",
        "aeopcyxijsABEKMHOPCTYXIJSovapABEZHIKMNOPTYX",
        strict=True,
    )
)
_MIXED = re.compile(r"[A-Za-z0-9][\u0370-\u04ff]|[\u0370-\u04ff][A-Za-z]")
_FOREIGN = re.compile("[" + "".join(_LIKE) + "]+")
_LATIN = _Characters(lambda character: _LIKE.get(character, character))


def with_latin(of: TextReading, tick: Tick = no_tick) -> TextReading:
    """With Latin letters for those that look like them, where a word has both."""
    if of.text.isascii() or not _MIXED.search(of.text):
        return of
    return _changed(of, _FOREIGN, _LATIN, tick)
