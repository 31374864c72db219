"""Files that are not what their configuration says: one sentence names the tensor or field, before any is read."""

from __future__ import annotations

import json
import math
import sys
import tracemalloc
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from gguf import GGMLQuantizationType as Kind
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file, save_file

from tests.models.tiny_moe import MOE_FAMILIES, make_tiny_moe
from tests.tiny import FAMILIES, make_tiny
from tests.tiny_gguf import write_gguf
from tests.tiny_moe_gguf import write_moe_gguf
from weighbridge.cli import main
from weighbridge.errors import BadInput, UnsupportedModel
from weighbridge.models.compute.rope import cos_sin_table
from weighbridge.models.files.checkpoint import open_checkpoint
from weighbridge.models.files.config import RopeConfig
from weighbridge.models.files.tensors import needed
from weighbridge.models.loader import Quantize, load_decoder

Tensors = dict[str, torch.Tensor]
#: What may be wrong with one tensor, as a new one in its place; None: it is not there.
MISTAKES: dict[str, Callable[[torch.Tensor], torch.Tensor | None]] = {
    "missing": lambda tensor: None,
    "a hundred times the rows": lambda tensor: tensor.repeat(100, *[1] * (tensor.dim() - 1)),
    "half of the last dimension": lambda tensor: tensor[..., : tensor.shape[-1] // 2].contiguous(),
    "one row less": lambda tensor: tensor[:-1].contiguous(),
    "one dimension more": lambda tensor: tensor[None],
    "flat": lambda tensor: tensor.reshape(-1) if tensor.dim() > 1 else tensor[None],
    "no elements": lambda tensor: tensor[:0].contiguous(),
}


@pytest.fixture(scope="module", params=[*FAMILIES, *MOE_FAMILIES])
def family(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    directory = tmp_path_factory.mktemp("tiny") / request.param
    if request.param in MOE_FAMILIES:
        return make_tiny_moe(request.param, directory)
    return make_tiny(request.param, directory, attention_bias=True)


@pytest.fixture
def llama(tmp_path: Path) -> Path:
    return make_tiny("llama", tmp_path / "llama", num_hidden_layers=2)


def edit(directory: Path, change: Callable[[Tensors], None]) -> Path:
    """Change the tensors of a directory in place."""
    file = directory / "model.safetensors"
    tensors = load_file(file)
    change(tensors)
    save_file(tensors, file, metadata={"format": "pt"})
    return directory


def configure(directory: Path, **fields: Any) -> Path:
    """Change the configuration of a directory in place; numbers may be ones that JSON does not know."""
    path = directory / "config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), **fields}))
    return directory


# -- the table ----------------------------------------------------------------------------------------------


def test_the_table_is_what_transformers_saves(family: Path) -> None:
    stored = {name: tuple(tensor.shape) for name, tensor in load_file(family / "model.safetensors").items()}
    assert {need.name: need.shape for need in needed(open_checkpoint(family).config)} == stored


def test_every_mistake_in_every_tensor_is_named(family: Path, tmp_path: Path) -> None:
    """For each kind of tensor of the family's last layer and around the layers."""
    whole = load_file(family / "model.safetensors")
    (tmp_path / "config.json").write_bytes((family / "config.json").read_bytes())
    kinds = [name for name in whole if ".layers." not in name or ".layers.3." in name]
    kinds = [name for name in kinds if ".experts." not in name or ".experts.1." in name]
    for name in kinds:
        for mistake, change in MISTAKES.items():
            changed = change(whole[name])
            if changed is not None and (1, *changed.shape) == whole[name].shape:
                continue  # the gate of a shared expert, which GGUF has as a vector
            rest = {other: tensor for other, tensor in whole.items() if other != name}
            save_file(rest if changed is None else {**rest, name: changed}, tmp_path / "model.safetensors")
            with pytest.raises(BadInput) as raised:
                open_checkpoint(tmp_path)
            assert repr(name) in str(raised.value), mistake
            assert str(list(whole[name].shape)) in str(raised.value), mistake


@pytest.mark.parametrize("dtype", [torch.int8, torch.int64, torch.float64, torch.bool, torch.float8_e4m3fn])
@pytest.mark.parametrize("name", ["model.norm.weight", "model.layers.1.mlp.up_proj.weight"])
def test_types_are_named(llama: Path, name: str, dtype: torch.dtype) -> None:
    def change(tensors: Tensors) -> None:
        tensors[name] = tensors[name].to(dtype)

    with pytest.raises(UnsupportedModel, match=rf"{name}.* has type .*F32, F16, BF16"):
        open_checkpoint(edit(llama, change))


@pytest.mark.parametrize(
    "name",
    [
        "model.layers.2.mlp.up_proj.weight",  # a layer more than the configuration has
        "model.layers.0.self_attn.q_proj.bias",
        "model.layers.0.self_attn.q_norm.weight",
        "model.layers.0.mlp.experts.0.up_proj.weight",
        "model.layers.1.self_attn.sinks",
        "lm_head.bias",
    ],
)
def test_a_tensor_that_would_be_left_out_is_named(llama: Path, name: str) -> None:
    with pytest.raises(BadInput, match=rf"{name}.*no place"):
        open_checkpoint(edit(llama, lambda tensors: tensors.update({name: torch.ones(64)})))


def test_tensors_beside_the_model_do_no_harm(llama: Path, caplog: pytest.LogCaptureFixture) -> None:
    extra = {
        "model.layers.0.self_attn.rotary_emb.inv_freq": torch.ones(8),
        "score.weight": torch.ones(2, dtype=torch.int8),
    }
    expected = open_checkpoint(llama).tensor("model.norm.weight")
    checkpoint = open_checkpoint(edit(llama, lambda tensors: tensors.update(extra)))
    assert torch.equal(checkpoint.tensor("model.norm.weight"), expected)
    assert [record.getMessage() for record in caplog.records if "not used" in record.message] == [
        f"{llama}: 1 tensors are not used, such as 'score.weight'"
    ]


def test_a_tensor_in_two_files_is_named(llama: Path) -> None:
    save_file({"model.norm.weight": torch.ones(64)}, llama / "more.safetensors")
    with pytest.raises(
        BadInput, match=r"model\.norm\.weight.* is in model\.safetensors and in more\.safetensors"
    ):
        open_checkpoint(llama)


def test_an_index_that_names_tensors_which_are_not_there_is_refused(llama: Path) -> None:
    names = [*load_file(llama / "model.safetensors"), "model.layers.9.odd"]
    index = {"weight_map": dict.fromkeys(names, "model.safetensors")}
    (llama / "model.safetensors.index.json").write_text(json.dumps(index))
    with pytest.raises(BadInput, match=r"says that model\.safetensors has a tensor 'model\.layers\.9\.odd'"):
        open_checkpoint(llama)


# -- the same in GGUF ---------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("settings_", "tensor", "needs"),
    [
        (
            {"feed_forward_length": 128},
            r"blk\.0\.ffn_gate\.weight",
            r"has shape \[160, 64\].*needs \[128, 64\]",
        ),
        (
            {"feed_forward_length": 192},
            r"blk\.0\.ffn_gate\.weight",
            r"has shape \[160, 64\].*needs \[192, 64\]",
        ),
        ({"embedding_length": 128}, r"token_embd\.weight", r"has shape \[512, 64\].*needs \[512, 128\]"),
        (
            {"attention__head_count_kv": 4},
            r"blk\.0\.attn_k\.weight",
            r"has shape \[32, 64\].*needs \[64, 64\]",
        ),
        ({"attention__head_count": 8}, r"blk\.0\.attn_q\.weight", r"has shape \[64, 64\].*needs \[128, 64\]"),
        ({"block_count": 5}, r"blk\.4\.attn_q\.weight", "has no tensor"),
        ({"block_count": 3}, r"blk\.3\.attn_k\.weight", "no place"),
    ],
)
@pytest.mark.parametrize("kind", [Kind.F32, Kind.Q8_0])
def test_a_gguf_whose_metadata_are_another_model_s(
    tmp_path: Path, settings_: dict[str, int], tensor: str, needs: str, kind: Kind
) -> None:
    directory = make_tiny("llama", tmp_path / "llama")
    path = write_gguf(directory, tmp_path / "model.gguf", kind, **settings_)
    with pytest.raises(BadInput) as raised:
        open_checkpoint(path)
    assert raised.match(tensor)
    assert raised.match(needs)


@pytest.mark.parametrize("mistake", [name for name in MISTAKES if name != "no elements"])
def test_mistakes_in_the_tensors_of_a_gguf_are_named(tmp_path: Path, mistake: str) -> None:
    directory = make_tiny("qwen3", tmp_path / "qwen3", num_hidden_layers=1)
    for name in ("self_attn.v_proj", "mlp.down_proj", "self_attn.q_norm", "post_attention_layernorm"):
        whole = load_file(directory / "model.safetensors")
        name = f"model.layers.0.{name}.weight"
        changed = MISTAKES[mistake](whole[name])
        rest = {other: tensor for other, tensor in whole.items() if other != name}
        save_file(rest if changed is None else {**rest, name: changed}, directory / "model.safetensors")
        path = write_gguf(directory, tmp_path / "model.gguf")
        save_file(whole, directory / "model.safetensors")
        with pytest.raises(BadInput, match=r"blk\.0\.(attn_v|ffn_down|attn_q_norm|ffn_norm)\.weight"):
            open_checkpoint(path)


def test_a_bias_that_only_one_layer_has_is_named(tmp_path: Path) -> None:
    directory = make_tiny("llama", tmp_path / "llama", num_hidden_layers=2)
    edit(directory, lambda tensors: tensors.update({"model.layers.1.self_attn.v_proj.bias": torch.ones(32)}))
    with pytest.raises(BadInput, match=r"blk\.1\.attn_v\.bias.*no place"):
        open_checkpoint(write_gguf(directory, tmp_path / "model.gguf"))


def test_experts_of_another_size_are_named(tmp_path: Path) -> None:
    directory = make_tiny_moe("qwen3-moe", tmp_path / "moe")
    for fused in (True, False):
        path = write_moe_gguf(directory, tmp_path / "moe.gguf", fused=fused, embedding_length=96)
        with pytest.raises(BadInput, match=r"token_embd\.weight.* has shape \[512, 64\]"):
            open_checkpoint(path)
    edit(
        directory,
        lambda tensors: tensors.update({"model.layers.2.mlp.experts.5.down_proj.weight": torch.ones(64, 16)}),
    )
    path = write_moe_gguf(directory, tmp_path / "moe.gguf", fused=False)
    with pytest.raises(BadInput, match=r"blk\.2\.ffn_down\.5\.weight.* has shape \[64, 16\].*\[64, 32\]"):
        open_checkpoint(path)


@pytest.mark.parametrize("values", [[0.0] * 8, [math.nan] * 8, [-1.0] * 8, [1.0] * 7, [1.0] * 8_000])
def test_odd_divisors_of_frequencies_are_named(
    tmp_path: Path, values: list[float], monkeypatch: pytest.MonkeyPatch
) -> None:
    directory = make_tiny("llama", tmp_path / "llama", num_hidden_layers=1)
    monkeypatch.setattr("tests.tiny_gguf.llama3_divisors", lambda config: np.array(values, np.float32))
    with pytest.raises(BadInput, match=r"rope_freqs\.weight"):
        open_checkpoint(write_gguf(directory, tmp_path / "model.gguf"))


# -- values ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
@pytest.mark.parametrize("scheme", [Quantize.NONE, Quantize.INT8, Quantize.INT4])
@pytest.mark.parametrize(
    "name", ["model.norm.weight", "model.layers.1.mlp.up_proj.weight", "model.embed_tokens.weight"]
)
def test_weights_that_are_no_numbers_are_named(
    llama: Path, name: str, value: float, scheme: Quantize
) -> None:
    def change(tensors: Tensors) -> None:
        tensors[name].view(-1)[5] = value

    with pytest.raises(BadInput, match=rf"{name}.* not finite"):
        load_decoder(open_checkpoint(edit(llama, change)), torch.float32, scheme)


@pytest.mark.parametrize("kind", [Kind.Q4_0, Kind.Q4_1, Kind.Q8_0, Kind.F16])
def test_scales_that_are_no_numbers_are_named(tmp_path: Path, kind: Kind) -> None:
    directory = make_tiny("llama", tmp_path / "llama", num_hidden_layers=1)
    path = write_gguf(directory, tmp_path / "model.gguf", kind)
    checkpoint = open_checkpoint(path)
    entry = checkpoint.file._contents.tensors["blk.0.ffn_down.weight"]  # type: ignore[attr-defined]
    data = bytearray(path.read_bytes())
    data[entry.start : entry.start + 2] = np.array([np.inf], np.float16).tobytes()
    path.write_bytes(data)
    with pytest.raises(BadInput, match=r"blk\.0\.ffn_down\.weight.* not finite"):
        load_decoder(open_checkpoint(path), torch.float32)


# -- configurations -------------------------------------------------------------------------------------------

ABSURD: list[tuple[dict[str, Any], str]] = [
    ({"num_hidden_layers": 10**9}, "num_hidden_layers is 1000000000, more than the 10000"),
    ({"num_hidden_layers": 0}, "num_hidden_layers must be a positive"),
    ({"num_hidden_layers": 2.5}, "num_hidden_layers must be a positive"),
    ({"num_hidden_layers": 10**400}, "num_hidden_layers is 1000"),
    ({"num_hidden_layers": "a" * 10**6}, "num_hidden_layers must be a positive"),
    ({"hidden_size": 10**12}, "hidden_size is 1000000000000"),
    ({"hidden_size": 65, "head_dim": None}, "hidden_size 65 does not divide among 4"),
    ({"hidden_size": -64}, "hidden_size"),
    ({"num_attention_heads": 0}, "num_attention_heads"),
    ({"num_attention_heads": [4]}, "num_attention_heads"),
    ({"num_key_value_heads": 0}, "num_key_value_heads"),
    ({"num_key_value_heads": 3}, "cannot share 3"),
    ({"head_dim": 15}, "head_dim of 15"),
    ({"head_dim": 10**6}, "head_dim of 1000000"),
    ({"vocab_size": 10**9}, r"embed_tokens.*needs \[1000000000, 64\]"),
    ({"vocab_size": {}}, "vocab_size"),
    ({"intermediate_size": 10**9}, r"gate_proj.*needs \[1000000000, 64\]"),
    ({"intermediate_size": None}, "intermediate_size is missing"),
    ({"max_position_embeddings": 10**12}, "max_position_embeddings"),
    ({"rms_norm_eps": math.nan}, "rms_norm_eps is nan"),
    ({"rms_norm_eps": -1e-6}, "rms_norm_eps must be above 0"),
    ({"rms_norm_eps": "small"}, "rms_norm_eps is 'small'"),
    ({"rope_parameters": None, "rope_theta": math.nan}, "rope_theta is nan"),
    ({"rope_parameters": None, "rope_theta": 10**400}, "rope_theta is 1000"),
    ({"rope_parameters": None, "rope_theta": "x"}, "rope_theta is 'x'"),
    ({"rope_parameters": None, "rope_theta": 0}, "rope_theta must be above 0"),
    ({"rope_parameters": [1]}, "rope_parameters must be an object"),
    ({"rope_parameters": {"rope_type": "yarn", "factor": "big"}}, "factor is 'big'"),
    ({"rope_parameters": {"rope_type": "yarn", "factor": -2}}, "factor must be above 0"),
    ({"rope_parameters": {"rope_type": ["yarn"]}}, r"rope type \['yarn'\]"),
    ({"rope_parameters": {"rope_type": "linear", "original_max_position_embeddings": 0}}, "original_max"),
    ({"quantization_config": "int4"}, "quantization_config must be an object"),
    ({"tie_word_embeddings": "false"}, "tie_word_embeddings is 'false', not true or false"),
    ({"attention_bias": True}, r"no tensor 'model\.layers\.0\.self_attn\.q_proj\.bias'"),
    ({"bos_token_id": "<s>"}, "bos_token_id"),
    ({"hidden_act": {"silu": 1}}, "activation"),
    ({"model_type": "x" * 10**6}, "model type 'xxx"),
]


def one_sentence(error: BaseException) -> str:
    message = str(error)
    assert len(message) < 800
    assert "\n" not in message
    return message


@pytest.mark.parametrize(("fields", "words"), ABSURD, ids=lambda value: str(value)[:60])
def test_absurd_configurations_are_one_sentence(llama: Path, fields: dict[str, Any], words: str) -> None:
    configure(llama, **fields)
    tracemalloc.start()
    try:
        with pytest.raises(BadInput, match=words) as raised:
            open_checkpoint(llama)
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    one_sentence(raised.value)
    assert peak < 32 << 20


@pytest.mark.parametrize(
    ("name", "fields", "words"),
    [
        ("mixtral", {"num_local_experts": 10**9}, r"experts\.8\.w1"),
        ("mixtral", {"num_local_experts": 0}, "num_local_experts"),
        ("mixtral", {"num_experts_per_tok": 9}, "cannot use 9 of 8 experts"),
        ("mixtral", {"sliding_window": "wide"}, "sliding_window"),
        ("qwen2-moe", {"moe_intermediate_size": 31}, r"has shape \[32, 64\].*needs \[31, 64\]"),
        ("qwen2-moe", {"shared_expert_intermediate_size": 95}, r"shared_expert\.gate_proj"),
        ("qwen3-moe", {"mlp_only_layers": "all"}, "mlp_only_layers"),
        ("qwen3-moe", {"mlp_only_layers": [[1]]}, "mlp_only_layers"),
        ("qwen3-moe", {"decoder_sparse_step": -1}, "decoder_sparse_step"),
        ("qwen3-moe", {"norm_topk_prob": "yes"}, "norm_topk_prob"),
        ("olmoe-clip", {"clip_qkv": math.nan}, "clip_qkv"),
    ],
)
def test_absurd_mixtures_are_one_sentence(
    tmp_path: Path, name: str, fields: dict[str, Any], words: str
) -> None:
    directory = configure(make_tiny_moe(name, tmp_path / "moe"), **fields)
    with pytest.raises(BadInput, match=words) as raised:
        open_checkpoint(directory)
    one_sentence(raised.value)


@pytest.mark.parametrize(
    "text",
    ["[" * 200_000, '{"a":' * 100_000, "\0", "\udc80", "9" * 5_000, '{"num_hidden_layers": 1e999}', "nul"],
)
def test_json_that_is_none_is_one_sentence(llama: Path, text: str) -> None:
    (llama / "config.json").write_text(text, errors="surrogateescape")
    with pytest.raises(BadInput) as raised:
        open_checkpoint(llama)
    one_sentence(raised.value)


def test_a_configuration_without_end_is_one_sentence(llama: Path) -> None:
    (llama / "config.json").unlink()
    (llama / "config.json").symlink_to("/dev/zero")
    with pytest.raises(BadInput, match="not a regular file"):
        open_checkpoint(llama)
    (llama / "config.json").unlink()
    with (llama / "config.json").open("wb") as file:
        file.truncate(1 << 40)  # a terabyte of nothing
    with pytest.raises(BadInput, match="more than 64 MiB"):
        open_checkpoint(llama)


json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=3), inner, max_size=3),
    max_leaves=5,
)
numbers = st.sampled_from([-1, 0, 1, 2, 3, 63, 2**31, 2**63, 10**40, 1e-300, 1e300, math.nan, math.inf, 0.5])


