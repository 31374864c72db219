"""A replica as a Ray actor that outlives us: Ray finds it a place, and whichever gateway comes next finds it there.

Actors have names and are detached: a gateway that ends, or is killed, leaves them with their caches, and the next one
adopts them. They end when their replica is removed. Ray places and supervises; the tokens travel over HTTP, straight
between gateway and engine, so streams, time-outs and cancellation are those of any other replica. Needs the extra
`ray`; nothing here is imported without it.
"""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
import json
import logging
import secrets
import time
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from weighbridge.errors import BadInput
from weighbridge.fleet.api import Answer, Call, Report
from weighbridge.fleet.config.command import SERVED_NAME, all_filled, filled, own_command
from weighbridge.fleet.config.placing import unplaceable
from weighbridge.fleet.config.spec import RaySpec, ReplicaSpec
from weighbridge.fleet.replica import Failure, ReplicaError
from weighbridge.fleet.replicas import engine_actor, keeper
from weighbridge.fleet.replicas.build import endpoint_of
from weighbridge.fleet.replicas.http import HttpReplica
from weighbridge.secret import Secret

log = logging.getLogger("weighbridge.fleet")

#: Seconds between two times that an actor is asked where its engine is, while that answers.
LOOK_EVERY = 10.0
#: Seconds that an engine has to finish what it does, when it is ended.
GRACE = 30.0
#: Seconds that a name may take to be free again once its actor was ended, and that an actor's word may take then.
FREE_WITHIN, STOP_WITHIN = 10.0, GRACE + 15.0
#: What our own server takes its keys from.
OWN_KEYS = "WEIGHBRIDGE_API_KEYS"


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
    options: dict[str, Any] = {"log_to_driver": False, "logging_level": logging.WARNING}
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


def check_addresses(specs: list[ReplicaSpec]) -> None:
    """Raises BadInput where two replicas are on two clusters: a process is connected to one."""
    first = next((one for one in specs if one.ray.address is not None), None)
    for one in specs:
        if first is not None and one.ray.address not in (None, first.ray.address):
            raise BadInput(
                f"replica {one.name!r}: address {one.ray.address} is another cluster than {first.ray.address} of "
                f"{first.name!r}, and a gateway is connected to one; run a gateway for each, and one in front of both"
            )


def check_placeable(spec: ReplicaSpec) -> None:
    """Raises BadInput for a replica that no node could hold, unless nodes come as they are asked for."""
    why = "" if spec.ray.waits_for_nodes else _unplaceable(spec.ray)
    if why:
        raise BadInput(
            f"replica {spec.name!r}: {why}; ask for less, add a node, or say `waits_for_nodes: true` where the cluster "
            "brings nodes by itself"
        )


def bundles_of(spec: RaySpec) -> tuple[Mapping[str, float], ...]:
    """What a replica wants of the cluster; the actor itself is in the first bundle."""
    return spec.bundles or ({"CPU": spec.cpus, "GPU": spec.gpus, **spec.resources},)


def _unplaceable(spec: RaySpec) -> str:
    import ray

    nodes = [node["Resources"] for node in ray.nodes() if node["Alive"]]
    return unplaceable(bundles_of(spec), spec.strategy, nodes)


def actor_name(spec: ReplicaSpec) -> str:
    """The name of a replica's actor: its model's and its own."""
    return f"{spec.names[0]}/{spec.name}" if spec.names else spec.name


def standing(spec: ReplicaSpec) -> list[str]:
    """The names of an entry's replicas that run in the cluster: a gateway before us may have started more than the
    least there are to be."""
    import ray

    begins, space = f"{actor_name(spec)}-", spec.ray.namespace
    known = [
        one["name"] for one in ray.util.list_named_actors(all_namespaces=True) if one["namespace"] == space
    ]
    numbers = [name.removeprefix(begins) for name in known if name.startswith(begins)]
    return [f"{spec.name}-{number}" for number in sorted(numbers, key=len) if number.isdecimal()]


def plan_of(spec: ReplicaSpec, key: Secret) -> dict[str, Any]:
    """What an actor is to run; see `EngineActor`. Its digest tells plans apart, whatever their keys."""
    threads = spec.threads or max(int(bundles_of(spec.ray)[0].get("CPU", 1)), 1)
    name = spec.model or (spec.names[0] if spec.names else "")
    options = list(spec.options)
    if not spec.command and name and SERVED_NAME not in options:
        options += [SERVED_NAME, name]
    command = spec.command or own_command(spec.target, options, threads)
    env = {name: value.reveal() for name, value in spec.env.items()}
    if not spec.command:
        env = {OWN_KEYS: "{key}", **env}
    known = {"model": spec.target, "name": name}
    plan = {
        "command": list(all_filled(command, known)),
        "env": {variable: filled(value, known) for variable, value in env.items()},
        "grace": GRACE,
    }
    placed = [dict(one) for one in bundles_of(spec.ray)], spec.ray.strategy, dict(spec.ray.runtime_env)
    told = json.dumps([plan, placed], sort_keys=True)
    digest = hashlib.sha256(told.encode()).hexdigest()[:16]
    text = Path(keeper.__file__).read_text(encoding="utf-8")
    return {**plan, "key": key.reveal(), "keeper": text, "digest": digest}


