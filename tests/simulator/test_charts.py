"""Charts and timelines: every value lands where its axis says, nothing is lost in bins, pages are whole."""

from __future__ import annotations

import json
import xml.etree.ElementTree as ElementTree
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from weighbridge.pages.charts import Chart, Series, binned, decades, short, ticks
from weighbridge.simulator.experiment import Experiment, SyntheticSource
from weighbridge.simulator.fleet import Act, SimulatedEngine, SimulatedFleet, SimulatedReplicaSpec, Simulation
from weighbridge.simulator.page import write_page
from weighbridge.simulator.timeline import MAX_REPLICAS, Timeline
from weighbridge.workload.synthetic import Synthetic


@given(st.floats(1e-3, 1e7), st.integers(2, 12))
def test_ticks_are_round_ordered_and_on_the_axis(most: float, number: int) -> None:
    found = ticks(most, number)
    assert found[0] == 0.0
    assert found == sorted(set(found))
    assert found[-1] <= most * 1.0001
    assert 1 <= len(found) - 1 <= 2 * number + 1


@given(st.floats(1e-4, 1e5), st.floats(1.2, 1e5))
def test_logarithmic_ticks_stay_between_the_ends(low: float, ratio: float) -> None:
    found = decades(low, low * ratio)
    assert all(low <= tick <= low * ratio for tick in found)
    assert found == sorted(found)
    assert len(found) >= (1 if ratio > 10 else 0)


@pytest.mark.parametrize(
    ("value", "text"),
    [(0.0, "0"), (0.05, "0.05"), (2.5, "2.5"), (2500.0, "2,500"), (1.25e6, "1.25M"), (40.0, "40")],
)
def test_numbers_on_axes_are_for_people(value: float, text: str) -> None:
    assert short(value) == text


@given(
    st.lists(
        st.tuples(st.floats(0.0, 2.0), st.floats(0.01, 5.0), st.floats(0.0, 50.0)), min_size=1, max_size=60
    ),
    st.integers(1, 50),
)
def test_bins_keep_the_area_and_the_peak(spans: list[tuple[float, float, float]], bins: int) -> None:
    """What is drawn has the same integral over time as what happened, and its highest peak."""
    now, begins, ends = 0.0, [], []
    for gap, lasted, _ in spans:
        begins.append(now + gap)
        now += gap + lasted
        ends.append(now)
    values = np.array([value for _, _, value in spans])
    start, stop = np.array(begins), np.array(ends)
    _, mean, peak = binned(start, stop, values, now, bins)
    assert (mean * now / bins).sum() == pytest.approx((values * (stop - start)).sum(), rel=1e-9, abs=1e-9)
    assert peak.max() == values.max()
    assert (mean <= peak + 1e-9).all()


def test_a_chart_has_axes_labels_legend_and_marks() -> None:
    lines = [
        Series("p50", [1, 2, 3], [10, 20, 400], dots=True, notes=["a", "b", "c"]),
        Series("p99", [1, 3], [5, 8]),
    ]
    drawn = Chart(
        "TTFT over throughput", "output tokens/s", "TTFT, ms", lines, 3.0, logarithmic=True, down=[(2, "knee: 2")],
        across=[(100, "target 100 ms")],
    ).html()  # fmt: skip
    words = " ".join(ElementTree.fromstring(drawn).itertext())
    for said in (
        "TTFT over throughput",
        "output tokens/s",
        "TTFT, ms",
        "p50",
        "p99",
        "knee: 2",
        "target 100 ms",
    ):
        assert said in words


def test_names_cannot_break_the_page() -> None:
    chart = Chart("<b>", "x", "y", [Series("a & <script>", [0, 1], [0, 1]), Series("b", [0], [1])], 1.0)
    assert "<script" not in chart.html()
    ElementTree.fromstring(chart.html())


SETTINGS = SimulatedEngine(kv_tokens=65_536, max_model_len=32_768).settings()
WORKLOAD = Synthetic.parse("bursts:rate=20,requests=200,prompt=lognormal:200:0.7,output=lognormal:40:0.5")


def test_a_timeline_follows_every_iteration_and_says_when_a_replica_was_idle() -> None:
    simulation: Simulation
    timeline = Timeline(lambda name: simulation.replicas[name], lambda: len(simulation.gateway.queue))
    fleet = SimulatedFleet(replicas=(SimulatedReplicaSpec(settings=SETTINGS),) * (MAX_REPLICAS + 2))
    simulation = Simulation(fleet, WORKLOAD.generate(0), 0, watcher=timeline)
    run = simulation.run()
    assert len(timeline.replicas) == MAX_REPLICAS
    assert len(timeline.left_out) == 2
    for name, track in timeline.replicas.items():
        begins, ends = track.span(run.seconds)
        assert track.every == 1
        assert (begins[1:] >= ends[:-1] - 1e-9).all()
        assert (ends - begins).sum() == pytest.approx(run.work[name].busy)
        assert (track["kv_share"] <= 1.0).all()


def test_a_page_of_each_kind_is_whole(tmp_path: Path) -> None:
    script = (Act.parse("2:fail:r1"), Act.parse("4:add:r1"))
    fleet = SimulatedFleet(replicas=(SimulatedReplicaSpec(settings=SETTINGS),) * 2, script=script)
    experiment = Experiment(fleet=fleet, source=SyntheticSource(WORKLOAD))
    setup = {"workload": "<bursts>"}
    results = {
        "one": experiment.run(),
        "compare": {"compare": experiment.compare({"a": fleet, "b": fleet})},
        "sweep": {"sweep": experiment.sweep([1.0, 5.0])},
    }
    expected = {
        "one": ("Waiting at the gateway", "Replica r0", "fail r1", "KV blocks", "prompt tokens"),
        "compare": ("TTFT p95, ms", "within targets"),
        "sweep": ("TTFT over throughput", "requests/s offered", "target 1,000 ms"),
    }
    for name, result in results.items():
        path = tmp_path / f"{name}.html"
        write_page(path, experiment, {"setup": setup, **json.loads(json.dumps(result))})
        text = path.read_text()
        assert "&lt;bursts&gt;" in text
        assert "<script" not in text
        assert "nan" not in text.replace("Infinity", "inf").split("<body>")[1].lower().split()
        for said in expected[name]:
            assert said in text, (name, said)
