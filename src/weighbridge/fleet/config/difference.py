"""What is to be done so that a gateway which serves one configuration serves another one."""

from __future__ import annotations

from dataclasses import dataclass, fields, replace

from weighbridge.fleet.config.spec import FleetSpec, ModelSpec, ReplicaSpec

#: Settings of a model that hold from the next request on; others are built into what is there.
AT_ONCE = frozenset({"replicas", "aliases", "resume", "thinking_tokens"})


@dataclass(frozen=True, slots=True)
class ModelTransition:
    """`spec`: the model as it is to be. Replicas by name, each alone (`count` 1)."""

    spec: ModelSpec
    added: tuple[ReplicaSpec, ...] = ()
    removed: tuple[str, ...] = ()
    changed: tuple[ReplicaSpec, ...] = ()


@dataclass(frozen=True, slots=True)
class FleetTransition:
    """`later`: settings, by their places in the file, that hold only once the gateway is started anew."""

    models: tuple[ModelTransition, ...] = ()
    later: tuple[str, ...] = ()

    def in_words(self) -> str:
        """What is done, for a log."""
        said = []
        for what in ("added", "removed", "changed"):
            names = [
                one if isinstance(one, str) else one.name for m in self.models for one in getattr(m, what)
            ]
            said += [f"{what} {', '.join(names)}"] if names else []
        said += [
            f"settings of {one.spec.name}"
            for one in self.models
            if not (one.added or one.removed or one.changed)
        ]
        said += [f"not until a restart: {', '.join(self.later)}"] if self.later else []
        return "; ".join(said) or "nothing has changed"


def difference(before: FleetSpec, after: FleetSpec) -> FleetTransition:
    """What leads from one configuration to the other, without a restart as far as that goes."""
    later = [
        one.name
        for one in fields(FleetSpec)
        if one.name not in ("models", "takeover") and getattr(before, one.name) != getattr(after, one.name)
    ]
    known = {model.name: model for model in before.models}
    found = []
    for model in after.models:
        old = known.pop(model.name, None)
        if old is None:
            later.append(f"models.{model.name} (new)")
            continue
        later += [f"models.{model.name}.{name}" for name in _built_in(old, model)]
        one = _of_model(old, model, later)
        if one is not None:
            found.append(one)
    later += [f"models.{name} (removed)" for name in known]
    return FleetTransition(tuple(found), tuple(later))


def _built_in(old: ModelSpec, new: ModelSpec) -> list[str]:
    names = [one.name for one in fields(ModelSpec) if one.name not in AT_ONCE]
    return [name for name in names if getattr(old, name) != getattr(new, name)]


def _of_model(old: ModelSpec, new: ModelSpec, later: list[str]) -> ModelTransition | None:
    """The difference in one model, as far as it can be made true now; the rest goes to `later`."""
    before, after = each(old), each(new)
    changed = []
    for name in before.keys() & after.keys():
        if before[name] == after[name]:
            continue
        if before[name].kind == after[name].kind == "url":
            changed.append(after[name])
        else:
            later.append(f"models.{new.name}.replicas.{name}")
    added = tuple(after[name] for name in after if name not in before)
    removed = tuple(name for name in before if name not in after)
    kept = {name: getattr(new, name) for name in AT_ONCE}
    spec = replace(old, **kept)
    if spec == old:
        return None
    return ModelTransition(spec, added, removed, tuple(sorted(changed, key=lambda one: one.name)))


def each(model: ModelSpec) -> dict[str, ReplicaSpec]:
    """The replicas of a model by name, one for each of `count`."""
    found = {}
    for spec in model.replicas:
        for one in expanded(spec):
            found[one.name] = one
    return found


def expanded(spec: ReplicaSpec) -> list[ReplicaSpec]:
    """One entry for each of `count` replicas; of Ray's, for as many as there are at least."""
    count = max(spec.count, spec.ray.scaling.least) if spec.kind == "ray" else spec.count
    if count == 1:
        return [spec]
    return [replace(spec, name=f"{spec.name}-{index}", count=1) for index in range(count)]
