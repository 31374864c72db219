"""Where a JSON value ends in a text that is still coming."""

from __future__ import annotations


class JsonEnd:
    """Fed pieces of a JSON object or array; `closed` once its last bracket has come."""

    __slots__ = ("_depth", "_escaped", "_in_string", "closed")

    def __init__(self) -> None:
        self._depth = 0
        self._in_string = False
        self._escaped = False
        self.closed = False

    def feed(self, piece: str) -> bool:
        """True when the value has just closed. What follows it is ignored."""
        if self.closed:
            return False
        for character in piece:
            if self._in_string:
                if self._escaped:
                    self._escaped = False
                elif character == "\\":
                    self._escaped = True
                elif character == '"':
                    self._in_string = False
            elif character == '"':
                self._in_string = True
            elif character in "{[":
                self._depth += 1
            elif character in "}]":
                self._depth -= 1
                if self._depth <= 0:
                    self.closed = True
                    return True
        return False
