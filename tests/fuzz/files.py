"""Fuzz targets of a model's files: weights, their tables, the tokenizer."""

from __future__ import annotations

import itertools
import json
import math
import struct
import tempfile
from collections.abc import Callable
from functools import cache
from pathlib import Path
from random import Random

import numpy as np
import numpy.typing as npt
import torch

from tests.fuzz import seeds
from tests.fuzz.forms import INPUT_BYTES
from tests.fuzz.forms.gguf import changed_gguf
from tests.fuzz.forms.trees import changed_json, written
from tests.fuzz.target import Target
from weighbridge.errors import BadInput
from weighbridge.models.compute.linear_packed import PackedLinear
from weighbridge.models.compute.packed_forms import FORM_OF
from weighbridge.models.compute.repack import NotFiniteError, keeps, repacked
from weighbridge.models.files.checkpoint import Checkpoint, open_checkpoint
from weighbridge.models.files.gguf import GgufFile
from weighbridge.models.files.gguf_format import GgufMetadata
from weighbridge.models.files.quantized import StoredBlocks
from weighbridge.models.files.tensors import needed
from weighbridge.models.text.encoding.library import encoded
from weighbridge.models.text.tokenizer import Tokenizer, load_tokenizer
from weighbridge.planner.memory.source import open_model

_numbers = itertools.count()
#: Tensors that are read, so that an input stays quick.
_FIRST = 24
_FLOATS = (torch.float32, torch.float16, torch.bfloat16)
_TEXTS = ("a bc <s> Größe 東京\n", "", "aab\n\n  ab 12345 <s>a", "a" * 70 + "▁ ▁a", "it's\té é \U0010ffff\0")
_CHAT = [{"role": "user", "content": "a <s> b</s>"}, {"role": "assistant", "content": "ab"}]


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


def _each(*readers: Callable[[], None]) -> None:
    """Run all readers, whichever of them refuse. Raises BadInput where all do."""
    refused = []
    for reader in readers:
        try:
            reader()
        except BadInput as error:
            refused.append(error)
    if len(refused) == len(readers):
        raise refused[0]


def _read(checkpoint: Checkpoint) -> None:
    """What was opened has every tensor that its configuration needs, in the shape it needs and in floats."""
    for need in itertools.islice(needed(checkpoint.config), _FIRST):
        tensor = checkpoint.tensor(need.name)
        assert tensor.dtype in _FLOATS
        assert tuple(tensor.shape) in (need.shape, need.shape[1:] if need.shape[0] == 1 else need.shape)
        blocks = checkpoint.blocks(need.name)
        if blocks is not None:
            floats = blocks.dequantized(0, blocks.rows)
            assert np.array_equal(floats, tensor.numpy(), equal_nan=True), "codes are no floats"
            _repack(blocks, floats)
    for name in checkpoint.names()[:_FIRST]:
        tensor = checkpoint.tensor(name)
        assert tensor.dtype in _FLOATS, f"{name} is read as {tensor.dtype}"
        tensor.double().sum().item()  # every byte is there


def _repack(blocks: StoredBlocks, floats: npt.NDArray[np.float32]) -> None:
    """What the kernels hold of a matrix is what the format's own package reads, or it is said to be damaged."""
    if not keeps(blocks) or blocks.kind not in FORM_OF:
        return
    try:
        linear = PackedLinear(repacked([blocks]), None, torch.float32)
    except NotFiniteError:
        return
    out = torch.empty(blocks.rows, blocks.columns)
    linear.read_rows(out, np.arange(blocks.rows, dtype=np.int32))
    assert np.allclose(out.numpy(), floats, rtol=1e-6, atol=1e-6 * float(np.abs(floats).max())), (
        "codes are changed"
    )


def _split(data: bytes) -> tuple[bytes, bytes]:
    """Two files in one input, an empty line between them."""
    first, _, second = data.partition(b"\n\n")
    return first, second


def parse_safetensors(data: bytes) -> None:
    """A header as JSON, which gets its length and some zeros as tensors, and maybe a config.json; or a whole file."""
    folder = _new_folder()
    file = folder / "model.safetensors"
    header, config = _split(data) if data.startswith(b"{") else (data, b"")
    framed = struct.pack("<Q", len(header)) + header + bytes(seeds.TENSOR_BYTES)
    file.write_bytes(framed if data.startswith(b"{") else data)
    (folder / "config.json").write_bytes(config or json.dumps(seeds.CONFIG).encode())
    try:
        _each(lambda: _plan(file), lambda: _read(open_checkpoint(folder)))
    finally:
        _remove(folder)


def _plan(file: Path) -> None:
    """Read a file as the planner does: it takes no more bytes than there are."""
    stored = open_model(str(file)).stored
    assert stored is not None
    assert all(size >= 0 for size in stored.tensors.values()), "fewer bytes than none"


def _of_its_own_codes(file: GgufFile) -> None:
    """What we make of the codes is what the format's own package makes of them."""
    for entry in itertools.islice(file._contents.tensors.values(), _FIRST):
        blocks = file._contents.blocks(entry)
        values = file._floats(entry)
        assert blocks.size == entry.nbytes
        assert tuple(values.shape) == entry.shape


