"""Numbers that states give to people: with check digits where there are any, else with a word beside them."""

from __future__ import annotations

import re
from collections.abc import Callable

from weighbridge.routes.privacy import checksums as check
from weighbridge.routes.privacy.shapes.pattern import Edges, Pattern, shape
from weighbridge.routes.privacy.shapes.words import Context, RightBefore, Words

ID_WORDS = Words(
    r"""
    national (?:id|identity|identification)(?: card)?(?: number| no)?|identity card|id card|id-card|citizen id|nric
    social security(?: number| no)?|social insurance(?: number| no)?|tax id|taxpayer id|itin|nin|nid|cnic|nicop|ssnit
    national insurance(?: number| no)?|ni (?:number|no)|medicare (?:card|number|no)|ppsn|pps (?:number|no)
    sss (?:number|no)|philsys|philid|emirates id|civil id|qatar id|iqama
    dni|nif|cédula|rut|curp|rfc|cpf|documento de identidad|identidad|identidade|rg|cnpj|contribuinte|cartão de cidadão
    título de eleitor|pis/pasep
    carte d'identité|numéro de sécurité sociale|sécurité sociale|sécu|nir|numéro national|numéro fiscal|carte vitale
    personalausweis*|ausweis*|steuer*|sozialversicherung*|rentenversicherung*|krankenversichert*|idnr|svnr|sv-nummer
    codice fiscale|carta d'identità|partita iva|паспорт*|снилс|инн|полис омс|удостоверение личности|рнокпп|посвідчення
    kimlik*|tckn|vergi no|vergi numar*|vergi kimlik*|nik|ktp|no ktp|nomor induk|npwp|mykad|kad pengenalan
    cccd|cmnd|căn cước*|chứng minh*|số định danh
    pesel|(?:nr|numer) nip|dowód*|dowodu|bsn|burgerservicenummer|rijksregister*|sofi|personnummer|personal (?:id|number)
    rodné číslo|cnp|tfn|tax file number|cpr|cpr-nummer|fødselsnummer*|henkilötunnus*|isikukood|oib|jmbg|јмбг|emšo|egn
    егн|αφμ|αμκα|cuil|cuit|asmens kodas|personas kods|תעודת זהות|ת.ז|ת"ז
    aadhaar|aadhar|uidai|pan card|voter id|आधार|पैन|पहचान पत्र|मतदाता पहचान|আধার|জাতীয় পরিচয়পত্র|এনআইডি
    ఆధార్|ஆதார்|ਆਧਾਰ|આધાર|ಆಧಾರ್|ആധാർ|kitambulisho|nida|bvn
    هوية|الهوية|رقم قومي|الرقم القومي|رقم الهوية|إقامة|الإقامة|رقم البطاقة|رقم بطاقة|بطاقة الهوية|بطاقة هوية
    البطاقة الشخصية|بطاقتي|شناختی کارڈ|قومی شناختی|کد ملی|کدملی|کارت ملی|شماره ملی|شناسنامه
    身份证|身分證|身份證|居民身份|证件号|證件號|社保号|统一编号|統一編號|マイナンバー|個人番号|基礎年金番号|免許証
    주민등록번호|주민번호|외국인등록번호|사업자등록번호|บัตรประชาชน|เลขประจำตัว
    """
)
PASSPORT_WORDS = Words(
    r"""
    passports?|passeport|pasaporte|passaporte|passaporto|reisepass*|paspoort|paszport*|паспорт*|загранпаспорт*|pasaport
    paspor|hộ chiếu|pasipoti|جواز|گذرنامه|پاسپورت|پاسپورٹ|पासपोर्ट|পাসপোর্ট|పాస్‌పోర్ట్|பாஸ்போர்ட்
    护照|護照|パスポート|旅券|여권|หนังสือเดินทาง
    """
)
LICENCE_WORDS = Words(
    r"""
    driver'?s? licen[cs]e|driving licen[cs]e|licen[cs]e number|führerschein*|permis(?: de conduire)?
    licencia de conducir|carnet de conducir|carteira de motorista|cnh|водительск*
    sürücü belgesi|rijbewijs|prawo jazdy
    驾驶证|驾照|駕照|運転免許|운전면허
    """
)
_NAMED = Context(
    ID_WORDS, RightBefore("orders?|invoices?|tickets?|runs?|builds?|releases?|versions?|jobs?|requests?")
)


