"""What an operator can set about responses that are kept after they were sent."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from weighbridge.knobs import knob
from weighbridge.wire.identity.settings import IdentitySettings

#: Which responses are written down: those whose client sends `store: true`; all but those with `store: false`; none.
ASKED, ALWAYS, NEVER = "asked", "always", "never"


@dataclass(frozen=True, slots=True, kw_only=True)
class KeepSettings(IdentitySettings):
    """Where responses are kept, how many and how long."""

    responses_on_disk: str = knob(
        ASKED,
        "Responses that are written down: asked (those with `store: true`), always (all but those with "
        "`store: false`), never. All others are kept in memory, for an hour.",
        choices=(ASKED, ALWAYS, NEVER),
    )
    responses_file: Path | None = knob(
        None,
        "SQLite file that they are written to; none: responses.sqlite under WEIGHBRIDGE_HOME.",
        is_made=True,
    )
    responses_days: float = knob(
        30.0, "Days after which a response that was written down is erased.", min=0.001
    )
    responses_memory: int = knob(
        256 << 20, "Memory for responses; a tenant may have an eighth of it.", unit="bytes"
    )
