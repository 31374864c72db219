"""Several models that take turns in one memory: what each needs, and how large a cache each may have.

Any `together` of them, beside those that are always there, fit at once, and that is as many as can be. So a model's
size never depends on who else is loaded: what it needs is known before it is started, and whoever makes room makes
enough of it.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from weighbridge.errors import BadInput
from weighbridge.knobs import MIB, mebibytes

#: Of what a model leaves of the memory, what its cache gets at least where not even one full request would fit into it.
_LEAST_SHARE = 0.25


@dataclass(frozen=True, slots=True, kw_only=True)
class SharedModel:
    """Bytes of one model. `fixed`: weights, workspace and process; `request`: the cache of its longest request; `most`:
    the largest cache that is of use; `pool`: the cache that it has in any case, where that was said."""

    name: str
    fixed: int
    request: int = 0
    most: int = 0
    pool: int | None = None
    keep: bool = False  # always there


@dataclass(frozen=True, slots=True)
class Shares:
    """The cache of each model in bytes, by name, and how many of those that come and go fit at a time."""

    pools: dict[str, int]
    together: int


def shares(models: Sequence[SharedModel], memory: int) -> Shares:
    """Divide `memory` bytes. Raises BadInput with the sizes where a model fits in no case."""
    least = {one.name: one.fixed + _least_pool(one, memory) for one in models}
    kept = [one for one in models if one.keep]
    others = sorted((one for one in models if not one.keep), key=lambda one: -least[one.name])
    left = memory - sum(least[one.name] for one in kept)
    _check(kept, others, least, memory)
    together, largest = 0, 0
    for one in others:
        if largest + least[one.name] > left:
            break
        largest += least[one.name]
        together += 1
    # Whichever are there, they get no more than the neediest would.
    wanting = sorted((_wanted(one) for one in others), reverse=True)[:together]
    wanted = sum(wanting) + sum(_wanted(one) for one in kept)
    spare = left - largest
    pools = {}
    for one in models:
        pool = least[one.name] - one.fixed
        if one.pool is None and wanted:
            more = spare * _wanted(one) // wanted
            pool = max(min(pool + more, one.most) // MIB * MIB, pool)
        pools[one.name] = pool
    return Shares(pools, together)


def _wanted(one: SharedModel) -> int:
    return one.request if one.pool is None else 0


def _least_pool(one: SharedModel, memory: int) -> int:
    """The cache of one full request, or a part of what is left where that is too large."""
    if one.pool is not None:
        return one.pool
    return min(one.request, max(int((memory - one.fixed) * _LEAST_SHARE), 0))


def _check(
    kept: Sequence[SharedModel], others: Sequence[SharedModel], least: dict[str, int], memory: int
) -> None:
    """Raise BadInput where those that are kept do not fit, or one of the others beside them."""
    always = sum(least[one.name] for one in kept)
    if always > memory:
        sizes = ", ".join(f"{one.name} {mebibytes(least[one.name])}" for one in kept)
        raise BadInput(
            f"the models that are kept (`keep: true`) need {mebibytes(always)} together, and there are "
            f"{mebibytes(memory)} for all models: {sizes}; keep fewer, or give `on_demand: {{memory: ...}}` more"
        )
    problems = [
        _too_large(one, least[one.name], memory - always)
        for one in others
        if least[one.name] > memory - always
    ]
    if problems:
        raise BadInput("\n".join(problems))


def _too_large(one: SharedModel, need: int, room: int) -> str:
    return (
        f"model {one.name!r} can never be loaded: it needs {mebibytes(need)} ({mebibytes(one.fixed)} for weights, "
        f"workspace and process, the rest for its cache), and {mebibytes(max(room, 0))} are left for it; give "
        "`on_demand: {memory: ...}` more, keep fewer models, or quantise it (`options: {quantize: int4}`)"
    )
