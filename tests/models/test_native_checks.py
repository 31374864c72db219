"""The compiled kernels check what they are handed: memory of another size than its shape says is never read."""

from __future__ import annotations

import importlib
import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from gguf import GGMLQuantizationType as Kind
from safetensors import safe_open
from safetensors.torch import load_file, save_file

from tests.models.tiny_moe import make_tiny_moe
from tests.tiny import make_tiny
from weighbridge.errors import WeighbridgeError
from weighbridge.models.compute.decoder import Decoder
from weighbridge.models.compute.kernels import load_kernels
from weighbridge.models.compute.kernels.api import BatchLayout
from weighbridge.models.compute.layers import Mlp
from weighbridge.models.compute.linear_packed import kernels_available, multiplies_bfloat16
from weighbridge.models.compute.memory import memory_of
from weighbridge.models.compute.packed_forms import Form
from weighbridge.models.experts.moe_grouped import native_experts, packed_matrix
from weighbridge.models.experts.routing import choose
from weighbridge.models.files.checkpoint import open_checkpoint
from weighbridge.models.loader import Quantize, load_decoder

pytestmark = pytest.mark.skipif(
    not kernels_available(), reason="weighbridge was installed without a C++ compiler"
)
HIDDEN, TOKENS, BLOCK = 64, 20, 16


def native() -> Any:
    return importlib.import_module("weighbridge.models.compute.kernels._native")


def held(nbytes: int) -> tuple[torch.Tensor, tuple[int, int]]:
    """Memory of exactly so many bytes, as the kernels take it."""
    tensor = torch.zeros(nbytes, dtype=torch.uint8)
    return tensor, memory_of(tensor)


