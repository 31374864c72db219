"""Errors that a flow has seen, as JSON, and back: what it caught before an effect, it catches again."""

from __future__ import annotations

import sys
from typing import Any

import msgspec

from weighbridge.errors import WeighbridgeError


class StepFailed(WeighbridgeError):
    """A step failed in an earlier life of the run, with an error of a kind that is not known here."""


def encode_error(error: BaseException) -> bytes:
    """Return what `decode_error` needs: the class, its plain arguments, and the words."""
    kind = type(error)
    saved: dict[str, Any] = {"module": kind.__module__, "name": kind.__qualname__, "text": str(error)}
    if _is_plain(error.args):
        saved["args"] = list(error.args)
    return msgspec.json.encode(saved)


def decode_error(data: bytes, step: str) -> Exception:
    """Return an error of the same class with the same arguments, else StepFailed. Nothing is imported for it."""
    saved = msgspec.json.decode(data)
    found: Any = sys.modules.get(saved["module"])
    for part in saved["name"].split("."):
        found = getattr(found, part, None)
    if isinstance(found, type) and issubclass(found, Exception) and "args" in saved:
        try:
            return found(*saved["args"])
        except Exception:  # its arguments are not those it was made with
            error = found.__new__(found)
            error.args = tuple(saved["args"])
            return error
    return StepFailed(f"step {step} had failed with {saved['name']}: {saved['text']}")


def _is_plain(args: tuple[Any, ...]) -> bool:
    return all(isinstance(arg, str | int | float | bool | None) for arg in args)
