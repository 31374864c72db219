"""The four doors, each as a user starts it, with and without keys. All that knows how a door is made is here.

`single`: `weighbridge serve MODEL` over a tiny model. `gateway`: `serve --config` over that server. `route`: a route of
the same gateway. `routes`: `route serve`, routes alone. A route's edge is the single server, its cloud a stub that
writes down what it gets.
"""

from __future__ import annotations

import asyncio
import json
import subprocess
import sys
import threading
import time
from collections.abc import Coroutine, Iterator, Sequence
from contextlib import AbstractAsyncContextManager, ExitStack, contextmanager
from dataclasses import dataclass, field
from hashlib import sha256
from pathlib import Path
from typing import Any

from tests.doors.client import Reply, exchange, request
from tests.doors.model import make_model
from tests.fleet.backends import Backend, serving
from tests.server.running import free_port, wait_until_ready

SINGLE, GATEWAY, ROUTE, ROUTES = "single", "gateway", "route", "routes"
DOORS = (SINGLE, GATEWAY, ROUTE, ROUTES)

#: Keys of the doors that ask for one, by tenant.
KEYS = {"alice": "key-of-alice", "bob": "key-of-bob", "carol": "schlüssel", "dave": "c2VjcmV0a2V5=="}
#: Of those known as gateway and as watcher.
KEYS |= {"front": "key-of-a-gateway", "eyes": "key-of-a-watcher"}
#: What a configuration has in their place: Bob's key is known by its hash alone.
CONFIGURED = KEYS | {"bob": "sha256:" + sha256(KEYS["bob"].encode()).hexdigest()}
#: A key of erin's, at the doors that are told of an end.
EXPIRED = "key-of-erin"
#: What `--api-key` gets for each of them. Dave's has no tenant, and looks as if it had one.
KEY_OPTIONS = {
    "alice": "alice=key-of-alice",
    "bob": f"bob={CONFIGURED['bob']}",
    "carol": "carol=schlüssel",
    "dave": KEYS["dave"],
    "front": f"front={KEYS['front']}",
    "eyes": f"eyes={KEYS['eyes']}",
}

#: Carol's limits, where a door has any.
LIMITS = "{requests_per_minute: 1000, tokens_per_minute: 900000}"

PRICE = "price: {input_usd_per_million: 1, output_usd_per_million: 1}"

ENGINE = "--dtype float32 --served-model-name tiny --threads 1 --kv-cache-memory 4MiB --max-sequences 8"

ROUTE_SETTINGS = """\
    cascade: {enabled: false}
    rules: [{name: health, labels: [patient, Ärztlich], residency: never_leaves}]
"""


@dataclass
class Door:
    """One way in. `model` is what its clients ask for."""

    name: str
    port: int
    model: str
    process: subprocess.Popen[bytes]
    cloud: Backend
    log: Path
    kept: Path  # the file of responses that are written down
    others: list[Door] = field(default_factory=list)  # whose places a request at this door may hold

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    def get(self, path: str, key: str | None = None, tenant: str | None = None) -> Reply:
        """`tenant`: whom a gateway's key asks for."""
        headers: list[Any] = [("Authorization", f"Bearer {key}")] if key else []
        headers += [("x-weighbridge-tenant", tenant)] if tenant else []
        return exchange(self.port, request("GET", path, headers, None, f"127.0.0.1:{self.port}"))

    def ticket(self, name: str, key: str | None = None, tenant: str | None = None) -> dict[str, Any]:
        """The ticket, once it is finished; empty when there is none."""
        deadline = time.monotonic() + 10.0
        while True:
            reply = self.get(f"/v1/tickets/{name}", key, tenant)
            if reply.status != 200:
                return {}
            ticket: dict[str, Any] = reply.json
            if ticket.get("finished") is not None or time.monotonic() > deadline:
                return ticket
            time.sleep(0.01)

    def holds(self) -> dict[str, float]:
        """What is queued, running or kept at this door and behind it; empty when all is at rest."""
        held: dict[str, float] = {}
        for door in (self, *self.others):
            load = door.get("/v1/load", KEYS["alice"]).json
            held |= {f"{door.name}.{place}": load[place] for place in _PLACES if load and load.get(place)}
        if self.cloud.running:
            held["cloud.running"] = self.cloud.running
        return held


_PLACES = ("queued_requests", "running_requests", "queued_tokens", "running_tokens", "kv_blocks_used")


class Loop:
    """An asynchronous context on an event loop of its own, in a thread: `with Loop(serving(app)) as url`."""

    def __init__(self, context: AbstractAsyncContextManager[str]) -> None:
        self._context = context
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, daemon=True)

    def __enter__(self) -> str:
        self._thread.start()
        return self._run(self._context.__aenter__())

    def __exit__(self, *_: object) -> None:
        self._run(self._context.__aexit__(None, None, None))
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join(10.0)

    def _run(self, work: Coroutine[Any, Any, Any]) -> Any:
        return asyncio.run_coroutine_threadsafe(work, self._loop).result(30.0)