# -- packed matrices ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("bits", [4, 8])
@pytest.mark.parametrize(("rows", "columns"), [(1, 32), (16, 32), (17, 64), (160, 96)])
def test_a_packed_matrix_takes_memory_of_its_size_alone(bits: int, rows: int, columns: int) -> None:
    tiles, groups = -(-rows // 16), columns // 32
    sizes = [
        tiles * 16 * columns * bits // 8,
        tiles * 16 * groups * (2 if bits == 4 else 1) * 2,
        rows * 4,
    ]
    for wrong in range(-1, 3):
        for difference in (-1, 1, 16, 64):
            given = [size + (difference if part == wrong else 0) for part, size in enumerate(sizes)]
            tensors, memory = zip(*map(held, given), strict=True)
            if wrong < 0:
                assert native().PackedMatrix(*memory, 1.0, bits, rows, columns) is not None
                continue
            with pytest.raises(ValueError, match=f"takes {sizes[wrong]} bytes, not {given[wrong]}"):
                native().PackedMatrix(*memory, 1.0, bits, rows, columns)
            del tensors


@pytest.mark.parametrize("form", Form)
@pytest.mark.parametrize(("rows", "columns"), [(1, 256), (33, 512)])
def test_every_form_takes_memory_of_its_size_alone(form: Form, rows: int, columns: int) -> None:
    if form is Form.BFLOAT16 and not multiplies_bfloat16():
        pytest.skip("no kernels for bfloat16 weights on this CPU")
    sizes = native().packed_sizes(int(form), rows, columns)
    for wrong in (None, 0, 1):
        given = [size + (64 if part == wrong else 0) for part, size in enumerate(sizes)]
        tensors, memory = zip(*map(held, given), strict=True)
        if wrong is None or (wrong == 1 and form is Form.BFLOAT16):  # which has no scales
            assert native().PackedMatrix(*memory, (0, 0), 1.0, int(form), rows, columns) is not None
            continue
        with pytest.raises(ValueError, match=f"takes {sizes[wrong]} bytes, not {given[wrong]}"):
            native().PackedMatrix(*memory, (0, 0), 1.0, int(form), rows, columns)
        del tensors


def test_what_cannot_be_repacked_is_refused() -> None:
    sizes = (*native().packed_sizes(int(Form.Q4_0), 16, 32), 16 * 18)
    tensors, places = zip(*map(held, sizes), strict=True)
    order = np.arange(16)
    assert native().repack(*places[:2], int(Form.Q4_0), int(Kind.Q4_0), places[2], order, 32, 1)
    for stored, columns, rows in ((Kind.Q8_0, 32, order), (Kind.Q4_0, 33, order), (Kind.Q4_0, 32, order + 1)):
        with pytest.raises(ValueError, match=r"not kept|no sizes|outside"):
            native().repack(*places[:2], int(Form.Q4_0), int(stored), places[2], rows, columns, 1)
    with pytest.raises(ValueError, match="takes"):
        native().repack(*places[:2], int(Form.Q4_0), int(Kind.Q4_0), places[2], order[:8], 64, 1)
    del tensors


def test_matrices_that_do_not_stack_are_refused() -> None:
    def matrix(columns: int) -> tuple[object, Any]:
        sizes = native().packed_sizes(int(Form.Q8_0), 16, columns)
        tensors, memory = zip(*map(held, sizes), strict=True)
        return tensors, native().PackedMatrix(*memory, (0, 0), 1.0, int(Form.Q8_0), 16, columns)

    kept = [matrix(32), matrix(32), matrix(64)]
    two = kept[0][1].stacked(kept[1][1])
    with pytest.raises(ValueError, match="different columns"):
        two.stacked(kept[2][1])
    with pytest.raises(ValueError, match="no more than 3 parts"):
        two.stacked(two)


@pytest.mark.parametrize(
    ("bits", "rows", "columns"),
    [
        (4, 0, 32),
        (4, 16, 0),
        (4, -16, 32),
        (4, 16, 33),
        (5, 16, 32),
        (44, 16, 128),
        (0, 16, 32),
        (4, 2**31, 32),
        (8, 2**62, 2**62),
    ],
)
def test_a_packed_matrix_of_no_shape_is_refused(bits: int, rows: int, columns: int) -> None:
    tensor, memory = held(1024)
    with pytest.raises(ValueError, match=r"form|row and column|groups"):
        native().PackedMatrix(memory, memory, (0, 0), 1.0, bits, rows, columns)
    del tensor


# -- the KV pool --------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "change",
    [
        {"bytes": -4}, {"bytes": 4}, {"layers": 3}, {"num_blocks": 9}, {"num_blocks": 2**31 - 1}, {"kv_heads": 4},
        {"kv_heads": 0}, {"head_dim": 18}, {"head_dim": 17}, {"head_dim": 0}, {"head_dim": 1026}, {"block_size": 17},
        {"block_size": 0}, {"block_size": 128}, {"layers": -1}, {"dtype": 1},
    ],
    ids=str,
)  # fmt: skip
def test_a_pool_takes_memory_of_its_size_alone(change: dict[str, int]) -> None:
    sizes = {"layers": 2, "num_blocks": 8, "block_size": 16, "kv_heads": 2, "head_dim": 16, "dtype": 0}
    nbytes = 2 * 8 * 16 * 2 * (16 + 16) * 4
    tensor, (address, _) = held(nbytes)
    assert native().KvPool(address=address, bytes=nbytes, **sizes) is not None
    with pytest.raises(ValueError, match="KV cache"):
        native().KvPool(**{"address": address, **sizes, **change, "bytes": nbytes + change.get("bytes", 0)})
    del tensor


# -- a whole pass -------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def decoder(tmp_path_factory: pytest.TempPathFactory) -> Decoder:
    """Two layers, the first of which sees a window."""
    windows = {"use_sliding_window": True, "sliding_window": 7, "max_window_layers": 1}
    kinds = {"layer_types": ["sliding_attention", "full_attention"]}
    directory = make_tiny(
        "qwen3", tmp_path_factory.mktemp("tiny") / "qwen3", num_hidden_layers=2, **windows, **kinds
    )
    return load_decoder(open_checkpoint(directory), torch.float32, Quantize.INT8, kernels=load_kernels())


