"""Secrets: keys, passwords, accounts in URLs. A type that cannot be printed, so that no message can hold one."""

from __future__ import annotations

import hmac
from collections.abc import Iterable
from typing import Any, NoReturn
from urllib.parse import unquote, urlsplit, urlunsplit

#: What is shown in a secret's place.
SHOWN = "***"
#: Bytes of a secret that is looked for in what others say.
LEAST_HIDDEN = 8


class Secret:
    """A text that shows as `***` however it is printed; only `reveal` gives it out.

    It is no `str` on purpose: whatever would join, encode or serialise it fails, or shows stars. Two secrets are
    compared in constant time; a secret never equals a plain text.
    """

    __slots__ = ("_value",)

    def __init__(self, value: str) -> None:
        self._value = value

    def reveal(self) -> str:
        """Return the text itself: for a header, a connection, a digest, and for nothing that people read."""
        return self._value

    def __str__(self) -> str:
        return SHOWN

    def __repr__(self) -> str:
        return f"Secret({SHOWN!r})"

    def __format__(self, spec: str) -> str:
        return format(SHOWN, spec)

    def __bool__(self) -> bool:
        return bool(self._value)

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, Secret):
            return NotImplemented
        return hmac.compare_digest(_bytes(self._value), _bytes(other._value))

    def __hash__(self) -> int:
        return hash((Secret, self._value))

    def __copy__(self) -> Secret:
        return self

    def __deepcopy__(self, memo: dict[int, Any]) -> Secret:
        return self  # what `dataclasses.asdict` asks for

    def __reduce__(self) -> NoReturn:
        raise TypeError("a secret is written nowhere; reveal it where it is used")


def split_account(url: str) -> tuple[str, Secret | None]:
    """Return the URL without the account it names, and the account as `user:password`; None where it names none.

    Percent-encoded characters of the account are decoded. Raises ValueError for what is no URL.
    """
    parts = urlsplit(url)
    account, at, host = parts.netloc.rpartition("@")
    if not at:
        return url, None
    user, _, password = account.partition(":")
    return urlunsplit(parts._replace(netloc=host)), Secret(f"{unquote(user)}:{unquote(password)}")


def without_account(text: str) -> str:
    """A URL for people, or what somebody took for one: nothing of what stands before its last `@` is shown."""
    account, at, host = text.rpartition("@")
    if not at:
        return text
    scheme, slashes, _ = account.partition("://")
    return f"{scheme}://{host}" if slashes else f"{SHOWN}@{host}"


def hidden(text: bytes, secrets: Iterable[Secret]) -> bytes:
    """Return foreign bytes with stars wherever one of our secrets stands in them: a server may echo its request.

    What is shorter than `LEAST_HIDDEN` would take words out of messages, and stays.
    """
    for one in secrets:
        value = _bytes(one.reveal())
        if len(value) >= LEAST_HIDDEN:
            text = text.replace(value, SHOWN.encode())
    return text


def _bytes(text: str) -> bytes:
    return text.encode("utf-8", "surrogatepass")
