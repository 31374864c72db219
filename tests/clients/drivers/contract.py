"""What every driver of a client has in common: a place to ask on standard input, what passed on standard output.

    python DRIVER.py < {"url": ..., "model": ..., "key": ..., "full": {"url": ..., "model": ..., "key": ...}}

A driver runs in an environment of its own, so nothing but the standard library is imported here.
"""

from __future__ import annotations

import json
import sys
import traceback
import urllib.request
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from importlib.metadata import version
from typing import Any

#: What each client is asked to do, in this order: a stream that is left is the last thing that happens at a door.
STEPS = ("list", "chat", "stream", "tools", "structured", "400", "401", "404", "429", "cancelled")

#: The address is for routes that take one out and put it back.
QUESTION = "What does the parcel of mara.lindqvist@example.org weigh?"
SYSTEM = "You weigh parcels."
WRONG_KEY, NOBODY = "key-of-nobody-here", "nobody"
#: Tokens of a short answer, and more than can be computed before somebody who leaves is gone.
SHORT, LONG = 8, 6000


@dataclass(frozen=True)
class Place:
    """Where to ask. `full`: the like of it where nobody is served at the moment, which is 429."""

    url: str
    model: str
    key: str
    tokenizer: str = ""  # a folder with the model's tokenizer, as programs of others read it
    full: Place | None = None

    @property
    def v1(self) -> str:
        return self.url + "/v1"

    @property
    def crowded(self) -> Place:
        assert self.full is not None
        return self.full

    def with_key(self, key: str) -> Place:
        return replace(self, key=key)

    def with_model(self, model: str) -> Place:
        return replace(self, model=model)


Step = Callable[[Place], None]


class Wrong(AssertionError):
    """What came is not what should."""


def check(held: object, said: object = "") -> None:
    """Raises Wrong unless `held`: an `assert` is gone with -O, and says nothing."""
    if not held:
        raise Wrong(repr(said)[:500])


def refused(status: int, ask: Callable[[], Any], tries: int = 1) -> None:
    """Raises Wrong unless `ask` fails with this HTTP status, one of so many times."""
    for _ in range(tries):
        try:
            ask()
        except Exception as error:
            found = statuses(error)
            if not found and tries > 1:
                continue  # it was served, and the client did not like what came
            check(status in found, f"{found} instead of {status}: {error!r}")
            return
    raise Wrong(f"nothing was refused with {status}")


def strangers(ask: Callable[[Place], Any]) -> dict[str, Step]:
    """The steps of somebody whose key is nobody's, and of one who asks for a model that is not there."""
    return {
        "401": lambda place: refused(401, lambda: ask(place.with_key(WRONG_KEY))),
        "404": lambda place: refused(404, lambda: ask(place.with_model(NOBODY))),
    }


def statuses(error: BaseException | None) -> list[int]:
    """The HTTP statuses that a client's exception, and those that it came from, tell of."""
    found: list[int] = []
    while error is not None and len(found) < 8:
        response = getattr(error, "response", None)
        for one in (error, response):
            told = [getattr(one, name, None) for name in ("status_code", "status")]
            found += [value for value in told if isinstance(value, int)]
        error = error.__cause__ or error.__context__
    return found


def raw(place: Place, path: str, body: Any, **headers: str) -> bytes:
    """What a server answers to a body, as it comes over the line: clients let much pass that their own types do not."""
    sent = {"content-type": "application/json", "authorization": f"Bearer {place.key}", **headers}
    asked = urllib.request.Request(
        place.url + path, json.dumps({"model": place.model, **body}).encode(), sent
    )
    with urllib.request.urlopen(asked, timeout=60) as answer:
        found: bytes = answer.read()
    return found


def data_of(stream: bytes) -> list[str]:
    """The data of the events of a stream."""
    lines = stream.decode().splitlines()
    return [line.removeprefix("data: ") for line in lines if line.startswith("data: ")]


def drive(
    packages: tuple[str, ...], steps: Mapping[str, Step], cannot: Mapping[str, str] | None = None
) -> None:
    """Take every step at the place of standard input, and print what came of each as JSON.

    `packages`: whose versions are told, the client's own first. `cannot`: the steps that the client has no way to take,
    and why. Every step must be in one of the two.
    """
    told = json.load(sys.stdin)
    place = Place(**{**told, "full": Place(**told["full"])})
    missing = set(STEPS) ^ {*steps, *(cannot or {})}
    if missing:
        raise Wrong(f"a driver takes each step or says why it cannot: {sorted(missing)}")
    found: dict[str, Any] = {}
    for name in (one for one in STEPS if one in steps):
        try:
            steps[name](place)
            found[name] = True
        except Exception:
            found[name] = traceback.format_exc()[-3000:]
    versions = {name: version(name) for name in packages}
    # Whatever a client prints by itself comes before this line.
    print("\n" + json.dumps({"versions": versions, "steps": found, "cannot": dict(cannot or {})}))
