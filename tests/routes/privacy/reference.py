"""The patterns as they were for Python's `re`, with look-around: the oracle of those that run in linear time."""

from __future__ import annotations

import ipaddress
import re
from collections.abc import Callable, Iterable
from dataclasses import dataclass

from weighbridge.routes.privacy import checksums as check
from weighbridge.routes.privacy.hits import Hit

CONTEXT = 48
_PHONE_WORDS = r"phone|telephone|tel|call|mobile|cell|fax|contact|number|whatsapp|sms|text me|dial|reach"


@dataclass(frozen=True, slots=True)
class Reference:
    """A type, an expression with look-around, and what a value must be besides."""

    type: str
    expression: re.Pattern[str]
    valid: Callable[[str], bool] | None = None
    context: re.Pattern[str] | None = None
    rank: int = 5
    group: int = 0
    needs: tuple[str, ...] = ()

    def hits(self, text: str) -> Iterable[Hit]:
        for match in self.expression.finditer(text):
            start, end = match.span(self.group)
            if self.valid is not None and not self.valid(match[self.group]):
                continue
            if self.context is not None and not self.context.search(text, max(0, start - CONTEXT), start):
                continue
            yield Hit(start, end, self.type, "reference", self.rank)


def _p(
    type: str,
    expression: str,
    valid: Callable[[str], bool] | None = None,
    context: str | None = None,
    rank: int = 5,
    group: int = 0,
    needs: str = "",
) -> Reference:
    words = re.compile(rf"(?i:\b(?:{context})\b)") if context else None
    return Reference(type, re.compile(expression), valid, words, rank, group, tuple(needs.split()))


def _ip(text: str) -> bool:
    try:
        ipaddress.ip_address(text.split("%")[0])
    except ValueError:
        return False
    return True


def _phone(text: str) -> bool:
    """7 to 15 digits that are no date and no version, and not the same digit over and over."""
    digits = check.digits_of(text)
    dateish = re.fullmatch(
        r"(?:19|20)\d\d[-./ ]\d{1,2}[-./ ]\d{1,2}|\d{1,2}[-./ ]\d{1,2}[-./ ](?:19|20)?\d\d", text
    )
    return 7 <= len(digits) <= 15 and len(set(digits)) > 2 and not dateish


_D = r"(?<![\w.])"  # no digit or letter before
_E = r"(?!\w|\.\d)"  # nor behind