def _only(names: str) -> Context:
    return Context(Words(names))


def _has_digits(least: int) -> Callable[[str], bool]:
    def valid(text: str) -> bool:
        return sum(map(str.isdigit, text)) >= least

    return valid


def _id(text: str) -> bool:
    """6 to 20 digits that are no date."""
    is_date = re.fullmatch(
        r"(?:19|20)\d\d[-./ ]?[01]\d[-./ ]?[0-3]\d|[0-3]\d[-./ ][01]\d[-./ ](?:19|20)\d\d", text
    )
    return 6 <= sum(map(str.isdigit, text)) <= 20 and not is_date


def _swedish(text: str) -> bool:
    return check.luhn(text[-11:])


def _of_birth(text: str) -> bool:
    """Six digits that begin with a year, month and day."""
    return re.match(r"\D*\d\d(?:0[1-9]|1[0-2])(?:0[1-9]|[12]\d|3[01])", text) is not None


def _mixed(text: str) -> bool:
    """Five digits at least, and letters among them."""
    return sum(map(str.isdigit, text)) >= 5 and not text.isdigit()


#: Cards whose numbers mix letters and digits.
_CARDS = _only(
    "personalausweis*|ausweis*|krankenversichert*|rentenversicherung*|dowód*|dowodu|carta d'identità|kitas|voter id"
    "|identity card(?: number| no)?|id card(?: number| no)?|मतदाता पहचान"
)

