"""Telephone numbers: shapes that say enough, and shapes that need a word beside them, in the most spoken languages."""

from __future__ import annotations

import re

from weighbridge.routes.privacy.checksums import digits_of
from weighbridge.routes.privacy.shapes.pattern import Edges, Pattern, W, shape
from weighbridge.routes.privacy.shapes.words import Compounds, Context, RightBefore, RightBehind, Words

#: Words that say "telephone", each row a language.
PHONE_WORDS = Words(
    r"""
    phones?|telephones?|tel|mobile|cell|cellphone|fax|whatsapp|sms|text me|dial|hotline|landline|handphone
    call (?:me|us|him|her|them|at|on)|contact (?:number|me|us|him|her|them|at|on)|reach (?:me|us|him|her|them|at)
    phone number|(?:my|his|her|our|your|their) number
    (?:mon|son|notre|votre|leur) numéro|(?:meine|seine|ihre|unsere)[rm]? nummer|(?:mi|su|nuestro) número
    (?:meu|seu|nosso) número|(?:mio|suo|nostro) numero|(?:мой|его|её|наш|мне) номер|mój numer|numaram|nomor saya
    我的号码|我的號碼|私の番号|제 번호
    téléphone|tél|portable|numéro de téléphone|joignable|appelez|appeler|fixe
    teléfonos?|tlf|tfno|móvil|celular|cel|llám*|llama|fono
    telefone|telemóvel|fone|celular|zap|ligue|ligar
    telefon*|handy*|mobil|mobilnummer|mobiltelefon|rufnummer|durchwahl|anruf*|erreichbar
    telefono|cellulare|chiam*|recapito
    тел|телефон*|моб|мобильн*|сотов*|звон*|факс|ватсап|номер телефона|дзвон*
    cep|gsm|tel no|telefon no|faks
    telepon|telp|hp|no hp|ponsel|nomor hp|hubungi|telefon bimbit|wa
    điện thoại|sđt|số điện thoại|di động|đt|gọi
    telefoon*|mobiel|gsm|bel|komórk*|kom|dzwoń*
    simu|nambari ya simu|waya|lambar waya|fon
    هاتف|الهاتف|جوال|الجوال|موبايل|الموبايل|تلفون|محمول|اتصل|رقم الهاتف|واتساب|فاكس
    تلفن|موبایل|همراه|شماره تماس|فون|موبائل|فون نمبر|رابطہ
    फ़ोन|फोन|मोबाइल|मोबाईल|दूरभाष|संपर्क|भ्रमणध्वनी|व्हाट्सऐप
    ফোন|মোবাইল|ফোন নম্বর|যোগাযোগ
    ఫోన్|మొబైల్|தொலைபேசி|கைபேசி|அலைபேசி|போன்|ਫ਼ੋਨ|ਫੋਨ|ਮੋਬਾਈਲ|ફોન|મોબાઇલ
    手机|手機|电话|電話|手提|座机|传真|傳真|致电|致電|热线|熱線|携帯|ファックス|連絡先|联系方式|聯絡|微信
    τηλ|τηλέφωνο*|κινητ*|puh|puhelin*|gsm-nummer|טלפון|נייד
    전화|휴대폰|핸드폰|연락처|휴대전화|팩스|โทร|เบอร์|มือถือ
    """
)
#: Words that say that a row of digits is another thing, where they stand right before it.
_OTHER_THINGS = RightBefore(
    r"""
    orders?|invoices?|tickets?|duplicate|duplicates|cases?|issues?|bugs?|pull|pr|run|run_id|runs|build|builds|release|releases|version
    versions|ver|v|rev|revision|commit|job|jobs|task|batch|part|parts|sku|serial|model|article|item|product|lot
    tracking|shipment|parcel|isbn|issn|doi|pmid|arxiv|rfc|section|chapter|pages?|pp|lines?|rows?|columns?|steps?|epochs?
    seed|port|ports|pid|tid|uid|gid|offset|size|length|count|total|sum|bytes?|tokens?|took|duration|elapsed|latency
    timestamp|time|date|year|range|between|from|levels?|score|price|cost|amount|balance|population|id|uuid|hash|checksum
    trace|span|request|req|session|account|customer|reference|ref|transaction|txn|shape|dims?|size|resolution
    experiments?|exp|callbacks?|counts?|readings?|sequence|index|keys?|entry|entries|records?|devices?|channels?
    sensors?|samples?|upc|ean|gtin|barcodes?|doi|volume|sheet|firmware|patch|quota|budget|limits?|remaining
    bestellung|auftrag|rechnung|vorgang|artikel|commande|facture|pedido|factura|fatura|ordine|заказ|счет|договор
    """
)
UNITS = RightBehind(
    r"""
    ms|s|sec|secs|seconds?|min|minutes?|hours?|h|us|ns|µs|kb|mb|gb|tb|kib|mib|gib|bytes?|bits?|tokens?|steps?|rows?
    points?|counts?|pages?|words?|stars?|forks?|miles?|entries|records|cycles|samples?|events?|queries|hits|errors?|nodes?
    calls?|beds|people|persons|copies|downloads|views|visits|visitors|inhabitants|residents|operations|iterations|parameters
    messages|packets|objects|keys|values|lines|columns|cells|blocks|chars|characters|elements|checks|tests|commits|jobs
    px|pixels?|items?|files?|lines?|users?|requests?|times|km|m|cm|mm|kg|g|usd|eur|dollars?|euros?|percent|hz|mhz|ghz
    """
)
#: What English makes compounds of, and what stands between a word for a telephone and its number.
COMPOUNDS = Compounds(
    "phone phones telephone telephones mobile cell cellphone fax whatsapp sms dial hotline landline",
    "a the my your our his her their its me us him them you i we he she they is are was be at on in by via to for "
    "of from no nr num number numbers or and please call calling called text reach reached contact new old other "
    "main work office home house private personal business direct line ext extension available open now also only "
    "still under after before until between weekdays today tonight tomorrow anytime day night here there back "
    "message messages customer service support desk helpline emergency toll free local international registered "
    "given listed has have had changed will can say says said that which it s m re perso personnel prive es est "
    "ist e o il la le el die der das nummer numero personale ufficio casa oficina bureau mobile phone cell "
    "telephone tel fax whatsapp sms signal telegram viber landline mother mum mom father dad wife husband sister "
    "brother son daughter friend boss doctor lawyer manager assistant as follows with using if dial",
    others="tel aviv|mobile alabama|phone home",
)
_SPOKEN = Context(PHONE_WORDS, _OTHER_THINGS, UNITS, COMPOUNDS)
ALONE = Context(None, _OTHER_THINGS, UNITS)

