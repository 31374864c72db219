"""Values that have a shape: cards, accounts, addresses of mail and machines, secrets; national ids and phones beside.

Whatever has check digits is checked; whatever has none needs a telling shape or a word beside it.
"""

from __future__ import annotations

import ipaddress
import re
from collections.abc import Iterator, Sequence

import re2

from weighbridge.routes.privacy import checksums as check
from weighbridge.routes.privacy.hits import Hit, Tick
from weighbridge.routes.privacy.reading import fold, folded, no_tick, written
from weighbridge.routes.privacy.shapes.identities import IDENTITIES
from weighbridge.routes.privacy.shapes.pattern import LETTER, Edges, Pattern, Scene, W, shape
from weighbridge.routes.privacy.shapes.phones import PHONES
from weighbridge.routes.privacy.shapes.services import SERVICES
from weighbridge.routes.privacy.shapes.words import (
    LONGEST,
    Context,
    Expression,
    RightBefore,
    RightBehind,
    Words,
    is_edge,
)
from weighbridge.routes.privacy.shapes.written_apart import WRITTEN_APART

#: Phrases longer than this are found also where their words are written as one.
LONG_PHRASE = 8
_CARD_WORDS = Words(
    "cards?|credit|debit|visa|mastercard|amex|maestro|karte|tarjeta|carte|cartão|карт*|卡号|银行卡|信用卡|カード"
)
#: Words that a number of four parts is a version after, as in `version 1.2.3.4`, or a place in a document.
_NO_ADDRESS = RightBefore(
    "(?:assembly|file|product)?versions?|ver|v|releases?|build|firmware|driver|sdk|opset|kernel|linux|windows|openssl|mysql|java|jdk"
    "|chrome|cuda|gcc|glibc|tag|patch|update|(?:upgrad|updat|chang|bump)ed (?:to|from)"
    "|sections?|sec|chapters?|clauses?|paragraphs?|articles?|figures?|fig|tables?|appendix|annex|steps?|items?|rules?|parts?"
    "|requirements?|req|oid|abschnitt|kapitel|absatz|ziffer|chapitre|seccion|capitulo|sezione|paragrafo|раздел|глава|пункт",
    r"[a-z0-9_]/|[=~<>^]=? ?[\"']?|[a-z0-9_]-|[0-9] (?:to|->|=>) v?|[§第] ?",
)
#: What names a machine before an equals sign, which stands before versions of packages otherwise.
_MACHINES = (
    r"(?:(?:ip|ipv4|addr|address|host|server|client|remote|peer|gateway|dns|bind|listen|endpoint|node|src|dst|source|dest"
    r"|destination|upstream|target|nameserver|subnet|network|netmask|proxy|master|replica|broker|from|via)"
    r"(?:[_-]?(?:ip|addr|address|host|name))?[0-9]?)"
)
#: Words that a long number which may pass for a card is another thing after.
_NUMBERED = RightBefore("barcodes?|ean|gtin|upc|snowflake|epoch|timestamp|nonce|builds?|offset|seed")
#: What has suites and units and is nobody's home.
_HOME = Context(
    barred=RightBefore("tests?|benchmarks?|cipher"), after=RightBehind("tests?|passed|failed|of|cases?")
)
#: Endings of names that are none of hosts: files beside an `@2x`, units of systemd.
_FILES = "png jpg jpeg gif svg webp pdf css html json yaml yml txt exe dll tsx jsx gz tar zip"
_UNITS = "service socket timer target mount"
_OF_FILES, _OF_UNITS = frozenset(_FILES.split()), frozenset(_UNITS.split())
#: Top-level domains that more may stand right behind, as in `ann@example.com_old`.
_COMMON = "com|org|net|edu|gov|eu|de|fr|uk"
#: Names that machines log in by, not people.
_NO_PEOPLE = frozenset(("git", "hg", "svn"))
#: Groups that anything may stand between, so that they are looked at for what issuers give out only.
_GAP = r"[ \t\r\n.,/_|:;\x83-]{1,3}"


def _ip(text: str) -> bool:
    """An address of some machine: not one that means "here" or "everywhere"."""
    try:
        address = ipaddress.ip_address(text)
    except ValueError:
        return False
    is_mask = text.startswith("255.")
    return not (address.is_loopback or address.is_unspecified or is_mask)


