"""What tests of tokenizers share: a model to take the tokenizer of, and what its file says."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from tests.tiny import make_tiny


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny model that nobody changes."""
    return make_tiny("llama", tmp_path_factory.mktemp("tiny") / "llama", num_hidden_layers=1)


@pytest.fixture(scope="module")
def parsed(whole: Path) -> dict[str, Any]:
    """Its tokenizer.json, to be copied before it is changed."""
    fields: dict[str, Any] = json.loads((whole / "tokenizer.json").read_text())
    return fields
