"""Keys of services that say by their beginning, or by where they stand, what they are."""

from __future__ import annotations

import base64
import re

from weighbridge.routes.privacy.shapes.pattern import Edges, Pattern, W, shape

_FREE = Edges(before=W + r"\-", after=None)
#: What keys of services begin with; behind it comes a row of letters and digits.
_BEGINNINGS = (
    "xai- gsk_ nvapi- pplx- tvly- r8_ dop_v1_ doo_v1_ dor_v1_ shpat_ shpca_ shppa_ shpss_ whsec_ rubygems_ glc_ glsa_ "
    "dckr_pat_ lin_api_ figd_ sbp_ secret_ ntn_ atatt3x rnd_ fw_ jina_ dp.pt. ops_ pmak- sntrys_ sq0csp- sq0atp- eaaa "
    "key- dapi age-secret-key-1"
)


def _mixed(text: str) -> bool:
    """Sixteen letters and digits in a row, of both kinds: no words of a name."""
    rows = re.findall("[A-Za-z0-9]{16,}", text)
    return any(re.search("[0-9]", row) and re.search("[A-Za-z]", row) for row in rows)


def _credentials(text: str) -> bool:
    """A name and a password as HTTP's Basic has them."""
    try:
        told = base64.b64decode(text, validate=True).decode()
    except ValueError:
        return False
    return ":" in told[1:] and told.isprintable()


def _has_both(text: str) -> bool:
    return any(map(str.isdigit, text)) and any(map(str.isalpha, text))


#: Words that name a password in other languages than English, with the letters of ASCII alone.
_PASSWORDS = (
    r"passwort kennwort passe contrase\x80a contrasena clave senha wachtwoord parola has\x80o haslo "
    r"l\x80senord salasana heslo jelsz\x80 \x80ifre sifre"
)
#: What of them is looked for first.
_PARTS = "passwor kennwor passe contrase clave senha wachtwo parola has l\u00f6sen salasana heslo jelsz ifre"


SERVICES: tuple[Pattern, ...] = (
    shape(
        "KEY",
        rf"(?i:{'|'.join(re.escape(one) for one in _BEGINNINGS.split())})[A-Za-z0-9_=-]{{20,}}",
        _mixed,
        _FREE,
        rank=8,
    ).needing(_BEGINNINGS),
    shape("KEY", r"SG\.[\w-]{16,}\.[\w-]{16,}", edges=_FREE, rank=9).needing("sg."),
    shape("KEY", r"SK[0-9a-f]{32}", rank=8).needing("sk"),
    shape("KEY", r"\d{8,10}:[A-Za-z0-9_-]{35}", _has_both, rank=8).needing(":", digits=9),
    shape(
        "KEY",
        r"hooks\.slack\.com/(?:services|workflows|triggers)/([A-Za-z0-9/]{20,})",
        edges=Edges(before=None, after=None),
        rank=8,
    )
    .needing("hooks.slack")
    .inside(),
    shape(
        "KEY",
        r"discord(?:app)?\.com/api/(?:v\d{1,2}/)?webhooks/(\d{15,20}/[\w-]{30,})",
        edges=Edges(before=None, after=None),
        rank=8,
    )
    .needing("/webhooks/")
    .inside(),
    shape(
        "KEY",
        r"(?i:AccountKey|SharedAccessKey|SharedAccessSignature|sig)=([A-Za-z0-9+/%]{30,}={0,2})",
        _has_both,
        Edges(after=None),
        rank=8,
    )
    .needing("accountkey sharedaccess sig=")
    .inside(),
    shape("KEY", r"(?i:basic)\s{1,4}([A-Za-z0-9+/]{6,}={0,2})", _credentials, rank=8)
    .needing("basic")
    .inside(),
    shape(
        "KEY",
        r"(?i:cookie):\s{0,3}((?:[\w.-]{1,64}=[^;\s]+(?:;\s{0,2})?)+)",
        _has_both,
        Edges(after=None),
        rank=7,
    )
    .needing("cookie:")
    .inside(),
    shape(
        "KEY",
        r"--?(?i:password|passwd|pwd|pass|token|secret|api-?key|access-?key)[ =][\"']?([^\s\"',;]{6,})",
        _has_both,
        Edges(before=W + r"\-", after=None),
        rank=7,
    )
    .needing("-pass -pwd -token -secret -api -access")
    .inside(),
    shape("KEY", r"[A-Z]{1,24}PASS(?:WORD|WD)?=[\"']?([^\s\"',;]{6,})", _has_both, Edges(after=None), rank=7)
    .needing("pass")
    .inside(),
    shape(
        "KEY",
        rf"(?i:{'|'.join(_PASSWORDS.split())})[\"']?\s{{0,3}}[:=]\s{{0,3}}[\"']?([^\s\"',;]{{6,}})",
        _has_both,
        Edges(after=None),
        rank=6,
    )
    .needing(_PARTS)
    .inside(),
)