def _ipv6(text: str) -> bool:
    """Eight groups, or fewer that begin as an address which is given out does: `db::add` is code."""
    begins = re.match(
        r"(?i)[23][0-9a-f]{3}:|f[cd][0-9a-f]{2}:|fe[89ab][0-9a-f]:|ff[0-9a-f]{2}:|64:ff9b:"
        r"|::ffff:[0-9a-f]{1,4}:[0-9a-f]{1,4}$",
        text,
    )
    is_whole = text.count(":") == 7 and "::" not in text
    return bool(begins or is_whole) and any(map(str.isdigit, text)) and _ip(text)


def _written_ip(text: str) -> bool:
    """`10[.]0[.]0[.]7`, as people write addresses that nobody should follow."""
    return _ip(".".join(re.findall(r"\d+", text)))


def _mail(text: str) -> bool:
    """An address, also where it is a file's name: `ann@example.com.pdf`, and neither `icon@2x.png` nor a unit."""
    name, _, host = text.rpartition("@")
    labels = host.lower().split(".")
    if labels[-1] in _OF_UNITS or name.lower() in _NO_PEOPLE:
        return False
    if labels[-1] not in _OF_FILES:
        return True
    while labels and labels[-1] in _OF_FILES:
        labels.pop()
    is_scale = re.match(r"\dx(?![a-z0-9])", host) is not None
    return len(labels) > 1 and not is_scale and re.match(r"[^\W\d_]{2,24}(?:[-_]|$)", labels[-1]) is not None


def _card(text: str) -> bool:
    """A card as cards are written: in one, in groups of which the first has four digits (six of 19), or one by one."""
    groups = re.split("[ -]", text)
    sizes = [len(group) for group in groups]
    is_written_so = len(groups) == 1 or sizes[0] == 4 or set(sizes) == {1} or sizes == [6, 13]
    digits = "".join(filter(str.isdigit, text))
    if len(digits) == 12 and digits[:2] not in ("50", "56", "57", "58", "63", "67"):
        return False  # none but Maestro's
    if len(digits) == 13 and digits[0] != "4":
        return False  # none but Visa's, and they are old
    if len(digits) in (17, 18) and digits[0] != "6" and digits[:2] not in ("50", "56", "57", "58"):
        return False
    return is_written_so and check.card(text)


def _has_both(text: str) -> bool:
    """Digits and letters, as secrets have."""
    return any(map(str.isdigit, text)) and any(map(str.isalpha, text))


#: What code has where a secret would stand: a call, an element, an attribute.
_CODE = re.compile(
    r"[A-Za-z_][\w.]*[(\[]|(?:self|this|os|process|config|settings|env|request|ctx|args)\.|[$%{<]"
)


def _secret(text: str) -> bool:
    return _has_both(text) and _CODE.match(text) is None


def _random(text: str) -> bool:
    """Ten letters and digits in a row, of both kinds: no words of a name."""
    return any(_has_both(run) for run in re.findall("[A-Za-z0-9]{10,}", text))


_LOCAL = r"[\w.+%'-]+"
_ASCII_HOST = r"(?:[\w-]+\.)+[A-Za-z]{2,24}"
_DOT = r"[\[({<] ?(?i:dot) ?[\])}>]"
_HOST = rf"(?:[{W}-]+\.)+[{LETTER}]{{2,24}}"
_PRIVATE = r"(?:[A-Z]{1,12} ){0,3}PRIVATE KEY(?: BLOCK)?"
#: One after the other, they are one value: a text of nothing else would hold a value every thirty characters.
_BEGINS = rf"-----BEGIN {_PRIVATE}-----(?:[\s>|#*]*-----BEGIN {_PRIVATE}-----)*"

