"""What is attacked: a server over the default model, and a gateway in front of it and of backends that lie.

Both ask for keys. `tiny` is the model's name at both; `far` has liars only; `auto` is a route that keeps `tiny` as its
edge and redacts what goes to `far`.
"""

from __future__ import annotations

import json
import subprocess
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from tests.doors.client import Reply, exchange, request
from tests.doors.doors import CONFIGURED, KEY_OPTIONS, logged
from tests.server.running import free_port, wait_until_ready

SINGLE, GATEWAY, ROUTE = "single", "gateway", "route"
#: What a client of each door asks for.
MODELS = {SINGLE: "tiny", GATEWAY: "tiny", ROUTE: "auto"}
#: Who behaves, who asks for as much as it can get, and what the gateway calls itself at the server.
HONEST_KEY, HEAVY_KEY, GATEWAY_KEY = "key-of-honest", "key-of-heavy", "key-of-gateway"

SEATS = 16
#: Sized so that the KV pool is touched in the first minute: what grows later is no cache.
ENGINE = (
    f"--served-model-name tiny --kv-cache-memory 256MiB --max-sequences {SEATS} --max-batch-tokens 256 "
    "--check-integrity"
)

CONFIG = """\
timeouts: {{connect: 1, first_byte: 30, idle: 10, answer: 60, probe: 1}}
health: {{interval: 1, slow_start: 0}}
breaker: {{cool_off: 0.5, longest_cool_off: 2}}
retry: {{longest_wait: 2}}
models:
  tiny:
    tokenizer: {model}
    replicas:
      - name: engine
        url: {single}
        dialect: weighbridge
        key: {gateway_key}
        capacity: {{max_sequences: {seats}}}
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
    """One of the two processes under attack."""

    name: str
    port: int
    process: subprocess.Popen[bytes]
    log: Path

    def get(self, path: str) -> Reply:
        host = f"127.0.0.1:{self.port}"
        return exchange(
            self.port, request("GET", path, [("Authorization", f"Bearer {HONEST_KEY}")], None, host)
        )


@dataclass(frozen=True, slots=True)
class Ports:
    """Where the doors are; what each program of the adversary is told."""

    single: int
    gateway: int

    def of(self, door: str) -> int:
        return self.single if door == SINGLE else self.gateway


def _config(model: Path, single: str, liars: Sequence[str]) -> str:
    keys = {**CONFIGURED, "honest": HONEST_KEY, "heavy": HEAVY_KEY}
    return CONFIG.format(
        model=model,
        single=single,
        gateway_key=GATEWAY_KEY,
        seats=SEATS,
        liars="\n".join(
            f"      - {{name: liar-{number}, url: '{url}', dialect: weighbridge, "
            "timeouts: {first_byte: 3, idle: 2, answer: 5}, "
            "price: {input_usd_per_million: 1, output_usd_per_million: 1}}"
            for number, url in enumerate(liars)
        ),
        tenants="\n".join(f"  {name}: {{key: {json.dumps(key)}}}" for name, key in keys.items()),
    )


@contextmanager
def open_site(folder: Path, model: Path, liars: Sequence[str]) -> Iterator[list[Server]]:
    """The server and the gateway, ready, until the block ends; logs go into `folder`."""
    folder.mkdir()
    ports = {SINGLE: free_port(), GATEWAY: free_port()}
    file = folder / "weighbridge.yaml"
    file.write_text(_config(model, f"http://127.0.0.1:{ports[SINGLE]}", liars), encoding="utf-8")
    keys = [
        *KEY_OPTIONS.values(),
        f"honest={HONEST_KEY}",
        f"heavy={HEAVY_KEY}",
        f"gateway={GATEWAY_KEY}",
    ]
    options = [word for key in keys for word in ("--api-key", key)]
    logs = {name: folder / f"{name}.log" for name in ports}
    single = ["serve", str(model), *ENGINE.split(), *options, "--port", str(ports[SINGLE])]
    gateway = ["serve", "--config", str(file), "--port", str(ports[GATEWAY])]
    with logged(single, logs[SINGLE]) as one, logged(gateway, logs[GATEWAY]) as two:
        servers = [
            Server(SINGLE, ports[SINGLE], one, logs[SINGLE]),
            Server(GATEWAY, ports[GATEWAY], two, logs[GATEWAY]),
        ]
        for server in servers:
            wait_until_ready(f"http://127.0.0.1:{server.port}", server.process, 120.0)
        yield servers
