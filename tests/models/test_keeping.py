"""What is said of the weights of a file before it is loaded is what they take once it is."""

from __future__ import annotations

import importlib
from itertools import product
from pathlib import Path
from typing import Any

import pytest
import torch
from gguf.constants import GGMLQuantizationType as Kind
from hypothesis import given
from hypothesis import strategies as st

from tests.models.tiny_moe import make_tiny_moe
from tests.tiny import make_tiny
from tests.tiny_gguf import write_gguf
from weighbridge.models.compute.linear_packed import kernels_available
from weighbridge.models.compute.packed_forms import FORM_OF, Form, packed_bytes
from weighbridge.models.file_model import file_model
from weighbridge.models.files.checkpoint import open_checkpoint
from weighbridge.models.keeping import Cpu, FileMatrix, Keeping, Kept, KeptAs, Quantize
from weighbridge.models.kept_weights import model_memory
from weighbridge.models.loader import load_decoder, this_cpu

native: Any = (
    importlib.import_module("weighbridge.models.compute.kernels._native") if kernels_available() else None
)
needs_kernels = pytest.mark.skipif(not kernels_available(), reason="no compiled kernels")


def assert_foretold(path: Path) -> None:
    """Every scheme and dtype: the sum that was told is what the loaded weights take, to the byte."""
    for scheme, dtype in product(Quantize, (torch.float32, torch.bfloat16)):
        checkpoint = open_checkpoint(path)
        keeping = Keeping(scheme, str(dtype).removeprefix("torch."), this_cpu())
        told = model_memory(file_model(checkpoint), keeping, 256)
        weights = load_decoder(checkpoint, dtype, scheme, max_model_len=256).weights
        norms = [weights.final_norm]
        for layer in weights.layers:
            norms += [layer.input_norm, layer.post_attention_norm]
            norms += [norm for norm in (layer.q_norm, layer.k_norm) if norm is not None]
        taken = weights.nbytes + sum(norm.nbytes for norm in norms) + weights.cos_sin.nbytes
        assert told.total == taken, (scheme, dtype)


@pytest.mark.parametrize("family", ["llama", "qwen2", "qwen3"])
def test_a_directory_takes_what_was_told(family: str, tmp_path: Path) -> None:
    sizes = {"hidden_size": 96, "num_attention_heads": 4, "intermediate_size": 130, "num_hidden_layers": 2}
    assert_foretold(make_tiny(family, tmp_path / family, **sizes))


@pytest.mark.parametrize("kind", [Kind.Q4_0, Kind.Q5_1, Kind.Q8_0, Kind.F16])
@pytest.mark.parametrize("tied", [True, False])
def test_a_gguf_file_takes_what_was_told(kind: Kind, tied: bool, tmp_path: Path) -> None:
    directory = make_tiny("qwen2", tmp_path / "model", tie_word_embeddings=tied, num_hidden_layers=2)
    write_gguf(directory, tmp_path / "model.gguf", kind)
    assert_foretold(tmp_path / "model.gguf")


@pytest.mark.parametrize("family", ["qwen2-moe", "olmoe"])
def test_a_mixture_takes_what_was_told(family: str, tmp_path: Path) -> None:
    assert_foretold(make_tiny_moe(family, tmp_path / family))


@needs_kernels
@given(st.sampled_from(Form), st.integers(1, 70), st.integers(1, 4))
def test_bytes_of_a_form_are_those_of_the_kernels(form: Form, rows: int, blocks: int) -> None:
    columns = 256 * blocks
    assert packed_bytes(form, rows, columns) == sum(native.packed_sizes(int(form), rows, columns))


KINDS = st.sampled_from([None, *FORM_OF, Kind.Q2_K, Kind.IQ2_XS])
KEEPINGS = st.builds(
    Keeping,
    st.sampled_from(Quantize),
    st.sampled_from(["float32", "bfloat16"]),
    st.builds(Cpu, st.booleans(), st.booleans()),
)


@given(KEEPINGS, st.lists(KINDS, min_size=1, max_size=3), st.integers(1, 8), st.booleans())
def test_what_is_kept_never_takes_more_than_floats(
    keeping: Keeping, kinds: list[Kind | None], groups: int, bias: bool
) -> None:
    """Few bits are few on every CPU; only where there is no kernel, or nothing else was asked for, there are floats."""
    matrices = [FileMatrix("m", 48, 256 * groups, kind) for kind in kinds]
    kept = keeping.linear(matrices, keeping.scheme.bits, bias)
    elements = 48 * 256 * groups * len(kinds)
    assert kept.nbytes - kept.bias <= keeping.float_bytes * elements
    if keeping.cpu.kernels and keeping.scheme in (Quantize.INT8, Quantize.INT4):
        assert kept.nbytes - kept.bias <= (1.0625 if keeping.scheme is Quantize.INT8 else 0.6875) * elements
    if kept.way is KeptAs.CODES:
        assert None not in kinds
        assert keeping.cpu.kernels


def test_the_output_matrix_keeps_eight_bits() -> None:
    keeping = Keeping(Quantize.INT4, "float32", Cpu())
    embedding = FileMatrix("e", 64, 64)
    assert keeping.output(embedding, None).forms == (Form.Q8_0,)
    assert not keeping.shares(embedding, None)
    assert keeping.linear([embedding], 4).forms == (Form.Q4_1,)


@pytest.mark.parametrize("dtype", ["bfloat16", "float32"])
def test_what_is_rounded_has_a_copy_where_tiles_multiply_it(dtype: str) -> None:
    """And codes of a file have none, on any CPU."""
    wide, narrow = FileMatrix("w", 64, 512), FileMatrix("n", 64, 96)
    tiles, plain = (Keeping(Quantize.INT8, dtype, Cpu(tiles=has)) for has in (True, False))
    copy = 64 * 512 * 2 if dtype == "bfloat16" else 0
    assert tiles.linear([wide], 8).nbytes == plain.linear([wide], 8).nbytes + copy
    assert tiles.linear([narrow], 8) == plain.linear([narrow], 8)
    stored = FileMatrix("s", 64, 512, Kind.Q4_K)
    assert Keeping(Quantize.AUTO, dtype, Cpu(tiles=True)).linear([stored], 8).copy == 0


@pytest.mark.skipif(not this_cpu().tiles, reason="a CPU without tiles keeps no copies")
def test_copies_take_what_was_told(tmp_path: Path) -> None:
    sizes = {"hidden_size": 256, "num_attention_heads": 4, "intermediate_size": 512, "num_hidden_layers": 2}
    path = make_tiny("qwen2", tmp_path / "wide", **sizes)
    assert model_memory(
        file_model(open_checkpoint(path)), Keeping(Quantize.INT8, "bfloat16", this_cpu())
    ).total
    assert_foretold(path)


def kept_of(**fields: Any) -> Kept:
    return Keeping(**fields).linear([FileMatrix("m", 16, 32)], 8)


def test_a_cpu_that_multiplies_bfloat16_orders_it_for_our_kernels() -> None:
    fields = {"scheme": Quantize.AUTO, "dtype": "bfloat16"}
    assert kept_of(cpu=Cpu(packs_bfloat16=True), **fields).way is KeptAs.PACKED
    assert kept_of(cpu=Cpu(), **fields).way is KeptAs.DENSE
    assert kept_of(cpu=Cpu(packs_bfloat16=True), scheme=Quantize.AUTO, dtype="float32").way is KeptAs.DENSE
