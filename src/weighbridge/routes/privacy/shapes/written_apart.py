"""Values that are written so that people read them and machines do not: signs within brackets, as words, or with spaces
around them; groups between quotes and brackets."""

from __future__ import annotations

from weighbridge.routes.privacy import checksums as check
from weighbridge.routes.privacy.shapes.pattern import LETTER, Edges, Pattern, W, shape

#: Top-level domains that are believed of what is no address yet.
_COMMON = "com|org|edu|gov|io|eu|de|fr|uk|it|es|nl|ch|at|pl|se|jp|cn|in|br|ru|info"
_WITHIN = r"[\[({{<] ?(?:(?i:{})|\{}) ?[\])}}>]"
_AT, _DOT = _WITHIN.format("at|a", "@"), _WITHIN.format("dot|punkt|point", ".")
#: Whatever is neither letter nor number.
_ANY_GAP = rf"[^{W}\x84]{{1,6}}"

WRITTEN_APART: tuple[Pattern, ...] = (
    shape("EMAIL", rf"[{W}.+-]+ ?{_AT} ?(?:[{W}-]+(?:\.| ?{_DOT} ?))+[{LETTER}]{{2,24}}", rank=8).needing(
        "[ ( { <"
    ),
    shape("EMAIL", rf"[{W}.+-]+@(?:[{W}-]+ ?{_DOT} ?)+[{LETTER}]{{2,24}}", rank=8).needing("@"),
    shape(
        "EMAIL",
        rf"[{W}+-]+(?: (?i:dot) [{W}+-]+){{0,3}} (?i:at) [{W}-]+(?: (?i:dot) [{W}-]+){{0,3}}"
        rf" (?i:dot) (?i:{_COMMON}|net)",
        rank=7,
    ).needing("dot"),
    shape(
        "EMAIL",
        rf"[{W}.+'-]+(?: {{1,2}}@ {{0,2}}|@ {{1,2}})(?:[{W}-]+ {{0,2}}\. {{0,2}})+(?i:{_COMMON})"
        rf"|[{W}.+'-]+@(?:[{W}-]+(?: {{1,2}}\. {{0,2}}|\. {{1,2}}))+(?i:{_COMMON})",
        edges=Edges(before=W + ".", after=W),
        rank=7,
    ).needing("@"),
    shape(
        "EMAIL",
        rf"[{W}\x84.+'-]+@(?:[{W}\x84-]+\.)*[{W}\x84-]+\x83(?:[{W}\x84-]+[.\x83])*(?i:{_COMMON}|net)",
        edges=Edges(before=W + ".", after=W),
        rank=7,
    ).needing("@"),
    shape("EMAIL", r'"[^"\n@]{1,64}"@(?:[\w-]+\.)+[A-Za-z]{2,24}', edges=Edges(before=None), rank=8).needing(
        '"@'
    ),
    shape(
        "CARD",
        rf"\d{{4}}(?:{_ANY_GAP}\d{{4}}){{3}}|\d{{4}}{_ANY_GAP}\d{{6}}{_ANY_GAP}\d{{5}}",
        check.issued_card,
        rank=7,
    ),
    shape("CARD", r"\d{15,16}", check.issued_card, Edges(before=W + ".", after=W), rank=7),
    shape("IBAN", r"[A-Za-z]{2}\d{2}[A-Za-z0-9]{11,30}", check.iban, rank=9),
    shape("SSN", r"\d{3}_\d{2}_\d{4}", check.us_ssn, rank=7),
)