@pytest.fixture(scope="module")
def small(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_tiny("qwen2", tmp_path_factory.mktemp("tiny") / "qwen2", num_hidden_layers=1)


@settings(max_examples=300, deadline=None)
@given(data=st.data())
def test_any_field_of_any_type_is_read_or_refused(small: Path, data: st.DataObject) -> None:
    """Whatever a field holds: a model that loads, or BadInput. Other families read other fields of the same file."""
    fields = json.loads((small / "config.json").read_text())
    extra = [
        "rope_scaling",
        "rope_theta",
        "layer_types",
        "mlp_only_layers",
        "no_rope_layers",
        "num_experts",
        "clip_qkv",
    ]
    name = data.draw(st.sampled_from(sorted({*fields, *extra})))
    family = data.draw(st.sampled_from(["qwen2", "llama", "mistral", "smollm3", "qwen3_moe", "olmoe"]))
    odd = {**fields, "model_type": family, name: data.draw(json_values | numbers)}
    directory = small.parent / "odd"
    directory.mkdir(exist_ok=True)
    if not (directory / "model.safetensors").exists():
        (directory / "model.safetensors").symlink_to(small / "model.safetensors")
    (directory / "config.json").write_text(json.dumps(odd))
    try:
        checkpoint = open_checkpoint(directory)
        load_decoder(
            checkpoint, torch.float32, max_model_len=min(64, checkpoint.config.max_position_embeddings)
        )
    except BadInput as error:
        one_sentence(error)


positive = st.floats(1e-30, 1e30) | st.sampled_from([1.0, 1e-38, 3e38, 1.0000000000000002])


@settings(max_examples=300, deadline=None)
@given(
    theta=positive,
    scaling=st.sampled_from([None, "linear", "llama3", "yarn"]),
    rest=st.tuples(positive, positive, positive, positive, positive),
    original=st.integers(1, 2**31 - 1),
    head_dim=st.sampled_from([2, 64, 1024]),
)
def test_a_rotary_table_is_finite_or_refused(
    theta: float, scaling: str | None, rest: tuple[float, ...], original: int, head_dim: int
) -> None:
    factor, low, high, fast, slow = rest
    rope = RopeConfig(theta, scaling, factor, low, high, original, None, fast, slow)
    try:
        table = cos_sin_table(rope, head_dim, 50)
    except BadInput as error:
        one_sentence(error)
    else:
        assert table.shape == (50, head_dim)
        assert table.isfinite().all()


def test_a_context_beyond_memory_is_one_sentence() -> None:
    with pytest.raises(BadInput, match="give --max-model-len"):
        cos_sin_table(RopeConfig(), 128, 2**31 - 1)


# -- at the command line --------------------------------------------------------------------------------------


def hostile_models(tmp_path: Path) -> Iterator[tuple[str, Path]]:
    def one(name: str) -> Path:
        return make_tiny("llama", tmp_path / name, num_hidden_layers=1)

    yield "num_hidden_layers", configure(one("deep"), num_hidden_layers=10**9)
    yield (
        "rope_theta",
        configure(one("nan"), rope_parameters={"rope_theta": math.nan, "rope_type": "default"}),
    )
    tall = "model.layers.0.self_attn.q_proj.weight"
    yield tall, edit(one("tall"), lambda tensors: tensors.update({tall: torch.ones(6400, 64)}))
    thin = "model.layers.0.mlp.down_proj.weight"
    yield thin, edit(one("thin"), lambda tensors: tensors.update({thin: torch.ones(64, 128)}))
    flat = "model.layers.0.mlp.up_proj.weight"
    yield flat, edit(one("flat"), lambda tensors: tensors.update({flat: torch.ones(160 * 64)}))
    yield (
        "blk.0.ffn_gate.weight",
        write_gguf(one("narrow"), tmp_path / "narrow.gguf", feed_forward_length=128),
    )


@pytest.mark.parametrize("command", [["serve", "--port", "0"], ["models", "show"]], ids=["serve", "show"])
def test_hostile_models_are_one_line_at_the_command_line(
    tmp_path: Path, command: list[str], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    for words, path in hostile_models(tmp_path):
        monkeypatch.setattr(sys, "argv", ["weighbridge", *command, str(path)])
        with pytest.raises(SystemExit) as exited:
            main()
        said = capsys.readouterr().err
        assert exited.value.code == 2
        assert words in said.replace("\n", "")
        assert "Traceback" not in said
