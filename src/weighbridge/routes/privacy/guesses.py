"""Which guesses of the NER model are believed: it was made for letters, and sees people in code and logs. Pure.

A guess is believed where what it says can be read there: a name or a place among words of a language, or written as
names are; a number beside a word that says what it is, or among words that nothing speaks against, or in an address.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Sequence

from weighbridge.routes.privacy.hits import DOUBTED, Hit
from weighbridge.routes.privacy.shapes.identities import ID_WORDS, LICENCE_WORDS, PASSPORT_WORDS
from weighbridge.routes.privacy.shapes.pattern import Scene
from weighbridge.routes.privacy.shapes.phones import ALONE, COMPOUNDS, PHONE_WORDS, UNITS, is_phone
from weighbridge.routes.privacy.shapes.words import Words, is_unspaced

#: Characters on each side of a guess by which it is judged whether words of a language stand there, or code.
AROUND, BESIDE = 120, 40
#: Characters between two pieces of one place.
APART = 12
#: Marks of code beside a guess that are too many for a letter.
MARKS = 3

_PLACES = ("ADDRESS", "LOCATION")
_NUMBERS = ("PHONE", "NATIONAL_ID", "BANK_ACCOUNT")
_BANK_WORDS = Words(
    "account*|acct|a/c|iban|routing|konto*|cuenta|compte|conta|rekening|счет*|rachunek|hesap|bank*|账号|账户|口座|계좌"
)
_SSN = Words("ssn")
_ALL_IDS = (_SSN, ID_WORDS, PASSPORT_WORDS, LICENCE_WORDS, _BANK_WORDS)
_WORD = re.compile(r"[\"'(\[\xbf\xa1>]*[^\W\d_]+(?:['\u2019-][^\W\d_]+)*[.,;:!?)\]\"'\u2026]*")
_LETTERS = re.compile(r"[^\W\d_]{2,}")
#: Names with a second capital.
_OF_CLANS = re.compile(r"(?:Mc|Mac|De|Di|La|Le|Van)[A-Z][a-z]+$")
#: Characters that a telephone number is written with.
_RUN = re.compile(r"[+(]?\d[\d ().x/-]*\d")
_CODE = frozenset("{}[]=\\;#$@*_%`")
#: Words for a street, and how names of streets end, where both are written in small letters.
_NAMING = (
    "rúa street st road rd avenue ave av lane ln drive dr court ct square sq boulevard blvd highway hwy terrace "
    "crescent alley apt apartment suite flat floor rue chemin impasse quai allée strasse straße str gasse "
    "platz weg allee ufer damm calle avenida plaza paseo camino carrera via viale piazza corso vicolo rua "
    "travessa praça largo ulica ul aleja plac utca út útja tér gata gatan vägen vej gade straat laan plein "
    "gracht katu trg sokak cadde jalan jl улица ул проспект πλατεία οδός box psc dpo apo fpo"
)
_STREETS = frozenset(_NAMING.split())
_STREET_ENDS = re.compile(
    r".{3}(?:stra(?:ss|ß)e|str|gasse|platz|weg|allee|brücke|vej|gade|gata|gatan|vägen|vei|veien|straat|laan|plein|gracht"
    r"|kade|katu|kuja|utca|utja|sokak|cadde)$"
)
#: What says that a place follows.
_LIVES = re.compile(
    r"(?i)\b(?:located|lives?|lived|living|resid(?:es?|ed|ing)|address(?:es)? (?:is|are)|moved to) (?:at |in )?$"
)
#: Whoever speaks in a dialogue.
_SPEAKS = re.compile(r'\s?:\s?["“«]')
#: Signs of streets and house numbers in Chinese, Japanese and Korean.
_STREET_SIGNS = re.compile(r"[路街巷弄号號区區市县縣镇村町丁番]|[로길동구]\s?\d")
#: Figures in threes, as no telephone is written that begins with one or two of them, or has points between.
_FIGURE = re.compile(r"\d{1,2}(?:[ '\u00a0\u202f]\d{3})+|\d{1,3}(?:[.,]\d{3})+")
#: A number with a point or comma in it: no house has one.
_FRACTION = re.compile(r"\d[.,]\d")
#: Words of machines and figures, which no place is named by.
_OF_MACHINES = (
    "a and at batch build by bytes cache call chapter code count debug dpi error errors exit failed file "
    "flat for from function gb get http https id in index info is job kb layer level line lines list mb "
    "min ms no node nr of on or page passed path pid port post put px queue release role row rows run "
    "running score sec seed shape shard size step steps suite task test tests the to token tokens took "
    "total trace type uid unit user version warn warning was with worker "
    "retry retries attempt attempts after before until over under about most least than then than key keys value "
    "values channel channels stage stages phase qty quantity price prices amount window rtt mtu heading trying "
    "bits bit wide words stars forks ring slot slots pin pins connector volume section table figure round convert "
    "please use slice slices cycle cycles sample samples points beats items entries records miles "
    "seite zeile zeilen spalte kapitel abschnitt aktenzeichen messung grad uhr nummer punkt dauert ergab von bei bis "
    "und die der das stufe lauf version fichier ligne lignes colonne chapitre étape numéro pagina página línea columna "
    "capítulo paso riga colonna capitolo linha coluna regel kolom hoofdstuk strona wiersz rozdział "
    "страница строка столбец глава шаг номер "
    "hz khz mhz ghz nm wh kwh mwh mah db dba hpa kpa mpa bar kbit mbit gbit mbps gbps rpm kg km cm mm ml"
)
_TECHNICAL = frozenset(_OF_MACHINES.split())


#: Whether a word of small letters is none that everybody knows.
IsRare = Callable[[str], bool]


def is_long(word: str) -> bool:
    """What stands in for a list of ordinary words."""
    return len(word) >= 7


def believed(text: str, hits: Iterable[Hit], is_rare: IsRare = is_long) -> list[Hit]:
    """The guesses about `text` that are believed, in order."""
    ordered = sorted(hits, key=lambda hit: (hit.start, hit.end))
    scene = Scene(text)
    kept = [hit for place in _places(ordered) if _is_place(text, place, is_rare) for hit in place]
    spans = [(hit.start, hit.end) for hit in kept]
    for hit in ordered:
        in_place = any(hit.start - end <= APART and start - hit.end <= APART for start, end in spans)
        if hit.type == "PERSON":
            is_capitals = text[hit.start : hit.end].isupper()
            is_believed = in_place if is_capitals else _is_person(text, hit)
        elif hit.type in _NUMBERS:
            is_believed = in_place or _is_number(scene, hit)
        else:
            is_believed = hit.type == "URL"  # addresses of mail have a shape, which patterns know
        if is_believed:
            kept.append(hit)
    kept += _named_again(text, ordered, kept)
    return sorted(kept, key=lambda hit: (hit.start, hit.end))


def _named_again(text: str, hits: Iterable[Hit], kept: Sequence[Hit]) -> list[Hit]:
    """Places that are called as somebody is in the same text: surnames are names of places, too."""
    people = {
        word for hit in kept if hit.type == "PERSON" for word in _LETTERS.findall(text[hit.start : hit.end])
    }
    names = {word for word in people if len(word) > 3 and word[0].isupper()}
    return [
        Hit(hit.start, hit.end, "PERSON", hit.detector, hit.rank)
        for hit in hits
        if hit.type == "LOCATION" and text[hit.start : hit.end] in names
    ]


def _places(hits: Sequence[Hit]) -> list[list[Hit]]:
    """Pieces of places that stand together."""
    together: list[list[Hit]] = []
    end = 0
    for hit in hits:
        if hit.type in _PLACES:
            if together and hit.start - end <= APART:
                together[-1].append(hit)
            else:
                together.append([hit])
            end = max(end, hit.end)
    return together


def _is_place(text: str, pieces: Sequence[Hit], is_rare: IsRare) -> bool:
    start, end = pieces[0].start, max(piece.end for piece in pieces)
    value = " ".join(text[piece.start : piece.end] for piece in pieces)
    if _is_code(text, start, end):
        return False
    if _has_name(value):
        return True
    if not _is_prose(text, start, end) or all(piece.rank <= DOUBTED for piece in pieces):
        return False
    if _FRACTION.search(text[max(0, start - 1) : end + 2]) or UNITS(text[end : end + 12]):
        return False
    if _LETTERS.search(value):
        if _LIVES.search(text[max(0, start - BESIDE) : start]):
            return True
        if all(piece.type == "LOCATION" for piece in pieces):
            return any(word.lower() not in _TECHNICAL for word in _LETTERS.findall(value))
        return _is_street(value, is_rare)
    return _has_name(text[max(0, start - APART) : end + APART])


def _is_street(value: str, is_rare: IsRare) -> bool:
    """Whether a place in small letters names a street, or is called as no ordinary thing is: `duty 33` is none."""
    if any(map(is_unspaced, value)):
        return _STREET_SIGNS.search(value) is not None
    read = [word.lower() for word in _LETTERS.findall(value)]
    words = [word for word in read if word not in _TECHNICAL]
    if len(words) > 1 and not _STREETS.isdisjoint(read):
        return True
    return any(is_rare(word) or _STREET_ENDS.search(word) for word in words)


def _is_person(text: str, hit: Hit) -> bool:
    value = text[hit.start : hit.end]
    if _has_name(value) and not _is_code(text, hit.start, hit.end):
        return True
    if _SPEAKS.match(text, hit.end) and text[: hit.start].rstrip(" ")[-1:] in ("", "\n"):
        return True
    return hit.rank > DOUBTED and _LETTERS.search(value) is not None and _is_prose(text, hit.start, hit.end)


def _is_number(scene: Scene, hit: Hit) -> bool:
    digits = sum(map(str.isdigit, scene.text[hit.start : hit.end]))
    if hit.type != "PHONE" and digits >= 5 and any(scene.has_before(words, hit.start) for words in _ALL_IDS):
        return True
    return _is_telephone(scene, hit)


def _is_telephone(scene: Scene, hit: Hit) -> bool:
    """Whether the row of digits that a guess is part of is a number of a telephone, or may be one among words."""
    text = scene.text
    for run in _RUN.finditer(text, max(0, hit.start - BESIDE), hit.end + BESIDE):
        start, end = run.span()
        if start < hit.end and hit.start < end:
            is_named = scene.has_before(PHONE_WORDS, start, COMPOUNDS) or scene.has_before(_SSN, start)
            is_named = is_named or any(end <= begin <= end + 3 for _, begin in scene.words(PHONE_WORDS))
            is_written_so = hit.type == "PHONE" or len(re.findall(r"\d[ /-]+(?=\d)", run[0])) > 1
            is_written_so = is_written_so and (text[:start].endswith(" at ") or not _FIGURE.fullmatch(run[0]))
            is_said = is_named or (is_written_so and _is_prose(text, start, end))
            return is_said and is_phone(run[0]) and ALONE.allows(text, start, end)
    return False


def _has_name(text: str) -> bool:
    """Whether a word is written as names are, and is none of machines."""
    words = _LETTERS.findall(text)
    return any(
        word[0].isupper() and (word[1:].islower() or _OF_CLANS.match(word)) and word.lower() not in _TECHNICAL
        for word in words
    )


def _is_prose(text: str, start: int, end: int) -> bool:
    """Whether words of a language stand around a place, and little else but numbers."""
    around = text[max(0, start - AROUND) : end + AROUND]
    tokens = [
        each for each in around.split() if any(map(str.isalpha, each)) and not any(map(str.isdigit, each))
    ]
    words = sum(1 for each in tokens if _WORD.fullmatch(each))
    if words >= 4 and words >= 0.7 * len(tokens):
        return True
    unspaced = sum(map(is_unspaced, around))
    return unspaced >= 6 and sum(map(str.isdigit, around)) < unspaced


def _is_code(text: str, start: int, end: int) -> bool:
    return sum(one in _CODE for one in text[max(0, start - BESIDE) : end + BESIDE]) >= MARKS
