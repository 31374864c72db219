"""What a model's files recommend for sampling: generation_config.json, or a GGUF's `general.sampling.*`."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from weighbridge.errors import BadInput
from weighbridge.models.files.fields import MAX_COUNT, shown
from weighbridge.models.files.gguf_format import GgufMetadata
from weighbridge.models.files.hf_config import read_json

AUTO, NONE = "auto", "none"
_NAME = "generation_config.json"


@dataclass(frozen=True, slots=True)
class SamplingDefaults:
    """What holds where a request says nothing; None: nothing is recommended, and OpenAI's default holds."""

    temperature: float | None = None
    top_p: float | None = None
    top_k: int | None = None
    min_p: float | None = None
    repetition_penalty: float | None = None
    max_tokens: int | None = None  # of a chat

    def as_dict(self) -> dict[str, float | int]:
        """Those that are recommended, by the name that a request has for them."""
        return {name: value for name, value in asdict(self).items() if value is not None}


NO_DEFAULTS = SamplingDefaults()

#: Of each: what generation_config.json calls it, what a GGUF does, and the values that a request could have as well.
_Test = Callable[[float], bool]
_FIELDS: Mapping[str, tuple[str, str, type, _Test, str]] = {
    "temperature": ("temperature", "temp", float, lambda value: 0 <= value <= 2, "0 to 2"),
    "top_p": ("top_p", "top_p", float, lambda value: 0 < value <= 1, "more than 0, at most 1"),
    "top_k": ("top_k", "top_k", int, lambda value: value >= -1, "-1 or more"),
    "min_p": ("min_p", "min_p", float, lambda value: 0 <= value <= 1, "0 to 1"),
    "repetition_penalty": (
        "repetition_penalty",
        "penalty_repeat",
        float,
        lambda value: 0 < value <= 10,
        "more than 0, at most 10",
    ),
    "max_tokens": ("max_new_tokens", "", int, lambda value: value >= 1, "1 or more"),
}


def read_sampling_defaults(path: Path, wanted: str = AUTO) -> SamplingDefaults:
    """Return what the model at `path` recommends. `wanted`: "auto", "none", or a file or folder to read instead.

    Raises BadInput for values that no request could have.
    """
    if wanted == NONE:
        return NO_DEFAULTS
    source = path if wanted == AUTO else Path(wanted)
    if source.is_dir():
        source = source / _NAME
        if not source.exists():
            if wanted != AUTO:
                raise BadInput(f"--generation-config {wanted}: the folder has no {_NAME}")
            return NO_DEFAULTS
    elif not source.is_file():
        raise BadInput(f"--generation-config {wanted} is neither auto, none, a file nor a folder")
    if source.suffix == ".gguf":
        return _of_gguf(source)
    fields = read_json(source)
    return _made({name: (json, fields.get(json)) for name, (json, *_) in _FIELDS.items()}, source.name)


def _of_gguf(path: Path) -> SamplingDefaults:
    file = GgufMetadata(path)
    keys = {name: f"general.sampling.{own}" for name, (_, own, *_) in _FIELDS.items() if own}
    return _made({name: (key, file.value(key)) for name, key in keys.items()}, path.name)


def _made(given: Mapping[str, tuple[str, Any]], source: str) -> SamplingDefaults:
    found: dict[str, Any] = {}
    for name, (own, value) in given.items():
        _, _, kind, is_right, words = _FIELDS[name]
        if value is None:
            continue
        is_number = isinstance(value, int | float) and not isinstance(value, bool) and abs(value) < MAX_COUNT
        if not is_number or (kind is int and value != int(value)) or not is_right(value):
            raise BadInput(
                f"{source}: {own} is {shown(value)}, but must be a number, {words}; correct it, or start with "
                "--generation-config none"
            )
        found[name] = kind(value)
    return SamplingDefaults(**found)