PATTERNS: tuple[Pattern, ...] = (
    shape(
        "EMAIL", rf"{_LOCAL}@{_ASCII_HOST}", _mail, Edges(before=W + r".+%\-", after=r"\w"), rank=9
    ).needing("@"),
    shape(
        "EMAIL",
        rf"{_LOCAL}@(?:[\w-]+\.)+(?i:{_COMMON})",
        _mail,
        Edges(before=W + r".+%\-", after=LETTER),
        rank=8,
    ).needing("@"),
    shape("EMAIL", rf"[{W}.+%'-]+@{_HOST}", _mail, Edges(before=W + r".+%\-"), rank=9).needing("@"),
    shape(
        "EMAIL",
        rf"[{W}\x84.+%'-]*\x84@(?:[{W}\x84-]+\.)+[{LETTER}\x84]{{2,24}}",
        edges=Edges(after=None),
        rank=8,
    ).needing("@"),
    shape(
        "CARD",
        r"\d(?:[ -]?\d){11,18}",
        _card,
        Edges(before=W + r".\-", after=W + r"\-", unless_digit="."),
        context=Context(barred=_NUMBERED),
        rank=9,
    ),
    shape(
        "CARD",
        rf"\d{{4}}(?:{_GAP}\d{{4}}){{2}}{_GAP}\d{{1,7}}|\d{{4}}{_GAP}\d{{6}}{_GAP}\d{{4,5}}",
        check.issued_card,
        rank=8,
    ),
    shape("CARD", r"\d(?:[ -]?\d){11,18}", context=Context(_CARD_WORDS), rank=6),
    shape("IBAN", r"[A-Za-z]{2}\d{2}(?:[ -]?[A-Za-z0-9]){11,30}", check.iban, rank=9),
    shape("IBAN", r"[A-Z]{2}\d{2}(?: ?[A-Z0-9]{4}){2,7}(?: ?[A-Z0-9]{1,3})?", check.iban, rank=9),
    shape(
        "IBAN",
        rf"[A-Z]{{2}}\d{{2}}(?:{_GAP}[A-Z0-9]{{4}}){{2,7}}(?:{_GAP}[A-Z0-9]{{1,3}})?",
        check.iban,
        rank=9,
    ),
    shape(
        "IP",
        r"(?:\d{1,3}\.){3}\d{1,3}",
        _ip,
        Edges(before=W + ".", unless_digit="."),
        context=Context(barred=_NO_ADDRESS),
        rank=8,
    ).needing(".", digits=4),
    shape(
        "IP",
        rf"(?:(?:[{W}]{{0,24}}[_.-])?(?i:{_MACHINES})[\"']?[ \t]{{0,2}}=[ \t]{{0,2}}[\"']?"
        r"((?:\d{1,3}\.){3}\d{1,3}))",
        _ip,
        Edges(before=W + ".", unless_digit="."),
        rank=8,
    )
    .needing("=", digits=4)
    .inside(),
    shape("IP", rf"\d{{1,3}}(?:(?:{_DOT}|[\[(] ?\. ?[\])])\d{{1,3}}){{3}}", _written_ip, rank=8).needing(
        "dot [.] (.)", digits=4
    ),
    shape(
        "IP",
        r"[0-9A-Fa-f]{0,4}(?::[0-9A-Fa-f]{0,4}){2,7}",
        _ipv6,
        Edges(before=W + ":.", after=W + ":("),
        rank=8,
    ).needing(":"),
    *WRITTEN_APART,
    *IDENTITIES,
    *PHONES,
    *SERVICES,
    # -- parts of addresses ---------------------------------------------------------------------------------
    shape(
        "ADDRESS", r"(?:Apt|Apartment|Suite|Ste|Flat|Unit)\.? ?#?\d{1,5}[A-Za-z]?", context=_HOME, rank=4
    ).needing("apt apartment suite ste flat unit"),
    shape(
        "ADDRESS",
        r"(?i:(?:p\.? ?o\.? ?box|postbox|postfach|apartado|(?:PSC|CMR|Unit) \d{1,5},? box) ?\d{1,6})",
        rank=4,
    ).needing("box postfach apartado"),
    shape("ADDRESS", r"(?:[^\n]{2,30}\n)?(?:APO|FPO|DPO),? A[AEP] \d{5}(?:-\d{4})?", rank=4).needing(
        "apo fpo dpo"
    ),
    # -- keys and tokens ------------------------------------------------------------------------------------
    shape(
        "KEY",
        rf"{_BEGINS}(?:(?:[^-]|-{{1,4}}[^-])*-----END {_PRIVATE}-----"
        r"|(?:(?:[\s>|#*]|\\[nr]|[A-Z][A-Za-z-]{2,19}: [^\n]{0,80}\n)*[A-Za-z0-9+/=]{32,})*)",
        edges=Edges(before=None, after=None),
        rank=9,
    ).needing("-----begin"),
    shape(
        "KEY",
        r"(?:sk|pk|rk)[-_](?:[A-Za-z]{2,12}[-_]){0,3}[A-Za-z0-9_-]{16,}",
        _random,
        Edges(before=W + r"\-", after=None),
        rank=9,
    ).needing("sk- sk_ pk- pk_ rk- rk_"),
    shape(
        "KEY",
        r"(?:gh[pousr]_[A-Za-z0-9]{30,}|github_pat_\w{22,}|glpat-[\w-]{20,})",
        edges=Edges(after=None),
        rank=9,
    ).needing("ghp_ gho_ ghu_ ghs_ ghr_ github_pat_ glpat-"),
    shape("KEY", r"(?:AKIA|ASIA|AIDA|AROA)[A-Z0-9]{16}", rank=9).needing("akia asia aida aroa"),
    shape("KEY", r"AIza[\w-]{35}|ya29\.[\w-]{20,}", edges=Edges(after=None), rank=9).needing("aiza ya29."),
    shape(
        "KEY",
        r"xox[abeoprs]-[A-Za-z0-9-]{10,}|hf_[A-Za-z0-9]{30,}|(?:npm|pypi)[_-][A-Za-z0-9_-]{30,}",
        edges=Edges(after=None),
        rank=9,
    ).needing("xox hf_ npm_ npm- pypi_ pypi-"),
    shape(
        "KEY", r"eyJ[\w-]{8,}\.eyJ[\w-]{8,}\.[\w-]*", edges=Edges(before=W + r"\-", after=None), rank=9
    ).needing("eyj"),
    shape("KEY", r"(?i:bearer)\s{1,4}([A-Za-z0-9._~+/-]{12,}=*)", _random, Edges(after=None), rank=7)
    .needing("bearer")
    .inside(),
    shape("KEY", r"://([^\s/:@]{0,64}:[^\s/@]{1,128})@", edges=Edges(before=None, after=None), rank=7)
    .needing("://")
    .inside(),
    shape(
        "KEY",
        rf"(?i:(?:[{W}]{{0,24}}[_-])?(?:pass(?:word|wd|phrase)?|pwd|secret|api[_-]?key|access[_-]?key|auth[_-]?token|token)"
        r"[\"']?\s{0,3}(?::=|[:=]|\bis\b)\s{0,3}[\"']?([^\s\"',;]{6,}))",
        _secret,
        Edges(after=None),
        rank=6,
    )
    .needing("pass pwd secret key token")
    .inside(),
)


