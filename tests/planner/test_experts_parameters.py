"""The formulas against models built by transformers: every parameter counted."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from tests.models.tiny_moe import MOE_FAMILIES, make_tiny_moe
from weighbridge.models.files.checkpoint import open_checkpoint
from weighbridge.planner.experts.layout import count_parameters


@pytest.mark.parametrize("family", MOE_FAMILIES)
def test_total_equals_the_tensors_of_the_checkpoint(family: str, tmp_path: Path) -> None:
    directory = make_tiny_moe(family, tmp_path / family)
    checkpoint = open_checkpoint(directory)
    fields = json.loads((directory / "config.json").read_text())
    counted = sum(checkpoint.tensor(name).numel() for name in checkpoint.names())
    assert count_parameters(fields).total == counted
