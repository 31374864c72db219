"""The doors of the lane: a single server, a gateway over it, a route that stays and one that leaves redacted.

Each has a twin where nobody is served at the moment: at the single server's kind two requests are in the way of
all others, at the gateway a tenant has spent its money for today: a minute would end while a client waits to try again.
"""

from __future__ import annotations

import json
import threading
import time
import urllib.request
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from tests.doors.doors import logged
from tests.doors.model import make_model
from tests.server.running import free_port, wait_until_ready

SINGLE, GATEWAY, ROUTE, REDACTING = "single", "gateway", "route", "redacting"
DOORS = (SINGLE, GATEWAY, ROUTE, REDACTING)

KEY, SPENT = "key-of-the-lane-alice", "key-of-the-lane-spent"
CONTEXT = 8192
ENGINE = "--dtype float32 --served-model-name tiny --threads 1 --kv-cache-memory 64MiB --max-sequences 8"
#: A machine that takes minutes for an answer and has room for one, with one more that waits.
CROWDED = "--simulated --served-model-name tiny --max-sequences 1 --max-queue 1 --time-scale 1000"
PRICE = "price: {input_usd_per_million: 1, output_usd_per_million: 1}"
CONFIGURATION = """\
health: {{interval: 0.2, slow_start: 0}}
models:
  tiny:
    tokenizer: '{model}'
    replicas: [{{name: near, url: '{single}', dialect: weighbridge, key: {key}, {price}}}]
routes:
  auto:
    edge: {{model: tiny}}
    cloud: {{url: '{single}/v1', model: tiny, key: {key}, {price}}}
    cascade: {{enabled: false}}
  away:
    places: [{{name: far, level: cloud, url: '{single}/v1', model: tiny, key: {key}, {price}}}]
    residency: redact_then_cloud
    cascade: {{enabled: false}}
tenants:
  alice: {{key: {key}}}
  spent: {{key: {spent}, limits: {{usd_per_day: 0.0006}}}}
"""
#: Seconds until a door has let go of what was left.
LET_GO = 20.0


@dataclass(frozen=True, slots=True)
class Place:
    """Where a driver asks."""

    url: str
    model: str
    key: str
    tokenizer: str = ""


@dataclass(frozen=True, slots=True)
class LaneDoor:
    """One way in, and the like of it where nobody is served. `behind`: a server whose work a request here is."""

    name: str
    place: Place
    full: Place
    behind: str

    def told(self) -> str:
        """What a driver reads."""
        return json.dumps({**asdict(self.place), "full": asdict(self.full)})

    def left_in_time(self) -> str:
        """What became of the last request: empty once it has ended because its client was gone, and all is at rest."""
        deadline = time.monotonic() + LET_GO
        while True:
            ticket = ask_json(self.place, "/v1/tickets?limit=1")["data"][0]
            held = [
                name
                for url in {self.place.url, self.behind}
                for name in ("running_requests", "queued_requests")
                if ask_json(Place(url, "", KEY), "/v1/load").get(name)
            ]
            if ticket["finish_reason"] == "abort" and not held:
                return ""
            if time.monotonic() > deadline:
                return f"{ticket['finish_reason']} after {ticket['output_tokens']} tokens; held: {held}"
            time.sleep(0.05)


def ask_json(place: Place, path: str, body: Any = None, timeout: float = 30.0) -> Any:
    """What a place answers to a body, or where there is none to a GET."""
    data = None if body is None else json.dumps(body).encode()
    headers = {"authorization": f"Bearer {place.key}", "content-type": "application/json"}
    request = urllib.request.Request(place.url + path, data, headers)
    with urllib.request.urlopen(request, timeout=timeout) as answer:
        return json.load(answer)


@contextmanager
def site(folder: Path, *, brief: bool = False) -> Iterator[dict[str, LaneDoor]]:
    """All doors, while the block runs; `folder` gets their logs and the model, whose answers are `brief` or as long as
    they may be."""
    model = make_model(folder / "tiny", context=CONTEXT, tame=True, brief=brief)
    # What lets programs of others read the tokenizer that we made.
    told = {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "eos_token": "<|im_end|>",
        "bos_token": "<|endoftext|>",
    }
    (folder / "tiny" / "tokenizer_config.json").write_text(json.dumps(told))
    ports = {name: free_port() for name in (SINGLE, GATEWAY, "crowded")}
    urls = {name: f"http://127.0.0.1:{port}" for name, port in ports.items()}
    file = folder / "weighbridge.yaml"
    file.write_text(
        CONFIGURATION.format(model=folder / "tiny", single=urls[SINGLE], key=KEY, spent=SPENT, price=PRICE),
        encoding="utf-8",
    )
    keys = ["--api-key", f"alice={KEY}"]
    kept = ["--responses-file", str(folder / "responses.sqlite")]
    commands = {
        SINGLE: ["serve", str(model), *ENGINE.split(), *keys, *kept],
        GATEWAY: ["serve", "--config", str(file)],
        "crowded": ["replica", *CROWDED.split(), *keys],
    }
    with ExitStack() as stack:
        processes = {
            name: stack.enter_context(logged([*words, "--port", str(ports[name])], folder / f"{name}.log"))
            for name, words in commands.items()
        }
        for name, process in processes.items():
            wait_until_ready(urls[name], process, 180.0)
        stack.enter_context(_crowd(Place(urls["crowded"], "tiny", KEY)))
        _spend(Place(urls[GATEWAY], "tiny", SPENT))
        tokenizer = str(folder / "tiny")
        models = {GATEWAY: "tiny", ROUTE: "auto", REDACTING: "away"}
        doors = {
            SINGLE: LaneDoor(
                SINGLE,
                Place(urls[SINGLE], "tiny", KEY, tokenizer),
                Place(urls["crowded"], "tiny", KEY, tokenizer),
                urls[SINGLE],
            )
        }
        for name, asked in models.items():
            place, full = (Place(urls[GATEWAY], asked, key, tokenizer) for key in (KEY, SPENT))
            doors[name] = LaneDoor(name, place, full, urls[SINGLE])
        yield doors


def _spend(place: Place) -> None:
    """Use up nearly all that a tenant may spend in a day: 600 tokens."""
    body = {"model": place.model, "messages": [{"role": "user", "content": "x"}], "max_tokens": 565}
    ask_json(place, "/v1/chat/completions", body)


@contextmanager
def _crowd(place: Place) -> Iterator[None]:
    """Two requests that take the room of a server until the block ends."""

    def wait() -> None:
        body = {"model": place.model, "messages": [{"role": "user", "content": "wait"}], "max_tokens": 2000}
        with suppress(OSError):  # the server has ended
            ask_json(place, "/v1/chat/completions", body, timeout=3600.0)

    waiting = [threading.Thread(target=wait, daemon=True) for _ in range(2)]
    for one in waiting:
        one.start()
        time.sleep(0.3)
    deadline = time.monotonic() + 30.0
    while ask_json(place, "/v1/load")["queued_requests"] < 1:
        if time.monotonic() > deadline:
            raise TimeoutError("nobody waits at the crowded server")
        time.sleep(0.05)
    yield
