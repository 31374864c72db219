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
    """Cuts a stream of bytes behind whole events. Each byte is looked at once, in however many pieces it comes."""

    __slots__ = ("_held",)

    def __init__(self) -> None:
        self._held = bytearray()

    def feed(self, data: bytes) -> bytes:
        """All whole events that are here now; empty while one is still incomplete. Raises EventTooLong."""
        held = self._held
        if not held and data.endswith(b"\n\n"):
            return data  # what nearly every chunk of nearly every server looks like
        seen = max(len(held) - len(_GAPS[-1]) + 1, 0)  # before this no gap begins that is not here already
        held += data
        end = max((at + len(gap) for gap in _GAPS if (at := held.rfind(gap, seen)) >= 0), default=0)
        if len(held) - end > LARGEST_EVENT:
            raise EventTooLong
        whole = bytes(held[:end])
        del held[:end]
        return whole

    def flush(self) -> bytes:
        """What came behind the last whole event, when the stream ends: servers forget the empty line."""
        held, self._held = bytes(self._held), bytearray()
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
