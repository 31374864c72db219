"""GGUF files against the transformers models they were made from."""

from __future__ import annotations

import json
import os
import struct
from pathlib import Path

import gguf
import numpy as np
import pytest
import torch
from gguf import GGMLQuantizationType, GGUFWriter
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file

from tests.models.test_decoder import logits_in_chunks
from tests.tiny import FAMILIES, make_tiny
from tests.tiny_gguf import finish, write_gguf
from weighbridge.errors import BadInput, UnsupportedModel
from weighbridge.models.catalogue.store import resolve
from weighbridge.models.compute.layers import Mlp
from weighbridge.models.compute.linear_packed import PackedLinear, kernels_available
from weighbridge.models.compute.packed_forms import FORM_OF, Form
from weighbridge.models.compute.rope import cos_sin_table
from weighbridge.models.files.checkpoint import open_checkpoint
from weighbridge.models.files.gguf import GgufFile
from weighbridge.models.files.gguf_format import read_gguf
from weighbridge.models.loader import Quantize, choose_dtype, load_decoder

Kind = GGMLQuantizationType


@pytest.fixture(scope="module", params=FAMILIES)
def directory(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    # A GGUF file does not say by what Gemma scales queries: by the width of a head, in all but one size.
    scalar = {"query_pre_attn_scalar": 32} if request.param == "gemma3" else {}
    path = tmp_path_factory.mktemp("tiny") / request.param
    return make_tiny(request.param, path, attention_bias=True, **scalar)


@pytest.fixture(scope="module")
def llama(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_tiny("llama", tmp_path_factory.mktemp("tiny") / "llama")


#: Fields that differ with the format, or are compared by what comes of them.
_FORMAT_S_OWN = ("architecture", "rope", "rms_norm_eps", "eos_token_ids", "norms_from_one")


def test_every_tensor_comes_back_in_its_place(directory: Path, tmp_path: Path) -> None:
    file = write_gguf(directory, tmp_path / "model.gguf")
    checkpoint = open_checkpoint(file)
    expected = load_file(directory / "model.safetensors")
    assert set(checkpoint.names()) - {"rope_freqs.weight"} == set(expected)
    for name, tensor in expected.items():
        if checkpoint.config.architecture == "gemma3" and "norm" in name:
            tensor = tensor + 1  # as llama.cpp's converter writes them
        assert torch.equal(checkpoint.tensor(name), tensor), name


def test_configuration_equals_the_directory_s(directory: Path, tmp_path: Path) -> None:
    theirs, ours = (
        open_checkpoint(directory).config,
        open_checkpoint(write_gguf(directory, tmp_path / "m.gguf")).config,
    )
    for field in theirs.__dataclass_fields__:
        if field not in _FORMAT_S_OWN:
            assert getattr(ours, field) == getattr(theirs, field), field
    assert ours.rms_norm_eps == pytest.approx(theirs.rms_norm_eps)
    assert ours.eos_token_ids == (2,)
    ropes = [cos_sin_table(config.rope, config.head_dim, 300) for config in (ours, theirs)]
    torch.testing.assert_close(*ropes, atol=1e-5, rtol=0)


def test_decoder_of_either_file_gives_the_same_logits(directory: Path, tmp_path: Path) -> None:
    checkpoints = open_checkpoint(directory), open_checkpoint(write_gguf(directory, tmp_path / "model.gguf"))
    first, second = (
        logits_in_chunks(load_decoder(checkpoint, torch.float32), list(range(5, 105)), [100])
        for checkpoint in checkpoints
    )
    torch.testing.assert_close(first, second, atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("kind", [Kind.F16, Kind.BF16, Kind.Q8_0, Kind.Q4_0, Kind.Q4_1, Kind.Q5_0, Kind.Q5_1])
def test_quantised_tensors_equal_the_reference_decoder(llama: Path, tmp_path: Path, kind: Kind) -> None:
    checkpoint = open_checkpoint(write_gguf(llama, tmp_path / "model.gguf", kind))
    for name, original in load_file(llama / "model.safetensors").items():
        ours = checkpoint.tensor(name)
        if original.dim() == 2:
            stored = gguf.quants.quantize(original.numpy(), kind)
            # Rows are quantised one by one, so the order of rows does not matter to the oracle.
            np.testing.assert_array_equal(
                ours.float().numpy(), gguf.quants.dequantize(stored, kind), err_msg=name
            )
        blocks = checkpoint.blocks(name)
        assert (blocks is not None) == (original.dim() == 2 and kind not in (Kind.F16, Kind.BF16))
        if blocks is not None:
            np.testing.assert_array_equal(blocks.dequantized(0, blocks.rows), ours.numpy())


@pytest.mark.parametrize("native_bfloat16", [False, True])
@pytest.mark.parametrize("kind", [Kind.Q4_0, Kind.Q4_1, Kind.Q5_0, Kind.Q5_1, Kind.Q8_0])
def test_codes_stay_codes_on_every_cpu(
    llama: Path, tmp_path: Path, kind: Kind, native_bfloat16: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """By default a layer is what the file has, whichever dtype this CPU computes fastest in."""
    monkeypatch.setattr(torch.ops.mkldnn, "_is_mkldnn_bf16_supported", lambda: native_bfloat16)
    checkpoint = open_checkpoint(write_gguf(llama, tmp_path / "model.gguf", kind))
    dtype = choose_dtype("auto")
    assert dtype == (torch.bfloat16 if native_bfloat16 else torch.float32)
    decoder = load_decoder(checkpoint, dtype)
    if not kernels_available():
        pytest.skip("nothing here multiplies codes: they are expanded")
    layer = decoder.layers[0]
    assert isinstance(layer.mlp, Mlp)
    linears = [layer.qkv, layer.output, layer.mlp.gate_up, layer.mlp.down, decoder.weights.lm_head]
    packed = [linear for linear in linears if isinstance(linear, PackedLinear)]
    assert [linear.forms for linear in packed] == [[FORM_OF[kind]]] * 5
    embedding = decoder.weights.embedding
    assert isinstance(embedding, PackedLinear)
    assert embedding.forms == [FORM_OF[kind]]
    assert decoder._fused is not None


@pytest.mark.parametrize("kind", [Kind.Q4_0, Kind.Q4_1, Kind.Q5_0, Kind.Q5_1, Kind.Q8_0])
def test_codes_in_float32_give_the_logits_of_the_expanded_file(
    llama: Path, tmp_path: Path, kind: Kind
) -> None:
    """They differ by the rounding of activations to 8 bits alone, so as much as with `--quantize`."""
    checkpoint = open_checkpoint(write_gguf(llama, tmp_path / "model.gguf", kind))
    tokens = list(range(5, 105))
    exact = logits_in_chunks(load_decoder(checkpoint, torch.float32, Quantize.NONE), tokens, [100])
    codes = logits_in_chunks(load_decoder(checkpoint, torch.float32), tokens, [60, 1, 39])
    assert torch.nn.functional.cosine_similarity(exact, codes, dim=1).min() > 0.98


def test_a_mix_of_types_stays_codes(llama: Path, tmp_path: Path) -> None:
    """As in files that people download: values in more bits than queries and keys, the output in yet more."""
    kinds = {"v_proj": Kind.Q8_0, "k_proj": Kind.Q4_1, "up_proj": Kind.Q4_0, "embed": Kind.Q4_0}
    checkpoint = open_checkpoint(write_gguf(llama, tmp_path / "model.gguf", Kind.Q5_0, kinds=kinds))
    decoder = load_decoder(checkpoint, torch.float32)
    tokens = list(range(5, 105))
    exact = logits_in_chunks(load_decoder(checkpoint, torch.float32, Quantize.NONE), tokens, [100])
    codes = logits_in_chunks(decoder, tokens, [60, 1, 39])
    assert torch.nn.functional.cosine_similarity(exact, codes, dim=1).min() > 0.98
    if not kernels_available():
        return
    layer = decoder.layers[0]
    assert isinstance(layer.qkv, PackedLinear)
    assert isinstance(layer.mlp, Mlp)
    assert isinstance(layer.mlp.gate_up, PackedLinear)
    assert layer.qkv.forms == [Form.Q5_0, Form.Q4_1, Form.Q8_0]
    assert layer.mlp.gate_up.forms == [Form.Q5_0, Form.Q4_0]
    assert decoder._fused is not None


def test_what_became_of_each_class_is_logged(
    llama: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    path = write_gguf(llama, tmp_path / "model.gguf", Kind.Q5_0, kinds={"v_proj": Kind.Q8_0})
    with caplog.at_level("INFO", "weighbridge.models"):
        decoder = load_decoder(open_checkpoint(path), torch.float32)
    if kernels_available():
        assert "attention: Q5_0 0.0 MB, Q8_0 0.0 MB; feed-forward: Q5_0 0.1 MB" in caplog.text
    assert decoder.weights.nbytes > 0


@pytest.mark.parametrize("tied", [True, False])
def test_an_output_matrix_that_is_the_embedding_is_in_memory_once(tmp_path: Path, tied: bool) -> None:
    directory = make_tiny("llama", tmp_path / "llama", tie_word_embeddings=tied)
    decoder = load_decoder(
        open_checkpoint(write_gguf(directory, tmp_path / "m.gguf", Kind.Q8_0)), torch.float32
    )
    if not kernels_available():
        pytest.skip("nothing here multiplies codes: they are expanded")
    weights = decoder.weights
    assert (weights.embedding is weights.lm_head) == tied
    layers = sum(layer.qkv.nbytes + layer.output.nbytes + layer.mlp.nbytes for layer in weights.layers)
    assert weights.nbytes == layers + weights.lm_head.nbytes * (1 if tied else 2)


def one_tensor(path: Path, kind: Kind, rows: int = 3, columns: int = 512) -> tuple[Path, np.ndarray]:
    """A file with one tensor of random codes."""
    block, size = gguf.GGML_QUANT_SIZES[kind]
    data = np.random.default_rng(0).integers(0, 90, (rows, columns // block * size)).astype(np.uint8)
    writer = GGUFWriter(path, "llama")
    writer.add_tensor("token_embd.weight", data, raw_dtype=kind)
    finish(writer)
    return path, data


@pytest.mark.parametrize("kind", [Kind.Q2_K, Kind.Q3_K, Kind.Q4_K, Kind.Q5_K, Kind.Q6_K])
def test_k_quants_equal_the_reference_decoder(tmp_path: Path, kind: Kind) -> None:
    path, data = one_tensor(tmp_path / "k.gguf", kind)
    values = GgufFile(path).tensor("model.embed_tokens.weight")
    np.testing.assert_array_equal(values.numpy(), gguf.quants.dequantize(data, kind))
    assert values.shape == (3, 512)


@pytest.mark.parametrize("kind", [Kind.Q8_1, Kind.NVFP4])
def test_unsupported_tensor_type_is_named(tmp_path: Path, kind: Kind) -> None:
    path, _ = one_tensor(tmp_path / "odd.gguf", kind)
    with pytest.raises(UnsupportedModel, match=rf"token_embd\.weight.*{kind.name}"):
        GgufFile(path)


def test_header_equals_the_reference_reader(llama: Path, tmp_path: Path) -> None:
    path = write_gguf(llama, tmp_path / "model.gguf", Kind.Q8_0)
    ours, reference = read_gguf(path), gguf.GGUFReader(path)
    for name, field in reference.fields.items():
        if not name.startswith("GGUF."):
            assert ours.metadata[name] == field.contents(), name
    assert list(ours.tensors) == [tensor.name for tensor in reference.tensors]
    for tensor in reference.tensors:
        entry = ours.tensors[tensor.name]
        assert (entry.kind, entry.start, entry.nbytes) == (
            tensor.tensor_type,
            tensor.data_offset,
            tensor.n_bytes,
        )
        np.testing.assert_array_equal(ours.blocks(entry).reshape(-1), tensor.data.view(np.uint8).reshape(-1))


@pytest.fixture(scope="module")
def small_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """One file for all examples of a property."""
    path = tmp_path_factory.mktemp("gguf") / "small.gguf"
    writer = GGUFWriter(path, "llama")
    writer.add_block_count(1)
    writer.add_token_list([f"token{index}" for index in range(20)])
    writer.add_token_scores([0.5] * 20)
    writer.add_tensor("token_embd.weight", np.ones((2, 32), np.float32))
    finish(writer)
    return path


@settings(max_examples=60, deadline=None)
@given(cut=st.floats(0, 1, exclude_max=True))
def test_a_file_cut_short_is_refused(small_file: Path, cut: float) -> None:
    path = small_file.parent / "cut.gguf"
    data = small_file.read_bytes()
    path.write_bytes(data[: int(cut * (len(data) - 40))])
    with pytest.raises(BadInput):
        GgufFile(path)


@settings(max_examples=200, deadline=None)
@given(position=st.integers(0, 1500), value=st.integers(0, 255))
def test_a_damaged_header_never_crashes(small_file: Path, position: int, value: int) -> None:
    path = small_file.parent / "damaged.gguf"
    data = bytearray(small_file.read_bytes())
    data[position % len(data)] = value
    path.write_bytes(data)
    try:
        file = GgufFile(path)
        for name in file.names():
            file.tensor(name)
    except BadInput:  # UnsupportedModel is one
        pass


def test_other_files_and_versions_are_named(tmp_path: Path) -> None:
    path = tmp_path / "no.gguf"
    path.write_bytes(b"PK\x03\x04" + bytes(100))
    with pytest.raises(BadInput, match="does not start with GGUF"):
        read_gguf(path)
    path.write_bytes(b"GGUF" + struct.pack(">I", 3) + bytes(100))
    with pytest.raises(UnsupportedModel, match="big-endian"):
        read_gguf(path)
    path.write_bytes(b"")
    with pytest.raises(BadInput):
        read_gguf(path)


@pytest.mark.parametrize(
    ("settings_", "words"),
    [
        ({"rope__scaling__type": "longrope"}, "longrope"),
        ({"rope__scaling__type": "yarn", "rope__scaling__yarn_log_multiplier": 0.1}, "mscale"),
    ],
)
def test_unsupported_features_are_named(
    llama: Path, tmp_path: Path, settings_: dict[str, object], words: str
) -> None:
    path = write_gguf(llama, tmp_path / "model.gguf", **settings_)
    with pytest.raises(UnsupportedModel, match=words):
        open_checkpoint(path)


def test_unsupported_architecture_is_named(tmp_path: Path) -> None:
    writer = GGUFWriter(tmp_path / "m.gguf", "mamba")
    writer.add_tensor("token_embd.weight", np.ones((2, 32), np.float32))
    finish(writer)
    with pytest.raises(UnsupportedModel, match="mamba"):
        open_checkpoint(tmp_path / "m.gguf")


def test_yarn_equals_the_directory_s(tmp_path: Path) -> None:
    rope = {
        "rope_type": "yarn",
        "rope_theta": 10_000.0,
        "factor": 4.0,
        "original_max_position_embeddings": 256,
    }
    directory = make_tiny("qwen3", tmp_path / "yarn", rope_parameters=rope)
    path = write_gguf(
        directory,
        tmp_path / "model.gguf",
        rope__scaling__type="yarn",
        rope__scaling__factor=4.0,
        rope__scaling__original_context_length=256,
    )
    ours, theirs = open_checkpoint(path).config, open_checkpoint(directory).config
    assert ours.rope == theirs.rope
    assert json.loads((directory / "config.json").read_text())["rope_parameters"]["rope_type"] == "yarn"


def test_default_model_predicts_english(default_model_path: Path) -> None:
    """A row order or a code that is wrong makes real text as unlikely as noise (10.8 nats a token)."""
    from weighbridge.models.text.tokenizer import load_tokenizer

    text = (
        "The capital of France is Paris, which lies on the river Seine. It is known for the Eiffel Tower and "
        "for museums such as the Louvre. Many people visit the city every year."
    )
    tokens = load_tokenizer(default_model_path).encode(text)
    decoder = load_decoder(open_checkpoint(default_model_path), torch.float32, max_model_len=64)
    logits = logits_in_chunks(decoder, tokens, [len(tokens)])
    loss = torch.nn.functional.cross_entropy(logits[:-1], torch.tensor(tokens[1:]))
    assert loss < 2.5


def split(directory: Path, folder: Path, parts: int = 3, kind: Kind = Kind.Q8_0) -> list[Path]:
    """The model in as many files, as llama.cpp splits it: metadata in the first, some tensors in each."""
    whole = read_gguf(write_gguf(directory, folder / "whole.gguf", kind))
    files = [folder / f"model-{number + 1:05d}-of-{parts:05d}.gguf" for number in range(parts)]
    reader = gguf.GGUFReader(folder / "whole.gguf")
    for number, file in enumerate(files):
        writer = GGUFWriter(file, "llama")
        for field in reader.fields.values() if number == 0 else ():
            if not field.name.startswith("GGUF.") and field.name != "general.architecture":
                inner = field.types[1] if len(field.types) > 1 else None
                writer.add_key_value(field.name, field.contents(), field.types[0], inner)
        writer.add_uint16("split.no", number)
        writer.add_uint16("split.count", parts)
        for name in list(whole.tensors)[number::parts]:
            entry = whole.tensors[name]
            writer.add_tensor(name, whole.blocks(entry).reshape(*entry.shape[:-1], -1), raw_dtype=entry.kind)
        finish(writer)
    (folder / "whole.gguf").rename(folder / "whole.model")
    return files


def test_a_model_in_several_files_is_one(llama: Path, tmp_path: Path) -> None:
    files = split(llama, tmp_path)
    (tmp_path / "whole.model").rename(tmp_path / "other.gguf")
    whole, parts = open_checkpoint(tmp_path / "other.gguf"), open_checkpoint(files[0])
    assert set(parts.names()) == set(whole.names())
    for name in whole.names():
        assert torch.equal(parts.tensor(name), whole.tensor(name)), name
    before = parts.fingerprint()
    files[2].touch()
    os.utime(files[2], ns=(1, 1))
    assert parts.fingerprint() != before


def test_a_folder_with_all_parts_of_one_model_is_that_model(llama: Path, tmp_path: Path) -> None:
    files = split(llama, tmp_path)
    assert resolve(str(tmp_path)) == files[0]
    files[1].unlink()
    with pytest.raises(BadInput, match="several GGUF files"):
        resolve(str(tmp_path))


def test_parts_that_do_not_belong_together_are_refused(llama: Path, tmp_path: Path) -> None:
    files = split(llama, tmp_path)
    with pytest.raises(BadInput, match="name the first of them"):
        read_gguf(files[1])
    third = files[2].read_bytes()
    files[2].write_bytes(files[1].read_bytes())
    with pytest.raises(BadInput, match="is not part 3 of the model"):
        read_gguf(files[0])
    files[2].write_bytes(third[:-40])
    with pytest.raises(BadInput, match=r"00003.*not a complete GGUF file"):
        read_gguf(files[0])
    files[2].unlink()
    with pytest.raises(BadInput, match=r"00003-of-00003\.gguf is not beside it"):
        read_gguf(files[0])
    with pytest.raises(BadInput, match="name the first of them"):
        read_gguf(files[0].rename(tmp_path / "renamed.gguf"))
