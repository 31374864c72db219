"""Which experts the engine's tokens use: counted once per iteration, from what the routers chose.

Runs on the engine's thread behind the forward pass; reports are asked for on the server's. The counts are those of
a window that can be reset.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt

from weighbridge.cost.experts import ExpertUse, correlation, coverage, fit_overlap
from weighbridge.models.compute.causal_model import CausalModel
from weighbridge.models.compute.kernels.api import BatchLayout, Int32
from weighbridge.models.experts.cache import CachedExperts, ExpertCache
from weighbridge.models.experts.moe import SparseMlp
from weighbridge.models.experts.routing import RoutingTrace
from weighbridge.models.files.config import ExpertsConfig

Counts = npt.NDArray[np.int64]
Floats = npt.NDArray[np.float64]

#: An expert is hot from this multiple of the mean on, and cold below this share of it.
HOT, COLD = 2.0, 0.25

#: Co-activated pairs to name per layer.
PAIRS = 8

#: Co-activation is counted on at most this many tokens of an iteration: prompts would make it slow.
COACTIVATION_TOKENS = 64

#: Iterations after which the step cost learns the spread anew; the first ones soon, then every so often.
LEARN_AT, LEARN_EVERY = (64, 512), 4096

#: Sizes of iterations whose experts are added up apart.
LARGEST_SIZE = 1 << 12


@dataclass(slots=True)
class _Touched:
    """Experts per layer touched by iterations of one size."""

    iterations: int = 0
    experts: float = 0.0

    def add(self, experts: float) -> None:
        self.iterations += 1
        self.experts += experts

    @property
    def mean(self) -> float:
        return self.experts / self.iterations


@dataclass(slots=True)
class _Window:
    """All counts since the last reset."""

    decode: Counts
    prefill: Counts
    pairs: Counts  # [layers, experts, experts], both orders
    steps: int = 0
    touched: int = 0
    shared: int = 0  # experts that pairs of sequences have in common, over all layers of decode iterations
    sequence_pairs: int = 0  # such pairs, a layer at a time
    by_decodes: dict[int, _Touched] = field(default_factory=dict)  # one token each of so many sequences
    by_chunk: dict[int, _Touched] = field(default_factory=dict)  # so many tokens of one prompt

    @classmethod
    def empty(cls, layers: int, experts: int) -> _Window:
        shape = (layers, experts)
        return cls(
            np.zeros(shape, np.int64), np.zeros(shape, np.int64), np.zeros((*shape, experts), np.int64)
        )


class ExpertTelemetry:
    """The counts of one engine. Call `record` after every forward pass, the rest at any time, from any thread."""

    def __init__(self, layers: Sequence[int], config: ExpertsConfig, trace: RoutingTrace) -> None:
        """layers: numbers of the sparse ones."""
        self.layers = list(layers)
        self.config = config
        self._trace = trace
        self._row = {number: index for index, number in enumerate(layers)}
        self._offsets = (np.arange(len(layers), dtype=np.int32) * config.count)[:, None, None]
        self._lock = threading.Lock()
        self._window = _Window.empty(len(layers), config.count)
        self._learned = 0
        self.on_use: Callable[[ExpertUse], None] | None = None  # told on the engine's thread
        self.cache: ExpertCache | None = None  # where not all experts are resident

    def begin(self) -> None:
        """Forget what an iteration that failed has left behind."""
        self._trace.take()

    def record(self, layout: BatchLayout, rows: Int32, decodes: npt.NDArray[np.bool_] | None = None) -> int:
        """Count one iteration; returns the distinct (layer, expert) pairs it touched.

        `decodes` [sequences]: whose token is one of an answer; None: whoever has a single one.
        """
        chosen = self._trace.take()
        queries = np.diff(layout.query_starts)
        if decodes is None:
            decodes = queries == 1
        single, touched = np.repeat(decodes, queries), 0
        with self._lock:
            window = self._window
            for first, ids in self._stacked(chosen, len(layout.positions), rows):
                touched += self._count(window, first, ids, single, rows)
            window.steps += 1
            window.touched += touched
            self._note_size(window, queries, bool(decodes.all()), len(rows), touched / max(len(chosen), 1))
        if self.on_use is not None and self._due(window.steps):
            self._learned = window.steps
            self.on_use(self.use())
        return touched

    def _due(self, steps: int) -> bool:
        """Whether the step cost should learn again: enough was counted since it last did."""
        return steps >= next((at for at in LEARN_AT if at > self._learned), self._learned + LEARN_EVERY)

    def _stacked(
        self, chosen: list[tuple[int, Int32]], real: int, rows: Int32
    ) -> list[tuple[int, npt.NDArray[np.int32]]]:
        """Stack consecutive layers with equally many tokens to arrays [layers, tokens, top_k] without padding.

        The last layer of the model runs the sampled tokens alone.
        """
        groups: list[tuple[int, list[Int32]]] = []
        for number, ids in chosen:
            if not groups or len(groups[-1][1][-1]) != len(ids):
                groups.append((self._row[number], []))
            groups[-1][1].append(ids)
        return [(first, np.stack(part)[:, :real]) for first, part in groups]

    def _count(
        self,
        window: _Window,
        first: int,
        ids: npt.NDArray[np.int32],
        single: npt.NDArray[np.bool_],
        rows: Int32,
    ) -> int:
        """`single` [tokens]: which of them are of answers."""
        layers, tokens, _ = ids.shape
        count = self.config.count
        keys = ids + self._offsets[:layers]
        size = layers * count
        every = np.bincount(keys.ravel(), minlength=size)
        part = slice(first, first + layers)
        if single.all():
            window.decode[part] += every.reshape(layers, count)
            window.shared += int(every @ (every - 1))
            window.sequence_pairs += layers * tokens * (tokens - 1)
        else:
            single = single[rows] if tokens != len(single) else single
            decode = np.bincount(keys[:, single].ravel(), minlength=size)
            window.decode[part] += decode.reshape(layers, count)
            window.prefill[part] += (every - decode).reshape(layers, count)
        if self.config.top_k > 1:
            self._count_pairs(window, first, keys[:, :COACTIVATION_TOKENS])
        return int(np.count_nonzero(every))

    def _count_pairs(self, window: _Window, first: int, keys: npt.NDArray[np.int32]) -> None:
        flat = window.pairs.reshape(-1)
        start = first * self.config.count
        for first_choice in range(self.config.top_k):
            for second_choice in range(self.config.top_k):
                if first_choice != second_choice:
                    row = (keys[..., first_choice] + start) * self.config.count
                    pair = row + keys[..., second_choice] % self.config.count
                    np.add.at(flat, pair.ravel(), 1)

    def _note_size(
        self, window: _Window, queries: Int32, decodes: bool, sampled: int, experts: float
    ) -> None:
        """`decodes`: all of its tokens are of answers."""
        tokens = int(queries.sum())
        if tokens > LARGEST_SIZE:
            return
        if decodes:
            window.by_decodes.setdefault(tokens, _Touched()).add(experts)
        elif len(queries) == 1 and sampled != 0:
            window.by_chunk.setdefault(tokens, _Touched()).add(experts)

    def reset(self) -> None:
        """Begin a new window."""
        with self._lock:
            self._window = _Window.empty(len(self.layers), self.config.count)
            self._learned = 0

    # -- what is known ----------------------------------------------------------------------------------

    def use(self) -> ExpertUse:
        """Return how tokens spread over experts, for the step cost: evenly until something was counted."""
        with self._lock:
            counts = self._window.decode + self._window.prefill
            chunks = [(size, touched.mean) for size, touched in self._window.by_chunk.items() if size > 1]
        use = probabilities(counts, self.config.top_k)
        overlap = fit_overlap(use.mean(axis=0).tolist(), chunks) if chunks and counts.any() else 0.0
        return ExpertUse.of(use.tolist(), overlap)

    def report(self, coactivation: bool = False, coverage: bool = True) -> dict[str, Any]:
        """Return everything counted in the window, as plain JSON types.

        coactivation: with the whole matrices. coverage: with experts touched by batch size, which takes a while for
        hundreds of experts in many layers.
        """
        with self._lock:
            window = self._window
            decode, prefill, pairs = window.decode.copy(), window.prefill.copy(), window.pairs.copy()
            steps, touched = window.steps, window.touched
            shared = window.shared / window.sequence_pairs if window.sequence_pairs else 0.0
            by_decodes = {
                size: (experts.iterations, experts.mean) for size, experts in window.by_decodes.items()
            }
        use = probabilities(decode, self.config.top_k).tolist()
        alike = round(correlation(use, shared), 5)  # of the sequences of an iteration
        layers = layer_report(decode + prefill, self.layers)
        for index, record in enumerate(layers):
            record["decode_tokens"] = decode[index].tolist()
            record["prefill_tokens"] = prefill[index].tolist()
            record["strongest_pairs"] = strongest_pairs(pairs[index])
        answer = {
            "object": "experts",
            "experts": self.config.count,
            "top_k": self.config.top_k,
            "steps": steps,
            "touched_per_step": touched / steps if steps else 0.0,
            "correlation": alike,
            "coverage": _coverage(use, alike, by_decodes) if coverage else [],
            "layers": layers,
        }
        if self.cache is not None:
            answer["cache"] = self.cache.report()
        if coactivation:
            answer["coactivation"] = pairs.tolist()
        return answer


def _coverage(
    use: list[list[float]], alike: float, by_decodes: dict[int, tuple[int, float]]
) -> list[dict[str, float]]:
    """Return the experts per layer that decode batches touched, beside what the probabilities `use` predict.

    alike: correlation of the sequences of an iteration.
    """
    return [
        {
            "batch": size,
            "iterations": iterations,
            "measured": round(mean, 4),
            "predicted": round(sum(coverage(row, size, alike) for row in use) / len(use), 4),
        }
        for size, (iterations, mean) in sorted(by_decodes.items())
    ]


def attach(decoder: CausalModel) -> ExpertTelemetry | None:
    """Listen to the routers of `decoder`; None for a dense model."""
    config = decoder.config.experts
    sparse = [layer.mlp for layer in decoder.layers if isinstance(layer.mlp, SparseMlp)]
    if config is None or not sparse:
        return None
    trace = RoutingTrace()
    for mlp in sparse:
        mlp.trace = trace
    telemetry = ExpertTelemetry([mlp.layer for mlp in sparse], config, trace)
    if isinstance(sparse[0].experts, CachedExperts):
        telemetry.cache = sparse[0].experts.cache
    return telemetry


# What counts of tokens per expert say. counts: int [layers, experts].


def balancedness(counts: Counts) -> Floats:
    """Mean over maximum of each layer: 1 when even, 1 / experts when one expert takes all, 0 without tokens."""
    top = counts.max(axis=1)
    even: Floats = np.divide(counts.mean(axis=1), top, out=np.zeros(len(counts)), where=top > 0)
    return even


def top_share(counts: Counts, share: float = 0.2) -> Floats:
    """Share of the tokens that the busiest `share` of the experts take (at least one expert)."""
    number = max(1, round(counts.shape[1] * share))
    largest = np.sort(counts, axis=1)[:, -number:].sum(axis=1)
    total = counts.sum(axis=1)
    taken: Floats = np.divide(largest, total, out=np.zeros(len(counts)), where=total > 0)
    return taken


def entropy_bits(counts: Counts) -> Floats:
    """Entropy of the expert that a token chooses, in each layer; log2(experts) when all are equally likely."""
    total = counts.sum(axis=1, keepdims=True)
    share = np.divide(counts, total, out=np.zeros(counts.shape), where=total > 0)
    logs = np.log2(share, out=np.zeros(counts.shape), where=share > 0)
    bits: Floats = -(share * logs).sum(axis=1)
    return bits


def probabilities(counts: Counts, top_k: int) -> Floats:
    """Probability that a token uses each expert [layers, experts]; layers without tokens count as even."""
    total = counts.sum(axis=1, keepdims=True)
    even = np.full(counts.shape, top_k / counts.shape[1])
    use: Floats = np.divide(counts * float(top_k), total, out=even, where=total > 0)
    return use


def layer_report(counts: Counts, numbers: list[int]) -> list[dict[str, Any]]:
    """One record per layer; `numbers` are the layers' numbers in the model."""
    even, concentrated, bits = balancedness(counts), top_share(counts), entropy_bits(counts)
    records = []
    for index, number in enumerate(numbers):
        row = counts[index]
        mean = row.mean()
        records.append(
            {
                "layer": number,
                "tokens": row.tolist(),
                "balancedness": round(float(even[index]), 4),
                "top20_share": round(float(concentrated[index]), 4),
                "entropy_bits": round(float(bits[index]), 4),
                "hot": np.flatnonzero(row >= HOT * mean).tolist() if mean else [],
                "cold": np.flatnonzero(row < COLD * mean).tolist() if mean else [],
            }
        )
    return records


def strongest_pairs(pairs: Counts) -> list[list[int]]:
    """Return the pairs of experts that tokens of one layer use together most often: [expert, expert, tokens]."""
    upper = np.triu(pairs, 1)
    order = np.argsort(-upper, axis=None, kind="stable")[:PAIRS]
    strongest = [(*divmod(int(flat), upper.shape[1]), int(upper.flat[flat])) for flat in order]
    return [list(pair) for pair in strongest if pair[2] > 0]
