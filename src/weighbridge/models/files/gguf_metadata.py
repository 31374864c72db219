"""What a GGUF file says of its model. Tensors, and torch with them, are `gguf`'s."""

from __future__ import annotations

from pathlib import Path
from typing import Any, TypeVar

from weighbridge.errors import BadInput, UnsupportedModel
from weighbridge.models.files.gguf_format import read_gguf

T = TypeVar("T")

_ENDS = ("eos_token_id", "eot_token_id", "eom_token_id")


class GgufMetadata:
    """The metadata of a GGUF file, by key. `architecture` is GGUF's name for it."""

    def __init__(self, path: Path) -> None:
        """Raises BadInput for what is not a whole GGUF file, UnsupportedModel for a part of one."""
        self.path = path
        self._contents = read_gguf(path)
        self.architecture = self.text("general.architecture")
        parts = self.index("split.count")
        if parts is not None and parts > 1:
            raise UnsupportedModel(
                f"{path.name} is one of {parts} parts of a model; join them first (llama-gguf-split --merge)"
            )

    def value(self, key: str) -> Any:
        """A metadata value as Python types (lists for arrays), or None; it may be of any type."""
        return self._contents.metadata.get(key)

    def text(self, key: str, default: str = "") -> str:
        """A string. Like the other typed readers, raises BadInput for a value of another type."""
        return self._typed(key, str, default)

    def number(self, key: str, default: float) -> float:
        value = self.value(key)
        return float(value) if isinstance(value, int) else self._typed(key, float, default)

    def flag(self, key: str, default: bool) -> bool:
        return self._typed(key, bool, default)

    def index(self, key: str) -> int | None:
        """A number that may be missing, such as the id of a token."""
        return None if self.value(key) is None else self._typed(key, int, 0)

    def strings(self, key: str) -> list[str]:
        """A list, empty when there is none."""
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
            raise BadInput(f"{self.path.name}: {key} must be of type {kind.__name__}, not {value!r}")
        return value

    def _list(self, key: str, kind: type[T]) -> list[T]:
        values: list[T] = self._typed(key, list, [])
        if values and not isinstance(values[0], kind):  # a GGUF array has one type for all
            raise BadInput(f"{self.path.name}: {key} must hold values of type {kind.__name__}")
        return values
