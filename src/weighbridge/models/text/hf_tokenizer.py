"""The tokenizer of a Hugging Face model directory: tokenizer.json, its configuration and chat templates."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import tokenizers

from weighbridge.errors import BadInput, UnsupportedModel
from weighbridge.models.files.fields import shown
from weighbridge.models.files.hf_config import end_token_ids, read_json, read_text
from weighbridge.models.text.chat_template import ChatTemplate
from weighbridge.models.text.encoding.forked import check_loads
from weighbridge.models.text.encoding.steps import may_load
from weighbridge.models.text.tokenizer_parts import TokenizerParts, wrap_texts

Fields = dict[str, Any]

#: The largest there are have some 30.
MAX_TOKENIZER_BYTES = 256 << 20
_SPECIAL = ("bos_token", "eos_token", "unk_token", "pad_token", "sep_token", "cls_token", "mask_token")


def read_directory(directory: Path) -> TokenizerParts:
    """Raises BadInput when `directory` has no tokenizer, UnsupportedModel when it cannot be used."""
    backend = _backend(directory)
    settings = _optional(directory / "tokenizer_config.json")
    names = _special_names({**_optional(directory / "special_tokens_map.json"), **settings})
    _wrap(backend, settings, names)
    bos, eos = (
        backend.token_to_id(names[key]) if key in names else None for key in ("bos_token", "eos_token")
    )
    ends = [*end_token_ids(directory), *([] if eos is None else [eos])]
    sources = _template_sources(directory, settings)
    size = 1 + max(backend.get_vocab(with_added_tokens=False).values(), default=-1)
    if not size:
        raise BadInput(f"the tokenizer of {directory} has no vocabulary")
    template = ChatTemplate(sources, names) if sources else None
    return TokenizerParts(backend, tuple(ends), bos, template, size, names)


def _special_names(fields: Fields) -> dict[str, str]:
    """Return the special tokens of a configuration by role; each is written as a string or as an object."""
    names = {}
    for role in _SPECIAL:
        value = fields.get(role)
        text = value.get("content") if isinstance(value, dict) else value
        if isinstance(text, str):
            names[role] = text
    return names


def _backend(directory: Path) -> tokenizers.Tokenizer:
    file = directory / "tokenizer.json"
    if file.exists():
        if not file.is_file() or file.stat().st_size > MAX_TOKENIZER_BYTES:
            raise UnsupportedModel(f"{file} is no file of at most {MAX_TOKENIZER_BYTES >> 20} MiB")
        data = file.read_bytes()
        if not may_load(data):
            check_loads(data, str(file))
        return tokenizers.Tokenizer.from_buffer(data)
    # Rare and slow (transformers takes seconds to import): a bare SentencePiece or tiktoken file.
    try:
        from transformers import AutoTokenizer

        converted = AutoTokenizer.from_pretrained(directory, trust_remote_code=False, local_files_only=True)
        backend: tokenizers.Tokenizer = converted.backend_tokenizer
    except Exception as error:  # whatever it is that conversion does not like
        reason = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
        raise BadInput(
            f"{directory} has no tokenizer.json and no tokenizer that converts to one ({reason}): copy the "
            "tokenizer.json of the model into it"
        ) from error
    return backend


def _wrap(backend: tokenizers.Tokenizer, settings: Fields, names: dict[str, str]) -> None:
    """BOS and EOS around each text, where tokenizer_config.json says so; else tokenizer.json decides."""
    if "add_bos_token" not in settings and "add_eos_token" not in settings:
        return
    before = names.get("bos_token") if settings.get("add_bos_token") else None
    after = names.get("eos_token") if settings.get("add_eos_token") else None
    wrap_texts(backend, before, after)


def _template_sources(directory: Path, settings: Fields) -> dict[str, str]:
    """Chat templates by name: files of their own win over the ones in tokenizer_config.json."""
    sources: dict[str, str] = {}
    stored = settings.get("chat_template")
    if isinstance(stored, str):
        sources["default"] = stored
    elif isinstance(stored, list):
        for entry in stored:
            name, source = (
                entry.get(key) if isinstance(entry, dict) else None for key in ("name", "template")
            )
            if not isinstance(name, str) or not isinstance(source, str):
                raise BadInput(
                    "tokenizer_config.json: chat_template must list objects with a name and a template"
                )
            sources[name] = source
    elif stored is not None:
        raise BadInput(f"tokenizer_config.json: chat_template is {shown(stored)}, not a text")
    if (directory / "chat_template.jinja").exists():
        sources["default"] = _own_text(directory, directory / "chat_template.jinja")
    for file in sorted((directory / "additional_chat_templates").glob("*.jinja")):
        sources[file.stem] = _own_text(directory, file)
    if sources and "default" not in sources:
        sources["default"] = next(iter(sources.values()))
    return sources


def _own_text(directory: Path, file: Path) -> str:
    """Return a template of the model. Raises BadInput for a link to what is none of its files: whoever chats could read
    that out of prompts. The cache of a hub has a model's files beside its directories."""
    real, home = file.resolve(), directory.resolve()
    cache = home.parent.parent / "blobs" if home.parent.name == "snapshots" else home
    if not (real.is_relative_to(home) or real.is_relative_to(cache)):
        raise BadInput(
            f"{file} is a link out of the model's directory, and what it leads to would be in every prompt: put the "
            "template itself there, or name it with --chat-template"
        )
    return read_text(file)


def _optional(path: Path) -> Fields:
    return read_json(path) if path.exists() else {}
