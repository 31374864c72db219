"""Labels: what each side answered to a prompt, right or wrong. JSONL, plain or gzipped."""

from __future__ import annotations

import gzip
import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from weighbridge.errors import BadInput
from weighbridge.routes.judge import SignalMeter, Signals, share

#: Fewer than this teach nothing.
LEAST = 40


@dataclass(frozen=True, slots=True)
class Label:
    """`edge`, `cloud`: how good each answer was, in [0, 1]; true and false count as 1 and 0."""

    prompt: str
    edge: float
    cloud: float
    group: str | None = None
    edge_response: str | None = None
    signals: Signals | None = None  # of the edge's answer, where its log-probabilities were kept
    agreement: float | None = (
        None  # share of further answers of the edge that say the same, where there are any
    )


def read_labels(path: Path) -> list[Label]:
    """Raises BadInput naming line and field."""
    labels = []
    try:
        with (
            gzip.open(path, "rt", encoding="utf-8")
            if path.suffix == ".gz"
            else path.open(encoding="utf-8") as file
        ):
            for number, line in enumerate(file, 1):
                if line.strip():
                    labels.append(_label(line, f"{path}:{number}"))
    except (OSError, UnicodeDecodeError, EOFError) as error:
        reason = getattr(error, "strerror", None) or str(error)
        raise BadInput(f"cannot read the labels {path}: {reason.lower()}") from error
    if len(labels) < LEAST:
        raise BadInput(f"{path} holds {len(labels)} labels; at least {LEAST} are needed")
    return labels


def _label(line: str, where: str) -> Label:
    try:
        row = json.loads(line)
    except ValueError as error:
        raise BadInput(f"{where}: this is no JSON: {error}") from error
    if not isinstance(row, dict):
        raise BadInput(f"{where}: must be an object with prompt, edge_correct and cloud_correct")
    prompt, response = row.get("prompt"), row.get("edge_response")
    if not isinstance(prompt, str) or not prompt:
        raise BadInput(f"{where}: prompt: must be a text")
    if response is not None and not isinstance(response, str):
        raise BadInput(f"{where}: edge_response: must be a text")
    group = row.get("group")
    return Label(
        prompt,
        _quality(row, "edge_correct", where),
        _quality(row, "cloud_correct", where),
        str(group) if group is not None else None,
        response,
        _signals(row, where),
        _agreement(row, response, where),
    )


def _quality(row: Mapping[str, Any], name: str, where: str) -> float:
    value = row.get(name)
    if not isinstance(value, bool | int | float) or not 0.0 <= value <= 1.0:
        raise BadInput(f"{where}: {name}: must be true, false, or a number from 0 to 1")
    return float(value)


def _agreement(row: Mapping[str, Any], response: str | None, where: str) -> float | None:
    """`edge_samples`: further answers of the edge to the same prompt, drawn at a temperature."""
    samples = row.get("edge_samples")
    if samples is None:
        return None
    if response is None:
        raise BadInput(f"{where}: edge_samples: needs edge_response beside it, to be compared with")
    if not isinstance(samples, list) or not samples or not all(isinstance(one, str) for one in samples):
        raise BadInput(f"{where}: edge_samples: must be a list of texts")
    return share(response, samples)


def _signals(row: Mapping[str, Any], where: str) -> Signals | None:
    """`edge_logprobs`: OpenAI's logprobs.content of the edge's answer, or a plain list of log-probabilities."""
    value = row.get("edge_logprobs")
    if value is None:
        return None
    meter = SignalMeter()
    try:
        meter.add([one if isinstance(one, dict) else {"logprob": one} for one in value])
    except (TypeError, ValueError, KeyError, AttributeError) as error:
        raise BadInput(f"{where}: edge_logprobs: must be a list of log-probabilities") from error
    return meter.read()
