"""The GGUF container: metadata and the table of tensors, read straight from the mapped file.

A model may be in several files, NAME-00001-of-0000N.gguf and so on: the first has the metadata, each its tensors.

The `gguf` package reads the same, but builds numpy views of every string: 2 s for a vocabulary of 49,000
tokens, against 0.1 s here. Format: https://github.com/ggml-org/ggml/blob/master/docs/gguf.md
"""

from __future__ import annotations

import math
import mmap
import struct
from collections.abc import Iterable
from dataclasses import dataclass, replace
from itertools import pairwise
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import numpy.typing as npt
from gguf.constants import GGML_QUANT_SIZES, GGMLQuantizationType

from weighbridge.errors import BadInput, UnsupportedModel, said
from weighbridge.models.files.fields import finite_number, part_files, shown

T = TypeVar("T")

_MAGIC = b"GGUF"
_DEFAULT_ALIGNMENT = 32
_STRING, _ARRAY = 8, 9
_INTEGERS = {0: "<u1", 1: "<i1", 2: "<u2", 3: "<i2", 4: "<u4", 5: "<i4", 10: "<u8", 11: "<i8"}
_NUMBERS = {**_INTEGERS, 6: "<f4", 7: "?", 12: "<f8"}
_MAX_DIMENSIONS = 4
#: More than any model has. A file may be a terabyte of zeros that take no room, and every one of them would be read.
_MAX_HEADER_BYTES = 256 << 20
_MAX_VALUES, _MAX_TENSORS, _MAX_ENTRIES = 1 << 16, 1 << 20, 1 << 24
_ENDS = ("eos_token_id", "eot_token_id", "eom_token_id")


@dataclass(frozen=True, slots=True)
class TensorEntry:
    """One line of the tensor table. `shape` has rows first; `start` is the offset in its file, `part` which one."""

    name: str
    kind: GGMLQuantizationType
    shape: tuple[int, ...]
    start: int
    nbytes: int
    part: int = 0

    @property
    def row_bytes(self) -> int:
        return self.nbytes // max(math.prod(self.shape[:-1]), 1)


