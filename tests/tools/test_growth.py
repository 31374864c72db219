"""The program that draws how cost grows: its slope, its rows, and what it says of a curve that breaks its bound."""

from __future__ import annotations

import logging
import time
from dataclasses import replace

import pytest
import torch
from benchmarks.growth import ROWS, Row, drawn, main, seconds, slope


def test_a_slope_is_the_exponent() -> None:
    sizes = (10, 100, 1000)
    assert slope(sizes, [5.0, 5.0, 5.0]) == pytest.approx(0.0, abs=1e-9)
    assert slope(sizes, [3.0 * size for size in sizes]) == pytest.approx(1.0)
    assert slope(sizes, [0.1 * size**2 for size in sizes]) == pytest.approx(2.0)


def test_a_worse_exponent_and_a_dearer_largest_size_are_told() -> None:
    linear = Row("a", "a curve", "ms", (10, 100, 1000), (10, 100), 1.0, 1000.0, float)
    assert drawn(linear, quick=False)[1]
    for worse in (
        replace(linear, measure=lambda size: float(size**2) / 1000),
        replace(linear, most=999.0),
        replace(linear, exponent=0.0),
    ):
        line, keeps = drawn(worse, quick=False)
        assert not keeps
        assert "WORSE" in line
    assert drawn(replace(linear, most=1.0), quick=True)[1]  # small sizes say nothing of the largest


def test_seconds_are_of_one_call() -> None:
    def work() -> None:
        until = time.process_time() + 0.002
        while time.process_time() < until:
            pass

    assert 0.002 <= seconds(work) < 0.01


def test_rows_have_names_of_their_own_and_sizes_that_grow() -> None:
    assert len({row.name for row in ROWS}) == len(ROWS)
    for row in ROWS:
        assert len(row.sizes) >= 2
        assert len(row.quick) != 1
        for sizes in (row.sizes, row.quick):
            assert list(sizes) == sorted(set(sizes))


def test_quick_rows_keep_their_bounds(capsys: pytest.CaptureFixture[str]) -> None:
    before = logging.root.manager.disable, torch.get_num_threads()
    assert main(["--quick", "--rows", "tickets,refusal,tenants,turns"]) == 0
    assert (logging.root.manager.disable, torch.get_num_threads()) == before  # whoever comes next is warned
    lines = capsys.readouterr().out.splitlines()
    assert [line.split()[0] for line in lines] == ["tickets", "tenants", "refusal", "turns"]
    with pytest.raises(SystemExit):
        main(["--rows", "nobody"])
