"""GGUF headers that claim what is not there, written byte by byte: refused in bounded time and memory."""

from __future__ import annotations

import struct
import tracemalloc
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.tiny import make_tiny
from tests.tiny_gguf import write_gguf
from weighbridge.errors import BadInput, said
from weighbridge.models.files.checkpoint import open_checkpoint
from weighbridge.models.files.gguf_format import read_gguf
from weighbridge.models.text.tokenizer import load_tokenizer

U32, F32, STRING, ARRAY, U64 = 4, 6, 8, 9, 10


def number(value: int) -> bytes:
    return struct.pack("<Q", value)


def text(value: str | bytes) -> bytes:
    data = value.encode() if isinstance(value, str) else value
    return number(len(data)) + data


def value(key: str, kind: int, data: bytes) -> bytes:
    return text(key) + struct.pack("<I", kind) + data


def tensor(name: str, shape: list[int], offset: int = 0, kind: int = 0) -> bytes:
    dimensions = struct.pack("<I", len(shape)) + b"".join(map(number, shape))
    return text(name) + dimensions + struct.pack("<I", kind) + number(offset)


def gguf(values: list[bytes], tensors: list[bytes], data: int = 4096) -> bytes:
    head = b"GGUF" + struct.pack("<I", 3) + number(len(tensors)) + number(len(values))
    return head + b"".join(values) + b"".join(tensors) + bytes(data)


ONE = tensor("a", [4, 4])
HEADERS = {
    "a list of lists": (gguf([value("k", ARRAY, struct.pack("<I", ARRAY) + number(1))], []), "list of lists"),
    "a text of 2^60 bytes": (gguf([value("k", STRING, number(1 << 60))], []), "in the middle of its header"),
    "a key of 2^63 bytes": (gguf([number(1 << 63)], []), "in the middle of its header"),
    "a list of 2^60 texts": (
        gguf([value("k", ARRAY, struct.pack("<I", STRING) + number(1 << 60))], []),
        "claims 1152921504606846976 entries",
    ),
    "a list of 2^20 texts that are not there": (
        gguf([value("k", ARRAY, struct.pack("<I", STRING) + number(1 << 20))], []),
        "in the middle of a list",
    ),
    "a list of 2^24 numbers that are not there": (
        gguf([value("k", ARRAY, struct.pack("<I", U64) + number(1 << 24))], []),
        "in the middle of its header",
    ),
    "a list of nothing known": (gguf([value("k", ARRAY, struct.pack("<I", 77) + number(1))], []), "type 77"),
    "a value of nothing known": (gguf([value("k", 77, b"")], []), "type 77"),
    "a key twice": (gguf([value("k", U32, bytes(4))] * 2, []), "the key 'k' twice"),
    "2^60 values": (b"GGUF" + struct.pack("<I", 3) + number(0) + number(1 << 60), "claims .* values"),
    "2^60 tensors": (b"GGUF" + struct.pack("<I", 3) + number(1 << 60) + number(0), "claims .* tensors"),
    "alignment 0": (gguf([value("general.alignment", U32, struct.pack("<I", 0))], [ONE]), "alignment is 0"),
    "alignment of text": (gguf([value("general.alignment", STRING, text("x"))], [ONE]), "alignment is 'x'"),
    "alignment of a list": (
        gguf([value("general.alignment", ARRAY, struct.pack("<I", U32) + number(0))], [ONE]),
        "alignment is",
    ),
    "alignment beyond the file": (
        gguf([value("general.alignment", U64, number(1 << 62))], [ONE]),
        "'a' ends at byte .* but the file has only",
    ),
    "no dimensions": (gguf([], [tensor("a", [])]), "has 0 dimensions"),
    "five dimensions": (gguf([], [tensor("a", [1] * 5)]), "has 5 dimensions"),
    "2^32 - 1 dimensions": (gguf([], [text("a") + struct.pack("<I", 2**32 - 1)]), "dimensions"),
    "no elements": (gguf([], [tensor("a", [4, 0])]), "has no elements"),
    "2^64 elements": (gguf([], [tensor("a", [1 << 32, 1 << 32])]), "ends at byte"),
    "2^256 elements": (gguf([], [tensor("a", [2**64 - 1] * 4)]), "ends at byte"),
    "an offset beyond the file": (gguf([], [tensor("a", [4], 1 << 40)]), "ends at byte"),
    "an offset of 2^64 - 1": (gguf([], [tensor("a", [4], 2**64 - 1)]), "ends at byte"),
    "columns that are no blocks": (gguf([], [tensor("a", [33, 2], 0, 8)]), "packs 32 together"),
    "a type of nothing known": (gguf([], [tensor("a", [4], 0, 999)]), "type 999"),
    "a tensor twice": (gguf([], [tensor("a", [4]), tensor("a", [4], 64)]), "the tensor 'a' twice"),
    "tensors that overlap": (gguf([], [tensor("a", [8]), tensor("b", [4], 16)]), "'a' and 'b' overlap"),
    "tensors of the same place": (gguf([], [tensor("a", [8]), tensor("b", [8])]), "overlap"),
    "a long name": (gguf([], [tensor("a" * 100_000, [4], 1 << 40)]), "aaa"),
}


