"""Models that take turns in one memory: what is promised of any of them, and what is said where one never fits."""

from __future__ import annotations

from itertools import combinations

import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from weighbridge.errors import BadInput
from weighbridge.planner.search.together import SharedModel, shares

MIB = 1 << 20


@st.composite
def shared_models(draw: st.DrawFn, index: int) -> SharedModel:
    request = draw(st.integers(0, 200)) * MIB
    return SharedModel(
        name=f"m{index}",
        fixed=draw(st.integers(1, 500)) * MIB,
        request=request,
        most=request * draw(st.integers(1, 8)),
        pool=draw(st.none() | st.integers(0, 100).map(lambda size: size * MIB)),
        keep=draw(st.booleans()),
    )


@given(st.data(), st.integers(1, 5), st.integers(100, 4000))
def test_any_so_many_fit_beside_those_that_are_kept_and_each_holds_a_request(
    data: st.DataObject, count: int, memory: int
) -> None:
    models = [data.draw(shared_models(index)) for index in range(count)]
    memory *= MIB
    try:
        found = shares(models, memory)
    except BadInput:
        assume(False)
        return
    needs = {one.name: one.fixed + found.pools[one.name] for one in models}
    kept = sum(needs[one.name] for one in models if one.keep)
    others = [one for one in models if not one.keep]
    assert kept <= memory
    assert found.together <= len(others)
    for some in combinations(others, found.together):
        assert kept + sum(needs[one.name] for one in some) <= memory
    for one in models:
        pool = found.pools[one.name]
        if one.pool is not None:
            assert pool == one.pool
        else:
            assert pool >= min(one.request, (memory - one.fixed) // 4) - 1
            assert pool <= max(one.most, one.request)


def test_where_all_fit_nothing_has_to_go_and_spare_memory_is_cache() -> None:
    models = [SharedModel(name=name, fixed=100 * MIB, request=10 * MIB, most=400 * MIB) for name in "abc"]
    found = shares(models, 900 * MIB)
    assert found.together == 3
    assert set(found.pools.values()) == {200 * MIB}


def test_a_model_that_never_fits_is_named_with_sizes_and_a_way_out() -> None:
    models = [
        SharedModel(name="small", fixed=100 * MIB, request=10 * MIB, most=80 * MIB, keep=True),
        SharedModel(name="large", fixed=900 * MIB, request=200 * MIB, most=800 * MIB),
    ]
    with pytest.raises(
        BadInput, match=r"'large' can never be loaded: it needs .*MiB.*914MiB are left"
    ) as caught:
        shares(models, 1 << 30)
    assert "on_demand: {memory: ...}" in str(caught.value)
    with pytest.raises(BadInput, match="small 100MiB"):
        shares(models, 50 * MIB)