IDENTITIES: tuple[Pattern, ...] = (
    # -- that a checksum or a telling shape gives away ------------------------------------------------------
    shape(
        "SSN",
        r"\d{3}[- ]\d{2}[- ]\d{4}",
        check.us_ssn,
        Edges(before=r"\w\x80\x81.\-", after=r"\w\x80\x81\-"),
        rank=8,
    ),
    shape("NATIONAL_ID", r"(?:\d{8}|[XYZxyz]-?\d{7})-?[A-Za-z]", check.spanish_id, rank=7),
    shape(
        "NATIONAL_ID",
        r"[12] ?\d\d ?(?:0[1-9]|1[0-2]|[2-9]\d) ?(?:\d\d|2[AB]) ?\d{3} ?\d{3} ?\d\d",
        check.french_nir,
        rank=8,
    ),
    shape(
        "NATIONAL_ID",
        r"[A-Za-z]{6}\d\d[A-EHLMPRSTa-ehlmprst]\d\d[A-Za-z]\d{3}[A-Za-z]",
        check.italian_tax_code,
        rank=8,
    ),
    shape("NATIONAL_ID", r"756[. ]?\d{4}[. ]?\d{4}[. ]?\d\d", check.swiss_ahv, rank=8),
    shape("NATIONAL_ID", r"\d{3}\.\d{3}\.\d{3}-\d\d", check.cpf, rank=8),
    shape("NATIONAL_ID", r"[A-CEGHJ-PR-TW-Z][A-CEGHJ-NPR-TW-Z] ?\d\d ?\d\d ?\d\d ?[A-D]", rank=7),
    shape("NATIONAL_ID", r"[1-8]\d{5}(?:18|19|20)\d{9}[0-9Xx]", check.chinese_id, rank=9),
    shape("NATIONAL_ID", r"\d{6}-[1-8]\d{6}", check.korean_id, rank=8),
    shape("NATIONAL_ID", r"\d{3}-\d{3}-\d{3}[ -]\d\d", check.snils, rank=8),
    shape("NATIONAL_ID", r"[A-Z]{4}\d{6}[HMX][A-Z]{5}[A-Z0-9]\d", check.curp, rank=8),
    shape("NATIONAL_ID", r"\d{1,2}\.\d{3}\.\d{3}-[0-9Kk]", check.chilean_id, rank=8),
    shape("NATIONAL_ID", r"\d-\d{4}-\d{5}-\d\d-\d", check.thai_id, rank=8),
    shape("NATIONAL_ID", r"[A-Z]{1,2}\d{6}\([0-9A]\)", check.hong_kong_id, rank=8),
    # -- that a word gives away, checked besides ------------------------------------------------------------
    shape(
        "SSN",
        r"\d{3}[\s./-]{1,2}\d{2}[\s./-]{1,2}\d{4}",
        check.us_ssn,
        context=_only("ssn|social security*"),
        rank=8,
    ),
    shape("SSN", r"\d{9}", check.us_ssn, context=_only("ssn|social security(?: number| no)?"), rank=8),
    shape(
        "NATIONAL_ID", r"\d{3}[ -]?\d{3}[ -]?\d{4}", check.nhs, context=_only("nhs(?: number| no)?"), rank=8
    ),
    shape("NATIONAL_ID", r"\d{9}", check.bsn, context=_NAMED, rank=8),
    shape("NATIONAL_ID", r"\d{11}", check.pesel, context=_NAMED, rank=8),
    shape("NATIONAL_ID", r"\d{11}", check.cpf, context=_NAMED, rank=8),
    shape("NATIONAL_ID", r"\d{11}", check.turkish_id, context=_only("kimlik*|t\\.?c\\.?|tckn"), rank=8),
    shape("NATIONAL_ID", r"\d{2} ?\d{3} ?\d{3} ?\d{3}", check.german_tax_id, context=_NAMED, rank=8),
    shape("NATIONAL_ID", r"\d{4}[ -]?\d{4}[ -]?\d{4}", check.verhoeff, context=_NAMED, rank=8),
    shape("NATIONAL_ID", r"(?:\d\d)?\d{6}[-+]\d{4}", _swedish, context=_NAMED, rank=8),
    shape("NATIONAL_ID", r"\d{6}-\d\d-\d{4}", _of_birth, context=_only("ic|mykad|kad pengenalan"), rank=7),
    shape(
        "NATIONAL_ID", r"[A-Z&]{3,4}\d{6}[A-Z0-9]{3}", _of_birth, context=_only("rfc|contribuyente*"), rank=7
    ),
    # -- that a word gives away -----------------------------------------------------------------------------
    shape("NATIONAL_ID", r"[A-Z0-9]{7,13}", _mixed, context=_CARDS, rank=6),
    shape("NATIONAL_ID", r"\d{3}-\d{3}-\d{3}(?:-\d{3,5})?", context=_only("tin(?: number| no)?"), rank=6),
    shape("NATIONAL_ID", r"\d{3}[ -]?\d{3}[ -]?\d\d[ -]?\d\d", check.nip, context=_only("nip"), rank=6),
    shape("NATIONAL_ID", r"\d{3}\.?\d{5}\.?\d\d-?\d", check.pis, context=_only("pis|pasep|nis"), rank=6),
    shape("NATIONAL_ID", r"[2-6]\d{3} \d{5} \d(?:[ /]\d)?", context=_only("medicare"), rank=6),
    shape("NATIONAL_ID", r"[23]\d{10}", context=_only("qid"), rank=6),
    shape("NATIONAL_ID", r"\d{4}-\d{7}-\d", context=_only("umid|crn"), rank=6),
    shape("NATIONAL_ID", r"\x80{2} ?\d{6,7}", context=Context(PASSPORT_WORDS), rank=6),
    shape(
        "NATIONAL_ID", r"[A-Z]{5}\d{4}[A-Z]", context=_only("pan(?: card| number| no)?|पैन"), rank=7
    ).needing(digits=4),
    shape(
        "NATIONAL_ID",
        r"[A-Za-z]{0,2}\d{1,20}(?:[ ./-]{1,2}\d{1,8}){0,5}(?:-?[0-9A-Za-z])?",
        _id,
        Edges(before=r"\w\x80\x81.,\-", after=r"\w\x80\x81\-", unless_digit=".,"),
        context=_NAMED,
        rank=5,
    ),
    shape(
        "NATIONAL_ID", r"[A-Za-z0-9]{6,12}", _has_digits(1), context=Context(PASSPORT_WORDS), rank=6
    ).needing(digits=1),
    shape("NATIONAL_ID", r"\d\d ?\d\d ?(?:№ ?)?\d{6}", context=Context(PASSPORT_WORDS), rank=6),
    shape(
        "NATIONAL_ID", r"[A-Za-z0-9-]{6,16}", _has_digits(4), context=Context(LICENCE_WORDS), rank=6
    ).needing(digits=4),
)
