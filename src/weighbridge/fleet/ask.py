"""One request as the fleet carries it: the fields it must know, and the client's own bytes for all the rest."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import msgspec

Fields = dict[str, msgspec.Raw]

_encode = msgspec.json.encode


@dataclass(slots=True)
class Ask:
    """What came in at the door. `fields` keeps every value of the body as it was written, known or not."""

    id: str
    path: str  # "/v1/chat/completions", "/v1/completions", "/v1/embeddings"
    fields: Fields
    model: str  # the name the client used
    tenant: str
    stream: bool = False
    wants_usage: bool = False  # the client asked for usage in its stream
    max_tokens: int | None = None
    choices: int = 1
    priority: int = 0
    deadline: float | None = None  # on the gateway's clock
    route: str = ""
    session: str = ""
    resume: bool | None = None  # None: as the model is configured
    speculative: bool = False
    anonymous: bool = False  # replicas are not told whose it is
    headers: Mapping[str, str] = field(default_factory=dict)  # what goes on to the replica

    @property
    def prompt(self) -> msgspec.Raw | None:
        """The messages, prompt or input, as they were written."""
        for name in ("messages", "prompt", "input"):
            if name in self.fields:
                return self.fields[name]
        return None

    def body(
        self, model: str | None, extension: Mapping[str, Any] | None, *, ask_usage: bool = True
    ) -> bytes:
        """The JSON for a replica: `model` as that server calls it (None: as the client did), our own key only
        for those who know it, and for a stream the wish for usage, which settles what it really weighed."""
        fields = dict(self.fields)
        fields.pop("weighbridge", None)
        if extension is not None:
            fields["weighbridge"] = msgspec.Raw(_encode(extension))
        if model is not None:
            fields["model"] = msgspec.Raw(_encode(model))
        if self.stream and ask_usage and not self.wants_usage:
            options = msgspec.json.decode(fields["stream_options"]) if "stream_options" in fields else None
            fields["stream_options"] = msgspec.Raw(_encode({**(options or {}), "include_usage": True}))
        return _encode(fields)
