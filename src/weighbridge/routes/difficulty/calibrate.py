"""The threshold that sends a given share of traffic to the cloud."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np

from weighbridge.errors import BadInput
from weighbridge.routes.difficulty.embedders.vectors import VectorTable, vectors_of
from weighbridge.routes.difficulty.trained import TrainedRouter


def calibrated(
    router: TrainedRouter, share: float, prompts: Sequence[str] | None, tables: Sequence[VectorTable] = ()
) -> tuple[TrainedRouter, float]:
    """The router with its new threshold, and the share that this threshold sends. `tables`: the prompts' vectors.

    Without prompts the training labels stand for the traffic: the score is their rank already.
    """
    if prompts is None:
        return replace(router, threshold=1.0 - share if share > 0.0 else 1.01), share
    scored = [router.score(prompt, vectors_of(tables, row)) for row, prompt in enumerate(prompts)]
    scores = np.sort(scored)[::-1]
    sent = round(share * len(scores))
    if sent == 0:
        threshold = 1.01
    elif sent == len(scores):
        threshold = 0.0
    else:
        threshold = float(scores[sent - 1] + scores[sent]) / 2
    return replace(router, threshold=threshold), float(np.mean(scores >= threshold))


def read_prompts(path: Path) -> list[str]:
    """The field `prompt` of every line. Raises BadInput naming the line."""
    prompts = []
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise BadInput(f"cannot read {path}: {error}") from error
    for number, line in enumerate(lines, 1):
        if not line.strip():
            continue
        try:
            prompt = json.loads(line)["prompt"]
        except (ValueError, KeyError, TypeError) as error:
            raise BadInput(f"{path}:{number}: must be an object with `prompt`") from error
        if not isinstance(prompt, str):
            raise BadInput(f"{path}:{number}: prompt: must be a text")
        prompts.append(prompt)
    if not prompts:
        raise BadInput(f"{path} holds no prompts")
    return prompts
