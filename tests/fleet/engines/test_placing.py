"""Whether a cluster could hold what a replica wants."""

from __future__ import annotations

from itertools import product

from hypothesis import given
from hypothesis import strategies as st

from weighbridge.fleet.config.placing import STRATEGIES, unplaceable

AMOUNTS = st.dictionaries(st.sampled_from(["CPU", "GPU"]), st.integers(0, 4).map(float), max_size=2)


def placeable(bundles: list[dict[str, float]], strategy: str, nodes: list[dict[str, float]]) -> bool:
    """Every way of laying bundles on nodes, tried."""
    for places in product(range(len(nodes)), repeat=len(bundles)):
        if strategy == "STRICT_PACK" and len(set(places)) > 1:
            continue
        if strategy == "STRICT_SPREAD" and len(set(places)) < len(places):
            continue
        left = [dict(node) for node in nodes]
        for bundle, place in zip(bundles, places, strict=True):
            for name, amount in bundle.items():
                left[place][name] = left[place].get(name, 0.0) - amount
        if all(amount >= 0 for node in left for amount in node.values()):
            return True
    return False


@given(st.lists(AMOUNTS, min_size=1, max_size=3), st.sampled_from(STRATEGIES), st.lists(AMOUNTS, max_size=3))
def test_what_is_refused_could_never_be_placed(
    bundles: list[dict[str, float]], strategy: str, nodes: list[dict[str, float]]
) -> None:
    if unplaceable(bundles, strategy, nodes):
        assert not placeable(bundles, strategy, nodes)


@given(AMOUNTS, st.lists(AMOUNTS, max_size=4))
def test_one_bundle_is_refused_exactly_where_it_cannot_be_placed(
    bundle: dict[str, float], nodes: list[dict[str, float]]
) -> None:
    assert (unplaceable([bundle], "PACK", nodes) == "") == placeable([bundle], "PACK", nodes)


def test_it_says_what_is_short() -> None:
    nodes = [{"CPU": 8.0, "GPU": 1.0}, {"CPU": 4.0, "GPU": 4.0}]
    assert "no node has GPU 8: the most that one has is 4" in unplaceable([{"GPU": 8.0}], "PACK", nodes)
    assert "no node has CPU 8, GPU 2 together" in unplaceable([{"CPU": 8.0, "GPU": 2.0}], "PACK", nodes)
    assert "as many nodes" in unplaceable([{"GPU": 1.0}] * 3, "STRICT_SPREAD", nodes)
    assert "all nodes together have GPU 5" in unplaceable([{"GPU": 3.0}] * 2, "SPREAD", nodes)
    assert unplaceable([{"GPU": 4.0}, {"CPU": 8.0}], "SPREAD", nodes) == ""
