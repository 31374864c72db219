"""Refusals that only a route knows. Each says what to change; what fits no place is `NeverFits`, as everywhere."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from weighbridge.errors import Refused

#: What a place says with one of these is about the request, and its client may read it.
REQUESTS_FAULT = frozenset({400, 413, 415, 422})


class PolicyForbids(Refused):
    """Residency and the placement asked for contradict each other."""

    status = 403
    kind = "permission_error"
    code = "residency_forbids"


class NoPlaceCan(Refused):
    """No permitted place is able to answer: context, capability, or health."""

    status = 503
    code = "no_side_available"


class NoPlaceAble(Refused):
    """What the request needs no permitted place has, now or later."""

    status = 400
    kind = "invalid_request_error"
    code = "no_replica_can"


class CloudDenied(Refused):
    """`only_cloud` was asked for, and budget, cap or health do not allow it."""

    status = 429
    kind = "rate_limit_error"
    code = "cloud_denied"


class PlaceFailed(Refused):
    """A place broke while answering. `status` is what it said; `billable`: it had begun to work.

    Where the request is at fault, the client is told what the place said of it: `said`, an error's fields as OpenAI has
    them.
    """

    status = 502
    code: str | None = "side_failed"

    def __init__(
        self,
        message: str,
        *,
        status: int = 502,
        retry_after: float | None = None,
        billable: bool = False,
        said: Mapping[str, Any] | None = None,
    ) -> None:
        super().__init__(message, retry_after=retry_after)
        self.status = status
        self.billable = billable
        if said is not None and self.is_request_at_fault:
            self.kind = _text(said.get("type")) or "invalid_request_error"
            self.code, self.param = _text(said.get("code")), _text(said.get("param"))

    @property
    def is_request_at_fault(self) -> bool:
        """Whether any place would refuse it. A wrong key or model name, a time-out or a rate limit is the place's."""
        return self.status in REQUESTS_FAULT


class LimitReached(PlaceFailed):
    """The tenant has used up one of its limits at the gateway; the free place would not change that."""

    kind = "rate_limit_error"
    code = "rate_limit_exceeded"

    @property
    def is_request_at_fault(self) -> bool:
        return True


class DoesNotFit(PlaceFailed):
    """Too long for this place's model, as its own tokenizer counts; another place may take it."""

    kind = "invalid_request_error"
    code = "context_length_exceeded"

    @property
    def is_request_at_fault(self) -> bool:
        return False


class TooLate(PlaceFailed):
    """The deadline has passed, or this place cannot meet it; another one may."""

    kind = "timeout_error"
    code = "deadline_missed"

    def __init__(self, message: str, *, billable: bool = False) -> None:
        super().__init__(message, status=504, billable=billable)


def _text(value: Any) -> str | None:
    return value if isinstance(value, str) else None