def _gateway_config(keyed: bool, single: str, cloud: str, kept: Path) -> str:
    key = f", key: {KEYS['alice']}" if keyed else ""
    return f"""\
responses_file: '{kept}'
health: {{interval: 0.2, slow_start: 0}}
models:
  tiny:
    replicas: [{{name: near, url: '{single}', dialect: weighbridge{key}}}]
  big:
    replicas: [{{name: far, url: '{cloud}', dialect: weighbridge, {PRICE}}}]
routes:
  auto:
    edge: {{model: tiny}}
    cloud: {{model: big}}
{ROUTE_SETTINGS}
{_tenants("tenants") if keyed else ""}
"""


def _tenants(section: str) -> str:
    limits = {"carol": f", limits: {LIMITS}"}
    keys = "".join(
        f"  {name}: {{key: {json.dumps(key)}{limits.get(name, '')}}}\n" for name, key in CONFIGURED.items()
    )
    erin = f"  erin: {{keys: [{{key: {EXPIRED}, expires: 2001-01-01}}]}}"
    return f"{section}:\n{keys}{erin}\ngateways: [front]\nwatchers: [eyes]\n"


def _routes_config(keyed: bool, single: str, cloud: str, kept: Path) -> str:
    key = f", key: {KEYS['alice']}" if keyed else ""
    return f"""\
responses_file: '{kept}'
routes:
  auto:
    edge: {{url: '{single}/v1', model: tiny{key}}}
    cloud: {{url: '{cloud}/v1', model: big, {PRICE}}}
{ROUTE_SETTINGS}
{_tenants("keys") if keyed else ""}
"""


#: The program with less patience: a stream is silent for long after half a second.
IMPATIENT = """
import sys, weighbridge.wire.answer as answer
answer.KEEP_ALIVE_SECONDS = 0.5
from weighbridge.cli import main
sys.exit(main())
"""


@contextmanager
def logged(words: list[str], log: Path, *, impatient: bool = False) -> Iterator[subprocess.Popen[bytes]]:
    """`weighbridge WORDS` until the block ends; what it says goes into a file."""
    program = ["-c", IMPATIENT] if impatient else ["-m", "weighbridge"]
    with log.open("wb") as file:
        process = subprocess.Popen([sys.executable, *program, *words], stdout=file, stderr=file)
        try:
            yield process
        finally:
            process.terminate()
            try:
                process.wait(15)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait(5)


def _start(stack: ExitStack, folder: Path, keyed: bool, cloud: Backend, model: Path) -> dict[str, Door]:
    """Start the processes of the four doors; none of them is waited for."""
    ports = {name: free_port() for name in (SINGLE, GATEWAY, ROUTES)}
    single = f"http://127.0.0.1:{ports[SINGLE]}"
    suffix = "keyed" if keyed else "open"
    kept = {name: folder / f"{name}-{suffix}.sqlite" for name in ports}
    gateway_file, routes_file = folder / f"gateway-{suffix}.yaml", folder / f"routes-{suffix}.yaml"
    gateway_file.write_text(_gateway_config(keyed, single, cloud.url, kept[GATEWAY]), encoding="utf-8")
    routes_file.write_text(_routes_config(keyed, single, cloud.url, kept[ROUTES]), encoding="utf-8")
    options = [word for option in KEY_OPTIONS.values() for word in ("--api-key", option)]
    options = [*options, "--gateway", "front", "--watcher", "eyes"] if keyed else []
    options += ["--responses-file", str(kept[SINGLE])]
    commands = {
        SINGLE: ["serve", str(model), *ENGINE.split(), *options],
        GATEWAY: ["serve", "--config", str(gateway_file)],
        ROUTES: ["route", "serve", "--config", str(routes_file)],
    }
    logs = {name: folder / f"{name}-{suffix}.log" for name in ports}
    processes = {
        name: stack.enter_context(logged([*command, "--port", str(ports[name])], logs[name]))
        for name, command in commands.items()
    }
    doors = {}
    for name, model_name in ((SINGLE, "tiny"), (GATEWAY, "tiny"), (ROUTE, "auto"), (ROUTES, "auto")):
        at = GATEWAY if name == ROUTE else name
        doors[name] = Door(name, ports[at], model_name, processes[at], cloud, logs[at], kept[at])
    for name in (GATEWAY, ROUTE, ROUTES):
        doors[name].others.append(doors[SINGLE])
    return doors


@contextmanager
def all_doors(folder: Path, flavours: Sequence[bool]) -> Iterator[dict[bool, dict[str, Door]]]:
    """The doors without keys (False) and with keys (True), as `flavours` says, all started at the same time."""
    model = make_model(folder / "tiny")
    cloud = Backend("cloud", tokens=3)
    with Loop(serving(cloud)) as cloud.url, ExitStack() as stack:
        doors = {keyed: _start(stack, folder, keyed, cloud, model) for keyed in flavours}
        for flavour in doors.values():
            for door in flavour.values():
                wait_until_ready(door.url, door.process, 120.0)
        yield doors
        for flavour in doors.values():
            for door in flavour.values():
                door.process.terminate()  # all at once: each takes its time to end
