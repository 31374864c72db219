"""Check digits: what tells a card or an account number from any other row of digits. Pure."""

from __future__ import annotations

from itertools import cycle

_D = (  # multiplication table of the dihedral group D5, and the permutation of Verhoeff (1969)
    "0123456789", "1234067895", "2340178956", "3401289567", "4012395678",
    "5987604321", "6598710432", "7659821043", "8765932104", "9876543210",
)  # fmt: skip
_P = (
    "0123456789", "1576283094", "5803796142", "8916043527", "9453126870", "4286573901", "2793806415", "7046913258",
)  # fmt: skip


def digits_of(text: str) -> list[int]:
    return [int(one) for one in text if one.isdigit()]


def luhn(text: str) -> bool:
    """ISO/IEC 7812: payment cards, Swedish personal numbers."""
    total = 0
    for position, digit in enumerate(reversed(digits_of(text))):
        doubled = digit * 2 if position % 2 else digit
        total += doubled - 9 if doubled > 9 else doubled
    return total % 10 == 0


def card(text: str) -> bool:
    """12 to 19 digits that pass Luhn, begin as an issuer's do, and are not one digit repeated."""
    digits = digits_of(text)
    return 12 <= len(digits) <= 19 and digits[0] in (2, 3, 4, 5, 6) and len(set(digits)) > 1 and luhn(text)


def issued_card(text: str) -> bool:
    """A card that begins as one of the large networks' do: for groups that anything may stand between."""
    digits = "".join(map(str, digits_of(text)))
    return card(text) and (
        digits[0] == "4"
        or "51" <= digits[:2] <= "55"
        or "2221" <= digits[:4] <= "2720"
        or digits[:2] in ("34", "36", "37", "38", "62", "65")
        or digits[:4] == "6011"
        or "3528" <= digits[:4] <= "3589"
    )


#: Length of an IBAN by country (SWIFT registry).
IBAN_LENGTHS = {
    "AL": 28, "AZ": 28, "BA": 20, "BH": 22, "BI": 27, "BY": 28, "CR": 22, "DJ": 27, "DO": 28, "EG": 29, "FK": 18,
    "FO": 18, "GE": 22, "GI": 23, "GL": 18, "GT": 28, "HN": 28, "IQ": 23, "JO": 30, "KW": 30, "KZ": 20, "LB": 28,
    "LC": 32, "LY": 25, "MD": 24, "ME": 22, "MK": 19, "MN": 20, "MR": 27, "MU": 30, "NI": 28, "OM": 23, "PK": 24,
    "PS": 29, "QA": 29, "RS": 22, "RU": 33, "SC": 31, "SD": 18, "SO": 23, "ST": 25, "SV": 28, "TL": 23, "TN": 24,
    "VA": 22, "VG": 24, "XK": 20, "YE": 30,
    "AD": 24, "AE": 23, "AT": 20, "BE": 16, "BG": 22, "BR": 29, "CH": 21, "CY": 28, "CZ": 24, "DE": 22, "DK": 18,
    "EE": 20, "ES": 24, "FI": 18, "FR": 27, "GB": 22, "GR": 27, "HR": 21, "HU": 28, "IE": 22, "IL": 23, "IS": 26,
    "IT": 27, "LI": 21, "LT": 20, "LU": 20, "LV": 21, "MC": 27, "MT": 31, "NL": 18, "NO": 15, "PL": 28, "PT": 25,
    "RO": 24, "SA": 24, "SE": 24, "SI": 19, "SK": 24, "SM": 27, "TR": 26, "UA": 29,
}  # fmt: skip


def iban(text: str) -> bool:
    """ISO 13616: the right length, and 1 modulo 97."""
    compact = "".join(filter(str.isalnum, text)).upper()
    if len(compact) != IBAN_LENGTHS.get(compact[:2]):
        return False
    moved = compact[4:] + compact[:4]
    return moved.isalnum() and moved.isascii() and int("".join(str(int(c, 36)) for c in moved)) % 97 == 1


def us_ssn(text: str) -> bool:
    """Areas, groups and serials that are issued (000, 666 and 9xx are not)."""
    digits = "".join(str(d) for d in digits_of(text))
    area, group, serial = digits[:3], digits[3:5], digits[5:]
    return (
        len(digits) == 9
        and area not in ("000", "666")
        and area < "900"
        and group != "00"
        and serial != "0000"
    )


def verhoeff(text: str) -> bool:
    """Aadhaar (India)."""
    check = 0
    for position, digit in enumerate(reversed(digits_of(text))):
        check = int(_D[check][int(_P[position % 8][digit])])
    return check == 0


def weighted(text: str, weights: tuple[int, ...], modulus: int) -> bool:
    """The weighted sum of the digits is 0 modulo `modulus`: NHS, PESEL, BSN and others."""
    digits = digits_of(text)
    return len(digits) == len(weights) and sum(map(int.__mul__, digits, weights)) % modulus == 0


def nhs(text: str) -> bool:
    """United Kingdom's health service number."""
    return weighted(text, (10, 9, 8, 7, 6, 5, 4, 3, 2, 1), 11)


def bsn(text: str) -> bool:
    """The Netherlands' citizen number, the "11-test"."""
    return weighted(text, (9, 8, 7, 6, 5, 4, 3, 2, -1), 11) and sum(digits_of(text)) > 0


def pesel(text: str) -> bool:
    """Poland's personal number."""
    return weighted(text, (1, 3, 7, 9, 1, 3, 7, 9, 1, 3, 1), 10) and sum(digits_of(text)) > 0


def cpf(text: str) -> bool:
    """Brazil's taxpayer number: two check digits modulo 11."""
    digits = digits_of(text)
    if len(digits) != 11 or len(set(digits)) == 1:
        return False
    for length in (9, 10):
        rest = sum(d * w for d, w in zip(digits, range(length + 1, 1, -1), strict=False)) * 10 % 11 % 10
        if rest != digits[length]:
            return False
    return True


