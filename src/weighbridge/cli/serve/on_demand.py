"""Models of a configuration that are loaded on demand: what each takes, worked out before anything is started."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

from weighbridge.cli.serve.sizes import ReplicaToSize, SizedReplica, sizes_of
from weighbridge.cli.terminal import DownloadBar
from weighbridge.engine.settings import available_memory
from weighbridge.errors import BadInput
from weighbridge.fleet.config.on_demand import OnDemandSettings
from weighbridge.fleet.config.spec import FleetSpec, ModelSpec, ReplicaSpec
from weighbridge.fleet.on_demand.occupancy import ModelNeeds
from weighbridge.knobs import bytes_text, mebibytes
from weighbridge.models.catalogue.store import resolve
from weighbridge.planner.search.together import SharedModel, shares

#: Of what is free at start, what all models together may take unless the configuration says.
FREE_SHARE = 0.9
#: The option of a replica that says how large its cache is.
CACHE = "--kv-cache-memory"


@dataclass(frozen=True, slots=True)
class PlannedModels:
    """A fleet whose replicas have the caches that were planned for them, what each model needs, and the memory for
    all of them. `together`: how many of those that come and go fit at a time."""

    spec: FleetSpec
    settings: OnDemandSettings
    needs: tuple[ModelNeeds, ...]
    memory: int
    together: int

    @property
    def in_words(self) -> str:
        sizes = ", ".join(f"{one.name} {mebibytes(one.nbytes)}" for one in self.needs)
        kept = sum(one.keep for one in self.needs)
        beside = f" beside {kept} that stay" if kept else ""
        return f"{self.together} at a time{beside} in {mebibytes(self.memory)}: {sizes}"


def planned(spec: FleetSpec) -> PlannedModels | None:
    """Plan the models that are loaded on demand; None where there are none. Raises BadInput where one never fits."""
    chosen = [model for model in spec.models if spec.is_on_demand(model)]
    if spec.on_demand is None or not chosen:
        return None
    memory = spec.on_demand.memory or int(available_memory() * FREE_SHARE)
    found = _sizes(chosen)
    shared = [_shared(model, found) for model in chosen]
    divided = shares(shared, memory)
    sized = {model.name: _with_cache(model, found, divided.pools[model.name]) for model in chosen}
    needs = [
        ModelNeeds(
            model.name,
            one.fixed + divided.pools[model.name],
            model.keep,
            model.keep_alive if model.keep_alive is not None else spec.on_demand.keep_alive,
        )
        for model, one in zip(chosen, shared, strict=True)
    ]
    models = tuple(sized.get(model.name, model) for model in spec.models)
    return PlannedModels(replace(spec, models=models), spec.on_demand, tuple(needs), memory, divided.together)


def hint(spec: FleetSpec) -> str:
    """What to say where all that is started at once will hardly fit: no model takes less than its file."""
    started = [own for model in spec.models if (own := [one for one in model.replicas if _is_ours(one)])]
    if spec.on_demand is not None or len(started) < 2:
        return ""
    files = sum(_file_bytes(one.target) * one.count for own in started for one in own)
    free = available_memory()
    if files <= free:
        return ""
    return (
        f"the models' files have {mebibytes(files)} together, and {mebibytes(free)} are free: write "
        "`on_demand: {}` to have them loaded when somebody asks for them"
    )


def _is_ours(replica: ReplicaSpec) -> bool:
    """Whether it is started here, by our own command: the target of any other is for that command to make sense of."""
    return replica.kind == "process" and not replica.command


def _file_bytes(target: str) -> int:
    path = resolve(target, progress=DownloadBar("Pulling the model"))
    files = [path] if path.is_file() else [*path.glob("*.safetensors"), *path.glob("*.gguf")]
    return sum(one.stat().st_size for one in files)


def _sizes(models: Sequence[ModelSpec]) -> dict[str, SizedReplica]:
    """What each replica takes, by its name."""
    replicas = [replica for model in models for replica in model.replicas]
    ours = [one for one in replicas if _is_ours(one)]
    paths = [str(resolve(one.target, progress=DownloadBar("Pulling the model"))) for one in ours]
    asked = [ReplicaToSize(path, one.options) for path, one in zip(paths, ours, strict=True)]
    found = dict.fromkeys([one.name for one in replicas], SizedReplica(problem="it has a command of its own"))
    return found | dict(zip([one.name for one in ours], sizes_of(asked) if asked else (), strict=True))


def _shared(model: ModelSpec, sizes: Mapping[str, SizedReplica]) -> SharedModel:
    """All replicas of a model as one: they come and go together. Raises BadInput where its size is not known."""
    found = [(sizes[one.name], one.count) for one in model.replicas]
    problem = next((one.problem for one, _ in found if one.problem), "")
    if problem and model.memory is None:
        raise BadInput(
            f"model {model.name!r}: what it takes cannot be worked out: {problem}; write it beside its replicas, for "
            "example `memory: 2GiB`"
        )
    fixed = sum(one.fixed * count for one, count in found)
    pool = sum((one.pool or 0) * count for one, count in found) if all(one.pool for one, _ in found) else None
    if model.memory is not None:
        least = fixed + (pool or 0)
        if model.memory < least:
            raise BadInput(
                f"model {model.name!r}: `memory: {bytes_text(model.memory)}` is less than the {mebibytes(least)} that "
                "its weights, workspace and process take"
            )
        if problem or pool is not None:
            return SharedModel(name=model.name, fixed=model.memory, pool=0, keep=model.keep)
        pool = model.memory - fixed
    return SharedModel(
        name=model.name,
        fixed=fixed,
        request=sum(one.request * count for one, count in found),
        most=sum(one.most * count for one, count in found),
        pool=pool,
        keep=model.keep,
    )


def _with_cache(model: ModelSpec, sizes: Mapping[str, SizedReplica], pool: int) -> ModelSpec:
    """The model with `pool` bytes of cache divided among its replicas, where their options do not say theirs."""
    wanted = sum(sizes[one.name].request * one.count for one in model.replicas)
    return replace(
        model, replicas=tuple(_sized(one, sizes[one.name], pool, wanted) for one in model.replicas)
    )


def _sized(replica: ReplicaSpec, size: SizedReplica, pool: int, wanted: int) -> ReplicaSpec:
    if size.problem or size.pool is not None or not wanted:
        return replica
    own = pool * size.request // wanted
    return replace(replica, options=(*replica.options, CACHE, str(own)))
