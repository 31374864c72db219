"""Adapters over decoders of every kind: each row is what the base makes with its own adapter merged into it."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
import torch
import transformers
from gguf import GGMLQuantizationType as Kind

from tests.models.general.shrunk import save_shrunk
from tests.models.tiny_moe import make_tiny_moe
from tests.tiny import make_tiny
from tests.tiny_gguf import write_gguf
from tests.tiny_lora import ALL, ATTENTION, make_lora, merged
from weighbridge.models.adapters.peft_file import open_adapter
from weighbridge.models.adapters.shelf import AdapterShelf, ShelfSize
from weighbridge.models.any_model import OpenedModel, open_model
from weighbridge.models.compute.causal_model import CausalModel
from weighbridge.models.compute.kernels.api import BatchLayout
from weighbridge.models.compute.low_rank import NO_SLOT
from weighbridge.models.keeping import Quantize

BLOCK = 16
#: Texts of a batch: the adapter of each by its number (None: the base), and its tokens. One prompt is a long run.
TEXTS = ((0, 40), (None, 7), (1, 20), (0, 3), (None, 5))
FUSED = ("qkv_proj", "o_proj", "gate_up_proj", "down_proj")
KINDS = {
    **{name: (make_tiny, name, ALL) for name in ("llama", "mistral", "qwen2", "qwen3", "smollm3", "gemma3")},
    "olmoe": (make_tiny_moe, "olmoe-clip", ATTENTION),
    "qwen2-moe-mixed": (make_tiny_moe, "qwen2-moe-mixed", ATTENTION),
    "phi3": (save_shrunk, "phi3", FUSED),
    "olmo2": (save_shrunk, "olmo2", ALL),
}


def oracle_of(directory: Path) -> torch.nn.Module:
    return transformers.AutoModelForCausalLM.from_pretrained(
        directory, dtype=torch.float32, attn_implementation="eager"
    ).eval()


def loaded(path: Path, scheme: Quantize = Quantize.NONE) -> tuple[OpenedModel, CausalModel]:
    opened = open_model(path)
    return opened, opened.load(torch.float32, scheme, max_model_len=256, report=None, expert_cache=None)


def shelf_of(
    opened: OpenedModel, decoder: CausalModel, directories: Sequence[Path], slots: int, rank: int = 8
) -> AdapterShelf:
    """Adapters in the last slots of a shelf, so that the number of one is not its slot."""
    modules = opened.adaptable()
    shelf = opened.adapt(decoder, ShelfSize(slots, rank, modules))
    for number, directory in enumerate(directories):
        shelf.put(slots - 1 - number, open_adapter(directory, modules, rank))
    return shelf


def layout_of(starts: Sequence[int], counts: Sequence[int], blocks: int) -> BatchLayout:
    """Sequences side by side, each with `blocks` blocks of its own."""
    tables = np.arange(len(counts) * blocks, dtype=np.int32).reshape(len(counts), blocks)[:, ::-1].copy()
    owner = np.repeat(np.arange(len(counts)), counts)
    positions = np.concatenate([np.arange(a, a + n) for a, n in zip(starts, counts, strict=True)]).astype(
        np.int32
    )
    slots = tables[owner, positions // BLOCK] * BLOCK + positions % BLOCK
    return BatchLayout(
        positions=positions,
        slots=slots.astype(np.int32),
        query_starts=np.concatenate([[0], np.cumsum(counts)]).astype(np.int32),
        context_lens=(np.array(starts) + np.array(counts)).astype(np.int32),
        block_tables=tables,
    )


def check_close(actual: torch.Tensor, wanted: torch.Tensor, tolerance: float) -> None:
    """Each logit, or, of a base that is rounded, rows as a whole, in their mean."""
    if tolerance < 0.01:
        torch.testing.assert_close(actual.float(), wanted, atol=tolerance, rtol=tolerance)
    else:
        assert float(((actual - wanted).norm(dim=1) / wanted.norm(dim=1)).mean()) < tolerance


def check_batch(
    decoder: CausalModel, shelf: AdapterShelf, oracles: Sequence[torch.nn.Module], tolerance: float
) -> None:
    """A batch of prompts, then one of decodes, with rows of every adapter and of the base, whose oracle is the last."""
    slots = shelf.size.slots
    owners = [NO_SLOT if number is None else slots - 1 - number for number, _ in TEXTS]
    rng = np.random.default_rng(5)
    texts = [rng.integers(3, 400, count + 1).astype(np.int32) for _, count in TEXTS]
    counts, blocks = [len(text) - 1 for text in texts], 4
    cache = decoder.allocate_kv(len(texts) * blocks, BLOCK)
    expected = []
    with torch.inference_mode():
        for (number, _), text in zip(TEXTS, texts, strict=True):
            oracle = oracles[-1 if number is None else number]
            expected.append(oracle(torch.from_numpy(text.astype(np.int64))[None]).logits[0])
    prompts, padding = np.concatenate([text[:-1] for text in texts]), 3
    ids = np.concatenate([prompts, np.zeros(padding, np.int32)])
    shelf.begin(owners, counts, len(ids))
    assert shelf.rows is not None
    rows = np.arange(len(prompts), dtype=np.int32)
    actual = decoder.forward(ids, layout_of([0] * len(texts), counts, blocks), cache, rows)
    wanted = torch.cat([logits[:-1] for logits in expected])
    check_close(actual, wanted, tolerance)
    ones = [1] * len(texts)
    shelf.begin(owners, ones, len(texts))
    some = np.array([0, 1, 3, 4], np.int32)  # the last layer goes on with these alone
    last = np.array([text[-1] for text in texts], np.int32)
    actual = decoder.forward(last, layout_of(counts, ones, blocks), cache, some)
    wanted = torch.stack([logits[-1] for logits in expected])[some]
    check_close(actual, wanted, tolerance)
    shelf.begin([NO_SLOT] * len(texts), ones, len(texts))
    assert shelf.rows is None


@pytest.mark.parametrize("kind", KINDS)
def test_each_row_goes_through_its_own_adapter(kind: str, tmp_path: Path) -> None:
    make, name, targets = KINDS[kind]
    base = make(name, tmp_path / "base")
    oracle = oracle_of(base)
    adapters = [
        make_lora(oracle, tmp_path / "a", targets, seed=1, use_rslora=True),
        make_lora(oracle, tmp_path / "b", targets[:1], seed=2, r=2, lora_alpha=3),
    ]
    oracles = [*(merged(oracle, adapter) for adapter in adapters), oracle]
    for slots in (2, 9):
        opened, decoder = loaded(base)
        check_batch(decoder, shelf_of(opened, decoder, adapters, slots), oracles, 1e-4)


@pytest.mark.parametrize(("kind", "tolerance"), [(Kind.F32, 1e-4), (Kind.Q8_0, 0.1)])
def test_over_a_gguf_file(kind: Kind, tolerance: float, tmp_path: Path) -> None:
    """Its rows are in another order, which the adapter does not know; its codes stay codes."""
    base = make_tiny("llama", tmp_path / "base")
    oracle = oracle_of(base)
    adapters = [make_lora(oracle, tmp_path / name, seed=seed) for seed, name in enumerate("ab")]
    oracles = [*(merged(oracle, adapter) for adapter in adapters), oracle]
    opened, decoder = loaded(write_gguf(base, tmp_path / "base.gguf", kind), Quantize.AUTO)
    check_batch(decoder, shelf_of(opened, decoder, adapters, 2), oracles, tolerance)


def test_ranks_and_alphas_of_single_modules(tmp_path: Path) -> None:
    base = make_tiny("llama", tmp_path / "base")
    oracle = oracle_of(base)
    patterns = {"rank_pattern": {"q_proj": 8, "layers.1.mlp.down_proj": 1}, "alpha_pattern": {"v_proj": 2.5}}
    adapters = [make_lora(oracle, tmp_path / name, seed=seed, **patterns) for seed, name in enumerate("ab")]
    oracles = [*(merged(oracle, adapter) for adapter in adapters), oracle]
    opened, decoder = loaded(base)
    check_batch(decoder, shelf_of(opened, decoder, adapters, 3, rank=16), oracles, 1e-4)


def test_a_slot_that_was_cleared_adds_nothing(tmp_path: Path) -> None:
    """Another adapter in it, of fewer modules and a smaller rank, is alone there."""
    base = make_tiny("llama", tmp_path / "base")
    oracle = oracle_of(base)
    first = make_lora(oracle, tmp_path / "first", seed=1, r=8)
    others = [
        make_lora(oracle, tmp_path / name, ("v_proj",), seed=seed, r=2) for seed, name in enumerate("ab")
    ]
    opened, decoder = loaded(base)
    shelf = shelf_of(opened, decoder, [first, first], 2)
    for slot in range(2):
        shelf.clear(slot)
        shelf.put(slot, open_adapter(others[1 - slot], opened.adaptable(), 8))
    check_batch(decoder, shelf, [*(merged(oracle, other) for other in others), oracle], 1e-4)


def test_layers_that_no_adapter_touches_are_as_they_were(tmp_path: Path) -> None:
    base = make_tiny("llama", tmp_path / "base")
    adapter = make_lora(oracle_of(base), tmp_path / "a", ("v_proj",))
    opened, decoder = loaded(base)
    before = [layer.output for layer in decoder.layers]
    modules = {name: shape for name, shape in opened.adaptable().items() if name.endswith(".v_proj")}
    shelf = opened.adapt(decoder, ShelfSize(1, 4, modules))
    shelf.put(0, open_adapter(adapter, modules, 4))
    assert [layer.output for layer in decoder.layers] == before
    shapes = sum(shape.in_features + shape.out_features for shape in modules.values())
    assert shelf.nbytes == shelf.size.nbytes(torch.float32) == 4 * 4 * shapes