def nip(text: str) -> bool:
    """Poland's taxpayer number."""
    return weighted(text, (6, 5, 7, 2, 3, 4, 5, 6, 7, -1), 11)


def pis(text: str) -> bool:
    """Brazil's worker number (PIS, PASEP, NIS): 11 minus a weighted sum modulo 11, of which 10 and 11 are 0."""
    digits = digits_of(text)
    rest = 11 - sum(map(int.__mul__, digits, (3, 2, 9, 8, 7, 6, 5, 4, 3, 2))) % 11
    return len(digits) == 11 and digits[10] == (rest if rest < 10 else 0)


def spanish_id(text: str) -> bool:
    """DNI and NIE: a letter chosen by the number modulo 23."""
    compact = text.replace("-", "").replace(" ", "").upper()
    number = compact[:-1].replace("X", "0").replace("Y", "1").replace("Z", "2")
    return number.isdigit() and "TRWAGMYFPDXBNJZSQVHLCKE"[int(number) % 23] == compact[-1]


def french_nir(text: str) -> bool:
    """France's social security number: its key is 97 minus the rest modulo 97."""
    compact = "".join(text.split()).upper().replace("2A", "19").replace("2B", "18")
    return len(compact) == 15 and compact.isdigit() and 97 - int(compact[:13]) % 97 == int(compact[13:])


def german_tax_id(text: str) -> bool:
    """Steuer-Identifikationsnummer: ISO 7064 MOD 11,10."""
    digits = digits_of(text)
    if len(digits) != 11 or digits[0] == 0:
        return False
    product = 10
    for digit in digits[:10]:
        product = ((digit + product) % 10 or 10) * 2 % 11
    return (11 - product) % 10 == digits[10]


def italian_tax_code(text: str) -> bool:
    """Codice fiscale: a letter computed from odd and even places."""
    odd = dict(
        zip(
            "0123456789ABCDEFGHIJKLMNOPQRSTUVWXYZ",
            (1, 0, 5, 7, 9, 13, 15, 17, 19, 21, 1, 0, 5, 7, 9, 13, 15, 17, 19, 21, 2, 4, 18, 20, 11, 3, 6, 8, 12,
             14, 16, 10, 22, 25, 24, 23),
            strict=True,
        )
    )  # fmt: skip
    code = text.upper()
    total = sum(
        odd[one] if is_odd else int(one) if one.isdigit() else ord(one) - 65
        for one, is_odd in zip(code[:15], cycle((True, False)), strict=False)
    )
    return len(code) == 16 and chr(65 + total % 26) == code[15]


def swiss_ahv(text: str) -> bool:
    """AHV number: EAN-13."""
    return weighted(text, (1, 3) * 6 + (1,), 10)


def _born(year: str, month: str, day: str) -> bool:
    return 1850 <= int(year) <= 2100 and 1 <= int(month) <= 12 and 1 <= int(day) <= 31


def chinese_id(text: str) -> bool:
    """GB 11643: a date of birth, and a check character modulo 11."""
    weights = (7, 9, 10, 5, 8, 4, 2, 1, 6, 3, 7, 9, 10, 5, 8, 4, 2)
    total = sum(int(one) * weight for one, weight in zip(text, weights, strict=False))
    return _born(text[6:10], text[10:12], text[12:14]) and "10X98765432"[total % 11] == text[17].upper()


def korean_id(text: str) -> bool:
    """Resident registration number: a date of birth; numbers given since 2020 have no check digit."""
    return _born("19" + text[:2], text[2:4], text[4:6])


def snils(text: str) -> bool:
    """Russia's pension insurance number."""
    digits = digits_of(text)
    total = sum(digit * weight for digit, weight in zip(digits, range(9, 0, -1), strict=False))
    return len(digits) == 11 and total % 101 % 100 == digits[9] * 10 + digits[10]


def curp(text: str) -> bool:
    """Mexico's population registry code: a date of birth, and a check digit."""
    letters = "0123456789ABCDEFGHIJKLMNÑOPQRSTUVWXYZ"
    total = sum(letters.index(one) * weight for one, weight in zip(text[:17], range(18, 1, -1), strict=True))
    return _born("19" + text[4:6], text[6:8], text[8:10]) and (10 - total % 10) % 10 == int(text[17])


def chilean_id(text: str) -> bool:
    """RUT: a check character modulo 11."""
    digits = digits_of(text[:-1])
    total = sum(digit * (2 + place % 6) for place, digit in enumerate(reversed(digits)))
    return "0K987654321"[total % 11] == text[-1].upper()


def thai_id(text: str) -> bool:
    """Thailand's citizen number: modulo 11."""
    digits = digits_of(text)
    total = sum(digit * weight for digit, weight in zip(digits, range(13, 1, -1), strict=False))
    return len(digits) == 13 and (11 - total % 11) % 10 == digits[12]


def hong_kong_id(text: str) -> bool:
    """HKID: letters count from 10, a missing one as 36; modulo 11."""
    body = text.partition("(")[0].rjust(8)
    values = [36 if one == " " else int(one, 36) for one in body]
    total = sum(value * weight for value, weight in zip(values, range(9, 1, -1), strict=True))
    return (total + int(text[-2], 36)) % 11 == 0


def turkish_id(text: str) -> bool:
    """T.C. kimlik: two check digits modulo 10."""
    digits = digits_of(text)
    tenth = (7 * sum(digits[0:9:2]) - sum(digits[1:8:2])) % 10
    return len(digits) == 11 and digits[0] > 0 and digits[9] == tenth and digits[10] == sum(digits[:10]) % 10
