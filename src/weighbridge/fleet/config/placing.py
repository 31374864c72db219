"""Whether a cluster can ever hold what a replica wants: resources by node, in bundles that go together or apart."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

Resources = Mapping[str, float]

PACK, SPREAD, STRICT_PACK, STRICT_SPREAD = STRATEGIES = ("PACK", "SPREAD", "STRICT_PACK", "STRICT_SPREAD")


def unplaceable(bundles: Sequence[Resources], strategy: str, nodes: Sequence[Resources]) -> str:
    """Why these bundles fit on no set of nodes, however idle, in words; empty where they do, as far as can be said
    without trying. `nodes`: what each has in all."""
    if strategy == STRICT_PACK:
        bundles = [_sum(bundles)]
    for bundle in bundles:
        if not any(_fits(bundle, node) for node in nodes):
            return _said(bundle, nodes)
    if strategy == STRICT_SPREAD and len(bundles) > len(nodes):
        return f"{len(bundles)} bundles are to be on as many nodes, and there are {len(nodes)}"
    short = _short(_sum(bundles), _sum(nodes))
    if short:
        return f"all nodes together have {_amount(short, _sum(nodes))}, and {_amount(short, _sum(bundles))} is wanted"
    return ""


def _fits(bundle: Resources, node: Resources) -> bool:
    return not _short(bundle, node)


def _short(bundle: Resources, node: Resources) -> str:
    """The first resource of which there is too little; empty where there is enough of each."""
    return next((name for name, amount in bundle.items() if amount > node.get(name, 0.0) + 1e-9), "")


def _said(bundle: Resources, nodes: Sequence[Resources]) -> str:
    wanted = ", ".join(f"{name} {amount:g}" for name, amount in bundle.items() if amount)
    most = {name: max((node.get(name, 0.0) for node in nodes), default=0.0) for name in bundle}
    short = _short(bundle, most)
    if short:
        return f"no node has {_amount(short, bundle)}: the most that one has is {most[short]:g} ({wanted} is wanted)"
    return f"no node has {wanted} together"


def _amount(name: str, of: Resources) -> str:
    return f"{name} {of.get(name, 0.0):g}"


def _sum(bundles: Sequence[Resources]) -> dict[str, float]:
    total: dict[str, float] = {}
    for bundle in bundles:
        for name, amount in bundle.items():
            total[name] = total.get(name, 0.0) + amount
    return total
