"""Text to token ids and back, with the model's own vocabulary and chat template."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from tokenizers import Tokenizer as Backend
from tokenizers.decoders import DecodeStream

from weighbridge.errors import BadInput
from weighbridge.models import cache, gguf, gguf_tokenizer
from weighbridge.models.chat_template import ChatTemplate, Message
from weighbridge.models.gguf import GgufFile
from weighbridge.models.hf_config import read_config, read_json

#: Tokens that end an assistant's turn in common chat formats, whatever the configuration says.
TURN_ENDS = ("<|im_end|>", "<|eot_id|>", "<|end_of_text|>", "<|endoftext|>", "</s>", "<|eom_id|>")


class TextDecoder:
    """Turns a stream of token ids into text; an unfinished UTF-8 character is held back."""

    def __init__(self, backend: Backend) -> None:
        self._backend = backend
        self._stream = DecodeStream(skip_special_tokens=True)
        self._held: list[int] = []

    def push(self, token: int) -> str:
        """The text that `token` completes, empty while a character is unfinished."""
        text: str | None = self._stream.step(self._backend, token)
        if text is None:
            self._held.append(token)
            return ""
        self._held.clear()
        return text

    def flush(self) -> str:
        """What was held back, with replacement characters where bytes are missing."""
        held, self._held = self._held, []
        text: str = self._backend.decode(held, skip_special_tokens=True) if held else ""
        return text


class Tokenizer:
    """A vocabulary. `backend` is the `tokenizers.Tokenizer`; ids run from 0 to `vocab_size` - 1."""

    def __init__(
        self,
        backend: Backend,
        eos_token_ids: tuple[int, ...],
        template: ChatTemplate | None,
    ) -> None:
        self.backend = backend
        self.vocab_size: int = backend.get_vocab_size(with_added_tokens=True)
        self.eos_token_ids = eos_token_ids
        self._template = template

    def encode(self, text: str, add_special_tokens: bool = True) -> list[int]:
        ids: list[int] = self.backend.encode(text, add_special_tokens=add_special_tokens).ids
        return ids

    def decode(self, ids: Sequence[int], skip_special_tokens: bool = True) -> str:
        text: str = self.backend.decode(list(ids), skip_special_tokens=skip_special_tokens)
        return text

    def token_text(self, token: int) -> str:
        """One token on its own, as log-probabilities show it; special tokens by their name."""
        text: str = self.backend.decode([token], skip_special_tokens=False)
        return text

    def stream(self) -> TextDecoder:
        return TextDecoder(self.backend)

    @property
    def has_chat_template(self) -> bool:
        return self._template is not None

    @property
    def supports_tools(self) -> bool:
        return self._template is not None and self._template.supports_tools

    def render_chat(
        self,
        messages: Sequence[Message],
        tools: Sequence[Mapping[str, Any]] | None = None,
        add_generation_prompt: bool = True,
        **options: Any,
    ) -> str:
        """The conversation as the model was trained to read it. Raises BadInput without a template."""
        if self._template is None:
            raise BadInput("this model has no chat template; use /v1/completions with a plain prompt instead")
        return self._template.render(messages, tools, add_generation_prompt, options)

    def encode_chat(
        self,
        messages: Sequence[Message],
        tools: Sequence[Mapping[str, Any]] | None = None,
        add_generation_prompt: bool = True,
        **options: Any,
    ) -> list[int]:
        """Token ids of `render_chat`; the template writes its own special tokens."""
        text = self.render_chat(messages, tools, add_generation_prompt, **options)
        return self.encode(text, add_special_tokens=False)


def load_tokenizer(path: Path) -> Tokenizer:
    """The tokenizer of a model directory or GGUF file. Raises BadInput when there is none."""
    return _from_directory(path) if path.is_dir() else _from_gguf(path)


def _from_directory(directory: Path) -> Tokenizer:
    file = directory / "tokenizer.json"
    backend = Backend.from_file(str(file)) if file.exists() else _convert_slow(directory)
    _no_truncation(backend)
    settings = read_json(directory / "tokenizer_config.json") if (directory / "tokenizer_config.json").exists() else {}
    names = {
        name: _token_name(settings[name]) for name in ("bos_token", "eos_token", "unk_token", "pad_token")
        if settings.get(name)
    }
    source = _template_source(directory, settings)
    ends = read_config(directory).eos_token_ids
    return Tokenizer(
        backend, _ends(backend, ends, names.get("eos_token")), ChatTemplate({"default": source}, names) if source else None
    )


def _from_gguf(path: Path) -> Tokenizer:
    """Rebuilding takes seconds for large vocabularies, so the result is kept for the next start."""
    file = GgufFile(path)
    cached = cache.weighbridge_home() / "tokenizers" / f"{cache.fingerprint([path])}.json"
    record = cache.load_record(cached)
    if record is None:
        record = _convert_gguf(file)
        cache.keep_record(cached, record)
    backend = Backend.from_str(record["tokenizer"])
    names, source = record["special_tokens"], record["chat_template"]
    ends = _ends(backend, gguf.read_config(file).eos_token_ids, names.get("eos_token"))
    return Tokenizer(backend, ends, ChatTemplate({"default": source}, names) if source else None)


def _convert_gguf(file: GgufFile) -> dict[str, Any]:
    tokens = file.array("tokenizer.ggml.tokens")
    names = {}
    for name in ("bos", "eos", "unknown", "padding"):
        index = file.value(f"tokenizer.ggml.{name}_token_id")
        if index is not None:
            short = {"unknown": "unk", "padding": "pad"}.get(name, name)
            names[f"{short}_token"] = tokens[int(index)]
    return {
        "tokenizer": gguf_tokenizer.build(file).to_str(),
        "special_tokens": names,
        "chat_template": file.value("tokenizer.chat_template"),
    }


def _convert_slow(directory: Path) -> Backend:
    """Only SentencePiece files: transformers knows how to convert them."""
    try:
        from transformers import AutoTokenizer

        backend: Backend = AutoTokenizer.from_pretrained(directory, trust_remote_code=False).backend_tokenizer
    except (OSError, ValueError, ImportError, AttributeError) as error:
        raise BadInput(f"{directory} has no tokenizer.json and no tokenizer that converts to one: {error}") from error
    return backend


def _no_truncation(backend: Backend) -> None:
    """Files saved during training may cut or pad texts; a prompt must never be shortened silently."""
    backend.no_truncation()
    backend.no_padding()


def _token_name(value: Any) -> str:
    return str(value["content"] if isinstance(value, dict) else value)


def _template_source(directory: Path, settings: dict[str, Any]) -> str | None:
    file = directory / "chat_template.jinja"
    if file.exists():
        return file.read_text(encoding="utf-8")
    template = settings.get("chat_template")
    if isinstance(template, list):
        named = {entry["name"]: entry["template"] for entry in template}
        return named.get("default")
    return template


def _ends(backend: Backend, configured: tuple[int, ...], eos_token: str | None) -> tuple[int, ...]:
    ends = dict.fromkeys(configured)
    for name in (eos_token, *TURN_ENDS):
        index = backend.token_to_id(name) if name else None
        if index is not None:
            ends[index] = None
    return tuple(ends)
