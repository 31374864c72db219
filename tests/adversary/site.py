"""What is attacked: a server over the default model, and a gateway in front of an engine and of backends that lie.

Both ask for keys; the engine behind the gateway does not, so that it tells tenants apart as the gateway does. `tiny` is
the model's name at both; `far` has liars only; `auto` is a route that keeps `tiny` as its edge and redacts what goes to
`far`. The operator has given the honest a class that nobody else may ask for, and bounds what one step may take.
"""

from __future__ import annotations

import json
import subprocess
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path

from tests.doors.client import Reply, exchange, request
from tests.doors.doors import CONFIGURED, KEY_OPTIONS, logged
from tests.server.running import free_port, wait_until_ready

SINGLE, GATEWAY, ROUTE, ENGINE = "single", "gateway", "route", "engine"
#: What a client of each door asks for.
MODELS = {SINGLE: "tiny", GATEWAY: "tiny", ROUTE: "auto"}
#: Who behaves, and who asks for as much as it can get.
HONEST_KEY, HEAVY_KEY = "key-of-honest", "key-of-heavy"
#: The class of the honest.
PRIORITY = -1

SEATS = 3
#: Sized so that the KV pool is touched in the first minute: what grows later is no cache.
OPTIONS = (
    f"--served-model-name tiny --kv-cache-memory 192MiB --max-sequences {SEATS} --max-batch-tokens 128 "
    f"--itl-target 12 --threads 1 --check-integrity --tenant-priority honest={PRIORITY}"
)

CONFIG = """\
timeouts: {{connect: 1, first_byte: 30, idle: 10, answer: 60, probe: 1}}
health: {{interval: 1, slow_start: 0}}
queue: {{tenant_patience: 0}}
breaker: {{cool_off: 0.5, longest_cool_off: 2}}
retry: {{longest_wait: 2}}
models:
  tiny:
    tokenizer: {model}
    replicas:
      - name: engine
        url: {engine}
        dialect: weighbridge
  far:
    replicas:
{liars}
routes:
  auto:
    edge: {{model: tiny}}
    cloud: {{model: far}}
    residency: redact_then_cloud
    cascade: {{enabled: false}}
    rules: [{{name: health, labels: [patient, Ärztlich], residency: never_leaves}}]
tenants:
{tenants}
"""


@dataclass(frozen=True, slots=True)
class Server:
    """One of the processes under attack."""

    name: str
    port: int
    process: subprocess.Popen[bytes]
    log: Path

    def get(self, path: str) -> Reply:
        host = f"127.0.0.1:{self.port}"
        return exchange(
            self.port, request("GET", path, [("Authorization", f"Bearer {HONEST_KEY}")], None, host)
        )

    def chat(self, text: str) -> Reply:
        """Ask for a token behind a text, and wait for it."""
        body = {"model": "tiny", "messages": [{"role": "user", "content": text}], "max_tokens": 1}
        line = request(
            "POST",
            "/v1/chat/completions",
            [("Authorization", f"Bearer {HONEST_KEY}")],
            json.dumps(body).encode(),
            f"127.0.0.1:{self.port}",
        )
        return exchange(self.port, line, patience=120.0)


@dataclass(frozen=True, slots=True)
class Ports:
    """Where the doors are; what each program of the adversary is told."""

    single: int
    gateway: int

    def of(self, door: str) -> int:
        return self.single if door == SINGLE else self.gateway


def _config(model: Path, engine: str, liars: Sequence[str]) -> str:
    keys = {**CONFIGURED, "honest": HONEST_KEY, "heavy": HEAVY_KEY}
    return CONFIG.format(
        model=model,
        engine=engine,
        liars="\n".join(
            f"      - {{name: liar-{number}, url: '{url}', dialect: weighbridge, "
            "timeouts: {first_byte: 3, idle: 2, answer: 5}, "
            "price: {input_usd_per_million: 1, output_usd_per_million: 1}}"
            for number, url in enumerate(liars)
        ),
        tenants="\n".join(
            f"  {name}: {{key: {json.dumps(key)}, priority: {PRIORITY if name == 'honest' else 0}}}"
            for name, key in keys.items()
        ),
    )


@contextmanager
def open_site(folder: Path, model: Path, liars: Sequence[str]) -> Iterator[list[Server]]:
    """The server, the gateway and its engine, ready, until the block ends; logs go into `folder`."""
    folder.mkdir()
    ports = {name: free_port() for name in (SINGLE, GATEWAY, ENGINE)}
    file = folder / "weighbridge.yaml"
    file.write_text(_config(model, f"http://127.0.0.1:{ports[ENGINE]}", liars), encoding="utf-8")
    keys = [*KEY_OPTIONS.values(), f"honest={HONEST_KEY}", f"heavy={HEAVY_KEY}"]
    serve = ["serve", str(model), *OPTIONS.split()]
    commands = {
        SINGLE: [*serve, *(word for key in keys for word in ("--api-key", key))],
        GATEWAY: ["serve", "--config", str(file)],
        ENGINE: serve,
    }
    with ExitStack() as stack:
        servers = []
        for name, command in commands.items():
            log, port = folder / f"{name}.log", ports[name]
            process = stack.enter_context(logged([*command, "--port", str(port)], log))
            servers.append(Server(name, port, process, log))
        for server in servers:
            wait_until_ready(f"http://127.0.0.1:{server.port}", server.process, 120.0)
        yield servers
