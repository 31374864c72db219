"""What a client calls a field that an error names as a chat does, where its request was turned into a chat."""

from __future__ import annotations

import re
from collections.abc import Mapping

from weighbridge.wire.errors import ApiError

#: A field at the beginning of a message, `tools[0].function.parameters`, or behind who has said it.
_PLACE = re.compile(r"(?:[^:]{1,80} answered \d{3}: )?([a-z_]+(?:\[\d+\]|\.[A-Za-z_]+)*(?![\w']))")
_INDEX = re.compile(r"\[\d+\]")


class Names:
    """`own`: a client's names by those of a chat, `tools[].input_schema` by `tools[].function.parameters`. The longest
    that a field begins with counts; an index that the client's name has no place for is left out."""

    def __init__(self, own: Mapping[str, str]) -> None:
        self._own = own

    def message(self, error: ApiError) -> str:
        """What an error says, about the client's field."""
        text = str(error)
        found = _PLACE.match(text)
        return text if found is None else text[: found.start(1)] + self._place(found[1]) + text[found.end() :]

    def param(self, error: ApiError) -> str | None:
        return error.param and self._place(error.param)

    def _place(self, place: str) -> str:
        ends = [*(one.start() for one in re.finditer(r"[.\[]", place)), len(place)]
        for end in reversed(ends):
            own = self._own.get(_INDEX.sub("[]", place[:end]))
            if own is not None:
                indices = _INDEX.findall(place[:end])
                for index in indices[: own.count("[]")]:
                    own = own.replace("[]", index, 1)
                return own + place[end:]
        return place
