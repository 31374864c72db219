"""What an operator can set about what is kept: responses after they were sent, uploaded files, batches."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from weighbridge.fleet.config.tracing import TraceSettings
from weighbridge.knobs import knob

#: Which responses are written down: those whose client sends `store: true`; all but those with `store: false`; none.
ASKED, ALWAYS, NEVER = "asked", "always", "never"


@dataclass(frozen=True, slots=True, kw_only=True)
class KeepSettings(TraceSettings):
    """Where responses, files and batches are kept, how many and how long."""

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
    decisions_file: Path | None = knob(
        None,
        "SQLite file of what decisions are calibrated by, each tenant's own; none: it is in memory.",
        is_made=True,
    )
    batches_file: Path | None = knob(
        None,
        "SQLite file of uploaded files and batches, which outlive the server; none: they are in memory.",
        is_made=True,
    )
    batches_days: float = knob(30.0, "Days after which an uploaded file or a batch is erased.", min=0.001)
    batches_memory: int = knob(
        256 << 20, "Memory for uploaded files and batches; a tenant may have an eighth of it.", unit="bytes"
    )
    batches_disk: int = knob(
        8 << 30, "Bytes of the file of batches; a tenant may have an eighth of it.", unit="bytes"
    )
    max_upload: int = knob(64 << 20, "Largest file that can be uploaded.", unit="bytes")
    batch_lines: int = knob(
        8, "Lines of batches under way at once for each replica; never more than half of its places.", min=1
    )
    batch_late_share: float = knob(
        0.25,
        "Last part of a batch's window in which one of its lines at a time runs behind others' requests instead of "
        "waiting until there are none; 0: it always waits.",
        min=0.0,
        max=1.0,
    )
    streams_memory: int = knob(
        64 << 20,
        "Memory for streams that survive their client; a tenant may have an eighth of it.",
        unit="bytes",
    )
