"""Commands that start an engine, as a configuration has them: words with places for what is known only at the start."""

from __future__ import annotations

import os
import re
from collections.abc import Mapping, Sequence

#: What may stand in braces: where to listen, what to load, the name that clients use, the key that the gateway will
#: send, and the Python of the machine that it is started on. Other braces are the program's own.
PLACES = ("host", "port", "model", "name", "key", "python")
#: What says by which name our own command serves a model.
SERVED_NAME = "--served-model-name"
_PLACE = re.compile("{(" + "|".join(PLACES) + ")}")


def places_of(words: Sequence[str]) -> set[str]:
    """The places that are in these words."""
    return {found for word in words for found in _PLACE.findall(word)}


def filled(word: str, values: Mapping[str, str]) -> str:
    """A word with its places filled; one that has no value here stays for whoever fills the rest."""
    return _PLACE.sub(lambda found: values.get(found[1], found[0]), word)


def all_filled(words: Sequence[str], values: Mapping[str, str]) -> tuple[str, ...]:
    return tuple(filled(word, values) for word in words)


def can_be_told(word: str) -> bool:
    """Whether a program can be started with this word."""
    try:
        return b"\0" not in os.fsencode(word)
    except UnicodeEncodeError:  # half of a surrogate pair
        return False


def own_command(model: str, options: Sequence[str], threads: int | None) -> tuple[str, ...]:
    """The command of `weighbridge serve`, for the machine that it will run on."""
    words = ["{python}", "-m", "weighbridge", "serve", model, *options]
    if threads is not None and "--threads" not in options:
        words += ["--threads", str(threads)]
    return (*words, "--host", "{host}", "--port", "{port}")
