"""What counts of tokens per expert say: balance, concentration, temperature of experts. Pure numpy.

counts: tokens, int [layers, experts].
"""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

Counts = npt.NDArray[np.int64]
Floats = npt.NDArray[np.float64]

#: An expert is hot from this multiple of the mean on, and cold below this share of it.
HOT, COLD = 2.0, 0.25

#: Co-activated pairs to name per layer.
PAIRS = 8


def balancedness(counts: Counts) -> Floats:
    """Mean over maximum of each layer; 1 is even, 1 / experts is one expert alone. 0 without tokens."""
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
    """Of which expert a choice falls on; log2(experts) is even."""
    total = counts.sum(axis=1, keepdims=True)
    share = np.divide(counts, total, out=np.zeros(counts.shape), where=total > 0)
    logs = np.log2(share, out=np.zeros(counts.shape), where=share > 0)
    bits: Floats = -(share * logs).sum(axis=1)
    return bits


def probabilities(counts: Counts, top_k: int) -> Floats:
    """How likely a token uses each expert [layers, experts]; layers without tokens are taken as even."""
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
    """The pairs of one layer [experts, experts] that tokens use together most: [expert, expert, tokens]."""
    upper = np.triu(pairs, 1)
    order = np.argsort(-upper, axis=None, kind="stable")[:PAIRS]
    found = [(*divmod(int(flat), upper.shape[1]), int(upper.flat[flat])) for flat in order]
    return [list(pair) for pair in found if pair[2] > 0]
