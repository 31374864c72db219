"""Fuzz targets of a model's files: weights, their tables, the tokenizer."""

from __future__ import annotations

import itertools
import json
import struct
import tempfile
from collections.abc import Callable
from functools import cache
from pathlib import Path

from tests.fuzz import seeds
from tests.fuzz.target import Target
from weighbridge.errors import BadInput
from weighbridge.models.files.checkpoint import Checkpoint, open_checkpoint
from weighbridge.models.files.gguf_format import GgufMetadata
from weighbridge.models.text.tokenizer import load_tokenizer
from weighbridge.planner.memory.source import open_model

_numbers = itertools.count()
#: Names tensors, so that reading them stays quick.
_FIRST = 8


@cache
def _scratch() -> tempfile.TemporaryDirectory[str]:
    return tempfile.TemporaryDirectory(prefix="weighbridge-fuzz-")


def _new_folder() -> Path:
    """A folder for one input: a file that may still be mapped is never written again."""
    folder = Path(_scratch().name) / str(next(_numbers))
    folder.mkdir()
    return folder


def _remove(folder: Path) -> None:
    for file in folder.iterdir():
        file.unlink()
    folder.rmdir()


def _each(errors: tuple[type[BaseException], ...], *readers: Callable[[], str | None]) -> str | None:
    """Run all readers, whichever of them refuse; return what the first that does not has found."""
    found = None
    for reader in readers:
        try:
            value = reader()
        except errors:
            continue
        found = found or value
    return found


def _first_tensor(checkpoint: Checkpoint) -> str:
    """Read some tensors, and return the name of one that nothing needs, or else the first one's."""
    names = checkpoint.names()
    for name in names[:_FIRST]:
        checkpoint.tensor(name)
        checkpoint.quantized(name)
    return next((name for name in names if not name.startswith("model.")), names[0])


def _planned_tensors(file: Path) -> str:
    """Read a file as the planner does; return the names of its tensors."""
    stored = open_model(str(file)).stored
    return "" if stored is None else " ".join(tensor.name for tensor in stored.tensors)


def parse_safetensors(data: bytes) -> str | None:
    """A header as JSON, which gets its length and some zeros as tensors; else a whole file."""
    folder = _new_folder()
    file = folder / "model.safetensors"
    framed = struct.pack("<Q", len(data)) + data + bytes(seeds.TENSOR_BYTES)
    file.write_bytes(framed if data.startswith(b"{") else data)
    (folder / "config.json").write_text(json.dumps(seeds.CONFIG))
    try:
        return _each(
            (BadInput,),
            lambda: _planned_tensors(file),
            lambda: _first_tensor(open_checkpoint(folder)),
        )
    finally:
        _remove(folder)


def parse_gguf(data: bytes) -> str | None:
    """A whole file: as a model, as a tokenizer, and as the planner sees it."""
    folder = _new_folder()
    file = folder / "model.gguf"
    file.write_bytes(data)
    try:
        return _each(
            (BadInput,),
            lambda: GgufMetadata(file).text("general.name"),
            lambda: load_tokenizer(file).token_text(0),
            lambda: _first_tensor(open_checkpoint(file)),
            lambda: _planned_tensors(file),
        )
    finally:
        _remove(folder)


def parse_tokenizer(data: bytes) -> str:
    """tokenizer.json, and a text there and back."""
    folder = _new_folder()
    (folder / "tokenizer.json").write_bytes(data)
    try:
        tokenizer = load_tokenizer(folder)
        tokenizer.decode(tokenizer.encode("a bc <s> Größe 東京\n"))
        return tokenizer.token_text(0)
    finally:
        _remove(folder)


SAFETENSORS = Target(
    "safetensors",
    parse_safetensors,
    (BadInput,),
    seeds.safetensors,
    (
        b'"dtype":"F32"',
        b'"BF16"',
        b'"shape":[',
        b'"data_offsets":[0,',
        b'"__metadata__":{',
        b"18446744073709551615",
    ),
)
GGUF = Target(
    "gguf",
    parse_gguf,
    (BadInput,),
    seeds.gguf,
    (
        b"GGUF",
        b"general.alignment",
        b"general.architecture",
        b"split.count",
        b"\xff\xff\xff\xff\xff\xff\xff\xff",
    ),
)
TOKENIZER = Target(
    "tokenizer",
    parse_tokenizer,
    (BadInput,),
    seeds.tokenizers,
    (
        *(b'"type":"BPE"', b'"WordPiece"', b'"Unigram"', b'"WordLevel"', b'"Replace"', b'"Strip"', b'"Fuse"'),
        *(b'"Sequence"', b'"ByteFallback"', b'"Metaspace"', b'"Regex":"', b"null", b"true", b"4294967295"),
    ),
)