class RayReplica:
    """Speaks to an actor's engine. The actor is found, or made, when it is first probed, and asked where its engine is
    whenever that cannot be reached, and now and then: Ray may have started it somewhere else."""

    def __init__(self, spec: ReplicaSpec, clock: Callable[[], float] = time.monotonic) -> None:
        self.name = spec.name
        self._spec = spec
        self._clock = clock
        self._plan = plan_of(
            spec, Secret(secrets.token_urlsafe(24))
        )  # its port is open to the cluster's network
        self._actor: Any = None
        self._http: HttpReplica | None = None
        self._key = ""
        self._asking: asyncio.Task[dict[str, Any]] | None = None
        self._look_at = 0.0
        self._doubtful = False  # it could not be reached: the actor may be somewhere else
        self._agreed = False  # that what runs there is what is configured
        self.told: dict[str, Any] = {}  # by the actor, when it was last asked

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
        elif self._asking is not None or self._clock() >= self._look_at:
            await self._compare()
        if self._http is None:
            lines = self.told.get("lines") or [""]
            ended = self.told.get("ended") or "its engine is starting"
            raise ReplicaError(self.name, Failure.PROBE, f"{ended}: {lines[-1]}" if lines[-1] else ended)
        try:
            return await self._http.probe()
        except ReplicaError as error:
            self._doubtful = True
            began = self.told.get("began", 0.0)
            if error.kind is Failure.PROBE and not self.told.get("ended"):
                waited = f"its engine was started {time.time() - began:.0f} s ago on {self.told.get('host')}"
                raise ReplicaError(self.name, error.kind, f"{waited}: {error}") from error
            raise

    async def close(self) -> None:
        """Let go of it. It goes on, unless it is not to outlive us."""
        await (self._let_go() if self._spec.ray.keep else self.end())

    async def end(self) -> None:
        """Let go of it, and end it wherever it runs."""
        await self._let_go()
        self._actor = None
        await asyncio.to_thread(_end, self._spec)

    async def _let_go(self) -> None:
        if self._asking is not None:
            self._asking.cancel()
            await asyncio.gather(self._asking, return_exceptions=True)
            self._asking = None
        if self._http is not None:
            await self._http.close()
            self._http = None

    async def pid(self) -> int:
        """Of the engine's keeper, on whichever machine the actor runs."""
        return int((await self._actor.told.remote())["pid"])

    async def _find(self) -> None:
        """Ask the actor, in the background: it may wait for a place for minutes. Streams that still run at an old
        address are not cut by asking: only another address replaces it."""
        if self._asking is None:
            self._asking = asyncio.create_task(self._ask())
        if not self._asking.done():
            await asyncio.wait({self._asking}, timeout=self._spec.timeouts.probe)
        if not self._asking.done():
            why = await asyncio.to_thread(_unplaceable, self._spec.ray)
            said = (
                f"no place for its actor: {why}" if why else "its actor waits for a place, or is being made"
            )
            raise ReplicaError(self.name, Failure.PROBE, said)
        await self._take()

    async def _compare(self) -> None:
        """Ask where it is, without waiting: as long as it answers where it was, there is no hurry."""
        if self._asking is None:
            self._asking = asyncio.create_task(self._ask())
        elif self._asking.done():
            with contextlib.suppress(ReplicaError):  # the engine answers: that counts
                await self._take()

    async def _take(self) -> None:
        """Take in what the actor said. Raises ReplicaError where it said nothing."""
        assert self._asking is not None
        asking, self._asking = self._asking, None
        self._look_at = self._clock() + LOOK_EVERY
        try:
            told = asking.result()
        except BadInput as error:
            raise ReplicaError(self.name, Failure.PROBE, str(error)) from error
        except Exception as error:
            self._actor = None  # whoever has its name now is asked next
            raise ReplicaError(self.name, Failure.PROBE, f"Ray says: {_last_line(error)}") from error
        self.told = told
        self._doubtful = False
        here = None if self._http is None else self._http.endpoint.base
        if told["url"] == (here or "") and told["key"] == self._key:
            return
        if self._http is not None:
            log.info("replica %s has moved: %s, before %s", self.name, told["url"] or "no address yet", here)
            await self._http.close()
            self._http = None
        if told["url"]:
            self._key = told["key"]
            endpoint = endpoint_of(self._spec, told["url"])
            if not self._spec.command or self._spec.knows_key:
                endpoint = replace(endpoint, key=Secret(self._key))
            self._http = HttpReplica(self.name, endpoint, self._clock)

    async def _ask(self) -> dict[str, Any]:
        if self._actor is None:
            self._actor = await asyncio.to_thread(_found_or_made, self._spec, self._plan)
        told: dict[str, Any] = await self._actor.told.remote()
        if self._agreed or told["digest"] == self._plan["digest"]:
            if not self._agreed and told["key"] != self._plan["key"]:
                log.info("replica %s has run for %.0f s, and goes on", self.name, time.time() - told["began"])
            self._agreed = True
            return told
        log.warning(
            "replica %s runs something else than is configured: it is ended and started anew", self.name
        )
        self._agreed, self._actor = True, None
        await asyncio.to_thread(_end, self._spec)
        self._actor = await asyncio.to_thread(_found_or_made, self._spec, self._plan)
        again: dict[str, Any] = await self._actor.told.remote()
        return again


