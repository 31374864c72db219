"""A file from the Hugging Face hub: it goes on where it stopped, and gives up soon where nobody answers."""

from __future__ import annotations

import contextlib
import http.client
import os
import time
import urllib.error
import urllib.request
from collections.abc import Callable
from pathlib import Path

from weighbridge.errors import WeighbridgeError, said
from weighbridge.models.catalogue.entries import HubSource

#: Seconds in which a connection must open, and in which some bytes must come.
PATIENCE_S = 5.0
_CHUNK = 1 << 20
_OFF = ("1", "true", "yes", "on")


class HubUnreachable(WeighbridgeError):
    """The hub cannot give this file: why, in words."""


def is_off() -> bool:
    """Whether HF_HUB_OFFLINE says that the hub is not to be asked."""
    return os.environ.get("HF_HUB_OFFLINE", "").strip().lower() in _OFF


def url_of(source: HubSource, name: str | None = None) -> str:
    """Return where a file of a repository is: the source's own, or one beside it. HF_ENDPOINT names another hub."""
    endpoint = os.environ.get("HF_ENDPOINT", "").rstrip("/") or "https://huggingface.co"
    return f"{endpoint}/{source.repository}/resolve/{source.revision}/{name or source.file}"


def fetch(url: str, partial: Path, size: int, advance: Callable[[int], None], deadline: float) -> None:
    """Make `partial` the `size` bytes behind `url`; what it has already is not fetched again.

    Connections that break are opened anew as long as each brings something. Raises HubUnreachable.
    """
    while True:
        have = partial.stat().st_size if partial.exists() else 0
        if have >= size:
            return
        try:
            _go_on(url, partial, have, size, advance, deadline)
            reason = "it ended early"
        except urllib.error.HTTPError as error:
            raise HubUnreachable(f"it answers {error.code} ({error.reason}) for {url}") from error
        except (OSError, http.client.HTTPException, ValueError) as error:
            inner = getattr(error, "reason", None)  # urllib wraps what the socket said
            reason = said(inner if isinstance(inner, BaseException) else error)
        if time.monotonic() > deadline:
            raise HubUnreachable(f"{url} took too long")
        if not partial.exists() or partial.stat().st_size <= have:
            raise HubUnreachable(f"{url} cannot be read: {reason}")


def _go_on(
    url: str, partial: Path, have: int, size: int, advance: Callable[[int], None], deadline: float
) -> None:
    if not url.startswith(("https://", "http://")):
        raise HubUnreachable(f"{url} is no address of the web")
    request = urllib.request.Request(url, headers={"Range": f"bytes={have}-"} if have else {})
    with contextlib.closing(urllib.request.urlopen(request, timeout=PATIENCE_S)) as answer:
        goes_on = answer.status == 206
        length = answer.headers.get("Content-Length")
        total = int(length) + (have if goes_on else 0) if length is not None else size
        if total != size:
            raise HubUnreachable(f"{url} has {total} bytes now, not the {size} that were published")
        if have and not goes_on:
            advance(-have)
        with partial.open("ab" if goes_on else "wb") as file:
            while chunk := answer.read(_CHUNK):
                if file.tell() + len(chunk) > size:
                    raise HubUnreachable(f"{url} has more than the {size} bytes that were published")
                file.write(chunk)
                advance(len(chunk))
                if time.monotonic() > deadline:
                    return