@dataclass(frozen=True, slots=True)
class Contents:
    """A mapped GGUF model: metadata as Python values, tensors by name, and the files that they are in."""

    metadata: dict[str, Any]
    tensors: dict[str, TensorEntry]
    mapped: tuple[npt.NDArray[np.uint8], ...]
    files: tuple[Path, ...]

    def blocks(self, entry: TensorEntry) -> npt.NDArray[np.uint8]:
        """Return the stored bytes of a tensor: uint8 [rows, bytes of a row], rows over all leading dimensions."""
        stored = self.mapped[entry.part][entry.start : entry.start + entry.nbytes]
        return stored.reshape(-1, entry.row_bytes)

    def release(self, entry: TensorEntry) -> None:
        """Forget the pages of a tensor that was read: what a mapped file keeps in memory counts as this process's."""
        pages: mmap.mmap = self.mapped[entry.part]._mmap  # type: ignore[attr-defined]
        if hasattr(mmap, "MADV_DONTNEED"):
            first = -(-entry.start // mmap.PAGESIZE) * mmap.PAGESIZE
            length = entry.start + entry.nbytes - first
            if length > 0:
                pages.madvise(mmap.MADV_DONTNEED, first, length)


class _Damaged(Exception):
    """The file ends too early or says something impossible."""


class _Cursor:
    """Reads values one after the other."""

    def __init__(self, data: memoryview) -> None:
        self.data = data
        self.position = 0

    def take(self, count: int) -> memoryview:
        end = self.position + count
        if end > len(self.data):
            raise _Damaged(f"it ends at byte {len(self.data)}, in the middle of its header")
        if end > _MAX_HEADER_BYTES:
            raise _Damaged(f"its header has more than {_MAX_HEADER_BYTES >> 20} MiB")
        taken = self.data[self.position : end]
        self.position = end
        return taken

    def count(self, largest: int, what: str) -> int:
        """Return a number of things of which there are no more than `largest`."""
        count = self.uint64()
        if count > largest:
            raise _Damaged(f"it claims {count} {what}")
        return count

    def uint32(self) -> int:
        return int.from_bytes(self.take(4), "little")

    def uint64(self) -> int:
        return int.from_bytes(self.take(8), "little")

    def string(self) -> str:
        return str(self.take(self.uint64()), "utf-8", "replace")

    def strings(self, count: int) -> list[str]:
        # The slowest part of opening a file, hence without the helpers above.
        data, position, limit = self.data, self.position, min(len(self.data), _MAX_HEADER_BYTES)
        lengths, strings = struct.Struct("<Q"), []
        try:
            for _ in range(count):
                start = position + 8
                position = start + lengths.unpack_from(data, position)[0]
                if position > limit:
                    break
                strings.append(str(data[start:position], "utf-8", "replace"))
        except struct.error:
            position = limit + 1
        if position > limit:
            raise _Damaged(f"it ends at byte {limit}, in the middle of a list of {count} strings")
        self.position = position
        return strings

    def value(self, kind: int) -> Any:
        if kind == _STRING:
            return self.string()
        if kind == _ARRAY:
            inner, count = self.uint32(), self.count(_MAX_ENTRIES, "entries of a list")
            if inner == _STRING:
                return self.strings(count)
            if inner == _ARRAY:
                raise _Damaged("it holds a list of lists, which no known model has")
            return self._numbers(inner, count)
        return self._numbers(kind, 1)[0]

    def _numbers(self, kind: int, count: int) -> list[Any]:
        if kind not in _NUMBERS:
            raise _Damaged(f"value type {kind} at byte {self.position} is not known")
        dtype = np.dtype(_NUMBERS[kind])
        numbers: list[Any] = np.frombuffer(self.take(dtype.itemsize * count), dtype).tolist()
        return numbers


def read_gguf(path: Path) -> Contents:
    """Map `path` and read its header; where it is the first part of a model, those of the others too.

    Raises BadInput when it is not a GGUF file or is cut short, when it is another part or one is missing;
    UnsupportedModel for a version or a tensor type that is not known.
    """
    first = _read_file(path)
    count = first.metadata.get("split.count", 1)
    if count in (0, 1):
        return first
    tensors, mapped, files = dict(first.tensors), [*first.mapped], part_files(path)
    if not isinstance(count, int) or count != len(files) or files[0] != path:
        raise BadInput(
            f"{path.name} says that it is part of a model in {shown(count)} files: name the first of them, which is "
            "called NAME-00001-of-0000N.gguf as it was downloaded"
        )
    for number, file in enumerate(files[1:], start=1):
        if not file.exists():
            raise BadInput(
                f"{path.name} is one of {count} parts, and {file.name} is not beside it: download it"
            )
        part = _read_file(file)
        if part.metadata.get("split.no") != number or part.metadata.get("split.count") != count:
            raise BadInput(
                f"{file.name} is not part {number + 1} of the model in {path.name}: download it again"
            )
        twice = next((name for name in part.tensors if name in tensors), None)
        if twice is not None:
            raise BadInput(
                f"tensor {shown(twice)} is in {file.name} and in a part before it: download both again"
            )
        tensors |= {name: replace(entry, part=number) for name, entry in part.tensors.items()}
        mapped += part.mapped
    return Contents(first.metadata, tensors, tuple(mapped), tuple(files))


def _read_file(path: Path) -> Contents:
    """Map one file and read its header. Raises as `read_gguf`."""
    if path.exists() and not path.is_file():
        raise BadInput(f"{path} is not a regular file")
    try:
        mapped = np.memmap(path, mode="r", dtype=np.uint8)
    except (OSError, ValueError) as error:
        raise BadInput(f"{path} cannot be read: {said(error)}") from error
    try:
        return _read(path, mapped)
    except _Damaged as error:
        raise BadInput(f"{path} is not a complete GGUF file: {said(error)}; download it again") from error


def _read(path: Path, mapped: npt.NDArray[np.uint8]) -> Contents:
    cursor = _Cursor(mapped.data)
    if bytes(cursor.take(4)) != _MAGIC:
        raise BadInput(f"{path} is not a GGUF file: it does not start with GGUF")
    version = cursor.uint32()
    if version not in (2, 3):
        note = " (a big-endian file?)" if version > 0xFFFF else ""
        raise UnsupportedModel(
            f"{path} has GGUF version {version}{note}, but 2 and 3 are supported: convert it again"
        )
    tensor_count, value_count = cursor.count(_MAX_TENSORS, "tensors"), cursor.count(_MAX_VALUES, "values")
    metadata: dict[str, Any] = {}
    for _ in range(value_count):
        key = cursor.string()
        if key in metadata:
            raise _Damaged(f"it has the key {shown(key)} twice")
        metadata[key] = cursor.value(cursor.uint32())
    table = [_table_line(cursor) for _ in range(tensor_count)]
    alignment = metadata.get("general.alignment", _DEFAULT_ALIGNMENT)
    if not isinstance(alignment, int) or alignment < 1:
        raise _Damaged(f"its alignment is {alignment!r}")
    base = -(-cursor.position // alignment) * alignment
    tensors: dict[str, TensorEntry] = {}
    for name, shape, kind, offset in table:
        if name in tensors:
            raise _Damaged(f"it has the tensor {shown(name)} twice")
        tensors[name] = _entry(name, shape, kind, base + offset, len(mapped))
    _check_apart(tensors.values())
    return Contents(metadata, tensors, (mapped,), (path,))


def _check_apart(tensors: Iterable[TensorEntry]) -> None:
    """Raise _Damaged where two tensors share bytes."""
    ordered = sorted(tensors, key=lambda entry: entry.start)
    for first, second in pairwise(ordered):
        if first.start + first.nbytes > second.start:
            raise _Damaged(f"its tensors {shown(first.name)} and {shown(second.name)} overlap")


def _table_line(cursor: _Cursor) -> tuple[str, tuple[int, ...], int, int]:
    name, dimensions = cursor.string(), cursor.uint32()
    if not 1 <= dimensions <= _MAX_DIMENSIONS:
        raise _Damaged(f"tensor {shown(name)} has {dimensions} dimensions")
    shape = tuple(reversed([cursor.uint64() for _ in range(dimensions)]))
    return name, shape, cursor.uint32(), cursor.uint64()


def _entry(name: str, shape: tuple[int, ...], code: int, start: int, limit: int) -> TensorEntry:
    try:
        kind = GGMLQuantizationType(code)
    except ValueError:
        raise UnsupportedModel(f"tensor {shown(name)} has type {code}, which is not known") from None
    block_size, block_bytes = GGML_QUANT_SIZES[kind]
    columns = shape[-1] if shape else 1
    if columns % block_size:
        raise _Damaged(
            f"tensor {shown(name)} has {columns} columns, but type {kind.name} packs {block_size} together"
        )
    if 0 in shape:
        raise _Damaged(f"tensor {shown(name)} has no elements")
    nbytes = math.prod(shape) // block_size * block_bytes
    if start + nbytes > limit:
        raise _Damaged(f"tensor {shown(name)} ends at byte {start + nbytes}, but the file has only {limit}")
    return TensorEntry(name, kind, shape, start, nbytes)


class GgufMetadata:
    """The metadata of a GGUF file, by key. `architecture` is GGUF's name for it."""

    def __init__(self, path: Path) -> None:
        """Raises as `read_gguf`."""
        self.path = path
        self._contents = read_gguf(path)
        self.architecture = self.text("general.architecture")

    @property
    def files(self) -> tuple[Path, ...]:
        """The files that the model is in; the first is `path`."""
        return self._contents.files

    def value(self, key: str) -> Any:
        """Return a metadata value as Python types (lists for arrays), or None; it may be of any type."""
        return self._contents.metadata.get(key)

    def text(self, key: str, default: str = "") -> str:
        """Return a string. Like the other typed readers, raises BadInput for a value of another type."""
        return self._typed(key, str, default)

    def number(self, key: str, default: float) -> float:
        value = self.value(key)
        return default if value is None else finite_number(value, key, self.path.name)

    def flag(self, key: str, default: bool) -> bool:
        return self._typed(key, bool, default)

    def index(self, key: str) -> int | None:
        """Return a number that may be missing, such as the id of a token."""
        return None if self.value(key) is None else self._typed(key, int, 0)

    def strings(self, key: str) -> list[str]:
        """Return a list of texts, empty when there is none."""
        return self._list(key, str)

    def integers(self, key: str) -> list[int]:
        return self._list(key, int)

    def floats(self, key: str) -> list[float]:
        return self._list(key, float)

    def end_token_ids(self) -> tuple[int, ...]:
        """Ids that the file declares to end a text or a turn."""
        ids = [self.index(f"tokenizer.ggml.{key}") for key in _ENDS]
        return tuple(dict.fromkeys(index for index in ids if index is not None))

    def _typed(self, key: str, kind: type[T], default: T) -> T:
        value = self._contents.metadata.get(key, default)
        if not isinstance(value, kind):
            raise BadInput(f"{self.path.name}: {key} must be of type {kind.__name__}, not {shown(value)}")
        return value

    def _list(self, key: str, kind: type[T]) -> list[T]:
        values: list[T] = self._typed(key, list, [])
        if values and not isinstance(values[0], kind):  # a GGUF array has one type for all
            raise BadInput(f"{self.path.name}: {key} must hold values of type {kind.__name__}")
        return values
