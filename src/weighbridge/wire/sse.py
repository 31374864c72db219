"""Server-sent events: whole events out of whatever pieces the network makes, and the data in them."""

from __future__ import annotations

#: The event that ends a stream, in OpenAI's way.
DONE = b"data: [DONE]\n\n"

#: No event may be longer: a server that never ends one must not fill our memory.
LARGEST_EVENT = 16 << 20

#: The empty line that ends an event, as servers write it.
_GAPS = (b"\n\n", b"\r\n\r\n")


class EventTooLong(ValueError):
    """An event of more than `LARGEST_EVENT` bytes."""

    def __init__(self) -> None:
        super().__init__(f"sent an event of more than {LARGEST_EVENT >> 20} MiB")


class EventFramer:
    """Cuts a stream of bytes behind whole events."""

    __slots__ = ("_held",)

    def __init__(self) -> None:
        self._held = b""

    def feed(self, data: bytes) -> bytes:
        """All whole events that are here now; empty while one is still incomplete. Raises EventTooLong."""
        if not self._held and data.endswith(b"\n\n"):
            return data  # what nearly every chunk of nearly every server looks like
        data = self._held + data
        end = max((at + len(gap) for gap in _GAPS if (at := data.rfind(gap)) >= 0), default=0)
        self._held = data[end:]
        if len(self._held) > LARGEST_EVENT:
            raise EventTooLong
        return data[:end]

    def flush(self) -> bytes:
        """What came behind the last whole event, when the stream ends: servers forget the empty line."""
        held, self._held = self._held, b""
        return held


def event_data(events: bytes) -> list[bytes]:
    """The data of whole events, one entry each; comments, empty events and other fields are left out.

    Several `data:` lines of one event are joined with line breaks, as the standard has it.
    """
    split = events.split(b"\n") if b"\r" not in events else events.splitlines()
    if not any(split[1::2]):  # a line each, as nearly always
        return [line[5:].removeprefix(b" ") for line in split[::2] if line.startswith(b"data:")]
    found: list[bytes] = []
    lines: list[bytes] = []
    for line in [*split, b""]:
        if line.startswith(b"data:"):
            lines.append(line[5:].removeprefix(b" "))
        elif not line and lines:
            found.append(lines[0] if len(lines) == 1 else b"\n".join(lines))
            lines = []
    return found
