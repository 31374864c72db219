"""The default model's tokenizer and those of directories, against transformers; streams."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import transformers
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import Tokenizer, pre_tokenizers

from tests.tiny import make_tiny
from tests.tiny_gguf import write_gguf
from weighbridge.errors import BadInput, UnsupportedModel
from weighbridge.models.text import tokenizer as tokenizer_module
from weighbridge.models.text.tokenizer import load_tokenizer

TEXTS = [
    "Hello world! 12345 is 3.14159e-10",
    "  leading, trailing  and   runs\t\tof \n\n\n whitespace \r\n \u00a0\u3000 end  ",
    "def weigh(x: int) -> str:\n\treturn f'{x:>8}'  # it's what I'd, we'll, THEY'RE do\n",
    "Größe naïve 東京タワー привет мир שלום مرحبا ١٢٣ ½ ² Ⅷ",
    "😀👨‍👩‍👧‍👦🇩🇪 e\u0301 zalgo\u0300\u0301\u0302 \u0000 \ufffd \ufeff",
    "<|im_start|>user\nhi<|im_end|>\n<|im_start|>assistant",
    "",
    " ",
    "camelCaseWordsAndHTTPServer2Go snake_case_1000000",
]


@pytest.fixture(scope="module")
def default(default_model_path: Path) -> tokenizer_module.Tokenizer:
    return load_tokenizer(default_model_path)


@pytest.fixture(scope="module")
def oracle(default_model_path: Path) -> Any:
    """transformers on the same file, with the digit rule of the published tokenizer, which it leaves out."""
    file = default_model_path.resolve()
    loaded = transformers.AutoTokenizer.from_pretrained(file.parent, gguf_file=file.name)
    loaded.backend_tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.Digits(individual_digits=True), pre_tokenizers.ByteLevel(add_prefix_space=False)]
    )
    return loaded


@pytest.mark.parametrize("text", TEXTS)
def test_default_model_encodes_and_decodes_as_transformers(
    default: tokenizer_module.Tokenizer, oracle: Any, text: str
) -> None:
    ids = default.encode(text)
    assert ids == oracle.encode(text)
    for skip in (True, False):
        assert default.decode(ids, skip_special_tokens=skip) == oracle.decode(ids, skip_special_tokens=skip)
    assert default.decode(ids, skip_special_tokens=False) == text


def test_default_model_knows_its_published_ids(default: tokenizer_module.Tokenizer) -> None:
    assert default.encode("Hello world! 123") == [19556, 905, 17, 216, 33, 34, 35]
    assert default.vocab_size == 49152
    assert default.eos_token_ids[0] == 2
    assert default.bos_token_id == 1
    assert default.has_chat_template
    assert not default.supports_tools


def test_default_model_chats_as_transformers(default: tokenizer_module.Tokenizer, oracle: Any) -> None:
    messages = [{"role": "user", "content": "Hi <b>&</b>"}, {"role": "assistant", "content": "Yes?"}]
    expected = oracle.apply_chat_template(messages, add_generation_prompt=True, tokenize=False)
    assert default.render_chat(messages) == expected
    ids = oracle.apply_chat_template(messages, add_generation_prompt=True)
    assert default.encode_chat(messages) == list(ids["input_ids"])


@settings(max_examples=100, deadline=None)
@given(ids=st.lists(st.integers(0, 49_151), max_size=30))
def test_any_ids_decode_as_tokenizers_do(default_model_path: Path, ids: list[int]) -> None:
    """Random ids are mostly broken UTF-8."""
    ours = _cached(default_model_path)
    for skip in (True, False):
        assert ours.decode(ids, skip) == ours.backend.decode(ids, skip_special_tokens=skip)
    stream = ours.stream()
    pieces = [stream.push(index) for index in ids]
    assert "".join(pieces) + stream.flush() == ours.decode(ids)


_LOADED: dict[Path, tokenizer_module.Tokenizer] = {}


def _cached(path: Path) -> tokenizer_module.Tokenizer:
    if path not in _LOADED:
        _LOADED[path] = load_tokenizer(path)
    return _LOADED[path]


@settings(max_examples=50, deadline=None)
@given(text=st.text(alphabet=sorted({*"".join(TEXTS)} - {"\x00"}), max_size=40))
def test_streams_give_whole_characters_only(default_model_path: Path, text: str) -> None:
    ours = _cached(default_model_path)
    stream = ours.stream()
    shown = ""
    for index in ours.encode(text):
        shown += stream.push(index)
        assert text.startswith(shown)  # no U+FFFD for the first bytes of a longer character
    assert shown == text
    assert stream.flush() == ""


def test_flush_shows_what_is_unfinished(default: tokenizer_module.Tokenizer) -> None:
    stream = default.stream()
    first = default.encode("東")[0]
    assert stream.push(first) == ""
    assert stream.flush() == "\ufffd"
    assert default.decode([first]) == "\ufffd"
    assert "東".encode().startswith(default.token_bytes(first))


def test_special_tokens_give_no_text_but_have_names(default: tokenizer_module.Tokenizer) -> None:
    stream = default.stream()
    assert stream.push(2) == ""
    assert default.is_special(2)
    assert default.token_text(2) == "<|im_end|>"
    assert default.decode([2]) == ""
    assert default.decode([10**6, 19556]) == default.decode([19556]) == "Hello"  # padding of the vocabulary


def test_text_that_is_not_unicode_is_refused(default: tokenizer_module.Tokenizer) -> None:
    with pytest.raises(BadInput, match="Unicode"):
        default.encode("half a pair: \ud83d")


# -- directories ------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def directory(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_tiny("llama", tmp_path_factory.mktemp("tiny") / "llama", num_hidden_layers=1)


def test_directory_equals_transformers(directory: Path) -> None:
    ours, oracle = load_tokenizer(directory), transformers.AutoTokenizer.from_pretrained(directory)
    for text in TEXTS:
        ids = oracle.encode(text)
        assert ours.encode(text) == ids
        assert ours.decode(ids) == oracle.decode(ids, skip_special_tokens=True)
    messages = [{"role": "user", "content": "hello"}]
    assert ours.render_chat(messages) == oracle.apply_chat_template(
        messages, add_generation_prompt=True, tokenize=False
    )
    assert ours.eos_token_ids == (2, 0)
    assert ours.vocab_size == len(oracle)


def test_gguf_equals_the_directory(directory: Path, tmp_path: Path) -> None:
    ours, theirs = load_tokenizer(write_gguf(directory, tmp_path / "m.gguf")), load_tokenizer(directory)
    messages = [{"role": "user", "content": "hello"}]
    assert ours.encode_chat(messages) == theirs.encode_chat(messages)
    assert ours.eos_token_ids == theirs.eos_token_ids


def test_settings_of_tokenizer_config_count(directory: Path, tmp_path: Path) -> None:
    copy = tmp_path / "copy"
    copy.mkdir()
    backend = Tokenizer.from_file(str(directory / "tokenizer.json"))
    backend.enable_truncation(4)
    backend.enable_padding(length=8)
    backend.save(str(copy / "tokenizer.json"))
    fields = {
        "add_bos_token": True,
        "bos_token": {"content": "<|im_start|>"},
        "eos_token": "<|im_end|>",
        "chat_template": [
            {"name": "default", "template": "plain"},
            {"name": "tool_use", "template": "{{ tools | length }} tools"},
        ],
    }
    (copy / "tokenizer_config.json").write_text(json.dumps(fields))
    ours = load_tokenizer(copy)
    text = "a prompt is never cut or padded"
    assert ours.encode(text) == [1, *load_tokenizer(directory).encode(text)]
    assert ours.bos_token_id == 1
    assert ours.supports_tools
    message = [{"role": "user", "content": "x"}]
    assert ours.render_chat(message) == "plain"
    assert ours.render_chat(message, tools=[{"type": "function"}]) == "1 tools"


def test_directory_without_tokenizer_says_what_to_do(tmp_path: Path) -> None:
    with pytest.raises(BadInput, match=r"copy the tokenizer\.json"):
        load_tokenizer(tmp_path)
    (tmp_path / "tokenizer.json").write_text("{")
    with pytest.raises(UnsupportedModel, match=r"tokenizer\.json cannot be used"):
        load_tokenizer(tmp_path)


def test_serving_does_not_import_transformers(default_model_path: Path) -> None:
    """Its import takes seconds, which every start would pay."""
    code = (
        "import sys; from pathlib import Path; path = Path(sys.argv[1])\n"
        "from weighbridge.models.text.tokenizer import load_tokenizer\n"
        "from weighbridge.models.files.checkpoint import open_checkpoint\n"
        "load_tokenizer(path).encode_chat([{'role': 'user', 'content': 'x'}]); open_checkpoint(path)\n"
        "assert 'transformers' not in sys.modules and 'huggingface_hub' not in sys.modules"
    )
    subprocess.run([sys.executable, "-c", code, str(default_model_path)], check=True, timeout=60)
