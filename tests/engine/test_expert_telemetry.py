"""Telemetry of experts: every routed token counted once, in the right phase; statistics against closed forms."""

from __future__ import annotations

import math
import time
from pathlib import Path

import numpy as np
import pytest
import torch

from tests.models.tiny_moe import make_tiny_moe
from weighbridge.engine.batch import Batch, Sampled, Slice
from weighbridge.engine.experts.telemetry import (
    ExpertTelemetry,
    attach,
    balancedness,
    entropy_bits,
    layer_report,
    probabilities,
    top_share,
)
from weighbridge.engine.request import Request, SamplingParams
from weighbridge.engine.runner import Runner
from weighbridge.models.files.checkpoint import open_checkpoint
from weighbridge.models.loader import load_decoder

BLOCK = 16


class NoSampler:
    def sample(
        self, logits: torch.Tensor, batch: Batch, states: torch.Tensor | None = None, patience: float = 0.0
    ) -> Sampled:
        return Sampled([[] for _ in batch.slices], [None for _ in batch.slices])


@pytest.fixture(scope="module", params=["mixtral", "qwen2-moe-mixed", "qwen3-moe"])
def runner(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Runner:
    path = make_tiny_moe(request.param, tmp_path_factory.mktemp("tiny") / "moe")
    decoder = load_decoder(open_checkpoint(path), torch.float32)
    return Runner(decoder, NoSampler(), 64, BLOCK, attach(decoder))


@pytest.fixture
def telemetry(runner: Runner) -> ExpertTelemetry:
    assert runner.experts is not None
    runner.experts.reset()
    return runner.experts


def piece(number: int, start: int, count: int, samples: bool = True, padding: int = 0) -> Slice:
    request = Request(
        id=f"r{number}",
        prompt=[(number * 31 + position * 7) % 400 + 3 for position in range(start + count)],
        params=SamplingParams(max_tokens=1, temperature=0.0),
        arrival=0.0,
        num_computed_tokens=start,
        block_table=list(range(4 * number, 4 * number + 4)),
    )
    return Slice(request, start, count, samples=samples, padding=padding)


def counts(telemetry: ExpertTelemetry, phase: str) -> np.ndarray:
    return np.array([layer[f"{phase}_tokens"] for layer in telemetry.report()["layers"]])


def test_every_token_is_counted_once(runner: Runner, telemetry: ExpertTelemetry) -> None:
    """Two decodes, a prompt chunk that samples and one that does not: the last layer runs sampled rows alone."""
    batch = Batch([piece(0, 20, 1), piece(1, 9, 1), piece(2, 0, 11), piece(3, 0, 7, samples=False)])
    runner.execute(batch)
    top_k = telemetry.config.top_k
    decode, prefill = counts(telemetry, "decode").sum(axis=1), counts(telemetry, "prefill").sum(axis=1)
    ends = telemetry.layers[-1] == runner._decoder.config.num_layers - 1
    expected = [(2, 18)] * (len(decode) - ends) + [(2, 1)] * ends
    assert list(zip(decode // top_k, prefill // top_k, strict=True)) == expected
    assert batch.experts_touched == np.count_nonzero(
        counts(telemetry, "decode") + counts(telemetry, "prefill")
    )


def test_padding_is_not_counted(runner: Runner, telemetry: ExpertTelemetry) -> None:
    runner.execute(Batch([piece(0, 0, 5, padding=6), piece(1, 0, 11)]))
    first = counts(telemetry, "prefill")[0].sum()
    last_layer_only = telemetry.layers == [runner._decoder.config.num_layers - 1]
    assert first == (2 if last_layer_only else 16) * telemetry.config.top_k


def test_a_failed_iteration_leaves_nothing(runner: Runner, telemetry: ExpertTelemetry) -> None:
    runner.execute(Batch([piece(0, 3, 1)]))
    before = counts(telemetry, "decode").sum()
    telemetry._trace.add(telemetry.layers[0], np.zeros((1, telemetry.config.top_k), np.int32))
    runner.execute(Batch([piece(0, 4, 1)]))
    assert counts(telemetry, "decode").sum() == 2 * before


def test_coactivation_counts_pairs_in_both_orders(runner: Runner, telemetry: ExpertTelemetry) -> None:
    runner.execute(Batch([piece(number, 5 + number, 1) for number in range(8)]))
    report = telemetry.report(coactivation=True)
    pairs = np.array(report["coactivation"])
    top_k = telemetry.config.top_k
    assert (pairs == pairs.transpose(0, 2, 1)).all()
    assert (pairs.sum(axis=(1, 2)) == 8 * top_k * (top_k - 1)).all()
    assert (pairs.sum(axis=2) == counts(telemetry, "decode") * (top_k - 1)).all()
    named = report["layers"][0]["strongest_pairs"]
    assert all(pairs[0, one, other] == tokens for one, other, tokens in named)


def test_a_new_window_begins_empty(runner: Runner, telemetry: ExpertTelemetry) -> None:
    runner.execute(Batch([piece(0, 3, 1)]))
    telemetry.reset()
    report = telemetry.report()
    assert report["steps"] == 0
    assert report["touched_per_step"] == 0.0
    assert report["coverage"] == []
    use = telemetry.use()
    assert use.skew == pytest.approx(0.0, abs=1e-3)  # nothing known: even
    assert use.top_k == pytest.approx(telemetry.config.top_k)


def test_the_step_cost_is_told(runner: Runner, telemetry: ExpertTelemetry) -> None:
    told = []
    telemetry.on_use = told.append
    for step in range(70):
        runner.execute(Batch([piece(number, step % 50, 1) for number in range(3)]))
    telemetry.on_use = None
    assert len(told) == 1
    rows = telemetry.config.num_sparse_layers
    assert told[0].experts == rows * telemetry.config.count
    (coverage,) = telemetry.report()["coverage"]
    assert coverage["batch"] == 3
    assert coverage["iterations"] == 70


def test_what_sequences_share_is_counted(runner: Runner, telemetry: ExpertTelemetry) -> None:
    """The same sequence eight times is wholly alike; different ones are less so, and the prediction follows both."""
    runner.execute(Batch([piece(1, 20, 1) for _ in range(8)]))
    report = telemetry.report()
    assert report["correlation"] == 0.0  # p is 0 or 1 for each expert: nothing varies
    (coverage,) = report["coverage"]
    assert coverage["measured"] == coverage["predicted"] == telemetry.config.top_k
    for number in range(12):
        runner.execute(Batch([piece(number, 20, 1) for _ in range(8)]))
    report = telemetry.report()
    assert report["correlation"] > 0.5
    (coverage,) = report["coverage"]
    assert coverage["measured"] == telemetry.config.top_k
    assert coverage["predicted"] < 1.7 * telemetry.config.top_k
    telemetry.reset()
    assert telemetry.report()["correlation"] == 0.0


def test_dense_models_have_none(tmp_path: Path) -> None:
    from tests.tiny import make_tiny

    assert attach(load_decoder(open_checkpoint(make_tiny("llama", tmp_path / "d")), torch.float32)) is None


# -- statistics ---------------------------------------------------------------------------------------------


def test_statistics_of_known_distributions() -> None:
    counts = np.array([[10] * 10, [100] + [0] * 9, [40, 10, 10, 10, 10, 10, 10, 0, 0, 0], [0] * 10])
    assert balancedness(counts).tolist() == [1.0, 0.1, 0.25, 0.0]
    assert top_share(counts).tolist() == [0.2, 1.0, 0.5, 0.0]
    assert entropy_bits(counts)[:2] == pytest.approx([math.log2(10), 0.0])
    reports = layer_report(counts, [0, 2, 4, 6])
    assert [report["hot"] for report in reports] == [[], [0], [0], []]
    assert [report["cold"] for report in reports] == [[], list(range(1, 10)), [7, 8, 9], []]
    assert probabilities(counts, 2)[3].tolist() == [0.2] * 10


def test_recording_is_quick() -> None:
    """30 layers, 8 experts, 64 decodes take 0.5 ms; the bound is for a machine that is slow and busy."""
    from weighbridge.models.compute.kernels.api import BatchLayout
    from weighbridge.models.experts.routing import RoutingTrace
    from weighbridge.models.files.config import ExpertsConfig

    trace = RoutingTrace()
    telemetry = ExpertTelemetry(range(30), ExpertsConfig(8, 2, 64, True, (True,) * 30), trace)
    rng = np.random.default_rng(0)
    ids = [rng.permuted(np.tile(np.arange(8), (64, 1)), axis=1)[:, :2].astype(np.int32) for _ in range(30)]
    index = np.arange(64, dtype=np.int32)
    layout = BatchLayout(index, index, np.arange(65, dtype=np.int32), index, index[:, None])
    best = float("inf")
    for _ in range(50):
        for layer, chosen in enumerate(ids):
            trace.add(layer, chosen)
        started = time.perf_counter()
        telemetry.record(layout, index)
        best = min(best, time.perf_counter() - started)
    assert best < 0.05