def _spaced(found: str) -> str:
    """A phrase as it is kept."""
    return " ".join(re.split(r"[ ._/-]+", found))


def _gap(phrase: str) -> str:
    """What may stand between the words of a phrase: for long ones also nothing."""
    return rf"[ ._/\-]{{{0 if len(phrase) > LONG_PHRASE else 1},3}}"


class PatternDetector:
    """All patterns over a text that is already plain."""

    name = "patterns"
    is_quick = True

    def __init__(self, patterns: Sequence[Pattern] = PATTERNS) -> None:
        most = max(each.digits for each in patterns)
        #: Digits of a text -> what may be found in it: most patterns want many.
        self._by_digits = [[each for each in patterns if each.digits <= count] for count in range(most + 1)]

    def detect(self, text: str) -> list[Hit]:
        return self.detect_within(text, no_tick)

    def detect_within(self, text: str, tick: Tick) -> list[Hit]:
        scene = Scene(text, tick)
        patterns = self._by_digits[min(scene.digits, len(self._by_digits) - 1)]
        return [hit for pattern in patterns if pattern.is_worth_trying(scene) for hit in pattern.hits(scene)]


class DenyListDetector:
    """Words and phrases that an operator never wants to leave. Whole words, whatever the case, accents and spaces.

    Parts of a name count as words: `bluefin` is found in `bluefin_search`, `getBluefin` and `bluefin2`.
    """

    name = "deny list"
    is_quick = True

    def __init__(self, phrases: Sequence[str]) -> None:
        wanted = {" ".join(fold(one).split()) for one in phrases} - {""}
        #: Phrase -> the others that it begins with: tried where it is no whole word.
        self._beginnings = {
            one: [one[:size] for size in range(1, len(one)) if one[:size] in wanted] for one in wanted
        }
        parts = [_gap(one).join(map(re2.escape, one.split(" "))) for one in wanted]
        self._expression = re2.compile("|".join(parts).encode(), LONGEST) if parts else None

    def detect(self, text: str) -> list[Hit]:
        return self.detect_within(text, no_tick)

    def detect_within(self, text: str, tick: Tick) -> list[Hit]:
        if self._expression is None:
            return []
        hits = []
        for place in self._places(text, self._expression):
            tick()
            hits.append(Hit(*place, "DENIED", self.name, 10))
        return hits

    def _places(self, text: str, expression: Expression) -> Iterator[tuple[int, int]]:
        reading = folded(written(text))
        data = reading.text.encode()
        position = at = counted = 0  # where the search is; `counted` characters are before the byte `at`
        while match := expression.search(data, position):
            counted, at = counted + len(data[at : match.start()].decode()), match.start()
            found = match[0].decode()
            for size in (len(found), *map(len, reversed(self._beginnings.get(_spaced(found), ())))):
                start, end = reading.span(counted, counted + size)
                if is_edge(text, start) and is_edge(text, end):
                    yield start, end
                    break
            position = match.start() + len(found[:1].encode())
