"""Errors in OpenAI's shape."""

from __future__ import annotations

from math import ceil

import msgspec
from starlette.responses import Response

from weighbridge.errors import BadInput, Refused, WeighbridgeError


class ApiError(WeighbridgeError):
    """An answer other than 200, with OpenAI's fields."""

    def __init__(
        self,
        status: int,
        message: str,
        *,
        kind: str = "invalid_request_error",
        code: str | None = None,
        param: str | None = None,
        retry_after: float | None = None,
    ) -> None:
        super().__init__(message)
        self.status = status
        self.kind = kind
        self.code = code
        self.param = param
        self.retry_after = retry_after


def as_api_error(error: Exception) -> ApiError:
    """The HTTP face of an error raised below; what nobody foresaw is a 500 that gives no details away."""
    if isinstance(error, ApiError):
        return error
    if isinstance(error, Refused):
        return ApiError(
            error.status, str(error), kind=error.kind, code=error.code, retry_after=error.retry_after
        )
    if isinstance(error, BadInput):
        return ApiError(400, str(error), param=error.param)
    return ApiError(500, "the server failed on this request; its log says why", kind="server_error")


def error_body(error: ApiError) -> bytes:
    fields = {"message": str(error), "type": error.kind, "param": error.param, "code": error.code}
    return msgspec.json.encode({"error": fields})


def error_response(error: ApiError, headers: dict[str, str] | None = None) -> Response:
    answer = Response(error_body(error), error.status, headers, "application/json")
    if error.retry_after is not None:
        answer.headers["retry-after"] = str(max(1, ceil(error.retry_after)))
    return answer
