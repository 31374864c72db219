"""What the planner reads of a GGUF file's metadata: whatever stands there, it is a shape or said to be none."""

from __future__ import annotations

from contextlib import suppress
from typing import Any

import pytest
from gguf.constants import GGMLQuantizationType
from hypothesis import given
from hypothesis import strategies as st

from weighbridge.errors import BadInput
from weighbridge.models.files.gguf_format import Contents, TensorEntry
from weighbridge.planner.model import gguf_fields
from weighbridge.planner.model.config_reader import read_architecture
from weighbridge.planner.model.gguf_fields import config_fields

DEEPSEEK = {
    "block_count": 2,
    "embedding_length": 64,
    "context_length": 512,
    "feed_forward_length": 128,
    "attention.head_count": 4,
    "attention.head_count_kv": 1,
    "attention.q_lora_rank": 16,
    "attention.kv_lora_rank": 32,
    "attention.key_length_mla": 24,
    "attention.value_length_mla": 16,
    "rope.dimension_count": 8,
}
GATED = {
    **{key: DEEPSEEK[key] for key in list(DEEPSEEK)[:5]},
    "attention.head_count_kv": [0, 2],
    "full_attention_interval": 2,
    "ssm.state_size": 16,
    "ssm.group_count": 2,
    "ssm.time_step_rank": 4,
    "ssm.inner_size": 64,
    "ssm.conv_kernel": 4,
}
KEYS = sorted({theirs for _, theirs in gguf_fields._FIELDS} | set(DEEPSEEK) | set(GATED))


def contents(name: str, metadata: dict[str, Any]) -> Contents:
    table = TensorEntry("token_embd.weight", GGMLQuantizationType.F32, (320, 64), 0, 320 * 64 * 4)
    named = {"general.architecture": name, **{f"{name}.{key}": value for key, value in metadata.items()}}
    return Contents(named, {table.name: table}, (), ())


def test_latent_attention_is_read() -> None:
    fields = config_fields(contents("deepseek2", DEEPSEEK))
    assert (fields["qk_nope_head_dim"], fields["qk_rope_head_dim"], fields["v_head_dim"]) == (16, 8, 16)


@pytest.mark.parametrize(
    "key", ["rope.dimension_count", "attention.key_length_mla", "attention.value_length_mla"]
)
@pytest.mark.parametrize("value", [None, "8", [0, 0], 8.5])
def test_latent_attention_without_its_sizes_is_refused(key: str, value: Any) -> None:
    metadata = {**DEEPSEEK, key: value}
    if value is None:
        del metadata[key]
    with pytest.raises(BadInput, match="key and value sizes of its latent attention"):
        config_fields(contents("deepseek2", metadata))


numbers = st.integers(-(2**63), 2**64) | st.integers(0, 128) | st.floats() | st.booleans()
values = numbers | st.text(max_size=4) | st.lists(numbers | st.text(max_size=2), max_size=4)


@given(
    st.sampled_from(["deepseek2", "qwen3next"]), st.dictionaries(st.sampled_from(KEYS), values, max_size=3)
)
def test_whatever_a_file_says_is_a_shape_or_is_refused(name: str, odd: dict[str, Any]) -> None:
    usual = DEEPSEEK if name == "deepseek2" else GATED
    with suppress(BadInput):
        read_architecture(config_fields(contents(name, {**usual, **odd})))
