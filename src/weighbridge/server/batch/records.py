"""Files and batches as they are kept, and as OpenAI's clients see them."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any

from msgspec import Meta, Struct, field

from weighbridge.cost.usage import Usage

#: What files may be uploaded for. OpenAI's other purposes are of what is not here.
BATCH, USER_DATA = "batch", "user_data"
PURPOSES = (BATCH, USER_DATA)
#: What the files of answers are for.
BATCH_OUTPUT = "batch_output"

VALIDATING, IN_PROGRESS, FINALIZING, CANCELLING = "validating", "in_progress", "finalizing", "cancelling"
COMPLETED, FAILED, EXPIRED, CANCELLED = "completed", "failed", "expired", "cancelled"
#: States from which nothing follows.
FINAL = frozenset({COMPLETED, FAILED, EXPIRED, CANCELLED})

#: Where something is kept: in a file that outlives the server, or in its memory.
ON_DISK, IN_MEMORY = "disk", "memory"


class CreateBatch(Struct, kw_only=True):
    """The request for a batch."""

    input_file_id: str
    endpoint: str
    completion_window: str
    metadata: (
        Annotated[
            dict[Annotated[str, Meta(max_length=64)], Annotated[str, Meta(max_length=512)]],
            Meta(max_length=16),
        ]
        | None
    ) = None
    output_expires_after: Any = None  # what is kept here, and how long, is the operator's to say


class FileRecord(Struct):
    """One uploaded file, or one of answers. Times are Unix seconds."""

    id: str
    tenant: str
    name: str
    purpose: str
    size: int
    created_at: int
    expires_at: int

    def shown(self, kept: str) -> dict[str, Any]:
        return {
            "id": self.id,
            "object": "file",
            "bytes": self.size,
            "created_at": self.created_at,
            "expires_at": self.expires_at,
            "filename": self.name,
            "purpose": self.purpose,
            "status": "processed",
            "status_details": None,
            "weighbridge": {"kept": kept},
        }


class Problem(Struct):
    """Why a batch cannot begin: what is wrong with one of its lines."""

    code: str
    message: str
    line: int | None = None
    param: str | None = None


class LineCounts(Struct):
    total: int = 0
    completed: int = 0
    failed: int = 0


class BatchRecord(Struct):
    """One batch. `known`: its tenant has shown who it is. `headers`: ours, of the request that created it, which hold
    for each line. Times are Unix seconds."""

    id: str
    tenant: str
    known: bool
    endpoint: str
    input_file_id: str
    completion_window: str
    created_at: int
    expires_at: int
    status: str = VALIDATING
    headers: dict[str, str] = field(default_factory=dict)
    metadata: dict[str, str] | None = None
    counts: LineCounts = field(default_factory=LineCounts)
    errors: list[Problem] = field(default_factory=list)
    times: dict[str, int] = field(default_factory=dict)  # when it came into each state
    output_file_id: str | None = None
    error_file_id: str | None = None
    usage: dict[str, int] = field(default_factory=dict)
    model: str | None = None

    @property
    def is_over(self) -> bool:
        return self.status in FINAL

    def enter(self, status: str, now: float) -> None:
        """Come into another state."""
        self.status = status
        self.times[status] = int(now)

    def add(self, used: Usage) -> None:
        """Count what one line has used."""
        for name in Usage.__dataclass_fields__:
            self.usage[name] = self.usage.get(name, 0) + getattr(used, name)

    def shown(self, kept: str) -> dict[str, Any]:
        errors = [
            {"code": one.code, "line": one.line, "message": one.message, "param": one.param}
            for one in self.errors
        ]
        return {
            "id": self.id,
            "object": "batch",
            "endpoint": self.endpoint,
            "model": self.model,
            "errors": {"object": "list", "data": errors} if errors else None,
            "input_file_id": self.input_file_id,
            "completion_window": self.completion_window,
            "status": self.status,
            "output_file_id": self.output_file_id,
            "error_file_id": self.error_file_id,
            "created_at": self.created_at,
            "expires_at": self.expires_at,
            **{f"{state}_at": self.times.get(state) for state in _TIMED},
            "request_counts": {
                "total": self.counts.total,
                "completed": self.counts.completed,
                "failed": self.counts.failed,
            },
            "usage": shown_usage(self.usage),
            "metadata": self.metadata,
            "weighbridge": {"kept": kept},
        }


_TIMED = (IN_PROGRESS, FINALIZING, CANCELLING, *sorted(FINAL))


def shown_usage(used: Mapping[str, int]) -> dict[str, Any] | None:
    """OpenAI's sum over a batch; None before the first answer."""
    if not used:
        return None
    return {
        "input_tokens": used["prompt_tokens"],
        "input_tokens_details": {"cached_tokens": used["cached_tokens"]},
        "output_tokens": used["output_tokens"],
        "output_tokens_details": {"reasoning_tokens": used["reasoning_tokens"]},
        "total_tokens": used["prompt_tokens"] + used["output_tokens"],
    }