_DATE = re.compile(
    r"(?:19|20)\d\d([-./ ])(?:0?[1-9]|1[0-2])\1(?:0?[1-9]|[12]\d|3[01])(?!\d)"
    r"|\d{1,2}([-./ ])\d{1,2}\2(?:19|20)\d\d(?!\d)|\d{1,2}([-./ ])\d{1,2}\3\d\d$"
)


_YEARS = re.compile(r"(?:(?:19|20)\d\d[ .,/()-]{1,3}){1,8}(?:19|20)\d\d")


def is_phone(text: str) -> bool:
    """7 to 15 digits that begin with no date, are no row of years, and not the same digit over and over."""
    digits = digits_of(text)
    if _YEARS.fullmatch(text):
        return False
    return 7 <= len(digits) <= 15 and len(set(digits)) > 2 and not _DATE.match(text)


def _of_trunk(text: str) -> bool:
    """9 to 12 digits, as numbers with their leading 0 have; in pairs where dots stand between; no postal code."""
    is_of_pairs = "." not in text or all(len(group) == 2 for group in re.split(r"[ .-]", text))
    is_postal = re.fullmatch(r"\d{5}-\d{4}", text) is not None
    return is_phone(text) and 9 <= len(digits_of(text)) <= 12 and is_of_pairs and not is_postal


def _in_brackets(text: str) -> bool:
    """No year in brackets, as papers are cited."""
    return is_phone(text) and not re.match(r"\((?:19|20)\d\d\)", text)


_EXTENSION = r"(?:\s?(?:x|ext\.?)\s?\d{1,6})?"
_GAP = r"[ \t./()-]{1,3}"

PHONES: tuple[Pattern, ...] = (
    shape(
        "PHONE",
        rf"\+[1-9]\d{{0,2}}(?:[ .\-()/]{{0,2}}\d){{6,13}}{_EXTENSION}",
        is_phone,
        Edges(before=W + "+"),
        rank=7,
    ),
    shape(
        "PHONE",
        r"00[1-9]\d{0,2}[ .\-()/](?:[ .\-()/]{0,2}\d){6,12}",
        is_phone,
        Edges(before=W + r".,$\x82/:\-", unless_digit="."),
        context=ALONE,
        rank=6,
    ),
    shape("PHONE", r"\+[1-9]\d{0,2}(?:\s{1,3}\d{2,8}){1,4}", is_phone, Edges(before=W + "+"), rank=7),
    shape(
        "PHONE",
        rf"(?:(?:00?\d{{1,2}}|1)[ .-])?(?:\(\d{{3}}\)[ .-]?|[2-9]\d\d[ .-])\d{{3}}[.-]\d{{4}}{_EXTENSION}",
        is_phone,
        Edges(before=W + r".\-/", after=W + r"\-/"),
        context=ALONE,
        rank=6,
    ),
    shape(
        "PHONE",
        r"\(\d{2,4}\) ?\d{3,4}[ -]?\d{3,4}",
        _in_brackets,
        Edges(before=W + "."),
        context=ALONE,
        rank=6,
    ),
    shape(
        "PHONE",
        r"8[ -]9\d\d[ -]\d{3}[ -]\d\d[ -]\d\d",
        is_phone,
        Edges(before=W + r".\-/", after=W + r"\-/"),
        ALONE,
        rank=6,
    ),
    shape("PHONE", r"[78] ?\(\d{3,4}\) ?\d{2,3}[ -]\d\d[ -]\d\d", is_phone, Edges(before=W + "."), rank=6),
    shape(
        "PHONE",
        r"0[1-9]\d{0,3}[ .-]\d{2,4}(?:[ .-]?\d{2,4}){1,3}",
        _of_trunk,
        Edges(before=W + r".,$\x82/:\-", after=W + "/:", unless_digit=r" .,\-"),
        context=ALONE,
    ),
    shape(
        "PHONE",
        rf"\(?\d{{1,5}}\)?(?:{_GAP}\d{{1,8}}){{1,6}}",
        is_phone,
        Edges(before=W + r".,$\x82/\-", after=W + r"\-", unless_digit=".,"),
        context=_SPOKEN,
        rank=4,
    ),
    shape(
        "PHONE",
        r"\d{6,13}",
        is_phone,
        Edges(before=W + r".,$\x82/\-", after=W + r"\-", unless_digit=".,"),
        context=_SPOKEN,
        rank=4,
    ),
)
