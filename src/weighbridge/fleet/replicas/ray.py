"""A replica as a Ray actor: Ray finds it a place in the cluster and starts it again when it dies.

Ray places and supervises; the tokens travel over HTTP, straight between gateway and replica, so streams, time-outs
and cancellation are those of any other replica. Needs the extra `ray`; nothing here is imported without it.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import secrets
import signal
import subprocess
import sys
import time
import urllib.request
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

from weighbridge.errors import BadInput
from weighbridge.fleet.api import Answer, Call, Report
from weighbridge.fleet.config.spec import ReplicaSpec
from weighbridge.fleet.replica import Failure, ReplicaError
from weighbridge.fleet.replicas.build import endpoint_of
from weighbridge.fleet.replicas.http import HttpReplica
from weighbridge.fleet.replicas.process import free_port, serve_command
from weighbridge.secret import Secret

log = logging.getLogger("weighbridge.fleet")

#: Seconds a model may take to load in an actor.
START_LIMIT = 600.0
NAMESPACE = "weighbridge"


def connect(address: str | None) -> Any:
    """The `ray` module, connected to a cluster: the one at `address`, the one running here, or a new local one.

    Raises BadInput when Ray is not installed or cannot be reached.
    """
    try:
        import ray
    except ImportError as error:
        raise BadInput("Ray is not installed; install it with `pip install 'weighbridge[ray]'`") from error
    if ray.is_initialized():
        return ray
    options: dict[str, Any] = {
        "namespace": NAMESPACE,
        "log_to_driver": True,
        "logging_level": logging.WARNING,
    }
    try:
        ray.init(address=address or "auto", **options)
    except ConnectionError as error:
        if address is not None:
            raise BadInput(
                f"no Ray cluster at {address}: {error}; start one with `ray start --head`"
            ) from error
        log.info("no Ray cluster is running here; starting one for this gateway")
        ray.init(include_dashboard=False, **options)
    return ray


class ServeActor:
    """Runs in a Ray worker: one `weighbridge serve` process, which ends with the actor, and the actor with it."""

    def __init__(self, command: Sequence[str], key: str) -> None:
        self._process: subprocess.Popen[bytes] | None = None
        self._url = self._start(list(command), key)

    def url(self) -> str:
        """Return where it listens. The actor dies with its process, so that Ray starts both again."""
        if self._process is None or self._process.poll() is not None:
            os._exit(1)
        return self._url

    def pid(self) -> int:
        assert self._process is not None
        return self._process.pid

    def stop(self, seconds: float) -> None:
        """End the process: SIGTERM, time to drain, then SIGKILL."""
        process = self._process
        if process is None or process.poll() is not None:
            return
        process.send_signal(signal.SIGTERM)
        try:
            process.wait(seconds)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait(5)

    def _start(self, command: list[str], key: str) -> str:
        from ray.util import get_node_ip_address

        host, port = get_node_ip_address(), free_port()
        full = [
            sys.executable,
            "-m",
            "weighbridge.fleet.replicas.child",
            str(os.getpid()),
            "-",
            "--",
            *command,
        ]
        full += ["--host", host, "--port", str(port)]
        self._process = subprocess.Popen(full, env={**os.environ, "WEIGHBRIDGE_API_KEYS": key})
        url = f"http://{host}:{port}"
        until = time.monotonic() + START_LIMIT
        while time.monotonic() < until:
            if self._process.poll() is not None:
                raise RuntimeError(f"the replica ended with code {self._process.returncode} while starting")
            with contextlib.suppress(OSError), urllib.request.urlopen(f"{url}/health", timeout=2):
                return url
            time.sleep(0.1)
        self._process.kill()
        raise RuntimeError(f"the replica did not answer within {START_LIMIT:.0f} s")


class RayReplica:
    """Speaks to an actor's process. The actor is made when it is first probed, and asked for its address again
    whenever the process cannot be reached: Ray may have started it somewhere else."""

    def __init__(self, spec: ReplicaSpec, clock: Callable[[], float] = time.monotonic) -> None:
        self.name = spec.name
        self._spec = spec
        self._clock = clock
        self._key = Secret(secrets.token_urlsafe(24))  # the replica's port is open to the cluster's network
        self._actor: Any = None
        self._http: HttpReplica | None = None
        self._asking: asyncio.Task[str] | None = None
        self._doubtful = False  # it could not be reached: the actor may be somewhere else

    async def open(self, call: Call) -> Answer:
        if self._http is None:
            raise ReplicaError(self.name, Failure.CONNECT, "its actor is starting")
        try:
            return await self._http.open(call)
        except ReplicaError as error:
            self._doubtful = self._doubtful or error.kind is Failure.CONNECT
            raise

    async def probe(self) -> Report:
        if self._http is None or self._doubtful:
            await self._find()
        assert self._http is not None
        try:
            return await self._http.probe()
        except ReplicaError:
            self._doubtful = True
            raise

    async def close(self) -> None:
        if self._asking is not None:
            self._asking.cancel()
        if self._http is not None:
            await self._http.close()
        if self._actor is not None:
            actor, self._actor = self._actor, None
            await asyncio.to_thread(_end, actor)

    async def pid(self) -> int:
        """Of the process on whichever machine the actor runs."""
        return int(await self._actor.pid.remote())

    async def _find(self) -> None:
        """Ask the actor for the address, in the background: a model may take minutes to load. Streams that still
        run at an old address are not cut by asking: only another address replaces it."""
        if self._asking is None:
            self._asking = asyncio.create_task(self._ask())
        if not self._asking.done():
            await asyncio.wait({self._asking}, timeout=self._spec.timeouts.probe)
        if not self._asking.done():
            raise ReplicaError(self.name, Failure.PROBE, "its actor is starting")
        asking, self._asking = self._asking, None
        try:
            url = asking.result()
        except Exception as error:
            raise ReplicaError(self.name, Failure.PROBE, f"Ray says: {_first_line(error)}") from error
        self._doubtful = False
        if self._http is not None:
            if self._http.endpoint.base == url:
                return
            await self._http.close()
        endpoint = replace(endpoint_of(self._spec, url), key=self._key)
        self._http = HttpReplica(self.name, endpoint, self._clock)

    async def _ask(self) -> str:
        if self._actor is None:
            self._actor = await asyncio.to_thread(_make_actor, self._spec, self._key)
        return str(await self._actor.url.remote())


def _make_actor(spec: ReplicaSpec, key: Secret) -> Any:
    ray = connect(spec.ray.address)
    options = list(spec.options)
    if spec.model is not None and "--served-model-name" not in options:
        options += ["--served-model-name", spec.model]
    command = serve_command(spec.target, options, spec.threads or max(int(spec.ray.cpus), 1))
    remote = ray.remote(
        num_cpus=spec.ray.cpus, num_gpus=spec.ray.gpus, resources=dict(spec.ray.resources), max_restarts=-1
    )(ServeActor)
    return remote.remote(command, key.reveal())


def _end(actor: Any) -> None:
    import ray

    with contextlib.suppress(Exception):  # whatever is wrong with it, it is ended below
        ray.get(actor.stop.remote(30.0), timeout=35.0)
    ray.kill(actor)


def _first_line(error: Exception) -> str:
    lines = [line for line in str(error).splitlines() if line.strip()]
    return lines[-1].strip()[:300] if lines else repr(error)


def make_ray_replica(spec: ReplicaSpec) -> RayReplica:
    """Return a replica of this entry. Connects to the cluster now, so that a missing one is said at once."""
    connect(spec.ray.address)
    return RayReplica(spec)