def short(error: BadInput) -> None:
    assert len(str(error)) < 900
    assert "\n" not in str(error)


def refused(path: Path, words: str) -> None:
    tracemalloc.start()
    try:
        with pytest.raises(BadInput, match=words) as raised:
            read_gguf(path)
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    short(raised.value)
    assert peak < 64 << 20


@pytest.mark.parametrize("name", HEADERS)
def test_a_header_that_claims_too_much_is_refused(tmp_path: Path, name: str) -> None:
    data, words = HEADERS[name]
    (tmp_path / "m.gguf").write_bytes(data)
    refused(tmp_path / "m.gguf", words)


@pytest.mark.parametrize(
    ("head", "words"),
    [
        (number(0) + number(1 << 16), "the key '' twice"),
        (number(1 << 20) + number(0), "has 0 dimensions"),
        (number(0) + number(1) + number(1 << 39), "more than 256 MiB"),
        (number(0) + number(1) + value("k", ARRAY, struct.pack("<I", STRING) + number(1 << 39)), "claims"),
    ],
)
def test_a_terabyte_of_zeros_is_not_read(tmp_path: Path, head: bytes, words: str) -> None:
    """The file takes no room on the disk, and every zero of it means something."""
    path = tmp_path / "m.gguf"
    path.write_bytes(b"GGUF" + struct.pack("<I", 3) + head)
    with path.open("r+b") as file:
        file.truncate(1 << 40)
    refused(path, words)


def test_a_file_that_is_none_is_not_opened(tmp_path: Path) -> None:
    (tmp_path / "m.gguf").symlink_to("/dev/zero")
    with pytest.raises(BadInput, match="not a regular file"):
        read_gguf(tmp_path / "m.gguf")


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("gguf")
    return write_gguf(make_tiny("llama", folder / "llama", num_hidden_layers=1), folder / "whole.gguf")


@settings(max_examples=300, deadline=None)
@given(data=st.data())
def test_a_changed_header_is_read_or_refused(whole: Path, data: st.DataObject) -> None:
    """Any bytes of the metadata and of the table of tensors: a model that opens, or BadInput."""
    changed = bytearray(whole.read_bytes())
    tables = [(0, 2_000), (changed.find(b"tokenizer.ggml.merges"), len(changed) - 400_000)]
    for _ in range(data.draw(st.integers(1, 3))):
        first, last = data.draw(st.sampled_from(tables))
        at = data.draw(st.integers(max(first, 0), max(last, first + 1)))
        changed[at : at + 1] = data.draw(st.binary(min_size=1, max_size=1))
    path = whole.parent / "changed.gguf"
    path.write_bytes(changed)
    for opened in (open_checkpoint, load_tokenizer):
        try:
            opened(path)
        except BadInput as error:
            short(error)


def test_what_a_library_says_of_a_file_is_one_short_line(whole: Path) -> None:
    """A merge of a token that is not there, with a line feed in it: the tokenizers library quotes it."""
    changed = bytearray(whole.read_bytes())
    merges = changed.find(b"tokenizer.ggml.merges") + len("tokenizer.ggml.merges") + 4 + 4 + 8
    (length,) = struct.unpack_from("<Q", changed, merges)
    changed[merges + 8] = ord("\n")
    assert length > 1
    path = whole.parent / "line_feed.gguf"
    path.write_bytes(changed)
    with pytest.raises(BadInput, match="do not fit together") as raised:
        load_tokenizer(path)
    short(raised.value)


@given(st.text(), st.integers(2, 400))
def test_a_saying_has_its_bound(text: str, most: int) -> None:
    saying = said(ValueError(text), most)
    assert len(saying) <= most
    assert saying.isprintable()
    assert (
        saying == text
        or not text.isascii()
        or not text.isprintable()
        or "  " in text
        or len(text) > most
        or text != text.strip()
    )