def layout_of(tokens: int) -> BatchLayout:
    numbers = np.arange(tokens, dtype=np.int32)
    table = np.arange(-(-tokens // BLOCK), dtype=np.int32)[None]
    ends = np.array([0, tokens], np.int32)
    return BatchLayout(numbers, numbers.copy(), ends, ends[1:].copy(), table)


def test_rows_must_ascend(decoder: Decoder) -> None:
    cache, tokens = decoder.allocate_kv(8, BLOCK), np.arange(3, 3 + TOKENS, dtype=np.int32)
    for rows in ([1, 1], [2, 1], [0] * 50, list(range(TOKENS))[::-1]):
        with pytest.raises(ValueError, match="rows of a batch must ascend"):
            decoder.forward(tokens, layout_of(TOKENS), cache, np.array(rows, np.int32))
    for row in (-1, TOKENS, 2**31 - 1):
        with pytest.raises(IndexError, match=r"row .* is outside"):
            decoder.forward(tokens, layout_of(TOKENS), cache, np.array([row], np.int32))


LAYOUTS: dict[str, Callable[[BatchLayout], BatchLayout]] = {
    "a block beyond the pool": lambda layout: replace(layout, block_tables=layout.block_tables + 7),
    "a negative block": lambda layout: replace(layout, block_tables=layout.block_tables - 1),
    "fewer blocks than tokens": lambda layout: replace(
        layout, block_tables=layout.block_tables[:, :1].copy()
    ),
    "a context without blocks": lambda layout: replace(layout, context_lens=layout.context_lens + 1000),
    "a context of 2^31 - 1": lambda layout: replace(layout, context_lens=np.array([2**31 - 1], np.int32)),
    "a negative context": lambda layout: replace(layout, context_lens=-layout.context_lens),
    "queries beyond the batch": lambda layout: replace(layout, query_starts=np.array([0, 99], np.int32)),
    "queries that decrease": lambda layout: replace(layout, query_starts=np.array([5, 2], np.int32)),
    "a slot beyond the pool": lambda layout: replace(layout, slots=layout.slots + 8 * BLOCK),
    "a negative slot": lambda layout: replace(layout, slots=layout.slots - 1),
    "a position beyond the table": lambda layout: replace(layout, positions=layout.positions + 1024),
    "a negative position": lambda layout: replace(layout, positions=layout.positions - 1),
    "fewer slots": lambda layout: replace(layout, slots=layout.slots[:-1].copy()),
    "more sequences": lambda layout: replace(layout, context_lens=np.repeat(layout.context_lens, 3)),
}


@pytest.mark.parametrize("name", LAYOUTS)
@pytest.mark.parametrize("fused", [True, False])
def test_a_layout_that_points_elsewhere_raises(decoder: Decoder, name: str, fused: bool) -> None:
    cache, tokens = decoder.allocate_kv(8, BLOCK), np.arange(3, 3 + TOKENS, dtype=np.int32)
    run = decoder.forward if fused else decoder._forward
    with pytest.raises((ValueError, IndexError)):
        run(tokens, LAYOUTS[name](layout_of(TOKENS)), cache, np.array([TOKENS - 1], np.int32))


@pytest.mark.parametrize("token", [-1, 512, 2**31 - 1])
def test_a_token_beyond_the_vocabulary_raises(decoder: Decoder, token: int) -> None:
    tokens = np.full(TOKENS, token, np.int32)
    with pytest.raises(IndexError, match="token id"):
        decoder.forward(tokens, layout_of(TOKENS), decoder.allocate_kv(8, BLOCK), np.array([0], np.int32))


def test_a_layer_with_matrices_of_another_shape_is_refused(decoder: Decoder) -> None:
    layer = decoder.layers[0]
    assert isinstance(layer.mlp, Mlp)
    parts = [packed_matrix(x) for x in (layer.qkv, layer.output, layer.mlp.gate_up, layer.mlp.down)]
    norms = [memory_of(layer.input_norm), memory_of(layer.post_attention_norm)]
    heads = [memory_of(layer.q_norm), memory_of(layer.k_norm)]
    config = decoder.config
    shape = [
        config.hidden_size,
        config.intermediate_size,
        config.num_heads,
        config.num_kv_heads,
        config.head_dim,
    ]
    held_by = [
        memory_of(decoder.weights.embedding),
        None,
        config.vocab_size,
        memory_of(decoder.weights.cos_sin),
        len(decoder.weights.cos_sin),
    ]
    rest = [memory_of(decoder.weights.final_norm), packed_matrix(decoder.weights.lm_head)]

    def forward(*given: Any) -> Any:
        return native().Forward(*given, 1e-6, 1.0, 0, *held_by, *rest)

    forward(*shape).add_layer(*norms, *heads, *parts, True, 0)
    for index in range(4):
        swapped = [*parts]
        swapped[index] = parts[index - 1]
        with pytest.raises(ValueError, match=r"has shape .* but the layer needs"):
            forward(*shape).add_layer(*norms, *heads, *swapped, True, 0)
    for place in (norms, heads):
        short = torch.zeros(place[0][1] // 4 - 1)
        args = [*norms, *heads]
        args[0 if place is norms else 2] = memory_of(short)
        with pytest.raises(ValueError, match=r"norm .* takes .* bytes"):
            forward(*shape).add_layer(*args, *parts, True, 0)
    for index in range(5):
        larger = [size * 2 if place == index else size for place, size in enumerate(shape)]
        with pytest.raises(ValueError, match=r"takes .* bytes|has shape|no sizes"):
            forward(*larger).add_layer(*norms, *heads, *parts, True, 0)
    many = forward(*shape)
    for window in range(4):
        many.add_layer(*norms, *heads, *parts, True, window)
    with pytest.raises(ValueError, match="too many sizes of windows"):
        many.add_layer(*norms, *heads, *parts, True, 4)


def test_plans_of_one_pass_are_not_pushed_out_by_it(decoder: Decoder) -> None:
    """The plan of the first layer is the oldest there is when the second layer asks for one that is not there."""
    tokens, layout = np.arange(3, 3 + TOKENS, dtype=np.int32), layout_of(TOKENS)
    rows = np.arange(TOKENS, dtype=np.int32)
    expected = decoder._forward(tokens, layout, decoder.allocate_kv(8, BLOCK), rows)
    cache, heads = decoder.allocate_kv(8, BLOCK), decoder.config.num_heads
    qkv = torch.zeros(TOKENS, (heads + 2 * decoder.config.num_kv_heads) * decoder.config.head_dim)
    out = torch.zeros(TOKENS, heads * decoder.config.head_dim)
    for window in (decoder.layers[0].window, 101, 102, 103):
        decoder.kernels.paged_attention(out, qkv, cache, 0, layout, heads, 1.0, window)
    assert torch.equal(decoder.forward(tokens, layout, cache, rows), expected)


# -- experts ------------------------------------------------------------------------------------------------


def test_scores_of_experts_must_be_floats_side_by_side() -> None:
    logits = torch.randn(6, 8)
    for odd in (logits.double(), logits.bfloat16(), logits.T):
        with pytest.raises(ValueError, match="contiguous"):
            choose(odd, 2, True)
    for top_k in (0, 9, -1):
        with pytest.raises((ValueError, RuntimeError)):
            choose(logits, top_k, True)
    ids, weights = choose(torch.full((3, 8), float("nan")), 8, False)
    assert ((ids >= 0) & (ids < 8)).all()
    assert weights.shape == (3, 8)


@pytest.fixture
def expert(decoder: Decoder) -> Mlp:
    mlp = decoder.layers[0].mlp
    assert isinstance(mlp, Mlp)
    return mlp


def test_experts_take_batches_of_their_size_alone(expert: Mlp) -> None:
    experts = native_experts(expert, 4, torch.float32)
    for index in range(4):
        experts.set(index, packed_matrix(expert.gate_up), packed_matrix(expert.down))
    x, out = torch.randn(3, HIDDEN), torch.empty(3, HIDDEN)
    ids, weights = torch.zeros(3, 2, dtype=torch.int32), torch.ones(3, 2)
    whole = [memory_of(tensor) for tensor in (out, x, ids, weights)]
    experts.run(*whole, 3, 2, 1)
    for place in range(4):
        short = [(address, nbytes - 4 * (index == place)) for index, (address, nbytes) in enumerate(whole)]
        for call in (lambda given: experts.run(*given, 3, 2, 1), lambda given: experts.begin(*given, 3, 2)):
            with pytest.raises(ValueError, match=r"takes .* bytes"):
                call(short)
    for odd in (-1, 4, 2**31 - 1):
        with pytest.raises(IndexError, match="is not there"):
            experts.run(*whole[:2], memory_of(ids.fill_(odd)), whole[3], 3, 2, 1)


def test_experts_that_were_never_set_or_begun_raise_or_do_nothing(expert: Mlp) -> None:
    experts = native_experts(expert, 4, torch.float32)
    with pytest.raises(IndexError, match="is not there"):
        experts.compute([0], 1)
    experts.set(0, packed_matrix(expert.gate_up), packed_matrix(expert.down))
    experts.compute([0], 1)  # no token chose it
    experts.finish(1)
    for odd in (-1, 4):
        with pytest.raises(IndexError):
            experts.set(odd, packed_matrix(expert.gate_up), packed_matrix(expert.down))
        with pytest.raises(IndexError):
            experts.compute([odd], 1)
    with pytest.raises(ValueError, match="gate and up of an expert has shape"):
        experts.set(1, packed_matrix(expert.down), packed_matrix(expert.down))


@pytest.mark.parametrize("damage", ["other codes", "no scales", "other shapes", "cut short", "no shapes"])
def test_packed_experts_that_are_damaged_are_one_sentence(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, damage: str
) -> None:
    monkeypatch.setenv("WEIGHBRIDGE_HOME", str(tmp_path / "home"))
    checkpoint = open_checkpoint(make_tiny_moe("qwen3-moe", tmp_path / "moe", num_hidden_layers=1))
    load_decoder(checkpoint, torch.float32, Quantize.INT8, expert_cache=100_000)
    (file,) = (tmp_path / "home" / "experts").glob("*/*.safetensors")
    tensors, (metadata,) = load_file(file), [json.loads(read_metadata(file)["linears"])]
    if damage == "other codes":
        tensors = {name: tensor.reshape(-1)[:-64] for name, tensor in tensors.items()}
    elif damage == "no scales":
        tensors = {name: tensor for name, tensor in tensors.items() if not name.endswith("scales")}
    elif damage == "other shapes":
        metadata = {name: [shape[0] * 2, *shape[1:]] for name, shape in metadata.items()}
    save_file(tensors, file, metadata=None if damage == "no shapes" else {"linears": json.dumps(metadata)})
    if damage == "cut short":
        file.write_bytes(file.read_bytes()[:-1000])
    with pytest.raises(WeighbridgeError, match=r"packed experts in .* are damaged .*: delete that directory"):
        load_decoder(checkpoint, torch.float32, Quantize.INT8, expert_cache=100_000)


def read_metadata(file: Path) -> dict[str, str]:
    with safe_open(file, framework="pt") as opened:
        found: dict[str, str] = opened.metadata()
    return found
