"""Every instruction set's kernels against the reference, and the reference against torch's own operations."""

from __future__ import annotations

import logging
import os
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
import torch

import weighbridge.models.compute.kernels as kernels_package
from weighbridge.errors import BadInput, UnsupportedModel
from weighbridge.models.compute.kernels import BatchLayout, NativeKernels, ReferenceKernels, load_kernels
from weighbridge.models.compute.kernels.native_kernels import (
    NativeKVCache,
    native_import_error,
    supported_isas,
)
from weighbridge.models.compute.kernels.reference import ReferenceKVCache

ISA_VARIABLE = "WEIGHBRIDGE_KERNELS"
needs_native = pytest.mark.skipif(native_import_error() is not None, reason="kernels were not compiled")
both_dtypes = pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=["float32", "bfloat16"])
both_kernels = pytest.mark.parametrize(
    "kind", [ReferenceKernels, pytest.param(NativeKernels, marks=needs_native)]
)


@pytest.fixture(autouse=True)
def _quiet() -> None:
    torch.manual_seed(0)
    torch.set_num_threads(1)  # tests that are about threads ask for more


def close(actual: torch.Tensor, expected: torch.Tensor, tolerance: float) -> None:
    torch.testing.assert_close(actual.float(), expected.float(), atol=tolerance, rtol=tolerance)


def tolerance(dtype: torch.dtype) -> float:
    return 1e-5 if dtype == torch.float32 else 2e-2


@dataclass(frozen=True)
class Case:
    """`sequences`: (new tokens, all tokens) each. `sinks`: what a sink's score is about."""

    heads: int
    kv_heads: int
    head_dim: int
    block_size: int
    sequences: tuple[tuple[int, int], ...]
    window: int = 0
    head_norms: bool = False
    rotary: bool = True
    softcap: float = 0.0
    sinks: float | None = None

    def draw_sinks(self) -> torch.Tensor | None:
        return None if self.sinks is None else torch.randn(self.heads) + self.sinks

    @property
    def width(self) -> int:
        return (self.heads + 2 * self.kv_heads) * self.head_dim


CASES = [
    Case(9, 3, 64, 32, ((1, 200), (1, 33), (1, 32), (1, 1), (7, 7), (1, 31))),
    Case(9, 3, 64, 32, ((100, 357), (1, 20), (33, 33)), window=40),
    Case(4, 1, 8, 16, ((50, 157), (1, 20), (3, 5)), head_norms=True),
    Case(4, 4, 80, 64, ((40, 157), (1, 20), (3, 5)), window=7, head_norms=True, rotary=False),
    Case(5, 1, 18, 32, ((21, 150), (1, 257), (2, 129))),
    Case(64, 1, 16, 16, ((3, 40), (1, 1))),  # a group with more heads than an item has rows
    Case(9, 3, 64, 32, ((1, 2001),)),  # few rows, many keys: split over the threads and merged
    Case(4, 2, 32, 16, ((3, 1111), (1, 700)), window=600),
    Case(4, 2, 64, 16, ((70, 257), (1, 1400), (1, 1)), window=129, softcap=5.0),
    Case(8, 2, 64, 16, ((70, 257), (1, 1400), (1, 1)), window=128, sinks=2.0),
    Case(9, 3, 64, 32, ((1, 2001), (60, 400)), softcap=1.5, sinks=0.0),  # cut into parts, which share a sink
    Case(4, 2, 32, 32, ((1, 1800),), sinks=60.0),  # a sink that takes nearly all
]


@pytest.fixture(
    params=CASES,
    ids=lambda c: (
        f"{c.heads}x{c.head_dim}over{c.kv_heads}-block{c.block_size}w{c.window}cap{c.softcap:g}sinks{c.sinks}"
    ),
)
def case(request: pytest.FixtureRequest) -> Case:
    value: Case = request.param
    return value


def random_case(seed: int) -> Case:
    draw = np.random.default_rng(seed)
    kv_heads = int(draw.integers(1, 4))
    sequences = []
    for _ in range(int(draw.integers(1, 8))):
        context = int(draw.integers(1, 400))
        sequences.append((1 if draw.random() < 0.5 else int(draw.integers(1, context + 1)), context))
    return Case(
        heads=kv_heads * int(draw.integers(1, 8)),
        kv_heads=kv_heads,
        head_dim=2 * int(draw.integers(1, 65)),
        block_size=int(draw.choice([16, 32, 64])),
        sequences=tuple(sequences),
        window=int(draw.choice([0, 1, 17, 64, 300])),
        softcap=float(draw.choice([0.0, 0.0, 0.5, 30.0])),
        sinks=[None, None, -2.0, 3.0][int(draw.integers(0, 4))],
    )