REFERENCES: tuple[Reference, ...] = (
    _p("EMAIL", r"(?<![\w.+%-])[\w.+%'-]{1,64}@(?:[\w-]{1,63}\.){1,8}[^\W\d_]{2,24}\b", rank=9, needs="@"),
    _p("CARD", r"(?<![\w.-])\d(?:[ -]?\d){11,18}(?![\w-]|\.\d)", check.card, rank=9),
    _p(
        "CARD",
        r"(?<!\w)\d(?:[ -]?\d){11,18}(?!\w)",
        None,
        "card|credit|debit|visa|mastercard|amex|maestro",
        6,
    ),
    _p("IBAN", r"(?<!\w)[A-Za-z]{2}\d{2}(?:[ -]?[A-Za-z0-9]){11,30}(?!\w)", check.iban, rank=9),
    _p("IBAN", r"(?<!\w)[A-Z]{2}\d{2}(?: ?[A-Z0-9]{4}){2,7}(?: ?[A-Z0-9]{1,3})?(?!\w)", check.iban, rank=9),
    _p("SSN", r"(?<![\w-])\d{3}[- ]\d{2}[- ]\d{4}(?![\w-])", check.us_ssn, rank=8),
    _p("SSN", r"(?<![\w-])\d{9}(?![\w-])", check.us_ssn, "ssn|social security(?: number| no)?", rank=8),
    _p("IP", r"(?<![\w.])(?:\d{1,3}\.){3}\d{1,3}(?![\w]|\.\d)", _ip, rank=8, needs="."),
    _p(
        "IP",
        r"(?<![\w:.])(?:[0-9A-Fa-f]{0,4}:){2,7}[0-9A-Fa-f]{0,4}(?![\w:])",
        lambda t: len(t) > 5 and _ip(t),
        rank=8,
        needs=":",
    ),
    # -- national ids ---------------------------------------------------------------------------------------
    _p("NATIONAL_ID", r"(?<!\w)[XYZxyz]?-?\d{7,8}-?[A-Za-z](?!\w)", check.spanish_id, rank=7),
    _p(
        "NATIONAL_ID",
        r"(?<!\w)[12] ?\d\d ?(?:0[1-9]|1[0-2]|[2-9]\d) ?(?:\d\d|2[AB]) ?\d{3} ?\d{3} ?\d\d(?!\w)",
        check.french_nir,
        rank=8,
    ),
    _p(
        "NATIONAL_ID",
        r"(?<!\w)[A-Za-z]{6}\d\d[A-EHLMPRSTa-ehlmprst]\d\d[A-Za-z]\d{3}[A-Za-z](?!\w)",
        check.italian_tax_code,
        rank=8,
    ),
    _p("NATIONAL_ID", r"(?<!\w)756[. ]?\d{4}[. ]?\d{4}[. ]?\d\d(?!\w)", check.swiss_ahv, rank=8),
    _p("NATIONAL_ID", r"(?<!\w)\d{3}\.\d{3}\.\d{3}-\d\d(?!\w)", check.cpf, rank=8),
    _p("NATIONAL_ID", r"(?<!\w)[A-CEGHJ-PR-TW-Z][A-CEGHJ-NPR-TW-Z] ?\d\d ?\d\d ?\d\d ?[A-D](?!\w)", rank=7),
    _p("NATIONAL_ID", r"(?<!\w)\d{3}[ -]?\d{3}[ -]?\d{4}(?!\w)", check.nhs, "nhs(?: number| no)?", rank=8),
    _p("NATIONAL_ID", r"(?<!\w)\d{9}(?!\w)", check.bsn, "bsn|burgerservicenummer|sofi", rank=8),
    _p("NATIONAL_ID", r"(?<!\w)\d{11}(?!\w)", check.pesel, "pesel", rank=8),
    _p("NATIONAL_ID", r"(?<!\w)\d{11}(?!\w)", check.cpf, "cpf", rank=8),
    _p(
        "NATIONAL_ID",
        r"(?<!\w)\d{2} ?\d{3} ?\d{3} ?\d{3}(?!\w)",
        check.german_tax_id,
        r"steuer\S*|tax id|idnr",
        rank=8,
    ),
    _p(
        "NATIONAL_ID",
        r"(?<!\w)\d{4}[ -]?\d{4}[ -]?\d{4}(?!\w)",
        check.verhoeff,
        "aadhaar|aadhar|uidai",
        rank=8,
    ),
    _p(
        "NATIONAL_ID",
        r"(?<!\w)(?:\d\d)?\d{6}[-+]\d{4}(?!\w)",
        lambda t: check.luhn(t[-11:]),
        "personnummer|personal (?:id|number)",
        8,
    ),
    _p(
        "NATIONAL_ID",
        r"(?<!\w)[A-Za-z0-9]{6,12}(?!\w)",
        lambda t: any(map(str.isdigit, t)),
        r"passport(?: (?:number|no|is))*\W{0,3}",
        6,
    ),
    _p(
        "NATIONAL_ID",
        r"(?<!\w)[A-Za-z0-9-]{6,16}(?!\w)",
        lambda t: sum(map(str.isdigit, t)) > 3,
        r"(?:driver'?s? licen[cs]e|licen[cs]e number)(?: (?:number|no|is))*\W{0,3}",
        6,
    ),
    # -- phones ---------------------------------------------------------------------------------------------
    _p(
        "PHONE",
        r"(?<![\w+])\+\d{1,3}(?:[ .\-()/]{0,2}\d){6,13}(?:\s?(?:x|ext\.?)\s?\d{1,6})?(?!\w)",
        _phone,
        rank=7,
    ),
    _p(
        "PHONE",
        r"(?<![\w.-])(?:00\d{1,2}[ .-])?\(?\d{3}\)?[ .-]?\d{3}[.-]\d{4}(?:\s?"
        r"(?:x|ext\.?)\s?\d{1,6})?(?![\w-])",
        _phone,
        rank=6,
    ),
    _p("PHONE", r"(?<![\w.])\(\d{2,4}\) ?\d{3,4}[ -]?\d{3,4}(?!\w)", _phone, rank=6),
    _p("PHONE", r"(?<![\w.,$€£-])0\d{1,4}[ .-]\d{2,4}(?:[ .-]?\d{2,4}){1,3}(?![\w-]|\.\d)", _phone, rank=5),
    _p("PHONE", r"(?<![\w.,$€£/-])\d{2,5}(?:[ .-]\d{2,5}){1,4}(?![\w-]|[.,]\d)", _phone, _PHONE_WORDS, 4),
    _p(
        "PHONE",
        r"(?<![\w.,$€£/-])\d{7,12}(?![\w-]|[.,]\d)",
        _phone,
        r"phone|telephone|tel|mobile|cell|fax|whatsapp|call me (?:at|on)",
        4,
    ),
    # -- parts of addresses ---------------------------------------------------------------------------------
    _p(
        "ADDRESS",
        r"(?<!\w)(?:Apt|Apartment|Suite|Ste|Flat|Unit)\.? ?#?\d{1,5}[A-Za-z]?(?!\w)",
        rank=4,
        needs="apt apartment suite ste flat unit",
    ),
    _p(
        "ADDRESS",
        r"(?i)(?<!\w)(?:p\.? ?o\.? ?box|postbox|postfach|apartado|"
        r"(?:PSC|CMR|Unit) \d{1,5},? box) ?\d{1,6}(?!\w)",
        rank=4,
        needs="box postfach apartado",
    ),
    _p(
        "ADDRESS",
        r"(?<!\w)(?:[^\n]{2,30}\n)?(?:APO|FPO|DPO),? A[AEP] \d{5}(?:-\d{4})?(?!\w)",
        rank=4,
        needs="apo fpo dpo",
    ),
    # -- keys and tokens ------------------------------------------------------------------------------------
    _p(
        "KEY",
        r"-----BEGIN (?:[A-Z]{1,12} ){0,3}PRIVATE KEY-----[\s\S]{1,8000}?-----END "
        r"(?:[A-Z]{1,12} ){0,3}PRIVATE KEY-----",
        rank=9,
        needs="-----begin",
    ),
    _p(
        "KEY",
        r"(?<![\w-])(?:sk|pk|rk)[-_](?:[A-Za-z]{2,12}[-_]){0,3}[A-Za-z0-9_-]{16,200}",
        rank=9,
        needs="sk- sk_ pk- pk_ rk- rk_",
    ),
    _p(
        "KEY",
        r"(?<!\w)(?:gh[pousr]_[A-Za-z0-9]{30,255}|github_pat_\w{22,255}|glpat-[\w-]{20,64})",
        rank=9,
        needs="ghp_ gho_ ghu_ ghs_ ghr_ github_pat_ glpat-",
    ),
    _p("KEY", r"(?<!\w)(?:AKIA|ASIA|AIDA|AROA)[A-Z0-9]{16}(?!\w)", rank=9, needs="akia asia aida aroa"),
    _p("KEY", r"(?<!\w)AIza[\w-]{35}|(?<!\w)ya29\.[\w-]{20,300}", rank=9, needs="aiza ya29."),
    _p(
        "KEY",
        r"(?<!\w)xox[abeoprs]-[A-Za-z0-9-]{10,200}|(?<!\w)hf_[A-Za-z0-9]{30,60}|(?<!\w)"
        r"(?:npm|pypi)[_-][A-Za-z0-9_-]{30,250}",
        rank=9,
        needs="xox hf_ npm_ npm- pypi_ pypi-",
    ),
    _p("KEY", r"(?<![\w-])eyJ[\w-]{8,2000}\.eyJ[\w-]{8,8000}\.[\w-]{0,2000}", rank=9, needs="eyj"),
    _p("KEY", r"(?i)\bbearer\s{1,4}([A-Za-z0-9._~+/-]{12,2000}=*)", group=1, rank=7, needs="bearer"),
    _p("KEY", r"(?<=://)[^\s/:@]{1,64}:[^\s/@]{1,128}(?=@)", rank=7, needs="://"),
    _p(
        "KEY",
        r"(?i)\b(?:\w{0,24}[_-])?(?:pass(?:word|wd|phrase)?|pwd|secret|api[_-]?key|access[_-]?key|auth[_-]?token|token)"
        r"[\"']?\s{0,3}(?::=|[:=]|\bis\b)\s{0,3}[\"']?([^\s\"',;]{6,256})",
        lambda t: any(map(str.isdigit, t)) and any(map(str.isalpha, t)),
        group=1,
        rank=6,
        needs="pass pwd secret key token",
    ),
)