def _found_or_made(spec: ReplicaSpec, plan: dict[str, Any]) -> Any:
    """The actor of a replica's name: of two that ask at the same time one makes it."""
    ray = connect(spec.ray.address)
    ray.cloudpickle.register_pickle_by_value(engine_actor)  # nothing of ours need be where it runs
    first, *others = bundles_of(spec.ray)
    resources = {name: amount for name, amount in first.items() if name not in ("CPU", "GPU", "memory")}
    options: dict[str, Any] = {
        "name": actor_name(spec),
        "namespace": spec.ray.namespace,
        "get_if_exists": True,
        "lifetime": "detached" if spec.ray.keep else None,
        "max_restarts": -1,
        "num_cpus": first.get("CPU", 0.0),
        "num_gpus": first.get("GPU", 0.0),
        "resources": resources,
    }
    if "memory" in first:
        options["memory"] = first["memory"]
    if spec.ray.runtime_env:
        options["runtime_env"] = dict(spec.ray.runtime_env)
    if others or spec.ray.bundles:
        options["scheduling_strategy"] = _in_its_group(spec)
    until = time.monotonic() + FREE_WITHIN
    while True:
        try:
            return ray.remote(engine_actor.EngineActor).options(**options).remote(plan)
        except ValueError:  # the name is of one that is just being ended
            if time.monotonic() > until:
                raise
            time.sleep(0.2)


def _in_its_group(spec: ReplicaSpec) -> Any:
    """The placement group of a replica, found or made, with the actor in its first bundle."""
    from ray.util import get_placement_group, placement_group
    from ray.util.scheduling_strategies import PlacementGroupSchedulingStrategy

    name = actor_name(spec)
    try:
        group = get_placement_group(name)
    except ValueError:
        lifetime = "detached" if spec.ray.keep else None
        bundles = [dict(one) for one in spec.ray.bundles]
        group = placement_group(bundles, strategy=spec.ray.strategy, name=name, lifetime=lifetime)
    return PlacementGroupSchedulingStrategy(
        group, placement_group_bundle_index=0, placement_group_capture_child_tasks=True
    )


def _end(spec: ReplicaSpec) -> None:
    """End the actor of a replica's name, its engine, and its group."""
    import ray
    from ray.util import get_placement_group, remove_placement_group

    name = actor_name(spec)
    with contextlib.suppress(ValueError):  # it is not there
        actor = ray.get_actor(name, namespace=spec.ray.namespace)
        with contextlib.suppress(Exception):  # whatever is wrong with it, it is ended below
            ray.get(actor.stop.remote(GRACE), timeout=STOP_WITHIN)
        ray.kill(actor, no_restart=True)
    if spec.ray.bundles:
        with contextlib.suppress(ValueError):
            remove_placement_group(get_placement_group(name))


def _last_line(error: Exception) -> str:
    lines = [line for line in str(error).splitlines() if line.strip()]
    return lines[-1].strip()[:300] if lines else repr(error)


def make_ray_replica(spec: ReplicaSpec) -> RayReplica:
    """Return a replica of this entry. Connects to the cluster now, so that a missing one is said at once, as is one
    that has no node for it. Raises BadInput."""
    connect(spec.ray.address)
    check_placeable(spec)
    return RayReplica(spec)