class Step:
    """One case's block tables: the layout that writes the prefixes, and the one that is tested."""

    def __init__(self, case: Case) -> None:
        size = case.block_size
        blocks = [-(-context // size) for _, context in case.sequences]
        self.num_blocks = sum(blocks) + 3
        ids = np.random.default_rng(1).permutation(self.num_blocks).astype(np.int32)
        self.tables = np.zeros((len(blocks), max(blocks) + 1), np.int32)
        for row, count in enumerate(blocks):
            self.tables[row, :count], ids = ids[:count], ids[count:]
        self.prefix = self._layout(case, [(0, context - new) for new, context in case.sequences])
        self.tested = self._layout(case, [(context - new, context) for new, context in case.sequences])

    def _layout(self, case: Case, spans: list[tuple[int, int]]) -> BatchLayout:
        positions = [np.arange(begin, end, dtype=np.int32) for begin, end in spans]
        slots = [
            self.tables[row, p // case.block_size] * case.block_size + p % case.block_size
            for row, p in enumerate(positions)
        ]
        starts = np.cumsum([0] + [len(p) for p in positions])
        return BatchLayout(
            np.concatenate(positions),
            np.concatenate(slots).astype(np.int32),
            starts.astype(np.int32),
            np.array([end for _, end in spans], np.int32),
            self.tables,
        )


def native_cache(
    kernels: NativeKernels, layers: int, blocks: int, case: Case, dtype: torch.dtype
) -> NativeKVCache:
    """Every slot not written yet holds NaN."""
    cache = kernels.allocate_kv(layers, blocks, case.block_size, case.kv_heads, case.head_dim, dtype)
    assert isinstance(cache, NativeKVCache)
    cache.fill(float("nan"))
    return cache


def compare_with_reference(
    case: Case, dtype: torch.dtype, threads: int = 1, cached: torch.dtype | None = None
) -> None:
    native, reference, step, layer = NativeKernels(), ReferenceKernels(), Step(case), 1
    cached = cached or dtype
    ours = native_cache(native, 2, step.num_blocks, case, cached)
    theirs = reference.allocate_kv(2, step.num_blocks, case.block_size, case.kv_heads, case.head_dim, cached)
    longest = max(context for _, context in case.sequences)
    cos_sin = torch.randn(longest, case.head_dim) if case.rotary else None
    q_norm, k_norm = (torch.rand(case.head_dim) + 0.5 if case.head_norms else None for _ in range(2))
    for layout in (step.prefix, step.tested):
        qkv = torch.randn(len(layout.positions), case.width).to(dtype)
        expected = qkv.clone()
        reference.rope_and_write(expected, theirs, layer, layout, cos_sin, case.heads, q_norm, k_norm, 1e-5)
        torch.set_num_threads(threads)
        native.rope_and_write(qkv, ours, layer, layout, cos_sin, case.heads, q_norm, k_norm, 1e-5)
        torch.set_num_threads(1)
        close(qkv, expected, tolerance(dtype))
        written, wanted = (cache.read(layer, layout.slots) for cache in (ours, theirs))
        for part, wanted_part in zip(written, wanted, strict=True):
            # A code may be the next one, where the rotation was rounded otherwise.
            close(part, wanted_part, 5e-2 if cached == torch.int8 else max(map(tolerance, (dtype, cached))))
    out = torch.full((len(qkv), case.heads * case.head_dim), 7.0, dtype=dtype)
    wanted_out, sinks = out.clone(), case.draw_sinks()
    asked = case.heads, case.head_dim**-0.5, case.window, case.softcap, sinks
    reference.paged_attention(wanted_out, expected, theirs, layer, step.tested, *asked)
    torch.set_num_threads(threads)
    native.paged_attention(out, qkv, ours, layer, step.tested, *asked)
    close(out, wanted_out, max(map(tolerance, (dtype, cached))))


@needs_native
@both_dtypes
@pytest.mark.parametrize("cached", [torch.float32, torch.bfloat16, torch.int8], ids=str)
def test_a_cache_of_another_type_matches_reference(
    case: Case, dtype: torch.dtype, cached: torch.dtype
) -> None:
    compare_with_reference(case, dtype, threads=2, cached=cached)


@needs_native
@both_dtypes
def test_rope_and_attention_match_reference(case: Case, dtype: torch.dtype) -> None:
    compare_with_reference(case, dtype, threads=2)


@needs_native
@pytest.mark.parametrize("threads", [1, 2, 3])
def test_number_of_threads_does_not_matter(threads: int) -> None:
    compare_with_reference(Case(6, 2, 32, 32, ((1, 1300), (60, 400))), torch.float32, threads)


@needs_native
@both_dtypes
@pytest.mark.parametrize("seed", range(6))
def test_random_batches_match_reference(seed: int, dtype: torch.dtype) -> None:
    compare_with_reference(random_case(seed), dtype)


@pytest.mark.parametrize("window", [0, 9])
@pytest.mark.parametrize("new", [1, 60, 300])  # 300 rows take more than one round of the reference
def test_reference_attention_is_torch_attention(window: int, new: int) -> None:
    case = Case(6, 2, 16, 16, ((new, 300),), window)
    step, reference = Step(case), ReferenceKernels()
    cache = reference.allocate_kv(
        1, step.num_blocks, case.block_size, case.kv_heads, case.head_dim, torch.float32
    )
    whole = step._layout(case, [(0, 300)])
    everything = torch.randn(300, case.width)
    reference.rope_and_write(everything, cache, 0, whole, None, case.heads, None, None, 1e-5)
    out = torch.empty(new, case.heads * case.head_dim)
    reference.paged_attention(out, everything[300 - new :], cache, 0, step.tested, case.heads, 0.3, window)
    heads = everything.view(300, -1, case.head_dim).transpose(0, 1)
    query, key, value = heads[:6], heads[6:8], heads[8:]
    distance = torch.arange(300 - new, 300)[:, None] - torch.arange(300)[None, :]
    visible = (distance >= 0) & ((distance < window) | (window == 0))
    expected = torch.nn.functional.scaled_dot_product_attention(
        query[None, :, 300 - new :], key[None], value[None], attn_mask=visible, scale=0.3, enable_gqa=True
    )
    close(out, expected[0].transpose(0, 1).flatten(1), 1e-5)


@pytest.mark.parametrize("window", [0, 9])
def test_reference_soft_caps_and_sinks_are_their_formulas(window: int) -> None:
    """Capped, then one more column in the softmax (gpt-oss), whose weight is thrown away (Gemma 2 has the cap)."""
    case = Case(4, 2, 16, 16, ((3, 40),), window, softcap=2.0, sinks=1.0)
    step, reference, sinks = Step(case), ReferenceKernels(), case.draw_sinks()
    assert sinks is not None
    cache = reference.allocate_kv(1, step.num_blocks, 16, 2, 16, torch.float32)
    everything = torch.randn(40, case.width) * 3
    reference.rope_and_write(everything, cache, 0, step._layout(case, [(0, 40)]), None, 4, None, None, 1e-5)
    out = torch.empty(3, 64)
    reference.paged_attention(out, everything[37:], cache, 0, step.tested, 4, 0.3, window, 2.0, sinks)
    heads = everything.view(40, -1, 16).transpose(0, 1)
    for head in range(4):
        for row in range(3):
            seen = slice(max(38 + row - window, 0) if window else 0, 38 + row)
            scores = 2.0 * torch.tanh(heads[4 + head // 2, seen] @ heads[head, 37 + row] * 0.3 / 2.0)
            weights = torch.cat([scores, sinks[head : head + 1]]).softmax(0)[:-1]
            expected = weights @ heads[6 + head // 2, seen]
            close(out[row, head * 16 : head * 16 + 16], expected, 1e-5)


def test_reference_rotation_pairs_halves() -> None:
    reference, case = ReferenceKernels(), Case(1, 1, 4, 16, ((1, 3),))
    cache, layout = reference.allocate_kv(1, 4, 16, 1, 4, torch.float32), Step(case).tested
    qkv = torch.tensor([[1.0, 2.0, 3.0, 4.0, 5.0, 6.0, 7.0, 8.0, 0.0, 0.0, 0.0, 0.0]])
    cos_sin = torch.zeros(3, 4)
    cos_sin[2, 2] = cos_sin[2, 1] = 1.0  # position 2: first pair by 90 degrees, second by none
    reference.rope_and_write(qkv, cache, 0, layout, cos_sin, 1, None, None, 1e-5)
    assert qkv[0, :4].tolist() == [-3.0, 2.0, 1.0, 4.0]
    assert cache.read(0, layout.slots)[0].flatten().tolist() == [-7.0, 6.0, 5.0, 8.0]


@both_kernels
@both_dtypes
@pytest.mark.parametrize(("rows", "width"), [(1, 576), (3, 7), (70, 1000)])
def test_norms_match_torch(kind: type, dtype: torch.dtype, rows: int, width: int) -> None:
    kernels = kind()
    torch.set_num_threads(2)
    x, weight, out = torch.randn(rows, width), torch.rand(width) + 0.5, torch.empty(rows, width, dtype=dtype)
    kernels.rms_norm(out, x, weight, 1e-5)
    close(out, torch.nn.functional.rms_norm(x, (width,), weight, 1e-5), tolerance(dtype) / 2)
    delta, residual = torch.randn(rows, width).to(dtype), x.clone()
    kernels.add_rms_norm(out, residual, delta, weight, 1e-5)
    assert torch.equal(residual, x + delta)
    close(out, torch.nn.functional.rms_norm(x + delta, (width,), weight, 1e-5), tolerance(dtype) / 2)


@both_kernels
@both_dtypes
@pytest.mark.parametrize(("rows", "width"), [(1, 1536), (3, 7), (70, 1001)])
def test_silu_mul_matches_torch(kind: type, dtype: torch.dtype, rows: int, width: int) -> None:
    torch.set_num_threads(2)
    gate_up = (4 * torch.randn(rows, 2 * width)).to(dtype)
    gate_up[0, :6] = torch.tensor([0.0, -80.0, 80.0, -1e4, 1e4, -200.0])
    out = torch.empty(rows, width, dtype=dtype)
    kind().silu_mul(out, gate_up)
    gate, up = gate_up.float().chunk(2, dim=-1)
    close(out, torch.nn.functional.silu(gate) * up, tolerance(dtype) / 2)


@both_kernels
@both_dtypes
def test_gather_rows(kind: type, dtype: torch.dtype) -> None:
    table, rows = torch.randn(40, 19).to(dtype), np.array([39, 0, 7, 7], np.int32)
    for out_dtype in (torch.float32, dtype):
        out = torch.empty(4, 19, dtype=out_dtype)
        kind().gather_rows(out, table, rows)
        assert torch.equal(out, table[[39, 0, 7, 7]].to(out_dtype))


@needs_native
def test_bfloat16_rounds_to_nearest_even() -> None:
    bits = np.random.default_rng(0).integers(0, 2**32, 40_000, dtype=np.uint32)
    bits[:4000] &= 0xFFFF8000  # ties
    values = torch.from_numpy(bits.view(np.float32).copy())
    values = values[(values.abs() > 1e-37) | values.isnan()][None]  # some processors flush denormals
    out = torch.empty_like(values, dtype=torch.bfloat16)
    NativeKernels().gather_rows(out, values, np.zeros(1, np.int32))
    expected = values.bfloat16()
    assert torch.equal(out.isnan(), expected.isnan())
    assert torch.equal(out[~out.isnan()], expected[~expected.isnan()])


@both_kernels
@both_dtypes
@pytest.mark.parametrize("width", [1, 5, 64, 49152])
def test_argmax_takes_the_first_of_equals(kind: type, dtype: torch.dtype, width: int) -> None:
    logits = torch.randn(9, width).to(dtype)
    logits[1] = float("-inf")
    logits[2] = 3.0
    logits[3, width // 2 :] = 100.0
    logits[4, -1] = float("inf")
    assert kind().argmax(logits).tolist() == np.argmax(logits.float().numpy(), axis=1).tolist()


@both_kernels
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.int8], ids=str)
def test_copy_block_copies_every_layer(kind: type, dtype: torch.dtype) -> None:
    kernels, case = kind(), Case(2, 2, 10, 16, ((40, 40),))
    step = Step(case)
    cache = kernels.allocate_kv(3, step.num_blocks, 16, 2, 10, dtype)
    for layer in range(3):
        qkv = torch.randn(40, case.width).to(torch.float32 if dtype == torch.int8 else dtype)
        kernels.rope_and_write(qkv, cache, layer, step.tested, None, 2, None, None, 1e-5)
    source, target = int(step.tables[0, 0]), int(step.tables[0, 1])
    offsets = np.arange(16, dtype=np.int32)
    before = [cache.read(layer, source * 16 + offsets) for layer in range(3)]
    cache.copy_block(source, target)
    for layer in range(3):
        for copied, original in zip(cache.read(layer, target * 16 + offsets), before[layer], strict=True):
            assert torch.equal(copied, original)


@both_kernels
def test_cache_shape_is_checked(kind: type) -> None:
    kernels = kind()
    with pytest.raises(BadInput, match="block size 24"):
        kernels.allocate_kv(1, 4, 24, 1, 8, torch.float32)
    with pytest.raises(UnsupportedModel, match="head_dim 7"):
        kernels.allocate_kv(1, 4, 16, 1, 7, torch.float32)
    with pytest.raises(BadInput, match="float16"):
        kernels.allocate_kv(1, 4, 16, 1, 8, torch.float16)
    assert kernels.allocate_kv(2, 4, 16, 3, 32, torch.bfloat16).nbytes == 2 * 2 * 4 * 16 * 3 * 32 * 2
    assert kernels.allocate_kv(2, 4, 16, 3, 32, torch.int8).nbytes == 2 * 2 * 4 * 16 * 3 * (32 + 4)


@needs_native
def test_impossible_cache_is_refused() -> None:
    with pytest.raises(BadInput, match="fewer blocks"):
        NativeKernels().allocate_kv(1000, 10**9, 64, 64, 256, torch.float32)


class Misuse:
    """A valid call, to be spoilt in one way."""

    def __init__(self) -> None:
        self.case = Case(2, 1, 8, 16, ((2, 20), (1, 5)))
        self.layout = Step(self.case).tested
        self.kernels = NativeKernels()
        self.cache = native_cache(self.kernels, 1, Step(self.case).num_blocks, self.case, torch.float32)
        self.qkv = torch.randn(3, self.case.width)
        self.out = torch.empty(3, 16)

    def attend(self) -> None:
        self.kernels.paged_attention(self.out, self.qkv, self.cache, 0, self.layout, 2, 1.0, 0)

    def write(self) -> None:
        self.kernels.rope_and_write(
            self.qkv, self.cache, 0, self.layout, torch.rand(20, 8), 2, None, None, 1e-5
        )


@needs_native
def test_layouts_that_point_outside_are_refused() -> None:
    ok = Misuse()
    ok.write()
    ok.attend()
    for value in (-1, ok.cache.num_blocks):
        bad = Misuse()
        bad.layout.block_tables[0, 1] = value
        with pytest.raises(ValueError, match=f"block id {value} is outside the pool"):
            bad.attend()
    for value in (-1, ok.cache.num_blocks * 16):
        bad = Misuse()
        bad.layout.slots[2] = value
        with pytest.raises(IndexError, match=f"slot {value}"):
            bad.write()
    bad = Misuse()
    bad.layout.positions[0] = 20
    with pytest.raises(IndexError, match="position 20"):
        bad.write()
    bad = Misuse()
    bad.layout.context_lens[1] = 49
    with pytest.raises(ValueError, match="more blocks than"):
        bad.attend()
    bad.layout.context_lens[1] = 0
    with pytest.raises(ValueError, match="less than its number of query rows"):
        bad.attend()
    bad = Misuse()
    bad.layout.query_starts[2] = 4
    with pytest.raises(ValueError, match="outside the 3 rows"):
        bad.attend()
    with pytest.raises(IndexError, match="no such block"):
        ok.cache.copy_block(0, ok.cache.num_blocks)
    with pytest.raises(IndexError, match="row 40"):
        ok.kernels.gather_rows(torch.empty(1, 4), torch.empty(40, 4), np.array([40], np.int32))


@needs_native
def test_tensors_that_do_not_fit_are_refused() -> None:
    bad = Misuse()
    bad.out = torch.empty(3, 32)[:, :16]
    with pytest.raises(ValueError, match="not contiguous"):
        bad.attend()
    bad = Misuse()
    bad.qkv = bad.qkv.half()
    with pytest.raises(ValueError, match="compute in float32 or bfloat16"):
        bad.write()
    bad = Misuse()
    bad.out = bad.out.bfloat16()
    with pytest.raises(ValueError, match="do not fit together"):
        bad.attend()
    with pytest.raises(ValueError, match="do not fit together"):
        bad.kernels.rms_norm(torch.empty(2, 8), torch.empty(2, 8), torch.empty(7), 1e-5)
    with pytest.raises(ValueError, match="must be float32"):
        bad.kernels.rms_norm(torch.empty(2, 8), torch.empty(2, 8), torch.empty(8).double(), 1e-5)
    with pytest.raises(ValueError, match="allocate it with allocate_kv"):
        bad.kernels.paged_attention(
            bad.out, bad.qkv, ReferenceKVCache((1, 1, 16, 1, 8), torch.float32), 0, bad.layout, 2, 1.0, 0
        )


@needs_native
def test_layout_changed_in_place_is_noticed() -> None:
    """Plans are kept from layer to layer; the same arrays with other contents are another batch."""
    step = Misuse()
    step.cache.fill(0.0)
    step.write()
    step.attend()
    before = step.out.clone()
    step.layout.context_lens[0] = 17
    step.attend()
    assert not torch.equal(step.out[:2], before[:2])
    assert torch.equal(step.out[2], before[2])


def test_reference_can_be_chosen(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(ISA_VARIABLE, "reference")
    assert load_kernels().name == "reference"


def test_missing_extension_is_reported_once(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(kernels_package, "native_import_error", lambda: "no module, says this test")
    monkeypatch.delenv(ISA_VARIABLE, raising=False)
    with caplog.at_level(logging.WARNING):
        assert load_kernels().name == load_kernels().name == "reference"
    assert [r.message.count("install a C++ compiler") for r in caplog.records] == [1]
    monkeypatch.setenv(ISA_VARIABLE, "portable")
    with pytest.raises(BadInput, match="needs the compiled kernels"):
        load_kernels()


def python(code: str, **environment: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-c", code],
        env={**os.environ, **environment},
        capture_output=True,
        text=True,
        timeout=100,
    )


@needs_native
def test_unknown_instruction_set_is_refused() -> None:
    code = "from weighbridge.models.compute.kernels import load_kernels; load_kernels()"
    error = python(code, **{ISA_VARIABLE: "sse9"}).stderr
    assert "BadInput: WEIGHBRIDGE_KERNELS=sse9 is not possible on this machine" in error
    assert "portable, reference" in error


@needs_native
@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
def test_torch_and_kernels_share_one_openmp_pool() -> None:
    """Two OpenMP runtimes in one process would be two pools of spinning threads."""
    code = (
        "import torch, weighbridge.models.compute.kernels as k; k.NativeKernels().argmax(torch.zeros(2, 100_000));"
        "print({line.split()[-1] for line in open('/proc/self/maps') if 'gomp' in line or 'iomp' in line})"
    )
    found = python(code).stdout
    assert found.count("omp") == 1, found


@needs_native
@pytest.mark.skipif(ISA_VARIABLE in os.environ, reason="already one of those runs")
def test_every_other_instruction_set() -> None:
    """All of the above once more, in one process for each of the sets that this one does not use."""
    unrelated = ("Reference", "reference_attention", "unknown", "openmp", "reported_once")
    select = ["-k", " and ".join(f"not {word}" for word in unrelated), str(Path(__file__))]
    command = [sys.executable, "-m", "pytest", "-q", "--assert=plain", "-p", "no:cacheprovider", *select]
    runs = {
        isa: subprocess.Popen(
            command,
            env={**os.environ, ISA_VARIABLE: isa, "OMP_WAIT_POLICY": "passive"},  # no spinning beside others
            stdout=subprocess.PIPE,
            text=True,
        )
        for isa in supported_isas()[:-1]  # the last is what this process uses
    }
    output = {isa: run.communicate(timeout=100)[0][-4000:] for isa, run in runs.items()}
    failed = [isa for isa, run in runs.items() if run.returncode != 0]
    assert not failed, "\n".join(output[isa] for isa in failed)


@needs_native
def test_this_process_runs_what_was_asked_for() -> None:
    wanted = os.environ.get(ISA_VARIABLE, supported_isas()[-1])
    assert NativeKernels().name == wanted