def parse_gguf(data: bytes) -> None:
    """A whole file: as a table of tensors, as a tokenizer, as a model, and as the planner sees it."""
    folder = _new_folder()
    file = folder / "model.gguf"
    file.write_bytes(data)
    try:
        GgufMetadata(file)
        _each(
            lambda: _of_its_own_codes(GgufFile(file)),
            lambda: _use(load_tokenizer(file)),
            lambda: _read(open_checkpoint(file)),
            lambda: _plan(file),
        )
    finally:
        _remove(folder)


def parse_tokenizer(data: bytes) -> None:
    """tokenizer.json, and maybe tokenizer_config.json; texts and a chat there and back."""
    folder = _new_folder()
    tokenizer, config = _split(data)
    (folder / "tokenizer.json").write_bytes(tokenizer)
    if config:
        (folder / "tokenizer_config.json").write_bytes(config)
    try:
        _use(load_tokenizer(folder))
    finally:
        _remove(folder)


def _use(tokenizer: Tokenizer) -> None:
    """Two ways of encoding agree, no id is outside the vocabulary, and text comes back piece by piece as in one."""
    if tokenizer.encodes_apart:  # its patterns have no bound here; a text was encoded as it was loaded
        return
    tokenizer.quicken()
    names = sorted(tokenizer.backend.get_vocab(with_added_tokens=True))[:20]
    for text in (*_TEXTS, " ".join(names), "".join(names)):
        for special in (True, False):
            try:
                ids = encoded(tokenizer.backend, text, special)
            except BadInput:
                continue
            quick = tokenizer.encode_quickly(text, special)
            assert quick is None or quick == ids, f"{text!r} is {ids}, and quickly {quick}"
            assert all(0 <= index < tokenizer.vocab_size for index in ids), ids
            stream = tokenizer.stream()
            pieces = "".join(stream.push(index) for index in ids) + stream.flush()
            assert pieces == tokenizer.decode(ids)
    if tokenizer.has_chat_template:
        try:
            tokenizer.encode_chat(_CHAT)
        except BadInput:
            return


def _change_two(data: bytes, draw: Random, pieces: tuple[object, ...]) -> bytes | None:
    """Change one of two files of JSON."""
    files = list(_split(data))
    at = 1 if files[1] and draw.random() < 0.4 else 0
    made = changed_json(files[at], draw, pieces)
    if made is None:
        return None
    files[at] = made.replace(b"\n", b" ")
    whole = b"\n\n".join(filter(None, files))
    return whole if len(whole) <= INPUT_BYTES else None


#: Bytes of one number of each type that a header may name.
_WIDTHS = {
    "F64": 8,
    "I64": 8,
    "F32": 4,
    "I32": 4,
    "U32": 4,
    "F16": 2,
    "BF16": 2,
    "I16": 2,
    "I8": 1,
    "U8": 1,
    "BOOL": 1,
}
#: How often tensors get other types and shapes in a header that fits all the same.
_LAID_OUT_ANEW = 0.3
#: A tensor that has what no other one has.
_LEFT_OVER = "left over"


def _laid_out(data: bytes, draw: Random) -> bytes | None:
    """A header of which one tensor or two are of another type or shape, and that says truly where each of them is."""
    header, config = _split(data)
    try:
        entries = json.loads(header)
        tensors = [entry for name, entry in entries.items() if name not in ("__metadata__", _LEFT_OVER)]
        for entry in draw.sample(tensors, min(len(tensors), draw.randint(1, 2))):
            if draw.random() < 0.7:
                entry["dtype"] = draw.choice(list(_WIDTHS))
            else:
                entry["shape"] = draw.choice(([2, 2], [4], [1, 4, 4], [4, 1], [8, 2], entry["shape"][::-1]))
        at = 0
        if any(type(one) is not int for entry in tensors for one in entry["shape"]):
            return None  # a text times a number is a long one
        for entry in tensors:
            size = _WIDTHS[entry["dtype"]] * math.prod(entry["shape"])
            entry["data_offsets"], at = [at, at + size], at + size
        entries.pop(_LEFT_OVER, None)
        if at < seeds.TENSOR_BYTES:
            rest = [at, seeds.TENSOR_BYTES]
            entries[_LEFT_OVER] = {"dtype": "U8", "shape": [rest[1] - rest[0]], "data_offsets": rest}
        whole = b"\n\n".join(filter(None, (written(entries), config)))
    except (ValueError, LookupError, TypeError, AttributeError, OverflowError, RecursionError):
        return None
    return whole if len(whole) <= INPUT_BYTES else None


def _change_header(data: bytes, draw: Random) -> bytes | None:
    if data.startswith(b"{"):
        if draw.random() < _LAID_OUT_ANEW and (made := _laid_out(data, draw)) is not None:
            return made
        return _change_two(data, draw, seeds.HEADER_PIECES)
    length = int.from_bytes(data[:8], "little")
    made = changed_json(data[8 : 8 + length], draw, seeds.HEADER_PIECES)
    return None if made is None else struct.pack("<Q", len(made)) + made + data[8 + length :]


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
    _change_header,
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
    changed_gguf,
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
    lambda data, draw: _change_two(data, draw, seeds.TOKENIZER_PIECES),
)
